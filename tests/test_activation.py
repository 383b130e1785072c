import math

import families
import pytest
import rusttorch
import torch
from cases import Case, functional_ops

CASES = [
    Case("relu", exact=True, integers=True),
    Case("leaky_relu", args=(0.1,), exact=True),
    Case("leaky_relu_backward", "nn", (0.1, False), exact=True),
    Case("sigmoid", "w"),
    Case("sigmoid_backward", "nu"),
    Case("tanh"),
    Case("tanh_backward", "nu"),
    Case("gelu"),
    Case("gelu", kwargs={"approximate": "tanh"}),
    Case("gelu_backward", "nn"),
    Case("gelu_backward", "nn", kwargs={"approximate": "tanh"}),
    Case("elu"),
    Case("elu", args=(0.7, 1.3, 0.9)),
    Case("elu_backward", "nn", (1.2, 1.1, 0.9, False), positions=(0, 5)),
    Case("elu_backward", "nn", (1.2, 1.1, 0.9, True), positions=(0, 5)),
    Case("selu"),
    Case("celu", args=(0.8,)),
    Case("silu", "w"),
    Case("silu_backward", "nn"),
    Case("mish", "w"),
    Case("mish_backward", "nn"),
    Case("softplus", "w"),
    Case("softplus", "w", (2, 5)),
    Case("softplus_backward", "nn", (1, 20)),
    Case("softplus_backward", "nw", (2, 5)),
    Case("softsign"),
    Case("squareplus"),
    Case("squareplus", args=(0.5,)),
    Case("swiglu", "nn"),
    Case("geglu", "nn"),
    Case("geglu", "nn", kwargs={"approximate": "tanh"}),
    Case("hardswish"),
    Case("hardswish_backward", "nn"),
    Case("hardsigmoid"),
    Case("hardsigmoid_backward", "nn"),
    Case("log_sigmoid", "w"),
    Case("log_sigmoid_forward", "w"),
    Case("log_sigmoid_backward", "nnu"),
]
# log_sigmoid_backward's third tensor is made from its second: derivatives are those of the consistent pair, so it
# has a test of its own below.
DIFFERENTIABLE = [case for case in CASES if case.op != "log_sigmoid_backward"]


def test_table_is_complete():
    family = {op.name for op in rusttorch.ops() if op.family == "activation"}
    # Of packed halves, and with two gradients: tests/test_gated.py
    gated = {f"{op}glu{form}" for op in ("swi", "ge") for form in (".packed", "_backward", "_backward.packed")}
    assert {case.op for case in CASES} | gated == family.intersection(functional_ops())


test_layouts = families.layouts_test(CASES)
test_integers = families.integers_test(CASES)
test_special_values = families.special_values_test(CASES)
test_derivatives = families.derivatives_test(DIFFERENTIABLE)
test_inplace_derivatives = families.inplace_derivatives_test(CASES)
test_opcheck = families.opcheck_test(CASES)
test_compile = families.compile_test(CASES)
# Since torch 2.15 a warning of stock's, where it resizes, comes through torch.ops.
test_vmap = pytest.mark.filterwarnings("ignore:An output with one or more elements was resized")(
    families.vmap_test(CASES)
)
test_swapped = families.swapped_test(DIFFERENTIABLE)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_at_infinity_is_its_limit(approximate):
    x = torch.tensor([math.inf, 1e10, -1e10])
    y = rusttorch.gelu(x, approximate=approximate)
    assert y.tolist()[:2] == [math.inf, x[1].item()]
    assert abs(y[2].item()) < 1e-30
    slope = rusttorch.gelu_backward(torch.ones(3), x, approximate=approximate)
    assert slope[1:].tolist() == pytest.approx([1, 0])


def test_log_sigmoid_backward():
    x = torch.randn(20, dtype=torch.float64, requires_grad=True)
    g = torch.randn(20, dtype=torch.float64, requires_grad=True)
    for buffer in (torch.empty(0, dtype=torch.float64), lambda x: (-x.abs()).exp().detach()):
        f = lambda g, x: rusttorch.log_sigmoid_backward(g, x, buffer(x) if callable(buffer) else buffer)  # noqa: B023, E731
        assert torch.autograd.gradcheck(f, (g, x))
        assert torch.autograd.gradgradcheck(f, (g, x))


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("offset", (0, 1))
def test_log_sigmoid_backward_without_a_buffer(dtype, offset):
    """As a device has it; from an address that is a vector's, and from one that is not."""
    x, g = (torch.randn(101, dtype=torch.float64).to(dtype)[offset:] for _ in range(2))
    exact = g.double() * torch.sigmoid(-x.double())
    ours = rusttorch.log_sigmoid_backward(g, x, torch.empty(0, dtype=dtype))
    ulps = 4 if dtype == torch.float64 else 2  # the reference's own are among them
    torch.testing.assert_close(ours.double(), exact, rtol=ulps * torch.finfo(dtype).eps, atol=torch.finfo(dtype).tiny)


@pytest.mark.parametrize("name", ["gelu_backward", "mish_backward"])
def test_slopes_far_from_zero(name):
    """Found by tools/several.py: a product that overflowed, and an approximation that did not end."""
    x = torch.tensor([20.0, 1e9, 1e19, 3e38])
    backward = getattr(torch.ops.rusttorch, name)
    assert torch.equal(backward(torch.ones(4), x), torch.ones(4))
    assert backward(torch.ones(3), -x[1:]).abs().max() == 0


@pytest.mark.parametrize(
    ("dtype", "large"), [(torch.float32, 3e38), (torch.float64, 1e308), (torch.float16, 6e4)], ids=str
)
def test_squareplus_far_from_zero(dtype, large):
    """Where x^2 overflows; strided too, which is stock's to do."""
    x = torch.tensor([1.0, 1e3, 1e4, large**0.5, large / 10, large], dtype=torch.float64).to(dtype)
    for y in (x, torch.stack([x, x], 1)[:, 0]):
        assert torch.equal(rusttorch.squareplus(y, b=0), y)
        torch.testing.assert_close(rusttorch.squareplus(y[1:]), y[1:], rtol=1e-5, atol=0)
        ours = rusttorch.squareplus(-y).double()
        torch.testing.assert_close(ours, 1 / x.double(), rtol=0.5, atol=torch.finfo(dtype).smallest_normal)
    leaf = x[1:].clone().requires_grad_()
    rusttorch.squareplus(leaf).sum().backward()
    torch.testing.assert_close(leaf.grad, torch.ones_like(leaf), rtol=1e-4, atol=0)


def test_celu_of_alpha_0_is_refused_as_by_stock():
    """Found by a reader: the swapped op asked itself for stock's error."""
    x = torch.ones(3)
    for f in (lambda: torch.celu(x, 0), lambda: torch.celu_(x.clone(), 0), lambda: rusttorch.celu(x, 0)):
        with rusttorch.use(), pytest.raises(RuntimeError, match="alpha cannot be 0 for CELU"):
            f()


@pytest.mark.parametrize("alpha", [math.inf, -math.inf, math.nan])
def test_elu_of_0_is_0(alpha):
    x = torch.tensor([0.0, 1.0, -1.0])
    expected = torch.nn.functional.elu(x, alpha)
    with rusttorch.use():
        torch.testing.assert_close(torch.nn.functional.elu(x, alpha), expected, equal_nan=True)
