"""How a function is timed against another: in pairs of blocks, in random order, in one process."""

import ctypes
import itertools
import math
import random
import statistics
import time

import numpy as np
import torch

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


def _strided(shape):
    """Every other element of what is twice as long."""
    return [*shape[:-1], 2 * shape[-1]], lambda x: x[..., ::2]


def _transposed(shape):
    rows = math.isqrt(math.prod(shape))
    return (rows, rows), torch.Tensor.t


# What is made, and how it is seen.
LAYOUTS = {"contiguous": lambda shape: (shape, lambda x: x), "transposed": _transposed, "strided": _strided}


def make_inputs(row, shape, dtype, layout="contiguous"):
    torch.manual_seed(0)
    shape, see = LAYOUTS[layout](shape)
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
        torch.randint(shape[-1], shape[:-1]) if letter == classes else see(make[letter]().to(dtype))
        for letter in row.inputs
    ]


def block(f, args, kwargs, calls):
    """Seconds per call."""
    start = time.perf_counter()
    for _ in itertools.repeat(None, calls):
        f(*args, **kwargs)
    return (time.perf_counter() - start) / calls


def _digits(x):
    """As many as mean something."""
    return float(f"{x:.4g}")


def paired(theirs, ours):
    """The ratio of the seconds of pairs, and its interval."""
    ratios = np.array(theirs) / np.array(ours)
    draws = np.median(np.random.default_rng(0).choice(ratios, (1000, len(ratios))), axis=1)
    return {"ratio": _digits(np.median(ratios)), "interval": [_digits(q) for q in np.quantile(draws, [0.025, 0.975])]}


def compare(theirs, ours, pairs, setup=None):
    """Their time over ours, and the median microseconds of both: theirs and ours are (f, args, kwargs).

    setup(arm) is called before a block, outside the timed part.
    """
    arms = {"theirs": theirs, "ours": ours}
    once = max(block(*theirs, 2), 1e-7)
    calls = max(1, int(BLOCK_SECONDS / once))
    # An exchange of kernels moves the heap's top, and with it the next outputs to cold memory.
    warm = max(calls, min(20, int(10 * BLOCK_SECONDS / once))) if setup else calls
    times = {"theirs": [], "ours": []}
    for i in range(pairs + 2):
        for arm in random.sample(("theirs", "ours"), 2):
            if setup:
                setup(arm)
            block(*arms[arm], warm)
            seconds = block(*arms[arm], calls)
            if i >= 2:
                times[arm].append(seconds)
    if setup:
        setup("theirs")
    return paired(times["theirs"], times["ours"]) | {
        "theirs_us": _digits(statistics.median(times["theirs"]) * 1e6),
        "ours_us": _digits(statistics.median(times["ours"]) * 1e6),
    }


def copying_gb_s(nbytes):
    """GB/s of the C library's copy of so many bytes, those read and those written counted."""
    a, out = torch.ones(nbytes, dtype=torch.uint8), torch.empty(nbytes, dtype=torch.uint8)
    return 2 * nbytes / _fastest(ctypes.memmove, (out.data_ptr(), a.data_ptr(), nbytes), nbytes) / 1e9


def reading_gb_s(nbytes):
    """GB/s of the C library's memchr, a plain loop that reads, over so many bytes."""
    libc = ctypes.CDLL(None)
    libc.memchr.restype = ctypes.c_void_p
    zeros = torch.zeros(nbytes, dtype=torch.uint8)
    call = (ctypes.c_void_p(zeros.data_ptr()), 1, ctypes.c_size_t(nbytes))
    return nbytes / _fastest(libc.memchr, call, nbytes) / 1e9


def _fastest(f, call, nbytes):
    calls = max(1, 20_000_000 // nbytes)
    return min(block(f, call, {}, calls) for _ in range(15))
