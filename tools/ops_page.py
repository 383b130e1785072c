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
    torch.uint8: "u8",
}
ROWS, COLUMNS = SHAPE = 16, 4000
# What the bench calls an op that torch has another name for.
BENCH_NAMES = {
    "_softmax": "softmax",
    "_log_softmax": "log_softmax",
    "cross_entropy_loss": "cross_entropy",
    "native_layer_norm": "layer_norm",
    "native_dropout": "dropout",
    "max_pool2d_with_indices": "max_pool2d(2)",
    "avg_pool2d": "avg_pool2d(2)",
    "upsample_nearest2d": "interpolate(nearest)",
    "upsample_bilinear2d": "interpolate(bilinear)",
    "upsample_bicubic2d": "interpolate(bicubic)",
    "_upsample_bilinear2d_aa": "interpolate(bilinear, antialias)",
    "_upsample_bicubic2d_aa": "interpolate(bicubic, antialias)",
    "embedding_dense_backward": "embedding backward",
    "_embedding_bag": "embedding_bag(max)",
    "_embedding_bag_dense_backward": "embedding_bag(max), the backward",
    "_index_put_impl": "index_put(accumulate)",
    "scaled_dot_product_attention": "attention",
    "clone": "contiguous",
}


def class_of_rows():
    return torch.arange(ROWS) % COLUMNS


def normalized(x):
    """A row's mean and reciprocal of its deviation, as layer norm keeps them."""
    return torch.zeros(ROWS, 1, dtype=x.dtype), torch.ones(ROWS, 1, dtype=x.dtype)


def wide(x):
    return x.float() if x.element_size() == 2 else x


def plane(x):
    return x.view(1, ROWS, 40, -1)


WINDOWS = ([2, 2], [2, 2], [0, 0])  # kernel_size, stride, padding


CONVOLUTION = ([1], [1], [1], False, [0], ROWS)  # each row with a filter of its own


def images(x):
    """A convolution's gradient, input and weight."""
    return x[None], x[None], x[:, None, :3]


FLASH = "_scaled_dot_product_flash_attention_for_cpu"


NO_STATES = torch.empty(0, dtype=torch.int32)


def heads(x, count=3):
    """Query, key and value, and what else is like them."""
    return (x.view(1, ROWS, -1, 50),) * count


