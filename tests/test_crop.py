"""Flips and crops of batches: torch's, to the bit."""

import images as I
import pytest
import rusttorch
import torch
from cases import opcheck
from rusttorch.data import functional as F
from rusttorch.data import transforms as T

OPS = torch.ops.rusttorch


def cut(images, corner, mirrored, size, fill):
    """By torch's pad, narrow and flip."""
    out = []
    for image, (top, left), flips in zip(images, corner.tolist(), mirrored.tolist(), strict=True):
        around = max(abs(top), abs(left)) + max(*size, *image.shape[1:])
        padded = fill[:, None, None].expand(-1, *(n + 2 * around for n in image.shape[1:])).clone()
        padded[:, around : around + image.shape[1], around : around + image.shape[2]] = image
        part = padded[:, top + around :, left + around :][:, : size[0], : size[1]]
        out.append(part.flip([d for d, flip in zip((1, 2), flips, strict=True) if flip]))
    return torch.stack(out)


@pytest.mark.parametrize("layout", I.LAYOUTS)
@pytest.mark.parametrize("dtype", I.DTYPES)
def test_against_torch(dtype, layout):
    generator = torch.Generator().manual_seed(0)
    for shape in (*I.SHAPES.values(), (2, 4, 20, 21), (2, 6, 20, 75), (8, 3, 20, 33)):
        x = I.make(shape, dtype, layout)
        fill = torch.arange(1, shape[1] + 1).to(dtype)
        for size in (shape[2:], (shape[2] + 9, 5), (7, shape[3] + 40)):
            corner = torch.randint(-12, 12, (shape[0], 2), generator=generator)
            corner[0] = torch.tensor([1000, -1000])
            mirrored = torch.rand(shape[0], 2, generator=generator) < 0.5
            y = OPS.crop_images(x, corner, mirrored, size, fill)
            I.lies_as(y, x)
            assert torch.equal(y, cut(x, corner, mirrored, size, fill))


@pytest.mark.parametrize("dtype", I.DTYPES)
def test_functions(dtype):
    x = I.make((4, 3, 30, 41), dtype)
    which = torch.tensor([True, False, True, False])
    assert torch.equal(F.horizontal_flip(x), x.flip(3)) and torch.equal(F.vertical_flip(x), x.flip(2))
    y = F.horizontal_flip(x, which)
    assert torch.equal(y[which], x[which].flip(3)) and torch.equal(y[~which], x[~which])
    assert torch.equal(F.crop(x, 3, 4, 10, 20), x[:, :, 3:13, 4:24])
    top = torch.tensor([0, 1, 2, 3])
    assert torch.equal(F.crop(x, top, 4, 10, 20)[3], x[3, :, 3:13, 4:24])
    assert torch.equal(F.center_crop(x, (10, 21)), x[:, :, 10:20, 10:31])
    assert torch.equal(F.center_crop(x, 50)[:, :, 10:40, 4:45], x)
    assert F.crop(x, -5, 0, 5, 5, fill=0.5 if dtype == torch.float32 else 7).float().unique().tolist() == [
        0.5 if dtype == torch.float32 else 7.0
    ]


