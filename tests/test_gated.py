"""swiglu and geglu: their gradients, and of one tensor that has both halves. (test_activation.py has the rest.)"""

import functools

import pytest
import rusttorch
import torch
import torch.nn.functional as F
from cases import DTYPES, EMULATED, ON_DEVICE, opcheck, same_error

OPS = torch.ops.rusttorch
GATED = {
    "swiglu": (rusttorch.swiglu, F.silu),
    "geglu": (rusttorch.geglu, F.gelu),
    "geglu, tanh": (
        functools.partial(rusttorch.geglu, approximate="tanh"),
        functools.partial(F.gelu, approximate="tanh"),
    ),
}


def draw(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * 2).to(dtype)


# How a gate and an up lie: of packed(...), which has both in its last dim.
LAYOUTS = {
    "two tensors": lambda packed: [t.contiguous() for t in packed((3, 5, 134)).chunk(2, -1)],
    "halves": lambda packed: packed((3, 5, 134)).chunk(2, -1),
    "halves of many": lambda packed: packed((700, 130)).chunk(2, -1),
    "misaligned": lambda packed: packed((3, 5, 136))[..., 1:-1].chunk(2, -1),
    "transposed": lambda packed: [packed((33, 35)).t(), packed((33, 35)).t()],
    "one row": lambda packed: packed((70_002,)).chunk(2, -1),
    "one expanded": lambda packed: (packed((1, 67)).expand(5, 67), packed((5, 67))),
    "rows apart, not all equally": lambda packed: packed((3, 6, 134))[:, :5].chunk(2, -1),
    "columns apart": lambda packed: packed((5, 140))[:, ::2].chunk(2, -1),
}
KERNEL_S = ("two tensors", "halves", "halves of many", "misaligned", "one row", "one expanded")
DEVICE_S = ("two tensors", "one row")


def both(f, gate, up, grad):
    gate, up = (t.detach().requires_grad_() for t in (gate, up))
    y = f(gate, up)
    return [y.detach(), *torch.autograd.grad(y, (gate, up), grad)]


def assert_as_right(exact, stock, ours, dtype):
    for e, s, o in zip(exact, stock, ours, strict=True):
        assert o.dtype == s.dtype == dtype
        assert o.shape == s.shape
        error = lambda t, e=e: ((t.double() - e).abs() / e.abs().clamp_min(1)).max()  # noqa: E731
        assert error(o) <= 2 * error(s) + torch.finfo(dtype).eps * (200 if dtype == torch.float64 else 1)


