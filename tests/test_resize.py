"""Resizing of images: the nearest to the bit, the others and all gradients against float64."""

import itertools

import pytest
import rusttorch
import torch
import torch.nn.functional as F
from cases import opcheck, same_error

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
OPS = torch.ops.rusttorch
ATEN = torch.ops.aten
NEAREST = ("upsample_nearest2d", "_upsample_nearest_exact2d")
ANTIALIASED = ("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa")
WEIGHTED = ("upsample_bilinear2d", "upsample_bicubic2d", *ANTIALIASED)
# Sizes of the input and the output, and scales.
SIZES = [
    ((7, 9), (14, 18), ()),
    ((7, 9), (7, 9), ()),
    ((7, 9), (7, 30), ()),
    ((20, 33), (9, 70), ()),
    ((20, 33), (1, 1), ()),
    ((1, 1), (5, 4), ()),
    ((6, 40), (15, 101), (2.55, 2.54)),
    ((50, 64), (5, 20), ()),
    ((40, 17), (90, 60), ()),
    ((10, 100), (20, 200), (2.09, 2.009)),
]
LAYOUTS = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(-1, -2).contiguous().transpose(-1, -2),
    "misaligned": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view_as(x),
    "expanded": lambda x: x[:1].expand_as(x),
}
# In 16 bits stock has no filters.
CASES = [
    (name, dtype)
    for name in (*NEAREST, *WEIGHTED)
    for dtype in FLOATS
    if name not in ANTIALIASED or torch.finfo(dtype).bits > 16
]
# Of the layouts that are copied first, some sizes.
CALLS = [
    (case, layout, align_corners)
    for k, case in enumerate(SIZES)
    for layout in LAYOUTS
    for align_corners in (False, True)
    if layout in ("contiguous", "channels_last") or (not align_corners and k % 4 == 3)
]


# Few, several, and of channels that come last whole packs of a device too.
CHANNELS = {layout: (3, 20, 24) if layout == "channels_last" else (3, 20) for layout in LAYOUTS}


def draw(shape, dtype):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", SIZES, ids=str)
def test_nearest(case, layout, dtype):
    size, output, scales = case
    for channels, name in itertools.product(CHANNELS[layout], NEAREST):
        x = LAYOUTS[layout](draw((2, channels, *size), dtype))
        ours, stock = (getattr(m, name)(x, output, *scales) for m in (OPS, ATEN))
        assert torch.equal(ours, stock) and ours.stride() == stock.stride()


def check(ours, stock, exact, slack=1):
    """Where stock itself is the truth, places between two elements are rounded as it rounds them, or the other way."""
    assert ours.dtype == stock.dtype and ours.stride() == stock.stride()
    error = lambda t: (t.double() - exact).abs().max() / exact.abs().max()  # noqa: E731
    eps = torch.finfo(ours.dtype).eps * (100 if ours.dtype == torch.float64 else slack)
    assert error(ours) <= 2 * error(stock) + eps


def options_of(name, align_corners):
    return () if name in NEAREST else (align_corners,)


@pytest.mark.parametrize("name, dtype", [c for c in CASES if c[0] in WEIGHTED], ids=str)
@pytest.mark.parametrize("case, layout, align_corners", CALLS, ids=str)
def test_weighted(name, case, align_corners, layout, dtype):
    size, output, scales = case
    for channels in CHANNELS[layout]:
        x = LAYOUTS[layout](draw((2, channels, *size), dtype))
        args = (output, align_corners, *scales)
        ours, stock = (getattr(m, name)(x, *args) for m in (OPS, ATEN))
        # A filter's weights are rounded twice.
        check(ours, stock, getattr(ATEN, name)(x.double(), *args), 8 if name in ANTIALIASED else 1)


@pytest.mark.parametrize("name, dtype", CASES, ids=str)
@pytest.mark.parametrize("case, layout, align_corners", CALLS, ids=str)
def test_gradients(name, case, align_corners, layout, dtype):
    size, output, scales = case
    for channels in CHANNELS[layout]:
        g = LAYOUTS[layout](draw((4, channels, *output), dtype))
        args = (output, (4, channels, *size), *options_of(name, align_corners), *scales)
        ours, stock = (getattr(m, f"{name}_backward")(g, *args) for m in (OPS, ATEN))
        check(ours, stock, getattr(ATEN, f"{name}_backward")(g.double(), *args), 8)


