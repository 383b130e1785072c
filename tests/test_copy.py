import pytest
import rusttorch
import torch
from cases import DTYPES, INTEGERS, opcheck


@pytest.mark.parametrize("dtype", (*DTYPES, *INTEGERS, torch.bool), ids=str)
@pytest.mark.parametrize(
    "shape", [(8, 8), (16, 40), (33, 70), (100, 9), (3, 5, 20, 17), (7, 3), (0, 8), (64, 64)], ids=str
)
def test_contiguous_copy_of_transposed(shape, dtype):
    base = (torch.randn(shape) * 9).to(dtype)
    x = base.transpose(-1, -2)
    copy = rusttorch.clone(x, memory_format=torch.contiguous_format)
    assert torch.equal(copy, x)
    assert copy.stride() == torch.empty(x.shape).stride()
    assert copy.data_ptr() != base.data_ptr() or base.numel() == 0
    with rusttorch.use("clone"):
        assert torch.equal(x.contiguous(), copy)
        assert x.numel() == 0 or x.contiguous().stride() == copy.stride()


def test_what_is_not_a_transpose_is_stock_s():
    x = torch.randn(2, 3, 16, 20)
    for y in (x.permute(1, 0, 3, 2), x[:, :, ::2].transpose(2, 3), x.expand(4, 2, 3, 16, 20).transpose(3, 4), x):
        assert torch.equal(rusttorch.clone(y, memory_format=torch.contiguous_format), y)
        assert rusttorch.clone(y).stride() == y.clone().stride()
    assert rusttorch.clone(x, memory_format=torch.channels_last).is_contiguous(memory_format=torch.channels_last)


def test_derivatives_and_opcheck():
    x = torch.randn(9, 8, dtype=torch.float64, requires_grad=True)

    def f(x):
        return rusttorch.clone(x.t(), memory_format=torch.contiguous_format) * x.t()

    assert torch.autograd.gradcheck(f, x)
    assert torch.autograd.gradgradcheck(f, x)
    leaf = torch.randn(8, 9).t().requires_grad_()
    opcheck(torch.ops.rusttorch.clone.default, (leaf,), {"memory_format": torch.contiguous_format})
    with rusttorch.use():
        assert torch.autograd.grad((x.t().contiguous() * x.t()).sum(), x)[0].equal(2 * x.detach())
