"""torchvision.transforms.v2's augmentations, for batches: each image has random parameters of its own.

    augment = Compose([RandomResizedCrop(224), RandomHorizontalFlip(), RandAugment(), Normalize(mean, std)])
    images = augment(images)
    images, labels = augment((images, labels), generator)

A transform is called on a batch, and on a torch.Generator (None: torch's own), which alone decides what it draws. A
batch is a tensor [N, C, H, W] as rusttorch.data.functional takes it; a tuple or list that begins with one; or a dict
with it as "images", and perhaps "masks" [N, C, H, W], which follow geometric transforms (the nearest pixel's), "boxes"
[N, K, 4] (left, top, right, bottom), which hold what theirs becomes, within the image, and "labels". The rest stays as
it is. Names, arguments and defaults are torchvision's, but for what is not here:

- antialias (nothing antialiases), expand, pad_if_needed, padding_mode and inplace: an argument that torchvision has
  after one of them is by keyword only, so that none is taken for another
- classes that this module does not have, such as Pad, Resize, RandomApply, RandomChoice, AutoAugment, AugMix,
  Grayscale, ElasticTransform, GaussianNoise, RandomIoUCrop and RandomZoomOut

The docstrings of the others say where they differ.
"""

import math
from collections.abc import Mapping

import torch

from . import functional as F


def _uniform(n, low, high, generator):
    return low + (high - low) * torch.rand(n, dtype=torch.float64, generator=generator, device="cpu")


def _below(bounds, generator):
    """Whole numbers from 0 to bounds - 1, one for each."""
    chosen = torch.rand(bounds.shape, dtype=torch.float64, generator=generator, device="cpu") * bounds
    return torch.minimum(chosen.long(), bounds - 1)


def _chosen(images, p, generator):
    return torch.rand(len(images), dtype=torch.float64, generator=generator, device="cpu") < p


def _sequence(batch):
    if not isinstance(batch, (tuple, list)) or not batch:
        raise TypeError(f"expected a tensor, a tuple or list that begins with one, or a dict, but got {batch!r}")
    return batch


def _check(images):
    if images.dim() != 4:
        raise ValueError(f"expected images [N, C, H, W], but got {list(images.shape)}")


def _check_alone(transform, batch):
    if isinstance(batch, Mapping) and ("masks" in batch or "boxes" in batch):
        raise ValueError(f"{type(transform).__name__} is of images alone: masks and boxes would not follow")


def _probability(p):
    if not 0 <= p <= 1:
        raise ValueError(f"p must be from 0 to 1, but got {p}")
    return p


def _as(batch, items):
    """Another of the batch's type."""
    return type(batch)(*items) if hasattr(batch, "_fields") else type(batch)(items)


class Transform:
    """Of images only: draw() makes their parameters, apply() a new batch of them."""

    def __call__(self, batch, generator=None):
        if isinstance(batch, torch.Tensor):
            _check(batch)
            return self.apply(batch, self.draw(batch, generator))
        if not isinstance(batch, Mapping):
            images, *rest = _sequence(batch)
            return _as(batch, [self(images, generator), *rest])
        images = batch["images"]
        _check(images)
        drawn = self.draw(images, generator)
        return {key: self._apply_to(key, value, images, drawn) for key, value in batch.items()}

    def _apply_to(self, key, value, images, drawn):
        return self.apply(value, drawn) if key == "images" else value

    def draw(self, images, generator):
        return None

    def apply(self, images, drawn):
        raise NotImplementedError

    def __repr__(self):
        given = ", ".join(f"{key}={value!r}" for key, value in vars(self).items())
        return f"{type(self).__name__}({given})"


