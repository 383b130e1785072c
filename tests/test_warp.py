"""Rotations, affine maps, perspectives and resized crops of batches: against grid_sample in float64, Pillow, OpenCV."""

import math

import images as I
import pytest
import rusttorch
import torch
from cases import opcheck
from rusttorch.data import functional as F

OPS = torch.ops.rusttorch


def maps(n, height, width, seed=0):
    """Rotations about the middle, with a little of everything, [N, 3, 3]."""
    generator = torch.Generator().manual_seed(seed)

    def random(low, high):
        return low + (high - low) * torch.rand(n, dtype=torch.float64, generator=generator)

    x = torch.empty(n, 3, height, width)
    shear, shift = torch.stack([random(-20, 20), random(-9, 9)], 1), torch.stack([random(-3, 3), random(-3, 3)], 1)
    return F.affine_matrix(x, random(-180, 180), shift, random(0.5, 1.8), shear)


def perspectives(n, height, width):
    matrix = maps(n, height, width)
    matrix[:, 2, 0], matrix[:, 2, 1] = 0.3 / width, -0.2 / height
    return matrix


def points(matrix, size):
    """Where each pixel of the result comes from, [N, h, w] each."""
    y, x = torch.meshgrid(*(torch.arange(s, dtype=torch.float64) + 0.5 for s in size), indexing="ij")
    at = torch.stack([x, y, torch.ones_like(x)], -1) @ matrix[:, None].mT
    return at[..., 0] / at[..., 2], at[..., 1] / at[..., 2]


def sampled(images, matrix, size, bilinear, fill=None):
    """By torch's grid_sample in float64, of images less what is beyond them."""
    fill = torch.zeros(images.shape[1]) if fill is None else fill
    fill = fill.double()[:, None, None]
    if images.dtype == torch.uint8:
        fill = fill.round()
    px, py = points(matrix, size)
    height, width = images.shape[2:]
    if bilinear:
        grid = torch.stack([2 * px / width - 1, 2 * py / height - 1], -1)
        y = torch.nn.functional.grid_sample(images.double() - fill, grid, align_corners=False) + fill
        return y.round() if images.dtype == torch.uint8 else y
    ix, iy = px.floor().long(), py.floor().long()
    there = (ix >= 0) & (ix < width) & (iy >= 0) & (iy < height)
    at = (iy.clamp(0, height - 1) * width + ix.clamp(0, width - 1)).flatten(1)[:, None]
    picked = images.flatten(2).gather(2, at.expand(-1, images.shape[1], -1)).double()
    return torch.where(there[:, None], picked.view(len(images), -1, *size), fill)


@pytest.mark.parametrize("layout", I.LAYOUTS)
@pytest.mark.parametrize("dtype", I.DTYPES)
@pytest.mark.parametrize("bilinear", (True, False))
@pytest.mark.parametrize("make_maps", (maps, perspectives))
def test_against_grid_sample(make_maps, bilinear, dtype, layout):
    for shape in (*I.SHAPES.values(), (2, 4, 20, 21), (2, 6, 20, 21)):
        x = I.make(shape, dtype, layout)
        for size in (shape[2:], (31, 140)):
            for fill in (None, torch.arange(1.0, shape[1] + 1) * I.white(x) / 8):
                matrix = make_maps(shape[0], *shape[2:])
                y = OPS.warp_images(x, matrix, size, bilinear, None, fill)
                I.lies_as(y, x)
                expected = sampled(x, matrix, size, bilinear, fill)
                if bilinear:
                    I.close(y, expected, x, floats=1e-4)
                else:  # of points between two pixels either may be the nearest
                    assert ((y.double() - expected).abs() > 1e-6).float().mean() < 1e-3


def test_identity_keeps_every_bit():
    for dtype in I.DTYPES:
        x = I.make((3, 3, 29, 37), dtype)
        for interpolation in ("nearest", "bilinear"):
            assert torch.equal(F.warp(x, torch.eye(3), interpolation=interpolation), x)
            assert torch.equal(F.rotate(x, 0.0, interpolation), x)


def test_quarter_turns():
    x = I.make((4, 3, 30, 30))
    y = F.rotate(x, [0.0, 90.0, 180.0, 270.0])
    assert torch.equal(y, torch.stack([x[k].rot90(k, (1, 2)) for k in range(4)]))


