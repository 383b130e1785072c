"""Writes docs/ops.md: every op with its schemas, dtypes, where it is swapped in, its measured ratio and error.

python tools/ops_page.py

Schemas come from the table of ops, dtypes from calls that a kernel took (rusttorch.stats()), on a CPU, ratios from
bench/results.jsonl, errors from docs/accuracy.md.
"""

import importlib
import re
import sys
from pathlib import Path

import rusttorch
import torch
from rusttorch._register import overload
from rusttorch.bench import results
from rusttorch.resolve import VIA
from tqdm import tqdm

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "bench")]

from cases import values  # noqa: E402
from families import run  # noqa: E402
from report import around, chosen, ratio, table  # noqa: E402

DTYPES = {
    torch.float32: "f32",
    torch.float64: "f64",
    torch.bfloat16: "bf16",
    torch.float16: "f16",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.bool: "bool",
}
ROWS, COLUMNS = SHAPE = 16, 4000
# What the bench calls an op that torch has another name for.
BENCH_NAMES = {
    "_softmax": "softmax",
    "_log_softmax": "log_softmax",
    "cross_entropy_loss": "cross_entropy",
    "native_layer_norm": "layer_norm",
    "_fused_rms_norm_backward": lambda x: r._fused_rms_norm_backward(
        x, x, [COLUMNS], normalized(x)[1], None, [True, False]
    ),
    "dropout": lambda x: r.dropout(x, 0.5, True),
    "native_dropout": "dropout",
    "clone": "contiguous",
}


def class_of_rows():
    return torch.arange(ROWS) % COLUMNS


def normalized(x):
    """A row's mean and reciprocal of its deviation, as layer norm keeps them."""
    return torch.zeros(ROWS, 1, dtype=x.dtype), torch.ones(ROWS, 1, dtype=x.dtype)


def optimizer_lists(x, count):
    return [[x.clone()] for _ in range(count)]


OPTIONS = (None, 1, -100, 0.0)  # of cross_entropy_loss: weight, reduction, ignore_index, label_smoothing
ADAM = {"lr": 0.1, "beta1": 0.9, "beta2": 0.9, "weight_decay": 0, "eps": 1e-8, "amsgrad": False, "maximize": False}
SGD = {"weight_decay": 0, "momentum": 0.9, "lr": 0.1, "dampening": 0, "nesterov": False, "maximize": False}
ADAGRAD = {"lr": 0.1, "lr_decay": 0, "weight_decay": 0, "eps": 1e-8, "maximize": False}


def foreach(name, *rest):
    return lambda x: overload("rusttorch", name)([x], *rest)


