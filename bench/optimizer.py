"""Times whole optimizer steps against torch.optim, and gradient clipping and averages, interleaved in one process.

    python bench/optimizer.py [--pairs 21] [--out bench/results.jsonl]

Stock's time over ours, where stock is torch.optim's default and torch.optim's fused=True, and ours is rusttorch.optim.
One thread, f32, the same gradients at every step.
"""

import argparse
from pathlib import Path

import rusttorch
import torch
from rusttorch.bench import measure, results

SIZES = {"40 of 512, 4 of 512x512": [(512,)] * 40 + [(512, 512)] * 4, "1000 of 64": [(64,)] * 1000}  # parameters
OPTIMIZERS = {
    "Adam": {},
    "AdamW": {},
    "SGD": {"lr": 1e-3},
    "SGD, momentum": {"lr": 1e-3, "momentum": 0.9},
}


def stepper(kind, shapes, options):
    params = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    for p in params:
        p.grad = torch.randn(p.shape)
    optimizer = kind(params, **options)
    optimizer.step()
    return optimizer.step


def clipped(module, name, bound):
    """module.NAME over gradients that bound does, or does not, change."""

    def make(shapes):
        params = [torch.nn.Parameter(torch.empty(shape)) for shape in shapes]
        for p in params:
            p.grad = torch.randn(p.shape)
        f = getattr(module, name)
        return lambda: f(params, bound)

    return make


def averaged(swapped):
    def make(shapes):
        both = [[torch.randn(shape) for shape in shapes] for _ in range(2)]
        return (lambda: rusttorch.ema_update_(*both, 0.999)) if swapped else (lambda: torch._foreach_lerp_(*both, 1e-3))

    return make


# name: (stock, ours), each of which makes a function of shapes. A norm that is clipped to -1 stays the same, and is
# scaled at every call.
UTILITIES = {
    f"clip_grad_{kind}_, {when}": tuple(
        clipped(module, f"clip_grad_{kind}_", bound) for module in (torch.nn.utils, rusttorch)
    )
    for kind, when, bound in (("norm", "kept", 1e9), ("norm", "scaled", -1), ("value", "clamped", 0.5))
} | {"EMA": (averaged(False), averaged(True))}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=21)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    measure.keep_memory()
    # Long blocks: a loop has one optimizer, whose state may stay in the last cache level. Two in turn, each with 17 MB,
    # would push each other out of it.
    measure.BLOCK_SECONDS = 60e-3
    torch.set_num_threads(1)
    found = []

    def time(name, sizes, stock_name, stock, ours):
        measured = measure.compare((stock, (), {}), (ours, (), {}), options.pairs)
        low, high = measured["interval"]
        print(
            f"{name:24} {sizes:24} against {stock_name:10} {measured['theirs_us']:8.0f} us "
            f"{measured['ratio']:5.2f}x [{low:.2f}, {high:.2f}]",
            flush=True,
        )
        found.append({"optimizer": name, "sizes": sizes, "stock": stock_name} | measured)

    for name, more in OPTIMIZERS.items():
        kind = name.split(",")[0]
        for sizes, shapes in SIZES.items():
            ours = stepper(getattr(rusttorch.optim, kind), shapes, more)
            for stock_name, flags in (("default", {}), ("fused=True", {"fused": True})):
                stock = stepper(getattr(torch.optim, kind), shapes, {**more, **flags})
                time(name, sizes, stock_name, stock, ours)
    for name, (stock, ours) in UTILITIES.items():
        for sizes, shapes in SIZES.items():
            time(name, sizes, "default", stock(shapes), ours(shapes))
    if options.out:
        results.save(options.out, "optimizer", found)


if __name__ == "__main__":
    main()
