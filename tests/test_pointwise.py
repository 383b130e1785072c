import families
import pytest
import rusttorch
import torch
from cases import Case, functional_ops

CASES = [
    Case("add.Tensor", "nn", exact=True, integers=True),
    Case("add.Tensor", "nn", kwargs={"alpha": 3}, integers=True),
    Case("add.Scalar", "n", (2,), exact=True, integers=True),
    Case("add.Scalar", "n", (2, 3), integers=True),
    Case("sub.Tensor", "nn", exact=True, integers=True),
    Case("sub.Tensor", "nn", kwargs={"alpha": -2}, integers=True),
    Case("sub.Scalar", "n", (2,), exact=True, integers=True),
    Case("mul.Tensor", "nn", exact=True, integers=True),
    Case("mul.Scalar", "n", (3,), exact=True, integers=True),
    Case("div.Tensor", "np", exact=True, integers=True),
    Case("div.Tensor_mode", "np", kwargs={"rounding_mode": "trunc"}, exact=True, integers=True),
    Case("div.Tensor_mode", "np", kwargs={"rounding_mode": "floor"}, exact=True, integers=True),
    Case("div.Tensor_mode", "np", kwargs={"rounding_mode": None}, exact=True, integers=True),
    Case("div.Scalar", "n", (3,), exact=True, integers=True),
    Case("div.Scalar_mode", "n", (3,), kwargs={"rounding_mode": "trunc"}, exact=True, integers=True),
    Case("neg", exact=True, integers=True),
    Case("abs", exact=True, integers=True),
    Case("exp", "w", integers=True),
    Case("log", "p", integers=True),
    Case("sqrt", "p", integers=True),
    Case("pow.Tensor_Scalar", "p", (0.5,)),
    Case("pow.Tensor_Scalar", "n", (2,), exact=True, integers=True),
    Case("pow.Tensor_Scalar", "n", (3,), integers=True),
    Case("pow.Tensor_Scalar", "p", (-1,), exact=True),
    Case("pow.Tensor_Scalar", "p", (2.5,)),
    Case("pow.Tensor_Scalar", "n", (5,)),
    Case("pow.Tensor_Scalar", "n", (-4,)),
    Case("pow.Tensor_Scalar", "p", (-1.5,)),
    Case("maximum", "nn", exact=True, integers=True),
    Case("minimum", "nn", exact=True, integers=True),
    Case("clamp", "n", (-1, 2), exact=True, integers=True),
    Case("clamp", "n", (None, 1), exact=True, integers=True),
    Case("clamp.Tensor", "nnn", exact=True, integers=True),
    Case("addcmul", "nnn", kwargs={"value": 2}, integers=True),
    Case("addcdiv", "nnp", kwargs={"value": 0.5}),
    Case("lerp.Scalar", "nn", (0.3,)),
    Case("lerp.Tensor", "nnu"),
    Case("fused_multiply_add", "nnn", integers=True),
    Case("add_scalar", "n", (2.5,), exact=True),
    Case("mul_scalar", "n", (2.5,), exact=True),
]


def test_table_is_complete():
    family = {op.name for op in rusttorch.ops() if op.family == "pointwise"}
    assert {case.op for case in CASES} == family.intersection(functional_ops())


test_layouts = families.layouts_test(CASES)
test_integers = families.integers_test(CASES)
test_special_values = families.special_values_test(CASES)
test_derivatives = families.derivatives_test(CASES)
test_inplace_derivatives = families.inplace_derivatives_test(CASES)
test_opcheck = families.opcheck_test(CASES)
test_compile = families.compile_test(CASES)
test_vmap = families.vmap_test(CASES)
test_swapped = families.swapped_test(CASES)


EXPONENTS = (2.5, -1.5, 0.1, 1 / 3, 4, 5, -3, -4, 100, -101, 3.3, 1e-3, 1e4, 1.0001, 1e30, -1e30, 1e-30, 16777217.0)


@pytest.mark.parametrize("exponent", EXPONENTS)
def test_powers_err_little_more_than_their_rounding(exponent):
    """For numbers of all sizes, by C's rules for zeros, infinities and NaN."""
    inf, nan = float("inf"), float("nan")
    special = torch.tensor([0.0, -0.0, 1.0, -1.0, inf, -inf, nan, 1e-45, -1e-45, 1e-38, 3e38, -3e38, 2.0, -2.0, 0.5])
    g = torch.Generator().manual_seed(0)
    of_all_sizes = torch.exp2(torch.rand(20_000, generator=g) * 270 - 140)
    x = torch.cat(
        [special, torch.randn(20_000, generator=g), of_all_sizes, 1 + torch.randn(20_000, generator=g) / 1000]
    )
    rounded = float(torch.tensor(exponent, dtype=torch.float32))
    rusttorch.reset_stats()
    y, exact = rusttorch.pow(x, exponent), x.double() ** rounded
    is_ours = rusttorch.stats()["pow.Tensor_Scalar"].ran == 1  # not without AVX2
    assert torch.equal(y.isnan(), exact.isnan())
    kept = ~exact.isnan()
    y, exact = y[kept], exact[kept]
    assert torch.equal(y.signbit(), exact.signbit())
    finite = exact.float().isfinite()
    assert torch.equal(y[~finite], exact[~finite].float())
    ulp = torch.exp2(exact[finite].abs().clamp(min=2**-126).log2().floor() - 23)
    assert not is_ours or ((y[finite].double() - exact[finite]).abs() / ulp).max() < 0.51


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
def test_exponents_are_rounded_as_stock_rounds_them(dtype):
    x = torch.rand(2000, generator=torch.Generator().manual_seed(0)).to(dtype) * 10
    for exponent in (0.1, 1 / 3, 1.0001, 2.3):
        assert torch.equal(rusttorch.pow(x, exponent), x**exponent)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16, torch.float16), ids=str)
def test_powers_that_are_stock_s(dtype):
    x = torch.tensor([0.0, -0.0, 1.0, -1.0, 0.3, -2.0, float("inf"), -float("inf"), float("nan")], dtype=dtype)
    for exponent in (0, 0.0, 1, -0.5, -2, float("inf"), -float("inf"), float("nan"), 1e-300):
        torch.testing.assert_close(rusttorch.pow(x, exponent), x**exponent, rtol=0, atol=0, equal_nan=True)
