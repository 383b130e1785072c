"""add_rms_norm, add_layer_norm and rms_norm with an offset: against float64 and stock. (aten's: test_norm.py.)"""

import pytest
import rusttorch
import torch
import torch.nn.functional as F
from cases import DTYPES, EMULATED, ON_DEVICE, opcheck, same_error
from torch.autograd import gradcheck, gradgradcheck

OPS = torch.ops.rusttorch
MADE_OF_OPS = ON_DEVICE or EMULATED  # there are no kernels for a device
SHAPES = [((5, 2), 1), ((4, 7), 1), ((3, 5, 64), 1), ((2, 3, 4, 17), 2), ((70, 1000), 1), ((2, 40_000), 1)]


def draw(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def rms_norm(x, normalized, weight, offset=0, eps=1e-5):
    """As Gemma has it: of 16 bits in float32."""
    wide = torch.promote_types(x.dtype, torch.float32)
    weight = None if weight is None else weight.to(wide) + offset
    return F.rms_norm(x.to(wide), normalized, weight, eps).to(x.dtype)


def stock_add_rms(x, r, normalized, weight, bias, offset=0):
    total = x + r
    return rms_norm(total, normalized, weight, offset), total


def stock_add_layer(x, r, normalized, weight, bias):
    total = x + r
    return F.layer_norm(total, normalized, weight, bias), total


def our_add_rms(x, r, normalized, weight, bias, offset=0):
    return rusttorch.add_rms_norm(x, r, normalized, weight, 1e-5, offset=offset)


# Norm and sum of x and r; without a residual, the norm of x and x.
NORMS = {
    "add_rms_norm": (stock_add_rms, our_add_rms),
    "add_rms_norm, offset": (
        lambda *args: stock_add_rms(*args, offset=1),
        lambda *args: our_add_rms(*args, offset=1),
    ),
    "rms_norm, offset": (
        lambda x, r, normalized, weight, bias: (rms_norm(x, normalized, weight, 1), x + r),
        lambda x, r, normalized, weight, bias: (rusttorch.rms_norm(x, normalized, weight, 1e-5, offset=1.0), x + r),
    ),
    "add_layer_norm": (
        stock_add_layer,
        lambda x, r, normalized, weight, bias: rusttorch.add_layer_norm(x, r, normalized, weight, bias),
    ),
}
COUNTED = {
    "add_rms_norm": "_fused_add_rms_norm",
    "add_rms_norm, offset": "_fused_add_rms_norm",
    "rms_norm, offset": "_fused_add_rms_norm",
    "add_layer_norm": "_fused_add_layer_norm",
}


def inputs(shape, rank, dtype, affine):
    normalized = shape[len(shape) - rank :]
    x, r = draw(*shape, dtype=dtype, seed=1), (draw(*shape, seed=2) * 2 + 0.5).to(dtype)
    weight = draw(*normalized, dtype=dtype, seed=3) if affine else None
    bias = draw(*normalized, dtype=dtype, seed=4) if affine == "both" else None
    return x, r, weight, bias


def run(f, x, r, normalized, weight, bias, grads):
    leaves = [None if t is None else t.detach().requires_grad_() for t in (x, r, weight, bias)]
    results = f(leaves[0], leaves[1], normalized, *leaves[2:])
    wanted = [t for t in leaves if t is not None]
    given = [(y, g) for y, g in zip(results, grads, strict=True) if g is not None]
    ys, gs = zip(*given, strict=True)
    found = torch.autograd.grad(ys, wanted, gs, materialize_grads=True)
    return [*(y.detach() for y in results), *found]


def ran(name):
    return rusttorch.stats().get(name, (0,))[0]


def wide(tensors):
    return [None if t is None else t.double() for t in tensors]


@pytest.mark.parametrize("threads", (1, 2))
@pytest.mark.parametrize("which", ("both", "norm", "sum"))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("affine", (None, "weight", "both"))
@pytest.mark.parametrize("case", SHAPES, ids=str)
@pytest.mark.parametrize("name", NORMS)
def test_accuracy(name, case, affine, dtype, which, threads):
    """With gradients of both results, or of one."""
    if affine == "both" and name != "add_layer_norm":
        pytest.skip("has no bias")
    torch.set_num_threads(threads)
    stock, ours = NORMS[name]
    shape, rank = case
    x, r, weight, bias = inputs(shape, rank, dtype, affine)
    normalized = shape[len(shape) - rank :]
    grads = [
        draw(*shape, dtype=dtype, seed=k) if which in ("both", of) else None for k, of in ((5, "norm"), (6, "sum"))
    ]
    exact = run(stock, *wide((x, r)), normalized, *wide((weight, bias)), wide(grads))
    theirs = run(stock, x, r, normalized, weight, bias, grads)
    before = ran(COUNTED[name]), ran(f"{COUNTED[name]}_backward")
    found = run(ours, x, r, normalized, weight, bias, grads)
    if not MADE_OF_OPS:
        backward = int(which != "sum")
        assert (ran(COUNTED[name]), ran(f"{COUNTED[name]}_backward")) == (before[0] + 1, before[1] + backward)
    eps = torch.finfo(dtype).eps * (50 if dtype == torch.float64 else 1)  # where stock itself is the truth
    for e, s, o in zip(exact, theirs, found, strict=True):
        assert o.dtype == s.dtype and o.stride() == s.stride()
        error = lambda t, e=e: (t.double() - e).abs().max() / e.abs().max().clamp_min(1)  # noqa: E731
        assert error(o) <= 2 * error(s) + eps
    assert torch.equal(found[1], x + r)


@pytest.mark.parametrize("narrow", (torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("name", NORMS)
def test_float32_and_16_bits(name, narrow):
    """As under autocast; the sum and its norm are float32."""
    if name == "rms_norm, offset":
        pytest.skip("adds nothing")
    stock, ours = NORMS[name]
    weight, bias = draw(77, dtype=torch.float32, seed=3), draw(77, dtype=torch.float32, seed=4)
    for dtypes in ((torch.float32, narrow), (narrow, torch.float32)):
        x, r = (draw(50, 77, dtype=dtype, seed=k) for k, dtype in enumerate(dtypes))
        grads = [draw(50, 77, dtype=torch.float32, seed=k) for k in (5, 6)]
        before = ran(COUNTED[name]), ran(f"{COUNTED[name]}_backward")
        found = run(ours, x, r, [77], weight, bias, grads)
        if not MADE_OF_OPS:
            assert (ran(COUNTED[name]), ran(f"{COUNTED[name]}_backward")) == (before[0] + 1, before[1] + 1)
        for o, s in zip(found, run(stock, x, r, [77], weight, bias, grads), strict=True):
            assert o.dtype == s.dtype
            torch.testing.assert_close(o, s, rtol=4 * torch.finfo(o.dtype).eps, atol=1e-5)
        torch._dynamo.reset()
        compiled = torch.compile(lambda x, r: ours(x, r, [77], weight, bias), fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x, r), ours(x, r, [77], weight, bias))


def test_an_offset_is_not_rounded_to_16_bits():
    x, weight = draw(4, 64, dtype=torch.bfloat16), draw(64).mul(0.002).bfloat16()
    exact = rms_norm(x.double(), [64], weight.double(), 1)
    error = (rusttorch.rms_norm(x, [64], weight, 1e-5, offset=1.0).double() - exact).abs().max()
    rounded = (F.rms_norm(x, [64], weight + 1, 1e-5).double() - exact).abs().max()
    assert error <= 2**-8 * exact.abs().max() and error < rounded
    strided = x.t().contiguous().t()
    torch.testing.assert_close(
        rusttorch.rms_norm(strided, [64], weight, 1e-5, offset=1.0),
        rusttorch.rms_norm(x, [64], weight, 1e-5, offset=1.0),
    )


def test_no_offset_is_rms_norm():
    x, weight = draw(7, 33, dtype=torch.float32), draw(33, dtype=torch.float32)
    weight[3] = -0.0
    wanted = rusttorch.rms_norm(x, [33], weight)
    assert torch.equal(rusttorch.rms_norm(x, [33], weight, offset=0.0), wanted)
    ours, total = rusttorch.add_rms_norm(x, torch.zeros_like(x), [33], weight)
    assert torch.equal(ours, wanted) and torch.equal(total, x)
    stock = F.rms_norm(x, [33], weight)
    assert torch.equal(wanted[:, 3].signbit(), stock[:, 3].signbit())


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("affine", (None, "weight", "both"))
def test_derivatives(name, affine):
    _, ours = NORMS[name]
    leaves = [None if t is None else t.requires_grad_() for t in inputs((3, 5), 1, torch.float64, affine)]
    given = [t for t in (leaves if name == "add_layer_norm" else leaves[:3]) if t is not None]

    def f(x, r, *parameters):
        return ours(x, r, [5], *parameters, *[None] * (2 - len(parameters)))

    gradcheck(f, given)
    gradgradcheck(f, given)
    gradgradcheck(lambda *args: f(*args)[0], given)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("affine", (False, True))
@pytest.mark.parametrize("name", NORMS)
def test_second_derivative_of_16_bits(name, affine, dtype):
    shapes = ((4, 33), (4, 33), (33,), (33,), (4, 33))
    x, r, weight, bias, by_y = (draw(*s, dtype=dtype, seed=k) for k, s in enumerate(shapes))

    def second(f, dtype):
        given = [t.detach().to(dtype).requires_grad_() for t in ((x, r, weight, bias) if affine else (x, r))]
        y = f(*given[:2], [33], *(given[2:] or (None, None)))[0]
        by_x = torch.autograd.grad(y, given[0], by_y.to(dtype), create_graph=True)[0]
        return [by_x, *torch.autograd.grad(by_x.square().sum(), [given[0], *given[2:3]])]

    stock, ours = NORMS[name]
    for got, want in zip(second(ours, dtype), second(stock, torch.float64), strict=True):
        assert got.dtype == dtype
        assert (got.double() - want).norm() <= 8 * torch.finfo(dtype).eps * want.norm()


@pytest.mark.parametrize("name", NORMS)
def test_what_no_kernel_takes(name):
    """Is made of aten's ops, with their derivatives: rows that are not contiguous, dtypes that promote, no elements."""
    stock, ours = NORMS[name]
    weight, bias = draw(5, seed=3), draw(5, seed=4)
    for x, r in (
        (draw(5, 4).t(), draw(4, 5)),
        (draw(4, 5), draw(4, 5, dtype=torch.float32)),
        (draw(4, 5), draw(1, 5)),
        (draw(0, 5), draw(0, 5)),
        (draw(8, 5)[::2], draw(4, 5)),
    ):
        grads = [draw(*(x + r).shape, seed=k) for k in (5, 6)]
        found, wanted = (run(f, x, r, [5], weight, bias, grads) for f in (ours, stock))
        torch.testing.assert_close(found, wanted)
    with torch.device("meta"):
        y, total = ours(torch.ones(4, 5), torch.ones(4, 5), [5], torch.ones(5), torch.ones(5))
        assert y.shape == total.shape == (4, 5)


def test_a_gradient_that_is_one_number():
    x, r = draw(4, 5).requires_grad_(), draw(4, 5)
    y, total = rusttorch.add_rms_norm(x, r, [5])
    (y.sum() + total.sum()).backward()
    z = x.detach().requires_grad_()
    (F.rms_norm(z + r, [5]).sum() + z.sum()).backward()
    torch.testing.assert_close(x.grad, z.grad)


def test_bad_input():
    x = torch.randn(4, 6)
    for ours, stock in (
        (lambda: rusttorch.add_rms_norm(x, x, [5]), lambda: F.rms_norm(x, [5])),
        (lambda: rusttorch.add_rms_norm(x, x[:, :5], [6]), lambda: x + x[:, :5]),
        (lambda: rusttorch.add_layer_norm(x, x, [5]), lambda: F.layer_norm(x, [5])),
        (lambda: rusttorch.add_layer_norm(x, x, [6], torch.ones(5)), lambda: F.layer_norm(x, [6], torch.ones(5))),
        (lambda: rusttorch.rms_norm(x, [6], torch.ones(5), offset=1.0), lambda: F.rms_norm(x, [6], torch.ones(5))),
    ):
        same_error(ours, stock)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_opcheck(dtype):
    x, r, w, b = (draw(*s, dtype=dtype, seed=k).requires_grad_() for k, s in enumerate(((6, 8), (6, 8), (8,), (8,))))
    if dtype == torch.float32:  # with symbols for sizes it is made of ops, and 16 bits are rounded between them
        opcheck(OPS.add_rms_norm, (x, r, [8], w), {"offset": 1.0})
        opcheck(OPS.rms_norm.offset, (x, [8], w), {"offset": 1.0})
        opcheck(OPS.add_layer_norm, (x, r, [8], w, b))
    if MADE_OF_OPS:
        return
    opcheck(OPS._fused_add_rms_norm, (x, r, [8], w, 1e-5, 0.0))
    opcheck(OPS._fused_add_rms_norm, (x, None, [8], None, None, 1.0))
    opcheck(OPS._fused_add_layer_norm, (x, r, [8], w, b, 1e-5))
    x, r, w, b = (t.detach() for t in (x, r, w, b))
    y, total, rstd = OPS._fused_add_rms_norm(x, r, [8], w, 1e-5, 0.0)
    opcheck(OPS._fused_add_rms_norm_backward, (y, None, total, [8], rstd, w, 0.0, [True, False]))
    y, total, mean, rstd = OPS._fused_add_layer_norm(x, r, [8], w, b, 1e-5)
    opcheck(OPS._fused_add_layer_norm_backward, (y, y, total, [8], mean, rstd, w, b, [True, True, True]))


def test_compile_and_vmap():
    x, r, w, b = (draw(*s, dtype=torch.float32).requires_grad_() for s in ((6, 8), (6, 8), (8,), (8,)))

    def f(x, r, w, b):
        y, total = rusttorch.add_rms_norm(x, r, [8], w)
        z, total = rusttorch.add_layer_norm(y, total, [8], w, b)
        return rusttorch.rms_norm(z, [8], w, offset=1.0) + total

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    leaves = (x, r, w, b)
    torch.testing.assert_close(compiled(*leaves), f(*leaves))
    ours, wanted = (torch.autograd.grad(each(*leaves).square().sum(), leaves) for each in (compiled, f))
    torch.testing.assert_close(ours, wanted)
    torch.testing.assert_close(torch.vmap(f, (0, 0, None, None))(*leaves), f(*leaves))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_forward_mode_is_aten_s():
    x, w = draw(4, 5), draw(5)
    y, tangent = torch.func.jvp(lambda x: rusttorch.add_rms_norm(x, w.expand(4, 5), [5], w)[0], (x,), (x,))
    wanted = torch.func.jvp(lambda x: F.rms_norm(x + w, [5], w), (x,), (x,))
    torch.testing.assert_close((y, tangent), wanted)
