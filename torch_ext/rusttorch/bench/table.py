"""The ops that are timed: how stock is called, how rusttorch is, on what."""

import functools
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import ops

import rusttorch


class Row(NamedTuple):
    family: str
    name: str
    stock: Any  # what a user of stock torch calls
    ours: Any  # the same by rusttorch's name
    # One letter per tensor: n normal, p positive, u in (0, 1), z zero, o around one, c classes, t a transposed matrix.
    inputs: str
    args: tuple = ()
    kwargs: dict[str, Any] = {}  # noqa: RUF012
    tensors_moved: int = 0  # read and written, where the op should be at the memory's limit; 0: it is not
    shapes: tuple = ()  # instead of the sizes
    reads_only: bool = False  # what is moved is read: the limit is that of a loop that reads
    steps: bool = False  # with a backward, so not one graph for torch.compile


def pointwise(name, inputs, *args, moved=None, **kwargs):
    moved = len(inputs) + 1 if moved is None else moved
    label = name + "".join(f"({a})" for a in (*args, *kwargs.values()))
    return Row("pointwise", label, getattr(torch, name), getattr(rusttorch, name), inputs, args, kwargs, moved)


def activation(name, stock=None, *args, **kwargs):
    stock = stock or getattr(F, name)
    label = name + "".join(f"({a})" for a in kwargs.values())
    return Row("activation", label, stock, getattr(rusttorch, name), "n", args, kwargs)


def backward(name, inputs="nn", *args, **kwargs):
    """Both through torch.ops, since stock has no other name for them."""
    label = name + "".join(f"({a})" for a in kwargs.values())
    return Row("activation", label, getattr(ops.aten, name), getattr(ops.rusttorch, name), inputs, args, kwargs)


def loss(name, inputs="nn", stock=None, **kwargs):
    """As torch.nn.functional's users call it."""
    stock = stock or getattr(F, name)
    return Row("loss", name, stock, getattr(rusttorch, name), inputs, (), kwargs, len(inputs), reads_only=True)


def reduction(name, stock=None, inputs="n", *args, moved=1, family="reduction", **kwargs):
    stock = stock or getattr(torch, name)
    label = name + "".join(f"({a})" for a in args)
    return Row(family, label, stock, getattr(rusttorch, name), inputs, args, kwargs, moved, reads_only=True)


MATRICES = ((100, 100), (1024, 1024), (4096, 1000))


def by_dim(family, name, shapes=MATRICES):
    """One row for each dim of a matrix."""
    stock, ours = getattr(torch, name), getattr(rusttorch, name)
    return [Row(family, f"{name}(dim={d})", stock, ours, "n", (d,), shapes=shapes) for d in (0, 1)]


def with_backward(f):
    def step(*tensors):
        tensors[0].requires_grad_()
        f(*tensors).backward()
        tensors[0].grad = None

    return step


ROWS_OF = ((128, 64), (1024, 256), (1024, 1024), (2048, 1024))  # what is normalized is the last dim


def layer_norm(x):
    return F.layer_norm(x, x.shape[-1:], eps=1e-5)


def our_layer_norm(x):
    return rusttorch.native_layer_norm(x, x.shape[-1:], None, None, 1e-5)[0]


def rms_norm(x):
    return F.rms_norm(x, x.shape[-1:])


def our_rms_norm(x):
    return rusttorch.rms_norm(x, x.shape[-1:])


def layer(family, name, stock, ours, shapes):
    """Forward, and with the backward of the sum."""

    def summed(f):
        return with_backward(lambda x: f(x).sum())

    return [
        Row(family, name, stock, ours, "n", shapes=shapes),
        Row(family, f"{name} and backward", summed(stock), summed(ours), "n", shapes=shapes, steps=True),
    ]


IMAGES = ((32, 16, 8, 8), (16, 64, 56, 56), (8, 64, 112, 112))


def batch_norm(x):
    return F.batch_norm(x, None, None, training=True)


def our_batch_norm(x):
    return rusttorch.native_batch_norm(x, None, None, None, None, True, 0.1, 1e-5)[0]


def our_batch_norm_relu(x):
    return rusttorch.batch_norm_relu(x, None, None, None, None, True, 0.1, 1e-5)


def our_group_norm(x):
    images, channels, height, width = x.shape
    return rusttorch.native_group_norm(x, None, None, images, channels, height * width, 8, 1e-5)[0]


def our_max_pool2d(x, *args):
    return rusttorch.max_pool2d_with_indices(x, *args)[0]


