"""Dropout: which elements are kept, what becomes of them, the generator's state, gradients."""

import pytest
import rusttorch
import torch
import torch.nn.functional as F
from cases import INTEL, opcheck

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def kept(shape, p, seed):
    """Which elements are, by numbers of 53 bits from torch's generator."""
    torch.manual_seed(seed)
    return torch.empty(shape, dtype=torch.float64).uniform_() < 1 - p


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("n", (1, 7, 311, 312, 313, 1000, 1024, 1025, 40_001))
@pytest.mark.parametrize("p", (0.1, 0.5, 0.9, 1e-9, 1 - 1e-9))
def test_mask_and_values(dtype, n, p):
    x = torch.randn(n, dtype=torch.float64).to(dtype)
    mask = kept(n, p, 3)
    torch.manual_seed(3)
    out, ours = rusttorch.native_dropout(x, p, True)
    assert torch.equal(ours, mask)
    exact = torch.where(mask, x.double() / (1 - p), 0)
    assert torch.equal(out, exact.to(dtype)) or (out - exact).abs().max() <= torch.finfo(dtype).eps * exact.abs().max()


@pytest.mark.parametrize("before", (0, 1, 2, 623, 624, 625))
def test_the_generator_goes_on_as_stock_has_it(before):
    """After any number of 32-bit draws, an odd one too, which leaves half a pair at the end of a state."""
    x = torch.ones(1000)
    states = []
    for draw in (lambda: torch.empty(1000, dtype=torch.float64).uniform_(), lambda: rusttorch.dropout(x, 0.5, True)):
        torch.manual_seed(5)
        torch.empty(before).uniform_()
        draw()
        states.append((torch.get_rng_state(), torch.rand(10)))
    assert torch.equal(states[0][0], states[1][0])
    assert torch.equal(states[0][1], states[1][1])


@pytest.mark.skipif(INTEL, reason="stock's bernoulli_ is MKL's there, with other numbers")
@pytest.mark.parametrize("shape", ((64, 65), (3, 5, 7)))
@pytest.mark.parametrize("layout", (lambda t: t, lambda t: t.transpose(0, 1), lambda t: t[:, ::2], lambda t: t[:0]))
@pytest.mark.parametrize("p", (0, 0.3, 1))
def test_as_stock(shape, layout, p):
    results = []
    for swapped in (False, True):
        torch.manual_seed(1)
        x = torch.randn(shape).requires_grad_()
        with rusttorch.use("dropout") if swapped else torch.enable_grad():
            y = F.dropout(layout(x), p)
            (y * torch.arange(y.numel()).view(y.shape)).sum().backward()
        results.append((y.detach(), x.grad, torch.get_rng_state()))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=3e-7, atol=0)
    torch.testing.assert_close(results[1][1], results[0][1], rtol=3e-7, atol=0)
    assert torch.equal(results[0][2], results[1][2])
    assert results[0][0].stride() == results[1][0].stride()


def test_values_that_are_not_finite():
    x = torch.tensor([float("inf"), -float("inf"), float("nan"), -1.0, -0.0] * 50)
    torch.manual_seed(0)
    y, mask = rusttorch.native_dropout(x, 0.5, True)
    torch.testing.assert_close(y, x * mask * 2, equal_nan=True, rtol=0, atol=0)
    assert torch.equal(y.signbit() | y.isnan(), (x * mask * 2).signbit() | y.isnan())


def test_options():
    x = torch.randn(100)
    assert rusttorch.dropout(x, 0.5, False) is x or torch.equal(rusttorch.dropout(x, 0.5, False), x)
    assert not rusttorch.dropout(x, 1.0, True).any()
    for train in (None, True, False):
        for p in (0.0, 0.5, 1.0):
            results = []
            for op in (torch.native_dropout, rusttorch.native_dropout):
                torch.manual_seed(0)
                leaf = x.clone().requires_grad_()
                y, mask = op(leaf, p, train)
                y.sum().backward()
                results.append((y.detach(), mask, leaf.grad))
            if not INTEL:
                for stock, ours in zip(*results, strict=True):
                    torch.testing.assert_close(ours, stock)
    for bad in (-0.1, 1.1):
        errors = []
        for op in (torch.dropout, torch.ops.rusttorch.dropout):
            with pytest.raises(RuntimeError) as error:
                op(x, bad, True)
            errors.append(str(error.value).split("\n")[0])
        assert errors[0] == errors[1]


