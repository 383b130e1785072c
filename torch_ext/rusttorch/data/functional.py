"""What torchvision.transforms.v2.functional does to an image, for batches: a parameter of its own for each image.

Images are [N, C, H, W] on the CPU, uint8 (0 to 255) or float32 (0 to 1), in either memory format, which the result
keeps. A parameter is a number, or a tensor [N] of one for each image. `which` is a bool tensor [N]: the others stay as
they are. Names and meanings are torchvision's, without expand, antialias and coefficients: what it has after expand is
by keyword only. Points have (0, 0) at the corner of the first pixel, whose middle is (0.5, 0.5).

Nothing here has a derivative: images that require a gradient are an error.
"""

import operator

import torch

_ops = torch.ops.rusttorch

# In the order of ColorStep (csrc/kernels/color.h).
STEPS = (
    "none",
    "brightness",
    "contrast",
    "saturation",
    "hue",
    "invert",
    "solarize",
    "posterize",
    "autocontrast",
    "equalize",
)


def _each(value, images, *sizes, dtype=torch.float32):
    """A parameter as a tensor [N, *sizes]: of one value for all images, or of one for each."""
    value = torch.as_tensor(value, dtype=dtype, device="cpu")
    if value.dim() > len(sizes) and len(value) != len(images):
        raise ValueError(f"expected one parameter for each of {len(images)} images, but got {len(value)}")
    return value.expand(len(images), *sizes)


def _which(which, images):
    which = torch.as_tensor(which, device="cpu")
    if which.dtype != torch.bool or which.shape != (len(images),):
        raise ValueError(f"expected which to be bool [{len(images)}], but got {which.dtype} {list(which.shape)}")
    return which


def _nearest(value, images):
    """In the images' dtype: a byte is rounded and clamped, where a cast would wrap."""
    if images.dtype == torch.uint8 and value.dtype != torch.uint8:
        value = value.round().clamp(0, 255)
    return value.to(images.dtype)


def _fill(value, images):
    """Of each channel; None is 0. (The ops round it.)"""
    return torch.as_tensor(0.0 if value is None else value, dtype=torch.float32, device="cpu").expand(images.shape[1])


def _whole(value):
    """Whole numbers, of any type, as a list: of one where one is given."""
    try:
        return [operator.index(v) for v in value]
    except TypeError:
        return [operator.index(value)]


def _pair(size):
    size = _whole(size)
    if len(size) not in (1, 2):
        raise ValueError(f"expected one size or two, but got {size}")
    return size[0], size[-1]


def _is_bilinear(interpolation):
    name = getattr(interpolation, "value", interpolation)  # of torchvision's InterpolationMode
    if name not in ("nearest", "bilinear"):
        raise ValueError(f"expected interpolation 'nearest' or 'bilinear', but got {interpolation!r}")
    return name == "bilinear"


# Colors


def _color(images, step, factor=0.0, which=None):
    steps = torch.full((len(images), 1), STEPS.index(step), device="cpu")
    if which is not None:
        steps[~_which(which, images)] = 0
    return _ops.color_images(images, steps, _each(factor, images)[:, None])


def _not_negative(factor, name, images):
    factor = _each(factor, images)
    if not bool((factor >= 0).all()):
        raise ValueError(f"{name} must not be negative, but got {factor.tolist()}")
    return factor


def adjust_brightness(images, brightness_factor, which=None):
    """Times the factor."""
    return _color(images, "brightness", _not_negative(brightness_factor, "brightness_factor", images), which)


def adjust_contrast(images, contrast_factor, which=None):
    """Blended with the mean of the image's grays: 0 is that gray, 1 the image."""
    return _color(images, "contrast", _not_negative(contrast_factor, "contrast_factor", images), which)


def adjust_saturation(images, saturation_factor, which=None):
    """Blended with its grays: 0 is gray, 1 the image."""
    return _color(images, "saturation", _not_negative(saturation_factor, "saturation_factor", images), which)


def adjust_hue(images, hue_factor, which=None):
    """The hue turned, by -0.5 to 0.5 of the way round."""
    factor = _each(hue_factor, images)
    if not bool((factor.abs() <= 0.5).all()):
        raise ValueError(f"hue_factor must be from -0.5 to 0.5, but got {hue_factor}")
    return _color(images, "hue", factor, which)


