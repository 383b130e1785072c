"""Turns bench/results.jsonl into the README's tables, docs/benchmarks.md, docs/scale.md and their plots.

python bench/report.py
"""

import math
import statistics
from pathlib import Path

import matplotlib
import numpy as np
from rusttorch.bench import results
from rusttorch.bench.__main__ import SIZES
from rusttorch.bench.table import ROWS

matplotlib.use("Agg")
from matplotlib import pyplot as plt

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results.jsonl"
DEFECT = 0.97
BLUE, ORANGE = "#1f77b4", "#ff7f0e"


def size(n):
    return f"{n // 1_000_000}M" if n >= 1_000_000 else f"{n // 1000}k" if n >= 1000 else str(n)


def ratio(r):
    """In bold below 0.97."""
    return f"**{r:.2f}**" if r < DEFECT else f"{r:.2f}" if r < 10 else f"{r:.1f}"


def cell(line):
    """rusttorch.NAME / under use()."""
    return f"{ratio(line['name']['ratio'])} / {ratio(line['use']['ratio'])}"


def with_interval(line, key="ratio"):
    low, high = line["interval"]
    return f"{ratio(line[key])} [{low:.2f}, {high:.2f}]"


def machine_of(lines):
    facts = lines[0]["machine"]
    dates = sorted({line["date"] for line in lines})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    return f"{facts['cpu']}, {facts['instruction_set']}, torch {facts['torch']}, {when}"


def table(head, rows):
    return ["| " + " | ".join(head) + " |", "|---|" + "---|" * (len(head) - 1), *(f"| {' | '.join(r)} |" for r in rows)]


def mean(lines, arm):
    """The geometric mean of ratios."""
    return statistics.geometric_mean(line[arm]["ratio"] for line in lines)


def chosen(lines, dtype="float32", threads=1, layout="contiguous"):
    return [r for r in lines if (r["dtype"], r["threads"], r["layout"]) == (dtype, threads, layout)]


def around(lines, n):
    """Of each op the cell nearest to n elements, and no further from it than a factor of 2.1."""
    nearest = {}
    for line in lines:
        far = abs(math.log(line["n"] / n))
        if far < math.log(2.1) and far < nearest.get(line["op"], (math.inf,))[0]:
            nearest[line["op"]] = far, line
    return [line for _, line in nearest.values()]


def name_of(line):
    return f"{line['op']} ({line['shape']})" if line["shape"] else f"{line['op']} ({size(line['n'])})"


def geometric_means(lines):
    """The whole table at 10k and 1M, and its worst cells."""
    rows = []
    for n in (10_000, 1_000_000):
        cells = around(lines, n)
        for arm, label in (("name", "rusttorch.NAME"), ("use", "under use()")):
            worst = min(cells, key=lambda line: line[arm]["ratio"])
            low, high = worst[arm]["interval"]
            worst_cell = f"{worst['op']} {ratio(worst[arm]['ratio'])} [{low:.2f}, {high:.2f}]"
            rows.append((size(n), label, str(len(cells)), f"{mean(cells, arm):.2f}", worst_cell))
    return table(("size", "", "ops", "geometric mean", "worst"), rows)


def by_family(lines):
    """For the README: geometric means of rusttorch.NAME / under use(), by family and size."""
    rows = []
    for family in dict.fromkeys(row.family for row in ROWS):
        cells = [line for line in lines if line["family"] == family]
        if not cells:  # not measured with the rest
            continue
        at_sizes = [around(cells, n) for n in SIZES]
        means = [f"{mean(c, 'name'):.2f} / {mean(c, 'use'):.2f}" if c else "" for c in at_sizes]
        rows.append((family, str(len({line["op"] for line in cells})), *means))
    return table(("family", "ops", *map(size, SIZES)), rows)


def by_whole_family(lines):
    """For what has few cells, or shapes of its own: geometric means over all cells of a family, and the worst."""
    rows = []
    for family in dict.fromkeys(line["family"] for line in lines):
        cells = [line for line in lines if line["family"] == family]
        worst = min(cells, key=lambda line: line["use"]["ratio"])
        means = [f"{mean(cells, arm):.2f}" for arm in ("name", "use")]
        rows.append((family, str(len(cells)), *means, f"{name_of(worst)} {with_interval(worst['use'])}"))
    return table(("family", "cells", "rusttorch.NAME", "under use()", "worst under use()"), rows)


def losses(lines):
    """Every cell below 0.97 whose interval is below 1."""
    rows = []
    for line in lines:
        for arm, label in (("name", "rusttorch.NAME"), ("use", "under use()")):
            if line[arm]["ratio"] < DEFECT and line[arm]["interval"][1] < 1:
                how = f"{line['dtype']}, {line['threads']} thread(s), {line['layout']}"
                rows.append((name_of(line), how, label, with_interval(line[arm])))
    return table(("cell", "", "", "ratio"), rows) if rows else ["None."]


