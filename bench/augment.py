"""Augmentations of a batch: rusttorch.data.functional against torch's own ops and kornia, where it is installed.

    python bench/augment.py [--images 64] [--size 224] [--rounds 7] [--only NAME ...]

Each line is an augmentation with a parameter for each image, on uint8 and on float32: the median time of ours, and how
many times as long the same formula takes in torch's ops, and kornia, all in turns, in random order, with rusttorch's
memory pool. kornia is of floats: on uint8 its time has the conversion to floats and back. "copies" is how many times as
long ours takes as a copy of the batch. OMP_NUM_THREADS says how many threads there are.
"""

import argparse
import importlib.util
import math
import random
import statistics
import time
from pathlib import Path

import rusttorch
import torch
import torch.nn.functional as nn
from rusttorch.data import functional as F
from rusttorch.data import transforms as T

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def each(values):
    """[N, 1, 1, 1]"""
    return values[:, None, None, None]


def white(x):
    return 1.0 if x.is_floating_point() else 255.0


def cut(x, like):
    """To like's dtype, within its range."""
    return x.clamp_(0, white(like)).to(like.dtype)


def gray(x):
    r, g, b = x.unbind(1)
    g = (r.mul(0.2989).add_(g, alpha=0.587).add_(b, alpha=0.114))[:, None]
    return g if x.is_floating_point() else g.floor_()


def floats(x):
    return x if x.is_floating_point() else x.float()