def pillow(x, f):
    numpy, Image = pytest.importorskip("numpy"), pytest.importorskip("PIL.Image")
    out = [numpy.array(f(Image.fromarray(i.permute(1, 2, 0).contiguous().numpy()), k)) for k, i in enumerate(x)]
    return torch.from_numpy(numpy.stack(out)).permute(0, 3, 1, 2)


def inside(matrix, size, images):
    """Pixels whose four are all in the image. (Pillow lets its edge go on, and where a point is beyond it is black.)"""
    px, py = points(matrix, size)
    height, width = images.shape[2:]
    return ((px > 0.51) & (px < width - 0.51) & (py > 0.51) & (py < height - 0.51))[:, None]


@pytest.mark.parametrize("interpolation", ("nearest", "bilinear"))
@pytest.mark.parametrize("make_maps", (maps, perspectives))
def test_against_pillow(make_maps, interpolation):
    Image = pytest.importorskip("PIL.Image")
    x = I.make((4, 3, 60, 75))
    matrix = make_maps(4, 60, 75)
    affine = make_maps is maps
    how = Image.Transform.AFFINE if affine else Image.Transform.PERSPECTIVE
    resample = Image.Resampling.BILINEAR if interpolation == "bilinear" else Image.Resampling.NEAREST
    coefficients = (matrix / matrix[:, 2:, 2:]).flatten(1)[:, : 6 if affine else 8]
    expected = pillow(x, lambda i, k: i.transform((75, 60), how, coefficients[k].tolist(), resample))
    y = F.warp(x, matrix, interpolation=interpolation)
    there = inside(matrix, (60, 75), x).expand_as(y)
    assert there.float().mean() > 0.3
    apart = (y.int() - expected.int()).abs()[there]
    assert (apart > 1).float().mean() < (1e-3 if interpolation == "nearest" else 1e-9)


def test_against_opencv():
    cv2, numpy = pytest.importorskip("cv2"), pytest.importorskip("numpy")
    x = I.make((4, 3, 60, 75), torch.float32)
    fill = (0.2, 0.5, 0.7)
    for matrix, warp in ((maps(4, 60, 75), cv2.warpAffine), (perspectives(4, 60, 75), cv2.warpPerspective)):
        to_middle = torch.tensor([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]], dtype=torch.float64)
        theirs = torch.linalg.inv(to_middle) @ matrix @ to_middle  # (0, 0) in the middle of the first pixel
        rows = 2 if warp is cv2.warpAffine else 3
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        out = [
            warp(i.permute(1, 2, 0).numpy(), m[:rows].numpy(), (75, 60), flags=flags, borderValue=fill)
            for i, m in zip(x, theirs, strict=True)
        ]
        expected = torch.from_numpy(numpy.stack(out)).permute(0, 3, 1, 2)
        # OpenCV rounds points to a 32nd of a pixel.
        I.close(F.warp(x, matrix, fill=fill), expected, x, floats=0.08)


def test_affine_is_torchvision_s():
    """Turned, scaled, sheared and moved, in that order of theirs: by the forward matrix T C R S Sh C^-1."""
    x = torch.empty(1, 3, 40, 50)
    angle, shift, scale, shear = 33.0, (4.0, -7.0), 1.3, (11.0, -6.0)
    a, sx, sy = (math.radians(v) for v in (angle, *shear))
    center = torch.tensor([[1, 0, 25.0], [0, 1, 20], [0, 0, 1]], dtype=torch.float64)
    moved = torch.tensor([[1, 0, shift[0]], [0, 1, shift[1]], [0, 0, 1]], dtype=torch.float64)
    turned = [
        [math.cos(a - sy) / math.cos(sy), -math.cos(a - sy) * math.tan(sx) / math.cos(sy) - math.sin(a), 0],
        [math.sin(a - sy) / math.cos(sy), -math.sin(a - sy) * math.tan(sx) / math.cos(sy) + math.cos(a), 0],
        [0, 0, 1 / scale],
    ]
    forward = moved @ center @ torch.tensor(turned, dtype=torch.float64) @ torch.linalg.inv(center)
    expected = torch.linalg.inv(forward / forward[2, 2])
    torch.testing.assert_close(F.affine_matrix(x, angle, shift, scale, shear)[0], expected)