class Geometric(Transform):
    """And of masks and boxes: matrix() leads from the result to the image, and size() is the result's."""

    interpolation, fill = "nearest", 0.0

    def _apply_to(self, key, value, images, drawn):
        if key == "masks":
            if value.dim() != 4 or value.dtype not in (torch.uint8, torch.float32):
                given = f"{list(value.shape)} of {value.dtype}"
                raise ValueError(f"masks must be [N, C, H, W] of uint8 or float32, but got {given}")
            if len(value) != len(images) or value.shape[2:] != images.shape[2:]:
                raise ValueError(f"masks must be as many and as large as the images, but got {list(value.shape)}")
            return self.sample(value, drawn, "nearest", 0.0)
        if key == "boxes":
            if value.dim() != 3 or len(value) != len(images) or value.shape[2] != 4:
                raise ValueError(f"boxes must be [N, K, 4], but got {list(value.shape)}")
            return F.warp_boxes(value, self.matrix(images, drawn), self.size_of(images))
        return super()._apply_to(key, value, images, drawn)

    def apply(self, images, drawn):
        return self.sample(images, drawn, self.interpolation, self.fill)

    def sample(self, images, drawn, interpolation, fill):
        return F.warp(images, self.matrix(images, drawn), interpolation=interpolation, fill=fill)

    def matrix(self, images, drawn):
        return drawn

    def size_of(self, images):
        return images.shape[2:]


class Compose(Transform):
    """Several, one after the other."""

    def __init__(self, transforms):
        self.transforms = list(transforms)

    def __call__(self, batch, generator=None):
        for transform in self.transforms:
            batch = transform(batch, generator)
        return batch


# Flips and crops


class _RandomFlip(Geometric):
    def __init__(self, p=0.5):
        self.p = _probability(p)

    def draw(self, images, generator):
        return _chosen(images, self.p, generator)

    def matrix(self, images, drawn):
        matrix = torch.eye(3, dtype=torch.float64, device="cpu").repeat(len(images), 1, 1)
        matrix[drawn, self.axis, self.axis] = -1
        matrix[drawn, self.axis, 2] = images.shape[3 - self.axis]
        return matrix


class RandomHorizontalFlip(_RandomFlip):
    """Mirrored left to right with probability p."""

    axis = 0

    def sample(self, images, drawn, interpolation, fill):
        return F.horizontal_flip(images, drawn)


class RandomVerticalFlip(_RandomFlip):
    """Mirrored upside down with probability p."""

    axis = 1

    def sample(self, images, drawn, interpolation, fill):
        return F.vertical_flip(images, drawn)


class _Crop(Geometric):
    """Of what is drawn: the tops and the lefts."""

    def sample(self, images, drawn, interpolation, fill):
        return F.crop(images, *drawn, *self.size, fill=fill)

    def matrix(self, images, drawn):
        return F.resized_crop_matrix(images, *drawn, *self.size, self.size)

    def size_of(self, images):
        return self.size


class CenterCrop(_Crop):
    """The part in the middle."""

    def __init__(self, size):
        self.size = F._pair(size)

    def draw(self, images, generator):
        return F._middle(images, self.size)


