"""Names for what torch has and does as well, and torch.nn.functional's forms of ops: one line each, no copies.

Products of more dims are made of the ops mm, bmm and addmm.
"""

import torch
from torch import (  # noqa: F401
    arange,
    broadcast_tensors,
    eye,
    from_numpy,  # shares the array's memory
    full,
    linspace,
    matmul,
    ones,
    randn,
    reshape,
    tensor,  # from a list
    transpose,
    zeros,
)
from torch import broadcast_shapes as broadcast_shape  # noqa: F401
from torch.nn.functional import linear, nll_loss  # noqa: F401

from . import _C


def contiguous(input):
    """input itself if it is contiguous, else a contiguous copy: of transposed matrices in cache-sized squares."""
    if input.is_contiguous():
        return input
    return _C.functions.clone(input, memory_format=torch.contiguous_format)


def shapes_broadcastable(a, b):
    """Whether two shapes (sequences of ints) broadcast: from the last dim on, sizes are equal or one of them is 1."""
    return all(m == n or 1 in (m, n) for m, n in zip(reversed(a), reversed(b), strict=False))


def dropout(input, p=0.5, training=True):
    """torch.nn.functional.dropout, not in place: 0 with probability p, else input / (1 - p); input where not training.

    Keeps the elements that stock keeps with this seed. Raises ValueError if p is not in [0, 1].
    """
    if not 0 <= p <= 1:
        raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
    return _C.functions.dropout(input, p, training)


def layer_norm(input, normalized_shape, weight=None, bias=None, eps=1e-5):
    """torch.nn.functional.layer_norm: (input - mean) / sqrt(var + eps) * weight + bias (J. Ba et al., 2016).

    Mean and variance are over the last dims, normalized_shape, which is weight's and bias' shape. Of input's shape.
    Raises RuntimeError if the shapes do not agree.
    """
    return _C.functions.native_layer_norm(input, normalized_shape, weight, bias, eps)[0]


FUNCTIONS = (
    *("zeros", "ones", "full", "eye", "arange", "linspace", "randn", "tensor", "from_numpy"),
    *("broadcast_shape", "broadcast_tensors", "shapes_broadcastable", "reshape", "transpose", "contiguous"),
    *("matmul", "linear", "nll_loss", "dropout", "layer_norm"),
)