def test_a_parameter_for_each_image():
    x = I.make((3, 3, 29, 37))
    angles, shifts = torch.tensor([10.0, -40.0, 200.0]), torch.tensor([[1.0, 2], [0, 0], [-3, 4]])
    y = F.affine(x, angles, shifts, 1.1, (5.0, 0.0), "bilinear")
    for n in range(3):
        one = F.affine(x[n : n + 1], angles[n].item(), shifts[n].tolist(), 1.1, (5.0, 0.0), "bilinear")
        assert torch.equal(y[n : n + 1], one)
    assert torch.equal(F.rotate(x, angles), F.affine(x, -angles, (0.0, 0.0), 1.0, (0.0, 0.0)))
    assert torch.equal(F.rotate(x[:2], torch.tensor([5.0, 6.0]))[1:], F.rotate(x[1:2], 6.0))


def test_perspective():
    x = I.make((2, 3, 40, 50))
    start = torch.tensor([[0.0, 0], [49, 0], [49, 39], [0, 39]])
    end = torch.tensor([[3.0, 5], [44, 2], [48, 37], [1, 30]])
    matrix = F.perspective_matrix(x, start, end)
    at = torch.cat([end.double(), torch.ones(4, 1)], 1) @ matrix[0].mT
    torch.testing.assert_close(at[:, :2] / at[:, 2:], start.double())
    I.close(F.perspective(x, start, end), sampled(x, matrix, (40, 50), True), x)


@pytest.mark.parametrize("dtype", I.DTYPES)
def test_resized_crop(dtype):
    """torch's bilinear interpolation of the part, not aligned to corners; and nearest."""
    x = I.make((3, 3, 40, 50), dtype)
    parts = torch.tensor([[0, 0, 40, 50], [3, 7, 11, 30], [39, 49, 1, 1]])
    for interpolation, mode in (("bilinear", "bilinear"), ("nearest", "nearest-exact")):
        y = F.resized_crop(x, *parts.unbind(1), (24, 33), interpolation)
        for n, (top, left, height, width) in enumerate(parts.tolist()):
            part = x[n : n + 1, :, top : top + height, left : left + width].double()
            expected = torch.nn.functional.interpolate(part, size=(24, 33), mode=mode)
            expected = expected.round() if dtype == torch.uint8 else expected
            I.close(y[n : n + 1], expected, x)


def test_boxes():
    x = torch.zeros(2, 3, 40, 50)
    boxes = torch.tensor([[[10.0, 5, 20, 30], [0, 0, 50, 40]]]).repeat(2, 1, 1)
    moved = F.warp_boxes(boxes, F.affine_matrix(x, 0.0, (4.0, -3.0)), (40, 50))
    assert torch.equal(moved[0], torch.tensor([[14.0, 2, 24, 27], [4, 0, 50, 37]]))
    turned = F.warp_boxes(boxes, F.affine_matrix(x, 90.0, center=(0.0, 0.0)), (40, 50))
    torch.testing.assert_close(turned[1, 0], torch.tensor([0.0, 10, 0, 20]))  # beyond the left edge


def test_points_far_away_and_none():
    """Divisions by 0, numbers that are none: what is beyond the image, and nothing is read from there."""
    x = I.make((1, 3, 20, 30), torch.float32)
    for entry in (float("nan"), float("inf"), -1e300):
        matrix = torch.full((1, 3, 3), entry, dtype=torch.float64)
        for bilinear in (True, False):
            y = OPS.warp_images(x, matrix, (20, 30), bilinear, None, torch.tensor([0.25, 0.5, 0.75]))
            assert torch.equal(y, torch.tensor([0.25, 0.5, 0.75])[None, :, None, None].expand_as(y))
            box = torch.tensor([[entry, -1e9, 1e9, entry]])
            OPS.warp_images(x, matrix, (20, 30), bilinear, box)


def test_boxes_of_whole_numbers_hold_theirs():
    boxes = torch.tensor([[[3, 4, 10, 12], [0, 0, 30, 20]]])
    matrix = F.affine_matrix(torch.empty(1, 3, 20, 30), 10.0)
    exact = F.warp_boxes(boxes.double(), matrix, (20, 30))
    expected = torch.cat([exact[..., :2].floor(), exact[..., 2:].ceil()], -1)
    found = F.warp_boxes(boxes, matrix, (20, 30))
    assert found.dtype == torch.int64 and torch.equal(found.double(), expected)
    assert not torch.equal(exact, expected)


