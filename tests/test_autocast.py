"""Autocast over rusttorch's own names: what torch's functions cast, they cast."""

import pytest
import rusttorch
import torch
import torch.nn.functional as F
from cases import ON_DEVICE, same_error

X, T = torch.rand(6, 8, dtype=torch.bfloat16), torch.rand(6, 8, dtype=torch.bfloat16)
CLASSES = torch.randint(8, (6,))

CALLS = {
    "cross_entropy": (rusttorch.cross_entropy, F.cross_entropy, (X, CLASSES)),
    "mse_loss": (rusttorch.mse_loss, F.mse_loss, (X, T)),
    "l1_loss": (rusttorch.l1_loss, F.l1_loss, (X, T)),
    "smooth_l1_loss": (rusttorch.smooth_l1_loss, F.smooth_l1_loss, (X, T)),
    "huber_loss": (rusttorch.huber_loss, F.huber_loss, (X, T)),
    "kl_div": (rusttorch.kl_div, torch.ops.aten.kl_div, (X, T)),
    "binary_cross_entropy": (rusttorch.binary_cross_entropy, F.binary_cross_entropy, (X, T)),
    "binary_cross_entropy_with_logits": (
        rusttorch.binary_cross_entropy_with_logits,
        F.binary_cross_entropy_with_logits,
        (X, T),
    ),
    "prod": (rusttorch.prod, torch.prod, (X,)),
    # cast on CUDA only
    "sum": (rusttorch.sum, torch.sum, (X,)),
    "softmax": (rusttorch.softmax, torch.softmax, (X, -1)),
    "layer_norm": (
        lambda x: torch.ops.rusttorch.native_layer_norm(x, [8], None, None, 1e-5)[0],
        lambda x: F.layer_norm(x, (8,)),
        (X,),
    ),
    # not cast
    "mish": (rusttorch.mish, F.mish, (X,)),
}


def autocast():
    return torch.autocast(X.device.type, dtype=torch.bfloat16)


@pytest.mark.parametrize("name", CALLS)
def test_as_torch_s_own(name):
    ours, stock, arguments = CALLS[name]
    if name == "binary_cross_entropy" and ON_DEVICE:
        with autocast():
            same_error(lambda: ours(*arguments), lambda: stock(*arguments))
        return
    with autocast():
        mine, theirs = ours(*arguments), stock(*arguments)
    assert mine.dtype == theirs.dtype
    # On CUDA stock rounds the logarithms of the probabilities to bfloat16 before it casts; ours are float32 all along.
    rounded = {"rtol": 2**-9, "atol": 0} if name == "cross_entropy" and ON_DEVICE else {}
    torch.testing.assert_close(mine, theirs, **rounded)


def test_gradients_have_their_tensors_dtypes():
    x = X.clone().requires_grad_()
    with autocast():
        loss = rusttorch.mse_loss(x, T.float())
    loss.backward()
    assert loss.dtype == torch.float32
    assert x.grad.dtype == torch.bfloat16


def test_double_stays_double():
    with autocast():
        assert rusttorch.mse_loss(X.double(), T.double()).dtype == torch.float64


def test_linear_cross_entropy_of_mixed_dtypes():
    h, w = torch.randn(30, 16), torch.randn(40, 16, requires_grad=True)
    target = torch.randint(40, (30,))
    with autocast():
        ours = rusttorch.linear_cross_entropy(h.bfloat16(), w, target)
        stock = F.cross_entropy(F.linear(h.bfloat16(), w), target)
    assert ours.dtype == stock.dtype == torch.float32
    torch.testing.assert_close(ours, stock, rtol=1e-2, atol=0)
    for mine, theirs in zip(torch.autograd.grad(ours, w), torch.autograd.grad(stock, w), strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, theirs, rtol=0.05, atol=1e-3)
