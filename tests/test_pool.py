"""Pooling: against stock to the bit where it is exact, else against float64; forward and backward."""

import itertools

import pytest
import rusttorch
import torch
import torch.nn.functional as F
from cases import opcheck, same_error

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
OPS = torch.ops.rusttorch
ATEN = torch.ops.aten

# kernel_size, stride, padding, dilation, ceil_mode
WINDOWS = [
    ([2, 2], [], [0, 0], [1, 1], False),
    ([3, 3], [2, 2], [1, 1], [1, 1], False),
    ([3, 3], [1, 1], [1, 1], [1, 1], True),
    ([3, 2], [2, 3], [1, 0], [1, 1], True),
    ([2, 3], [1, 2], [1, 1], [2, 1], False),
    ([3, 2], [1, 1], [1, 1], [3, 2], True),  # the first windows begin behind the second ones
    ([1, 5], [3, 4], [0, 2], [1, 1], True),
]
SHAPES = [(2, 3, 12, 40), (1, 1, 7, 9), (3, 24, 9, 8), (4, 6, 67), (1, 66, 5, 6), (2, 37, 6, 50)]
OUTPUTS = [(3, 4), (5, 7), (9, 8), (1, 1), (20, 3)]
LAYOUTS = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x,
    "transposed": lambda x: x.transpose(-1, -2).contiguous().transpose(-1, -2),
    "misaligned": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view_as(x),
    "strided": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "expanded": lambda x: x[:1].expand_as(x),
}


def generator(seed=0):
    return torch.Generator(torch.get_default_device()).manual_seed(seed)


def draw(shape, dtype, seed=0):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64).to(dtype)


def same(ours, stock):
    """To the bit, NaN and the strides included."""
    for o, s in zip(*(r if isinstance(r, tuple) else (r,) for r in (ours, stock)), strict=True):
        torch.testing.assert_close(o, s, rtol=0, atol=0, equal_nan=True)
        assert o.stride() == s.stride()


def as_right(ours, stock, exact):
    """At most twice stock's error and one ulp, in stock's strides."""
    assert ours.dtype == stock.dtype and ours.stride() == stock.stride()
    error = lambda t: (t.double() - exact).abs().max() / exact.abs().max()  # noqa: E731
    eps = torch.finfo(ours.dtype).eps * (50 if ours.dtype == torch.float64 else 1)  # where stock itself is the truth
    assert error(ours) <= 2 * error(stock) + eps


def hard(shape, dtype):
    """With ties, NaN and infinities."""
    x = (draw(shape, torch.float64) * 2).round()
    for value, seed in ((float("nan"), 1), (-torch.inf, 2), (torch.inf, 3)):
        x[draw(shape, torch.float64, seed) > (0.7 if value == -torch.inf else 1.9)] = value
    return x.to(dtype)


@pytest.mark.parametrize("make", (draw, hard))
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_max_pool(window, layout, dtype, make):
    for shape in SHAPES:
        x = LAYOUTS[layout](make(shape, dtype))
        stock = ATEN.max_pool2d_with_indices(x, *window)
        same(OPS.max_pool2d_with_indices(x, *window), stock)
        kernel_size, stride, *rest = window
        g, rest = draw(stock[0].shape, dtype), (kernel_size, stride or kernel_size, *rest, stock[1])
        exact = ATEN.max_pool2d_with_indices_backward(g.double(), x.double(), *rest)
        ours = OPS.max_pool2d_with_indices_backward(g, x, *rest)
        as_right(ours, ATEN.max_pool2d_with_indices_backward(g, x, *rest), exact)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("window", [w for w in WINDOWS if w[3] == [1, 1]], ids=str)
def test_avg_pool(window, layout, dtype):
    kernel_size, stride, padding, _, ceil_mode = window
    stride = stride or kernel_size
    for shape, include_pad, divisor in itertools.product(SHAPES, (True, False), (None, 3)):
        x = LAYOUTS[layout](draw(shape, dtype))
        args = (kernel_size, stride, padding, ceil_mode, include_pad, divisor)
        stock = ATEN.avg_pool2d(x, *args)
        as_right(OPS.avg_pool2d(x, *args), stock, ATEN.avg_pool2d(x.double(), *args))
        g = LAYOUTS[layout](draw(stock.shape, dtype))
        exact = ATEN.avg_pool2d_backward(g.double(), x.double(), *args)
        as_right(OPS.avg_pool2d_backward(g, x, *args), ATEN.avg_pool2d_backward(g, x, *args), exact)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("output", OUTPUTS, ids=str)