@pytest.mark.parametrize("name", (*NEAREST, *WEIGHTED))
def test_kernels_ran(name):
    options = options_of(name, False)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x = draw((4, 32, 20, 21), torch.float32).contiguous(memory_format=memory_format)
        rusttorch.reset_stats()
        y = getattr(OPS, name)(x, [40, 45], *options)
        getattr(OPS, f"{name}_backward")(y, [40, 45], x.shape, *options)
        stats = rusttorch.stats()
        assert stats[name].ran == stats[f"{name}_backward"].ran == 1


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_large(dtype):
    """What is written around the cache, in rows of whole lines of it and in others."""
    for channels, width, memory_format in (
        (64, 64, torch.contiguous_format),
        (64, 50, torch.contiguous_format),
        (64, 50, torch.channels_last),
    ):
        x = draw((4, channels, 64, width), dtype).contiguous(memory_format=memory_format)
        for name in ("upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d"):
            args = ([128, 2 * width], *options_of(name, False))
            ours, stock = (getattr(m, name)(x, *args) for m in (OPS, ATEN))
            check(ours, stock, getattr(ATEN, name)(x.double(), *args))


def test_more_packs_than_a_warp():
    x = LAYOUTS["channels_last"](draw((2, 37, 5, 6), torch.float32))
    for name in (NEAREST[0], "upsample_bilinear2d"):
        args = ([9, 13], *options_of(name, False))
        torch.testing.assert_close(getattr(OPS, name)(x, *args), getattr(ATEN, name)(x, *args))


def test_gradients_of_nothing():
    """Elements that no output is made of have none, whatever there is beside them."""
    g = torch.full((2, 16, 16, 16), float("inf"))
    for name in (*NEAREST, "upsample_bilinear2d"):
        args = ([16, 16], [2, 16, 80, 80], *options_of(name, False))
        ours, stock = (getattr(m, f"{name}_backward")(g, *args) for m in (OPS, ATEN))
        assert torch.equal(ours == 0, stock == 0) and (ours == 0).any()
        torch.testing.assert_close(ours, stock, equal_nan=True)


def test_values_that_are_not_finite():
    x = draw((1, 2, 6, 8), torch.float32)
    x[0, 0, 2, 3], x[0, 1, 0, 0], x[0, 1, 5, 7] = float("nan"), float("inf"), -float("inf")
    for call in (
        lambda m: m.upsample_nearest2d(x, [12, 16]),
        lambda m: m.upsample_bilinear2d(x, [12, 16], False),
        lambda m: m.upsample_bilinear2d(x, [6, 8], True),
        lambda m: m.upsample_bilinear2d(x, [4, 5], False),
        lambda m: m.upsample_bicubic2d(x, [12, 16], False),
        lambda m: m._upsample_bilinear2d_aa(x, [12, 5], False),
    ):
        torch.testing.assert_close(call(OPS), call(ATEN), equal_nan=True)


def test_signs_of_zeros():
    x, g = torch.full((2, 16, 12, 12), -0.0), torch.full((2, 16, 30, 30), -0.0)
    for name in (*NEAREST, *WEIGHTED):
        options = options_of(name, False)
        for f in (
            lambda m, name=name, options=options: getattr(m, name)(x, [20, 20], *options),
            lambda m, name=name, options=options: getattr(m, f"{name}_backward")(g, [30, 30], x.shape, *options),
        ):
            assert torch.equal(f(OPS).signbit(), f(ATEN).signbit()), name