def rgb_to_grayscale(images, num_output_channels=1, which=None):
    """Its grays, in one channel or in three alike (which: of three, where the others stay colored)."""
    if num_output_channels not in (1, 3) or (which is not None and num_output_channels == 1):
        raise ValueError(f"num_output_channels must be 1 or 3, or 3 beside which, but got {num_output_channels}")
    gray = _color(images, "saturation", 0.0, which)
    return gray[:, :num_output_channels].expand(-1, num_output_channels, -1, -1)


def invert(images, which=None):
    """White less the image."""
    return _color(images, "invert", which=which)


def solarize(images, threshold, which=None):
    """Inverted where it is at least the threshold."""
    return _color(images, "solarize", threshold, which)


def posterize(images, bits, which=None):
    """With so many bits of each channel."""
    return _color(images, "posterize", bits, which)


def autocontrast(images, which=None):
    """Each channel stretched, so that its least is black and its most white."""
    return _color(images, "autocontrast", which=which)


def equalize(images, which=None):
    """Each channel's values spread evenly over all there are. (Floats by way of 256 values, as torchvision does.)"""
    return _color(images, "equalize", which=which)


def normalize(images, mean, std):
    """(images - mean) / std as float32, with mean and std of each channel or of all; uint8 images are divided by 255
    first."""
    mean, std = (torch.as_tensor(value, dtype=torch.float32, device="cpu") for value in (mean, std))
    mean, std = (value.expand(images.shape[1]) if value.numel() == 1 else value for value in (mean, std))
    return _ops.normalize_images(images, mean, std)


def to_dtype(images, dtype, scale=False):
    """Another dtype; with scale, white stays white."""
    if not scale or dtype == images.dtype or (images.is_floating_point() and dtype.is_floating_point):
        return images.to(dtype)
    if images.dtype == torch.uint8 and dtype == torch.float32:
        none = torch.zeros(images.shape[1], device="cpu")
        return _ops.normalize_images(images, none, none + 1)
    if images.dtype == torch.uint8 and dtype.is_floating_point:
        return images.to(dtype) / 255
    if images.dtype.is_floating_point and dtype == torch.uint8:
        return (images * 255.999).to(dtype)  # the same share of 0 to 1 for each value
    raise ValueError(f"to_dtype: no scale from {images.dtype} to {dtype}")


# Filters


def gaussian_blur(images, kernel_size, sigma=None):
    """Blurred by a Gaussian of kernel_size (an odd int, or two: width, height), mirrored about the edge.

    sigma: a number, a pair (of width and height), or of each image one [N, 1] or two [N, 2]. None: 0.15 of the kernel's
    size and 0.35.
    """
    sizes = _pair(kernel_size)
    if any(size <= 0 or size % 2 == 0 for size in sizes):
        raise ValueError(f"kernel_size must be odd and positive, but got {kernel_size}")
    sigma = torch.as_tensor([size * 0.15 + 0.35 for size in sizes] if sigma is None else sigma, device="cpu")
    if sigma.dim() == 1 and len(sigma) not in (1, 2):
        raise ValueError(f"sigma must be a number, a pair, [N, 1] or [N, 2], but got {list(sigma.shape)}")
    sigma = _each(sigma, images, 2, dtype=torch.float64)
    if not bool((sigma > 0).all()):
        raise ValueError("sigma must be positive")
    return _ops.blur_images(images, *(_gaussian(size, s) for size, s in zip(sizes, sigma.unbind(1), strict=True)))


def _gaussian(size, sigma):
    x = torch.arange(size, dtype=torch.float64, device="cpu") - (size - 1) / 2
    weights = torch.exp(-0.5 * (x / sigma[:, None]) ** 2)
    return (weights / weights.sum(1, keepdim=True)).float()


def adjust_sharpness(images, sharpness_factor, which=None):
    """Blended with itself blurred: 0 is blurred, 1 the image, 2 sharper. The outermost pixels stay."""
    factor = _not_negative(sharpness_factor, "sharpness_factor", images)
    return _ops.sharpen_images(images, factor if which is None else torch.where(_which(which, images), factor, 1.0))


# Flips and crops


def _cut(images, size, top=0, left=0, upside_down=False, left_to_right=False, fill=0.0):
    corner = torch.stack([_each(t, images, dtype=torch.int64) for t in (top, left)], 1)
    mirrored = torch.stack([_each(t, images, dtype=torch.bool) for t in (upside_down, left_to_right)], 1)
    return _ops.crop_images(images, corner, mirrored, size, _fill(fill, images))