def test_adaptive(output, layout, dtype):
    for shape in SHAPES:
        x = LAYOUTS[layout](draw(shape, dtype))
        stock = ATEN._adaptive_avg_pool2d(x, output)
        as_right(OPS._adaptive_avg_pool2d(x, output), stock, ATEN._adaptive_avg_pool2d(x.double(), output))
        g = draw(stock.shape, dtype)
        if stock.dim() == 4 and not stock.is_contiguous():  # the layout in which stock's backward makes a gradient
            g = g.contiguous(memory_format=torch.channels_last)
        exact = ATEN._adaptive_avg_pool2d_backward(g.double(), x.double())
        ours = OPS._adaptive_avg_pool2d_backward(g, x)
        as_right(ours, ATEN._adaptive_avg_pool2d_backward(g, x), exact)
        x = LAYOUTS[layout](hard(shape, dtype))
        stock = ATEN.adaptive_max_pool2d(x, output)
        same(OPS.adaptive_max_pool2d(x, output), stock)
        exact = ATEN.adaptive_max_pool2d_backward(g.double(), x.double(), stock[1])
        ours = OPS.adaptive_max_pool2d_backward(g, x, stock[1])
        as_right(ours, ATEN.adaptive_max_pool2d_backward(g, x, stock[1]), exact)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("layout", ("contiguous", "channels_last"))
@pytest.mark.parametrize("window", (((6, 7), (2, 3), (3, 3), (3, 2)), ((8, 9), (4, 4), (4, 0), (1, 1))), ids=str)
def test_large_windows(window, layout, dtype):
    """Which a device's threads share."""
    kernel_size, stride, padding, _ = window
    for shape in ((2, 8, 30, 40), (1, 5, 26, 29)):
        x = LAYOUTS[layout](hard(shape, dtype))
        same(OPS.max_pool2d_with_indices(x, *window), ATEN.max_pool2d_with_indices(x, *window))
        x = LAYOUTS[layout](draw(shape, dtype))
        args = (kernel_size, stride, padding, True, False)
        as_right(OPS.avg_pool2d(x, *args), ATEN.avg_pool2d(x, *args), ATEN.avg_pool2d(x.double(), *args))


def test_steps_beyond_the_input():
    """Which are stock's: a thread's memory is as large as steps are."""
    x = draw((1, 1, 4, 16), torch.float32)
    rusttorch.reset_stats()
    for size, stride, padding in ((2, 2**31 - 2, 0), (2**17, 1, 2**16)):
        args = ([1, size], [1, stride], [0, padding])
        y = OPS.avg_pool2d(x, *args)
        torch.testing.assert_close(y, ATEN.avg_pool2d(x, *args))
        same(OPS.max_pool2d_with_indices(x, *args), ATEN.max_pool2d_with_indices(x, *args))
        args = (y, x, *args, False, True, None)
        torch.testing.assert_close(OPS.avg_pool2d_backward(*args), ATEN.avg_pool2d_backward(*args))
    assert all(s.handed["size"] for s in rusttorch.stats().values() if s.ran or s.handed)
    args = ([1, 2], [1, 1], [0, 0], [2**31 - 2, 3])
    same(OPS.max_pool2d_with_indices(x, *args), ATEN.max_pool2d_with_indices(x, *args))


@pytest.mark.parametrize("layout", ("contiguous", "channels_last"))
def test_zeros_over_a_divisor_below_zero(layout):
    x = LAYOUTS[layout](torch.zeros(1, 3, 4, 4))
    args = ([2, 2], [2, 2], [0, 0], False, True, -2)
    assert torch.equal(OPS.avg_pool2d(x, *args).signbit(), ATEN.avg_pool2d(x, *args).signbit())


def test_indices_from_elsewhere():
    """A choice outside of its window, as stock takes it."""
    g, x = draw((2, 3, 4, 4), torch.float32), draw((2, 3, 8, 8), torch.float32)
    index = torch.randint(64, g.shape, generator=generator())
    args = (g, x, [2, 2], [2, 2], [0, 0], [1, 1], False, index)
    same(OPS.max_pool2d_with_indices_backward(*args), ATEN.max_pool2d_with_indices_backward(*args))