def test_any_number_of_threads():
    x = draw((3, 7, 50, 60), torch.float32)
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(
            [
                *(OPS.upsample_bilinear2d(x, sizes, False) for sizes in ([101, 77], [20, 77])),
                OPS.upsample_nearest2d(x, [101, 77]),
                OPS.upsample_bicubic2d_backward(x, [50, 60], [3, 7, 30, 70], False),
            ]
        )
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("antialias", (False, True))
@pytest.mark.parametrize("mode", ("nearest", "nearest-exact", "bilinear", "bicubic"))
def test_interpolate_under_use(mode, antialias):
    op = {"nearest": NEAREST[0], "nearest-exact": NEAREST[1]}.get(mode, f"upsample_{mode}2d")
    if antialias:
        if op in NEAREST:
            pytest.skip("stock has none")
        op = f"_{op}_aa"
    for options in ({"scale_factor": 2}, {"size": (5, 9)}, {"scale_factor": (1.5, 2.5)}):
        results = []
        for swapped in (False, True):
            x = draw((2, 33, 12, 16), torch.float32).requires_grad_()
            rusttorch.reset_stats()
            with rusttorch.use("resize") if swapped else torch.enable_grad():
                y = F.interpolate(x, mode=mode, antialias=antialias, **options)
                results.append([y, *torch.autograd.grad((y * y).sum(), x)])
        assert rusttorch.stats()[op].ran == rusttorch.stats()[f"{op}_backward"].ran == 1
        for s, o in zip(*results, strict=True):
            torch.testing.assert_close(o, s)
            assert o.stride() == s.stride()


def test_derivatives():
    x = draw((1, 2, 3, 4), torch.float64).requires_grad_()
    for f in (
        lambda x: OPS.upsample_nearest2d(x, [5, 9]),
        lambda x: OPS._upsample_nearest_exact2d(x, [5, 9], 1.7, 2.3),
        lambda x: OPS.upsample_bilinear2d(x, [5, 9], False),
        lambda x: OPS.upsample_bilinear2d(x, [5, 9], True, 1.7, 2.3),
        lambda x: OPS.upsample_bicubic2d(x, [5, 9], False),
        lambda x: OPS.upsample_bicubic2d(x, [2, 3], True),
        lambda x: OPS._upsample_bilinear2d_aa(x, [2, 9], False),
        lambda x: OPS._upsample_bicubic2d_aa(x, [5, 2], False),
        lambda x: OPS.upsample_bilinear2d_backward(x, [3, 4], [1, 2, 7, 5], False),
        lambda x: OPS.upsample_nearest2d_backward(x, [3, 4], [1, 2, 7, 5]),
    ):
        torch.autograd.gradcheck(f, x)
        torch.autograd.gradgradcheck(f, x)


def test_out():
    x = draw((2, 3, 6, 8), torch.float32)
    rusttorch.reset_stats()
    out, large = x.new_empty(2, 3, 12, 16), draw((2, 3, 40, 50), torch.float32)
    assert OPS.upsample_bilinear2d.out(x, [12, 16], False, out=out) is out
    torch.testing.assert_close(out, ATEN.upsample_bilinear2d(x, [12, 16], False))
    for name in NEAREST:
        getattr(OPS, name).out(x, [12, 16], out=out)
        assert torch.equal(out, getattr(ATEN, name)(x, [12, 16]))
    grad = x.new_empty(x.shape)
    for name in WEIGHTED:
        getattr(OPS, f"{name}_backward").grad_input(large, [40, 50], x.shape, False, grad_input=grad)
        torch.testing.assert_close(grad, getattr(ATEN, f"{name}_backward")(large, [40, 50], x.shape, False))
    assert all(s.ran == 1 for s in rusttorch.stats().values() if s.ran or s.handed)


