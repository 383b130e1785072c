import math

import families
import pytest
import rusttorch
import torch
from cases import DTYPES, Case, functional_ops, opcheck

CASES = [
    Case("_softmax", "w", (-1, False)),
    Case("_softmax", "w", (0, False)),
    Case("_log_softmax", "w", (-1, False)),
    Case("_log_softmax", "w", (0, False)),
    Case("softmax.int", "n", (-1,)),
    Case("log_softmax.int", "n", (0,)),
]


def test_table_is_complete():
    family = {op.name for op in rusttorch.ops() if op.family == "softmax"}
    backwards = {"_softmax_backward_data", "_log_softmax_backward_data"}
    assert {case.op for case in CASES} | backwards == family.intersection(functional_ops())


test_layouts = families.layouts_test(CASES, families.ONE_RUN)
test_derivatives = families.derivatives_test(CASES)
test_opcheck = families.opcheck_test(CASES)
test_compile = families.compile_test(CASES)
test_swapped = families.swapped_test(CASES)


def softmax_of(x, dim, log):
    return torch.log_softmax(x, dim) if log else torch.softmax(x, dim)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("log", [False, True], ids=["softmax", "log_softmax"])
@pytest.mark.parametrize(
    ("shape", "dim"),
    [
        *[((5, n), 1) for n in (1, 2, 3, 15, 16, 17, 64, 65, 129, 1000, 1031, 5003)],
        *[((n, 5), 0) for n in (1, 15, 64, 70, 300)],
        *[((3, n, 129), 1) for n in (2, 64, 65, 700)],
        ((2, 70, 3, 7), 1),
        ((100_003,), 0),
    ],
    ids=str,
)
def test_forward_and_backward(shape, dim, log, dtype):
    """Against float64: at most twice stock's largest error, and one ulp of a probability near 1."""
    generator = torch.Generator(torch.get_default_device()).manual_seed(0)
    x, g = ((torch.randn(shape, generator=generator, dtype=torch.float64) * 4).to(dtype) for _ in range(2))
    name = "_log_softmax" if log else "_softmax"

    def check(mine, theirs, reference):
        assert mine.dtype == dtype
        assert mine.stride() == theirs.stride()
        ulp = torch.finfo(dtype).eps * reference.abs().max()
        error, allowed = ((y.double() - reference).abs().max() for y in (mine, theirs))
        assert (
            error <= 2 * allowed + (1000 if dtype == torch.float64 else 1) * ulp
        )  # in float64 the reference is stock itself

    y = getattr(rusttorch, name)(x, dim, False)
    check(y, softmax_of(x, dim, log), softmax_of(x.double(), dim, log))
    backward, stock = (getattr(m, f"{name}_backward_data") for m in (rusttorch, torch.ops.aten))
    reference = stock(g.double(), y.double(), dim, torch.float64)
    check(backward(g, y, dim, dtype), stock(g, y, dim, dtype), reference)


@pytest.mark.parametrize("log", [False, True], ids=["softmax", "log_softmax"])
def test_special_values(log):
    """Rows with infinities and NaN, masked tails of -inf, and what is too large to exponentiate."""
    rows = torch.randn(8, 70)
    rows[1, 3] = math.nan
    rows[2, 69] = math.inf
    rows[3, :] = -math.inf
    rows[4, 20:] = -math.inf
    rows[5] *= 1e30
    rows[6, 0] = -math.inf
    for x, dim in ((rows, 1), (rows.t().contiguous(), 0)):
        ours = rusttorch.log_softmax(x, dim) if log else rusttorch.softmax(x, dim)
        torch.testing.assert_close(ours, softmax_of(x, dim, log), equal_nan=True)


def test_backward_derivatives():
    for name in ("_softmax", "_log_softmax"):
        g = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
        y = torch.rand(3, 5, dtype=torch.float64, requires_grad=True)
        f = getattr(rusttorch, f"{name}_backward_data")
        assert torch.autograd.gradcheck(lambda g, y: f(g, y, 1, torch.float64), (g, y))  # noqa: B023
        assert torch.autograd.gradgradcheck(lambda g, y: f(g, y, 1, torch.float64), (g, y))  # noqa: B023
        opcheck(getattr(torch.ops.rusttorch, f"{name}_backward_data").default, (g, y, 1, torch.float64))


def test_dtype_argument_and_errors():
    x = torch.randn(4, 6)
    torch.testing.assert_close(rusttorch.softmax(x, 1, dtype=torch.float64), x.softmax(1, dtype=torch.float64))
    torch.testing.assert_close(
        rusttorch.softmax(x.int(), 1, dtype=torch.float32), x.int().softmax(1, dtype=torch.float32)
    )
    with pytest.raises(IndexError, match="Dimension out of range"):
        rusttorch.softmax(x, 2)