def test_perspective_of_a_line_is_the_identity():
    """It does not lose the batch."""
    x = I.make((2, 3, 20, 30))
    corners = torch.tensor([[0, 0], [29, 0], [29, 19], [0, 19]]).expand(2, 4, 2)
    ends = corners.clone()
    ends[0, 1] = torch.tensor([14, 9])
    ends[0, 0] = torch.tensor([0, 0])
    ends[0, 2] = torch.tensor([28, 18])
    ends[1, 0] = torch.tensor([3, 4])
    y = F.perspective(x, corners, ends)
    assert torch.equal(y[0], x[0]) and torch.equal(y[1:], F.perspective(x[1:], corners[1:], ends[1:]))
    assert not torch.equal(y[1], x[1])


def test_threads():
    for dtype in I.DTYPES:
        x = I.make(I.LARGE, dtype)
        matrix = maps(5, 131, 97)
        I.same_for_any_number_of_threads(lambda x=x, matrix=matrix: F.warp(x, matrix))
        for layout in I.LAYOUTS:
            one = I.make(I.ONE, dtype, layout)
            for how in ("nearest", "bilinear"):
                for k in range(3):
                    options = {"matrix": matrix[k], "size": (333, 280), "interpolation": how}
                    I.same_for_any_number_of_threads(lambda one=one, options=options: F.warp(one, **options))
            I.same_for_any_number_of_threads(lambda one=one: F.resized_crop(one, 3, 5, 300, 280, (333, 290)))


def test_nothing_there():
    assert F.rotate(torch.empty(0, 3, 5, 5), 30.0).shape == (0, 3, 5, 5)
    I.refused(lambda: F.rotate(torch.empty(2, 3, 0, 5), 30.0), "positive output_size")
    I.refused(lambda: F.warp(torch.empty(2, 3, 0, 5), torch.eye(3), (4, 4)), "not empty")


def test_bad_input_is_refused():
    x = I.make((2, 3, 4, 5))
    I.refused(lambda: OPS.warp_images(x, torch.eye(3), (4, 5)), r"matrix of \[2, 3, 3\]")
    for size in ([], [4], [4, 4, 4]):
        for device in ("cpu", "meta"):
            matrix = torch.eye(3, device=device).expand(2, 3, 3)
            I.refused(lambda size=size, m=matrix: OPS.warp_images(x.to(m.device), m, size), r"\[height, width\]")
    I.refused(lambda: OPS.warp_images(x.long(), torch.eye(3).expand(2, 3, 3), (4, 5)), "uint8 or float32")
    I.refused(lambda: OPS.warp_images(x, torch.eye(3).expand(2, 3, 3), (0, 5)), "positive output_size")
    I.refused(lambda: OPS.warp_images(x, torch.eye(3).expand(2, 3, 3), (4, 5), True, torch.ones(4)), "box of")
    I.refused(lambda: F.warp(x, torch.eye(3), []), "one size or two")
    I.refused(lambda: F.rotate(x, 30.0, "bicubic"), "interpolation")
    with pytest.raises(TypeError):
        F.rotate(x, 30.0, "nearest", False)  # torchvision's expand
    I.refused(lambda: F.rotate(x, [1.0, 2.0, 3.0]), "one parameter for each")


@pytest.mark.parametrize("layout", I.LAYOUTS)
@pytest.mark.parametrize("dtype", I.DTYPES)
def test_opcheck(dtype, layout):
    x = I.make((2, 3, 6, 7), dtype, layout)
    opcheck(OPS.warp_images.default, (x, torch.eye(3).expand(2, 3, 3), (5, 4)))
    opcheck(OPS.warp_images.default, (x, torch.eye(3).expand(2, 3, 3), (5, 4), False, torch.ones(2, 4), torch.ones(3)))


def test_kernels_ran():
    rusttorch.reset_stats()
    F.rotate(I.make((2, 3, 6, 7)), 3.0)
    assert rusttorch.stats()["warp_images"].ran == 1


def test_boxes_that_are_not_whole():
    """Three channels, which have a way of their own, as four."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1, 4, 8, 9, generator=generator)
    for matrix in ([0.7, 0.7], [1.0, 0.4]):
        m = torch.diag(torch.tensor([*matrix, 1.0]))
        m[:2, 2] = 0.3
        for box in ([1.5, 1.5, 6.5, 6.5], [0.5, 1.0, 8.75, 7.5], [0.0, 0.0, 9.0, 8.0], [2.0, 2.25, 2.5, 3.0]):
            of_four = F.warp(x, m, box=torch.tensor([box]))
            for few in (slice(3), slice(1)):
                torch.testing.assert_close(F.warp(x[:, few], m, box=torch.tensor([box])), of_four[:, few])


def test_matrices_of_any_scale():
    x = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(F.warp(x, 2 * torch.eye(3)), x)
