"""Colors of batches: against torchvision's formulas in float64, and Pillow."""

import images as I
import pytest
import rusttorch
import torch
from cases import opcheck
from rusttorch.data import functional as F

OPS = torch.ops.rusttorch
WEIGHTS = torch.tensor([0.2989, 0.587, 0.114], dtype=torch.float64)[:, None, None]


def gray(x, whole):
    """[N, 1, H, W]"""
    g = x if x.shape[1] == 1 else (x * WEIGHTS).sum(1, keepdim=True)
    return g.floor() if whole else g


def equalized(plane):
    """Of bytes, as Pillow's ImageOps.equalize."""
    counts = torch.bincount(plane.flatten(), minlength=256).tolist()
    there = [c for c in counts if c]
    step = (sum(there) - there[-1]) // 255
    if step == 0:
        return plane
    table, n = [], step // 2
    for c in counts:
        table.append(min(n // step, 255))
        n += c
    return torch.tensor(table)[plane]


def formula(step, x, f):
    """Of float64 images from 0 to white, with a factor [N, 1, 1, 1]; bytes are whole."""
    whole, top = x.dtype == torch.uint8, I.white(x)
    x = x.double()
    if step == "brightness":
        y = (x * f).clamp(0, top)
    elif step == "contrast":
        y = (x * f + gray(x, whole).mean((1, 2, 3), keepdim=True) * (1 - f)).clamp(0, top)
    elif step == "saturation":
        y = x if x.shape[1] == 1 else (x * f + gray(x, whole) * (1 - f)).clamp(0, top)
    elif step == "hue":
        y = hue(x / top, f) * (255.999 if whole else 1) if x.shape[1] == 3 else x
    elif step == "invert":
        y = top - x
    elif step == "solarize":
        y = torch.where(x >= f, top - x, x)
    elif step == "posterize":
        y = (x // 2 ** (8 - f) * 2 ** (8 - f)) if whole else torch.minimum((x * 2**f).floor(), 2**f - 1) / 2**f
    elif step == "autocontrast":
        low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
        y = torch.where(low == high, x, (x - low) * top / torch.where(low == high, 1, high - low))
    elif step == "equalize":
        bytes_ = (x if whole else x * 255.999).long()
        y = torch.stack([torch.stack([equalized(p) for p in image]) for image in bytes_]) * (1 if whole else 1 / 255)
    return (y + 1e-9).floor() if whole else y


def hue(x, by):
    """By hue, saturation and value, as torchvision has it."""
    r, g, b = x.unbind(1)
    value, least = x.amax(1), x.amin(1)
    same = value == least
    s = torch.where(same, 0, (value - least) / torch.where(value == 0, 1, value))
    rc, gc, bc = ((value - c) / torch.where(same, 1, value - least) for c in (r, g, b))
    h = torch.where(value == r, bc - gc, torch.where(value == g, 2 + rc - bc, 4 + gc - rc))
    h = torch.where(same, 0, h / 6).remainder(1)
    h = (h + by[:, 0]).remainder(1) * 6
    i, f = h.floor().long() % 6, h - h.floor()
    p, q, t = value * (1 - s), value * (1 - s * f), value * (1 - s * (1 - f))
    which = {0: (value, t, p), 1: (q, value, p), 2: (p, value, t), 3: (p, q, value), 4: (t, p, value), 5: (value, p, q)}
    out = torch.zeros_like(x)
    for k, channels in which.items():
        out = torch.where((i == k)[:, None], torch.stack(channels, 1), out)
    return out


FUNCTIONS = {
    "brightness": F.adjust_brightness,
    "contrast": F.adjust_contrast,
    "saturation": F.adjust_saturation,
    "hue": F.adjust_hue,
    "invert": lambda x, f: F.invert(x),
    "solarize": F.solarize,
    "posterize": F.posterize,
    "autocontrast": lambda x, f: F.autocontrast(x),
    "equalize": lambda x, f: F.equalize(x),
}

# Floats that are equalized jump with the byte that they become.
EQUALIZED = 1.1 / 255


def factors(step, x):
    """One for each image."""
    n = len(x)
    if step == "hue":
        return torch.linspace(-0.5, 0.4, n)
    if step == "posterize":
        return torch.arange(n) % 8 + 1.0
    if step == "solarize":
        return torch.linspace(0.2, 0.9, n) * I.white(x)
    return torch.linspace(0.3, 1.9, n)


@pytest.mark.parametrize("layout", I.LAYOUTS)
@pytest.mark.parametrize("dtype", I.DTYPES)
@pytest.mark.parametrize("step", FUNCTIONS)
def test_against_the_formula(step, dtype, layout):
    for shape in (*I.SHAPES.values(), (2, 3, 90, 100)):
        x = I.make(shape, dtype, layout)
        if step == "equalize" and dtype == torch.uint8:
            x[0] //= 2
        f = factors(step, x)
        result = FUNCTIONS[step](x, f)
        I.lies_as(result, x)
        expected = formula(step, x, f.double()[:, None, None, None])
        I.close(result, expected, x, levels=1, floats=EQUALIZED if step == "equalize" else 2e-6)


@pytest.mark.parametrize("step", ("invert", "solarize", "posterize", "autocontrast", "equalize"))
def test_bytes_are_exact(step):
    x = I.make((3, 3, 90, 100))
    x[0] = x[0] // 3 + 20
    f = factors(step, x)
    expected = formula(step, x, f.double()[:, None, None, None])
    I.close(FUNCTIONS[step](x, f), expected, x, levels=0)
    steps = torch.full((3, 1), F.STEPS.index(step))
    I.close(OPS.color_images(x, steps, f[:, None]), expected, x, levels=0)


def pillow(image, f):
    """f of Pillow's image, as a tensor."""
    numpy, Image = pytest.importorskip("numpy"), pytest.importorskip("PIL.Image")
    out = f(Image.fromarray(numpy.ascontiguousarray(image.permute(1, 2, 0).numpy())))
    return torch.from_numpy(numpy.array(out)).permute(2, 0, 1)


@pytest.mark.parametrize("step", FUNCTIONS)
def test_against_pillow(step):
    ImageEnhance, ImageOps = pytest.importorskip("PIL.ImageEnhance"), pytest.importorskip("PIL.ImageOps")
    calls = {
        "brightness": lambda i, f: ImageEnhance.Brightness(i).enhance(f),
        "contrast": lambda i, f: ImageEnhance.Contrast(i).enhance(f),
        "saturation": lambda i, f: ImageEnhance.Color(i).enhance(f),
        "invert": lambda i, f: ImageOps.invert(i),
        "solarize": lambda i, f: ImageOps.solarize(i, f),
        "posterize": lambda i, f: ImageOps.posterize(i, int(f)),
        "autocontrast": lambda i, f: ImageOps.autocontrast(i),
        "equalize": lambda i, f: ImageOps.equalize(i),
    }
    if step not in calls:
        pytest.skip("Pillow's hues are bytes")
    x = I.make((3, 3, 64, 80))
    x[1] = x[1] // 2 + 30
    f = factors(step, x)
    expected = torch.stack([pillow(image, lambda i, k=k: calls[step](i, float(f[k]))) for k, image in enumerate(x)])
    # Pillow's gray is rounded, where torchvision's is cut, and so is its mean.
    levels = 2 if step in ("contrast", "saturation") else 1 if step == "brightness" else 0
    I.close(FUNCTIONS[step](x, f), expected, x, levels=levels)


@pytest.mark.parametrize("layout", I.LAYOUTS)
@pytest.mark.parametrize("dtype", I.DTYPES)
def test_steps_one_after_the_other(dtype, layout):
    """Of each image its own, each on what the one before it made."""
    x = I.make((4, 3, 45, 53), dtype, layout)
    names = ["brightness", "equalize", "hue", "contrast", "autocontrast", "saturation", "posterize", "solarize"]
    order = torch.rand(4, 8, generator=torch.Generator().manual_seed(1)).argsort(1)
    steps = torch.tensor([F.STEPS.index(name) for name in names])[order]
    by = torch.stack([factors(name, x) for name in names], 1).gather(1, order)
    result = OPS.color_images(x, steps, by)
    for n in range(4):
        one = x[n : n + 1]
        for k, step in enumerate(order[n]):
            one = FUNCTIONS[names[step]](one, by[n, k : k + 1])
        I.close(result[n : n + 1], one, x, levels=0, floats=1e-5)


@pytest.mark.parametrize("layout", I.LAYOUTS)
@pytest.mark.parametrize("dtype", I.DTYPES)
def test_in_place(dtype, layout):
    x = I.make((4, 3, 45, 53), dtype, layout)
    steps, by = torch.tensor([[1], [0], [4], [2]]), torch.full((4, 1), 0.3)
    expected = OPS.color_images(x, steps, by)
    result = x.clone() if layout != "strided" else I.make((4, 3, 45, 53), dtype, layout)
    assert OPS.color_images_(result, steps, by) is result
    assert torch.equal(result, expected) and torch.equal(result[1], x[1])


def test_in_place_for_autograd():
    steps, by = torch.tensor([[1]]), torch.full((1, 1), 0.3)
    x = I.make((1, 3, 4, 5), torch.float32)
    version = x._version
    OPS.color_images_(x, steps, by)
    assert x._version == version + 1
    before = x.clone()
    I.refused(lambda: OPS.color_images_(x.requires_grad_(), steps, by), "leaf Variable that requires grad")
    I.refused(lambda: OPS.color_images_(x * 1, steps, by), "has no derivative")
    with torch.inference_mode():
        inference = before.clone()
        OPS.color_images_(before.clone(), steps, by)
    I.refused(lambda: OPS.color_images_(inference, steps, by), "[Ii]nference tensor")
    assert torch.equal(x, before) and torch.equal(inference, before)


@pytest.mark.parametrize("dtype", I.DTYPES)
def test_which(dtype):
    x = I.make((4, 3, 45, 53), dtype)
    x = x // 2 + 20 if dtype == torch.uint8 else x / 2 + 0.1
    which = torch.tensor([True, False, True, False])
    calls = {
        F.invert: (),
        F.equalize: (),
        F.autocontrast: (),
        F.adjust_brightness: (0.5,),
        F.adjust_contrast: (0.5,),
        F.adjust_saturation: (0.5,),
        F.adjust_hue: (0.25,),
        F.solarize: (0.5,),
        F.posterize: (2,),
    }
    for f, given in calls.items():
        result, all_ = f(x, *given, which=which), f(x, *given)
        assert torch.equal(result[which], all_[which]) and torch.equal(result[~which], x[~which])
        assert not torch.equal(result[which], x[which])
        assert torch.equal(f(x, *given, which=which.tolist()), result)
    gray = F.rgb_to_grayscale(x, 3, which)
    assert torch.equal(gray[~which], x[~which]) and torch.equal(gray[0, 0], gray[0, 2])
    assert F.rgb_to_grayscale(x).shape == (4, 1, 45, 53)


@pytest.mark.parametrize("dtype", I.DTYPES)
def test_which_that_is_no_bool_of_each_image_is_refused(dtype):
    x = I.make((4, 3, 8, 9), dtype)
    calls = {
        **dict.fromkeys((F.invert, F.equalize, F.autocontrast, F.horizontal_flip, F.vertical_flip), ()),
        **dict.fromkeys((F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_sharpness), (0.5,)),
        **dict.fromkeys((F.adjust_hue, F.solarize), (0.25,)),
        **dict.fromkeys((F.posterize, F.rgb_to_grayscale), (3,)),
    }
    for f, given in calls.items():
        for which in (torch.tensor([0, 0, 0, 1]), torch.ones(4, dtype=torch.uint8), [True], True, [[True] * 4]):
            I.refused(lambda f=f, given=given, which=which: f(x, *given, which=which), r"which to be bool \[4\]")


def test_nan_stays():
    x = I.make((2, 3, 20, 33), torch.float32)
    x[0, 1, 3, 4] = float("nan")
    for step in ("brightness", "saturation", "hue", "invert", "solarize", "posterize"):
        y = FUNCTIONS[step](x, 0.4 if step != "posterize" else 3.0)
        nan = y.isnan()
        assert nan[0, 1, 3, 4] and not nan[1].any() and nan.sum() == (3 if step in ("saturation", "hue") else 1), step
    for step in ("contrast", "autocontrast"):
        y = FUNCTIONS[step](x, 0.4)
        assert y[0].isnan().any() and not y[1].isnan().any(), step


@pytest.mark.parametrize("layout", I.LAYOUTS)
@pytest.mark.parametrize("dtype", I.DTYPES)
def test_normalize(dtype, layout):
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    m, s = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (mean, std))
    for shape in ((3, 3, 29, 37), (2, 3, 1, 1), (16, 3, 301, 301), (0, 3, 4, 4)):
        x = I.make(shape, dtype, layout)
        y = F.normalize(x, mean, std)
        assert y.dtype == torch.float32
        I.lies_as(y, x)
        assert torch.allclose(y.double(), (x.double() / I.white(x) - m) / s, rtol=1e-6, atol=1e-6)
    four = I.make((2, 4, 7, 9), dtype, layout)
    for one in (0.5, [0.5]):
        assert torch.equal(F.normalize(four, one, 2.0), F.normalize(four, [0.5] * 4, [2.0] * 4))
    weights = torch.arange(1.0, 5)
    torch.testing.assert_close(
        F.normalize(four, weights, weights).double(),
        (four.double() / I.white(four) / weights.double()[:, None, None] - 1),
        rtol=1e-6,
        atol=1e-6,
    )


def test_to_dtype():
    x = I.make((2, 3, 16, 16))
    torch.testing.assert_close(F.to_dtype(x, torch.float32, scale=True), x / 255)
    assert torch.equal(F.to_dtype(F.to_dtype(x, torch.float32, scale=True), torch.uint8, scale=True), x)
    assert torch.equal(F.to_dtype(x, torch.float32), x.float())
    assert F.to_dtype(x, torch.bfloat16, scale=True).dtype == torch.bfloat16
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert torch.equal(F.to_dtype(x / 255, dtype, scale=True), (x / 255).to(dtype))


@pytest.mark.parametrize("dtype", I.DTYPES)
def test_threads(dtype):
    x = I.make(I.LARGE, dtype)
    steps = torch.tensor([[1, 2, 3, 4], [9, 8, 2, 1], [2, 2, 2, 2], [8, 9, 4, 5], [0, 0, 0, 2]])
    I.same_for_any_number_of_threads(lambda: OPS.color_images(x, steps, torch.full((5, 4), 0.4)))
    I.same_for_any_number_of_threads(lambda: F.normalize(x, [0.1, 0.2, 0.3], [1.0, 2.0, 3.0]))
    I.same_for_any_number_of_threads(lambda: OPS.mix_images(x.float(), torch.linspace(0, 1, 5)))
    for layout in I.LAYOUTS:
        one = I.make(I.ONE, dtype, layout)
        for these in (*steps.split(1), *torch.arange(10)[:, None].split(1)):
            by = torch.full(these.shape, 0.4)
            I.same_for_any_number_of_threads(lambda one=one, s=these, by=by: OPS.color_images(one, s, by))
            I.same_for_any_number_of_threads(lambda one=one, s=these, by=by: OPS.color_images_(one.clone(), s, by))


@pytest.mark.parametrize("shape", [(7, 3, 33, 65), (2, 1, 1, 5), (1, 3, 4, 4), (40, 3, 200, 200)])
@pytest.mark.parametrize("layout", I.LAYOUTS)
def test_mix(shape, layout):
    x = I.make(shape, torch.float32, layout)
    kept = torch.linspace(0, 1, len(x))
    y, weight = OPS.mix_images(x, kept), kept[:, None, None, None]
    torch.testing.assert_close(y, torch.lerp(x.roll(1, 0), x, weight), rtol=0, atol=1e-6)
    assert torch.equal(y[-1], x[-1]) or len(x) == 1  # of which all is kept
    I.lies_as(y, x)


def test_nothing_there():
    for dtype in I.DTYPES:
        assert F.adjust_contrast(torch.empty(0, 3, 5, 5, dtype=dtype), 0.5).shape == (0, 3, 5, 5)
        assert F.equalize(torch.empty(2, 3, 0, 5, dtype=dtype)).shape == (2, 3, 0, 5)


def test_bad_input_is_refused_before_anything_is_written():
    x = I.make((2, 3, 4, 5))
    steps, by = torch.ones(2, 1, dtype=torch.long), torch.full((2, 1), 0.5)
    before = x.clone()
    I.refused(lambda: OPS.color_images_(x, torch.tensor([[1], [10]]), by), "no step 10")
    I.refused(lambda: OPS.color_images_(x, steps, by[:1]), r"factors of \[2, 1\]")
    I.refused(lambda: OPS.color_images_(x, steps.expand(2, 9), by.expand(2, 9)), "at most 8 steps")
    assert torch.equal(x, before)
    I.refused(lambda: OPS.color_images(x[0], steps, by), r"images \[N, C, H, W\]")
    I.refused(lambda: OPS.color_images(x.double(), steps, by), "uint8 or float32")
    I.refused(lambda: OPS.color_images(x[:, :2], steps, by), "1 or 3 channels")
    I.refused(lambda: F.adjust_brightness(x, [1.0, 2.0, 3.0]), "one parameter for each")
    I.refused(lambda: F.adjust_hue(x, 0.6), "hue_factor")
    I.refused(lambda: F.normalize(x, [0.0, 0.0], [1.0, 1.0]), "std of")
    for dtype in (torch.uint8, torch.float64, torch.bfloat16):
        I.refused(lambda dtype=dtype: OPS.mix_images(x.to(dtype), torch.ones(2)), "images of float32, but")
    I.refused(lambda: OPS.mix_images(x / 255, torch.ones(3)), r"kept of \[2\]")
    I.refused(lambda: F.to_dtype(x, torch.int64, scale=True), "no scale")


@pytest.mark.parametrize("layout", I.LAYOUTS)
@pytest.mark.parametrize("dtype", I.DTYPES)
def test_opcheck(dtype, layout):
    x = I.make((2, 3, 6, 7), dtype, layout)
    steps, by = torch.tensor([[1], [0]]), torch.full((2, 1), 0.5)
    opcheck(OPS.color_images.default, (x, steps, by))
    opcheck(OPS.color_images_.default, (x.clone(), steps, by))
    opcheck(OPS.normalize_images.default, (x, torch.zeros(3), torch.ones(3)))
    opcheck(OPS.mix_images.default, (x.float(), torch.ones(2)))


def test_kernels_ran():
    rusttorch.reset_stats()
    F.solarize(I.make((2, 3, 6, 7)), 100)
    assert rusttorch.stats()["color_images"].ran == 1


def test_levels_of_white():
    """The highest of so many levels."""
    assert F.posterize(torch.ones(1, 1, 1, 2), 3).tolist() == [[[[0.875, 0.875]]]]


def test_no_derivative():
    """An error, where torch would warn in the backward and leave the gradient out."""
    x = torch.rand(2, 3, 4, 4, requires_grad=True)
    calls = (
        lambda: F.adjust_brightness(x, 0.5),
        lambda: F.normalize(x, 0.5, 0.5),
        lambda: F.horizontal_flip(x),
        lambda: F.rotate(x, 10),
        lambda: F.gaussian_blur(x, 3),
        lambda: F.adjust_sharpness(x, 0.5),
    )
    for call in calls:
        with pytest.raises(NotImplementedError, match="has no derivative"):
            call()
        with torch.no_grad():
            assert not call().requires_grad
    with pytest.raises(NotImplementedError, match="has no derivative"):
        torch.func.grad(lambda x: F.adjust_brightness(x, 0.5).sum())(x.detach())


def test_parameters_without_memory():
    x, steps = torch.rand(2, 3, 4, 4), torch.ones(2, 1, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="same device"):
        OPS.color_images(x, steps.to("meta"), torch.ones(2, 1))


def test_negative_factors():
    for step in (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_sharpness):
        for factor in (-0.5, float("nan"), [1.0, -1.0]):
            I.refused(lambda step=step, factor=factor: step(torch.rand(2, 3, 4, 4), factor), "must not be negative")
