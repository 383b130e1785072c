"""Images: decoding is simplejpeg's or Pillow's, what makes a batch of them is one op."""

import functools
import importlib
import io
import operator
import os
import re
from pathlib import Path

import numpy as np
import torch

# As Pillow's limit, beyond which it warns of a decompression bomb. None: there is no limit but Pillow's own, which
# refuses twice PIL.Image.MAX_IMAGE_PIXELS: set that as well.
MAX_PIXELS = 89_478_485
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's
_JPEG, _EXIF = b"\xff\xd8\xff", b"Exif\0\0"
_ORIENTATION = 0x0112
_COLORS = {"RGB": "RGB", "L": "GRAY"}  # in simplejpeg's words


def images_to_batch(
    images,
    size,
    *,
    boxes=None,
    flips=None,
    interpolation="bilinear",
    antialias=True,
    mean=None,
    std=None,
    dtype=None,
    memory_format=None,
    out=None,
):
    """Crops, resizes, flips and normalizes images, each in its turn by one of torch's threads, into one batch.

    images: a sequence of uint8 tensors (or numpy's arrays) [height, width, channels], of any sizes, with 1, 3 or 4
        channels, all as many; or one [N, height, width, channels]. Rows may lie apart: views of larger images are not
        copied.
    size: (height, width) of the batch, or one int for both.
    boxes: integers [N, 4]: (top, left, height, width) of the part that is taken of each image, as of torchvision's
        RandomResizedCrop.get_params. None: all of it.
    flips: bools [N]: which are mirrored, left to right.
    interpolation: "bilinear", "bicubic", or "nearest", which is Pillow's (torch's "nearest-exact", but where two are as
        near).
    antialias: True: as Pillow's Image.resize(size, resample, box=box): a filter that grows with the step, and at a
        box's border reaches beyond it. (For a crop of its own, give a view, image[top:bottom, left:right], and no box.)
        False: as torch.nn.functional.interpolate(align_corners=False) of the crop.
    mean, std: of floating dtypes: a number for each channel, or one. The batch is (level / 255 - mean) / std.
    dtype: uint8, which are levels from 0 to 255, or a floating dtype. None: out's, or torch's default dtype.
    memory_format: torch.channels_last, or torch.contiguous_format (None).
    out: a batch [N, channels, height, width] that is written to, of any strides: a part of a larger one, say. It must
        have the dtype, and lie apart from the images: none of their memory may be between its first and last number.

    Returns the batch. uint8 with antialias are Pillow's levels to the bit, where it resizes the width first. (It always
    did before Pillow 13, which resizes tall images the other way: bilinear then differs by one level at most, bicubic,
    whose levels are cut at 0 and 255 in between, by tens of levels at sharp edges.) Floating dtypes are not rounded to
    levels in between: they are closer to the exact sums than one level. Bicubic's are kept within 0 to 255. The
    result is the same to the bit for any number of threads. It has no derivative.

    Raises RuntimeError where a tensor's shape, dtype or device is not as said, ValueError where a value is: a box that
    is not within its image, a size or a side of 0, another interpolation, mean or std with uint8, a std of 0. Nothing
    has been written then.
    """
    images = [_of_numpy(image) if isinstance(image, np.ndarray) else image for image in images]
    if not images:
        raise ValueError("images_to_batch: expected at least one image")
    size = (size, size) if isinstance(size, (int, np.integer)) else size
    boxes, flips = _as_tensor("boxes", boxes), _as_tensor("flips", flips)
    mean, std = _floats(mean), _floats(std)
    options = {"boxes": boxes, "flips": flips, "interpolation": interpolation, "antialias": antialias}
    options |= {"mean": mean, "std": std, "memory_format": memory_format}
    if out is None:
        return torch.ops.rusttorch.images_to_batch(images, size, dtype=dtype, **options)
    dtype = out.dtype if dtype is None else dtype
    return torch.ops.rusttorch.images_to_batch.out(images, size, dtype=dtype, out=out, **options)