def test_center_crop_pads_as_torchvision():
    """Of an odd number that is missing, the smaller half before the image."""
    for width in range(25, 38):
        x = I.make((1, 1, 4, width)) // 2 + 1
        missing = 33 - width
        padded = torch.nn.functional.pad(x, (max(missing, 0) // 2, (max(missing, 0) + 1) // 2))
        left = round((padded.shape[3] - 33) / 2)
        expected = padded[..., left : left + 33]
        assert torch.equal(F.center_crop(x, (4, 33)), expected) and torch.equal(T.CenterCrop((4, 33))(x), expected)


def test_fills_of_bytes_are_rounded_and_clamped():
    x = I.make((1, 3, 4, 5))
    fill = [300.0, -7.0, 2.7]
    expected = torch.tensor([255, 0, 3], dtype=torch.uint8)
    assert torch.equal(F.crop(x, -1, 0, 1, 1, fill=fill)[0, :, 0, 0], expected)
    assert torch.equal(F.erase(x, 0, 0, 1, 1, fill)[0, :, 0, 0], expected)
    noise = torch.tensor(fill)[None, :, None, None].expand_as(x)
    assert torch.equal(F.erase(x, 0, 0, 1, 1, noise)[0, :, 0, 0], expected)
    none = torch.zeros(1, 2)
    assert torch.equal(OPS.crop_images(x, none - 9, none > 0, (1, 1), torch.tensor(fill))[0, :, 0, 0], expected)
    for interpolation in ("nearest", "bilinear"):
        y = F.affine(x, 0.0, (50.0, 0.0), 1.0, (0.0, 0.0), interpolation, fill)
        assert torch.equal(y[0, :, 0, 0], expected)
    assert torch.equal(F.crop(x, -1, 0, 3, 3, fill=None), F.crop(x, -1, 0, 3, 3))


@pytest.mark.parametrize("layout", I.LAYOUTS)
@pytest.mark.parametrize("dtype", I.DTYPES)
def test_erase(dtype, layout):
    x = I.make((3, 3, 20, 30), dtype, layout)
    top, height = torch.tensor([1, 2, 3]), torch.tensor([5, 0, 6])
    y = F.erase(x, top, 4, height, 7, [0.0, 1.0, 0.5])
    expected = x.clone()
    expected[0, :, 1:6, 4:11] = torch.tensor([0.0, 1.0, 0.5]).to(dtype)[:, None, None]
    expected[2, :, 3:9, 4:11] = torch.tensor([0.0, 1.0, 0.5]).to(dtype)[:, None, None]
    assert torch.equal(y, expected) and y is not x
    noise = I.make((3, 3, 20, 30), dtype, seed=5)
    assert torch.equal(F.erase(x, 0, 0, 20, 30, noise), noise)
    for patch in (noise[0, :, :1, :1], noise[0, :, :5, :7]):
        expected_of_patch = x.clone()
        expected_of_patch[1:, :, 2:7, 4:11] = patch
        assert torch.equal(F.erase(x, 2, 4, torch.tensor([0, 5, 5]), 7, patch), expected_of_patch)
    if dtype == torch.uint8:
        assert F.erase(x, 2, 4, 5, 7, torch.full((3, 1, 1), 300.6))[0, 0, 2, 4] == 255
    for wrong in (noise[0, 0], noise[:2]):
        I.refused(lambda wrong=wrong: F.erase(x, 2, 4, 5, 7, wrong), "expected v to be")
    inplace = x.clone()
    assert F.erase(inplace, top, 4, height, 7, [0.0, 1.0, 0.5], inplace=True) is inplace
    assert torch.equal(inplace, expected)


def test_threads():
    x = I.make(I.LARGE)
    mirrored = torch.tensor([[True, False], [True, True], [False, True], [False, False], [True, True]])
    corner = torch.arange(10).view(5, 2) - 5
    I.same_for_any_number_of_threads(lambda: OPS.crop_images(x, corner, mirrored, (120, 99)))
    for layout in I.LAYOUTS:
        one = I.make(I.ONE, layout=layout)
        for k in range(5):
            where = corner[k : k + 1], mirrored[k : k + 1]
            I.same_for_any_number_of_threads(lambda one=one, where=where: OPS.crop_images(one, *where, (337, 301)))


def test_large_ones_are_written_around_the_cache():
    """What is too large for the cache: rows of any length, of which lines of the cache have several."""
    for size, layout in (((1500, 1001), "contiguous"), ((1500, 1001), "channels_last"), ((1400, 1024), "contiguous")):
        x = I.make((4, 3, 1400, 1024), torch.float32, layout)
        corner = torch.tensor([[0, 0], [-3, -5], [7, 1], [1399, 1000]])
        mirrored = torch.tensor([[False, False], [True, False], [False, True], [True, True]])
        fill = torch.tensor([0.25, 0.5, 0.75])
        y = OPS.crop_images(x, corner, mirrored, size, fill)
        I.lies_as(y, x)
        for k, (top, left) in enumerate(corner.tolist()):
            expected = fill[:, None, None].repeat(1, *size)
            rows, columns = (
                [i for i in range(n) if 0 <= first + i < m]
                for n, m, first in zip(size, x.shape[2:], (top, left), strict=True)
            )
            expected[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = x[
                k, :, top + rows[0] : top + rows[-1] + 1, left + columns[0] : left + columns[-1] + 1
            ]
            flips = [d + 1 for d in range(2) if mirrored[k, d]]
            assert torch.equal(y[k], expected.flip(flips))


def test_nothing_there():
    assert F.horizontal_flip(torch.empty(0, 3, 5, 5)).shape == (0, 3, 5, 5)
    assert F.crop(torch.empty(2, 3, 5, 5), 0, 0, 0, 3).shape == (2, 3, 0, 3)
    assert torch.equal(F.crop(torch.empty(2, 3, 0, 5), 0, 0, 2, 2, fill=3.0), torch.full((2, 3, 2, 2), 3.0))


def test_bad_input_is_refused():
    x = I.make((2, 3, 4, 5))
    corner, mirrored = torch.zeros(2, 2, dtype=torch.long), torch.zeros(2, 2, dtype=torch.bool)
    I.refused(lambda: OPS.crop_images(x, corner[:1], mirrored, (4, 5)), r"corner of \[2, 2\]")
    I.refused(lambda: OPS.crop_images(x, corner, mirrored, (-4, 5)), "expected a size")
    for size in ([], [4], [4, 4, 4]):
        for device in ("cpu", "meta"):
            I.refused(
                lambda size=size, d=device: OPS.crop_images(x.to(d), corner.to(d), mirrored.to(d), size),
                r"\[height, width\]",
            )
    least = torch.full_like(corner, torch.iinfo(torch.int64).min)
    I.refused(lambda: OPS.crop_images(x, least, mirrored, (4, 5)), "a corner at")
    I.refused(lambda: OPS.crop_images(x, corner - 2**40, mirrored, (4, 5)), "a corner at")
    I.refused(lambda: OPS.crop_images(x, corner, mirrored, (4, 5), torch.zeros(2)), "fill of")
    I.refused(lambda: OPS.crop_images(x.int(), corner, mirrored, (4, 5)), "uint8 or float32")


@pytest.mark.parametrize("layout", I.LAYOUTS)
@pytest.mark.parametrize("dtype", I.DTYPES)
def test_opcheck(dtype, layout):
    x = I.make((2, 3, 6, 7), dtype, layout)
    corner, mirrored = torch.ones(2, 2, dtype=torch.long), torch.eye(2) > 0
    opcheck(OPS.crop_images.default, (x, corner, mirrored, (5, 9)))
    opcheck(OPS.crop_images.default, (x, corner, mirrored, (5, 9), torch.ones(3)))


def test_kernels_ran():
    rusttorch.reset_stats()
    F.vertical_flip(I.make((2, 3, 6, 7)))
    assert rusttorch.stats()["crop_images"].ran == 1
