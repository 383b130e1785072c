"""RustTorch's names, each run and compared, and rusttorch's names for torch's functions."""

import numpy as np
import pytest
import rusttorch
import torch
import torch.nn.functional as F
from rusttorch import compat

X, Y, Z = torch.randn(4, 5), torch.randn(4, 5), torch.randn(4, 5)
P, T = torch.rand(4, 5) * 0.9 + 0.05, torch.rand(4, 5)


def stepped(optimizer, steps, **options):
    """The parameter X after so many steps of torch.optim's with gradient Y."""
    parameter = torch.nn.Parameter(X.clone())
    parameter.grad = Y.clone()
    optimizer = optimizer([parameter], **options)
    for _ in range(steps):
        optimizer.step()
    return parameter.detach(), optimizer.state[parameter]


def momentum_step():
    parameter, state = stepped(torch.optim.SGD, 2, lr=0.1, momentum=0.9)
    return parameter, state["momentum_buffer"]


def adam_step(optimizer, steps, **options):
    parameter, state = stepped(optimizer, steps, lr=0.1, betas=(0.8, 0.9), eps=1e-6, **options)
    return parameter, state["exp_avg"], state["exp_avg_sq"]


ADAM1, ADAMW1 = adam_step(torch.optim.Adam, 1), adam_step(torch.optim.AdamW, 1, weight_decay=0.2)

# name -> arguments, what it should give. The list is that of RustTorch's Python module and of its ops.
OPS = {
    **dict.fromkeys(("add", "add_simd"), ((X, Y), X + Y)),
    **dict.fromkeys(("mul", "mul_simd"), ((X, Y), X * Y)),
    "sub": ((X, Y), X - Y),
    "div": ((X, P), X / P),
    "from_vec": (([1, 2, 3, 4], [2, 2]), torch.tensor([[1.0, 2.0], [3.0, 4.0]])),
    "zeros": (([2, 3],), torch.zeros(2, 3)),
    "ones": (([2, 3],), torch.ones(2, 3)),
    "shapes_broadcastable": (([3, 1], [4]), True),
    "broadcast_shape": (([3, 1], [4]), torch.Size([3, 4])),
    "broadcast_tensors": ((X, Y[0]), (X, Y[0].expand(4, 5))),
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
    **dict.fromkeys(("softmax", "softmax_dim"), ((X, 1), X.softmax(1))),
    "sum": ((X,), X.sum().item()),
    "mean": ((X,), X.mean().item()),
    "max": ((X,), X.max().item()),
    "min": ((X,), X.min().item()),
    "sum_dim": ((X, 0), X.sum(0)),
    "mean_dim": ((X, 1), X.mean(1)),
    "max_dim": ((X, 0), X.amax(0)),
    "min_dim": ((X, 1), X.amin(1)),
    "mse_loss": ((X, Y), F.mse_loss(X, Y).item()),
    "l1_loss": ((X, Y), F.l1_loss(X, Y).item()),
    "smooth_l1_loss": ((X, Y, 0.5), F.smooth_l1_loss(X, Y, beta=0.5).item()),
    **dict.fromkeys(("binary_cross_entropy_loss", "bce_loss"), ((P, T, 1e-7), F.binary_cross_entropy(P, T).item())),
    "cross_entropy_loss": ((P, T, 1e-7), -(T * P.log()).mean().item()),
    "sgd_update": ((X, Y, 0.1), X - 0.1 * Y),
    "sgd_momentum_update": ((X - 0.1 * Y, Y, Y, 0.1, 0.9), momentum_step()),
    "adam_update": ((ADAM1[0], Y, *ADAM1[1:], 0.1, 0.8, 0.9, 1e-6, 2), adam_step(torch.optim.Adam, 2)),
    "adamw_update": (
        (ADAMW1[0], Y, *ADAMW1[1:], 0.1, 0.8, 0.9, 1e-6, 0.2, 2),
        adam_step(torch.optim.AdamW, 2, weight_decay=0.2),
    ),
    "normalize": ((X,), ((X - X.mean()) / X.std(correction=0), X.mean().item(), X.std(correction=0).item())),
    "create_batches": ((X, 3, False), [X[:3], X[3:]]),
    "train_val_test_split": ((X, 0.5, 0.3, False), (X[:2], X[2:3], X[3:])),
}


@pytest.mark.parametrize("name", OPS)
def test_op(name):
    args, expected = OPS[name]
    kept = [arg.clone() if isinstance(arg, torch.Tensor) else arg for arg in args]
    result = getattr(compat, name)(*args)
    assert isinstance(result, type(expected))
    assert all(a is b or not isinstance(a, torch.Tensor) or a.equal(b) for a, b in zip(args, kept, strict=True))
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)


def test_every_op_is_compared():
    public = {name for name in vars(compat) if not name.startswith("_")} - {"torch", "names", "Tensor"}
    assert public == set(OPS) | {"load_csv", "shuffle_indices"}


def test_data(tmp_path):
    path = tmp_path / "numbers.csv"
    path.write_text("a;b\n1; 2.5\n-3e2;4\n")
    assert compat.load_csv(str(path), True, ";").equal(torch.tensor([[1, 2.5], [-300, 4]]))
    path.write_text("1,2\n3,4\n")
    assert compat.load_csv(str(path), False, ",").equal(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    order = compat.shuffle_indices(100)
    assert sorted(order) == list(range(100)) != order and isinstance(order[0], int)
    assert [len(batch) for batch in compat.create_batches(torch.rand(10, 2), batch_size=3, drop_last=True)] == [3] * 3
    x = torch.rand(50, 2)
    parts = compat.train_val_test_split(x, 0.7, 0.15, True)
    assert [len(part) for part in parts] == [35, 7, 8]
    assert sorted(torch.cat(parts).tolist()) == sorted(x.tolist()) and not torch.cat(parts).equal(x)
    constant, mean, std = compat.normalize(torch.full((3, 2), 0.1))
    assert constant.abs().max() < 1e-6 and std == 0 and mean == pytest.approx(0.1)


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
