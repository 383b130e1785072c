"""images_to_batch against Pillow and torch's interpolate; read_image and ImageFolder."""

import io
import os
import pickle
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import rusttorch
import torch
import torch.nn.functional as F
from cases import opcheck
from rusttorch.data import ImageFolder, images, images_to_batch, read_image

ROOT = Path(__file__).parents[1]
Image = pytest.importorskip("PIL.Image", reason="Pillow is the judge")
# By how many levels floats, which are not rounded in between, may differ from Pillow's.
AS_FLOATS = {"nearest": 1e-3, "bilinear": 1 + 1e-4, "bicubic": 1.25}
FILTERS = {"nearest": Image.NEAREST, "bilinear": Image.BILINEAR, "bicubic": Image.BICUBIC}
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def picture(height, width, channels=3, seed=0, extreme=False):
    """Random levels, or 0 and 255 only, which bicubic goes far beyond."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, (height, width, channels), dtype=torch.uint8, generator=generator)
    return (x > 127) * torch.tensor(255, dtype=torch.uint8) if extreme else x


def pillow(image, size, interpolation="bilinear", box=None):
    """Pillow's levels [height, width, channels]: the width first, and then the height, as before Pillow 13."""
    height, width, channels = image.shape
    top, left, box_height, box_width = box or (0, 0, height, width)
    mode = {1: "L", 3: "RGB", 4: "RGBX"}[channels]
    wide = Image.frombytes(mode, (width, height), image.contiguous().numpy().tobytes()).resize(
        (size[1], height), FILTERS[interpolation], box=(left, 0, left + box_width, height)
    )
    both = wide.resize((size[1], size[0]), FILTERS[interpolation], box=(0, top, size[1], top + box_height))
    return torch.from_numpy(np.array(both).reshape(*size, channels))


def levels(batch):
    """Of one image, [height, width, channels]."""
    return batch[0].permute(1, 2, 0)


SIZES = [  # of an image, and of the batch
    ((37, 53), (16, 16)),
    ((37, 53), (37, 53)),
    ((37, 53), (53, 37)),
    ((37, 53), (100, 101)),
    ((64, 64), (32, 32)),
    ((300, 200), (7, 5)),
    ((1, 1), (1, 1)),
    ((1, 1), (9, 17)),
    ((1, 100), (3, 33)),
    ((100, 1), (33, 3)),
    ((40, 40), (1, 1)),
    ((5, 700), (5, 40)),
]


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("channels", (1, 3, 4))
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_levels_are_pillows(sizes, channels, interpolation):
    (height, width), size = sizes
    for extreme in (False, True):
        image = picture(height, width, channels, extreme=extreme)
        judge = pillow(image, size, interpolation)
        ours = images_to_batch([image], size, interpolation=interpolation, dtype=torch.uint8)
        assert ours.shape == (1, channels, *size) and ours.dtype == torch.uint8 and ours.is_contiguous()
        assert torch.equal(levels(ours), judge)
        for dtype in (torch.float32, torch.float64):  # not rounded in between
            ours = images_to_batch([image], size, interpolation=interpolation, dtype=dtype)
            assert (levels(ours) * 255 - judge).abs().max() <= AS_FLOATS[interpolation]


def test_pillows_own_order():
    """Bilinear is within a level whichever way Pillow goes first."""
    for height, width in ((500, 375), (37, 53), (90, 20)):
        image = picture(height, width)
        judge = np.array(Image.fromarray(image.numpy()).resize((40, 24), Image.BILINEAR)).astype(int)
        ours = levels(images_to_batch([image], (24, 40), dtype=torch.uint8)).numpy()
        assert abs(ours - judge).max() <= 1


def test_arrays_that_are_not_writable():
    """As numpy.asarray of a picture of Pillow's is: torch warns of them, which is an error here."""
    array = np.full((4, 5, 3), 7, dtype=np.uint8)
    array.flags.writeable = False
    assert (images_to_batch([array], 2, dtype=torch.uint8) == 7).all()


def boxes_of(draw, strategies, height, width):
    top, left = draw(strategies.integers(0, height - 1)), draw(strategies.integers(0, width - 1))
    return (top, left, draw(strategies.integers(1, height - top)), draw(strategies.integers(1, width - left)))