class RandomCrop(_Crop):
    """A part of that size, after padding is put around with fill: an int, two (of left and right, of top and bottom) or
    four (left, top, right, bottom)."""

    def __init__(self, size, padding=None, *, fill=0.0):
        self.size, self.fill = F._pair(size), fill
        padding = F._whole(0 if padding is None else padding)
        if len(padding) not in (1, 2, 4):
            raise ValueError(f"padding must be one, two or four numbers, but got {padding}")
        self.padding = tuple(padding * (4 // len(padding)))

    def draw(self, images, generator):
        left, top, right, bottom = self.padding
        height, width = images.shape[2] + top + bottom, images.shape[3] + left + right
        rooms = height - self.size[0], width - self.size[1]
        if min(rooms) < 0:
            raise ValueError(f"RandomCrop of {self.size} is larger than the padded images, {(height, width)}")
        draws = [_below(torch.full((len(images),), room + 1, device="cpu"), generator) for room in rooms]
        return draws[0] - top, draws[1] - left


class RandomResizedCrop(Geometric):
    """A part with scale times the image's area and an aspect ratio in ratio, resized to size, without antialiasing."""

    def __init__(self, size, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), interpolation="bilinear"):
        self.size, self.scale, self.ratio, self.interpolation = F._pair(size), scale, ratio, interpolation

    def draw(self, images, generator):
        height, width = images.shape[2:]
        h, w, fits = _parts(images, self.scale, self.ratio, generator, largest=(height, width))
        # Where none of ten fits, the largest in the middle with the ratio nearest to the image's.
        low, high = self.ratio
        whole = min(height, round(width / low)), min(width, round(height * high))
        h, w = torch.where(fits, h, whole[0]), torch.where(fits, w, whole[1])
        top, left = _below(height - h + 1, generator), _below(width - w + 1, generator)
        return torch.where(fits, top, (height - h) // 2), torch.where(fits, left, (width - w) // 2), h, w

    def sample(self, images, drawn, interpolation, fill):
        return F.resized_crop(images, *drawn, self.size, interpolation)

    def matrix(self, images, drawn):
        return F.resized_crop_matrix(images, *drawn, self.size)

    def size_of(self, images):
        return self.size


def _parts(images, scale, ratio, generator, largest):
    """Heights and widths of a part of each image, and whether one of ten that are tried fits."""
    n, area = (len(images), 10), images.shape[2] * images.shape[3]
    areas = area * _uniform(n, *scale, generator)
    ratios = torch.exp(_uniform(n, math.log(ratio[0]), math.log(ratio[1]), generator))
    h, w = torch.sqrt(areas / ratios).round().long(), torch.sqrt(areas * ratios).round().long()
    fit = (h > 0) & (w > 0) & (h <= largest[0]) & (w <= largest[1])
    first = fit.int().argmax(1, keepdim=True)
    return h.gather(1, first)[:, 0], w.gather(1, first)[:, 0], fit.any(1)


# Warps


def _numbers(value):
    """Of any type, as a list: of one where one is given."""
    try:
        return [float(v) for v in value]
    except TypeError:
        return [float(value)]


def _range(value, name, least=None, center=0.0):
    """(low, high) of a number around a center, or of a pair."""
    given = _numbers(value)
    limits = [center - given[0], center + given[0]] if len(given) == 1 else given
    if len(limits) != 2 or limits[0] > limits[1] or (least is not None and limits[0] < least):
        raise ValueError(f"{name} must be a number or (low, high), but got {value}")
    return tuple(limits)


class RandomAffine(Geometric):
    """Turned by degrees, moved by up to translate (parts of width and height), scaled and sheared: each a (low, high),
    degrees and shear also numbers around 0, shear also (low, high) for x and y."""

    def __init__(self, degrees, translate=None, scale=None, shear=None, interpolation="nearest", fill=0.0, center=None):
        self.degrees = _range(degrees, "degrees")
        self.translate, self.scale = translate, scale
        if translate is not None and not (len(_numbers(translate)) == 2 and all(0 <= part <= 1 for part in translate)):
            raise ValueError(f"translate must be parts of width and height, from 0 to 1, but got {translate}")
        if scale is not None and not (len(_numbers(scale)) == 2 and 0 < scale[0] <= scale[1]):
            raise ValueError(f"scale must be a positive (low, high), but got {scale}")
        if shear is not None and len(_numbers(shear)) != 4:
            shear = (*_range(shear, "shear"), 0.0, 0.0)
        self.shear = shear
        self.interpolation, self.fill, self.center = interpolation, fill, center

    def draw(self, images, generator):
        n, (height, width) = len(images), images.shape[2:]
        angle = _uniform(n, *self.degrees, generator)
        x, y = (m * size for m, size in zip(self.translate or (0, 0), (width, height), strict=True))
        shift = torch.stack([_uniform(n, -m, m, generator).round() for m in (x, y)], 1)
        scale = _uniform(n, *(self.scale or (1.0, 1.0)), generator)
        limits = self.shear or (0.0,) * 4
        shear = torch.stack([_uniform(n, *limits[k : k + 2], generator) for k in (0, 2)], 1)
        return F.affine_matrix(images, angle, shift, scale, shear, self.center)


class RandomRotation(Geometric):
    """Turned counter-clockwise by degrees: (low, high), or a number around 0."""

    def __init__(self, degrees, interpolation="nearest", *, center=None, fill=0.0):
        self.degrees = _range(degrees, "degrees")
        self.interpolation, self.center, self.fill = interpolation, center, fill

    def draw(self, images, generator):
        angle = _uniform(len(images), *self.degrees, generator)
        return F.affine_matrix(images, -angle, center=self.center)


class RandomPerspective(Geometric):
    """Seen from the side with probability p: each corner moved inwards by up to distortion_scale of the half. Where the
    four then have no map (three are in a line), the image stays as it is."""

    def __init__(self, distortion_scale=0.5, p=0.5, interpolation="bilinear", fill=0.0):
        self.distortion_scale, self.p = distortion_scale, _probability(p)
        self.interpolation, self.fill = interpolation, fill

    def draw(self, images, generator):
        n, (height, width) = len(images), images.shape[2:]
        chosen = _chosen(images, self.p, generator)
        corners = torch.tensor([[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]], device="cpu")
        inwards = torch.tensor([[1, 1], [-1, 1], [-1, -1], [1, -1]], device="cpu")
        bounds = torch.tensor([int(self.distortion_scale * (size // 2)) + 1 for size in (width, height)], device="cpu")
        moved = corners + inwards * _below(bounds.expand(n, 4, 2), generator)
        return F.perspective_matrix(images, corners, torch.where(chosen[:, None, None], moved, corners))


# Colors


class ColorJitter(Transform):
    """Brightness, contrast and saturation times 1 - value to 1 + value or a (low, high), and the hue turned by -value
    to value, in an order that is random for each image."""

    def __init__(self, brightness=None, contrast=None, saturation=None, hue=None):
        given = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
        self.limits = {name: self._limits(value, name) for name, value in given.items() if value}
        if hue:
            self.limits["hue"] = _range(hue, "hue", -0.5)
            if self.limits["hue"][1] > 0.5:
                raise ValueError(f"hue must be from -0.5 to 0.5, but got {hue}")

    @staticmethod
    def _limits(value, name):
        low, high = _range(value, name, center=1.0)
        return max(0.0, low) if len(_numbers(value)) == 1 else _range((low, high), name, 0.0)[0], high

    def draw(self, images, generator):
        n = len(images)
        factors = torch.empty(n, len(self.limits), dtype=torch.float64, device="cpu")
        for k, limits in enumerate(self.limits.values()):
            factors[:, k] = _uniform(n, *limits, generator)
        order = torch.rand(factors.shape, dtype=torch.float64, generator=generator, device="cpu").argsort(1)
        steps = torch.tensor([F.STEPS.index(name) for name in self.limits], dtype=torch.int64, device="cpu").expand(
            n, -1
        )
        return steps.gather(1, order), factors.gather(1, order)

    def apply(self, images, drawn):
        return torch.ops.rusttorch.color_images(images, *drawn)


class _Random(Transform):
    """With probability p; apply() is given which."""

    def __init__(self, p=0.5):
        self.p = _probability(p)

    def draw(self, images, generator):
        return _chosen(images, self.p, generator)


class RandomGrayscale(_Random):
    """Gray, in three channels."""

    def __init__(self, p=0.1):
        super().__init__(p)

    def apply(self, images, which):
        return F.rgb_to_grayscale(images, images.shape[1], which) if images.shape[1] == 3 else images


class RandomInvert(_Random):
    """White less the image."""

    def apply(self, images, which):
        return F.invert(images, which)


class RandomAutocontrast(_Random):
    """Each channel from black to white."""

    def apply(self, images, which):
        return F.autocontrast(images, which)


class RandomEqualize(_Random):
    """Each channel's values spread evenly."""

    def apply(self, images, which):
        return F.equalize(images, which)


class RandomSolarize(_Random):
    """Inverted from threshold on."""

    def __init__(self, threshold, p=0.5):
        super().__init__(p)
        self.threshold = threshold

    def apply(self, images, which):
        return F.solarize(images, self.threshold, which)


class RandomPosterize(_Random):
    """With so many bits of each channel."""

    def __init__(self, bits, p=0.5):
        super().__init__(p)
        self.bits = bits

    def apply(self, images, which):
        return F.posterize(images, self.bits, which)


class RandomAdjustSharpness(_Random):
    """Blurred (below 1) or sharpened (above)."""

    def __init__(self, sharpness_factor, p=0.5):
        super().__init__(p)
        self.sharpness_factor = sharpness_factor

    def apply(self, images, which):
        return F.adjust_sharpness(images, self.sharpness_factor, which)


class GaussianBlur(Transform):
    """Blurred by a Gaussian whose sigma is a number or in (low, high)."""

    def __init__(self, kernel_size, sigma=(0.1, 2.0)):
        self.kernel_size = kernel_size
        sigma = _numbers(sigma)
        self.sigma = sigma[0], sigma[-1]
        if not 0 < self.sigma[0] <= self.sigma[1]:
            raise ValueError(f"sigma must be positive, a number or (low, high), but got {sigma}")

    def draw(self, images, generator):
        return _uniform((len(images), 1), *self.sigma, generator)

    def apply(self, images, sigma):
        return F.gaussian_blur(images, self.kernel_size, sigma)


class Normalize(Transform):
    """(images - mean) / std as float32; uint8 images are divided by 255 first, in the same pass."""

    def __init__(self, mean, std):
        self.mean, self.std = mean, std

    def apply(self, images, drawn):
        return F.normalize(images, self.mean, self.std)


class ToDtype(Transform):
    """Another dtype; with scale, white stays white."""

    def __init__(self, dtype, scale=False):
        self.dtype, self.scale = dtype, scale

    def apply(self, images, drawn):
        return F.to_dtype(images, self.dtype, self.scale)


class RandomErasing(Transform):
    """With probability p, value in a part with scale times the image's area and an aspect ratio in ratio.

    value: a number, one for each channel, or "random": noise, normal in floats and uniform in uint8.
    """

    def __init__(self, p=0.5, scale=(0.02, 0.33), ratio=(0.3, 3.3), value=0.0):
        self.p, self.scale, self.ratio, self.value = _probability(p), scale, ratio, value

    def draw(self, images, generator):
        height, width = images.shape[2:]
        chosen = _chosen(images, self.p, generator)
        w, h, fits = _parts(images, self.scale, self.ratio, generator, largest=(width - 1, height - 1))
        h, w = torch.where(chosen & fits, h, 0), torch.where(chosen & fits, w, 0)
        where = _below(height - h + 1, generator), _below(width - w + 1, generator)
        value = self.value
        if value == "random":
            value = torch.empty(images.shape, dtype=images.dtype, device="cpu")  # the same in either memory format
            for k, (top, left, height, width) in enumerate(torch.stack([*where, h, w], 1).tolist()):
                noise = torch.empty((images.shape[1], height, width), dtype=images.dtype, device="cpu")
                if noise.dtype == torch.uint8:
                    noise.random_(0, 256, generator=generator)
                else:
                    noise.normal_(generator=generator)
                value[k, :, top : top + height, left : left + width] = noise
        return *where, h, w, value

    def apply(self, images, drawn):
        return F.erase(images, *drawn)


# Of several images


class _Mixed(Transform):
    """Of a batch and its labels: (images, labels), or a dict with both. Labels are numbers of classes [N], or parts of
    each class [N, classes]; they become the latter. Each image meets the one before it."""

    def __init__(self, alpha=1.0, num_classes=None):
        self.alpha, self.num_classes = float(alpha), num_classes
        if not self.alpha > 0:
            raise ValueError(f"alpha must be positive, but got {alpha}")

    def __call__(self, batch, generator=None):
        _check_alone(self, batch)
        if isinstance(batch, Mapping):
            images, labels = self((batch["images"], batch["labels"]), generator)
            return {**batch, "images": images, "labels": labels}
        if isinstance(batch, torch.Tensor) or len(_sequence(batch)) < 2:
            raise TypeError(f"{type(self).__name__} needs labels: (images, labels), or a dict with both")
        images, labels, *rest = batch
        _check(images)
        alphas = torch.full((len(images), 2), self.alpha, dtype=torch.float64, device="cpu")
        images, kept = self.mix(images, torch._sample_dirichlet(alphas, generator)[:, 0], generator)
        if labels.dim() == 1:
            if self.num_classes is None:
                raise ValueError(f"{type(self).__name__} needs num_classes for labels that are numbers of classes")
            labels = torch.nn.functional.one_hot(labels, self.num_classes).float()
        return _as(batch, [images, torch.lerp(labels.roll(1, 0), labels, kept.to(labels.dtype)[:, None]), *rest])


class MixUp(_Mixed):
    """kept * image + (1 - kept) * the one before it, for float32 images, with kept drawn from Beta(alpha, alpha)
    (H. Zhang et al., 2018)."""

    def mix(self, images, kept, generator):
        if images.dtype != torch.float32:
            raise ValueError(f"MixUp is of float32 images, but got {images.dtype}: ToDtype(torch.float32, scale=True)")
        return torch.ops.rusttorch.mix_images(images, kept), kept


class CutMix(_Mixed):
    """A part of the image before it in each, whose area is 1 - kept of it but for what is beyond the edge, with kept
    drawn from Beta(alpha, alpha) (S. Yun et al., 2019)."""

    def mix(self, images, kept, generator):
        height, width = images.shape[2:]
        half, n = 0.5 * torch.sqrt(1 - kept), len(images)
        sides = []
        for size in (height, width):
            middle, reach = _below(torch.full((n,), size, device="cpu"), generator), (half * size).long()
            sides += [(middle - reach).clamp(min=0), (middle + reach).clamp(max=size)]
        out = images.clone()
        for k, (top, bottom, left, right) in enumerate(torch.stack(sides, 1).tolist()):
            out[k, :, top:bottom, left:right] = images[k - 1, :, top:bottom, left:right]
        top, bottom, left, right = sides
        return out, 1 - (bottom - top) * (right - left) / (height * width)


# Policies. A magnitude's table is linspace(least, most); signed: half of the images get its negative.
_GEOMETRIC = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
_FACTORS = {"Brightness": "brightness", "Color": "saturation", "Contrast": "contrast"}  # 1 + the magnitude
_COLORS = _FACTORS | {
    "Posterize": "posterize",
    "Solarize": "solarize",
    "AutoContrast": "autocontrast",
    "Equalize": "equalize",
}
_SIGNED = (*_GEOMETRIC, *_FACTORS, "Sharpness")
_NAMES = ("Identity", *_GEOMETRIC, *_FACTORS, "Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize")
_STEPS = torch.tensor([F.STEPS.index(_COLORS.get(name, "none")) for name in _NAMES], device="cpu")


class _Policy(Geometric):
    """Of each image one of the ops above, at one of num_magnitude_bins magnitudes."""

    def __init__(self, num_magnitude_bins=31, interpolation="nearest", fill=0.0):
        self.num_magnitude_bins, self.interpolation, self.fill = num_magnitude_bins, interpolation, fill

    def __call__(self, batch, generator=None):
        _check_alone(self, batch)
        return super().__call__(batch, generator)

    def draw(self, images, generator):
        return generator  # apply() draws, op after op

    def tables(self, height, width):
        """[ops, bins]"""
        bins = self.num_magnitude_bins
        ends = self.ends(height, width)
        rows = [torch.linspace(*ends.get(name, (0.0, 0.0)), bins, dtype=torch.float64, device="cpu") for name in _NAMES]
        rows[_NAMES.index("Posterize")] = (
            (8 - torch.arange(bins, device="cpu") / ((bins - 1) / self.bits)).round().double()
        )
        return torch.stack(rows)

    def one_op(self, images, op, magnitude, generator):
        """op and magnitude: which, of each image."""
        signed = torch.tensor([name in _SIGNED for name in _NAMES], device="cpu")[op]
        bins = self.tables(*images.shape[2:])[op, magnitude]
        by = torch.where(signed & _chosen(images, 0.5, generator), -bins, bins)
        out = self._warped(images, op, by)
        sharpened = (op == _NAMES.index("Sharpness")).nonzero()[:, 0]
        if len(sharpened):
            out[sharpened] = F.adjust_sharpness(images[sharpened], 1 + by[sharpened])
        factors = torch.where(signed, 1 + by, by)
        if images.dtype == torch.uint8:
            factors = torch.where(op == _NAMES.index("Solarize"), 255 * by, factors)
        return torch.ops.rusttorch.color_images_(out, _STEPS[op][:, None], factors[:, None])

    def _warped(self, images, op, by):
        """A copy, with those warped whose op that is."""
        out = images.clone()
        which = ((op > 0) & (op <= len(_GEOMETRIC))).nonzero()[:, 0]
        if not len(which):
            return out
        by, op = by[which], op[which]
        of = {name: torch.where(op == _NAMES.index(name), by, 0) for name in _GEOMETRIC}
        some = images[which]
        # A shear is about the corner, a rotation about the middle.
        sheared = torch.rad2deg(torch.atan(torch.stack([of["ShearX"], of["ShearY"]], 1)))
        moved = torch.stack([of["TranslateX"], of["TranslateY"]], 1).trunc()
        matrix = F.affine_matrix(some, 0.0, moved, 1.0, sheared, center=[0.0, 0.0])
        matrix = matrix @ F.affine_matrix(some, -of["Rotate"])
        out[which] = F.warp(some, matrix, interpolation=self.interpolation, fill=self.fill)
        return out


class RandAugment(_Policy):
    """num_ops random ops of 14 for each image, at one magnitude (E. D. Cubuk et al., 2020)."""

    bits = 4

    def __init__(self, num_ops=2, magnitude=9, num_magnitude_bins=31, interpolation="nearest", fill=0.0):
        super().__init__(num_magnitude_bins, interpolation, fill)
        self.num_ops, self.magnitude = num_ops, magnitude
        if not 0 <= magnitude < num_magnitude_bins:
            raise ValueError(f"magnitude must be from 0 to {num_magnitude_bins - 1}, but got {magnitude}")

    def ends(self, height, width):
        moved = 150.0 / 331.0
        return {
            **dict.fromkeys(("ShearX", "ShearY"), (0.0, 0.3)),
            "TranslateX": (0.0, moved * width),
            "TranslateY": (0.0, moved * height),
            "Rotate": (0.0, 30.0),
            **dict.fromkeys((*_FACTORS, "Sharpness"), (0.0, 0.9)),
            "Solarize": (1.0, 0.0),
        }

    def apply(self, images, generator):
        n = len(images)
        for _ in range(self.num_ops):
            op = _below(torch.full((n,), len(_NAMES), device="cpu"), generator)
            images = self.one_op(images, op, torch.full((n,), self.magnitude, device="cpu"), generator)
        return images


class TrivialAugmentWide(_Policy):
    """One random op of 14 for each image, at a random magnitude (S. G. Müller and F. Hutter, 2021)."""

    bits = 6

    def ends(self, height, width):
        return {
            **dict.fromkeys(("ShearX", "ShearY", *_FACTORS, "Sharpness"), (0.0, 0.99)),
            **dict.fromkeys(("TranslateX", "TranslateY"), (0.0, 32.0)),
            "Rotate": (0.0, 135.0),
            "Solarize": (1.0, 0.0),
        }

    def apply(self, images, generator):
        n = len(images)
        op = _below(torch.full((n,), len(_NAMES), device="cpu"), generator)
        return self.one_op(
            images, op, _below(torch.full((n,), self.num_magnitude_bins, device="cpu"), generator), generator
        )