def horizontal_flip(images, which=None):
    """Mirrored left to right."""
    return _cut(images, images.shape[2:], left_to_right=True if which is None else _which(which, images))


def vertical_flip(images, which=None):
    """Mirrored upside down."""
    return _cut(images, images.shape[2:], upside_down=True if which is None else _which(which, images))


def crop(images, top, left, height, width, *, fill=0.0):
    """The part [height, width] from top and left on, which may be beyond the image, where fill is."""
    return _cut(images, (height, width), top, left, fill=fill)


def center_crop(images, output_size):
    """The part in the middle; where the image is smaller, with 0 around it."""
    height, width = _pair(output_size)
    return crop(images, *_middle(images, (height, width)), height, width)


def _middle(images, size):
    """Top and left of a part in the middle: as torchvision rounds them, where the image is smaller too."""
    return [round((n - m) / 2) if n >= m else -((m - n) // 2) for n, m in zip(images.shape[2:], size, strict=True)]


def erase(images, i, j, h, w, v=0.0, inplace=False):
    """With v in the part from row i and column j on, of h rows and w columns: none where h or w is 0.

    v is a number, one for each channel, a tensor [C, h, w] or what becomes one ([C, 1, 1]), which all parts get, or a
    tensor of the batch's shape, of which each gets its own.
    """
    images = images if inplace else images.clone()
    v = torch.as_tensor(v, device="cpu")
    v = _nearest(v if v.dim() > 1 else _fill(v, images)[:, None, None], images)
    if v.dim() not in (3, 4) or (v.dim() == 4 and v.shape != images.shape):
        raise ValueError(f"expected v to be [C], [C, h, w] or {list(images.shape)}, but got {list(v.shape)}")
    rows, columns, heights, widths = (_each(t, images, dtype=torch.int64).tolist() for t in (i, j, h, w))
    for k, (row, column, height, width) in enumerate(zip(rows, columns, heights, widths, strict=True)):
        if height > 0 and width > 0:
            part = slice(None), slice(row, row + height), slice(column, column + width)
            images[k][part] = v[k][part] if v.dim() == 4 else v
    return images


# Warps


def warp(images, matrix, size=None, interpolation="bilinear", fill=0.0, box=None):
    """Each pixel of the result from where its matrix leads: [N, 3, 3], or [3, 3] for all.

    (x, y, 1) in the result leads to (x / w, y / w) in the image. size: of the result, [height, width]. What is beyond
    the image is fill, a number or one for each channel; or, with box [N, 4], beyond (left, top, right, bottom) its edge
    goes on. Bilinear interpolation takes four pixels, also where the result is much smaller: it does not antialias.
    """
    matrix = torch.as_tensor(matrix, dtype=torch.float64, device="cpu").expand(len(images), 3, 3)
    size = images.shape[2:] if size is None else _pair(size)
    return _ops.warp_images(images, matrix, size, _is_bilinear(interpolation), box, _fill(fill, images))


def warp_boxes(boxes, matrix, size):
    """Boxes [N, K, 4] (left, top, right, bottom) that hold what warp makes of theirs, within the result's size."""
    forward = torch.linalg.inv(torch.as_tensor(matrix, dtype=torch.float64, device="cpu")).expand(len(boxes), 3, 3)
    left, top, right, bottom = boxes.double().unbind(-1)
    corners = torch.stack(
        [torch.stack([x, y, torch.ones_like(x)], -1) for x in (left, right) for y in (top, bottom)], 2
    )
    points = corners @ forward[:, None].mT
    points = points[..., :2] / points[..., 2:]
    least, most = points.amin(2), points.amax(2)
    if not boxes.is_floating_point():
        least, most = least.floor(), most.ceil()
    limit = torch.tensor([size[1], size[0]], dtype=torch.float64, device="cpu")
    return torch.cat(
        [p.clamp(min=torch.zeros(2, dtype=torch.float64, device="cpu"), max=limit) for p in (least, most)], -1
    ).to(boxes)


def affine_matrix(images, angle=0.0, translate=(0.0, 0.0), scale=1.0, shear=(0.0, 0.0), center=None):
    """Of affine(), [N, 3, 3]: from the result to the image."""
    angle, scale = (_each(t, images, dtype=torch.float64) for t in (angle, scale))
    shift, shear = (_each(t, images, 2, dtype=torch.float64) for t in (translate, shear))
    rotation, (x, y) = torch.deg2rad(angle), torch.deg2rad(shear).unbind(1)
    a = torch.cos(rotation - y) / torch.cos(y)
    b = -a * torch.tan(x) - torch.sin(rotation)
    c = torch.sin(rotation - y) / torch.cos(y)
    d = -c * torch.tan(x) + torch.cos(rotation)
    inverse = torch.stack([d, -b, -c, a], 1).view(-1, 2, 2) / scale[:, None, None]
    height, width = images.shape[2:]
    middle = torch.tensor([width / 2, height / 2] if center is None else center, dtype=torch.float64, device="cpu")
    matrix = torch.eye(3, dtype=torch.float64, device="cpu").repeat(len(images), 1, 1)
    matrix[:, :2, :2] = inverse
    matrix[:, :2, 2] = middle - (inverse @ (middle + shift)[:, :, None]).squeeze(-1)
    return matrix


def affine(images, angle, translate, scale, shear, interpolation="nearest", fill=0.0, center=None):
    """Turned clockwise by angle (degrees), moved by translate (x, y), scaled, and sheared by shear (x, y, degrees),
    about center (x, y), or the middle. translate and shear are pairs, or [N, 2]."""
    matrix = affine_matrix(images, angle, translate, scale, shear, center)
    return warp(images, matrix, interpolation=interpolation, fill=fill)


def rotate(images, angle, interpolation="nearest", *, center=None, fill=0.0):
    """Turned counter-clockwise by angle (degrees)."""
    angle = -_each(angle, images, dtype=torch.float64)
    return warp(images, affine_matrix(images, angle, center=center), interpolation=interpolation, fill=fill)


def perspective_matrix(images, startpoints, endpoints):
    """Of perspective(), [N, 3, 3]: from the result to the image. The identity where there is none."""
    start, end = (_each(t, images, 4, 2, dtype=torch.float64) for t in (startpoints, endpoints))
    # Three points in a line (as of every image that is one pixel high) have no map that can be undone, and of four that
    # cross over, the equations may be singular. One such image would lose the whole batch.
    square = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]], dtype=torch.float64, device="cpu")
    in_line = (_in_line(start) | _in_line(end))[:, None, None]
    start, end = (torch.where(in_line, square, points) for points in (start, end))
    x, y = end.unbind(2)
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    rows = [
        torch.stack([x, y, one, zero, zero, zero, -start[..., 0] * x, -start[..., 0] * y], 2),
        torch.stack([zero, zero, zero, x, y, one, -start[..., 1] * x, -start[..., 1] * y], 2),
    ]
    found, singular = torch.linalg.solve_ex(torch.cat(rows, 1), torch.cat([start[..., 0], start[..., 1]], 1))
    matrix = torch.cat([found, torch.ones(len(images), 1, dtype=torch.float64, device="cpu")], 1).view(-1, 3, 3)
    return torch.where((singular != 0)[:, None, None], torch.eye(3, dtype=torch.float64, device="cpu"), matrix)