@pytest.mark.parametrize("layout", ("contiguous", "channels_last"))
def test_any_number_of_threads(layout):
    x = LAYOUTS[layout](draw((4, 40, 50, 50), torch.float32))
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        y, index = OPS.max_pool2d_with_indices(x, [3, 3], [2, 2], [1, 1])
        z = OPS.avg_pool2d(x, [3, 3], [1, 1], [1, 1])
        back = OPS.max_pool2d_with_indices_backward(y, x, [3, 3], [2, 2], [1, 1], [1, 1], False, index)
        results.append([y, index, z, back, OPS.avg_pool2d_backward(z, x, [3, 3], [1, 1], [1, 1], False, True, None)])
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("shape", ((1, 1, 2, 2), (3, 5, 4, 4), (7, 3, 5, 8), (2, 9, 13, 23), (1, 2, 40, 11)), ids=str)
@pytest.mark.parametrize("window", ((2, 2, 1), (2, 1, 1), (1, 1, 1), (2, 3, 1), (2, 2, 2)), ids=str)
def test_planes_of_few_columns(window, shape, dtype):
    """Whose rows and planes share vectors."""
    kernel, stride, dilation = ([n] * 2 for n in window)
    x = draw(shape, dtype)
    x.flatten()[::7] = 1  # equal ones
    x.flatten()[3::50] = float("nan")
    x.flatten()[5::60] = -float("inf")
    args = (kernel, stride, [0, 0], dilation)
    try:
        wanted = ATEN.max_pool2d_with_indices(x, *args)
    except RuntimeError:  # a window that is larger than the plane
        return
    before = rusttorch.stats().get("max_pool2d_with_indices", (0, {}))[0]
    found = OPS.max_pool2d_with_indices(x, *args)
    assert rusttorch.stats()["max_pool2d_with_indices"].ran == before + 1
    for o, s in zip(found, wanted, strict=True):
        assert torch.equal(o.nan_to_num(7), s.nan_to_num(7))
        assert torch.equal(o.isnan(), s.isnan())
    if dilation == [1, 1]:
        for divisor in (None, 3, -2):
            args = (kernel, stride, [0, 0], False, True, divisor)
            exact, stock = ATEN.avg_pool2d(x.double(), *args), ATEN.avg_pool2d(x, *args)
            error = lambda t, exact=exact: (t - exact).nan_to_num(0).abs().max()  # noqa: E731
            found = OPS.avg_pool2d(x, *args)
            assert torch.equal(found.isfinite(), stock.isfinite())
            ulps = 8 if dtype == torch.float64 else 1  # where stock itself is the truth
            assert error(found) <= 2 * error(stock) + ulps * torch.finfo(dtype).eps


MODULES = {
    "MaxPool2d": lambda: torch.nn.MaxPool2d(3, 2, 1),
    "MaxPool1d": lambda: torch.nn.MaxPool1d(3, 2, 1),
    "AvgPool2d": lambda: torch.nn.AvgPool2d(2, ceil_mode=True),
    "AvgPool1d": lambda: torch.nn.AvgPool1d(3, 2, 1),
    "AdaptiveAvgPool2d": lambda: torch.nn.AdaptiveAvgPool2d((3, 4)),
    "AdaptiveAvgPool1d": lambda: torch.nn.AdaptiveAvgPool1d(5),
    "AdaptiveMaxPool2d": lambda: torch.nn.AdaptiveMaxPool2d((3, 5)),
    "AdaptiveMaxPool1d": lambda: torch.nn.AdaptiveMaxPool1d(4),
}
RAN = {"Max": "max_pool2d_with_indices", "Avg": "avg_pool2d"}
RAN |= {"AdaptiveAvg": "_adaptive_avg_pool2d", "AdaptiveMax": "adaptive_max_pool2d"}


@pytest.mark.parametrize("layout", ("contiguous", "channels_last"))
@pytest.mark.parametrize("name", MODULES)
def test_modules_under_use(name, layout):
    module = MODULES[name]()
    results = []
    for swapped in (False, True):
        x = draw((2, 3, 40) if name.endswith("1d") else (2, 3, 12, 20), torch.float32)
        x = LAYOUTS[layout](x).requires_grad_()
        rusttorch.reset_stats()
        with rusttorch.use("pool") if swapped else torch.enable_grad():
            y = module(x)
            results.append([y, *torch.autograd.grad((y * y).sum(), x)])
    op = RAN[name.partition("Pool")[0]]
    assert rusttorch.stats()[op].ran == 1
    back = rusttorch.stats()[f"{op}_backward"]
    assert back.ran + back.handed.get("size", 0) == 1
    for s, o in zip(*results, strict=True):
        torch.testing.assert_close(o, s)
        assert o.stride() == s.stride()


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("layout", ("contiguous", "channels_last"))
def test_derivatives(window, layout):
    # No two values are near each other, so that a small step changes no choice.
    x = torch.randperm(2 * 3 * 7 * 8, generator=generator()).double().view(2, 3, 7, 8)
    x = LAYOUTS[layout](x).requires_grad_()
    kernel_size, stride, padding, _, ceil_mode = window
    for f in (
        lambda x: OPS.max_pool2d_with_indices(x, *window)[0],
        lambda x: OPS.avg_pool2d(x, kernel_size, stride or kernel_size, padding, ceil_mode, False),
        lambda x: OPS._adaptive_avg_pool2d(x, (3, 4)),
        lambda x: OPS.adaptive_max_pool2d(x, (3, 4))[0],
    ):
        torch.autograd.gradcheck(f, x)
        torch.autograd.gradgradcheck(f, x)


