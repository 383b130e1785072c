"""Linear layers with what follows them: against float64 and stock, over dtypes, sizes, layouts, and derivatives."""

import itertools
import math

import pytest
import rusttorch
import torch
import torch.nn.functional as F
from cases import CPU_FLAGS, DTYPES, opcheck, same_error
from torch.autograd import gradcheck, gradgradcheck

OPS = torch.ops.rusttorch
ACTIVATIONS = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
}
# input's, and how many outputs: around the sizes of a tile and of a vector; one row and many; more dims
SIZES = [((1, 70), 40), ((3, 17), 33), ((7, 300), 100), ((50, 64), 17), ((130, 900), 70), ((70,), 40), ((2, 5, 32), 24)]


def normal(*sizes, seed=0, dtype=torch.float64):
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    return torch.randn(*sizes, generator=generator, dtype=torch.float64).to(dtype)


def layer(sizes, outputs, dtype):
    n = sizes[-1]
    weights = [normal(outputs, n, seed=k, dtype=torch.float64).div_(math.sqrt(n)).to(dtype) for k in (1, 2)]
    return normal(*sizes, dtype=dtype), *weights, normal(outputs, seed=3, dtype=dtype)


def as_right(ours, stock, exact):
    """At most twice as wrong as stock anywhere, or by a rounding of the result and some of the sums."""
    eps = torch.finfo(ours.dtype).eps
    computed = torch.finfo(torch.float32).eps if ours.dtype.itemsize == 2 else eps
    assert ours.shape == stock.shape and ours.dtype == stock.dtype and ours.stride() == stock.stride()
    error, theirs = (ours.double() - exact).abs(), (stock.double() - exact).abs().max()
    roundings = 32 if ours.dtype == torch.float64 else 8  # of a reference that is no more precise
    allowed = eps * exact.abs() + roundings * computed * exact.abs().max()
    assert (error <= torch.maximum(allowed, 2 * theirs)).all(), (error.max(), theirs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_linear_act(dtype, activation):
    f = ACTIVATIONS[activation]
    for (sizes, outputs), turned in itertools.product(SIZES, (False, True)):
        x, w, _, b = layer(sizes, outputs, dtype)
        w = w.t().contiguous().t() if turned else w
        for bias in (b, None):
            exact = f(F.linear(x.double(), w.double(), None if bias is None else bias.double()))
            as_right(rusttorch.linear_act(x, w, bias, activation), f(F.linear(x, w, bias)), exact)
            output, sums = OPS.linear_act_forward(x, w, bias, activation, True)
            assert torch.equal(output, rusttorch.linear_act(x, w, bias, activation))
            torch.testing.assert_close(sums, F.linear(x, w, bias), rtol=4 * torch.finfo(dtype).eps, atol=1e-2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_linear_glu(dtype, activation):
    f = ACTIVATIONS[activation]
    for sizes, outputs in SIZES:
        x, gate, up, _ = layer(sizes, outputs, dtype)
        stock = f(F.linear(x, gate)) * F.linear(x, up)
        exact = f(F.linear(x.double(), gate.double())) * F.linear(x.double(), up.double())
        as_right(rusttorch.linear_glu(x, gate, up, activation), stock, exact)
        output, *products = OPS.linear_glu_forward(x, gate, up, activation, True)
        assert torch.equal(output, rusttorch.linear_glu(x, gate, up, activation))
        for product, w in zip(products, (gate, up), strict=True):
            torch.testing.assert_close(product, F.linear(x, w), rtol=4 * torch.finfo(dtype).eps, atol=1e-2)


@pytest.mark.parametrize("activation", ("sigmoid", "tanh", "elu", "selu", "celu", "mish", "softplus", "softsign"))
def test_other_activations(activation):
    """Two ops."""
    x, gate, up, b = (t.requires_grad_() for t in layer((3, 16), 12, torch.float64))
    f = getattr(F, activation, None) or getattr(torch, activation)
    torch.testing.assert_close(rusttorch.linear_act(x, gate, b, activation), f(F.linear(x, gate, b)))
    torch.testing.assert_close(rusttorch.linear_glu(x, gate, up, activation), f(F.linear(x, gate)) * F.linear(x, up))
    assert gradcheck(lambda *t: rusttorch.linear_act(*t, activation), (x, gate, b))
    with pytest.raises(RuntimeError, match="linear_act takes all"):
        OPS.linear_act_forward(x, gate, b, activation, True)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.func.jvp's own
def test_what_linear_takes_beyond_the_kernels():
    """Weights of one dim, biases of others, nothing, sparse tensors, dual numbers: aten's ops and derivatives."""
    w, b = normal(5, 4), normal(5)
    for x, weight, bias in (
        *[(normal(3, 4), w[0], None), (normal(3, 4), w, normal(3, 1)), (normal(3, 4), w, normal(1))],
        *[(normal(3, 4), w[:0], None), (normal(3, 4)[:, :0], w[:, :0], b), (normal(0, 4), w, b)],
        (normal(2, 3, 0), w[:, :0], b),
    ):
        grads = []
        for f in (lambda *t: rusttorch.linear_act(*t, "silu"), lambda *t: F.silu(F.linear(*t))):
            leaves = [t if t is None else t.clone().requires_grad_() for t in (x, weight, bias)]
            y = f(*leaves)
            grads.append([y, *torch.autograd.grad(y.sum(), [t for t in leaves if t is not None])])
        torch.testing.assert_close(*grads)
    x = normal(3, 4)
    torch.testing.assert_close(rusttorch.linear_act(x, w.to_sparse(), None, "relu"), F.relu(F.linear(x, w)))
    ours = torch.func.jvp(lambda x: rusttorch.linear_glu(x, w, w), (x,), (x,))
    torch.testing.assert_close(ours, torch.func.jvp(lambda x: F.silu(F.linear(x, w)) * F.linear(x, w), (x,), (x,)))


def test_a_linear_kernel_runs():
    """Of what it takes; else aten's ops do."""
    x, gate, up, b = layer((3, 40), 30, torch.float16)
    rusttorch.reset_stats()
    rusttorch.linear_act(x, gate, b, "gelu")
    rusttorch.linear_glu(x, gate, up)
    stats = rusttorch.stats()
    own = "avx512_fp16" in CPU_FLAGS  # then stock is faster
    assert own or (stats["linear_act_forward"].ran, stats["linear_glu_forward"].ran) == (1, 1), stats


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_special_values(dtype):
    """As the activations by themselves have them."""
    x = torch.tensor([[0.0, math.inf, -math.inf, math.nan, -20.0, 20.0, -0.0]], dtype=dtype).t()
    w = torch.ones(20, 1, dtype=dtype)
    for activation, f in (
        *[("relu", rusttorch.relu), ("silu", rusttorch.silu), ("gelu", rusttorch.gelu)],
        ("gelu_tanh", lambda x: rusttorch.gelu(x, approximate="tanh")),
    ):
        alone = f(x).expand(-1, 20)
        torch.testing.assert_close(rusttorch.linear_act(x, w, None, activation), alone, rtol=0, atol=0, equal_nan=True)
        glu = rusttorch.linear_glu(x, w, w, activation)
        torch.testing.assert_close(glu, f(x) * x.expand(-1, 20), rtol=1e-2, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_derivatives(activation):
    leaves = [t.requires_grad_() for t in layer((2, 3, 4), 5, torch.float64)]
    x, gate, up, b = leaves
    assert gradcheck(lambda *t: rusttorch.linear_act(*t, activation), (x, gate, b))
    assert gradcheck(lambda *t: rusttorch.linear_act(*t, None, activation), (x, gate))
    assert gradcheck(lambda *t: rusttorch.linear_glu(*t, activation), (x, gate, up))
    if activation != "relu":
        assert gradgradcheck(lambda *t: rusttorch.linear_act(*t, activation), (x, gate, b))
        assert gradgradcheck(lambda *t: rusttorch.linear_glu(*t, activation), (x, gate, up))
    for k in range(3):
        fixed = [t.detach().requires_grad_(i == k) for i, t in enumerate((x, gate, up))]
        assert gradcheck(lambda *t: rusttorch.linear_glu(*t, activation), fixed)
        fixed = [t.detach().requires_grad_(i == k) for i, t in enumerate((x, gate, b))]
        assert gradcheck(lambda *t: rusttorch.linear_act(*t, activation), fixed)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_training_is_as_stocks(dtype):
    x, gate, up, b = layer((33, 70), 40, dtype)
    grads = []
    for ours in (False, True):
        leaves = [t.clone().requires_grad_() for t in (x, gate, up, b)]
        if ours:
            y = rusttorch.linear_act(leaves[0], leaves[1], leaves[3], "gelu")
            y = y + rusttorch.linear_glu(leaves[0], leaves[1], leaves[2])
        else:
            product = F.linear(leaves[0], leaves[1])
            y = F.gelu(F.linear(leaves[0], leaves[1], leaves[3])) + F.silu(product) * F.linear(leaves[0], leaves[2])
        y.square().sum().backward()
        grads.append([t.grad for t in leaves])
    for ours, stock in zip(*reversed(grads), strict=True):
        torch.testing.assert_close(ours, stock, rtol=20 * torch.finfo(dtype).eps, atol=400 * torch.finfo(dtype).eps)


def test_what_is_kept():
    """Of a layer without gradients nothing is made for them; one whose weights are frozen keeps no input."""
    x, gate, _, b = layer((8, 16), 12, torch.float32)
    kept = []

    def keep(t):
        kept.append(tuple(t.shape))
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        rusttorch.linear_act(x, gate, b, "gelu")
        assert not kept
        rusttorch.linear_act(x.requires_grad_(), gate, b, "gelu")
    assert sorted(kept) == [(8, 12), (12, 16)]
    kept.clear()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        rusttorch.linear_glu(x, gate, gate)
    assert sorted(kept) == [(8, 12), (8, 12), (12, 16), (12, 16)]
    with pytest.raises(RuntimeError, match="a gradient needs differentiate"):
        OPS.linear_act_forward(x, gate, b, "gelu", False)[0].sum().backward()


def test_bad_input():
    x, w = torch.randn(3, 4), torch.randn(5, 4)
    for bad, stock in (
        (lambda: rusttorch.linear_act(x, w.t(), None, "relu"), lambda: F.linear(x, w.t())),
        (lambda: rusttorch.linear_act(x, w, torch.ones(4), "relu"), lambda: F.linear(x, w, torch.ones(4))),
        (lambda: rusttorch.linear_act(x, w.double(), None, "relu"), lambda: F.linear(x, w.double())),
        (lambda: rusttorch.linear_glu(x, w.t(), w.t()), lambda: F.linear(x, w.t())),
    ):
        same_error(bad, stock)
    with pytest.raises(ValueError, match="unknown activation 'swoosh': one of relu, gelu"):
        rusttorch.linear_act(x, w, None, "swoosh")
    with pytest.raises(RuntimeError, match="of one shape"):
        rusttorch.linear_glu(x, w, w[:2])


CALLS = {
    "linear_act_forward": lambda x, gate, up, b: (x, gate, b, "gelu", True),
    "linear_glu_forward": lambda x, gate, up, b: (x, gate, up, "silu", True),
}


@pytest.mark.parametrize("name", CALLS)
def test_opcheck(name):
    for sizes in ((3, 16), (2, 3, 16)):
        opcheck(getattr(OPS, name).default, CALLS[name](*(t.requires_grad_() for t in layer(sizes, 12, torch.float32))))


def test_compile():
    x, gate, up, b = (t.requires_grad_() for t in layer((6, 8), 5, torch.float32))

    def f(x, gate, up, b):
        return rusttorch.linear_act(x, gate, b, "silu") + rusttorch.linear_glu(x, gate, up)

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, gate, up, b), f(x, gate, up, b))
    grads = [torch.autograd.grad(g(x, gate, up, b).sum(), (x, gate, up, b)) for g in (compiled, f)]
    torch.testing.assert_close(*grads)


def test_vmap():
    x, gate, up, b = layer((4, 6, 8), 5, torch.float64)
    for f in (lambda x: rusttorch.linear_act(x, gate, b, "gelu"), lambda x: rusttorch.linear_glu(x, gate, up)):
        torch.testing.assert_close(torch.func.vmap(f)(x), f(x))
        grads = torch.func.vmap(torch.func.grad(lambda x, f=f: f(x).sum()))(x)
        wanted = torch.autograd.grad(f(x.requires_grad_()).sum(), x)[0]
        torch.testing.assert_close(grads, wanted)
        x = x.detach()


def test_autocast():
    x, gate, up, b = layer((9, 16), 12, torch.float32)
    with torch.autocast(x.device.type, dtype=torch.bfloat16):
        assert rusttorch.linear_act(x, gate, b, "gelu").dtype == torch.bfloat16
        assert rusttorch.linear_glu(x, gate, up).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_number_of_threads_gives_the_same(dtype):
    before = torch.get_num_threads()
    for sizes, outputs in (((200, 300), 500), ((2, 5000), 65), ((1, 20000), 193)):
        x, gate, up, b = layer(sizes, outputs, dtype)
        results = []
        rusttorch.reset_stats()
        try:
            for threads in (1, 2, 3, 7):
                torch.set_num_threads(threads)
                results.append((*OPS.linear_act_forward(x, gate, b, "gelu", True), rusttorch.linear_glu(x, gate, up)))
        finally:
            torch.set_num_threads(before)
        if rusttorch.stats()["linear_act_forward"].ran:
            assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True)), (
                sizes
            )
