"""The operators of RustTorch's Python package by their own names, so that a script written for it runs.

    import rusttorch.compat as rusttorch

As there, whole-tensor reductions and losses return a float, losses are means, and operands have one shape and dtype
unless the name ends in _broadcast (here they may broadcast everywhere). Optimizers' updates return new tensors.
Tensors are torch's.
"""

import torch

from . import _C, names
from . import data as _data

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


from_vec, zeros, ones = Tensor.from_vec, Tensor.zeros, Tensor.ones

add = add_broadcast = add_simd = _f.add
sub = sub_broadcast = _f.sub
mul = mul_broadcast = mul_simd = _f.mul
div = div_broadcast = _f.div
add_scalar = _f.add_scalar
mul_scalar = mul_scalar_simd = _f.mul_scalar
fused_multiply_add = _f.fused_multiply_add

matmul = names.matmul
reshape = names.reshape
shapes_broadcastable, broadcast_shape = names.shapes_broadcastable, names.broadcast_shape
broadcast_tensors = names.broadcast_tensors


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
softmax = softmax_dim = _f.softmax


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


def max_dim(tensor, dim):
    return _f.amax(tensor, dim)


def min_dim(tensor, dim):
    return _f.amin(tensor, dim)


def mse_loss(predictions, targets):
    return _f.mse_loss(predictions, targets).item()


def l1_loss(predictions, targets):
    return _f.l1_loss(predictions, targets).item()


def smooth_l1_loss(predictions, targets, beta):
    return _f.smooth_l1_loss(predictions, targets, beta=beta).item()


def binary_cross_entropy_loss(predictions, targets, epsilon):
    """bce of probabilities held in [epsilon, 1 - epsilon]."""
    return _f.bce_loss(predictions, targets, epsilon).item()


bce_loss = binary_cross_entropy_loss


def cross_entropy_loss(predictions, targets, epsilon):
    """-mean(targets log(max(predictions, epsilon))) over all elements: of probabilities, not of logits."""
    return -_f.mean(_f.mul(targets, _f.log(_f.clamp(predictions, epsilon)))).item()


def sgd_update(params, gradients, learning_rate):
    """params - learning_rate * gradients."""
    params = params.clone()
    _f.sgd_update(params, gradients, lr=learning_rate)
    return params


def sgd_momentum_update(params, gradients, velocity, learning_rate, momentum):
    """(params - learning_rate * v, v) with v = momentum * velocity + gradients."""
    params, velocity = params.clone(), velocity.clone()
    _f.sgd_momentum_update(params, gradients, velocity, lr=learning_rate, momentum=momentum)
    return params, velocity


def adam_update(params, gradients, m, v, learning_rate, beta1, beta2, epsilon, timestep):
    """(params, m, v) after Adam's step number timestep, counted from 1."""
    params, m, v = params.clone(), m.clone(), v.clone()
    options = {"lr": learning_rate, "beta1": beta1, "beta2": beta2, "eps": epsilon}
    _f.adam_update(params, gradients, m, v, timestep, **options)
    return params, m, v


def adamw_update(params, gradients, m, v, learning_rate, beta1, beta2, epsilon, weight_decay, timestep):
    """(params, m, v) after AdamW's step number timestep, counted from 1."""
    params, m, v = params.clone(), m.clone(), v.clone()
    options = {"lr": learning_rate, "beta1": beta1, "beta2": beta2, "eps": epsilon, "weight_decay": weight_decay}
    _f.adamw_update(params, gradients, m, v, timestep, **options)
    return params, m, v


def load_csv(path, has_header, delimiter):
    """A file of numbers as a float32 tensor [rows, columns]."""
    return _data.read_csv(path, header=has_header, delimiter=delimiter, dtype=torch.float32).values


def normalize(tensor):
    """((tensor - mean) / std, mean, std), mean and std being those of all elements, as floats."""
    normalized, mean, std = _data.normalize(tensor.reshape(-1))
    return normalized.reshape(tensor.shape), mean.item(), std.item()


def create_batches(data, batch_size, drop_last):
    """A list of batches of rows, in their order."""
    return list(_data.create_batches(data, None, batch_size, drop_last=drop_last))


def shuffle_indices(num_samples):
    """A list of the numbers from 0 to num_samples - 1, in random order."""
    return _data.shuffle_indices(num_samples).tolist()


def train_val_test_split(data, train_ratio, val_ratio, shuffle):
    """Three tensors of rows, the third with what the ratios leave."""
    return _data.train_val_test_split(data, train_ratio=train_ratio, val_ratio=val_ratio, shuffle=shuffle)