def test_sizes_and_boxes():
    pytest.importorskip("hypothesis")
    from hypothesis import given, settings, strategies

    side = strategies.integers(1, 70)

    @settings(deadline=None)
    @given(strategies.data())
    def check(data):
        height, width, size = data.draw(side), data.draw(side), (data.draw(side), data.draw(side))
        channels, interpolation = (
            data.draw(strategies.sampled_from((1, 3, 4))),
            data.draw(strategies.sampled_from([*FILTERS])),
        )
        box, flip = boxes_of(data.draw, strategies, height, width), data.draw(strategies.booleans())
        image = picture(height, width, channels, data.draw(strategies.integers(0, 9)), data.draw(strategies.booleans()))
        judge = pillow(image, size, interpolation, box)
        if flip:
            judge = judge.flip(1)
        options = {"boxes": [box], "flips": [flip], "interpolation": interpolation}
        assert torch.equal(levels(images_to_batch([image], size, dtype=torch.uint8, **options)), judge)
        floats = levels(images_to_batch([image], size, **options)) * 255
        assert (floats - judge).abs().max() <= AS_FLOATS[interpolation]

        # Without antialias: as torch, of the crop.
        def as_torch(x, size):
            return F.interpolate(x, size, mode=interpolation, align_corners=False).clamp(0, 255)

        top, left, box_height, box_width = box
        crop = image[top : top + box_height, left : left + box_width].permute(2, 0, 1)[None]
        if interpolation != "nearest":
            judge = as_torch(crop.double(), size)
            floats = images_to_batch([image], size, antialias=False, dtype=torch.float64, **options) * 255
            assert (floats - (judge.flip(3) if flip else judge)).abs().max() < 1e-3
            judge = as_torch(as_torch(crop.double(), (box_height, size[1])).round(), size).round()
            bytes_ = images_to_batch([image], size, antialias=False, dtype=torch.uint8, **options)
            assert (bytes_ - (judge.flip(3) if flip else judge)).abs().max() <= 1

    check()


@pytest.mark.parametrize("interpolation", ("bilinear", "bicubic"))
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_floats_are_the_exact_sums(sizes, interpolation):
    """As torch's antialiased interpolation of doubles; where bicubic leaves the levels, it is kept there."""
    (height, width), size = sizes
    image = picture(height, width) // 2 + 64 if interpolation == "bicubic" else picture(height, width)
    exact = F.interpolate(image.permute(2, 0, 1)[None].double(), size, mode=interpolation, antialias=True)
    if 1 in (size[0], size[1]):
        return  # stock's filter of a single column is another (csrc/ops/resize.cpp)
    mean, std = (torch.tensor(x, dtype=torch.float64).view(3, 1, 1) for x in (MEAN, STD))
    for dtype in FLOATS:
        ours = images_to_batch([image], size, interpolation=interpolation, dtype=dtype, mean=MEAN, std=STD)
        wanted = (exact / 255 - mean) / std
        torch.testing.assert_close(ours.double(), wanted, rtol=torch.finfo(dtype).eps, atol=2e-5)
        plain = images_to_batch([image], size, interpolation=interpolation, dtype=dtype)
        torch.testing.assert_close(plain.double(), exact / 255, rtol=torch.finfo(dtype).eps, atol=1e-6)


def test_mean_and_std():
    image = picture(9, 8)
    for mean, std in ((MEAN, STD), (0.5, 0.25), ([0.5], None), (None, STD), (None, None)):
        ours = images_to_batch([image], (9, 8), mean=mean, std=std)
        x = image.permute(2, 0, 1)[None].double() / 255
        x = x - (0 if mean is None else torch.tensor(mean, dtype=torch.float64).view(-1, 1, 1))
        x = x / (1 if std is None else torch.tensor(std, dtype=torch.float64).view(-1, 1, 1))
        torch.testing.assert_close(ours.double(), x, rtol=1e-6, atol=1e-6)


BATCH = [picture(h, w, 3, k) for k, (h, w) in enumerate(((30, 41), (17, 9), (200, 11), (16, 21)))]
BOXES = torch.tensor([(0, 0, 30, 41), (3, 2, 10, 5), (100, 3, 90, 8), (15, 20, 1, 1)])
FLIPS = torch.tensor([True, False, True, False])


@pytest.mark.parametrize("dtype", (torch.uint8, *FLOATS), ids=str)
@pytest.mark.parametrize("channels", (1, 3, 4))
def test_layouts(dtype, channels):
    """New batches and those that are there, of any strides, have the same numbers."""
    pictures = [picture(h, w, channels) for h, w in ((30, 41), (17, 9), (200, 11))]
    options = {"boxes": BOXES[:3], "flips": FLIPS[:3]}
    for width in (1, 5, 16, 21, 64):
        size = (13, width)
        wanted = images_to_batch(pictures, size, dtype=dtype, **options)
        last = images_to_batch(pictures, size, dtype=dtype, memory_format=torch.channels_last, **options)
        assert last.is_contiguous(memory_format=torch.channels_last) and torch.equal(last, wanted)
        shape = (5, channels, 13 + 2, width + 3)
        for strided in (
            torch.zeros(shape, dtype=dtype)[1:4, :, 1:14, 2 : 2 + width],
            torch.zeros(shape, dtype=dtype).to(memory_format=torch.channels_last)[1:4, :, 1:14, 2 : 2 + width],
            torch.zeros(3, channels, 13, 2 * width, dtype=dtype)[..., ::2],
            torch.zeros(width, 13, channels, 3, dtype=dtype).permute(3, 2, 1, 0),
            torch.zeros(3, 13, width, channels + 1, dtype=dtype)[..., :channels].permute(0, 3, 1, 2),
        ):
            assert images_to_batch(pictures, size, out=strided, **options) is strided
            assert torch.equal(strided, wanted)
            base = strided._base if strided._base is not None else strided
            assert base.count_nonzero() == strided.count_nonzero()  # nothing around it was written