def by_size(lines):
    found = {(r["op"], r["n"]): r for r in lines if not r["shape"]}
    sizes = [n for n in SIZES if any(n == key[1] for key in found)]
    rows = [
        (op, *(cell(found[op, n]) if (op, n) in found else "" for n in sizes))
        for op in dict.fromkeys(op for op, _ in found)
    ]
    return table(("op", *map(size, sizes)), rows)


def by_shape(lines):
    rows = [
        (r["op"], r["shape"], cell(r), f"{r['name']['theirs_us']:.1f}", f"{r['name']['ours_us']:.1f}")
        for r in lines
        if r["shape"]
    ]
    return table(("op", "shape", "ratio", "stock, us", "ours, us"), rows)


def by_cell(lines):
    rows = [
        (name_of(r), with_interval(r["name"]), with_interval(r["use"]), f"{r['name']['theirs_us']:.1f}") for r in lines
    ]
    return table(("cell", "rusttorch.NAME", "under use()", "stock, us"), rows)


def against_contenders(lines):
    found = [r for r in lines if "compile" in r or "numpy" in r]
    rows = [(name_of(r), *(with_interval(r[c]) if c in r else "" for c in ("compile", "numpy"))) for r in found]
    means = []
    for n in (10_000, 1_000_000):
        for contender, label in (("compile", "torch.compile"), ("numpy", "NumPy")):
            cells = [r for r in around(found, n) if contender in r]
            if cells:
                means.append(f"{label} at {size(n)}: {mean(cells, contender):.2f} over {len(cells)} ops")
    return ["Geometric means: " + "; ".join(means) + ".", "", *table(("cell", "torch.compile", "NumPy"), rows)]


def shares(lines):
    named = [f"{name_of(r)} {r['share_of_bandwidth']:.0%}" for r in lines if "share_of_bandwidth" in r]
    return [", ".join(named) + "."]


def overhead(lines):
    """Microseconds of a call on one element."""
    rows = []
    for r in lines:
        if r["n"] == 1 and not r["shape"]:
            times = (r["name"]["theirs_us"], r["name"]["ours_us"], r["use"]["ours_us"])
            rows.append((r["op"], *(f"{t:.2f}" for t in times)))
    return table(("op", "stock", "rusttorch.NAME", "under use()"), rows)


def optimizer_table(lines):
    by_key = {(r["optimizer"], r["sizes"], r["stock"]): r for r in lines}
    columns = list(dict.fromkeys((r["sizes"], r["stock"]) for r in lines))
    rows = [
        (name, *(with_interval(by_key[(name, *c)]) if (name, *c) in by_key else "" for c in columns))
        for name in dict.fromkeys(r["optimizer"] for r in lines)
    ]
    head = ("", *(f"{sizes}, {stock}" for sizes, stock in columns))
    return [f"{machine_of(lines)}, float32, 1 thread.", "", *table(head, rows)]


def train_table(lines):
    rows = []
    for r in lines:
        change = [
            " to ".join(f"{form(r[key][arm])}" for arm in ("stock", "swapped"))
            for key, form in (("median", lambda s: f"{s * 1e3:.2f}"), ("faults", str))
        ]
        parts = [with_interval(r["parts"][name]) for name in ("ops", "pool")]
        rows.append((r["loop"], str(r["threads"]), r["against"], with_interval(r, "speedup"), *parts, *change))
    head = ("loop", "threads", "against", "speed-up", "ops alone", "the pool", "ms a step", "page faults a step")
    return [f"{machine_of(lines)}.", "", *table(head, rows)]


def by_machine(lines, f):
    """A table of each CPU's lines, f of them, below what it was measured on."""
    text = []
    for name in sorted({results.cpu(r) for r in lines}):
        here = [r for r in lines if results.cpu(r) == name]
        text += [f"{machine_of(here)}, {here[0]['threads']} thread.", "", *f(here), ""]
    return text[:-1]


