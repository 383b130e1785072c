"""Convolutions: against float64 and stock, forward and backward."""

import itertools

import pytest
import rusttorch
import torch
import torch.nn.functional as F
from cases import CPU_FLAGS, DTYPES, ON_DEVICE, opcheck, same_error

pytestmark = [
    pytest.mark.skipif(ON_DEVICE, reason="convolutions are cuDNN's there"),
    pytest.mark.usefixtures("take_all"),
]

LAST = torch.channels_last
LAYOUTS = {
    "contiguous": lambda t: t,
    "channels_last": lambda t: t.to(memory_format=LAST),
    "strided": lambda t: torch.stack((t, t), -1)[..., 0],
    "transposed": lambda t: t.transpose(-1, -2).contiguous().transpose(-1, -2),
    "misaligned": lambda t: torch.cat((t.new_zeros(1), t.flatten()))[1:].view(t.shape),
}

# A filter for each channel: input, kernel and options.
DEPTHWISE = [
    ((2, 3, 1, 1), (1, 1), {}),
    ((1, 2, 5, 1), (3, 1), {"padding": (1, 0)}),
    ((2, 5, 7, 7), (3, 3), {"padding": 1}),
    ((1, 17, 14, 15), (3, 3), {}),
    ((2, 16, 12, 33), (3, 3), {"padding": 1, "stride": 2}),
    ((2, 33, 9, 40), (3, 3), {"padding": 2, "dilation": 2}),
    ((1, 8, 70, 61), (3, 3), {"padding": "same"}),
    ((3, 40, 15, 16), (5, 5), {"padding": 2}),
    ((1, 3, 16, 31), (5, 5), {"padding": (0, 2), "stride": 2}),
    ((2, 24, 7, 7), (7, 7), {"padding": 3}),
    ((1, 4, 28, 50), (7, 7), {"padding": 3, "stride": 2}),
    ((1, 6, 20, 20), (11, 11), {"padding": 5}),
    ((2, 4, 9, 10), (2, 4), {"padding": 1, "stride": (2, 1), "dilation": (1, 2)}),
    ((1, 5, 13, 17), (4, 3), {"padding": 6, "stride": 3, "dilation": (3, 1)}),
    ((1, 2, 11, 9), (1, 1), {"stride": 2}),
    ((2, 18, 50), (4,), {"padding": 3}),
    ((1, 3, 41), (7,), {"padding": "same", "dilation": 2}),
    ((1, 4, 30), (3,), {"stride": 2}),
]


# Products of a pixel's channels.
POINTWISE = [
    ((1, 1, 1, 1), (1, 1), {"outputs": 1}),
    ((2, 3, 5, 4), (1, 1), {"outputs": 7}),
    ((3, 20, 14, 15), (1, 1), {"outputs": 33}),
    ((1, 64, 7, 7), (1, 1), {"outputs": 17, "dilation": 2}),
]


# Of few channels, which all filters read.
FEW_CHANNELS = [
    ((1, 1, 1, 1), (1, 1), {"outputs": 2, "padding": 1}),
    ((2, 3, 20, 21), (7, 7), {"outputs": 9, "padding": 3, "stride": 2}),
    ((3, 1, 8, 8), (3, 3), {"outputs": 32, "padding": 1}),
    ((2, 3, 13, 33), (3, 3), {"outputs": 16, "padding": 1, "stride": 2}),
    ((2, 2, 30, 17), (4, 4), {"outputs": 5, "stride": 4}),
    ((1, 4, 9, 40), (3, 2), {"outputs": 3, "padding": 2, "dilation": (2, 3)}),
    ((1, 3, 200, 190), (3, 3), {"outputs": 8, "padding": "same"}),
    ((2, 2, 11, 10), (2, 3), {"outputs": 4, "padding": (5, 7), "stride": (3, 5)}),
    ((5, 1, 100), (9,), {"outputs": 7, "padding": 4}),
    ((1, 2, 64), (4,), {"outputs": 6, "stride": 3}),
]


# Of several channels each, in 16 bits.
GROUPED = [
    ((2, 3, 9, 8), (3, 3), {"outputs": 5, "padding": 1}),
    ((1, 4, 17, 16), (5, 3), {"outputs": 6, "padding": "same", "groups": 2}),
    ((2, 3, 20, 21), (7, 7), {"outputs": 8, "padding": 3, "stride": 2}),
    ((2, 3, 9, 8), (3, 3), {"outputs": 4, "dilation": 2}),
    ((2, 6, 30), (4,), {"outputs": 3, "padding": 3}),
    ((2, 6, 8, 7), (1, 1), {"outputs": 3, "stride": 2}),
]