def test_bad_input():
    x = draw((2, 3, 6, 8), torch.float32)
    for bad in (
        lambda m: m.upsample_nearest2d(x[0], [5, 5]),
        lambda m: m.upsample_nearest2d(x, [5]),
        lambda m: m.upsample_nearest2d(x, [0, 5]),
        lambda m: m.upsample_nearest2d(x.to(torch.complex64), [5, 5]),
        lambda m: m.upsample_bilinear2d(x[:, :, :0], [5, 5], False),
        lambda m: m.upsample_bilinear2d(x, [5, -1], False),
        lambda m: m.upsample_bilinear2d(x.to(torch.int64), [5, 5], False),
        lambda m: m.upsample_bicubic2d(x[0], [5, 5], False),
        lambda m: m.upsample_bilinear2d_backward(x, [5, 5], [2, 3, 6, 8], False),
        lambda m: m.upsample_bilinear2d_backward(x, [6, 8], [2, 4, 6, 8], False),
        lambda m: m.upsample_nearest2d_backward(x, [6, 8], [2, 3, 0, 8]),
        lambda m: m.upsample_nearest2d_backward(x, [6, 8], [2, 3, 8]),
    ):
        same_error(lambda bad=bad: bad(OPS), lambda bad=bad: bad(ATEN))


def test_filters_in_16_bits_errors():
    x = draw((2, 3, 6, 8), torch.bfloat16)
    same_error(
        lambda: OPS._upsample_bilinear2d_aa(x, [5, 5], False), lambda: ATEN._upsample_bilinear2d_aa(x, [5, 5], False)
    )


def test_sizes_at_which_stock_is_faster():
    rusttorch.reset_stats()
    x = draw((2, 3, 6, 8), torch.float32)
    OPS.upsample_bilinear2d(x.contiguous(memory_format=torch.channels_last), [5, 5], False)
    OPS.upsample_nearest2d(x.to(torch.uint8), [5, 5])
    OPS.upsample_nearest2d(x.double(), [5, 5])
    assert OPS.upsample_bilinear2d(x[:0], [5, 5], False).shape == (0, 3, 5, 5)
    # Stock's filters give every row of a single column the first row's weights.
    narrow = (x, [5, 1], False)
    assert torch.equal(OPS._upsample_bicubic2d_aa(*narrow), ATEN._upsample_bicubic2d_aa(*narrow))
    stats = rusttorch.stats()
    assert stats["upsample_bilinear2d"].handed == {"size": 2}
    assert stats["upsample_nearest2d"].handed == {"dtype": 1, "size": 1}
    assert stats["_upsample_bicubic2d_aa"].handed == {"option": 1}


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_opcheck(dtype):
    x = draw((2, 3, 6, 8), dtype).requires_grad_()
    opcheck(OPS.upsample_nearest2d.default, (x, [5, 9]))
    opcheck(OPS._upsample_nearest_exact2d.default, (x, [5, 9]))
    opcheck(OPS.upsample_bilinear2d.default, (x, [5, 9], False))
    opcheck(OPS.upsample_bicubic2d.default, (x, [5, 9], False))
    opcheck(OPS.upsample_bilinear2d_backward.default, (x, [6, 8], [2, 3, 4, 5], False))
    opcheck(OPS.upsample_nearest2d_backward.default, (x, [6, 8], [2, 3, 4, 5]))


def test_compile_and_vmap():
    def f(x):
        return F.interpolate(F.interpolate(x, scale_factor=2, mode="bilinear"), size=(5, 9))

    x = draw((2, 3, 6, 8), torch.float32)
    with rusttorch.use("resize"):
        torch.testing.assert_close(torch.compile(f, fullgraph=True, backend="aot_eager")(x), f(x))
        torch.testing.assert_close(torch.func.vmap(f)(torch.stack([x, x + 1]))[1], f(x + 1))
    g = torch.func.vmap(lambda x: OPS.upsample_bilinear2d(x, [5, 9], False))(x[None])
    torch.testing.assert_close(g[0], ATEN.upsample_bilinear2d(x, [5, 9], False))


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
@pytest.mark.parametrize("scale", (1e-18, 1e-30, 1e-40, 1e-320, 1e30))
def test_scales_beyond_what_an_index_holds(scale, dtype):
    """Found by a reader: the index of the first row was that of no row. Stock's, whatever it makes of them."""
    x = draw((1, 2, 5, 6), dtype)
    for align_corners in (False, True):
        args = (x, [4, 4], align_corners, scale, scale)
        torch.testing.assert_close(OPS.upsample_bilinear2d(*args), ATEN.upsample_bilinear2d(*args))
