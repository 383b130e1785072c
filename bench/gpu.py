"""Times the ops on a GPU: stock eager, rusttorch, torch.compile; Liger-Kernel and FlagGems where they are installed.

    python bench/gpu.py --out bench/results/NAME.json [--sizes 1048576 16777216] [--seconds 200]

Each figure is the median over blocks of calls, timed by the device's own events, the contenders in random order in one
process; ratios are stock's time over theirs, paired, with the bootstrap's 95 % interval. Then the cases that training
is made of: the cross entropy of a vocabulary, Adam over 100 million parameters, the backward of layer norm, and the
steps of a GPT under rusttorch.AB.
"""

import argparse
import contextlib
import importlib
import json
import math
import random
import statistics
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
    """contenders: {name: (context manager, f)}, stock among them. {name: {us, ratio, interval}}."""
    calls, times = {}, {}
    for name, (context, f) in contenders.items():
        with context():
            block(f, 2, device)
            calls[name] = max(1, int(BLOCK_SECONDS / max(block(f, 3, device), 1e-7)))
        times[name] = []
    for _ in range(BLOCKS):
        for name in random.sample(list(contenders), len(contenders)):
            context, f = contenders[name]
            with context():
                times[name].append(block(f, calls[name], device))
    return {
        name: {"us": statistics.median(seconds) * 1e6} | measure.paired(times["stock"], seconds)
        for name, seconds in times.items()
    }


def optional(name):
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


LIGER, FLAG_GEMS = optional("liger_kernel.transformers.functional"), optional("flag_gems")


def contenders_of(stock, ours, compiled=None, liger=None):
    """stock, ours, compiled, liger: functions of no arguments, None where there is none."""
    plain = contextlib.nullcontext
    all_of_them = {
        "stock": (plain, stock),
        "ours": (plain, ours),
        "compile": (plain, compiled),
        "liger": (plain, liger),
    }
    if FLAG_GEMS:
        all_of_them["flag_gems"] = (FLAG_GEMS.use_gems, stock)
    return {name: pair for name, pair in all_of_them.items() if pair[1]}


def copy_bandwidth(device, megabytes=512):
    """GB/s of torch's own copy, reads and writes counted."""
    a = torch.ones(megabytes << 20, dtype=torch.uint8)
    b = torch.empty_like(a)
    return 2 * a.nbytes / min(block(lambda: b.copy_(a), 5, device) for _ in range(10)) / 1e9


def report(label, results, share=None):
    figures = "  ".join(f"{name} {r['us']:9.1f} us {r['ratio']:5.2f}x" for name, r in results.items())
    print(f"{label:48} {figures}" + (f"  {share:.0%} of the copy's bandwidth" if share else ""), flush=True)


def table(options, device, bandwidth):
    """The table's rows, until the time is up for torch.compile, which takes seconds for each."""
    until = time.time() + options.seconds
    found = []
    for row in ROWS:
        for dtype in (torch.float32, torch.bfloat16):
            for shape in row.shapes or [(n,) for n in options.sizes]:
                inputs = measure.make_inputs(row, shape, dtype)
                compiled = None
                if time.time() < until and shape == (row.shapes or [(max(options.sizes),)])[-1]:
                    torch._dynamo.reset()
                    f = torch.compile(row.stock)
                    compiled = lambda f=f, x=inputs, row=row: f(*x, *row.args, **row.kwargs)  # noqa: E731
                stock = lambda x=inputs, row=row: row.stock(*x, *row.args, **row.kwargs)  # noqa: E731
                ours = lambda x=inputs, row=row: row.ours(*x, *row.args, **row.kwargs)  # noqa: E731
                name = str(dtype).removeprefix("torch.")
                result = {"op": row.name, "dtype": name, "shape": list(shape)}
                try:
                    result |= race(contenders_of(stock, ours, compiled), device)
                except Exception as error:  # the next op may run: what failed is in the results
                    result["error"] = str(error).split("\n")[0]
                    print(row.name, name, shape, result["error"], flush=True)
                    found.append(result)
                    continue
                share = None
                if row.tensors_moved and math.prod(shape) >= 1 << 24:
                    moved = row.tensors_moved * math.prod(shape) * inputs[0].element_size()
                    share = result["share_of_bandwidth"] = moved / result["ours"]["us"] / 1e3 / bandwidth
                label = f"{row.name} {name} {'x'.join(map(str, shape))}"
                report(label, {k: r for k, r in result.items() if isinstance(r, dict)}, share)
                found.append(result)
    return found


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
    x = torch.randn(rows, classes, dtype=dtype, requires_grad=True)
    target = torch.randint(classes, (rows,))

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
        x.grad = None
        with context():
            results[name]["peak_over_gradient"] = (peak_beyond(f, device) or 0) / x.nbytes
    return results


def layer_norm_backward(rows, n, dtype, device):
    x, weight, bias = (torch.randn(s, dtype=dtype, requires_grad=True) for s in ((rows, n), (n,), (n,)))
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
        tensors = [torch.randn(each, requires_grad=True) for _ in range(parameters // each)]
        for p in tensors:
            p.grad = torch.randn_like(p)
        return kind(tensors, lr=1e-3, **options)

    return race(
        contenders_of(optimizer(torch.optim.Adam, fused=True).step, optimizer(rusttorch.optim.Adam).step), device
    )


def training(device, steps=160):
    """A GPT's steps, stock and swapped in turn."""
    loop, batches = Text(), Text.batches(torch.Generator(device).manual_seed(0))
    ab = rusttorch.AB()
    for _ in range(steps):
        x, y = (t.to(device) for t in next(batches))
        with ab.step(samples=y.numel()) as step:
            step.loss = loop.step(x, y)
    ab = ab.report()
    print(f"GPT step {ab.speedup:.3f}x {ab.interval}, loss difference {ab.loss_difference:.2g}", flush=True)
    return {"speedup": ab.speedup, "interval": ab.interval, "median": ab.median, "loss_difference": ab.loss_difference}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", type=torch.device)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1 << 20, 1 << 24])
    parser.add_argument("--seconds", type=float, default=100, help="for torch.compile's contenders")
    parser.add_argument("--scale", type=int, default=1, help="divides the sizes of the cases of training")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    device, scale = options.device, options.scale
    torch.set_default_device(device)
    random.seed(0)
    bandwidth = copy_bandwidth(device)
    print(f"copy: {bandwidth:.0f} GB/s")
    results = {"copy_gb_s": bandwidth, "ops": [], "cases": {}}

    def case(label, run, *args, moved=0):
        results["cases"][label] = found = run(*args, device)
        share = moved and moved / found["ours"]["us"] / 1e3 / bandwidth
        if moved:
            found["ours"]["share_of_bandwidth"] = share
        report(label, found, share)

    # Adam reads and writes a parameter and its two means, and reads the gradient.
    parameters = 100_000_000 // scale
    case("Adam over 100M parameters", adam, parameters, parameters // 100, moved=7 * 4 * parameters)
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        case(f"cross_entropy 8192 x 32000, backward too, {name}", cross_entropy, 8192 // scale, 32_000, dtype)
        case(f"layer_norm's backward 8192 x 4096, {name}", layer_norm_backward, 8192 // scale, 4096, dtype)
    results["training"] = {"gpt": training(device, max(48, 160 // scale))}
    results["ops"] = table(options, device, bandwidth)
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
