"""The ops that bench/ops.py times: how stock is called, how rusttorch is, on what."""

from typing import Any, NamedTuple

import rusttorch
import torch
import torch.nn.functional as F
from torch import ops


class Row(NamedTuple):
    name: str
    stock: Any  # what a user of stock torch calls
    ours: Any  # the same by rusttorch's name
    inputs: str  # one letter per tensor: n normal, p positive, u in (0, 1)
    args: tuple = ()
    kwargs: dict[str, Any] = {}  # noqa: RUF012
    tensors_moved: int = 0  # read and written, where the op should be at the memory's limit; 0: it is not


def pointwise(name, inputs, *args, moved=None, **kwargs):
    moved = len(inputs) + 1 if moved is None else moved
    label = name + "".join(f"({a})" for a in (*args, *kwargs.values()))
    return Row(label, getattr(torch, name), getattr(rusttorch, name), inputs, args, kwargs, moved)


def activation(name, stock=None, *args, **kwargs):
    stock = stock or getattr(F, name)
    label = name + "".join(f"({a})" for a in kwargs.values())
    return Row(label, stock, getattr(rusttorch, name), "n", args, kwargs)


def backward(name, inputs="nn", *args, **kwargs):
    """Both through torch.ops, since stock has no other name for them."""
    label = name + "".join(f"({a})" for a in kwargs.values())
    return Row(label, getattr(ops.aten, name), getattr(ops.rusttorch, name), inputs, args, kwargs)


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
    Row("fused_multiply_add", lambda a, b, c: torch.addcmul(c, a, b), rusttorch.fused_multiply_add, "nnn", (), {}, 4),
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
    activation("hardswish"),
    activation("hardsigmoid"),
    activation("log_sigmoid", F.logsigmoid),
    backward("leaky_relu_backward", "nn", 0.01, False),
    backward("sigmoid_backward", "nu"),
    backward("tanh_backward", "nu"),
    backward("gelu_backward"),
    backward("gelu_backward", approximate="tanh"),
    Row(
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
]