def test_derivatives():
    x = torch.randn(20, dtype=torch.float64, requires_grad=True)

    def f(x):
        torch.manual_seed(0)
        return rusttorch.dropout(x, 0.4, True)

    torch.autograd.gradcheck(f, x)
    torch.autograd.gradgradcheck(f, x)
    mask = torch.rand(20) < 0.5
    torch.autograd.gradcheck(lambda g: rusttorch.native_dropout_backward(g, mask, 2.0), x)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_backward(dtype):
    g, mask = torch.randn(70_001, dtype=torch.float64).to(dtype), torch.rand(70_001) < 0.7
    ours = rusttorch.native_dropout_backward(g, mask, 1.25)
    torch.testing.assert_close(ours, torch.ops.aten.native_dropout_backward(g, mask, 1.25))


def test_opcheck():
    x, mask = torch.randn(50, requires_grad=True), torch.rand(50) < 0.5
    ops = torch.ops.rusttorch
    utils = (
        "test_schema",
        "test_autograd_registration",
        "test_faketensor",
    )  # the last one wants the same numbers twice
    opcheck(ops.native_dropout, (x, 0.5, True), test_utils=utils)
    opcheck(ops.native_dropout_backward, (x, mask, 2.0))


def test_compiled_draws_differ():
    """Torch's compiler merges equal calls of a graph that is differentiated, but not random ones."""
    x = torch.randn(1, 2, 8, 16, requires_grad=True)
    for draw in (
        lambda: rusttorch.dropout(x, 0.5, True),
        lambda: torch.ops.rusttorch.native_dropout(x, 0.5, True)[0],
        lambda: torch.ops.rusttorch.attention_forward(x, x, x, None, 0.5)[0],
        lambda: F.scaled_dot_product_attention(x, x, x, dropout_p=0.5),
    ):
        torch._dynamo.reset()
        with rusttorch.use():
            one, other = torch.compile(lambda draw=draw: (draw(), draw()), fullgraph=True, backend="aot_eager")()
        assert not torch.equal(one, other)


def test_compile():
    def f(x):
        return F.dropout(x, 0.5) * 2

    x = torch.randn(100, requires_grad=True)
    with rusttorch.use("dropout"):
        compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
        torch.manual_seed(0)
        wanted = f(x)
        torch.manual_seed(0)
        torch.testing.assert_close(compiled(x), wanted)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_vmap_and_jvp_are_stocks():
    x = torch.randn(5, 40)
    with rusttorch.use("dropout"):
        y = torch.func.vmap(lambda x: F.dropout(x, 0.5), randomness="different")(x)
        assert ((y == 0) | (y == 2 * x)).all()
        assert 0 < (y == 0).sum() < 200
        with pytest.raises(RuntimeError, match="randomness"):
            torch.func.vmap(lambda x: F.dropout(x, 0.5))(x)
        _, tangent = torch.func.jvp(lambda x: F.dropout(x, 0.5), (x,), (torch.ones_like(x),))
        assert ((tangent == 0) | (tangent == 2)).all()


def test_swapped():
    rusttorch.reset_stats()
    with rusttorch.use():
        model = torch.nn.Dropout(0.5)
        y = model(torch.ones(1000))
        model.eval()
        assert model(y) is y
    assert rusttorch.stats()["dropout"].ran == 1
    assert rusttorch.stats()["dropout"].handed == {"option": 1}
    assert rusttorch.stats()["native_dropout"].ran == 1