r = torch.ops.rusttorch
# A call of each op that has no case in the families' tables, on x of a dtype.
CALLS = {
    "clone": lambda x: r.clone(x.t(), memory_format=torch.contiguous_format),
    "cross_entropy_loss": lambda x: r.cross_entropy_loss(x, class_of_rows()),
    "cross_entropy_loss_forward": lambda x: r.cross_entropy_loss_forward(x, class_of_rows(), *OPTIONS, True),
    "cross_entropy_loss_backward": lambda x: r.cross_entropy_loss_backward(x.sum(), x, class_of_rows(), *OPTIONS[1:3]),
    "amax": lambda x: r.amax(x, [0]),
    "amin": lambda x: r.amin(x, [0]),
    "linear_cross_entropy": lambda x: r.linear_cross_entropy(x, x, class_of_rows() % ROWS),
    "native_layer_norm": lambda x: r.native_layer_norm(x, [COLUMNS], None, None, 1e-5),
    "native_layer_norm_backward": lambda x: r.native_layer_norm_backward(
        x, x, [COLUMNS], *normalized(x), None, None, [True, False, False]
    ),
    "rms_norm": lambda x: r.rms_norm(x, [COLUMNS]),
    "_fused_rms_norm": lambda x: r._fused_rms_norm(x, [COLUMNS], None, 1e-5),
    "_fused_rms_norm_backward": lambda x: r._fused_rms_norm_backward(
        x, x, [COLUMNS], normalized(x)[1], None, [True, False]
    ),
    "mm": lambda x: r.mm(x[:4], x.t()),
    "addmm": lambda x: r.addmm(x[0, :ROWS], x[:4], x.t()),
    "bmm": lambda x: r.bmm(x[None, :4], x.t()[None]),
    "baddbmm": lambda x: r.baddbmm(x[0, :ROWS], x[None, :4], x.t()[None]),
    "mv": lambda x: r.mv(x, x[0]),
    "addmv": lambda x: r.addmv(x[:, 0], x, x[0]),
    "dropout": lambda x: r.dropout(x, 0.5, True),
    "native_dropout": lambda x: r.native_dropout(x, 0.5, True),
    "native_dropout_backward": lambda x: r.native_dropout_backward(x, torch.ones(SHAPE, dtype=torch.bool), 2.0),
    "_fused_adam_": lambda x: r._fused_adam_(*optimizer_lists(x, 4), [], [torch.tensor(1.0)], **ADAM),
    "_fused_adamw_": lambda x: r._fused_adamw_(*optimizer_lists(x, 4), [], [torch.tensor(1.0)], **ADAM),
    "_fused_sgd_": lambda x: r._fused_sgd_(*optimizer_lists(x, 3), **SGD, is_first_step=False),
    "_fused_adagrad_": lambda x: r._fused_adagrad_(*optimizer_lists(x, 3), [torch.tensor(1.0)], **ADAGRAD),
    "sgd_update": lambda x: r.sgd_update(x, x.clone(), lr=0.1),
    "sgd_momentum_update": lambda x: r.sgd_momentum_update(*(x.clone() for _ in range(3)), lr=0.1, momentum=0.9),
    "adam_update": lambda x: r.adam_update(*(x.clone() for _ in range(4)), 1),
    "adamw_update": lambda x: r.adamw_update(*(x.clone() for _ in range(4)), 1),
    "clip_grad_norm_": lambda x: r.clip_grad_norm_([x], 1.0),
    "clip_grad_value_": lambda x: r.clip_grad_value_([x], 1.0),
    "_softmax_backward_data": lambda x: r._softmax_backward_data(x, x, 1, x.dtype),
    "_log_softmax_backward_data": lambda x: r._log_softmax_backward_data(x, x, 1, x.dtype),
    "_foreach_add_": foreach("_foreach_add_.Scalar", 2),
    "_foreach_mul_": foreach("_foreach_mul_.Scalar", 2),
    "_foreach_clamp_min_": foreach("_foreach_clamp_min_.Scalar", 0),
    "_foreach_clamp_max_": foreach("_foreach_clamp_max_.Scalar", 0),
    "_foreach_norm": foreach("_foreach_norm.Scalar", 2),
    "_foreach_lerp_": lambda x: r._foreach_lerp_.Scalar([x], [x.clone()], 0.5),
    "_foreach_zero_": foreach("_foreach_zero_"),
}


def cases():
    """The families' cases, by the op's name without its overload."""
    found = {}
    for family in ("pointwise", "activation", "reduction", "scan", "softmax", "loss"):
        for case in importlib.import_module(f"test_{family}").CASES:
            found.setdefault(case.op.partition(".")[0], []).append(case)
    return found


def took(base, call):
    """Whether the op's kernel ran, or that of the op it is made of."""
    rusttorch.reset_stats()
    try:
        call()
    except (RuntimeError, TypeError, NotImplementedError):
        return False
    own = {base, f"_{base}", f"{base}_forward", VIA.get(base)}
    return any(stats.ran for name, stats in rusttorch.stats().items() if name.partition(".")[0] in own)


