"""rusttorch.data.transforms: what they draw, and that it is what functional does; batches with masks, boxes, labels."""

import collections
import math

import images as I
import pytest
import torch
from rusttorch.data import functional as F
from rusttorch.data import transforms as T

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ALL = [
    T.RandomHorizontalFlip(),
    T.RandomVerticalFlip(),
    T.CenterCrop(20),
    T.RandomCrop((24, 30), padding=4),
    T.RandomResizedCrop(24),
    T.RandomResizedCrop((17, 25), interpolation="nearest"),
    T.RandomRotation(40, "bilinear"),
    T.RandomAffine((-30, 60), (0.1, 0.2), (0.7, 1.2), 10),
    T.RandomAffine(0, shear=(-5, 5, -10, 10), interpolation="bilinear", fill=0.5),
    T.RandomPerspective(),
    T.ColorJitter(0.4, 0.4, 0.4, 0.1),
    T.ColorJitter(contrast=(0.5, 0.9)),
    T.RandomGrayscale(0.5),
    T.RandomInvert(),
    T.RandomAutocontrast(),
    T.RandomEqualize(),
    T.RandomSolarize(0.4),
    T.RandomPosterize(3),
    T.RandomAdjustSharpness(2.0),
    T.GaussianBlur(5),
    T.RandomErasing(),
    T.RandomErasing(1.0, value="random"),
    T.RandAugment(),
    T.TrivialAugmentWide(),
    T.Normalize(MEAN, STD),
    T.ToDtype(torch.float32, scale=True),
    T.Compose([T.RandomHorizontalFlip(), T.RandomRotation(10), T.Normalize(MEAN, STD)]),
]
RANDOM = [t for t in ALL if not isinstance(t, (T.CenterCrop, T.Normalize, T.ToDtype))]
GEOMETRIC = [t for t in ALL if isinstance(t, T.Geometric) and not isinstance(t, T._Policy)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(n=16, dtype=torch.uint8):
    """Darker than it may be, so that autocontrast has something to do."""
    x = I.make((n, 3, 32, 40), dtype)
    return x // 2 + 20 if dtype == torch.uint8 else x / 2 + 0.1


@pytest.mark.parametrize("dtype", I.DTYPES)
@pytest.mark.parametrize("transform", ALL, ids=repr)
def test_batches(transform, dtype):
    """A tensor, a tuple and a dict, which stay as they are; each kind of batch draws the same."""
    x, labels = batch(dtype=dtype), torch.arange(16)
    before = x.clone()
    y = transform(x, generator())
    assert torch.equal(x, before) and y.shape[:2] == x.shape[:2]
    pair = transform((x, labels), generator())
    assert type(pair) is tuple and torch.equal(pair[0], y) and pair[1] is labels
    mapped = transform({"images": x, "labels": labels, "name": "a"}, generator())
    assert torch.equal(mapped["images"], y) and mapped["labels"] is labels and mapped["name"] == "a"
    assert torch.equal(x, before)
    assert transform(x[:0]).shape[0] == 0
    assert repr(transform).startswith(type(transform).__name__ + "(")


@pytest.mark.parametrize("transform", RANDOM, ids=repr)
def test_the_generator_decides(transform):
    x = batch()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, again, other = (transform(x, generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)
    without = transform(x)
    assert not torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    assert torch.equal(transform(x), without)


@pytest.mark.parametrize("transform", RANDOM, ids=repr)
def test_images_differ(transform):
    """The same image many times over becomes several."""
    x = batch(1).expand(16, -1, -1, -1)
    y = transform(x, generator())
    assert len({tuple(image.flatten().tolist()) for image in y}) > 1


@pytest.mark.parametrize("transform", ALL, ids=repr)
def test_channels_last(transform):
    x = batch()
    y = transform(x.contiguous(memory_format=torch.channels_last), generator())
    assert torch.equal(y, transform(x, generator()))
    assert y.is_contiguous(memory_format=torch.channels_last)


CHOSEN = {
    T.RandomHorizontalFlip: F.horizontal_flip,
    T.RandomVerticalFlip: F.vertical_flip,
    T.RandomInvert: F.invert,
    T.RandomAutocontrast: F.autocontrast,
    T.RandomEqualize: F.equalize,
    T.RandomGrayscale: lambda x: F.rgb_to_grayscale(x, 3),
}


@pytest.mark.parametrize("cls", CHOSEN)
def test_probability(cls):
    x = batch(1).expand(2000, -1, -1, -1)
    for p in (0.0, 0.3, 1.0):
        y, changed = cls(p)(x, generator()), CHOSEN[cls](x[:1])[0]
        hit = (y == changed).flatten(1).all(1)
        assert (hit | (y == x[0]).flatten(1).all(1)).all()
        assert abs(hit.double().mean() - p) < 0.05


def test_given_values():
    x = batch()
    assert torch.equal(T.RandomSolarize(100, 1.0)(x), F.solarize(x, 100))
    assert torch.equal(T.RandomPosterize(3, 1.0)(x), F.posterize(x, 3))
    assert torch.equal(T.RandomAdjustSharpness(2.0, 1.0)(x), F.adjust_sharpness(x, 2.0))
    assert torch.equal(T.GaussianBlur(5, 1.5)(x), F.gaussian_blur(x, 5, 1.5))
    assert torch.equal(T.RandomRotation((30, 30))(x), F.rotate(x, 30.0))
    turned = T.RandomAffine((30, 30), scale=(1.2, 1.2), shear=(5, 5), interpolation="bilinear", fill=9)(x)
    assert torch.equal(turned, F.affine(x, 30.0, (0.0, 0.0), 1.2, (5.0, 0.0), "bilinear", 9))
    assert torch.equal(T.ColorJitter(brightness=(0.5, 0.5))(x), F.adjust_brightness(x, 0.5))
    assert torch.equal(T.ColorJitter(hue=(0.2, 0.2))(x), F.adjust_hue(x, 0.2))
    assert torch.equal(T.RandomPerspective(p=0.0)(x), x)
    assert torch.equal(T.ColorJitter()(x), x)
    assert torch.equal(T.RandomCrop(x.shape[2:])(x), x)


def test_numbers_of_every_type():
    numpy = pytest.importorskip("numpy")
    x = batch()
    for jitter in (T.ColorJitter(), T.ColorJitter(0), T.ColorJitter(torch.tensor(0.0))):
        assert torch.equal(jitter(x), x)
    jittered = T.ColorJitter(0.4, hue=0.1)(x, generator())
    for number in (numpy.float64, lambda v: torch.tensor(v, dtype=torch.float64)):
        assert torch.equal(T.ColorJitter(number(0.4), hue=number(0.1))(x, generator()), jittered)
    assert torch.equal(T.RandomRotation(numpy.float32(9))(x, generator()), T.RandomRotation(9)(x, generator()))
    assert torch.equal(T.GaussianBlur([3], numpy.float32(1.5))(x), T.GaussianBlur(3, 1.5)(x))
    cropped = T.RandomCrop(20)(x, generator())
    for size in (numpy.int64(20), (20,), torch.tensor(20)):
        assert torch.equal(T.RandomCrop(size)(x, generator()), cropped)


def test_padding():
    """None, one, two as left and right, top and bottom, or four."""
    x = batch()
    for given, four in {None: (0,) * 4, 3: (3,) * 4, (1, 2): (1, 2, 1, 2), (1, 2, 3, 4): (1, 2, 3, 4)}.items():
        crop = T.RandomCrop(24, given, fill=None)
        assert crop.padding == four
        assert torch.equal(crop(x, generator()), T.RandomCrop(24, four)(x, generator()))


def test_containers():
    x, labels = batch(dtype=torch.float32), torch.arange(16)
    Pair = collections.namedtuple("Pair", "images labels")
    for transform in (T.RandomInvert(), T.MixUp(num_classes=16)):
        y, soft = transform((x, labels), generator())
        mapped = transform(collections.UserDict(images=x, labels=labels), generator())
        assert type(mapped) is dict and torch.equal(mapped["images"], y) and torch.equal(mapped["labels"], soft)
        pair = transform(Pair(x, labels), generator())
        assert type(pair) is Pair and torch.equal(pair.images, y) and torch.equal(pair.labels, soft)
        for bad in ("ab", {1}, (), ("a",), None):
            with pytest.raises(TypeError, match=r"expected a tensor|needs labels"):
                transform(bad)


def test_perspective_of_degenerate_images():
    for shape in ((8, 3, 1, 40), (8, 3, 40, 1), (512, 3, 4, 4)):
        x, boxes = I.make(shape), torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(shape[0], 1, 4)
        out = T.RandomPerspective(1.0, 1.0)({"images": x, "boxes": boxes}, generator())
        if 1 in shape:
            assert torch.equal(out["images"], x) and torch.equal(out["boxes"], boxes)
    x = I.make((8, 3, 1, 40))
    assert torch.equal(T.RandomPerspective(p=0.0)(x), x)


def test_noise_is_of_what_is_erased():
    for dtype in I.DTYPES:
        x = batch(dtype=dtype) * 0
        y = T.RandomErasing(1.0, value="random")(x, generator())
        i, j, h, w, _ = T.RandomErasing(1.0).draw(x, generator())
        for k in range(len(x)):
            part = y[k, :, i[k] : i[k] + h[k], j[k] : j[k] + w[k]]
            assert (part != 0).float().mean() > 0.9
            part.zero_()
        assert not y.any()


def test_ranges():
    """What is drawn lies in what is asked for, and reaches its ends."""
    x = torch.empty(4000, 3, 32, 40)
    top, left = T.RandomCrop((24, 30), 4).draw(x, generator())
    assert (top.min(), top.max(), left.min(), left.max()) == (-4, 12, -4, 14)
    top, left, h, w = T.RandomResizedCrop(8, (0.2, 0.5), (0.5, 2.0)).draw(x, generator())
    area, ratio = h * w / (32 * 40), w / h
    assert 0.17 < area.min() < 0.22 and 0.45 < area.max() < 0.53
    assert 0.45 < ratio.min() < 0.55 and 1.8 < ratio.max() < 2.2
    assert (top >= 0).all() and (left >= 0).all() and (top + h <= 32).all() and (left + w <= 40).all()
    assert (top + h == 32).any() and (left + w == 40).any()
    steps, factors = T.ColorJitter(0.4, 0.4, 0.4, 0.1).draw(x, generator())
    assert torch.equal(steps.sort(1).values, torch.tensor([1, 2, 3, 4]).expand(4000, 4))
    assert len(steps.unique(dim=0)) == 24
    for step, (low, high) in {1: (0.6, 1.4), 2: (0.6, 1.4), 3: (0.6, 1.4), 4: (-0.1, 0.1)}.items():
        drawn = factors[steps == step]
        assert low <= drawn.min() < low + 0.01 and high - 0.01 < drawn.max() <= high
    i, j, h, w, _ = T.RandomErasing(1.0).draw(x, generator())
    there = h > 0
    area = (h * w)[there] / (32 * 40)
    assert there.double().mean() > 0.99 and area.min() < 0.03 and 0.3 < area.max() < 0.36
    assert (i + h <= 32).all() and (j + w <= 40).all()


def test_resized_crop_where_none_fits():
    """The largest part in the middle."""
    x = torch.empty(5, 3, 10, 100)
    top, left, h, w = T.RandomResizedCrop(8, scale=(1.0, 1.0)).draw(x, generator())
    assert (h == 10).all() and (w == 13).all() and (top == 0).all() and (left == 43).all()


@pytest.mark.parametrize("transform", GEOMETRIC, ids=repr)
def test_masks_and_boxes_follow(transform):
    """A box drawn into a mask is where the box has gone, but for what a pixel's middle decides."""
    n, masks = 16, torch.zeros(16, 1, 32, 40, dtype=torch.uint8)
    masks[:, :, 10:21, 14:29] = 1
    boxes = torch.tensor([[14.0, 10, 29, 21], [0, 0, 40, 32]]).expand(n, 2, 4)
    x = batch(n)
    out = transform({"images": x, "masks": masks, "boxes": boxes}, generator())
    assert torch.equal(out["images"], transform(x, generator()))
    assert out["masks"].shape[2:] == out["images"].shape[2:] and out["masks"].unique().tolist() == [0, 1]
    height, width = out["images"].shape[2:]
    seen = 0
    for mask, (left, top, right, bottom) in zip(out["masks"][:, 0], out["boxes"][:, 0].tolist(), strict=True):
        rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        if not len(rows):
            continue
        found = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        ends = ((left, width), (right, width), (top, height), (bottom, height))
        inside = all(0.01 < v < size - 0.01 for v, size in ends)
        tolerance = 1.6 if inside else math.inf  # of a turned box that is cut, the corner that reached farthest is gone
        for a, b in zip(found, (left, top, right, bottom), strict=True):
            assert abs(a - b) <= tolerance
        assert left - 1 <= columns[0] and columns[-1] <= right and top - 1 <= rows[0] and rows[-1] <= bottom
        seen += inside
    assert seen > 0
    limit = torch.tensor([width, height, width, height])
    assert ((out["boxes"] >= 0) & (out["boxes"] <= limit)).all()


def test_mixup():
    x, labels = batch(dtype=torch.float32), torch.arange(16) % 5
    y, soft = T.MixUp(num_classes=5)((x, labels), generator())
    kept = torch._sample_dirichlet(torch.ones(16, 2, dtype=torch.float64), generator())[:, 0].float()
    hot = torch.nn.functional.one_hot(labels, 5).float()
    for k in range(16):
        torch.testing.assert_close(y[k], x[k] * kept[k] + x[k - 1] * (1 - kept[k]))
        torch.testing.assert_close(soft[k], hot[k] * kept[k] + hot[k - 1] * (1 - kept[k]))
    assert torch.equal(soft, T.MixUp()((x, hot), generator())[1])
    mapped = T.MixUp(num_classes=5)({"images": x, "labels": labels, "name": "a"}, generator())
    assert torch.equal(mapped["images"], y) and torch.equal(mapped["labels"], soft) and mapped["name"] == "a"
    assert kept.min() < 0.15 and kept.max() > 0.85
    one = T.MixUp(num_classes=5)((x[:1], labels[:1]), generator())[0]
    torch.testing.assert_close(one, x[:1])
    torch.manual_seed(0)
    assert not torch.equal(T.MixUp()((x, hot))[0], T.MixUp()((x, hot))[0])
    I.refused(lambda: T.MixUp()((batch(), labels)), "float32 images")
    I.refused(lambda: T.MixUp()((x, labels)), "num_classes")


@pytest.mark.parametrize("dtype", I.DTYPES)
def test_cutmix(dtype):
    x, labels = batch(64, dtype=dtype), torch.arange(64)
    y, soft = T.CutMix(num_classes=64)((x, labels), generator())
    assert soft.sum(1).sub(1).abs().max() < 1e-6
    for k in range(64):
        other = (y[k] == x[k - 1]).all(0)
        assert ((y[k] == x[k]).all(0) | other).all()
        assert abs(1 - other.double().mean() - soft[k, k]) < 0.01
        rows, columns = other.any(1), other.any(0)
        assert torch.equal(other, rows[:, None] & columns) or other.double().mean() < 0.01  # a box


POLICIES = [(policy, op) for policy in (T.RandAugment(1, 9), T.TrivialAugmentWide()) for op in range(len(T._NAMES))]


@pytest.mark.parametrize("dtype", I.DTYPES)
@pytest.mark.parametrize("policy, op", POLICIES, ids=lambda v: T._NAMES[v] if isinstance(v, int) else None)
def test_ops_of_policies(policy, op, dtype):
    """Each is what torchvision's policies call, at the magnitude that they have."""
    x, name, index = batch(dtype=dtype), T._NAMES[op], 20
    wide = isinstance(policy, T.TrivialAugmentWide)
    part = index / 30
    y = policy.one_op(x, torch.full((16,), op), torch.full((16,), index), generator())
    shear, rotation, factor = (0.99, 135.0, 0.99) if wide else (0.3, 30.0, 0.9)
    moved = (32.0 * part, 32.0 * part) if wide else (150 / 331 * 40 * part, 150 / 331 * 32 * part)
    bits = round(8 - index / (30 / (6 if wide else 4)))
    white = I.white(x)

    def affine(shift, degrees):
        return F.affine(x, 0.0, shift, 1.0, degrees, center=[0.0, 0.0])

    def both(f, m):
        return f(m), f(-m)

    expected = {
        "Identity": lambda: (x,),
        "ShearX": lambda: both(lambda m: affine((0.0, 0.0), (math.degrees(math.atan(m)), 0.0)), shear * part),
        "ShearY": lambda: both(lambda m: affine((0.0, 0.0), (0.0, math.degrees(math.atan(m)))), shear * part),
        "TranslateX": lambda: both(lambda m: affine((float(int(m)), 0.0), (0.0, 0.0)), moved[0]),
        "TranslateY": lambda: both(lambda m: affine((0.0, float(int(m))), (0.0, 0.0)), moved[1]),
        "Rotate": lambda: both(lambda m: F.rotate(x, m), rotation * part),
        "Brightness": lambda: both(lambda m: F.adjust_brightness(x, 1 + m), factor * part),
        "Color": lambda: both(lambda m: F.adjust_saturation(x, 1 + m), factor * part),
        "Contrast": lambda: both(lambda m: F.adjust_contrast(x, 1 + m), factor * part),
        "Sharpness": lambda: both(lambda m: F.adjust_sharpness(x, 1 + m), factor * part),
        "Posterize": lambda: (F.posterize(x, bits),),
        "Solarize": lambda: (F.solarize(x, white * (1 - part)),),
        "AutoContrast": lambda: (F.autocontrast(x),),
        "Equalize": lambda: (F.equalize(x),),
    }[name]()
    matches = torch.stack([(y == e).flatten(1).all(1) for e in expected])
    assert matches.any(0).all() and matches.any(1).all()
    if name != "Identity":
        assert not torch.equal(y, x)


def test_policies_draw_every_op():
    """Of each image of a batch its own."""
    x = batch(1).expand(400, -1, -1, -1)
    for policy, most in ((T.RandAugment(1), 28), (T.TrivialAugmentWide(), 400)):
        y = policy(x, generator())
        distinct = len({tuple(image[:, ::3, ::3].flatten().tolist()) for image in y})
        assert 20 <= distinct <= most
    assert torch.equal(T.RandAugment(0)(x[:4]), x[:4])


def test_bad_arguments():
    x = batch()
    I.refused(lambda: T.RandomCrop(50)(x), "larger than the padded images")
    I.refused(lambda: T.ColorJitter(hue=0.7), "hue")
    I.refused(lambda: T.ColorJitter(brightness=(-1, 1)), "brightness")
    I.refused(lambda: T.RandomRotation((5, -5)), "degrees")
    I.refused(lambda: T.RandAugment(magnitude=31), "magnitude")
    I.refused(lambda: T.RandomCrop(8, (1, 2, 3)), "padding must be")
    I.refused(lambda: T.MixUp(alpha=0.0), "alpha must be positive")
    I.refused(lambda: F.gaussian_blur(x, 3, torch.ones(16)), "sigma must be")
    for masks in (x.long(), x > 0, x[:, 0]):
        I.refused(lambda m=masks: T.RandomRotation(9)({"images": x, "masks": m}), "masks must be")
    for positional in (lambda: T.RandomCrop(16, 4, True), lambda: T.RandomRotation(9, "nearest", False)):
        with pytest.raises(TypeError, match="positional"):
            positional()
    for alone in (T.RandAugment(), T.CutMix(), T.MixUp()):
        I.refused(lambda t=alone: t({"images": x, "labels": x, "masks": x}), "would not follow")
    for masks in (x[:2], x[..., :5]):
        I.refused(lambda m=masks: T.RandomRotation(9)({"images": x, "masks": m}), "as many and as large")
    I.refused(lambda: T.RandomRotation(9)({"images": x, "boxes": torch.zeros(len(x), 4)}), "boxes must be")
    for transform in (T.RandomCrop(4), T.CenterCrop(4), T.RandAugment(), T.RandomErasing(), T.RandomInvert()):
        I.refused(lambda t=transform: t(x[0]), "expected images")
        I.refused(lambda t=transform: t({"images": x[0]}), "expected images")
    I.refused(lambda: T.MixUp(num_classes=2)((x[0].float(), torch.ones(3))), "expected images")
    for p in (-0.1, 1.1, float("nan")):
        for kind in (T.RandomHorizontalFlip, T.RandomInvert, T.RandomErasing):
            I.refused(lambda kind=kind, p=p: kind(p), "p must be")
        I.refused(lambda p=p: T.RandomPerspective(p=p), "p must be")
    I.refused(lambda: T.RandomAffine(0, translate=(0.1, 1.5)), "translate must be")
    I.refused(lambda: T.RandomAffine(0, scale=(0.0, 1.0)), "scale must be")
    I.refused(lambda: T.RandomAffine(0, scale=(1.0,)), "scale must be")
    I.refused(lambda: T.RandomAffine(0, translate=(0.1,)), "translate must be")
    I.refused(lambda: T.RandomAffine(0, shear=(1.0, 2.0, 3.0)), "shear must be")
    I.refused(lambda: T.RandomAffine((1, 2, 3)), "degrees must be")
    I.refused(lambda: T.GaussianBlur(3, (2, 1)), "sigma must be")
    I.refused(lambda: T.RandomInvert(1.0)(x.double()), "uint8 or float32")


def test_moves_are_whole_pixels():
    matrix = T.RandomAffine(0, translate=(0.3, 0.4)).draw(batch(), generator())
    moved = matrix[:, :2, 2]
    assert torch.equal(moved, moved.round()) and moved.count_nonzero() > 0


def test_no_side_is_erased_whole():
    """As in torchvision: parts are smaller than the image both ways."""
    x = torch.ones(400, 1, 6, 40)
    y = T.RandomErasing(1.0, scale=(0.02, 1.0), ratio=(0.05, 20.0))(x, generator())
    erased = (y == 0).sum((1, 2, 3)) > 0
    assert erased.sum() > 50 and not bool((y == 0).all(2).any(1)[:, 0].all())
    assert not bool(((y == 0).any(3).all(2)).any())


def test_whatever_the_default_device_is():
    """Parameters are made where the images are."""
    x, seeded = batch(), generator
    transforms = [T.RandomHorizontalFlip(), T.RandomAffine(20, (0.1, 0.1)), T.RandAugment(), T.RandomErasing(1.0)]
    transforms += [T.ColorJitter(0.4, 0.4, 0.4, 0.1), T.GaussianBlur(3), T.Normalize(0.5, 0.5), T.RandomCrop(9)]
    transforms += [T.RandomPerspective(p=1.0), T.RandomResizedCrop(8), T.TrivialAugmentWide()]
    for transform in transforms:
        expected = transform(x, seeded())
        with torch.device("meta"):
            assert torch.equal(transform(x, seeded()), expected), transform
