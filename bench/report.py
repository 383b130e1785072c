"""Turns the results of bench/ops.py into a table.

python bench/report.py bench/results/ops.json                    # prints it
python bench/report.py bench/results/ops.json --into README.md   # puts it between the file's bench markers
"""

import argparse
import json
from pathlib import Path

BEGIN, END = "<!-- bench -->", "<!-- /bench -->"
DEFECT = 0.97


def size(n):
    return f"{n // 1_000_000}M" if n >= 1_000_000 else f"{n // 1000}k" if n >= 1000 else str(n)


def cell(result):
    """rusttorch.NAME / under use(), in bold below 0.97."""
    ratios = [result["name"]["ratio"], result["use"]["ratio"]]
    return " / ".join(f"**{r:.2f}**" if r < DEFECT else f"{r:.2f}" if r < 10 else f"{r:.1f}" for r in ratios)


def table(data):
    facts, results = data["facts"], data["results"]
    sizes = sorted({r["n"] for r in results})
    ops = list(dict.fromkeys(r["op"] for r in results))
    by_key = {(r["op"], r["n"]): r for r in results}
    lines = [
        f"{facts['cpu']}, {facts['capability']}, torch {facts['torch']}, {facts['dtype']}, "
        f"{facts['threads']} thread; a plain streaming copy moves {facts['bandwidth_gb_s']} GB/s.",
        "",
        "| op | " + " | ".join(size(n) for n in sizes) + " |",
        "|---|" + "---|" * len(sizes),
    ]
    for op in ops:
        lines.append(f"| {op} | " + " | ".join(cell(by_key[op, n]) for n in sizes) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--into", type=Path)
    options = parser.parse_args()
    text = table(json.loads(options.results.read_text()))
    if options.into is None:
        print(text)
        return
    page = options.into.read_text()
    before, rest = page.split(BEGIN)
    options.into.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
