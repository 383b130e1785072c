"""RustTorch's names, each run and compared, and rusttorch's names for torch's functions."""

import numpy as np
import pytest
import rusttorch
import torch
import torch.nn.functional as F
from rusttorch import compat

X, Y, Z = torch.randn(4, 5), torch.randn(4, 5), torch.randn(4, 5)
P, T = torch.rand(4, 5) * 0.9 + 0.05, torch.rand(4, 5)

# name -> arguments, what it should give. The list is that of RustTorch's Python module and of its ops.
OPS = {
    **dict.fromkeys(("add", "add_simd"), ((X, Y), X + Y)),
    **dict.fromkeys(("mul", "mul_simd"), ((X, Y), X * Y)),
    "sub": ((X, Y), X - Y),
    "div": ((X, P), X / P),
    "add_broadcast": ((X, Y[0]), X + Y[0]),
    "mul_broadcast": ((X, Y[:, :1]), X * Y[:, :1]),
    "sub_broadcast": ((X, Y[0]), X - Y[0]),
    "div_broadcast": ((X, P[0]), X / P[0]),
    "add_scalar": ((X, 2.5), X + 2.5),
    **dict.fromkeys(("mul_scalar", "mul_scalar_simd"), ((X, 2.5), X * 2.5)),
    "fused_multiply_add": ((X, Y, Z), X * Y + Z),
    "matmul": ((X, Y.t()), X @ Y.t()),
    "transpose": ((X,), X.t()),
    "reshape": ((X, [2, 10]), X.reshape(2, 10)),
    **{name: ((X,), X.relu()) for name in ("relu", "relu_simd")},
    "sigmoid": ((X,), X.sigmoid()),
    "tanh": ((X,), X.tanh()),
    "gelu": ((X,), F.gelu(X)),
    "leaky_relu": ((X, 0.1), F.leaky_relu(X, 0.1)),
    "elu": ((X, 0.7), F.elu(X, 0.7)),
    "selu": ((X,), F.selu(X)),
    "swish": ((X,), F.silu(X)),
    "mish": ((X,), F.mish(X)),
    "softplus": ((X,), F.softplus(X)),
    "softsign": ((X,), F.softsign(X)),
    "softmax": ((X, 1), X.softmax(1)),
    "sum": ((X,), X.sum().item()),
    "mean": ((X,), X.mean().item()),
    "max": ((X,), X.max().item()),
    "min": ((X,), X.min().item()),
    "sum_dim": ((X, 0), X.sum(0)),
    "mean_dim": ((X, 1), X.mean(1)),
    "mse_loss": ((X, Y), F.mse_loss(X, Y).item()),
    "l1_loss": ((X, Y), F.l1_loss(X, Y).item()),
    "smooth_l1_loss": ((X, Y, 0.5), F.smooth_l1_loss(X, Y, beta=0.5).item()),
    "binary_cross_entropy_loss": ((P, T, 1e-7), F.binary_cross_entropy(P, T).item()),
    "cross_entropy_loss": ((P, T, 1e-7), -(T * P.log()).mean().item()),
}


@pytest.mark.parametrize("name", OPS)
def test_op(name):
    args, expected = OPS[name]
    result = getattr(compat, name)(*args)
    assert isinstance(result, type(expected))
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)


def test_every_op_is_compared():
    public = {name for name in vars(compat) if not name.startswith("_")} - {"torch", "names", "Tensor"}
    assert public == set(OPS)


def test_constructors():
    assert compat.Tensor.zeros([2, 3]).equal(torch.zeros(2, 3))
    assert compat.Tensor.ones([2, 3]).equal(torch.ones(2, 3))
    assert compat.Tensor.full([2], 0.5).equal(torch.full((2,), 0.5))
    assert compat.Tensor.from_vec([1, 2, 3, 4], [2, 2]).equal(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert compat.Tensor.scalar(3.5).equal(torch.tensor([3.5]))


def test_names_are_torch_s():
    for name in ("zeros", "eye", "arange", "linspace", "randn", "matmul"):
        assert getattr(rusttorch, name) is getattr(torch, name)
    array = np.arange(4.0)
    shared = rusttorch.from_numpy(array)
    array[0] = 7
    assert shared[0] == 7
    assert rusttorch.broadcast_shape((3, 1), (4,)) == (3, 4)
    for a, b in (((3, 1), (4,)), ((3, 2), (3,)), ((), (5,)), ((2, 3), (2, 3)), ((0,), (1,)), ((2,), (0,))):
        try:
            torch.broadcast_shapes(a, b)
            expected = True
        except RuntimeError:
            expected = False
        assert rusttorch.shapes_broadcastable(a, b) == expected


def test_contiguous():
    assert rusttorch.contiguous(X) is X
    assert rusttorch.contiguous(X.t()).equal(X.t())
    assert rusttorch.contiguous(X.t()).is_contiguous()
