"""Group norm: against float64 and stock, forward and backward, in both memory formats."""

import math

import pytest
import rusttorch
import torch
import torch.nn.functional as F
from cases import EMULATED, ON_DEVICE, opcheck, same_error

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
DTYPES = [*((t, t) for t in FLOATS), (torch.bfloat16, torch.float32), (torch.float16, torch.float32)]
SHAPES = [
    *(((3, 6), 2), ((2, 4, 1), 4), ((5, 6, 7), 3), ((2, 6, 700), 6), ((2, 6, 5, 7), 1), ((2, 6, 23, 29), 6)),
    *(((3, 64, 9, 9), 32), ((1, 12, 30, 31), 4), ((8, 40, 27, 27), 8), ((2, 70, 1, 1), 35), ((2, 8, 9, 8, 9), 4)),
    *(((3, 40, 16, 12), 2), ((5, 16, 40, 40), 1)),
]
LAST = {4: torch.channels_last, 5: torch.channels_last_3d}  # by rank: channels last
LAYOUTS = [*((*case, False) for case in SHAPES), *((*case, True) for case in SHAPES if len(case[0]) in LAST)]
EPS = 1e-5


def is_taken(shape, groups, channels_last):
    """Whether stock is not faster."""
    channels, inner = shape[1], math.prod(shape[2:])
    has_planes = not channels_last or channels * inner == channels
    if EMULATED or ON_DEVICE:
        return has_planes and inner > 1 and channels // groups <= 2 * inner
    if has_planes:
        return inner >= 512
    return channels // groups < 8 or (inner >= 128 and channels * inner <= 2**17)


def draw(shape, dtype, parameter_dtype, affine, channels_last=False):
    """x, the parameters, a gradient."""
    generator = torch.Generator(torch.get_default_device()).manual_seed(0)
    normal = lambda s: torch.randn(s, generator=generator, dtype=torch.float64)  # noqa: E731
    x, grad = normal(shape) * 3 + 1, normal(shape)
    if channels_last:
        x, grad = (t.contiguous(memory_format=LAST[len(shape)]) for t in (x, grad))
    parameters = tuple(normal(shape[1:2]).to(parameter_dtype) for _ in range(2)) if affine else (None, None)
    return x.to(dtype), parameters, grad.to(dtype)


def run(ops, x, parameters, grad, groups, wanted=(True, True, True)):
    """Results and gradients by name."""
    sizes = x.shape[0], x.shape[1], x[0, 0].numel()
    y, mean, rstd = ops.native_group_norm(x, *parameters, *sizes, groups, EPS)
    grads = ops.native_group_norm_backward(grad, x, mean, rstd, parameters[0], *sizes, groups, list(wanted))
    return dict(zip(("y", "mean", "rstd", "x", "weight", "bias"), (y, mean, rstd, *grads), strict=True))


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("affine", (True, False))
@pytest.mark.parametrize("shape, groups, channels_last", LAYOUTS, ids=str)
def test_accuracy(shape, groups, channels_last, affine, dtypes):
    x, parameters, grad = draw(shape, *dtypes, affine, channels_last)
    wanted = (True, affine, affine)
    before = rusttorch.stats().get("native_group_norm", (0, {}))[0]
    stock, ours = (run(ops, x, parameters, grad, groups, wanted) for ops in (torch.ops.aten, torch.ops.rusttorch))
    assert rusttorch.stats()["native_group_norm"].ran == before + is_taken(shape, groups, channels_last)
    doubles = [None if p is None else p.double() for p in parameters]
    exact = run(torch.ops.aten, x.double(), doubles, grad.double(), groups, wanted)
    # Sums are judged by the size of their terms, of which there may be little left.
    terms = grad.double() * F.group_norm(x.double(), groups)
    size_of_sums = terms.transpose(0, 1).flatten(1).norm(dim=1).max().clamp_min(grad.double().flatten().norm())
    for name, s in stock.items():
        o, e = ours[name], exact[name]
        if s is None:
            assert o is None
            continue
        assert (o.dtype, o.shape, o.stride()) == (s.dtype, s.shape, s.stride()), name
        size = size_of_sums if name in ("weight", "bias") else e.abs().max().clamp_min(1e-6)
        bound = torch.finfo(o.dtype).eps * (50 if dtypes[0] == torch.float64 else 1)
        if x.numel() / (x.shape[0] * groups) <= 3:  # of one to three elements little is left of the differences
            size = size.clamp_min((x.double().abs().max() * exact["rstd"].max()).item())
        assert (o - e).abs().max() / size <= 2 * (s - e).abs().max() / size + bound, name


