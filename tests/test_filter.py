"""Blurs and sharpness of batches: against convolutions in float64, Pillow and OpenCV."""

import images as I
import pytest
import rusttorch
import torch
import torch.nn.functional as nn
from cases import opcheck
from rusttorch.data import functional as F

OPS = torch.ops.rusttorch


def blurred(images, across, down):
    """Each image padded by its mirror image, and convolved with an outer product."""
    out = []
    for image, row, column in zip(images.double(), across.double(), down.double(), strict=True):
        sides = (len(row) // 2, len(row) // 2, len(column) // 2, len(column) // 2)
        padded = nn.pad(image[:, None], sides, mode="reflect")
        out.append(nn.conv2d(padded, (column[:, None] * row)[None, None])[:, 0])
    y = torch.stack(out)
    return y.round() if images.dtype == torch.uint8 else y


def weights(n, taps, seed=0):
    w = torch.rand(n, taps, generator=torch.Generator().manual_seed(seed)) + 0.1
    return w / w.sum(1, keepdim=True)


@pytest.mark.parametrize("layout", I.LAYOUTS)
@pytest.mark.parametrize("dtype", I.DTYPES)
@pytest.mark.parametrize("taps", ((1, 1), (3, 5), (13, 9), (23, 1)))
def test_blur_against_convolution(taps, dtype, layout):
    for shape in (*I.SHAPES.values(), (2, 4, 20, 24), (2, 3, 13, 200)):
        if taps[0] // 2 >= shape[3] or taps[1] // 2 >= shape[2]:
            continue
        x = I.make(shape, dtype, layout)
        across, down = weights(shape[0], taps[0]), weights(shape[0], taps[1], seed=1)
        y = OPS.blur_images(x, across, down)
        I.lies_as(y, x)
        I.close(y, blurred(x, across, down), x, floats=2e-6)


@pytest.mark.parametrize("dtype", I.DTYPES)
def test_gaussian_blur(dtype):
    x = I.make((3, 3, 40, 50), dtype)
    sigma = torch.tensor([0.4, 1.0, 2.5])
    y = F.gaussian_blur(x, (7, 5), sigma[:, None])
    for n in range(3):
        rows = []
        for size in (7, 5):
            at = torch.arange(size, dtype=torch.float64) - size // 2
            w = torch.exp(-0.5 * (at / sigma[n].double()) ** 2)
            rows.append((w / w.sum())[None])
        I.close(y[n : n + 1], blurred(x[n : n + 1], *rows), x, floats=2e-6)
    assert torch.equal(F.gaussian_blur(x, 5), F.gaussian_blur(x, 5, 5 * 0.15 + 0.35))
    assert not torch.equal(F.gaussian_blur(x, 5, (0.5, 3.0)), F.gaussian_blur(x, 5, (3.0, 0.5)))


def test_gaussian_blur_against_opencv():
    cv2 = pytest.importorskip("cv2")
    x = I.make((2, 3, 40, 50), torch.float32)
    y = F.gaussian_blur(x, 9, 1.7)
    for image, result in zip(x, y, strict=True):
        expected = cv2.GaussianBlur(image.permute(1, 2, 0).numpy(), (9, 9), 1.7, borderType=cv2.BORDER_REFLECT_101)
        torch.testing.assert_close(result, torch.from_numpy(expected).permute(2, 0, 1), rtol=0, atol=1e-5)


def sharpened(images, f):
    """As torchvision has it."""
    x = images.double()
    if min(x.shape[2:]) <= 2:
        return x
    kernel = torch.ones(3, 3, dtype=torch.float64)
    kernel[1, 1] = 5
    channels = x.shape[1]
    blur = nn.conv2d(x, (kernel / 13).expand(channels, 1, 3, 3), groups=channels)
    whole = images.dtype == torch.uint8
    blur = blur.round() if whole else blur
    f = f.double()[:, None, None, None]
    x[:, :, 1:-1, 1:-1] = x[:, :, 1:-1, 1:-1] * f + blur * (1 - f)
    x = x.clamp(0, I.white(images))
    return (x + 1e-9).floor() if whole else x


@pytest.mark.parametrize("layout", I.LAYOUTS)
@pytest.mark.parametrize("dtype", I.DTYPES)
def test_sharpness(dtype, layout):
    for shape in (*I.SHAPES.values(), (2, 3, 3, 3), (2, 4, 20, 24), (2, 3, 13, 200)):
        x = I.make(shape, dtype, layout)
        f = torch.linspace(0.0, 2.5, shape[0])
        y = F.adjust_sharpness(x, f)
        I.lies_as(y, x)
        I.close(y, sharpened(x, f), x, floats=2e-6)
        if dtype == torch.uint8:  # by one, where a sum is nearly whole
            assert (y != sharpened(x, f)).double().mean() < 0.01
    which = torch.tensor([True, False])
    y = F.adjust_sharpness(x, 2.0, which)
    assert torch.equal(y[1], x[1]) and not torch.equal(y[0], x[0])


def test_sharpness_against_pillow():
    ImageEnhance, Image = pytest.importorskip("PIL.ImageEnhance"), pytest.importorskip("PIL.Image")
    numpy = pytest.importorskip("numpy")
    x = I.make((3, 3, 40, 50))
    f = [0.0, 0.6, 1.8]
    y = F.adjust_sharpness(x, f)
    for image, result, factor in zip(x, y, f, strict=True):
        theirs = ImageEnhance.Sharpness(Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())).enhance(factor)
        I.close(result, torch.from_numpy(numpy.array(theirs)).permute(2, 0, 1), x, levels=1)