def products_by_rows(lines):
    """Geometric means over layouts and sizes of the second factor, and the worst of them."""
    rows = []
    dtypes = list(dict.fromkeys(r["dtype"] for r in lines))
    groups = {(r["dtype"], r["shape"].split("x")[0]) for r in lines}
    for dtype, m in sorted(groups, key=lambda group: (dtypes.index(group[0]), int(group[1]))):
        cells = [r for r in lines if r["dtype"] == dtype and r["shape"].split("x")[0] == m]
        worst = min(cells, key=lambda r: r["ratio"])
        means = [statistics.geometric_mean(r["gflops"][arm] for r in cells) for arm in ("stock", "ours")]
        mean_ratio = statistics.geometric_mean(r["ratio"] for r in cells)
        where = f"{with_interval(worst)} ({worst['layout']} {worst['shape']})"
        others = []
        for name in ("zentorch", "numpy"):
            found = [r["contenders"][name] for r in cells if name in r.get("contenders", {})]
            others.append(ratio(statistics.geometric_mean(found)) if found else "")
        rows.append((dtype, m, ratio(mean_ratio), where, " to ".join(f"{g:.1f}" for g in means), *others))
    return table(("dtype", "rows", "geometric mean", "worst", "GFLOP/s", "of zentorch", "of NumPy"), rows)


def products(lines):
    rows = []
    for r in lines:
        rate = f"{r['gflops']['stock']:.1f} to {r['gflops']['ours']:.1f}"
        read = f"{r['gbytes']:.1f}" if int(r["shape"].split("x")[0]) <= 4 else ""
        others = [
            ratio(r["contenders"][name]) if name in r.get("contenders", {}) else "" for name in ("zentorch", "numpy")
        ]
        taken = "" if r["ran"] else "handed over"
        rows.append((r["dtype"], r["layout"], r["shape"], with_interval(r), rate, read, *others, taken))
    head = (
        "dtype",
        "layout",
        "m x k x n",
        "ratio",
        "GFLOP/s",
        "GB/s of the second factor",
        "of zentorch",
        "of NumPy",
        "",
    )
    return table(head, rows)


def models(lines):
    rows = [(r["model"], with_interval(r), f"{r['theirs_us'] / 1e3:.1f} to {r['ours_us'] / 1e3:.1f}") for r in lines]
    return table(("model", "ratio", "ms"), rows)


def plot_training(train, curves, path):
    """Speed-ups with their intervals, and the losses of both arms."""
    figure, axes = plt.subplots(1, 1 + len(curves), figsize=(4 * (1 + len(curves)), 3.6), layout="constrained")
    shown = [r for r in train if r["against"] in ("default", "fused")]
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
    figure.savefig(path, dpi=110)


def plot_heat(lines, path):
    """rusttorch.NAME's ratio of every op at every size; where there is no cell it is grey."""
    names = list(dict.fromkeys(line["op"] for line in lines))
    grid = np.full((len(SIZES), len(names)), np.nan)
    for k, n in enumerate(SIZES):
        for line in around(lines, n):
            grid[k, names.index(line["op"])] = math.log2(line["name"]["ratio"])
    figure, axis = plt.subplots(figsize=(16, 4), layout="constrained")
    axis.set_facecolor("lightgrey")
    image = axis.imshow(grid, aspect="auto", cmap="RdBu", vmin=-4, vmax=4, interpolation="nearest")
    axis.set_yticks(range(len(SIZES)), map(size, SIZES))
    axis.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    bar = figure.colorbar(image, label="stock's time over ours", pad=0.01)
    bar.set_ticks(range(-4, 5), labels=[f"{2.0**k:g}" for k in range(-4, 5)])
    figure.savefig(path, dpi=110)


def plot_roofline(lines, roof, path):
    """Bytes a second of the ops that memory should bound, under what plain loops of the C library reach."""
    moved = {row.name: row.tensors_moved for row in ROWS}
    reads_only = {row.name: row.reads_only for row in ROWS}
    figure, axes = plt.subplots(1, 2, figsize=(12, 4), layout="constrained", sharey=True)
    for axis, reads, plain in zip(axes, (False, True), ("copy_gb_s", "read_gb_s"), strict=True):
        axis.plot([r["bytes"] for r in roof], [r[plain] for r in roof], color="black", linewidth=2, label="plain loop")
        for arm, color, label in (("theirs_us", ORANGE, "stock"), ("ours_us", BLUE, "rusttorch")):
            cells = [r for r in lines if moved[r["op"]] and reads_only[r["op"]] == reads and not r["shape"]]
            bytes_moved = [4 * r["n"] * moved[r["op"]] for r in cells]
            rate = [b / r["name"][arm] / 1e3 for b, r in zip(bytes_moved, cells, strict=True)]
            axis.scatter(bytes_moved, rate, s=9, color=color, label=label, alpha=0.7)
        axis.set_title("read" if reads else "read and written")
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlabel("bytes moved")
        axis.legend()
    axes[0].set_ylabel("GB/s")
    figure.savefig(path, dpi=110)


def is_power_of_two(n):
    return n & (n - 1) == 0