def test_out():
    x = draw((2, 32, 8, 8), torch.float32)
    for layout in ("contiguous", "channels_last"):
        x = LAYOUTS[layout](x)
        y, index = ATEN.max_pool2d_with_indices(x, [2, 2])
        rusttorch.reset_stats()
        outs = torch.empty_like(y), torch.empty_like(index)
        OPS.max_pool2d_with_indices.out(x, [2, 2], out=outs[0], indices=outs[1])
        same(outs, (y, index))
        out = torch.empty_like(y)
        assert OPS.avg_pool2d.out(x, [2, 2], out=out) is out
        torch.testing.assert_close(out, ATEN.avg_pool2d(x, [2, 2]))
        grad = torch.empty_like(x)
        args = (y, x, [2, 2], [2, 2], [0, 0], [1, 1], False, index)
        OPS.max_pool2d_with_indices_backward.grad_input(*args, grad_input=grad)
        same(grad, ATEN.max_pool2d_with_indices_backward(*args))
        args = (y, x, [2, 2], [2, 2], [0, 0], False, True, None)
        OPS.avg_pool2d_backward.grad_input(*args, grad_input=grad)
        torch.testing.assert_close(grad, ATEN.avg_pool2d_backward(*args))
        assert all(s.ran == 1 for s in rusttorch.stats().values() if s.ran or s.handed)
    out = x.new_empty(0)  # which stock resizes
    OPS.avg_pool2d.out(x, [2, 2], out=out)
    assert torch.equal(out, ATEN.avg_pool2d(x, [2, 2]))


def test_bad_input():
    x, grad = draw((2, 3, 8, 8), torch.float32), draw((2, 3, 4, 4), torch.float32)
    index = torch.zeros(2, 3, 4, 4, dtype=torch.int64)
    for bad in (
        lambda m: m.max_pool2d_with_indices(x, [0, 2]),
        lambda m: m.max_pool2d_with_indices(x, [2, 2], [0, 1]),
        lambda m: m.max_pool2d_with_indices(x, [2, 2], [2, 2], [2, 0]),
        lambda m: m.max_pool2d_with_indices(x, [2, 2], [2, 2], [-1, 0]),
        lambda m: m.max_pool2d_with_indices(x, [2, 2], [2, 2], [0, 0], [0, 1]),
        lambda m: m.max_pool2d_with_indices(x, [2, 2, 2]),
        lambda m: m.max_pool2d_with_indices(x, []),
        lambda m: m.max_pool2d_with_indices(x, [9, 9]),
        lambda m: m.max_pool2d_with_indices(x[0, 0], [2, 2]),
        lambda m: m.max_pool2d_with_indices(x[:, :0], [2, 2]),
        lambda m: m.max_pool2d_with_indices(x.to(torch.complex64), [2, 2]),
        lambda m: m.max_pool2d_with_indices_backward(grad[:1], x, [2, 2], [2, 2], [0, 0], [1, 1], False, index),
        lambda m: m.max_pool2d_with_indices_backward(grad.double(), x, [2, 2], [2, 2], [0, 0], [1, 1], False, index),
        lambda m: m.avg_pool2d(x, [2, 2], [2, 2], [0, 0], False, True, 0),
        lambda m: m.avg_pool2d(x.to(torch.int32), [2, 2]),
        lambda m: m.avg_pool2d_backward(grad[..., :3], x, [2, 2], [2, 2], [0, 0], False, True, None),
        lambda m: m._adaptive_avg_pool2d(x, [-1, 2]),
        lambda m: m._adaptive_avg_pool2d(x, [2**42, -2]),  # at once
        lambda m: m.adaptive_max_pool2d(x, [2**42, 2**42]),
        lambda m: m._adaptive_avg_pool2d(x[0, 0], [2, 2]),
        lambda m: m.adaptive_max_pool2d(x[:, :0], [2, 2]),
    ):
        same_error(lambda bad=bad: bad(OPS), lambda bad=bad: bad(ATEN))