@pytest.mark.parametrize("value", (float("nan"), float("inf"), -float("inf"), 0.0))
@pytest.mark.parametrize("channels_last", (False, True))
def test_groups_that_are_not_finite(channels_last, value):
    x, parameters, grad = draw((4, 6, 25, 27), torch.float32, torch.float32, True, channels_last)
    x[1, 2, 3, 4] = value
    x[3, :2] = value
    grad[0, 1, 2, 3] = value
    results = [run(ops, x, parameters, grad, 3) for ops in (torch.ops.aten, torch.ops.rusttorch)]
    for name, s in results[0].items():
        o = results[1][name]
        # Whether what is not finite is infinite or NaN depends on the order of operations, in stock on the layout.
        s, o = (torch.where(t.isfinite(), t, torch.nan) for t in (s, o))
        torch.testing.assert_close(o, s, equal_nan=True, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", ((16, 40, 56, 56), (2, 8, 300, 301), (60, 28, 23, 23)), ids=str)
@pytest.mark.parametrize("channels_last", (False, True))
def test_outputs_around_the_cache_and_threads(shape, channels_last):
    x, parameters, grad = draw(shape, torch.float32, torch.float32, True, channels_last)
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(run(torch.ops.rusttorch, x, parameters, grad, 4))
    for name, s in run(torch.ops.aten, x, parameters, grad, 4).items():
        assert torch.equal(results[0][name], results[1][name]), name
        torch.testing.assert_close(results[0][name], s, rtol=1e-4, atol=1e-4 * s.abs().max().item())


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("layout", (lambda t: t, lambda t: t.flip(0), lambda t: t[1:], lambda t: t[:, :, :0]))
def test_modules_under_use(dtype, layout):
    results = []
    for swapped in (False, True):
        torch.manual_seed(0)
        model = torch.nn.GroupNorm(2, 6).to(dtype)
        x = torch.randn(3, 6, 25, 24).to(dtype).requires_grad_()
        with rusttorch.use("group_norm") if swapped else torch.enable_grad():
            y = model(layout(x))
            weights = torch.linspace(-1, 1, y.numel()).to(dtype).view(y.shape)
            results.append([y, *torch.autograd.grad((y * weights).sum(), [x, *model.parameters()])])
    tolerance = {"rtol": 8 * torch.finfo(dtype).eps, "atol": 400 * torch.finfo(dtype).eps}  # of sums of 1,800
    for s, o in zip(*results, strict=True):
        torch.testing.assert_close(o, s, **tolerance, equal_nan=True)


@pytest.mark.parametrize("wanted", ([True, False, False], [False, True, True], [False] * 3))
def test_gradients_that_are_wanted(wanted):
    x, parameters, grad = draw((4, 6, 25, 27), torch.float32, torch.float32, True)
    stock, ours = (run(ops, x, parameters, grad, 3, wanted) for ops in (torch.ops.aten, torch.ops.rusttorch))
    for name, s in stock.items():
        assert (ours[name] is None) == (s is None)
        if s is not None:
            torch.testing.assert_close(ours[name], s, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("affine", (True, False))
def test_derivatives(affine):
    x, parameters, _ = draw((2, 2, 24, 22), torch.float64, torch.float64, affine)
    leaves = [t.requires_grad_() for t in (x, *parameters) if t is not None]

    def f(x, weight=None, bias=None):
        return rusttorch.native_group_norm(x, weight, bias, 2, 2, 528, 1, EPS)[0][:, :, ::11, ::11]

    torch.autograd.gradcheck(f, leaves)
    torch.autograd.gradgradcheck(f, leaves)


def test_bad_input():
    x = torch.randn(4, 6, 2)
    for bad in (
        lambda m: m.native_group_norm(x, None, None, 4, 6, 2, 4, EPS),
        lambda m: m.native_group_norm(x, None, None, 4, 6, 3, 3, EPS),
        lambda m: m.native_group_norm(x, torch.ones(5), None, 4, 6, 2, 3, EPS),
        lambda m: m.native_group_norm(x.long(), None, None, 4, 6, 2, 3, EPS),
    ):
        same_error(lambda bad=bad: bad(torch.ops.rusttorch), lambda bad=bad: bad(torch.ops.aten))


def test_opcheck_compile_and_vmap():
    x, (weight, bias), _ = draw((4, 6, 5, 2), torch.float32, torch.float32, True)
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
    opcheck(torch.ops.rusttorch.native_group_norm, (*leaves, 4, 6, 10, 3, EPS))  # stock's, by its size
    images, *_ = draw((2, 6, 24, 23), torch.float32, torch.float32, True)
    opcheck(torch.ops.rusttorch.native_group_norm, (images.requires_grad_(), *leaves[1:], 2, 6, 552, 3, EPS))
    f = lambda x: F.group_norm(x, 3, weight, bias)  # noqa: E731
    wanted = f(x)
    with rusttorch.use("group_norm"):
        compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), wanted)
        torch.testing.assert_close(torch.vmap(f)(torch.stack([x, -x])), torch.stack([f(x), f(-x)]))