def sums(x):
    """Each query's, as attention keeps them."""
    return torch.zeros(1, ROWS, COLUMNS // 50, dtype=torch.promote_types(x.dtype, torch.float32))


def pictures(x):
    return x[:, :3072].reshape(ROWS, 3, 32, 32)


def optimizer_lists(x, count):
    return [[x.clone()] for _ in range(count)]


OPTIONS = (None, 1, -100, 0.0)  # of cross_entropy_loss: weight, reduction, ignore_index, label_smoothing
ADAM = {"lr": 0.1, "beta1": 0.9, "beta2": 0.9, "weight_decay": 0, "eps": 1e-8, "amsgrad": False, "maximize": False}
SGD = {"weight_decay": 0, "momentum": 0.9, "lr": 0.1, "dampening": 0, "nesterov": False, "maximize": False}
ADAGRAD = {"lr": 0.1, "lr_decay": 0, "weight_decay": 0, "eps": 1e-8, "maximize": False}


def foreach(name, *rest):
    return lambda x: overload("rusttorch", name)([x], *rest)


RESIZES = {
    **dict.fromkeys(("upsample_nearest2d", "_upsample_nearest_exact2d"), ()),
    **dict.fromkeys(
        ("upsample_bilinear2d", "upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"), (False,)
    ),
}


def narrow(x):
    return x.view(COLUMNS, ROWS)


def resized(name, *options):
    return lambda x: overload("rusttorch", name)(plane(x), [80, 200], *options)


def resized_back(name, *options):
    def call(x):
        size = plane(x).shape
        return overload("rusttorch", f"{name}_backward")(plane(x), size[2:], [*size[:2], 20, 50], *options)

    return call


def sequence(x, gates):
    """Of 16 steps: 40 sequences of 100 inputs, their states of 8 units, and two weights."""
    rows, flat = 8 * gates, x.flatten()
    return (
        x.view(16, 40, 100),
        flat[:320].view(40, 8),
        flat[: rows * 100].view(rows, 100),
        flat[: rows * 8].view(rows, 8),
    )


def gates_of(name):
    return {"gru": 3, "lstm": 4}.get(name.removesuffix("_cell"), 1)


def states_of(name, states):
    return [states, states] if name.startswith("lstm") else states


def recurrent(name):
    def call(x):
        inputs, states, *weights = sequence(x, gates_of(name))
        op = overload("rusttorch", f"{name}.input")
        return op(inputs, states_of(name, states[None]), weights, False, 1, 0.0, False, False, False)

    return call


def recurrent_cell(name):
    def call(x):
        inputs, states, *weights = sequence(x, gates_of(name))
        return overload("rusttorch", f"{name}_cell")(inputs[0], states_of(name, states), *weights)

    return call


def recurrent_layer(name):
    def call(x):
        inputs, states, *weights = sequence(x, 1)
        if name == "rnn_layer_forward":
            return r.rnn_layer_forward(inputs, states, None, *weights, *[None] * 4, "rnn_tanh", False, False)
        given = (inputs, states, None, *weights, None, None, x.flatten()[:5120])
        wanted = [True, True, False, True, True, False, False, False]
        return r.rnn_layer_backward(None, None, None, *given, "rnn_tanh", False, wanted)

    return call


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
    "native_batch_norm": lambda x: r.native_batch_norm(x, *[None] * 4, True, 0.1, 1e-5),
    "native_group_norm": lambda x: r.native_group_norm(x, None, None, ROWS, COLUMNS, 1, 1, 1e-5),
    "native_group_norm_backward": lambda x: r.native_group_norm_backward(
        x, x, *normalized(x), None, ROWS, COLUMNS, 1, 1, [True, False, False]
    ),
    "batch_norm_relu": lambda x: r.batch_norm_relu(x, *[None] * 4, True, 0.1, 1e-5),
    "batch_norm_relu_forward": lambda x: r.batch_norm_relu_forward(x, *[None] * 4, True, 1e-5),
    "batch_norm_relu_backward": lambda x: r.batch_norm_relu_backward(
        x, x, *[None] * 4, *r.native_batch_norm(x, *[None] * 4, True, 0.1, 1e-5)[1:], True, 1e-5, [True] * 3
    ),
    "native_batch_norm_backward": lambda x: r.native_batch_norm_backward(
        x, x, *[None] * 3, *r.native_batch_norm(x, *[None] * 4, True, 0.1, 1e-5)[1:], True, 1e-5, [True] * 3
    ),
    "_fused_rms_norm": lambda x: r._fused_rms_norm(x, [COLUMNS], None, 1e-5),
    "_fused_rms_norm_backward": lambda x: r._fused_rms_norm_backward(
        x, x, [COLUMNS], normalized(x)[1], None, [True, False]
    ),
    "add_rms_norm": lambda x: r.add_rms_norm(x, x, [COLUMNS]),
    "_fused_add_rms_norm": lambda x: r._fused_add_rms_norm(x, x, [COLUMNS], None, None, 0.0),
    "_fused_add_rms_norm_backward": lambda x: r._fused_add_rms_norm_backward(
        x, x, x, [COLUMNS], normalized(wide(x))[1], None, 0.0, [True, False]
    ),
    "add_layer_norm": lambda x: r.add_layer_norm(x, x, [COLUMNS]),
    "_fused_add_layer_norm": lambda x: r._fused_add_layer_norm(x, x, [COLUMNS], None, None, 1e-5),
    "_fused_add_layer_norm_backward": lambda x: r._fused_add_layer_norm_backward(
        x, x, x, [COLUMNS], *normalized(wide(x)), None, None, [True, False, False]
    ),
    "rope": lambda x: r.rope(plane(x), plane(x), *(x[k, :2000].view(40, 50) for k in (0, 1))),
    "rope_backward": lambda x: r.rope_backward(plane(x), plane(x), *(x[k, :2000].view(40, 50) for k in (0, 1))),
    "swiglu_backward": lambda x: r.swiglu_backward(x, x, x),
    "geglu_backward": lambda x: r.geglu_backward(x, x, x),
    "convolution": lambda x: r.convolution(*images(x)[1:], None, *CONVOLUTION),
    "convolution_backward": lambda x: r.convolution_backward(*images(x), None, *CONVOLUTION, [True, True, False]),
    "mm": lambda x: r.mm(x[:4], x.t()),
    "linear_act": lambda x: r.linear_act(x, x, None, "gelu"),
    "linear_act_forward": lambda x: r.linear_act_forward(x, x, None, "gelu", True),
    "linear_glu": lambda x: r.linear_glu(x, x, x),
    "linear_glu_forward": lambda x: r.linear_glu_forward(x, x, x, "silu", True),
    "addmm": lambda x: r.addmm(x[0, :ROWS], x[:4], x.t()),
    "bmm": lambda x: r.bmm(x[None, :4], x.t()[None]),
    "baddbmm": lambda x: r.baddbmm(x[0, :ROWS], x[None, :4], x.t()[None]),
    "mv": lambda x: r.mv(x, x[0]),
    "addmv": lambda x: r.addmv(x[:, 0], x, x[0]),
    "dropout": lambda x: r.dropout(x, 0.5, True),
    "native_dropout": lambda x: r.native_dropout(x, 0.5, True),
    "native_dropout_backward": lambda x: r.native_dropout_backward(x, torch.ones(SHAPE, dtype=torch.bool), 2.0),
    "max_pool2d_with_indices": lambda x: r.max_pool2d_with_indices(plane(x), *WINDOWS),
    "max_pool2d_with_indices_backward": lambda x: r.max_pool2d_with_indices_backward(
        plane(x)[..., ::2, ::2], plane(x), *WINDOWS, [1, 1], False, torch.zeros(1, ROWS, 20, 50, dtype=torch.int64)
    ),
    "avg_pool2d": lambda x: r.avg_pool2d(plane(x), *WINDOWS),
    "avg_pool2d_backward": lambda x: r.avg_pool2d_backward(
        plane(x)[..., ::2, ::2], plane(x), *WINDOWS, False, True, None
    ),
    "_adaptive_avg_pool2d": lambda x: r._adaptive_avg_pool2d(plane(x), [20, 50]),
    "_adaptive_avg_pool2d_backward": lambda x: r._adaptive_avg_pool2d_backward(plane(x)[..., ::2, ::2], plane(x)),
    "adaptive_max_pool2d": lambda x: r.adaptive_max_pool2d(plane(x), [20, 50]),
    "adaptive_max_pool2d_backward": lambda x: r.adaptive_max_pool2d_backward(
        plane(x)[..., ::2, ::2], plane(x), torch.zeros(1, ROWS, 20, 50, dtype=torch.int64)
    ),
    **{name: resized(name, *options) for name, options in RESIZES.items()},
    **{f"{name}_backward": resized_back(name, *options) for name, options in RESIZES.items()},
    "index_add": lambda x: r.index_add(narrow(x).clone(), 0, torch.arange(COLUMNS), narrow(x)),
    "scatter_add": lambda x: r.scatter_add(
        narrow(x).clone(), 0, torch.arange(COLUMNS)[:, None].expand(COLUMNS, ROWS), narrow(x)
    ),
    "_index_put_impl": lambda x: r._index_put_impl(x.clone(), [class_of_rows() % ROWS], x, True),
    **{
        name: lambda x, name=name: getattr(r, name)(x, class_of_rows() % ROWS, torch.arange(0, ROWS, 4), False, 2)
        for name in ("_embedding_bag", "_embedding_bag_forward_only")
    },
    "_embedding_bag_dense_backward": lambda x: r._embedding_bag_dense_backward(
        x, *[class_of_rows()] * 2, torch.ones(ROWS, dtype=torch.int64), x.long(), COLUMNS, False, 0, None
    ),
    "_embedding_bag_per_sample_weights_backward": lambda x: r._embedding_bag_per_sample_weights_backward(
        x, x, *[class_of_rows() % ROWS] * 3, 0
    ),
    "embedding_dense_backward": lambda x: r.embedding_dense_backward(x, class_of_rows(), COLUMNS, -1, False),
    "scaled_dot_product_attention": lambda x: r.scaled_dot_product_attention(*heads(x)),
    FLASH: lambda x: getattr(r, FLASH)(*heads(x)),
    f"{FLASH}_backward": lambda x: getattr(r, f"{FLASH}_backward")(*heads(x, 5), sums(x), 0.0, False),
    "attention_backward": lambda x: r.attention_backward(*heads(x, 5), sums(x), NO_STATES, None, 0.0, False),
    "attention_kept": lambda x: r.attention_kept(torch.zeros(2, 625, dtype=torch.int32), [1, 2, 3, len(x)], 0.5),
    "attention_forward": lambda x: r.attention_forward(*heads(x)),
    **{name: recurrent(name) for name in ("gru", "lstm", "rnn_tanh", "rnn_relu")},
    **{f"{name}_cell": recurrent_cell(name) for name in ("gru", "lstm", "rnn_tanh", "rnn_relu")},
    **{name: recurrent_layer(name) for name in ("rnn_layer_forward", "rnn_layer_backward")},
    "color_images": lambda x: r.color_images(pictures(x), torch.ones(ROWS, 1, dtype=torch.int64), torch.ones(ROWS, 1)),
    "normalize_images": lambda x: r.normalize_images(pictures(x), torch.ones(3), torch.ones(3)),
    "mix_images": lambda x: r.mix_images(pictures(x), torch.ones(ROWS)),
    "warp_images": lambda x: r.warp_images(pictures(x), torch.eye(3).expand(ROWS, 3, 3), [32, 32]),
    "crop_images": lambda x: r.crop_images(
        pictures(x), torch.ones(ROWS, 2, dtype=torch.int64), torch.ones(ROWS, 2) > 0, [32, 32]
    ),
    "blur_images": lambda x: r.blur_images(pictures(x), torch.ones(ROWS, 3), torch.ones(ROWS, 3)),
    "sharpen_images": lambda x: r.sharpen_images(pictures(x), torch.ones(ROWS)),
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
            drawn = torch.int64 if dtype in (torch.bool, torch.uint8) else dtype
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
        "the op in the bench, one core, float32 (on which CPU: [benchmarks.md](benchmarks.md)); and the largest",
        "error over all float32 inputs, in ulp ([accuracy.md](accuracy.md)).",
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