def test_gradients_of_other_images():
    x, index = draw((2, 3, 8, 8), torch.float32), torch.zeros(2, 5, 4, 4, dtype=torch.int64)
    for grad in (draw((2, 5, 4, 4), torch.float32), draw((5, 4, 4), torch.float32)):
        with pytest.raises(RuntimeError, match="as many images"):
            OPS._adaptive_avg_pool2d_backward(grad, x)
        with pytest.raises(RuntimeError, match="as many images"):
            OPS.adaptive_max_pool2d_backward(grad, x, index)


def test_what_is_stock_s():
    rusttorch.reset_stats()
    x = torch.arange(64).view(1, 1, 8, 8)
    assert torch.equal(OPS.avg_pool2d(x, [2, 2]), ATEN.avg_pool2d(x, [2, 2]))
    same(OPS.max_pool2d_with_indices(x, [2, 2]), ATEN.max_pool2d_with_indices(x, [2, 2]))
    assert OPS.avg_pool2d(torch.empty(0, 3, 8, 8), [2, 2]).shape == (0, 3, 4, 4)
    assert OPS._adaptive_avg_pool2d(torch.empty(2, 3, 8, 8), [0, 2]).shape == (2, 3, 0, 2)
    stats = rusttorch.stats()
    assert stats["avg_pool2d"].handed == {"dtype": 1, "size": 1}
    assert stats["max_pool2d_with_indices"].handed == {"dtype": 1}


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("layout", ("contiguous", "channels_last"))
def test_opcheck(dtype, layout):
    x = LAYOUTS[layout](draw((2, 3, 8, 8), dtype)).requires_grad_()
    y, index = ATEN.max_pool2d_with_indices(x.detach(), [3, 3], [2, 2], [1, 1])
    opcheck(OPS.max_pool2d_with_indices.default, (x, [3, 3], [2, 2], [1, 1]))
    opcheck(OPS.max_pool2d_with_indices_backward.default, (y, x, [3, 3], [2, 2], [1, 1], [1, 1], False, index))
    opcheck(OPS.avg_pool2d.default, (x, [3, 3], [2, 2], [1, 1]))
    opcheck(OPS.avg_pool2d_backward.default, (y, x, [3, 3], [2, 2], [1, 1], False, True, None))
    opcheck(OPS._adaptive_avg_pool2d.default, (x, [4, 4]))
    opcheck(OPS._adaptive_avg_pool2d_backward.default, (y, x))
    opcheck(OPS.adaptive_max_pool2d.default, (x, [4, 4]))
    opcheck(OPS.adaptive_max_pool2d_backward.default, (y, x, ATEN.adaptive_max_pool2d(x.detach(), [4, 4])[1]))


def test_compile_vmap_and_functions():
    def f(x):
        return F.avg_pool2d(F.max_pool2d(x, 2), 2) + F.adaptive_avg_pool2d(x, (2, 2)) + F.adaptive_max_pool2d(x, (2, 2))

    x = draw((2, 3, 8, 8), torch.float32)
    wanted = f(x)
    batch = torch.stack([x, x + 1])
    with rusttorch.use("pool"):
        torch.testing.assert_close(torch.compile(f, fullgraph=True, backend="aot_eager")(x), wanted)
        torch.testing.assert_close(torch.func.vmap(f)(batch), torch.stack([wanted, f(x + 1)]))
    torch.testing.assert_close(torch.func.vmap(lambda x: OPS.avg_pool2d(x, [2, 2]))(batch)[0], F.avg_pool2d(x, 2))
    # As functions: a number stands for both dims, and what is left out for aten's default.
    torch.testing.assert_close(rusttorch.avg_pool2d(x, 2), F.avg_pool2d(x, 2))
    same(rusttorch.max_pool2d_with_indices(x, 3, padding=1), F.max_pool2d(x, 3, padding=1, return_indices=True))
    same(rusttorch.adaptive_max_pool2d(x, 3), F.adaptive_max_pool2d(x, 3, return_indices=True))


def test_no_kernel_size_is_an_error():
    x, g = torch.randn(1, 2, 6, 6), torch.randn(1, 2, 3, 3)
    index = torch.zeros(g.shape, dtype=torch.int64)
    for bad in (
        lambda m: m.max_pool2d_with_indices(x, []),
        lambda m: m.avg_pool2d(x, []),
        lambda m: m.max_pool2d_with_indices_backward(g, x, [], [2, 2], [0, 0], [1, 1], False, index),
        lambda m: m.avg_pool2d_backward(g, x, [], [2, 2], [0, 0], False, True, None),
    ):
        same_error(lambda bad=bad: bad(OPS), lambda bad=bad: bad(ATEN))
