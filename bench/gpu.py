"""Times the ops on a GPU: stock eager, rusttorch, torch.compile; Liger-Kernel and FlagGems where they are installed.

    python bench/gpu.py --out build/gpu/bench.json [--sizes 1048576 16777216 134217728] [--seconds 500]

Each figure is the median over blocks of calls, timed by the device's own events, the contenders in random order in one
process; ratios are stock's time over theirs, paired, with the bootstrap's 95 % interval. First the cases that training
is made of: the cross entropy of a vocabulary, Adam over 100 million parameters, the backward of layer norm, and the
steps of a GPT under rusttorch.AB; then the table of ops, and in the end torch.compile over some of them.

Each is in the file as soon as it is measured, and what is there is not measured again. Exit status: 0; 75 where the
seconds were not enough.
"""

import argparse
import contextlib
import faulthandler
import importlib
import json
import math
import os
import random
import statistics
import sys
import time
from pathlib import Path

import rusttorch
import torch
import torch.nn.functional as F
from rusttorch.bench import measure
from rusttorch.bench.table import ROWS
from train import Text

BLOCK_SECONDS = 1e-3
BLOCKS = 15
CELL_SECONDS = 60  # after which a kernel hangs
LEFT = 75


class Results:
    """What is measured, in the file after each cell. One that ends the process is an error there, not tried again."""

    def __init__(self, path, seconds, device):
        self.path, self.until, self.device = path, time.time() + seconds, device
        self.found = json.loads(path.read_text()) if path.exists() else {}
        self.left = 0

    def save(self):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_suffix(".new")
        beside.write_text(json.dumps(self.found, indent=1) + "\n")
        beside.replace(self.path)

    def measure(self, group, label, f):
        """What f() returns, unless it is there or the time is up."""
        cells = self.found.setdefault(group, {})
        if label in cells:
            return
        if time.time() > self.until:
            self.left += 1
            return
        cells[label] = {"error": "the process ended here"}
        self.save()
        faulthandler.dump_traceback_later(CELL_SECONDS, exit=True)
        try:
            cells[label] = f()
            synchronize(self.device)
        except Exception as error:  # the next may run
            cells[label] = {"error": first_line(error)}
        self.save()
        report(label, cells[label])
        synchronize(self.device)  # where the device's context is lost the process ends here, and another one goes on
        faulthandler.cancel_dump_traceback_later()


def first_line(error):
    return f"{type(error).__name__}: {error}".split("\n")[0]


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


def block(f, calls, device):
    """Seconds per call."""
    if device.type == "cpu":
        return measure.block(f, (), {}, calls)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(calls):
        f()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3 / calls


def race(contenders, device):
    """contenders: {name: (context manager, f)}, stock among them. {name: {us, ratio, interval}, or {error}}."""
    calls, errors = {}, {}
    for name, (context, f) in contenders.items():
        try:
            with context():
                block(f, 2, device)
                calls[name] = max(1, int(BLOCK_SECONDS / max(block(f, 3, device), 1e-7)))
        except Exception as error:
            if name == "stock":
                raise
            errors[name] = {"error": first_line(error)}
    times = {name: [] for name in calls}
    for _ in range(BLOCKS):
        for name in random.sample(list(calls), len(calls)):
            context, f = contenders[name]
            with context():
                times[name].append(block(f, calls[name], device))
    return errors | {
        name: {"us": statistics.median(seconds) * 1e6} | measure.paired(times["stock"], seconds)
        for name, seconds in times.items()
    }


def optional(name):
    try:
        return importlib.import_module(name)
    except Exception:  # or it is there, for another Triton
        return None


LIGER, FLAG_GEMS = optional("liger_kernel.transformers.functional"), optional("flag_gems")


def contenders_of(stock, ours, liger=None):
    """Functions of no arguments; liger's is None where there is none."""
    plain = contextlib.nullcontext
    all_of_them = {
        "stock": (plain, stock),
        "ours": (plain, ours),
        "liger": (plain, liger),
    }
    if FLAG_GEMS:
        all_of_them["flag_gems"] = (FLAG_GEMS.use_gems, stock)
    return {name: pair for name, pair in all_of_them.items() if pair[1]}


