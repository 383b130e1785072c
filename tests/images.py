"""Batches that the tests of images are run on."""

import pytest
import torch

DTYPES = (torch.uint8, torch.float32)
LAYOUTS = ("contiguous", "channels_last", "strided")
SHAPES = {"odd": (3, 3, 29, 37), "gray": (2, 1, 13, 70), "one pixel": (2, 3, 1, 1), "rows": (2, 3, 600, 3)}
# A batch that threads share.
LARGE = (5, 3, 131, 97)
# An image whose rows they share.
ONE = (1, 3, 331, 299)


def make(shape, dtype=torch.uint8, layout="contiguous", seed=0):
    generator = torch.Generator().manual_seed(seed)
    if layout == "strided":
        shape = (*shape[:2], 2 * shape[2], shape[3])
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    if dtype == torch.float32:
        images = torch.rand(shape, generator=generator)
    if layout == "strided":
        return images[:, :, ::2]
    return images.contiguous(memory_format=torch.channels_last) if layout == "channels_last" else images


def white(images):
    return 1.0 if images.is_floating_point() else 255.0


def close(result, expected, images, levels=1, floats=1e-5):
    """uint8: so many of 255 apart; floats."""
    assert result.shape == expected.shape and result.dtype == images.dtype
    apart = (result.double() - expected.double()).abs().max() if result.numel() else torch.tensor(0.0)
    assert apart <= (floats if images.is_floating_point() else levels), apart


def lies_as(result, images):
    """In images' memory format; what is neither is contiguous."""
    last = images.shape[1] > 1 and not images.is_contiguous()
    last = last and images.is_contiguous(memory_format=torch.channels_last)
    assert result.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def same_for_any_number_of_threads(f):
    threads = torch.get_num_threads()
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        try:
            results.append(f())
        finally:
            torch.set_num_threads(threads)
    assert all(torch.equal(result, results[0]) for result in results)


def refused(f, message):
    with pytest.raises((RuntimeError, ValueError), match=message):
        f()