def _of_numpy(image):
    # (Of one that is not writable, as Pillow's are, torch warns.)
    return torch.from_numpy(image if image.flags.writeable else image.copy())


def _floats(n):
    """A list of one number or several, or None."""
    if n is None:
        return None
    return [float(n)] if isinstance(n, (int, float)) or getattr(n, "ndim", 1) == 0 else [float(x) for x in n]


def _as_tensor(what, values):
    try:
        return None if values is None else torch.as_tensor(values, device="cpu")
    except (TypeError, ValueError) as error:
        raise type(error)(f"images_to_batch: {what}: {error}") from None


def read_image(source, *, size=None, mode="RGB", orient=False):
    """Decodes an image file into a uint8 tensor [height, width, channels].

    source: a path, the file's bytes, or a binary file that is open (what has read()).
    size: (height, width) or one int: the least that is needed. A JPEG is then decoded at a half, a quarter or an eighth
        of its size, if that is no less, which takes less time. (Resize it with images_to_batch.)
    mode: "RGB", or "L" for one channel of brightness. An alpha channel is dropped.
    orient: True turns and mirrors the image as its EXIF orientation says, which needs Pillow. size is what it is then.
        A TIFF is turned always: Pillow does that.

    JPEGs are decoded by simplejpeg (libjpeg-turbo) where that is installed, others and what it refuses by Pillow.

    Raises OSError where the file cannot be read; ValueError, which names it, where it is truncated, no image that is
    known, of more than rusttorch.data.images.MAX_PIXELS pixels, or of more than 8 bits a channel (PNGs, TIFFs and
    PPMs; Pillow cuts others to 8); ImportError where neither library is there.
    """
    least = _checked(size, mode)
    if hasattr(source, "read"):
        source = memoryview(source.read())
    if isinstance(source, (bytes, bytearray, memoryview)):
        data, name = bytes(source), f"image of {len(source)} bytes"
    else:
        data, name = Path(source).read_bytes(), os.fspath(source)
    try:
        array = _decode(data, least, mode, orient)
    except (ImportError, MemoryError):
        raise
    except Exception as error:  # a decoder's, of any class
        raise ValueError(f"{name}: {error}") from error
    return torch.from_numpy(array)


def _checked(size, mode):
    """The height and the width that size says, or None."""
    if mode not in _COLORS:
        raise ValueError(f"read_image: mode must be 'RGB' or 'L', got {mode!r}")
    if size is None:
        return None
    try:
        height, width = map(operator.index, size if hasattr(size, "__len__") else (size, size))
    except (TypeError, ValueError):
        raise TypeError(f"read_image: size must be (height, width) or one int, got {size!r}") from None
    if height < 1 or width < 1:
        raise ValueError(f"read_image: size must be 1 or more, got {size!r}")
    return height, width


