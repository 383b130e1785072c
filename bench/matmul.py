"""Products of matrices: stock torch against rusttorch, by dtype, layout and size, in one process, one after the other.

    python bench/matmul.py [--dtypes float32 bfloat16 float16] [--layouts nn nt tn] [--rows 1 4 32 128]
        [--threads 1] [--pairs 11] [--contenders] [--take-all] [--out bench/results.jsonl]

Layouts are of the two factors, n as they are, t transposed: nt is a linear layer's forward, nn and tn its gradients.
Both arms have the memory pool. A line is the median time of each, the ratio (stock's time over ours) with its interval,
and GFLOP/s, or for one row GB/s of the second factor; and whether ours ran, or handed the call to stock. --contenders
adds float32's ratios of NumPy's OpenBLAS (it reads OPENBLAS_NUM_THREADS) and of zentorch, AMD's own (pip install
--no-deps zentorch deprecated wrapt), where that can be imported. With --take-all nothing is handed to stock, which is
how csrc/ops/matmul.cpp's table was made.
"""

import argparse
import importlib.util
from pathlib import Path

import rusttorch
import torch
from rusttorch.bench import measure, results

SHAPES = ((64, 64), (256, 256), (768, 768), (768, 3072), (1024, 2816), (3072, 768), (1024, 32000))  # k, n


def factors(layout, m, k, n, dtype):
    a = torch.randn(m, k) if layout[0] == "n" else torch.randn(k, m).t()
    b = torch.randn(k, n) if layout[1] == "n" else torch.randn(n, k).t()
    return a.to(dtype), b.to(dtype)


def contenders(a, b):
    """By name: products of the same factors."""
    found = {}
    if a.dtype == torch.float32:
        x, y = a.numpy(), b.numpy()
        found["numpy"] = lambda: x @ y
    if importlib.util.find_spec("zentorch") and a.dtype == torch.float32:  # 16 bits it takes on some CPUs
        import zentorch  # noqa: F401

        found["zentorch"] = lambda: torch.ops.zentorch.zentorch_mm(a, b)
    return found


def compared(dtype, layout, m, k, n, pairs, others):
    a, b = factors(layout, m, k, n, dtype)
    rusttorch.reset_stats()
    found = measure.compare((torch.mm, (a, b), {}), (rusttorch.mm, (a, b), {}), pairs)
    flops = 2 * m * k * n
    ran = rusttorch.stats()["mm"].ran > 0
    against = contenders(a, b) if others else {}
    ours = (rusttorch.mm, (a, b), {})
    return {
        **{"dtype": str(dtype).removeprefix("torch."), "layout": layout, "shape": f"{m}x{k}x{n}"},
        **{"ran": ran, **found},
        "contenders": {name: measure.compare((f, (), {}), ours, pairs)["ratio"] for name, f in against.items()},
        "gflops": {"stock": flops / found["theirs_us"] / 1e3, "ours": flops / found["ours_us"] / 1e3},
        "gbytes": b.nbytes / found["ours_us"] / 1e3,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16", "float16"])
    parser.add_argument("--layouts", nargs="+", default=["nt", "nn", "tn"])
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 4, 32, 128])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=11, help="timed pairs of blocks for each line")
    parser.add_argument("--contenders", action="store_true")
    parser.add_argument("--take-all", action="store_true", help="also where stock is faster")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rusttorch._C.take_all(options.take_all)
    found = []
    with rusttorch.memory.pool():
        for dtype in options.dtypes:
            for layout in options.layouts:
                for k, n in SHAPES:
                    for m in options.rows:
                        if m > 32 and n > 4096:
                            continue
                        line = compared(getattr(torch, dtype), layout, m, k, n, options.pairs, options.contenders)
                        found.append(line | {"threads": options.threads})
                        low, high = line["interval"]
                        print(
                            f"{dtype:8} {layout} {m:4} x {k:4} x {n:5}  {line['ratio']:6.2f} [{low:.2f}, {high:.2f}]  "
                            f"{line['gflops']['stock']:6.1f} -> {line['gflops']['ours']:6.1f} GFLOP/s  "
                            f"{line['gbytes']:5.1f} GB/s{'' if line['ran'] else '  handed over'}"
                            + "".join(f"  {name} {other:.2f}" for name, other in line["contenders"].items()),
                            flush=True,
                        )
    if options.out:
        results.save(options.out, "matmul", found)


if __name__ == "__main__":
    main()