def test_nan_stays_near():
    x = I.make((1, 1, 20, 40), torch.float32)
    x[0, 0, 10, 20] = float("nan")
    assert F.gaussian_blur(x, 5).isnan().sum() == 25
    assert F.adjust_sharpness(x, 0.5).isnan().sum() == 9


def test_threads():
    for dtype in I.DTYPES:
        x = I.make(I.LARGE, dtype)
        w = weights(5, 7)
        I.same_for_any_number_of_threads(lambda x=x, w=w: OPS.blur_images(x, w, w))
        I.same_for_any_number_of_threads(lambda x=x: F.adjust_sharpness(x, 1.5))
        for layout in I.LAYOUTS:
            one = I.make(I.ONE, dtype, layout)
            I.same_for_any_number_of_threads(lambda one=one: F.gaussian_blur(one, (5, 9)))
            I.same_for_any_number_of_threads(lambda one=one: F.adjust_sharpness(one, 1.5))


def test_nothing_there():
    assert F.gaussian_blur(torch.empty(0, 3, 5, 5), 3).shape == (0, 3, 5, 5)
    assert F.adjust_sharpness(torch.empty(2, 3, 0, 5), 0.5).shape == (2, 3, 0, 5)


def test_bad_input_is_refused():
    x = I.make((2, 3, 4, 5))
    w = weights(2, 3)
    I.refused(lambda: OPS.blur_images(x, weights(2, 4), w), "odd K")
    I.refused(lambda: OPS.blur_images(x, weights(2, 11), w), "mirrored image")
    I.refused(lambda: OPS.blur_images(x, w, weights(2, 9)), "mirrored image")
    I.refused(lambda: OPS.blur_images(x, weights(3, 3), w), "across of")
    I.refused(lambda: OPS.sharpen_images(x, torch.ones(3)), "factors of")
    I.refused(lambda: F.gaussian_blur(x, 4), "kernel_size")
    I.refused(lambda: F.gaussian_blur(x, 3, 0.0), "sigma")
    I.refused(lambda: F.adjust_sharpness(x, -1.0), "sharpness_factor")


@pytest.mark.parametrize("layout", I.LAYOUTS)
@pytest.mark.parametrize("dtype", I.DTYPES)
def test_opcheck(dtype, layout):
    x = I.make((2, 3, 6, 7), dtype, layout)
    opcheck(OPS.blur_images.default, (x, weights(2, 3), weights(2, 5)))
    opcheck(OPS.sharpen_images.default, (x, torch.ones(2)))


def test_kernels_ran():
    rusttorch.reset_stats()
    x = I.make((2, 3, 6, 7))
    F.gaussian_blur(x, 3), F.adjust_sharpness(x, 2.0)
    assert rusttorch.stats()["blur_images"].ran == 1 and rusttorch.stats()["sharpen_images"].ran == 1
