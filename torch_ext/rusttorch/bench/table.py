"""The ops that are timed: how stock is called, how rusttorch is, on what."""

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


def normalization(name, stock, ours):
    """Forward, and with the backward of the sum."""

    def summed(f):
        return with_backward(lambda x: f(x).sum())

    return [
        Row("norm", name, stock, ours, "n", shapes=ROWS_OF),
        Row("norm", f"{name} and backward", summed(stock), summed(ours), "n", shapes=ROWS_OF, steps=True),
    ]


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
    *normalization("layer_norm", layer_norm, our_layer_norm),
    *normalization("rms_norm", rms_norm, our_rms_norm),
    Row(
        "copy",
        "contiguous",
        torch.Tensor.contiguous,
        rusttorch.contiguous,
        "t",
        shapes=((100, 100), (1000, 1000), (1024, 1024)),
    ),
    Row("matmul", "mm", torch.mm, rusttorch.mm, "nn", shapes=((100, 100), (256, 256), (1024, 1024))),
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