class Torch:
    """As torchvision.transforms.v2 does it, with a parameter for each image."""

    def brightness(x, p):
        return cut(x * each(p.factor), x)

    def contrast(x, p):
        mean, f = gray(x).mean((1, 2, 3), keepdim=True), each(p.factor)
        return cut((x * f).add_(mean * (1 - f)), x)

    def saturation(x, p):
        f = each(p.factor)
        return cut((x * f).add_(gray(x) * (1 - f)), x)

    def hue(x, p):
        y = floats(x) / white(x)
        (r, g, _), (least, value) = y.unbind(1), torch.aminmax(y, dim=1)
        same, one = value == least, torch.ones_like(value)
        s = (value - least) / torch.where(same, one, value)
        rc, gc, bc = ((value[:, None] - y) / torch.where(same, one, value - least)[:, None]).unbind(1)
        is_r, is_g = value == r, value == g
        h = torch.where(is_r, bc - gc, torch.where(is_g, rc - bc + 2, gc - rc + 4))
        h = (h / 6 + 1 + p.hue[:, None, None]).remainder_(1).mul_(6)
        i = h.floor()
        f, i = h - i, i.long()
        low, q, t = value * (1 - s), value * (1 - s * f), value * (1 - s * (1 - f))
        table = [
            torch.stack(c, 0)
            for c in ((value, q, low, low, t, value), (t, value, value, q, low, low), (low, low, t, value, value, q))
        ]
        y = torch.stack([c.gather(0, i[None])[0] for c in table], 1)
        return y if x.is_floating_point() else y.mul_(255.999).to(torch.uint8)

    def invert(x, p):
        return 1 - x if x.is_floating_point() else x.bitwise_not()

    def solarize(x, p):
        return torch.where(x >= (each(p.threshold) * white(x)).to(x.dtype), Torch.invert(x, p), x)

    def posterize(x, p):
        if x.is_floating_point():
            levels = each(2.0**p.bits)
            return (x * levels).floor_().clamp_(min=0).minimum(levels - 1).div_(levels)
        return x & each((256 - 2 ** (8 - p.bits)).to(torch.uint8))

    def autocontrast(x, p):
        y = floats(x)
        low, high = y.amin((2, 3), keepdim=True), y.amax((2, 3), keepdim=True)
        same = low == high
        scale = torch.where(same, 1, (high - low) / white(x))
        return cut((y - torch.where(same, 0, low)).div_(scale), x)

    def equalize(x, p):
        bytes_ = x if x.dtype == torch.uint8 else x.mul(255.999).to(torch.uint8)
        flat = bytes_.flatten(2).long()
        counts = torch.zeros(*flat.shape[:2], 256, dtype=torch.int32)
        counts.scatter_add_(2, flat, torch.ones(1, dtype=torch.int32).expand_as(flat))
        total = counts.cumsum(2)
        step = (flat.shape[2] - counts.gather(2, total.argmax(2, keepdim=True))) // 255
        table = torch.cat([torch.zeros_like(step), (total[..., :-1] + step // 2) // step.clamp(min=1)], 2)
        y = torch.where(step[..., None] > 0, table.clamp_(0, 255).to(torch.uint8).gather(2, flat).view_as(x), bytes_)
        return y if x.dtype == torch.uint8 else y.float().div_(255)

    def grayscale(x, p):
        return gray(x).to(x.dtype).expand_as(x).contiguous()

    def jitter(x, p):
        x = Torch.saturation(Torch.contrast(Torch.brightness(x, p), p), p)
        return Torch.hue(x, p)

    def normalize(x, p):
        mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
        y = x if x.is_floating_point() else x.float().div_(255)
        return y.sub(mean).div_(std)

    def hflip(x, p):
        return torch.where(each(p.which), x.flip(3), x)

    def crop(x, p):
        y = nn.pad(x, (4, 4, 4, 4))
        h, w = x.shape[2:]
        corners = zip(y, p.top.tolist(), p.left.tolist(), strict=True)
        return torch.stack([image[:, i : i + h, j : j + w] for image, i, j in corners])

    def sample(x, matrix, mode, size=None):
        h, w = x.shape[2:]
        size = size or (h, w)
        base = torch.ones(1, *size, 3)
        base[..., 0], base[..., 1] = torch.arange(size[1]) + 0.5, (torch.arange(size[0]) + 0.5)[:, None]
        at = base.view(1, -1, 3) @ matrix.float().mT
        at = at[..., :2] / at[..., 2:] * torch.tensor([2 / w, 2 / h]) - 1
        y = nn.grid_sample(floats(x), at.view(-1, *size, 2), mode=mode, align_corners=False)
        return y if x.is_floating_point() else y.round_().to(x.dtype)

    def rotate_nearest(x, p):
        return Torch.sample(x, p.rotation, "nearest")

    def rotate_bilinear(x, p):
        return Torch.sample(x, p.rotation, "bilinear")

    def perspective(x, p):
        return Torch.sample(x, p.perspective, "bilinear")

    def resized_crop(x, p):
        h, w = x.shape[2:]
        parts = [image[None, :, i : i + a, j : j + b] for image, (i, j, a, b) in zip(x, p.parts.tolist(), strict=True)]
        return torch.cat([nn.interpolate(part, size=(h, w), mode="bilinear") for part in parts])

    def blur(x, size, p):
        n, c, h, w = x.shape
        row = F._gaussian(size, p.sigma.double())
        half = size // 2
        y = nn.pad(floats(x).reshape(1, n * c, h, w), (half,) * 4, mode="reflect")
        row = row.repeat_interleave(c, 0)
        y = nn.conv2d(nn.conv2d(y, row[:, None, None], groups=n * c), row[:, None, :, None], groups=n * c).view(
            n, c, h, w
        )
        return y if x.is_floating_point() else y.round_().to(x.dtype)

    def blur_5(x, p):
        return Torch.blur(x, 5, p)

    def blur_23(x, p):
        return Torch.blur(x, 23, p)

    def sharpness(x, p):
        kernel = torch.full((3, 3), 1 / 13)
        kernel[1, 1] = 5 / 13
        y = x.float() if x.dtype == torch.uint8 else x.clone()
        blurred = nn.conv2d(y, kernel.expand(3, 1, 3, 3), groups=3)
        inner = y[..., 1:-1, 1:-1]
        inner.add_(blurred.sub_(inner).mul_(1 - each(p.factor)))
        return cut(y, x)

    def mixup(x, p):
        return (x.roll(1, 0).mul_(1 - each(p.factor / 2))).add_(x * each(p.factor / 2))


class Ours:
    def brightness(x, p):
        return F.adjust_brightness(x, p.factor)

    def contrast(x, p):
        return F.adjust_contrast(x, p.factor)

    def saturation(x, p):
        return F.adjust_saturation(x, p.factor)

    def hue(x, p):
        return F.adjust_hue(x, p.hue)

    def invert(x, p):
        return F.invert(x)

    def solarize(x, p):
        return F.solarize(x, p.threshold * white(x))

    def posterize(x, p):
        return F.posterize(x, p.bits)

    def autocontrast(x, p):
        return F.autocontrast(x)

    def equalize(x, p):
        return F.equalize(x)

    def grayscale(x, p):
        return F.rgb_to_grayscale(x, 3)

    def jitter(x, p):
        steps = torch.tensor([F.STEPS.index(name) for name in ("brightness", "contrast", "saturation", "hue")])
        factors = torch.stack([p.factor, p.factor, p.factor, p.hue], 1)
        return torch.ops.rusttorch.color_images(x, steps.expand(len(x), 4), factors)

    def normalize(x, p):
        return F.normalize(x, MEAN, STD)

    def hflip(x, p):
        return F.horizontal_flip(x, p.which)

    def crop(x, p):
        return F.crop(x, p.top - 4, p.left - 4, *x.shape[2:])

    def rotate_nearest(x, p):
        return F.warp(x, p.rotation, interpolation="nearest")

    def rotate_bilinear(x, p):
        return F.warp(x, p.rotation)

    def perspective(x, p):
        return F.warp(x, p.perspective)

    def resized_crop(x, p):
        return F.resized_crop(x, *p.parts.unbind(1), x.shape[2:])

    def blur_5(x, p):
        return F.gaussian_blur(x, 5, p.sigma[:, None])

    def blur_23(x, p):
        return F.gaussian_blur(x, 23, p.sigma[:, None])

    def sharpness(x, p):
        return F.adjust_sharpness(x, p.factor)

    def mixup(x, p):
        return T.MixUp().mix(x, p.factor / 2, None)[0]


def kornia_calls():
    if importlib.util.find_spec("kornia") is None:
        return {}
    import kornia
    from kornia.geometry import transform as G

    def of_floats(f):
        def call(x, p):
            if x.is_floating_point():
                return f(x, p)
            return f(x.float().div_(255), p).clamp_(0, 1).mul_(255).round_().to(torch.uint8)

        return call

    E = kornia.enhance
    pixels = torch.tensor([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])

    def forward(matrix):  # from the image to the result, with (0, 0) in the middle of the first pixel
        return torch.linalg.inv(torch.linalg.inv(pixels) @ matrix.float() @ pixels)

    def warp(matrix, mode):
        def call(x, p):
            m = forward(matrix(p))
            f = (
                G.warp_perspective
                if m[0, 2, 0] != 0
                else lambda x, m, *rest, **kw: G.warp_affine(x, m[:, :2], *rest, **kw)
            )
            return f(x, m, tuple(x.shape[2:]), mode=mode, align_corners=True)

        return call

    def blur(size):
        return lambda x, p: kornia.filters.gaussian_blur2d(x, (size, size), p.sigma.float()[:, None].expand(-1, 2))

    def resized(x, p):
        top, left, h, w = p.parts.float().unbind(1)
        corners = torch.stack([left, top, left + w - 1, top, left + w - 1, top + h - 1, left, top + h - 1], 1)
        return G.crop_and_resize(x, corners.view(-1, 4, 2), tuple(x.shape[2:]))

    def jitter(x, p):
        x = E.adjust_brightness_accumulative(x, p.factor)
        x = E.adjust_contrast_with_mean_subtraction(x, p.factor)
        x = E.adjust_saturation_with_gray_subtraction(x, p.factor)
        return E.adjust_hue(x, p.hue * 2 * math.pi)

    crops = {}

    def crop(x, p):  # with parameters of its own, which are drawn once
        if x.shape not in crops:
            crops[x.shape] = kornia.augmentation.RandomCrop(tuple(x.shape[2:]), padding=4)
            crops[x.shape].parameters = crops[x.shape].forward_parameters(x.shape)
        return crops[x.shape](x, params=crops[x.shape].parameters)

    def mixup(x, p):
        given = {"mixup_pairs": torch.arange(len(x)).roll(1), "mixup_lambdas": 1 - p.factor / 2}
        return blend.apply_transform(x, given)

    blend = kornia.augmentation.RandomMixUpV2()
    calls = {
        "brightness": lambda x, p: E.adjust_brightness_accumulative(x, p.factor),
        "contrast": lambda x, p: E.adjust_contrast_with_mean_subtraction(x, p.factor),
        "saturation": lambda x, p: E.adjust_saturation_with_gray_subtraction(x, p.factor),
        "hue": lambda x, p: E.adjust_hue(x, p.hue * 2 * math.pi),
        "invert": lambda x, p: E.invert(x),
        "solarize": lambda x, p: E.solarize(x, p.threshold),
        "posterize": lambda x, p: E.posterize(x, p.bits.int()),
        "autocontrast": lambda x, p: E.normalize_min_max(x),
        "equalize": lambda x, p: E.equalize(x),
        "grayscale": lambda x, p: kornia.color.rgb_to_grayscale(x).expand_as(x).contiguous(),
        "jitter": jitter,
        "hflip": lambda x, p: torch.where(each(p.which), G.hflip(x), x),
        "rotate_nearest": warp(lambda p: p.rotation, "nearest"),
        "rotate_bilinear": warp(lambda p: p.rotation, "bilinear"),
        "perspective": warp(lambda p: p.perspective, "bilinear"),
        "resized_crop": resized,
        "blur_5": blur(5),
        "blur_23": blur(23),
        "sharpness": lambda x, p: E.sharpness(x, p.factor),
        "crop": crop,
        "mixup": mixup,
    }
    calls = {name: of_floats(f) for name, f in calls.items()}
    calls["normalize"] = lambda x, p: E.normalize(
        x if x.is_floating_point() else x.float().div_(255), torch.tensor(MEAN), torch.tensor(STD)
    )
    return calls


class Parameters:
    """Of each image."""

    def __init__(self, images):
        n, (h, w) = len(images), images.shape[2:]
        g = torch.Generator().manual_seed(0)

        def uniform(low, high):
            return low + (high - low) * torch.rand(n, generator=g)

        self.factor, self.hue, self.threshold = uniform(0.6, 1.4), uniform(-0.1, 0.1), uniform(0.3, 0.9)
        self.bits, self.sigma = torch.randint(2, 8, (n,), generator=g), uniform(0.1, 2.0)
        self.which = torch.rand(n, generator=g) < 0.5
        self.top, self.left = (torch.randint(0, 9, (n,), generator=g) for _ in range(2))
        self.rotation = F.affine_matrix(images, uniform(-30, 30))
        self.perspective = T.RandomPerspective(0.5, 1.0).draw(images, g)
        self.parts = torch.stack(T.RandomResizedCrop((h, w)).draw(images, g), 1)


def timed(f, x, p):
    """In ms: of the thread alone where there is one, since others may use the machine."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    begin = clock()
    f(x, p)
    return (clock() - begin) * 1e3


def turns(arms, x, p):
    """Each arm's time, in an order of their own: one finds what the one before it left in the cache."""
    times = [math.nan] * len(arms)
    for k in random.sample(range(len(arms)), len(arms)):
        if arms[k]:
            times[k] = timed(arms[k], x, p)
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--channels-last", action="store_true")
    options = parser.parse_args()
    rusttorch.memory.enable_pool()
    model = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "?")
    print(
        f"{model.split(':')[-1].strip()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"{options.images} x 3 x {options.size} x {options.size}",
        flush=True,
    )
    columns = f"{'torch':>6} {'kornia':>6} {'copies':>6}  "
    print(f"{'':16} {'uint8: ms':>9} {columns} {'float: ms':>9} {columns}")
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(
        0, 256, (options.images, 3, options.size, options.size), dtype=torch.uint8, generator=generator
    )
    if options.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    parameters = Parameters(images)
    kornia = kornia_calls()
    for name in [name for name in vars(Ours) if not name.startswith("_")]:
        if options.only and name not in options.only:
            continue
        line = f"{name:16}"
        for x in (images, images / 255):
            arms = [getattr(Ours, name), getattr(Torch, name), kornia.get(name), lambda x, p: x.clone()]
            if name == "mixup" and x.dtype == torch.uint8:
                line += " " * 33
                continue
            rounds = [turns(arms, x, parameters) for _ in range(options.rounds + 1)][1:]
            ours = statistics.median(r[0] for r in rounds)
            ratios = [statistics.median(r[k] / r[0] for r in rounds) for k in (1, 2)]
            copies = statistics.median(r[0] / r[3] for r in rounds)
            line += f" {ours:9.2f} {ratios[0]:6.1f} {ratios[1]:6.1f} {copies:6.1f}  "
        print(line, flush=True)


if __name__ == "__main__":
    main()
