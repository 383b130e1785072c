"""Turns bench/gpu-h100.json into docs/cuda.md's tables.

python bench/gpu_report.py

That file is put together, by hand, of what bench/gpu.py left in several runs: each cell is of the last that has it, and
names the commit; beside them stand the card, the torch, the date and each run's copy.
"""

import json
import math
import statistics
from pathlib import Path

from report import DEFECT, put, ratio, table
from rusttorch.bench.table import ROWS

ROOT = Path(__file__).parents[1]
FAMILY = {row.name: row.family for row in ROWS}


def parts(label):
    """ "max(dim=1) float32 4096x50257": the op, its dtype, its shape."""
    name, dtype, shape = label.rsplit(" ", 2)
    return name, dtype, [int(n) for n in shape.split("x")]


def share(cell):
    found = cell["ours"].get("share_of_bandwidth")
    return f"{found:.0%}" if found else ""


def cases(found):
    rows = []
    for label, cell in found["cases"].items():
        ours, stock = cell["ours"], cell["stock"]
        interval = "[{:.2f}, {:.2f}]".format(*ours["interval"])
        held = (
            f"{ours['peak_over_gradient']:.1f} / {stock['peak_over_gradient']:.1f}"
            if "peak_over_gradient" in ours
            else ""
        )
        rows.append(
            (label, f"{ours['us']:.0f}", f"{stock['us']:.0f}", f"{ratio(ours['ratio'])} {interval}", share(cell), held)
        )
    return table(
        ("", "ours, us", "stock, us", "ratio", "of the copy's bandwidth", "memory / stock's, in gradients"), rows
    )


def families(ops, least):
    """Geometric means over the cells of so many elements and more."""
    ratios = {}
    for label, cell in ops.items():
        name, dtype, shape = parts(label)
        if math.prod(shape) >= least:
            ratios.setdefault(FAMILY[name], {}).setdefault(dtype, []).append(cell["ours"]["ratio"])
    return table(
        ("family", *(f"{dtype}: mean, worst, cells" for dtype in ("float32", "bfloat16"))),
        [
            (family, *(f"{ratio(statistics.geometric_mean(r))}, {ratio(min(r))}, {len(r)}" for r in by_dtype.values()))
            for family, by_dtype in ratios.items()
        ],
    )


def losses(ops):
    rows = [(cell["ours"]["ratio"], label, cell) for label, cell in ops.items() if cell["ours"]["interval"][1] < DEFECT]
    return table(
        ("cell", "ratio", "ours, us", "stock, us", "of the copy's bandwidth", "measured at"),
        [
            (label, ratio(r), f"{cell['ours']['us']:.1f}", f"{cell['stock']['us']:.1f}", share(cell), cell["commit"])
            for r, label, cell in sorted(rows, key=lambda row: row[:2])
        ],
    )


def limits(ops, least):
    """Of what moves too much for the cache, how near it comes to the copy."""
    reached = {}
    for label, cell in ops.items():
        name, _, shape = parts(label)
        if math.prod(shape) >= least and "share_of_bandwidth" in cell["ours"]:
            reached.setdefault(FAMILY[name], []).append(cell["ours"]["share_of_bandwidth"])
    return table(
        ("family", "cells", "at 90 % and more", "median", "least"),
        [
            (family, str(len(s)), str(sum(x >= 0.9 for x in s)), f"{statistics.median(s):.0%}", f"{min(s):.0%}")
            for family, s in reached.items()
        ],
    )


def main():
    results = json.loads((ROOT / "bench" / "gpu-h100.json").read_text())
    found = results["groups"]
    copies = ", ".join(f"{gb_s} GB/s at {commit}" for commit, gb_s in results["copy_gb_s"].items())
    machine = f"{results['machine']}, torch {results['torch']}, {results['date']}; torch's own copy moves {copies}."
    put(
        ROOT / "docs" / "cuda.md",
        machine=[machine],
        cases=cases(found),
        families=families(found["ops"], 1 << 24),
        limits=limits(found["ops"], 1 << 24),
        losses=losses(found["ops"]),
    )


if __name__ == "__main__":
    main()
