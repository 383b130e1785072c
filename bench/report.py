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
    by_size = [r for r in results if not r.get("shape")]
    sizes = sorted({r["n"] for r in by_size})
    ops = list(dict.fromkeys(r["op"] for r in by_size))
    by_key = {(r["op"], r["n"]): r for r in by_size}
    lines = [
        f"{facts['cpu']}, {facts['capability']}, torch {facts['torch']}, {facts['dtype']}, "
        f"{facts['threads']} thread; a plain streaming copy moves {facts['bandwidth_gb_s']} GB/s.",
        "",
        "| op | " + " | ".join(size(n) for n in sizes) + " |",
        "|---|" + "---|" * len(sizes),
    ]
    for op in ops:
        lines.append(f"| {op} | " + " | ".join(cell(by_key[op, n]) for n in sizes) + " |")
    lines += ["", "| op | shape | ratio | stock, us | ours, us |", "|---|---|---|---|---|"]
    for r in results:
        if r.get("shape"):
            times = f"{r['name']['stock_us']:.1f} | {r['name']['ours_us']:.1f}"
            lines.append(f"| {r['op']} | {r['shape']} | {cell(r)} | {times} |")
    shares = [r for r in results if "share_of_bandwidth" in r and r["n"] == 1_000_000]
    if shares:
        named = ", ".join(f"{r['op']} {r['share_of_bandwidth']:.0%}" for r in shares)
        lines += ["", f"Of the speed at which a plain loop (memchr) reads as many bytes, at 1M: {named}."]
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