def ran(name):
    return rusttorch.stats().get(name, (0,))[0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", GATED)
def test_accuracy(name, layout, dtype):
    ours, activation = GATED[name]
    op = name.partition(",")[0]

    def stock(gate, up):
        return activation(gate) * up

    gate, up = LAYOUTS[layout](lambda s: draw(*s, dtype=dtype))
    grad = draw(*gate.shape, dtype=dtype, seed=1)
    exact = both(stock, gate.double(), up.double(), grad.double())
    before = ran(op), ran(f"{op}_backward")
    found = both(ours, gate, up, grad)
    if layout in (DEVICE_S if ON_DEVICE or EMULATED else KERNEL_S):
        assert (ran(op), ran(f"{op}_backward")) == (before[0] + 1, before[1] + 1), "handed to stock"
    assert_as_right(exact, both(stock, gate, up, grad), found, dtype)
    assert found[0].stride() == stock(gate, up).stride()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", ((3, 5, 134), (700, 130), (70_002,), (5, 2), (4, 0), (0, 6)), ids=str)
@pytest.mark.parametrize("name", GATED)
def test_packed_is_of_its_halves(name, shape, dtype):
    f, _ = GATED[name]
    packed = draw(*shape, dtype=dtype).requires_grad_()
    y = f(packed)
    grad = draw(*y.shape, dtype=dtype, seed=1)
    gate, up = (t.detach().requires_grad_() for t in packed.chunk(2, -1))
    wanted = f(gate, up)
    (by_packed,) = torch.autograd.grad(y, packed, grad)
    assert by_packed.is_contiguous()
    of_halves = torch.cat(torch.autograd.grad(wanted, (gate, up), grad), -1)
    if ON_DEVICE or EMULATED:  # where rows lie apart, aten's ops run
        torch.testing.assert_close(y, wanted)
        torch.testing.assert_close(
            by_packed, of_halves, rtol=8 * torch.finfo(dtype).eps, atol=min(1000 * torch.finfo(dtype).eps, 0.05)
        )
    else:
        assert torch.equal(y, wanted) and torch.equal(by_packed, of_halves)


@pytest.mark.skipif(ON_DEVICE or EMULATED, reason="a device has no kernel for rows that lie apart")
def test_packed_gradients_are_written_in_one_pass():
    packed = draw(6, 40).requires_grad_()
    rusttorch.reset_stats()
    rusttorch.swiglu(packed).sum().backward()  # of which the gradient is one number, expanded
    assert {name: s.ran for name, s in rusttorch.stats().items() if "glu" in name} == {
        "swiglu": 1,
        "swiglu_backward.packed": 1,
    }
    columns = draw(40, 6).t().requires_grad_()
    grad = torch.autograd.grad(rusttorch.swiglu(columns).sum(), columns)[0]
    assert rusttorch.stats()["swiglu_backward.packed"].handed == {"layout": 1}
    torch.testing.assert_close(
        grad, torch.autograd.grad(rusttorch.swiglu(columns.contiguous()).sum(), columns)[0], rtol=1e-12, atol=1e-12
    )
    rusttorch.swiglu(draw(6, 30).requires_grad_()).sum().backward()
    assert rusttorch.stats()["swiglu_backward.packed"].handed == {"layout": 1, "size": 1}


@pytest.mark.parametrize("name", GATED)
def test_derivatives(name):
    f, _ = GATED[name]
    gate, up = draw(3, 4).requires_grad_(), draw(3, 4, seed=1).requires_grad_()
    for leaves in ((gate, up), (gate,)):
        assert torch.autograd.gradcheck(f, leaves)
        assert torch.autograd.gradgradcheck(f, leaves)
    # Where a second gradient comes to one of the two only.
    for k in (0, 1):
        g = torch.autograd.grad(f(gate, up), (gate, up), torch.ones(3, 4, dtype=torch.float64), create_graph=True)[k]
        found = torch.autograd.grad(g.square().sum(), (gate, up), materialize_grads=True)
        g = torch.autograd.grad(GATED[name][1](gate) * up, (gate, up), torch.ones_like(gate), create_graph=True)[k]
        torch.testing.assert_close(found, torch.autograd.grad(g.square().sum(), (gate, up), materialize_grads=True))


def test_shapes_that_broadcast_and_dtypes_that_promote_are_stocks():
    gate, up = draw(3, 1, 4), draw(5, 1, dtype=torch.float32)
    torch.testing.assert_close(rusttorch.swiglu(gate, up), F.silu(gate) * up)
    leaves = [gate.requires_grad_(), up.requires_grad_()]
    ours = torch.autograd.grad(rusttorch.swiglu(*leaves).sum(), leaves)
    torch.testing.assert_close(ours, torch.autograd.grad((F.silu(gate) * up).sum(), leaves))


def test_bad_input():
    a, b = torch.ones(3), torch.ones(4)
    same_error(lambda: rusttorch.swiglu(a, b), lambda: F.silu(a) * b)
    same_error(lambda: rusttorch.swiglu(a), lambda: F.glu(a))
    same_error(lambda: rusttorch.geglu(b, b, approximate="some"), lambda: F.gelu(b, approximate="some"))
    same_error(lambda: rusttorch.swiglu(b.long(), b.long()), lambda: F.silu(b.long()))


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_threads_give_the_same_bits(dtype):
    packed = draw(300, 700, dtype=dtype).requires_grad_()
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        y = rusttorch.geglu(packed)
        results.append([y, *torch.autograd.grad(y, packed, y.detach())])
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("name", ("swiglu", "geglu"))
def test_opcheck(name):
    op, backward = getattr(OPS, name), getattr(OPS, f"{name}_backward")
    g, x, y = (draw(4, 6, dtype=torch.float32, seed=k).requires_grad_() for k in range(3))
    packed = draw(4, 12, dtype=torch.float32).requires_grad_()
    opcheck(op.default, packed.detach().chunk(2, -1))
    opcheck(op.packed, (packed,))
    opcheck(backward.default, (g, x, y))
    opcheck(backward.packed, (g, packed))
    opcheck(backward.packed, (g, packed.detach().t().contiguous().t()))


def test_compile_and_vmap():
    x, y = draw(4, 6, dtype=torch.float32).requires_grad_(), draw(4, 3, dtype=torch.float32).requires_grad_()

    def f(x, y):
        return rusttorch.swiglu(x) * rusttorch.geglu(y, y + 1, approximate="tanh")

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, y), f(x, y))
    ours, wanted = (torch.autograd.grad(each(x, y).sum(), (x, y)) for each in (compiled, f))
    torch.testing.assert_close(ours, wanted)
    torch.testing.assert_close(torch.vmap(f)(x, y), f(x, y))
    torch.testing.assert_close(torch.vmap(rusttorch.swiglu, in_dims=1, out_dims=1)(x), rusttorch.swiglu(x.t()).t())
    for ours, stock in ((rusttorch.swiglu, F.silu), (rusttorch.geglu, F.gelu)):  # batches of gradients, of one input
        wanted = torch.func.jacrev(lambda x, stock=stock: stock(x[:, :3]) * x[:, 3:])(x)
        torch.testing.assert_close(torch.func.jacrev(ours)(x), wanted)


@pytest.mark.parametrize("name", ("swiglu", "geglu"))
def test_gradients_of_two_devices(name):
    """A gradient without memory (of meta) is no reason to return memory that nobody wrote."""
    backward = getattr(torch.ops.rusttorch, f"{name}_backward").packed
    with pytest.raises(RuntimeError, match="on the same device"):
        backward(torch.ones(3, 33, device="meta"), torch.ones(3, 66))