def inputs(case, dtype, bias=True, layout="contiguous"):
    """Of a case, whose filters are one for each channel or of all: of so many outputs."""
    shape, kernel, options = case
    outputs = options.get("outputs")
    options = {"groups": 1 if outputs else shape[1]} | {k: v for k, v in options.items() if k != "outputs"}
    generator = torch.Generator().manual_seed(0)
    draw = lambda *s: torch.randn(s, generator=generator, dtype=torch.float64).to(dtype)  # noqa: E731
    channels = shape[1]
    x, weight = LAYOUTS[layout](draw(*shape)), draw(outputs or channels, channels // options["groups"], *kernel)
    return [x, weight, draw(outputs or channels) if bias else None], options


def convolve(x, weight, bias, **options):
    return (F.conv1d if x.dim() == 3 else F.conv2d)(x, weight, bias, **options)


def run(tensors, options, grad=None):
    """The result and the gradients, by stock's names."""
    leaves = [t if t is None else t.detach().requires_grad_() for t in tensors]
    y = convolve(*leaves, **options)
    if grad is None:
        grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return [y.detach(), *torch.autograd.grad(y, [t for t in leaves if t is not None], grad.to(y.dtype))]


def ours(*args, forward=True):
    """The same from our kernels, both of which must run."""
    before = rusttorch.stats()
    with rusttorch.use("convolution"):
        results = run(*args)
    for name in ("convolution", "convolution_backward") if forward else ("convolution_backward",):
        assert rusttorch.stats()[name].ran - (before[name].ran if name in before else 0) == 1
    return results


def strides(t):
    """Those that matter."""
    return [stride for size, stride in zip(t.shape, t.stride(), strict=True) if size > 1]


def as_double(tensors):
    return [None if t is None else t.double() for t in tensors]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", DEPTHWISE + POINTWISE + FEW_CHANNELS, ids=str)
def test_accuracy(case, layout, dtype):
    if layout == "channels_last" and len(case[0]) == 3:
        pytest.skip("of four dims")
    tensors, options = inputs(case, dtype, layout != "strided", layout)
    exact = run(as_double(tensors), options)
    eps = torch.finfo(dtype).eps * (100 if dtype == torch.float64 else 1)  # where stock itself is the truth
    forward = case not in FEW_CHANNELS or layout != "channels_last"  # which is stock's
    for e, s, o in zip(exact, run(tensors, options), ours(tensors, options, forward=forward), strict=True):
        assert (o.dtype, strides(o)) == (s.dtype, strides(s))
        error = lambda t, e=e: (t - e).abs().max() / e.abs().max().clamp_min(1)  # noqa: E731
        # (Without AVX-512 stock makes NaN of a dilated bfloat16 one with the channels last: that allows ours nothing.)
        assert error(o) <= 2 * error(s).nan_to_num() + eps


@pytest.mark.skipif("avx512_fp16" in CPU_FLAGS, reason="the CPU has such instructions")
@pytest.mark.parametrize("layout", ("contiguous", "channels_last", "strided"))
@pytest.mark.parametrize("case", GROUPED, ids=str)
def test_of_16_bits_in_float32(case, layout):
    if layout == "channels_last" and len(case[0]) == 3:
        pytest.skip("of four dims")
    test_accuracy(case, layout, torch.float16)


@pytest.mark.parametrize("layout", ("contiguous", "channels_last"))
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
def test_a_weight_that_is_channels_last_makes_all_so(dtype, layout):
    tensors, options = inputs(DEPTHWISE[2], dtype, True, layout)
    tensors[1] = tensors[1].to(memory_format=LAST)
    for s, o in zip(run(tensors, options), ours(tensors, options), strict=True):
        assert o.stride() == s.stride()
        torch.testing.assert_close(o, s)


@pytest.mark.parametrize("layout", ("contiguous", "channels_last"))
@pytest.mark.parametrize("case", [*(DEPTHWISE[k] for k in (2, 4, 6, 7)), POINTWISE[2], FEW_CHANNELS[3]], ids=str)
def test_the_number_of_threads_changes_no_bit(case, layout):
    shape, kernel, options = case
    few = case in FEW_CHANNELS
    tensors, options = inputs(((4, 3 if few else 40, *shape[2:]), kernel, options), torch.float32, True, layout)
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        forward = not few or layout == "contiguous"
        found = ours(tensors, options, forward=forward)
        results.append(found if forward else found[1:2])  # else the input's gradient alone is ours
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("layout", ("contiguous", "channels_last"))
@pytest.mark.parametrize("value", (float("nan"), float("inf")))
@pytest.mark.parametrize("case", [*(DEPTHWISE[k] for k in (2, 3, 4, 9)), FEW_CHANNELS[1], FEW_CHANNELS[3]], ids=str)
def test_what_is_not_finite_stays_where_it_is_read(case, value, layout):
    """Of the input and of the gradient. (A weight that is infinite meets the zeros of the padding.)"""
    tensors, options = inputs(case, torch.float32, True, layout)
    grad = torch.randn_like(convolve(*tensors, **options), dtype=torch.float64)
    tensors[0][0, 1, -2, -2] = value
    grad[-1, 0, grad.shape[2] // 2, grad.shape[3] // 2] = value
    forward = case not in FEW_CHANNELS or layout == "contiguous"
    for s, o in zip(run(tensors, options, grad), ours(tensors, options, grad, forward=forward), strict=True):
        torch.testing.assert_close(o, s, equal_nan=True, rtol=1e-4, atol=1e-4)


def test_each_gradient_by_itself():
    ops, stock = torch.ops.rusttorch, torch.ops.aten
    (x, w, _), _ = inputs(DEPTHWISE[2], torch.float32)
    grad = torch.randn(2, 5, 7, 7)
    for mask in itertools.product((True, False), repeat=3):
        args = (grad, x, w, [5], [1, 1], [1, 1], [1, 1], False, [0, 0], 5, mask)
        found = [f.convolution_backward(*args) for f in (stock, ops)]
        for s, o, wanted in zip(*found, mask, strict=True):
            assert (o is not None) == wanted
            if wanted:
                torch.testing.assert_close(o, s)


@pytest.mark.parametrize("layout", ("contiguous", "channels_last"))
@pytest.mark.parametrize(
    "case",
    [
        ((2, 16, 20, 20), (7, 7), {"padding": 3}),
        ((8, 64, 7, 7), (1, 1), {"outputs": 20}),
        ((2, 16, 128, 128), (1, 1), {"outputs": 8}),
        DEPTHWISE[6],
        DEPTHWISE[2],
    ],
    ids=str,
)
def test_gradients_of_which_stock_makes_one(case, layout):
    rusttorch._C.take_all(False)
    tensors, options = inputs(case, torch.float32, True, layout)
    rusttorch.reset_stats()
    with rusttorch.use("convolution"):
        found = run(tensors, options)
    for s, o in zip(run(tensors, options), found, strict=True):
        assert strides(o) == strides(s)
        torch.testing.assert_close(o, s, rtol=1e-4, atol=1e-4)
    calls = rusttorch.stats()["convolution_backward"]
    assert calls.ran + calls.handed.get("size", 0) == 1
    if case[1] in ((7, 7), (1, 1)):
        assert calls.ran == 1


def test_what_is_stocks():
    rusttorch.reset_stats()
    x, w = torch.randn(2, 4, 6, 6), torch.randn(4, 1, 3, 3)
    with rusttorch.use("convolution"):
        for y, wanted in (
            (F.conv_transpose2d(x, w, groups=4), (2, 4, 8, 8)),
            (F.conv2d(x, torch.randn(8, 1, 3, 3), groups=4), (2, 8, 4, 4)),
            (F.conv2d(x[:0], w, groups=4), (0, 4, 4, 4)),
            (F.conv2d(torch.cat((x, x), 1), torch.randn(3, 8, 3, 3)), (2, 3, 4, 4)),
            (F.conv3d(x[None], torch.randn(2, 1, 1, 3, 3), groups=2), (1, 2, 4, 4, 4)),
        ):
            assert y.shape == wanted
    assert rusttorch.stats()["convolution"].ran == 0


@pytest.mark.parametrize("groups", (1, 2))
@pytest.mark.parametrize(
    "options", ({"stride": 100_000}, {"stride": 10**9}, {"dilation": 15_000, "padding": 7_500}), ids=str
)
def test_copies_do_not_grow_with_the_stride(options, groups):
    """Found by a reader: of 8 x 8 numbers they were gigabytes."""
    x, w = torch.randn(1, 2, 8, 8), torch.randn(4 // groups, 2 // groups, 2, 2)
    rusttorch.reset_stats()
    with rusttorch.use("convolution"):
        found = run([x, w, None], options | {"groups": groups})
    for s, o in zip(run([x, w, None], options | {"groups": groups}), found, strict=True):
        torch.testing.assert_close(o, s)
    assert rusttorch.stats()["convolution"] == (0, {"size": 1})


def test_bad_input():
    x, w = torch.randn(2, 4, 6, 6), torch.randn(4, 1, 3, 3)
    for bad in (
        lambda: F.conv2d(x, w, groups=2),
        lambda: F.conv2d(x, w, torch.randn(3), groups=4),
        lambda: F.conv2d(x, w.double(), groups=4),
        lambda: F.conv2d(x, w, groups=4, padding=-1),
        lambda: F.conv2d(x, w, groups=4, stride=0),
        lambda: F.conv2d(x, w, groups=4, dilation=0),
        lambda: F.conv2d(x, torch.randn(4, 1, 9, 9), groups=4),
        lambda: F.conv2d(x.long(), w, groups=4),
        lambda: F.conv2d(x, w[0], groups=4),
    ):

        def swapped(bad=bad):
            with rusttorch.use("convolution"):
                bad()

        same_error(swapped, bad)


def op(x, weight, bias=None, stride=1, padding=1, dilation=1):
    groups = x.shape[1] // weight.shape[1]
    return rusttorch.convolution(x, weight, bias, [stride] * 2, [padding] * 2, [dilation] * 2, False, [0, 0], groups)


@pytest.mark.parametrize(
    ("case", "options"),
    [
        (((1, 2, 6, 5), (3, 2), {}), {}),
        (((1, 2, 6, 5), (3, 2), {}), {"stride": 2}),
        (((1, 2, 6, 5), (3, 2), {}), {"dilation": 2, "padding": 0}),
        (((2, 3, 2, 3), (1, 1), {"outputs": 2}), {"padding": 0}),
    ],
    ids=str,
)
def test_derivatives(case, options):
    (x, w, b), call = inputs(case, torch.float64)
    leaves = [t.requires_grad_() for t in (x, w, b)]
    torch.autograd.gradcheck(lambda *t: op(*t, **options), leaves)
    torch.autograd.gradgradcheck(lambda *t: op(*t, **options), leaves)
    with rusttorch.use("convolution"):
        torch.autograd.gradcheck(lambda *t: F.conv2d(*t, **call, **options), leaves)
        torch.autograd.gradgradcheck(lambda *t: F.conv2d(*t, **call, **options), leaves)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_opcheck(dtype):
    (x, w, b), _ = inputs(DEPTHWISE[2], dtype)
    options = ([1, 1], [1, 1], [1, 1], False, [0, 0], 5)
    opcheck(torch.ops.rusttorch.convolution, tuple(t.requires_grad_() for t in (x, w, b)) + options)
    grad = torch.randn(2, 5, 7, 7).to(dtype)
    args = (grad, x.detach(), w.detach(), [5], *options, [True, True, True])
    opcheck(torch.ops.rusttorch.convolution_backward, args)


class Block(torch.nn.Module):
    """Of MobileNet: a filter for each channel between two that mix them."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, 2, 1),
            torch.nn.ReLU(),
            torch.nn.Conv2d(8, 8, 3, padding="same", groups=8, bias=False),
            torch.nn.ReLU(),
            torch.nn.Conv2d(8, 4, 1),
        )

    def forward(self, x):
        return self.layers(x)


def test_modules_and_compile():
    torch.manual_seed(0)
    model, x = Block(), torch.randn(2, 3, 17, 16)
    grads = lambda f: torch.autograd.grad(f(x).square().sum(), list(model.parameters()))  # noqa: E731
    wanted = grads(model)
    with rusttorch.use("convolution"):
        for f in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
            for s, o in zip(wanted, grads(f), strict=True):
                torch.testing.assert_close(o, s, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_vmap():
    (x, w, b), _ = inputs(DEPTHWISE[2], torch.float32)
    xs = torch.stack((x, x + 1))
    wanted = torch.stack([op(x, w, b) for x in xs])
    torch.testing.assert_close(torch.func.vmap(lambda x: op(x, w, b))(xs), wanted)
    with rusttorch.use("convolution"):
        torch.testing.assert_close(torch.func.vmap(lambda x: F.conv2d(x, w, b, 1, 1, 1, 5))(xs), wanted)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("shape", ((1024, 8, 1, 1), (512, 8, 2, 2)), ids=str)
def test_a_1x1_filter_s_gradient_of_16_bits_is_one_sum_in_float(shape, dtype):
    """Found by a reader: image by image, rounded in between, a sum of ones came to 256."""
    x, g, weight = (torch.ones(s, dtype=dtype) for s in (shape, shape, (8, 8, 1, 1)))
    args = (g, x, weight, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [False, True, False])
    found = torch.ops.rusttorch.convolution_backward(*args)[1]
    assert torch.equal(found, torch.full_like(weight, x.numel() / 8))