def test_rows_may_lie_apart():
    whole = picture(50, 60)
    wanted = images_to_batch([whole[7:40, 11:50].contiguous()], (20, 20), dtype=torch.uint8)
    rgbx = torch.cat([whole, whole[..., :1]], 2)
    for view in (
        whole[7:40, 11:50],
        torch.from_numpy(whole.numpy()[7:40, 11:50]),
        rgbx[7:40, 11:50, :3],
        whole.permute(2, 0, 1).contiguous().permute(1, 2, 0)[7:40, 11:50],
        whole.transpose(0, 1).contiguous().transpose(0, 1)[7:40, 11:50],
    ):
        assert torch.equal(images_to_batch([view], (20, 20), dtype=torch.uint8), wanted)
    same_rows = whole[:1].expand(50, 60, 3)
    assert torch.equal(images_to_batch([same_rows], 9), images_to_batch([same_rows.contiguous()], 9))
    assert torch.equal(images_to_batch(torch.stack([whole, whole]), 9)[1:], images_to_batch([whole], 9))
    # The last pixels, of memory that ends with them.
    for height, width, channels in ((1, 1, 1), (1, 2, 1), (2, 3, 1), (1, 1, 3), (3, 5, 3), (1, 1, 4)):
        image = picture(height, width, channels)
        same = images_to_batch([image], (height, width), dtype=torch.uint8)
        assert torch.equal(levels(same), image)


@pytest.mark.parametrize("count", (1, 2, 3, 4))
def test_any_number_of_threads_gives_the_same(count):
    before = torch.get_num_threads()
    large = [picture(300, 400, 3, k) for k in range(4)][:count]
    options = {"mean": MEAN, "std": STD, "flips": FLIPS[:count]}
    results = []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append([images_to_batch(large, (101, 224), dtype=d, **options) for d in (None, torch.bfloat16)])
            results[-1].append(images_to_batch(large, (101, 224), dtype=torch.uint8, interpolation="bicubic"))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_each_image_of_a_batch_is_what_it_is_alone():
    batch = images_to_batch(BATCH, (12, 15), boxes=BOXES, flips=FLIPS)
    for k, image in enumerate(BATCH):
        alone = images_to_batch([image], (12, 15), boxes=BOXES[k : k + 1], flips=FLIPS[k : k + 1])
        assert torch.equal(batch[k : k + 1], alone)
    ran, handed = rusttorch.stats()["images_to_batch"]
    assert ran > 0 and not any(handed.values())


def test_numpy_s_values():
    wanted = images_to_batch(BATCH, 8, boxes=BOXES, flips=FLIPS, mean=MEAN, std=STD)
    arrays = [image.numpy() for image in BATCH]
    for make in (np.array, torch.tensor):
        mean, std = (make(x) for x in (MEAN, STD))
        options = {"boxes": BOXES.numpy(), "flips": FLIPS.numpy(), "mean": mean, "std": std}
        for size in (np.int64(8), np.array([8, 8]), (np.int32(8), 8)):
            torch.testing.assert_close(images_to_batch(arrays, size, **options), wanted)
    one = images_to_batch(BATCH, 8, mean=0.5, std=0.25)
    assert torch.equal(images_to_batch(BATCH, 8, mean=np.float32(0.5), std=np.float64(0.25)), one)
    assert torch.equal(images_to_batch(BATCH, 8, mean=torch.tensor(0.5), std=[torch.tensor(0.25)]), one)
    stacked = np.stack([arrays[0]] * 2)
    assert torch.equal(images_to_batch(stacked, 8), images_to_batch([BATCH[0]] * 2, 8))


def test_default_dtype():
    torch.set_default_dtype(torch.float64)
    try:
        assert images_to_batch(BATCH, 4).dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


