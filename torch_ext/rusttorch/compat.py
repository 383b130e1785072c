"""The operators of RustTorch's Python package by their own names, so that a script written for it runs.

    import rusttorch.compat as rusttorch

As there, whole-tensor reductions and losses return a float, losses are means, and operands have one shape and dtype
unless the name ends in _broadcast (here they may broadcast everywhere). Tensors are torch's. Its optimizer and data
functions are not here yet.
"""

import torch

from . import _C, names

_f = _C.functions


class Tensor:
    """RustTorch's constructors. They return torch tensors, whose shape is an attribute, not a method."""

    zeros = staticmethod(torch.zeros)
    ones = staticmethod(torch.ones)
    full = staticmethod(torch.full)

    @staticmethod
    def from_vec(data, shape):
        """A float32 tensor of a list of numbers."""
        return torch.tensor(data, dtype=torch.float32).reshape(shape)

    @staticmethod
    def scalar(value):
        return Tensor.from_vec([value], [1])


add = add_broadcast = add_simd = _f.add
sub = sub_broadcast = _f.sub
mul = mul_broadcast = mul_simd = _f.mul
div = div_broadcast = _f.div
add_scalar = _f.add_scalar
mul_scalar = mul_scalar_simd = _f.mul_scalar
fused_multiply_add = _f.fused_multiply_add

matmul = names.matmul
reshape = names.reshape


def transpose(tensor):
    """The matrix with its two dims exchanged."""
    return tensor.t()


relu = relu_simd = _f.relu
sigmoid, tanh, gelu, selu, mish, softplus, softsign = (
    getattr(_f, name) for name in ("sigmoid", "tanh", "gelu", "selu", "mish", "softplus", "softsign")
)
swish = _f.silu
leaky_relu = _f.leaky_relu
elu = _f.elu
softmax = _f.softmax


def sum(tensor):
    return _f.sum(tensor).item()


def mean(tensor):
    return _f.mean(tensor).item()


def max(tensor):
    return _f.max(tensor).item()


def min(tensor):
    return _f.min(tensor).item()


def sum_dim(tensor, dim):
    return _f.sum(tensor, dim)


def mean_dim(tensor, dim):
    return _f.mean(tensor, dim)


def mse_loss(predictions, targets):
    return _f.mse_loss(predictions, targets).item()


def l1_loss(predictions, targets):
    return _f.l1_loss(predictions, targets).item()


def smooth_l1_loss(predictions, targets, beta):
    return _f.smooth_l1_loss(predictions, targets, beta=beta).item()


def binary_cross_entropy_loss(predictions, targets, epsilon):
    """bce of probabilities held in [epsilon, 1 - epsilon]."""
    return _f.bce_loss(predictions, targets, epsilon).item()


def cross_entropy_loss(predictions, targets, epsilon):
    """-mean(targets log(max(predictions, epsilon))) over all elements: of probabilities, not of logits."""
    return -_f.mean(_f.mul(targets, _f.log(_f.clamp(predictions, epsilon)))).item()