def doubled(x):
    return [2 * n for n in x.shape[-2:]]


def resizing(mode, name, *options, **keywords):
    """Twice as high and wide: forward, and with the backward of the sum."""

    def stock(x):
        return F.interpolate(x, scale_factor=2, mode=mode, **keywords)

    def ours(x):
        return getattr(rusttorch, name)(x, doubled(x), *options)

    label = f"interpolate({', '.join([mode, *keywords])})"
    return layer("resize", label, stock, ours, IMAGES[:2])


@functools.cache
def filters(outputs, channels, size):
    return torch.randn(outputs, channels, size, size)


def convolution(name, size, shapes, depthwise=True, outputs=None):
    """Of as many outputs as channels, if no other number is given."""

    def call(x):
        groups = x.shape[1] if depthwise else 1
        return groups, filters(outputs or x.shape[1], x.shape[1] // groups, size), [size // 2] * 2

    def stock(x):
        groups, weight, padding = call(x)
        return F.conv2d(x, weight, padding=padding, groups=groups)

    def ours(x):
        groups, weight, padding = call(x)
        return rusttorch.convolution(x, weight, None, [1, 1], padding, [1, 1], False, [0, 0], groups)

    return layer("convolution", name, stock, ours, shapes)


@functools.cache
def words(n, vocabulary):
    return torch.randint(vocabulary, (n,))


def embedding_backward(ops, x):
    """Of as many words as x has rows, of 8,192; in 768 columns of GPT-2's 50,257."""
    vocabulary = 50257 if x.shape[1] == 768 else 8192
    return ops.embedding_dense_backward(x, words(len(x), vocabulary), vocabulary, -1, False)


def embedding_bag(ops, mode, x):
    """Bags of 10 rows of x."""
    return ops._embedding_bag(x, words(4090, len(x)), torch.arange(0, 4090, 10), False, mode)


@functools.cache
def bags(mode, rows, columns):
    return embedding_bag(ops.aten, mode, torch.randn(rows, columns))


def embedding_bag_backward(ops, mode, x):
    y, bag, *kept = bags(mode, *x.shape)
    return ops._embedding_bag_dense_backward(y, words(4090, len(x)), bag, *kept, len(x), False, mode, None)


def bag_rows(mode, number):
    return [
        Row(
            "embedding_bag",
            f"embedding_bag({mode}){name}",
            functools.partial(f, ops.aten, number),
            functools.partial(f, ops.rusttorch, number),
            "n",
            shapes=((50000, 64), (20000, 768)),
        )
        for name, f in (("", embedding_bag), (", the backward", embedding_bag_backward))
    ]


@functools.cache
def places(shape, dim):
    return torch.randint(shape[dim], shape), torch.randint(shape[dim], shape[dim : dim + 1])


def scatter_add(add, dim, x):
    return add(x, dim, places(x.shape, dim)[0], x)


def index_add(add, dim, x):
    return add(x, dim, places(x.shape, dim)[1], x)


def index_put(ops, x):
    return ops._index_put_impl(x, [None, places(x.shape, 1)[1]], x, True)


def scatter_row(name, ours, stock, *args):
    return Row(
        "scatter",
        name,
        functools.partial(*stock, *args),
        functools.partial(*ours, *args),
        "n",
        shapes=(*MATRICES, (4096, 64)),
    )


def attention(name, shapes=((4, 8, 128, 64), (1, 8, 1024, 64)), backward=False, **options):
    """Of [N, heads, L, 64], as projections lie."""

    def by(op):
        def call(x):
            q = x.transpose(1, 2).contiguous().transpose(1, 2).detach().requires_grad_(backward)
            y = op(q, q, q, **options)
            return torch.autograd.grad(y, q, y)[0] if backward else y

        return call

    return Row(
        "attention",
        f"attention{name}{', and backward' if backward else ''}",
        by(F.scaled_dot_product_attention),
        by(rusttorch.scaled_dot_product_attention),
        "n",
        shapes=shapes,
        steps=backward,
    )


def gated(name, stock):
    """Of two tensors, and of halves of one: forward, and with the backward of the sum."""
    ours = getattr(rusttorch, name)

    def stock_packed(x):
        gate, up = x.chunk(2, -1)
        return stock(gate) * up

    return [
        Row("activation", name, lambda gate, up: stock(gate) * up, ours, "nn"),
        *layer("activation", f"{name} (packed)", stock_packed, ours, ((128, 512), (512, 2048), (2048, 4096))),
    ]


def add_rms_norm(x, residual):
    total = x + residual
    return rms_norm(total), total


def add_layer_norm(x, residual):
    total = x + residual
    return layer_norm(total), total


def our_add_norm(name):
    return lambda x, residual: getattr(rusttorch, name)(x, residual, x.shape[-1:])


@functools.cache
def weights(inputs, dtype):
    """Two, of four times as many outputs."""
    return [torch.randn(4 * inputs, inputs).div(inputs**0.5).to(dtype) for _ in range(2)]


def linear_act(x):
    return F.gelu(F.linear(x, weights(x.shape[-1], x.dtype)[0]))


def our_linear_act(x):
    return rusttorch.linear_act(x, weights(x.shape[-1], x.dtype)[0], None, "gelu")


def linear_glu(x):
    gate, up = weights(x.shape[-1], x.dtype)
    return F.silu(F.linear(x, gate)) * F.linear(x, up)


def our_linear_glu(x):
    return rusttorch.linear_glu(x, *weights(x.shape[-1], x.dtype))


def heads(x):
    """Of rows of 64 elements a head's, as a projection gives them."""
    return x.view(1, x.shape[0], -1, 64).transpose(1, 2)


@functools.cache
def angles(steps):
    angle = torch.arange(steps)[:, None] * 10000.0 ** (-torch.arange(32) / 32)
    angle = torch.cat((angle, angle), -1)[None]
    return angle.cos(), angle.sin()


def turned(x, cos, sin):
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


def rope(q, k):
    """As transformers' apply_rotary_pos_emb."""
    cos, sin = angles(len(q))
    cos, sin = cos.to(q.dtype)[:, None], sin.to(q.dtype)[:, None]
    return turned(heads(q), cos, sin), turned(heads(k), cos, sin)


def our_rope(q, k):
    cos, sin = angles(len(q))
    return rusttorch.rope(heads(q), heads(k), cos.to(q.dtype), sin.to(q.dtype))


@functools.cache
def recurrent_weights(mode, units, dtype):
    rows = units * {"gru": 3, "lstm": 4}.get(mode, 1)
    shapes = ((rows, units), (rows, units), (rows,), (rows,))
    return [torch.randn(*shape).div(units**0.5).to(dtype).requires_grad_() for shape in shapes]


def recurrent(mode):
    """One layer over [T, B, I], of as many units as inputs; with the gradients of its weights."""

    def by(f):
        def call(x):
            weights = recurrent_weights(mode, x.shape[-1], x.dtype)
            states = x.new_zeros(1, *x.shape[1:])
            hx = [states, states] if mode == "lstm" else states
            return f(x, hx, weights, True, 1, 0.0, True, False, False)[0]

        return call

    shapes = ((64, 8, 128), (64, 8, 256), (64, 32, 256))
    return layer("recurrent", mode, by(getattr(torch, mode)), by(getattr(rusttorch, mode)), shapes)


LINEAR = ((1, 1024), (64, 256), (1024, 768))
CLASSES = ((64, 10), (100, 100), (1024, 1024), (128, 50257))
DIMS = ("max", "min", "argmax", "amax", "sum", "mean", "var", "logsumexp")

ROWS = [
    pointwise("add", "nn"),
    pointwise("add", "nn", alpha=0.5),
    pointwise("add", "n", 2.5),
    pointwise("sub", "nn"),
    pointwise("mul", "nn"),
    pointwise("mul", "n", 2.5),
    pointwise("div", "np"),
    pointwise("div", "np", rounding_mode="trunc"),
    pointwise("neg", "n"),
    pointwise("abs", "n"),
    pointwise("exp", "n", moved=0),
    pointwise("log", "p", moved=0),
    pointwise("sqrt", "p"),
    pointwise("pow", "n", 2),
    pointwise("pow", "n", 3),
    pointwise("pow", "p", 2.5, moved=0),
    pointwise("maximum", "nn"),
    pointwise("minimum", "nn"),
    pointwise("clamp", "n", -0.5, 0.5),
    pointwise("addcmul", "nnn"),
    pointwise("addcdiv", "nnp"),
    pointwise("lerp", "nn", 0.3),
    pointwise("lerp", "nnu"),
    Row(
        "pointwise",
        "fused_multiply_add",
        lambda a, b, c: torch.addcmul(c, a, b),
        rusttorch.fused_multiply_add,
        "nnn",
        (),
        {},
        4,
    ),
    activation("relu", torch.relu),
    activation("leaky_relu"),
    activation("sigmoid", torch.sigmoid),
    activation("tanh", torch.tanh),
    activation("gelu"),
    activation("gelu", approximate="tanh"),
    activation("elu"),
    activation("selu"),
    activation("celu"),
    activation("silu"),
    activation("mish"),
    activation("softplus"),
    activation("softsign"),
    activation("squareplus", lambda x: (x + (x * x + 4).sqrt()) / 2),
    activation("hardswish"),
    activation("hardsigmoid"),
    activation("log_sigmoid", F.logsigmoid),
    *gated("swiglu", F.silu),
    *gated("geglu", F.gelu),
    backward("leaky_relu_backward", "nn", 0.01, False),
    backward("sigmoid_backward", "nu"),
    backward("tanh_backward", "nu"),
    backward("gelu_backward"),
    backward("gelu_backward", approximate="tanh"),
    Row(
        "activation",
        "elu_backward",
        lambda g, x: ops.aten.elu_backward(g, 1, 1, 1, False, x),
        lambda g, x: ops.rusttorch.elu_backward(g, 1, 1, 1, False, x),
        "nn",
    ),
    backward("silu_backward"),
    backward("mish_backward"),
    backward("softplus_backward", "nn", 1, 20),
    backward("hardswish_backward"),
    backward("hardsigmoid_backward"),
    backward("log_sigmoid_backward", "nnu"),
    loss("mse_loss"),
    loss("l1_loss"),
    loss("smooth_l1_loss"),
    loss("huber_loss"),
    loss("binary_cross_entropy", "uu"),
    loss("binary_cross_entropy_with_logits", "nu"),
    loss("kl_div", "nu", reduction="sum"),
    reduction("sum"),
    reduction("mean"),
    reduction("prod", None, "o"),
    reduction("max"),
    reduction("argmax"),
    reduction("var"),
    reduction("std"),
    reduction("any", None, "z"),
    reduction("linalg_vector_norm", torch.linalg.vector_norm),
    reduction("linalg_vector_norm", torch.linalg.vector_norm, "n", 1),
    reduction("logsumexp", None, "n", 0, moved=0),
    reduction("cumsum", None, "n", 0, moved=0, family="scan"),
    *[row for name in DIMS for row in by_dim("reduction", name)],
    *[row for name in ("cumsum", "cummax") for row in by_dim("scan", name, MATRICES[:2])],
    *[row for name in ("softmax", "log_softmax") for row in by_dim("softmax", name, (*CLASSES, (1024, 64)))],
    Row("cross_entropy", "cross_entropy", F.cross_entropy, rusttorch.cross_entropy, "nc", shapes=CLASSES),
    Row(
        "cross_entropy",
        "cross_entropy and backward",
        with_backward(F.cross_entropy),
        with_backward(rusttorch.cross_entropy),
        "nc",
        shapes=CLASSES,
        steps=True,
    ),
    Row("dropout", "dropout(0.1)", F.dropout, rusttorch.dropout, "n", (0.1, True)),
    Row("dropout", "dropout(0.5)", F.dropout, rusttorch.dropout, "n", (0.5, True)),
    *layer("norm", "layer_norm", layer_norm, our_layer_norm, ROWS_OF),
    *layer("norm", "rms_norm", rms_norm, our_rms_norm, ROWS_OF),
    Row("norm", "add_rms_norm", add_rms_norm, our_add_norm("add_rms_norm"), "nn", shapes=ROWS_OF),
    Row("norm", "add_layer_norm", add_layer_norm, our_add_norm("add_layer_norm"), "nn", shapes=ROWS_OF),
    Row("rope", "rope", rope, our_rope, "nn", shapes=((64, 256), (512, 512), (1024, 2048))),
    *layer("batch_norm", "batch_norm", batch_norm, our_batch_norm, IMAGES),
    *layer("batch_norm", "batch_norm_relu", lambda x: F.relu(batch_norm(x)), our_batch_norm_relu, IMAGES),
    *layer("group_norm", "group_norm(8)", lambda x: F.group_norm(x, 8), our_group_norm, IMAGES),
    *layer("pool", "max_pool2d(2)", lambda x: F.max_pool2d(x, 2), lambda x: our_max_pool2d(x, 2), IMAGES),
    *layer(
        "pool", "max_pool2d(3, 2, 1)", lambda x: F.max_pool2d(x, 3, 2, 1), lambda x: our_max_pool2d(x, 3, 2, 1), IMAGES
    ),
    *layer("pool", "avg_pool2d(2)", lambda x: F.avg_pool2d(x, 2), lambda x: rusttorch.avg_pool2d(x, 2), IMAGES),
    *resizing("nearest", "upsample_nearest2d"),
    *resizing("bilinear", "upsample_bilinear2d", False),
    *resizing("bicubic", "upsample_bicubic2d", False),
    *resizing("bilinear", "_upsample_bilinear2d_aa", False, antialias=True),
    *resizing("bicubic", "_upsample_bicubic2d_aa", False, antialias=True),
    Row(
        "copy",
        "contiguous",
        torch.Tensor.contiguous,
        rusttorch.contiguous,
        "t",
        shapes=((100, 100), (1000, 1000), (1024, 1024)),
    ),
    *convolution("depthwise 3x3", 3, ((8, 96, 56, 56), (8, 384, 28, 28))),
    *convolution("depthwise 7x7", 7, ((8, 48, 56, 56), (8, 192, 14, 14))),
    *convolution("convolution 1x1", 1, ((8, 64, 28, 28), (8, 128, 14, 14)), depthwise=False),
    *convolution("convolution 3x3 of few", 3, ((8, 3, 112, 112), (64, 1, 28, 28)), depthwise=False, outputs=32),
    Row(
        "embedding",
        "embedding backward",
        functools.partial(embedding_backward, ops.aten),
        functools.partial(embedding_backward, ops.rusttorch),
        "n",
        shapes=((512, 256), (4096, 64), (4096, 768)),
    ),
    *(row for mode, number in (("mean", 1), ("max", 2)) for row in bag_rows(mode, number)),
    scatter_row("scatter_add(dim=0)", (scatter_add, rusttorch.scatter_add), (scatter_add, torch.scatter_add), 0),
    *(
        scatter_row(f"index_add(dim={dim})", (index_add, rusttorch.index_add), (index_add, torch.index_add), dim)
        for dim in (0, 1)
    ),
    scatter_row("index_put(accumulate)", (index_put, ops.rusttorch), (index_put, ops.aten)),
    *(
        attention(name, backward=backward, **options)
        for backward in (False, True)
        for name, options in {"": {}, "(causal)": {"is_causal": True}, "(dropout)": {"dropout_p": 0.1}}.items()
    ),
    *[row for mode in ("gru", "lstm", "rnn_tanh", "rnn_relu") for row in recurrent(mode)],
    Row("matmul", "mm", torch.mm, rusttorch.mm, "nn", shapes=((100, 100), (256, 256), (1024, 1024))),
    *layer("matmul", "linear_act(gelu)", linear_act, our_linear_act, LINEAR),
    *layer("matmul", "linear_glu", linear_glu, our_linear_glu, LINEAR),
]

# NumPy's own, on the arrays of the inputs. (Its matrix product takes all cores.)
NUMPY = {
    "add": np.add,
    "add(2.5)": lambda a: a + np.float32(2.5),
    "sub": np.subtract,
    "mul": np.multiply,
    "mul(2.5)": lambda a: a * np.float32(2.5),
    "div": np.divide,
    "neg": np.negative,
    "abs": np.abs,
    "exp": np.exp,
    "log": np.log,
    "sqrt": np.sqrt,
    "pow(2)": lambda a: a**2,
    "pow(2.5)": lambda a: a ** np.float32(2.5),
    "maximum": np.maximum,
    "minimum": np.minimum,
    "clamp(-0.5)(0.5)": lambda a: np.clip(a, -0.5, 0.5),
    "tanh": np.tanh,
    "relu": lambda a: np.maximum(a, 0),
    "sum": np.sum,
    "mean": np.mean,
    "prod": np.prod,
    "max": np.max,
    "argmax": np.argmax,
    "var": lambda a: np.var(a, ddof=1),
    "std": lambda a: np.std(a, ddof=1),
    "any": np.any,
    "linalg_vector_norm": np.linalg.norm,
    "linalg_vector_norm(1)": lambda a: np.linalg.norm(a, 1),
    "cumsum(0)": np.cumsum,
    "amax(dim=0)": lambda a: np.max(a, 0),
    "amax(dim=1)": lambda a: np.max(a, 1),
    "sum(dim=0)": lambda a: np.sum(a, 0),
    "sum(dim=1)": lambda a: np.sum(a, 1),
    "argmax(dim=0)": lambda a: np.argmax(a, 0),
    "argmax(dim=1)": lambda a: np.argmax(a, 1),
    "cumsum(dim=0)": lambda a: np.cumsum(a, 0),
    "cumsum(dim=1)": lambda a: np.cumsum(a, 1),
}