def _in_line(points):
    """Whether three of four are: each with the two beside it."""
    (x, y), (u, v) = ((points.roll(shift, 1) - points).unbind(2) for shift in (1, -1))
    return (x * v == y * u).any(1)


def perspective(images, startpoints, endpoints, interpolation="bilinear", fill=0.0):
    """So that four startpoints come to lie at four endpoints: each four pairs (x, y), or [N, 4, 2]."""
    return warp(images, perspective_matrix(images, startpoints, endpoints), interpolation=interpolation, fill=fill)


def resized_crop_matrix(images, top, left, height, width, size):
    """Of resized_crop(), [N, 3, 3]: from the result to the image."""
    top, left, height, width = (_each(t, images, dtype=torch.float64) for t in (top, left, height, width))
    matrix = torch.zeros(len(images), 3, 3, dtype=torch.float64, device="cpu")
    matrix[:, 0, 0], matrix[:, 1, 1] = width / size[1], height / size[0]
    matrix[:, 0, 2], matrix[:, 1, 2], matrix[:, 2, 2] = left, top, 1
    return matrix


def resized_crop(images, top, left, height, width, size, interpolation="bilinear"):
    """The part [height, width] from top and left on, within the image, resized to size: torchvision's with
    antialias=False. Files that are read at another size are better resized with antialiasing as they are read."""
    size = _pair(size)
    matrix = resized_crop_matrix(images, top, left, height, width, size)
    top, left, height, width = (_each(t, images) for t in (top, left, height, width))
    box = torch.stack([left, top, left + width, top + height], 1)
    return warp(images, matrix, size, interpolation, box=box)
