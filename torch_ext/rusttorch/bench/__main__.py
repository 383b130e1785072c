"""Times every op against stock torch, interleaved in one process.

    python -m rusttorch.bench                               # every op, all sizes, f32, one thread
    python -m rusttorch.bench mish "add*" --sizes 16 10000  # some
    python -m rusttorch.bench --out new.jsonl               # into a file; what it has of other cells stays there
    python -m rusttorch.bench mish --against old.jsonl      # and what has changed since an older file

Two ratios per op and size, stock's time over ours: `name` calls rusttorch.NAME, `use` calls stock's function under
rusttorch.use(). With --contenders, at 10k and 1M, also torch.compile's time over ours, and NumPy's where it has the
op. Each is the median over pairs of blocks, one block of calls each, in random order; the interval is the
bootstrap's, 95 %.
"""

import argparse
import difflib
import fnmatch
import gc
import math
import os
import random
from pathlib import Path

import torch

import rusttorch

from . import measure, results
from .compare import changes
from .table import NUMPY, ROWS

SIZES = (1, 16, 1_000, 10_000, 100_000, 1_000_000, 16_000_000)
CONTENDED = (10_000, 1_000_000, 1024 * 1024)  # where torch.compile, which takes seconds for each, is asked
FROM_CACHE = 4_000_000  # elements: what is written there has no limit to compare with


def under_use(stock, pairs):
    """Stock's function with everything that it may reach swapped, as for a user; exchanged between blocks, untimed."""
    everything = rusttorch.use()
    exchange = {"theirs": everything.__exit__, "ours": everything.__enter__}
    current = "theirs"

    def setup(arm):
        nonlocal current
        if arm != current:
            exchange[arm]()
            current = arm

    return measure.compare(stock, stock, pairs, setup)


def contenders(row, inputs, ours, pairs):
    """torch.compile's and NumPy's time over ours."""
    found = {}
    call = (*inputs, *row.args)
    if not row.steps:
        torch._dynamo.reset()
        compiled = torch.compile(row.stock, dynamic=False)
        found["compile"] = measure.compare((compiled, call, row.kwargs), ours, pairs)
    if row.name in NUMPY:
        arrays = [x.numpy() for x in inputs]
        found["numpy"] = measure.compare((NUMPY[row.name], arrays, {}), ours, pairs)
    return found


def share_of_bandwidth(row, inputs, n, seconds, copying):
    """How much of what the machine moves the op moves; None where it has no such limit."""
    moved = row.tensors_moved * n * inputs[0].element_size()
    if not moved or n < (1_000_000 if row.reads_only else FROM_CACHE):
        return None
    limit = measure.reading_gb_s(moved) if row.reads_only else copying
    return moved / seconds / 1e9 / limit


def roof(threads):
    """What plain loops move, by how much they move."""
    for nbytes in (2**k for k in range(10, 28)):
        rates = {"copy_gb_s": measure.copying_gb_s(nbytes), "read_gb_s": measure.reading_gb_s(nbytes)}
        yield {"bytes": nbytes, "threads": threads} | rates


def cell(row, shape, options, copying):
    n = math.prod(shape)
    inputs = measure.make_inputs(row, shape, getattr(torch, options.dtype), options.layout)
    call = (*inputs, *row.args)
    stock, ours = (row.stock, call, row.kwargs), (row.ours, call, row.kwargs)
    pairs = options.pairs if n <= 1_100_000 else max(5, options.pairs // 3)
    result = {
        "op": row.name,
        "family": row.family,
        "n": n,
        "shape": "x".join(map(str, shape)) if row.shapes else None,
        "dtype": options.dtype,
        "threads": options.threads,
        "layout": options.layout,
        "name": measure.compare(stock, ours, pairs),
        "use": under_use(stock, pairs),
    }
    if options.contenders and n in CONTENDED:
        result |= contenders(row, inputs, ours, pairs)
    share = share_of_bandwidth(row, inputs, n, result["name"]["ours_us"] / 1e6, copying)
    return result | ({"share_of_bandwidth": share} if share else {})


def line(result):
    """For the eye."""
    text = f"{result['op']:28s} {result['shape'] or result['n']:>10}  stock {result['name']['theirs_us']:9.2f} us"
    for arm in ("name", "use", "compile", "numpy"):
        if arm in result:
            ratio, (low, high) = result[arm]["ratio"], result[arm]["interval"]
            text += f"  {arm} {ratio:6.2f}x [{low:.2f}, {high:.2f}]" + (" <0.97" if ratio < 0.97 else "")
    if "share_of_bandwidth" in result:
        text += f"  {result['share_of_bandwidth']:.0%} of bandwidth"
    return text


def main():
    parser = argparse.ArgumentParser(
        prog="python -m rusttorch.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("ops", nargs="*", default=["*"], help="patterns of op names; none: all")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="elements; of ops with shapes, the largest")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--layout", default="contiguous", choices=measure.LAYOUTS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=21)
    parser.add_argument("--contenders", action="store_true", help="torch.compile and NumPy too, at 10k and 1M")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--against", type=Path, help="an older file, to say what has changed since")
    options = parser.parse_args()
    names = [row.name for row in ROWS]
    for pattern in options.ops:
        if not fnmatch.filter(names, pattern):
            close = difflib.get_close_matches(pattern.strip("*"), names, n=1)
            parser.error(f"no op is called {pattern!r}" + (f"; did you mean {close[0]!r}?" if close else ""))

    if options.threads == 1:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(options.threads)
    random.seed(0)
    gc.disable()
    measure.keep_memory()
    copying = round(measure.copying_gb_s(64_000_000), 1)
    print(results.machine() | {"bandwidth_gb_s": copying})
    found = []
    for row in ROWS:
        if not any(fnmatch.fnmatch(row.name, pattern) for pattern in options.ops):
            continue
        if row.shapes and options.layout != "contiguous":
            continue
        for shape in row.shapes or [(n,) for n in options.sizes]:
            if math.prod(shape) <= max(options.sizes):
                found.append(cell(row, shape, options, copying))
                print(line(found[-1]), flush=True)
    if options.out:
        results.save(options.out, "ops", found, bandwidth_gb_s=copying)
        results.save(options.out, "roof", list(roof(options.threads)))
    if options.against:
        print(*changes(results.load(options.against, "ops"), [{"bench": "ops"} | r for r in found]), sep="\n")


if __name__ == "__main__":
    main()