ONE, U8 = BATCH[0], torch.uint8
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
BAD = {  # an exception, what its message says, and arguments
    "no images": (ValueError, "at least one image", {"images": []}),
    "floats": (RuntimeError, "must be uint8", {"images": [ONE.float()]}),
    "two dims": (RuntimeError, r"must be uint8 \[height, width, channels\].*image 1", {"images": [ONE, ONE[..., 0]]}),
    "two channels": (RuntimeError, "1, 3 or 4 channels", {"images": [ONE[..., :2]]}),
    "no channels": (RuntimeError, "1, 3 or 4 channels", {"images": [ONE[..., :0]]}),
    "channels that differ": (RuntimeError, "as many channels.*image 1", {"images": [ONE, ONE[..., :1]]}),
    "an empty image": (ValueError, "width must be from 1", {"images": [ONE[:, :0]]}),
    "a size of 0": (ValueError, "size must be from 1", {"size": (0, 4)}),
    "a negative size": (ValueError, "size must be from 1", {"size": (4, -1)}),
    "a size that overflows": (ValueError, "size must be from 1", {"size": (2**62, 2**62)}),
    "a size of one number": (ValueError, "size must be .height, width.", {"size": (4,)}),
    "too large an image": (ValueError, "height must be from 1", {"images": [ONE[:1, :1, :1].expand(2**40, 1, 1)]}),
    "more memory than there is": (RuntimeError, "memory|overflow", {"images": [ONE] * 999, "size": (2**24, 2**24)}),
    "an interpolation": (ValueError, "nearest, bilinear or bicubic, got lanczos", {"interpolation": "lanczos"}),
    **{f"a size of {n} numbers": (ValueError, r"size must be \(height, width\)", {"size": [4] * n}) for n in (0, 1, 3)},
    "an integer dtype": (ValueError, "dtype must be uint8 or", {"dtype": torch.int32}),
    **{f"a dtype, {t}": (ValueError, "dtype must be uint8 or", {"dtype": t}) for t in FLOAT8},
    "out of float8": (ValueError, "dtype must be", {"out": torch.zeros(1, 3, 8, 8, dtype=FLOAT8[0])}),
    "a memory format": (ValueError, "memory_format", {"memory_format": torch.preserve_format}),
    "mean of bytes": (ValueError, "not for uint8", {"dtype": U8, "mean": MEAN}),
    "std of bytes": (ValueError, "not for uint8", {"dtype": U8, "std": STD}),
    "two means": (ValueError, "mean must have a number for each of 3 channels, or one, got 2", {"mean": (0.5, 0.5)}),
    "no std": (ValueError, "std must have", {"std": ()}),
    "a std of 0": (ValueError, "std must not be 0", {"std": (1, 0, 1)}),
    "too few boxes": (RuntimeError, r"integers \[2, 4\]", {"images": [ONE, ONE], "boxes": [(0, 0, 1, 1)]}),
    "floating boxes": (RuntimeError, "integers", {"boxes": torch.tensor([[0, 0, 1.5, 1]])}),
    "boxes of two numbers": (RuntimeError, "integers", {"boxes": [(0, 0)]}),
    "a box above": (ValueError, "must lie in its image", {"boxes": [(-1, 0, 1, 1)]}),
    "a box below": (ValueError, "must lie in its image", {"boxes": [(29, 0, 2, 1)]}),
    "a box right": (ValueError, r"\(0, 40, 1, 2\) for image 0 of height 30 and width 41", {"boxes": [(0, 40, 1, 2)]}),
    "an empty box": (ValueError, "must lie in its image", {"boxes": [(0, 0, 0, 1)]}),
    "a box that overflows": (ValueError, "must lie", {"boxes": [(2**63 - 1, 0, 2**63 - 1, 1)]}),
    "ragged boxes": (ValueError, "images_to_batch: boxes: ", {"images": [ONE] * 2, "boxes": [(0, 0, 1, 1), (0, 0, 1)]}),
    "boxes of words": (TypeError, "images_to_batch: boxes: ", {"boxes": "all"}),
    "an array of floats": (RuntimeError, "must be uint8", {"images": [ONE.float().numpy()]}),
    "too many flips": (RuntimeError, r"bools \[1\]", {"flips": [True, False]}),
    "flips of integers": (RuntimeError, "bools", {"flips": [1]}),
    "out of another shape": (RuntimeError, "expected out to be", {"out": torch.zeros(1, 3, 8, 9)}),
    "out of another dtype": (RuntimeError, "expected out", {"out": torch.zeros(1, 3, 8, 8), "dtype": U8}),
    "out of integers": (ValueError, "dtype must be", {"out": torch.zeros(1, 3, 8, 8, dtype=torch.int64)}),
    "out that overlaps itself": (RuntimeError, "single memory", {"out": torch.zeros(8, 8).expand(1, 3, 8, 8)}),
    "out and a format": (
        *(ValueError, "memory_format is of a new batch"),
        {"out": torch.zeros(1, 3, 8, 8), "memory_format": torch.channels_last},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_errors(name):
    kind, says, arguments = BAD[name]
    out = arguments.get("out")
    with pytest.raises(kind, match=says):
        images_to_batch(**{"images": [ONE], "size": (8, 8)} | arguments)
    assert out is None or out.is_meta or not out.any()  # nothing was written


@pytest.mark.parametrize("size", ([], [4], [4, 4, 4]), ids=str)
def test_the_fake_kernel_wants_two_sides(size):
    with pytest.raises(ValueError, match="values to unpack"):
        torch.ops.rusttorch.images_to_batch([ONE.to("meta")], size)


def test_memory_is_shared_with_no_image():
    memory = torch.zeros(1, 4, 4, 3, dtype=U8)
    with pytest.raises(RuntimeError, match="memory"):
        images_to_batch([memory[0]], (4, 4), out=memory.permute(0, 3, 1, 2))
    memory = torch.zeros(192, dtype=U8)
    image = memory.view(8, 8, 3)
    for shared in (memory, torch.from_numpy(memory.numpy())):
        with pytest.raises(RuntimeError, match="share no memory"):
            images_to_batch([image[:, :4]], (8, 4), out=shared.view(1, 3, 8, 8)[..., :4])
    halves = torch.zeros(2, 3, 8, 8, dtype=U8)  # side by side is not shared
    images_to_batch([halves[0].permute(1, 2, 0)], 8, out=halves[1:])


def test_a_lazy_clone_is_written_alone():
    large = [picture(300, 400, seed=k) for k in range(2)]
    memory = torch.zeros(2, 3, 224, 224)
    clone = torch._lazy_clone(memory)
    assert images_to_batch(large, 224, out=clone) is clone
    assert torch.equal(clone, images_to_batch(large, 224)) and not memory.any()
    image = large[0].clone()
    same = torch._lazy_clone(image).permute(2, 0, 1)[None]
    images_to_batch([image], (300, 400), out=same)
    assert torch.equal(image, large[0]) and torch.equal(levels(same), image)


def test_it_has_no_derivative():
    out = torch.zeros(1, 3, 8, 8, requires_grad=True)
    with pytest.raises(RuntimeError, match="automatic differentiation"):
        images_to_batch([ONE], 8, out=out)
    assert not images_to_batch([ONE], 8).requires_grad
    written = torch.zeros(1, 3, 8, 8)
    version = written._version
    images_to_batch([ONE], 8, out=written)
    assert written._version == version + 1


OPTIONS = {"boxes": BOXES, "flips": FLIPS, "mean": list(MEAN), "std": list(STD)}


def test_opcheck():
    op = torch.ops.rusttorch.images_to_batch
    for options in ({}, OPTIONS, {"dtype": U8, "interpolation": "bicubic"}, {"memory_format": torch.channels_last}):
        opcheck(op.default, (BATCH, [8, 9]), options)
        if "memory_format" not in options:
            opcheck(op.out, (BATCH, [8, 9]), options | {"out": torch.zeros(4, 3, 8, 9, dtype=options.get("dtype"))})


@pytest.mark.parametrize("dynamic", (False, True))
def test_compile(dynamic):
    def f(batch, a, b, size):
        new = images_to_batch([a, b], (size, 9), boxes=BOXES[:2], mean=MEAN, std=STD, memory_format=torch.channels_last)
        images_to_batch([b, a], (size, 9), out=batch[1:3], dtype=torch.float32)
        return new * 2 + batch[:2]

    torch._dynamo.reset()
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    batches = [torch.zeros(4, 3, 8, 9) for _ in range(2)]
    torch.testing.assert_close(compiled(batches[0], *BATCH[:2], 8), f(batches[1], *BATCH[:2], 8))
    assert torch.equal(*batches) and batches[0][1:3].any() and not batches[0][3].any()


def test_kernel_under_sanitizers(tmp_path):
    """tests/image_fuzz.cpp, on a few thousand calls drawn from a seed. More of them, and another instruction set:

    g++ -std=c++20 -O1 -fsanitize=address,undefined -DRUSTTORCH_INSTRUCTION_SET=avx2 -mavx2 -mfma -mf16c -fwrapv \\
        tests/image_fuzz.cpp csrc/kernels/image.cpp -o fuzz && ./fuzz SECONDS SEED
    """
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")
    flags = ["-std=c++20", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fwrapv"]
    sources = [ROOT / "tests" / "image_fuzz.cpp", ROOT / "csrc" / "kernels" / "image.cpp"]
    level = ["-DRUSTTORCH_INSTRUCTION_SET=base", "-Wno-psabi"]
    subprocess.run([compiler, *flags, *level, *sources, "-o", tmp_path / "fuzz"], check=True)
    plain = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}  # of make asan
    ran = subprocess.run([tmp_path / "fuzz", "3", "0"], capture_output=True, text=True, env=plain)
    if "LeakSanitizer has encountered a fatal error" in ran.stderr:
        pytest.skip("LeakSanitizer cannot run here")
    assert ran.returncode == 0, ran.stderr[-3000:]


# Decoding.


def encoded(image, kind="JPEG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def smooth(height, width):
    y, x = torch.meshgrid(torch.linspace(0, 3, height), torch.linspace(0, 4, width), indexing="ij")
    waves = torch.stack([y.sin(), x.cos(), (x * y).sin()], 2)
    return Image.fromarray(((waves + 1) * 127).to(U8).numpy())


def as_tensor(image):
    array = np.array(image)
    return torch.from_numpy(array if array.ndim == 3 else array[..., None])


@pytest.fixture(params=("simplejpeg", "Pillow"))
def decoder(request, monkeypatch):
    """JPEGs by simplejpeg, and without it."""
    if request.param == "simplejpeg":
        pytest.importorskip("simplejpeg", reason="the other decoder")
    else:
        library = images._library
        monkeypatch.setattr(images, "_library", lambda name: None if name == "simplejpeg" else library(name))
    return request.param


def close(ours, image):
    """A decoder may differ from another by some levels."""
    wanted = as_tensor(image)
    assert ours.dtype == U8 and ours.is_contiguous() and ours.shape == wanted.shape
    assert (ours.int() - wanted.int()).abs().float().mean() < 3


def test_files(decoder, tmp_path):
    image = smooth(61, 83)
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(image, quality=95))
    for source in (path, str(path), path.read_bytes(), bytearray(path.read_bytes()), memoryview(path.read_bytes())):
        close(read_image(source), image)
    close(read_image(path, mode="L"), image.convert("L"))
    assert read_image(path, mode="L").shape == (61, 83, 1)
    close(read_image(encoded(image.convert("L"))), image.convert("L").convert("RGB"))
    close(read_image(encoded(image.convert("L")), mode="L"), image.convert("L"))
    close(read_image(encoded(image, progressive=True, quality=95)), image)
    cmyk = image.convert("CMYK")
    close(read_image(encoded(cmyk, quality=95)), cmyk.convert("RGB"))


def test_files_without_loss(decoder):
    image = smooth(20, 30)
    alpha = image.copy()
    alpha.putalpha(100)
    palette = image.quantize(16)
    assert torch.equal(read_image(encoded(image, "PNG")), as_tensor(image))
    assert torch.equal(read_image(encoded(alpha, "PNG")), as_tensor(image))  # dropped
    assert torch.equal(read_image(encoded(palette, "PNG")), as_tensor(palette.convert("RGB")))
    assert torch.equal(read_image(encoded(image.convert("L"), "PNG"), mode="L"), as_tensor(image.convert("L")))
    assert torch.equal(read_image(encoded(image.convert("1"), "PNG")), as_tensor(image.convert("1").convert("RGB")))
    assert torch.equal(read_image(encoded(image, "WEBP", lossless=True)), as_tensor(image))


@pytest.mark.parametrize("size", (None, 1, 10, (38, 50), (38, 51), (75, 100), 76, (500, 400)), ids=str)
def test_jpegs_are_decoded_no_smaller_than_asked(decoder, size):
    height, width = 301, 403
    image = smooth(height, width)
    ours = read_image(encoded(image, quality=95), size=size)
    least = (size, size) if isinstance(size, int) else size or (height, width)
    sides = [(-(-height // f), -(-width // f)) for f in (8, 4, 2)]
    wanted = next((s for s in sides if s[0] >= least[0] and s[1] >= least[1]), (height, width))
    assert ours.shape == (*wanted, 3)
    close(ours, image.resize(wanted[::-1], Image.BOX))
    # What is no JPEG has its size.
    assert read_image(encoded(image, "PNG"), size=size).shape == (height, width, 3)


@pytest.mark.parametrize("turn", range(10))
def test_orientation(decoder, turn):
    from PIL import ImageOps

    image = smooth(160, 240)
    exif = Image.Exif()
    exif[0x0112] = turn
    for kind in ("JPEG", "PNG"):
        data = encoded(image, kind, exif=exif, **({"quality": 95} if kind == "JPEG" else {}))
        turned = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        close(read_image(data, orient=True), turned)
        close(read_image(data), Image.open(io.BytesIO(data)))
    # The size is that of the turned image.
    turned = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded(image, exif=exif))))
    for least in ((120, 80), (80, 120)):
        fits = turned.height // 2 >= least[0] and turned.width // 2 >= least[1]
        ours = read_image(encoded(image, exif=exif), size=least, orient=True)
        assert ours.shape[0] == (turned.height // 2 if fits else turned.height)


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_tiff_is_turned_once(turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    png, tiff = (encoded(smooth(16, 24), kind, exif=exif) for kind in ("PNG", "TIFF"))
    for orient in (False, True):
        assert torch.equal(read_image(tiff, orient=orient), read_image(png, orient=True))


def png16(color, channels):
    """A PNG of 5 x 4 pixels, 16 bits a channel."""
    rows = zlib.compress((b"\0" + bytes(5 * channels * 2)) * 4)
    chunks = (b"IHDR" + struct.pack(">IIBBBBB", 5, 4, 16, color, 0, 0, 0), b"IDAT" + rows, b"IEND")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks
    )


def tiff16():
    """A TIFF of 5 x 4 pixels, 16 bits in each of 3 channels."""
    tags = ((256, 5), (257, 4), (258, 200), (259, 1), (262, 2), (273, 300), (277, 3), (278, 4), (279, 120))
    entries = b"".join(struct.pack("<HHII", tag, 4 if tag != 258 else 3, 1 if tag != 258 else 3, v) for tag, v in tags)
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    return (head.ljust(200, b"\0") + struct.pack("<HHH", 16, 16, 16)).ljust(300, b"\0") + bytes(120)


DEEP = {f"png {color}": png16(color, channels) for color, channels in ((0, 1), (2, 3), (4, 2), (6, 4))} | {
    "tiff": tiff16(),
    "ppm": b"P6 5 4 65535\n" + bytes(120),
    "ppm of 10 bits": b"P6 5 4 1023\n" + bytes(120),
    "ppm in words": b"P3 5 4 65535\n" + b"1 " * 60,
    "pgm": b"P5 5 4 65535\n" + bytes(40),
}


@pytest.mark.parametrize("name", DEEP)
def test_16_bits_are_refused(name):
    with pytest.raises(ValueError, match="more than 8 bits"):
        read_image(DEEP[name])


def test_fewer_bits_are_not():
    assert read_image(b"P6 5 4 15\n" + bytes([15]) * 60).eq(255).all()
    assert read_image(b"P6 5 4 255\n" + bytes([7]) * 60).eq(7).all()
    for kind in ("BMP", "GIF", "TIFF"):
        for mode in ("RGB", "L", "1"):
            assert read_image(encoded(Image.new(mode, (5, 4)), kind)).shape == (4, 5, 3)
    bmp565 = b"BM" + struct.pack("<IIIIiiHHIIiiII", 94, 0, 66, 40, 5, 4, 1, 16, 3, 48, 0, 0, 0, 0)
    assert read_image(bmp565 + struct.pack("<III", 0xF800, 0x7E0, 0x1F) + bytes(48)).shape == (4, 5, 3)


def test_an_open_file(decoder, tmp_path):
    data = encoded(smooth(20, 30), "PNG")
    (tmp_path / "a.png").write_bytes(data)
    assert torch.equal(read_image(io.BytesIO(data)), read_image(data))
    with open(tmp_path / "a.png", "rb") as file:
        assert torch.equal(read_image(file), read_image(data))
    with pytest.raises(ValueError, match="image of 3 bytes"):
        read_image(io.BytesIO(b"abc"))
    for source in (io.StringIO("abc"), 3.5, None):
        with pytest.raises(TypeError):
            read_image(source)


WRONG_SIZES = (0, -1, (5, 0), (5,), (5, 5, 5), [], 2.5, (2.5, 2), "12", len, torch.ones(2))


@pytest.mark.parametrize("size", WRONG_SIZES, ids=str)
def test_wrong_sizes(size, tmp_path):
    for read in (lambda: read_image("not looked at", size=size), lambda: ImageFolder("nor this", size)):
        with pytest.raises((TypeError, ValueError), match=r"^read_image: size must be"):
            read()


def test_sizes_of_other_kinds():
    data = encoded(smooth(120, 160), quality=95)
    for size in (np.int64(30), (30, np.int32(40)), np.array([30, 40]), torch.tensor([30, 40])):
        assert read_image(data, size=size).shape == (30, 40, 3)
    with pytest.raises(ValueError, match="mode must be"):
        ImageFolder("not looked at", mode="HSV")


def test_pillows_own_limit(monkeypatch):
    data = encoded(smooth(100, 100), "PNG")
    monkeypatch.setattr(images, "MAX_PIXELS", None)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"image of \d+ bytes: .*PIL.Image.MAX_IMAGE_PIXELS"):
        read_image(data)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert read_image(data).shape == (100, 100, 3)


def test_broken_files_are_named(decoder, tmp_path, monkeypatch):
    good = encoded(smooth(100, 100), quality=95)
    broken = {
        "truncated.jpg": good[: len(good) // 2],
        "header.jpg": good[:30],
        "text.jpg": b"not an image",
        "empty.jpg": b"",
        "truncated.png": encoded(smooth(100, 100), "PNG")[:2000],
        "marker.jpg": b"\xff\xd8\xff",
    }
    for name, data in broken.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=name):
            read_image(tmp_path / name)
        with pytest.raises(ValueError, match=f"image of {len(data)} bytes"):
            read_image(data)
    with pytest.raises(IsADirectoryError, match=tmp_path.name):
        read_image(tmp_path)
    with pytest.raises(FileNotFoundError, match="missing"):
        read_image(tmp_path / "missing")
    with pytest.raises(ValueError, match="mode must be"):
        read_image(good, mode="HSV")
    deep = Image.fromarray(np.full((4, 4), 40_000, np.uint16))
    with pytest.raises(ValueError, match="more than 8 bits"):
        read_image(encoded(deep, "PNG"))
    monkeypatch.setattr(images, "MAX_PIXELS", 9_999)
    for kind in ("JPEG", "PNG"):
        (tmp_path / "bomb").write_bytes(encoded(smooth(100, 100), kind))
        with pytest.raises(ValueError, match="bomb: 100 x 100 are more than 9999 pixels"):
            read_image(tmp_path / "bomb", size=10)
    monkeypatch.setattr(images, "MAX_PIXELS", None)
    assert read_image(good).shape == (100, 100, 3)


def test_a_bomb(decoder):
    """A file of some KB that says that it has 400 million pixels."""
    good = bytearray(encoded(smooth(16, 16)))
    frame = good.index(b"\xff\xc0")
    good[frame + 5 : frame + 9] = (20_000).to_bytes(2, "big") * 2
    with pytest.raises(ValueError, match=r"image of \d+ bytes: .*pixels"):
        read_image(bytes(good))


def test_without_libraries(monkeypatch):
    monkeypatch.setattr(images, "_library", lambda name: None)
    with pytest.raises(ImportError, match="pip install pillow simplejpeg"):
        read_image(encoded(smooth(4, 4)))


def test_they_are_imported_when_used():
    code = "import sys, rusttorch.data; assert not {'PIL', 'simplejpeg'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def folder(tmp_path):
    for k, name in enumerate(("dogs/b.jpg", "dogs/a.PNG", "cats/deep/er/c.jpg", "cats/d.jpeg", "birds/e.webp")):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20 + k, 10), (k, 0, 0)).save(path)
    (tmp_path / "dogs" / "notes.txt").write_text("no image")
    (tmp_path / "list.txt").write_text("no class")
    return tmp_path