def copy_bandwidth(device, megabytes=512):
    """GB/s of torch's own copy, reads and writes counted."""
    a = torch.ones(megabytes << 20, dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    return 2 * a.nbytes / min(block(lambda: b.copy_(a), 5, device) for _ in range(10)) / 1e9


def report(label, results):
    figures = [f"{name} {r['us']:9.1f} us {r['ratio']:5.2f}x" for name, r in results.items() if "us" in of(r)]
    figures += [f"{name} {r['error']}" for name, r in results.items() if "error" in of(r)]
    share = of(results.get("ours")).get("share_of_bandwidth")
    figures += [results["error"]] if "error" in results else []
    print(f"{label:48}", *figures, f"{share:.0%} of the copy's bandwidth" if share else "", sep="  ", flush=True)


def of(value):
    return value if isinstance(value, dict) else {}


def with_share(results, moved, bandwidth):
    """results, and how much of the copy's bandwidth ours has, which moves so many bytes."""
    if "us" in results["ours"]:
        results["ours"]["share_of_bandwidth"] = moved / results["ours"]["us"] / 1e3 / bandwidth
    return results


def calls_of(row, shape, dtype, device):
    """Stock's and ours."""
    with device:
        inputs = measure.make_inputs(row, shape, dtype)
    return [lambda f=f: f(*inputs, *row.args, **row.kwargs) for f in (row.stock, row.ours)], inputs


def op(row, shape, dtype, device, bandwidth):
    calls, inputs = calls_of(row, shape, dtype, device)
    results = race(contenders_of(*calls), device)
    # What fits in the cache is not moved.
    cache = torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 1 << 25
    moved = row.tensors_moved * math.prod(shape) * inputs[0].element_size()
    return with_share(results, moved, bandwidth) if moved > 4 * cache else results


def compiled(row, shape, dtype, device):
    (stock, _), inputs = calls_of(row, shape, dtype, device)
    torch._dynamo.reset()
    f = torch.compile(row.stock)
    plain = contextlib.nullcontext
    return race({"stock": (plain, stock), "compile": (plain, lambda: f(*inputs, *row.args, **row.kwargs))}, device)


# What is normalized, summed or classified, where the table's own shapes are those of a CPU's caches; of these, the
# tensors read and written.
SHAPES = ((65536, 1024), (16384, 4096), (4096, 50257))
MOVED = {"norm": 2, "softmax": 2, "scan": 2, "reduction": 1}


def on_a_device(row):
    if not row.shapes:
        return row
    if row.family == "copy":
        return row._replace(shapes=((8192, 8192), *row.shapes[-1:]), tensors_moved=2)
    moved = 0 if row.steps or "cummax" in row.name else MOVED.get(row.family, 0)  # it writes indices too
    return row._replace(shapes=(*SHAPES, *row.shapes[-1:]), tensors_moved=moved)


def table(results, options, bandwidth):
    """Every row, the largest first; then torch.compile, which takes seconds for each, for some drawn at random."""
    cells, largest = [], {}
    for row in (on_a_device(row) for row in ROWS if row.family in options.families):
        # The largest is for what is at the memory's limit, where 16M numbers of 16 bits would fit in the cache.
        sizes = options.sizes if row.tensors_moved else options.sizes[:-1] or options.sizes
        for dtype in (torch.float32, torch.bfloat16):
            for shape in row.shapes or [(n,) for n in reversed(sizes)]:
                label = f"{row.name} {str(dtype).removeprefix('torch.')} {'x'.join(map(str, shape))}"
                cell = row, [n // options.scale or 1 for n in shape], dtype, options.device
                cells.append((label, cell))
    cells.sort(key=lambda cell: -math.prod(cell[1][1]))
    for label, cell in cells:
        if not cell[0].steps:  # whose backward would be another graph
            largest.setdefault((cell[0].name, cell[2]), (label, cell))
        results.measure("ops", label, lambda cell=cell: op(*cell, bandwidth))
    for label, cell in random.Random(0).sample(list(largest.values()), len(largest)):
        spent = results.found.setdefault("compile_seconds", 0)
        if spent > options.compile_seconds:
            break
        start = time.time()
        results.measure("compile", label, lambda cell=cell: compiled(*cell))
        results.found["compile_seconds"] = spent + time.time() - start


def peak_beyond(f, device):
    """Bytes that a call holds at most, beyond what is there before it."""
    if device.type == "cpu":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    f()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def cross_entropy(rows, classes, dtype, device):
    """Forward and backward."""
    x = torch.randn(rows, classes, dtype=dtype, device=device, requires_grad=True)
    target = torch.randint(classes, (rows,), device=device)

    def step(f):
        def run():
            x.grad = None
            f(x, target).backward()

        return run

    steps = contenders_of(
        step(F.cross_entropy), step(rusttorch.cross_entropy), liger=LIGER and step(LIGER.liger_cross_entropy)
    )
    results = race(steps, device)
    for name, (context, f) in steps.items():
        if "error" in results[name]:
            continue
        x.grad = None
        with context():
            results[name]["peak_over_gradient"] = (peak_beyond(f, device) or 0) / x.nbytes
    return results


def layer_norm_backward(rows, n, dtype, device):
    options = {"dtype": dtype, "device": device, "requires_grad": True}
    x, weight, bias = (torch.randn(s, **options) for s in ((rows, n), (n,), (n,)))
    g = torch.randn_like(x)

    def backward(f):
        y = f()
        return lambda: torch.autograd.grad(y, (x, weight, bias), g, retain_graph=True)

    return race(
        contenders_of(
            backward(lambda: F.layer_norm(x, (n,), weight, bias)),
            backward(lambda: rusttorch.native_layer_norm(x, [n], weight, bias, 1e-5)[0]),
            liger=LIGER and backward(lambda: LIGER.liger_layer_norm(x, weight, bias, 1e-5)),
        ),
        device,
    )


def adam(parameters, each, device):
    """A step over so many parameters in tensors of `each`: stock's fused Adam against ours."""

    def optimizer(kind, **options):
        tensors = [torch.randn(each, device=device, requires_grad=True) for _ in range(parameters // each)]
        for p in tensors:
            p.grad = torch.randn_like(p)
        return kind(tensors, lr=1e-3, **options)

    return race(
        contenders_of(optimizer(torch.optim.Adam, fused=True).step, optimizer(rusttorch.optim.Adam).step), device
    )


def training(device, steps=160):
    """A GPT's steps, stock and swapped in turn."""
    with device:
        loop, batches = Text(), Text.batches(torch.Generator(device).manual_seed(0))
    ab = rusttorch.AB(pool=False, settle=0)  # the pool is of the CPU's memory, and so are the caches that are cold
    for _ in range(steps):
        with device:
            x, y = next(batches)
        with ab.step(samples=y.numel()) as step:
            step.loss = loop.step(x, y)
    ab = ab.report(confidence=0.95)
    print(f"GPT step {ab.speedup:.3f}x {ab.interval}, loss difference {ab.loss_difference:.2g}", flush=True)
    return {"speedup": ab.speedup, "interval": ab.interval, "median": ab.median, "loss_difference": ab.loss_difference}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", type=torch.device)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1 << 20, 1 << 24, 1 << 27])
    families = sorted({row.family for row in ROWS} - {"matmul"})  # whose products are cuBLAS' in both arms
    parser.add_argument("--families", nargs="+", choices=families, default=families)
    parser.add_argument("--seconds", type=float, default=500, help="after which nothing more is measured")
    parser.add_argument("--compile-seconds", type=float, default=100, help="for torch.compile, of all calls together")
    parser.add_argument("--scale", type=int, default=1, help="divides the sizes of the cases and the shapes")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    device, scale = options.device, options.scale
    random.seed(0)
    results = Results(options.out, options.seconds, device)
    bandwidth = results.found.setdefault("copy_gb_s", copy_bandwidth(device))
    print(f"copy: {bandwidth:.0f} GB/s")

    def case(label, run, *args, moved=0):
        def measured():
            found = run(*args, device)
            return with_share(found, moved, bandwidth) if moved else found

        results.measure("cases", label, measured)

    # Adam reads and writes a parameter and its two means, and reads the gradient.
    parameters = 100_000_000 // scale
    case("Adam over 100M parameters", adam, parameters, parameters // 100, moved=7 * 4 * parameters)
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        for classes in (32_000, 50_257):
            label = f"cross_entropy 8192 x {classes}, backward too, {name}"
            case(label, cross_entropy, 8192 // scale, classes, dtype)
        case(f"layer_norm's backward 8192 x 4096, {name}", layer_norm_backward, 8192 // scale, 4096, dtype)
    results.measure("training", "gpt", lambda: training(device, max(48, 160 // scale)))
    table(results, options, bandwidth)
    results.save()
    if results.left:
        print(f"{results.left} are left")
    sys.stdout.flush()
    os._exit(LEFT if results.left else 0)  # torch.compile's workers are not waited for


if __name__ == "__main__":
    main()
