"""Times every op against stock torch, interleaved in one process.

    python bench/ops.py                          # every op, all sizes, f32, one thread
    python bench/ops.py mish add --sizes 16 10000
    python bench/ops.py --out bench/results.json

Two ratios per op and size, stock's time over ours: `name` calls rusttorch.NAME, `use` calls stock's function under
rusttorch.use(). Each is the median over pairs of blocks, one block of calls each, in random order; the interval is
the bootstrap's, 95 %.
"""

import argparse
import ctypes
import gc
import itertools
import math
import os
import random
import statistics
import time
from pathlib import Path

import numpy as np
import results as results_file
import rusttorch
import torch
from table import ROWS

SIZES = (16, 1_000, 10_000, 100_000, 1_000_000, 16_000_000)
BLOCK_SECONDS = 2e-3


def keep_memory():
    """Keeps glibc from giving freed blocks back to the kernel and taking them again, a page fault per 4 KiB.

    Whether it does depends on what lies on top of the heap, so it would hit the two arms differently. What a pool
    of memory is worth is another question than what a kernel is worth.
    """
    libc = ctypes.CDLL(None)
    m_trim_threshold, m_mmap_max = -1, -4
    libc.mallopt(m_trim_threshold, 2**31 - 1)
    libc.mallopt(m_mmap_max, 0)


def make_inputs(row, shape, dtype):
    torch.manual_seed(0)
    make = {
        "n": lambda: torch.randn(shape),
        "p": lambda: torch.rand(shape) + 0.1,
        "u": lambda: torch.rand(shape) * 0.8 + 0.1,
        "z": lambda: torch.zeros(shape),
        "o": lambda: 1 + torch.randn(shape) / 1000,
        "t": lambda: torch.randn(shape).t(),
    }
    classes = "c"
    return [
        torch.randint(shape[-1], shape[:-1]) if letter == classes else make[letter]().to(dtype) for letter in row.inputs
    ]


def block(f, args, kwargs, calls):
    """Seconds per call."""
    start = time.perf_counter()
    for _ in itertools.repeat(None, calls):
        f(*args, **kwargs)
    return (time.perf_counter() - start) / calls


def paired(stock, ours):
    """The ratio of the seconds of pairs, and its interval."""
    ratios = np.array(stock) / np.array(ours)
    draws = np.median(np.random.default_rng(0).choice(ratios, (1000, len(ratios))), axis=1)
    return {"ratio": float(np.median(ratios)), "interval": [float(q) for q in np.quantile(draws, [0.025, 0.975])]}


def compare(stock, ours, pairs, setup=None):
    """Paired ratios and the median seconds of both: stock and ours are (f, args, kwargs).

    setup(arm) is called before a block, outside the timed part.
    """
    arms = {"stock": stock, "ours": ours}
    once = max(block(*stock, 2), 1e-7)
    calls = max(1, int(BLOCK_SECONDS / once))
    times = {"stock": [], "ours": []}
    for i in range(pairs + 2):
        for arm in random.sample(("stock", "ours"), 2):
            if setup:
                setup(arm)
            # An exchange of kernels moves the heap's top, and with it the next outputs to cold memory.
            block(*arms[arm], max(calls, 20) if setup else calls)
            seconds = block(*arms[arm], calls)
            if i >= 2:
                times[arm].append(seconds)
    if setup:
        setup("stock")
    return paired(times["stock"], times["ours"]) | {
        "stock_us": statistics.median(times["stock"]) * 1e6,
        "ours_us": statistics.median(times["ours"]) * 1e6,
    }


def bandwidth():
    """GB/s of the C library's copy of memory far larger than the cache, reads and writes counted."""
    a, out = torch.ones(16_000_000), torch.empty(16_000_000)
    best = min(block(ctypes.memmove, (out.data_ptr(), a.data_ptr(), a.nbytes), {}, 1) for _ in range(15))
    return 2 * a.nbytes / best / 1e9


def reading_bandwidth(nbytes):
    """GB/s of the C library's memchr, a plain loop that reads, over as many bytes."""
    libc = ctypes.CDLL(None)
    libc.memchr.restype = ctypes.c_void_p
    zeros = torch.zeros(nbytes, dtype=torch.uint8)
    call = (ctypes.c_void_p(zeros.data_ptr()), 1, ctypes.c_size_t(nbytes))
    calls = max(1, 20_000_000 // nbytes)
    return nbytes / statistics.median(block(libc.memchr, call, {}, calls) for _ in range(15)) / 1e9


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ops", nargs="*", help="substrings of op names; none: all")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=31)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    if options.threads == 1:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(options.threads)
    random.seed(0)
    gc.disable()
    keep_memory()
    facts = {"threads": options.threads, "dtype": options.dtype, "bandwidth_gb_s": round(bandwidth(), 1)}
    print(results_file.machine() | facts)
    rows = [r for r in ROWS if not options.ops or any(o in r.name for o in options.ops)]
    results = []
    for row in rows:
        for shape in row.shapes or [(n,) for n in options.sizes]:
            n = math.prod(shape)
            inputs = make_inputs(row, shape, getattr(torch, options.dtype))
            call = (*inputs, *row.args)
            stock, ours = (row.stock, call, row.kwargs), (row.ours, call, row.kwargs)
            pairs = options.pairs if n <= 1_000_000 else max(5, options.pairs // 3)
            name = compare(stock, ours, pairs)
            # Everything that the call may reach is swapped, as for a user; exchanged between blocks, untimed.
            everything = rusttorch.use()
            state = {"stock": everything.__exit__, "ours": everything.__enter__}
            current = ["stock"]

            def setup(arm, state=state, current=current):
                if arm != current[0]:
                    state[arm]()
                    current[0] = arm

            use = compare(stock, stock, pairs, setup)
            label = "x".join(map(str, shape)) if row.shapes else str(n)
            result = {"op": row.name, "n": n, "shape": label if row.shapes else None, "name": name, "use": use}
            share = ""
            moved = row.tensors_moved * n * inputs[0].element_size()
            # What is written from the cache has no limit to compare with; what is read from it has.
            if moved and n >= (1_000_000 if row.reads_only else 4_000_001):
                limit = reading_bandwidth(moved) if row.reads_only else facts["bandwidth_gb_s"]
                result["share_of_bandwidth"] = moved / name["ours_us"] / 1e3 / limit
                share = f"  {result['share_of_bandwidth']:.0%} of bandwidth"
            results.append(result)
            flags = "".join(" <0.97" if r["ratio"] < 0.97 else "" for r in (name, use))
            print(
                f"{row.name:28s} {label:>10s}  stock {name['stock_us']:9.2f} us  "
                f"name {name['ratio']:6.2f}x [{name['interval'][0]:.2f}, {name['interval'][1]:.2f}]  "
                f"use {use['ratio']:6.2f}x [{use['interval'][0]:.2f}, {use['interval'][1]:.2f}]{share}{flags}",
                flush=True,
            )
    if options.out:
        results_file.save(options.out, "ops", results, lambda r: (r["op"], r["n"], r["shape"]), **facts)


if __name__ == "__main__":
    main()