def dtypes(base, cases):
    """Those that a kernel takes in a call of the op."""
    taken = []
    for dtype, name in DTYPES.items():
        calls = []
        for case in cases.get(base, []):
            if "loss" in base and not dtype.is_floating_point:
                continue  # stock's smooth_l1_loss of integers divides by zero, and ends the process
            shapes = [() if letter == "s" else SHAPE for letter in case.domain]
            drawn = torch.int64 if dtype == torch.bool else dtype
            tensors = [values(*of, drawn, 0).to(dtype) for of in zip(case.domain, shapes, strict=True)]
            calls.append(lambda case=case, tensors=tensors: run(case.overload("rusttorch"), case, tensors))
        if base in CALLS:
            x = torch.ones(SHAPE).to(dtype)
            calls.append(lambda x=x: CALLS[base](x))
        if any(took(base, call) for call in calls):
            taken.append(name)
    return " ".join(taken)


def swapped_at(overloads):
    """The dispatch keys at which use() puts the op into aten's place."""
    names = [op.name for op in overloads if op.swappable]
    if not names:
        return ""
    has_kernel = lambda: torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{names[0]}", "AutogradCPU")  # noqa: E731
    before = has_kernel()
    with rusttorch.use(*names):
        return "backend and autograd" if has_kernel() and not before else "backend"


def has_twin(name):
    return torch._C._dispatch_has_kernel(f"aten::{name}")


def largest_errors():
    """In ulp of float32, of the first table of docs/accuracy.md."""
    page = (ROOT / "docs" / "accuracy.md").read_text().split("\n## ")[1]
    return dict(re.findall(r"^\| ([\w()]+)(?: !)? \| ([\d.]+) \|", page, re.MULTILINE))


def measured(base, lines):
    """From the slowest to the fastest of the op's rows in the bench."""
    name = BENCH_NAMES.get(base, base)
    ratios = sorted(line["name"]["ratio"] for line in lines if re.split(r"[ (]", line["op"])[0] == name)
    return " to ".join(dict.fromkeys(map(ratio, (ratios[0], ratios[-1])))) if ratios else ""


def main():
    torch.manual_seed(0)
    lines = chosen(results.load(ROOT / "bench" / "results.jsonl", "ops"))
    at_10k, at_1m = around(lines, 10_000), around(lines, 1_000_000)
    errors, of_tests = largest_errors(), cases()
    families = {}
    for op in rusttorch.ops():
        base = op.name.partition(".")[0]
        functional = base.removesuffix("_") if not base.startswith(("_fused", "_foreach", "clip")) else base
        families.setdefault(op.family, {}).setdefault(functional, []).append(op)
    page = [
        "# Every op",
        "",
        "Written by `python tools/ops_page.py`. `twin`: aten has the op, with the same schema; the others are our own.",
        "`dtypes`: those that a CPU kernel takes, at 64,000 elements (the rest is handed to stock's, and counted in",
        "`rusttorch.stats()`); none where the op is made of another. `swap`: the dispatch keys at which `use()` puts",
        "it into aten's place. Then stock's time over that of `rusttorch.NAME`, from the slowest to the fastest row of",
        "the op in the bench, one core, float32; and the largest error over all float32 inputs, in ulp",
        "([accuracy.md](accuracy.md)).",
    ]
    for family, bases in tqdm(families.items()):
        rows = []
        for base, overloads in bases.items():
            twin = "aten" if any(has_twin(op.name) for op in overloads) else ""
            error = f"{float(errors[base]):.2f}" if base in errors and float(errors[base]) < 1000 else ""
            ratios = (measured(base, at_10k), measured(base, at_1m))
            rows.append((f"`{base}`", twin, dtypes(base, of_tests), swapped_at(overloads), *ratios, error))
        head = ("op", "twin", "dtypes", "swap", "at 10k", "at 1M", "ulp")
        page += ["", f"## {family}", "", *table(head, rows), ""]
        schemas = [str(overload("rusttorch", op.name)._schema) for overloads in bases.values() for op in overloads]
        page += ["```", *(schema.removeprefix("rusttorch::") for schema in schemas), "```"]
    (ROOT / "docs" / "ops.md").write_text("\n".join(page) + "\n")


if __name__ == "__main__":
    main()