def plot_scale(lines, path):
    """Nanoseconds an element over the size, stock's and ours, for each number of threads."""
    names = list(dict.fromkeys(line["op"] for line in lines))
    figure, axes = plt.subplots(1, len(names), figsize=(3.4 * len(names), 3.6), layout="constrained")
    for axis, name in zip(axes, names, strict=True):
        for threads, style in zip(sorted({line["threads"] for line in lines}), ("-", "--", ":"), strict=False):
            cells = [r for r in lines if (r["op"], r["threads"]) == (name, threads)]
            for arm, color, label in (("theirs_us", ORANGE, "stock"), ("ours_us", BLUE, "rusttorch")):
                y = [1e3 * r["name"][arm] / r["n"] for r in cells]
                axis.plot([r["n"] for r in cells], y, style, color=color, label=f"{label}, {threads}")
        axis.set_title(name)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xlabel("elements")
    axes[0].set_ylabel("ns an element")
    axes[0].legend()
    figure.savefig(path, dpi=110)


def scale_table(lines):
    """How much faster ours is with all threads than with one, and stock."""
    most = max(line["threads"] for line in lines)
    by_cell = {(r["op"], r["n"], r["threads"]): r for r in lines}
    rows = []
    for op, n in sorted({(r["op"], r["n"]) for r in lines}):
        one, all_of_them = by_cell[op, n, 1]["name"], by_cell[op, n, most]["name"]
        speedups = [one[arm] / all_of_them[arm] for arm in ("ours_us", "theirs_us")]
        ratios = [ratio(r["ratio"]) for r in (one, all_of_them)]
        rows.append((op, f"2^{n.bit_length() - 1}", *(f"{s:.2f}" for s in speedups), *ratios))
    head = ("op", "elements", f"ours, {most} threads over 1", "stock's", "ratio, 1 thread", f"ratio, {most}")
    return table(head, rows)


def put(path, **sections):
    """Lines between a page's markers."""
    page = path.read_text()
    for name, lines in sections.items():
        begin, end = f"<!-- bench {name} -->", f"<!-- /bench {name} -->"
        before, rest = page.split(begin)
        page = f"{before}{begin}\n" + "\n".join(lines) + f"\n{end}{rest.split(end)[1]}"
    path.write_text(page)


def main():
    everything = results.load(RESULTS)
    ops, optimizer, train, curves, roof, matmul, whole = (
        [line for line in everything if line["bench"] == name]
        for name in ("ops", "optimizer", "train", "curves", "roof", "matmul", "models")
    )
    # Most tables are of one CPU; what was measured elsewhere has its own.
    cpu = results.cpu(ops[0])
    elsewhere = [line for line in ops if results.cpu(line) != cpu]
    ops, roof = ([line for line in lines if results.cpu(line) == cpu] for lines in (ops, roof))
    # The page on scale has the ops that were measured up to 2^28, at the powers of two.
    scaled = {line["op"] for line in ops if line["n"] == 1 << 28}
    scale = [line for line in ops if line["op"] in scaled and line["n"] > 1 and is_power_of_two(line["n"])]
    cells = [line for line in ops if line["shape"] or line["n"] in SIZES]
    plain = chosen(cells)
    others = {
        "bf16": chosen(cells, "bfloat16"),
        "f16": chosen(cells, "float16"),
        "f64": chosen(cells, "float64"),
        "threads": chosen(cells, threads=2),
        "transposed": chosen(cells, layout="transposed"),
        "strided": chosen(cells, layout="strided"),
    }
    docs = ROOT / "docs"
    facts = f"{machine_of(plain)}, float32, 1 thread; a plain copy moves {plain[0]['bandwidth_gb_s']} GB/s."
    means = [facts, "", *geometric_means(plain)]
    put(
        ROOT / "README.md",
        train=train_table(train),
        optimizer=optimizer_table(optimizer),
        means=means,
        families=[*by_family(plain), "", *by_machine(elsewhere, by_whole_family)],
        losses=losses(plain),
        products=by_machine(matmul, products_by_rows),
        models=by_machine(whole, models),
    )
    put(
        docs / "benchmarks.md",
        means=means,
        losses=losses(cells),
        sizes=by_size(plain),
        shapes=by_shape(plain),
        overhead=overhead(plain),
        contenders=against_contenders(plain),
        shares=shares(plain),
        products=by_machine(matmul, products),
        elsewhere=by_machine(elsewhere, by_cell),
        **{name: by_size(lines) for name, lines in others.items()},
    )
    put(docs / "scale.md", scale=[f"{machine_of(scale)}.", "", *scale_table(scale)])
    plot_training(train, curves, docs / "training.png")
    plot_heat(plain, docs / "heatmap.png")
    plot_roofline(plain, [r for r in roof if r["threads"] == 1], docs / "roofline.png")
    plot_scale(scale, docs / "scale.png")


if __name__ == "__main__":
    main()