def _decode(data, least, mode, orient):
    jpeg = _library("simplejpeg") if data[:3] == _JPEG else None
    if jpeg is not None:
        turn = _orientation(_opened(data)) if orient and _EXIF in data else 1
        try:
            return _turned(_decode_jpeg(jpeg, data, _as_stored(least, turn), mode), turn)
        except _TooLarge:
            raise
        except ValueError:  # Pillow takes more
            if _library("PIL.Image") is None:
                raise
    image = _opened(data)
    _check_size(*image.size)
    turn = _orientation(image) if orient and image.format != "TIFF" else 1
    least = _as_stored(least, turn)
    factor = _factor(*image.size[::-1], least)
    image.draft(mode, tuple(max(1, side // factor) for side in image.size))
    if image.mode[0] in "IF" or any(map(_is_deep, image.tile)):
        raise ValueError(f"more than 8 bits a channel (Pillow's mode {image.mode})")
    array = np.array(image.convert(mode))
    return _turned(array[..., None] if mode == "L" else array, turn)


def _is_deep(tile):
    """Whether Pillow cuts what it decodes to 8 bits a channel."""
    codec, _, _, args = tile
    return args[1] > 255 if codec in ("ppm", "ppm_plain") else re.search(r";16[BLN]", str(args)) is not None


def _decode_jpeg(simplejpeg, data, least, mode):
    height, width, color, _ = simplejpeg.decode_jpeg_header(data)
    _check_size(height, width)
    if color in ("CMYK", "YCCK"):
        raise ValueError(f"{color}, which simplejpeg does not convert")
    factor = _factor(height, width, least)
    scaled = {"min_height": -(-height // factor), "min_width": -(-width // factor)} if factor > 1 else {}
    return simplejpeg.decode_jpeg(data, _COLORS[mode], **scaled)


def _factor(height, width, least):
    """By how much a JPEG's sides can be divided. (Decoders know others, which take longer.)"""
    if least is None:
        return 1
    return next((f for f in (8, 4, 2) if -(-height // f) >= least[0] and -(-width // f) >= least[1]), 1)


@functools.cache
def _library(name):
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def _opened(data):
    pillow = _library("PIL.Image")
    if pillow is None:
        raise ImportError("read_image needs Pillow, or for JPEGs simplejpeg: pip install pillow simplejpeg")
    try:
        return pillow.open(io.BytesIO(data))
    except pillow.UnidentifiedImageError:
        raise ValueError("no image that Pillow knows") from None
    except pillow.DecompressionBombError as error:
        raise _TooLarge(f"{error} (PIL.Image.MAX_IMAGE_PIXELS)") from None


class _TooLarge(ValueError):
    pass


def _check_size(*sides):
    if MAX_PIXELS is not None and sides[0] * sides[1] > MAX_PIXELS:
        raise _TooLarge(f"{sides[0]} x {sides[1]} are more than {MAX_PIXELS} pixels (rusttorch.data.images.MAX_PIXELS)")


def _orientation(image):
    """EXIF's, from 1, which means none, to 8."""
    turn = image.getexif().get(_ORIENTATION, 1)
    return turn if turn in range(1, 9) else 1


def _as_stored(least, turn):
    """Height and width before the turn."""
    return least[::-1] if least is not None and turn >= 5 else least


def _turned(array, turn):
    if turn == 1:
        return array
    if turn >= 5:
        array = array.transpose(1, 0, 2)
    if turn in (3, 4, 7, 8):
        array = array[::-1]
    if turn in (2, 3, 6, 7):
        array = array[:, ::-1]
    return np.ascontiguousarray(array)


class ImageFolder(torch.utils.data.Dataset):
    """The images below root, whose folders are the classes: root/CLASS/.../NAME.jpg. A map-style dataset.

    dataset[i] is (image, label): what read_image makes of paths[i] with size, mode and orient, and the number of its
    class. Images are files with one of rusttorch.data.images.EXTENSIONS; they and the classes are sorted by name.

    classes: the names of the folders. paths, labels: of each image. (The dataset can be pickled.)

    Raises FileNotFoundError where there are no folders in root, or one without an image, and what read_image raises
    where size or mode is wrong.
    """

    def __init__(self, root, size=None, *, mode="RGB", orient=False):
        self._options = {"size": _checked(size, mode), "mode": mode, "orient": orient}
        self.classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
        self.paths, self.labels = [], []
        for label, name in enumerate(self.classes):
            found = [
                os.path.join(folder, file)
                for folder, _, files in os.walk(os.path.join(root, name), followlinks=True)
                for file in files
                if file.lower().endswith(EXTENSIONS)
            ]
            if not found:
                raise FileNotFoundError(f"{os.path.join(root, name)}: no images ({', '.join(EXTENSIONS)})")
            self.paths += sorted(found)
            self.labels += [label] * len(found)
        if not self.classes:
            raise FileNotFoundError(f"{os.fspath(root)}: no folders, which are the classes")

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        return read_image(self.paths[i], **self._options), self.labels[i]
