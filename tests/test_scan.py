import math

import families
import pytest
import rusttorch
import torch
from cases import DTYPES, INTEGERS, Case, functional_ops

CASES = [
    Case("cumsum", "p", (-1,)),
    Case("cummax", args=(-1,), exact=True),
    Case("cummin", args=(-1,), exact=True),
    Case("cumsum", "p", (0,)),
    Case("cummax", args=(0,), exact=True),
    Case("cummin", args=(0,), exact=True),
]


def test_table_is_complete():
    family = {op.name for op in rusttorch.ops() if op.family == "scan"}
    assert {case.op for case in CASES} == family.intersection(functional_ops())


test_layouts = families.layouts_test(CASES, families.ONE_RUN)
test_derivatives = families.derivatives_test(CASES)
test_opcheck = families.opcheck_test(CASES)
test_compile = families.compile_test(CASES)
test_vmap = families.vmap_test(CASES)
test_swapped = families.swapped_test(CASES)


@pytest.mark.parametrize("dtype", (*DTYPES, *INTEGERS), ids=str)
@pytest.mark.parametrize("shape", [(1, 7), (17, 33), (5, 40, 300), (1000, 3)], ids=str)
def test_values_indices_and_ties(shape, dtype):
    x = (torch.randn(shape) * 2).round().to(dtype)
    if dtype.is_floating_point:
        x[0, ::3] = math.nan
        x[-1, ::4] = math.inf
    for dim in range(x.dim()):
        for name in ("cummax", "cummin"):
            for ours, stock in zip(getattr(rusttorch, name)(x, dim), getattr(torch, name)(x, dim), strict=True):
                assert torch.equal(ours.nan_to_num(), stock.nan_to_num())
                assert torch.equal(ours.isnan(), stock.isnan())
        torch.testing.assert_close(rusttorch.cumsum(x, dim), x.cumsum(dim), equal_nan=True)
    assert rusttorch.cumsum(x, 0, dtype=torch.float64).dtype == torch.float64
    with pytest.raises(IndexError, match="Dimension out of range"):
        rusttorch.cummax(x, 5)


@pytest.mark.parametrize("shape", [(1_000_003,), (300, 10_007)], ids=str)
def test_long_sum_errs_no_more_than_stock(shape):
    x = torch.rand(shape)
    reference = x.double().cumsum(-1)
    error, allowed = ((f(x, -1).double() - reference).abs().max() for f in (rusttorch.cumsum, torch.cumsum))
    assert error <= allowed * 1.01