def test_image_folder(folder):
    dataset = ImageFolder(folder)
    assert dataset.classes == ["birds", "cats", "dogs"] and dataset.labels == [0, 1, 1, 2, 2]
    names = ["birds/e.webp", "cats/d.jpeg", "cats/deep/er/c.jpg", "dogs/a.PNG", "dogs/b.jpg"]
    assert [str(Path(p).relative_to(folder)) for p in dataset.paths] == names
    assert len(dataset) == 5
    for k, (image, label) in enumerate(dataset[i] for i in range(5)):
        assert torch.equal(image, read_image(dataset.paths[k])) and label == dataset.labels[k]
    assert dataset[-1][0].shape == (10, 20, 3)
    again = pickle.loads(pickle.dumps(ImageFolder(folder, 5, mode="L")))
    assert again[4][0].shape == (5, 10, 1)
    with pytest.raises(IndexError):
        dataset[5]


def test_image_folder_s_errors(folder, tmp_path):
    (folder / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty: no images"):
        ImageFolder(folder)
    with pytest.raises(FileNotFoundError, match="no folders"):
        ImageFolder(folder / "empty")
    with pytest.raises(FileNotFoundError, match="missing"):
        ImageFolder(folder / "missing")


def collate(samples):
    pictures, labels = zip(*samples, strict=True)
    return images_to_batch(pictures, 8, dtype=U8), torch.tensor(labels)


@pytest.mark.parametrize("context", ("fork", "spawn"))
def test_in_torch_s_workers(folder, context):
    loader = torch.utils.data.DataLoader(
        ImageFolder(folder), 2, num_workers=2, collate_fn=collate, multiprocessing_context=context
    )
    batches = list(loader)
    wanted = [collate([ImageFolder(folder)[i] for i in k]) for k in ((0, 1), (2, 3), (4,))]
    for ours, alone in zip(batches, wanted, strict=True):
        assert torch.equal(ours[0], alone[0]) and torch.equal(ours[1], alone[1])
