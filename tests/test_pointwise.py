import families
import rusttorch
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
    Case("pow.Tensor_Scalar", "p", (2.5,), exact=True),
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
