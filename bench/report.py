"""Turns bench/results.json into the README's tables and plots.

python bench/report.py                               # prints the tables
python bench/report.py --into README.md --plots docs # puts them between the page's markers, and draws the plots
"""

import argparse
from pathlib import Path

import matplotlib
import results as results_file

matplotlib.use("Agg")
from matplotlib import pyplot as plt

DEFECT = 0.97
BLUE, ORANGE = "#1f77b4", "#ff7f0e"


def size(n):
    return f"{n // 1_000_000}M" if n >= 1_000_000 else f"{n // 1000}k" if n >= 1000 else str(n)


def ratio(r):
    """In bold below 0.97."""
    return f"**{r:.2f}**" if r < DEFECT else f"{r:.2f}" if r < 10 else f"{r:.1f}"


def cell(result):
    """rusttorch.NAME / under use()."""
    return f"{ratio(result['name']['ratio'])} / {ratio(result['use']['ratio'])}"


def with_interval(result, key="ratio"):
    low, high = result["interval"]
    return f"{ratio(result[key])} [{low:.2f}, {high:.2f}]"


def machine_of(section):
    facts = section["machine"]
    text = f"{facts['cpu']}, {facts['instruction_set']}, torch {facts['torch']}"
    if "dtype" in facts:
        text += f", {facts['dtype']}"
    if "threads" in facts:
        text += f", {facts['threads']} thread"
    return text


def ops_table(section):
    results = section["results"]
    by_size = [r for r in results if not r.get("shape")]
    sizes = sorted({r["n"] for r in by_size})
    by_key = {(r["op"], r["n"]): r for r in by_size}
    lines = [
        f"{machine_of(section)}; a plain streaming copy moves {section['machine']['bandwidth_gb_s']} GB/s.",
        "",
        "| op | " + " | ".join(size(n) for n in sizes) + " |",
        "|---|" + "---|" * len(sizes),
    ]
    for op in dict.fromkeys(r["op"] for r in by_size):
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
    return lines


def optimizer_table(section):
    by_key = {(r["optimizer"], r["sizes"], r["stock"]): r for r in section["results"]}
    columns = list(dict.fromkeys((r["sizes"], r["stock"]) for r in section["results"]))
    lines = [
        f"{machine_of(section)}.",
        "",
        "| | " + " | ".join(f"{sizes}, {stock}" for sizes, stock in columns) + " |",
        "|---|" + "---|" * len(columns),
    ]
    for name in dict.fromkeys(r["optimizer"] for r in section["results"]):
        cells = [with_interval(by_key[(name, *c)]) if (name, *c) in by_key else "" for c in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def train_table(section):
    lines = [
        f"{machine_of(section)}.",
        "",
        "| loop | threads | against | speed-up | ms a step | page faults a step |",
        "|---|---|---|---|---|---|",
    ]
    for r in section["results"]:
        change = [
            " to ".join(f"{form(r[key][arm])}" for arm in ("stock", "swapped"))
            for key, form in (("median", lambda s: f"{s * 1e3:.2f}"), ("faults", str))
        ]
        cells = (r["loop"], str(r["threads"]), r["against"], with_interval(r, "speedup"), *change)
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def plot_training(everything, folder):
    """Speed-ups with their intervals, and the losses of both arms."""
    results, curves = everything["train"]["results"], everything["curves"]["results"]
    figure, axes = plt.subplots(1, 1 + len(curves), figsize=(4 * (1 + len(curves)), 3.6), layout="constrained")
    shown = [r for r in results if r["against"] in ("default", "fused")]
    for k, r in enumerate(shown):
        low, high = r["interval"]
        error = [[r["speedup"] - low], [high - r["speedup"]]]
        axes[0].barh(k, r["speedup"], color=BLUE if r["against"] == "default" else ORANGE, xerr=error)
    axes[0].set_yticks(range(len(shown)), [f"{r['loop']}, {r['threads']} thread(s), {r['against']}" for r in shown])
    axes[0].axvline(1, color="black", linewidth=0.8)
    axes[0].invert_yaxis()
    axes[0].set_xlabel("stock's step time over swapped's, 95 % interval")
    for axis, curve in zip(axes[1:], curves, strict=True):
        axis.plot(curve["losses"]["stock"], color=BLUE, linewidth=3, alpha=0.5, label="stock")
        axis.plot(curve["losses"]["swapped"], color=ORANGE, linewidth=1, label="swapped")
        axis.set_title(f"{curve['loop']}: at most {curve['apart']:.0e} apart")
        axis.set_xlabel("step")
        axis.set_ylabel("loss")
        axis.legend()
    figure.savefig(folder / "training.png", dpi=110)


def plot_ops(everything, folder):
    """Every op's ratio at its largest size up to 1M, sorted."""
    best = {}
    for r in everything["ops"]["results"]:
        if r["n"] <= 1_048_576:
            best[r["op"]] = r
    ordered = sorted(best.values(), key=lambda r: r["name"]["ratio"])
    figure, axis = plt.subplots(figsize=(12, 4.5), layout="constrained")
    axis.bar(range(len(ordered)), [r["name"]["ratio"] for r in ordered], color=BLUE)
    axis.axhline(1, color="black", linewidth=0.8)
    axis.set_yscale("log")
    axis.set_ylabel("stock's time over ours")
    axis.set_xticks(range(len(ordered)), [r["op"] for r in ordered], rotation=90, fontsize=7)
    axis.margins(x=0.01)
    figure.savefig(folder / "ops.png", dpi=110)


TABLES = {"train": train_table, "optimizer": optimizer_table, "ops": ops_table}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--results", type=Path, default=results_file.FILE)
    parser.add_argument("--into", type=Path)
    parser.add_argument("--plots", type=Path)
    options = parser.parse_args()
    everything = results_file.load(options.results)
    page = options.into.read_text() if options.into else None
    for name, table in TABLES.items():
        text = "\n".join(table(everything[name]))
        if page is None:
            print(text + "\n")
            continue
        begin, end = f"<!-- bench {name} -->", f"<!-- /bench {name} -->"
        before, rest = page.split(begin)
        page = f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}"
    if options.into:
        options.into.write_text(page)
    if options.plots:
        plot_training(everything, options.plots)
        plot_ops(everything, options.plots)


if __name__ == "__main__":
    main()
