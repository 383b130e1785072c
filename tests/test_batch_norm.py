"""Batch norm, instance norm: against float64 and stock, forward and backward, in both memory formats."""

import pytest
import rusttorch
import torch
import torch.nn.functional as F
from cases import ON_DEVICE, opcheck, same_error

ON_A_CPU = pytest.mark.skipif(ON_DEVICE, reason="the CPU's")
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
DTYPES = [*((t, t) for t in FLOATS), (torch.bfloat16, torch.float32), (torch.float16, torch.float32)]
SHAPES = [
    *((3, 5), (64, 33), (300, 1100), (7, 2, 9)),
    *((4, 3, 5, 7), (2, 64, 9, 9), (8, 17, 7, 7), (5, 70, 1, 1), (2, 1, 8, 8), (1, 6, 30, 30), (2, 3, 70, 71)),
    (2, 4, 3, 4, 5),
]
LAST = {4: torch.channels_last, 5: torch.channels_last_3d}  # by rank: channels last
EPS = 1e-5


def seeded():
    return torch.Generator(torch.get_default_device()).manual_seed(0)


def draw(shape, dtype, parameter_dtype, affine, channels_last=False):
    """x, the parameters, the running statistics, a gradient."""
    generator = seeded()
    normal = lambda s: torch.randn(s, generator=generator, dtype=torch.float64)  # noqa: E731
    x, grad = normal(shape) * 3 + 1, normal(shape)
    if channels_last:
        x, grad = (t.contiguous(memory_format=LAST[len(shape)]) for t in (x, grad))
    weight, bias, mean, var = (normal(shape[1:2]).to(parameter_dtype) for _ in range(4))
    parameters = (weight, bias) if affine else (None, None)
    return x.to(dtype), parameters, (mean, var.abs() + 0.5), grad.to(dtype)


def run(ops, x, parameters, statistics, grad, training, momentum=0.1):
    """Everything that comes out, by name: results, what was written, gradients."""
    mean, var = (t.clone() for t in statistics)
    y, saved_mean, saved_invstd = ops.native_batch_norm(x, *parameters, mean, var, training, momentum, EPS)
    affine = parameters[0] is not None or not ON_DEVICE  # else stock's CUDA kernels may refuse
    grads = ops.native_batch_norm_backward(
        grad, x, parameters[0], *statistics, saved_mean, saved_invstd, training, EPS, [True, affine, affine]
    )
    names = ("y", "mean", "invstd", "running_mean", "running_var", "grad_x", "grad_weight", "grad_bias")
    return dict(zip(names, (y, saved_mean, saved_invstd, mean, var, *grads), strict=True))


def doubles(values):
    return [v.double() if isinstance(v, torch.Tensor) else v for v in values]


LAYOUTS = [*((s, False) for s in SHAPES), *((s, True) for s in SHAPES if len(s) in LAST)]


@pytest.mark.parametrize("training", (True, False))
@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("affine", (True, False))
@pytest.mark.parametrize("shape, channels_last", LAYOUTS, ids=str)
def test_accuracy(shape, channels_last, affine, dtypes, training):
    dtype = dtypes[0]
    x, parameters, statistics, grad = draw(shape, *dtypes, affine, channels_last)
    before = rusttorch.stats().get("native_batch_norm", (0, {}))[0]
    call = (x, parameters, statistics, grad, training)
    stock, ours = (run(ops, *call) for ops in (torch.ops.aten, torch.ops.rusttorch))
    assert rusttorch.stats()["native_batch_norm"].ran == before + 1
    exact = run(torch.ops.aten, x.double(), doubles(parameters), doubles(statistics), grad.double(), training)
    # Sums are judged by the size of their terms, of which there may be little left.
    normalized = torch.ops.aten.native_batch_norm(x.double(), None, None, *doubles(statistics), training, 0, EPS)[0]
    terms = {"grad_weight": grad.double() * normalized, "grad_bias": grad.double()}
    for name, s in stock.items():
        o, e = ours[name], exact[name]
        assert (o is None) == (s is None)
        if s is not None:
            assert (o.dtype, o.shape, o.stride()) == (s.dtype, s.shape, s.stride()), name
        if s is None or s.numel() == 0:
            continue
        size = e.abs().max().clamp_min(1e-6)
        if name in terms:
            size = torch.maximum(size, terms[name].transpose(0, 1).flatten(1).norm(dim=1).max())
        bound = torch.finfo(o.dtype).eps * (50 if dtype == torch.float64 else 1)
        assert (o - e).abs().max() / size <= 2 * (s - e).abs().max() / size + bound, name


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("channels_last", (False, True))
def test_a_large_mean_and_many_elements(channels_last, dtype):
    """Of 400,000 numbers around 1,000 (in float16 and bfloat16 around 10)."""
    mean = 10 if dtype in (torch.bfloat16, torch.float16) else 1000
    x = (torch.randn((8, 3, 160, 104), generator=seeded()) + mean).to(dtype)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    y, m, _ = rusttorch.native_batch_norm(x, None, None, None, None, True, 0.1, EPS)
    exact = F.batch_norm(x.double(), None, None, training=True)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(m.double(), x.double().mean((0, 2, 3)), rtol=eps, atol=0)
    assert (y - exact).abs().max() <= max(8 * eps, 2 * mean * torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("value", (float("nan"), float("inf"), -float("inf"), 0.0))
@pytest.mark.parametrize("channels_last", (False, True))
@pytest.mark.parametrize("training", (True, False))
def test_channels_that_are_not_finite(channels_last, value, training):
    x, parameters, statistics, grad = draw((4, 5, 6, 7), torch.float32, torch.float32, True, channels_last)
    x[1, 2, 3, 4] = value
    x[:, 3] = value
    grad[0, 1, 2, 3] = value
    call = (x, parameters, statistics, grad, training)
    for name, s in run(torch.ops.aten, *call).items():
        o = run(torch.ops.rusttorch, *call)[name]
        if ON_DEVICE:  # whose stock has a mean that is NaN where it is infinite
            s, o = (torch.where(t.isfinite(), t, torch.nan) for t in (s, o))
        torch.testing.assert_close(o, s, equal_nan=True, rtol=1e-4, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


@ON_A_CPU
def test_one_element_of_each_channel_and_no_eps():
    x, zeros = torch.randn(1, 3), torch.zeros(4, 3)
    for ops in (torch.ops.aten, torch.ops.rusttorch):
        mean, var = torch.zeros(3), torch.ones(3)
        y = ops.native_batch_norm(x, None, None, mean, var, True, 0.1, EPS)[0]
        assert y.abs().max() < 1e-4
        assert var.isnan().all()  # unbiased, of one
        torch.testing.assert_close(mean, 0.1 * x[0])
        y, _, invstd = ops.native_batch_norm(zeros, None, None, None, None, True, 0.1, 0)
        assert torch.equal(y, zeros)
        assert torch.equal(invstd, torch.zeros(3))


@pytest.mark.parametrize("training", (True, False))
@pytest.mark.parametrize("channels_last", (False, True))
@pytest.mark.parametrize("wanted", ([True, False, False], [False, True, True], [False, False, True], [False] * 3))
def test_gradients_that_are_wanted(wanted, channels_last, training):
    x, parameters, statistics, grad = draw((4, 5, 6, 7), torch.float32, torch.float32, True, channels_last)
    saved = torch.ops.aten.native_batch_norm(x, *parameters, *(t.clone() for t in statistics), training, 0.1, EPS)[1:]
    results = [
        ops.native_batch_norm_backward(grad, x, parameters[0], *statistics, *saved, training, EPS, wanted)
        for ops in (torch.ops.aten, torch.ops.rusttorch)
    ]
    for s, o in zip(*results, strict=True):
        assert (s is None) == (o is None)
        if s is not None:
            torch.testing.assert_close(o, s, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "layout",
    (
        lambda g: g.contiguous(memory_format=torch.channels_last),
        lambda g: g.transpose(2, 3).contiguous().transpose(2, 3),
        lambda g: g[:1, :1, :1, :1].expand_as(g),
    ),
)
def test_a_gradient_of_another_layout(layout):
    x, parameters, statistics, grad = draw((4, 5, 6, 7), torch.float32, torch.float32, True)
    results = [run(ops, x, parameters, statistics, layout(grad), True) for ops in (torch.ops.aten, torch.ops.rusttorch)]
    for name, s in results[0].items():
        torch.testing.assert_close(results[1][name], s, rtol=1e-4, atol=1e-4)
        assert results[1][name].stride() == s.stride()


@pytest.mark.parametrize("shape", ((16, 40, 56, 56), (4, 3, 300, 301), (600, 512, 7, 7), (9000, 300)), ids=str)
@pytest.mark.parametrize("channels_last", (False, True))
def test_outputs_around_the_cache_and_threads(shape, channels_last):
    """Large enough to be written around the cache, aligned or not; the same to the bit for any number of threads."""
    if channels_last and len(shape) < 4:
        return
    x, parameters, statistics, grad = draw(shape, torch.float32, torch.float32, True, channels_last)
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(run(torch.ops.rusttorch, x, parameters, statistics, grad, True))
    stock = run(torch.ops.aten, x, parameters, statistics, grad, True)
    for name, s in stock.items():
        assert torch.equal(results[0][name], results[1][name]), name
        torch.testing.assert_close(results[0][name], s, rtol=1e-4, atol=1e-4 * s.abs().max().item())


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(
    "module, shape",
    (
        (lambda: torch.nn.BatchNorm1d(6), (5, 6)),
        (lambda: torch.nn.BatchNorm1d(6, momentum=None), (5, 6, 7)),
        (lambda: torch.nn.BatchNorm2d(6), (3, 6, 5, 4)),
        (lambda: torch.nn.BatchNorm2d(6, affine=False), (3, 6, 5, 4)),
        (lambda: torch.nn.BatchNorm2d(6, track_running_stats=False), (3, 6, 5, 4)),
        (lambda: torch.nn.BatchNorm3d(6, momentum=0.5, eps=1e-3), (3, 6, 5, 4, 2)),
        (lambda: torch.nn.InstanceNorm2d(6), (3, 6, 5, 4)),
        (lambda: torch.nn.InstanceNorm1d(6, affine=True, track_running_stats=True), (3, 6, 5)),
    ),
)
@pytest.mark.parametrize(
    "layout", (lambda t: t, lambda t: t.flip(0), lambda t: t.expand(3, *t.shape)[0], lambda t: t[1:])
)
def test_modules_under_use(module, shape, dtype, layout):
    results = []
    for swapped in (False, True):
        torch.manual_seed(0)
        model = module().to(dtype)
        x = torch.randn(shape).to(dtype).requires_grad_()
        with rusttorch.use("batch_norm") if swapped else torch.enable_grad():
            outputs = []
            for training in (True, True, False):
                y = model.train(training)(layout(x))
                weights = torch.linspace(-1, 1, y.numel()).to(dtype).view(y.shape)
                outputs += [y, *torch.autograd.grad((y * weights).sum(), [x, *model.parameters()])]
        results.append([*outputs, *model.buffers()])
    tolerance = {"rtol": 8 * torch.finfo(dtype).eps, "atol": 40 * torch.finfo(dtype).eps}
    for s, o in zip(*results, strict=True):
        torch.testing.assert_close(o, s, **tolerance)


@pytest.mark.parametrize("training", (True, False))
@pytest.mark.parametrize("affine", (True, False))
@pytest.mark.parametrize("shape", ((4, 3), (2, 3, 4, 2)))
def test_derivatives(shape, affine, training):
    x, parameters, statistics, _ = draw(shape, torch.float64, torch.float64, affine)
    leaves = [t.requires_grad_() for t in (x, *parameters) if t is not None]

    def f(x, weight=None, bias=None):
        running = (None, None) if training else statistics  # which are written in training, hidden from autograd
        return rusttorch.native_batch_norm(x, weight, bias, *running, training, 0.1, EPS)[0]

    torch.autograd.gradcheck(f, leaves)
    torch.autograd.gradgradcheck(f, leaves)


@ON_A_CPU
def test_what_ran():
    rusttorch.reset_stats()
    x = torch.randn(4, 6, 5, 5, requires_grad=True)
    with rusttorch.use("batch_norm"):
        torch.nn.BatchNorm2d(6)(x).sum().backward()
        torch.nn.BatchNorm2d(6)(x[:, :, ::2])
        torch.nn.InstanceNorm2d(6)(x)
    stats = rusttorch.stats()
    assert stats["native_batch_norm"] == (2, {"layout": 1})
    assert stats["native_batch_norm_backward"].ran == 1


@ON_A_CPU
def test_bad_input():
    x, three, five = torch.randn(4, 3, 2), torch.ones(3), torch.ones(5)
    with rusttorch.use("batch_norm"):  # sizes are stock's to look at, above the kernels
        for name in ("weight", "bias", "running_mean"):
            with pytest.raises(RuntimeError, match=f"{name} should contain 3 elements not 5"):
                F.batch_norm(x, **{"running_mean": three, "running_var": three, "training": True} | {name: five})
    for bad in (
        lambda m: m.native_batch_norm(x, None, None, three, None, True, 0.1, EPS),
        lambda m: m.native_batch_norm(x.long(), None, None, None, None, True, 0.1, EPS),
        lambda m: m.native_batch_norm(x[:0], None, None, None, None, True, 0.1, EPS),
        lambda m: m.native_batch_norm(x, three.double(), None, None, None, True, 0.1, EPS),
        lambda m: m.native_batch_norm(x.double(), three, three, three, three, True, 0.1, EPS),
    ):
        same_error(lambda bad=bad: bad(torch.ops.rusttorch), lambda bad=bad: bad(torch.ops.aten))


@pytest.mark.parametrize("training", (True, False))
def test_opcheck(training):
    x, (weight, bias), statistics, _ = draw((4, 3, 5, 2), torch.float32, torch.float32, True)
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    # Without running statistics in training: aten's schema does not say that they are written.
    running = (None, None) if training else statistics
    opcheck(torch.ops.rusttorch.native_batch_norm, (*leaves, *running, training, 0.1, EPS))


def test_compile_and_vmap():
    model = torch.nn.BatchNorm2d(3)
    x = torch.randn(4, 3, 5, 5)
    wanted = model(x)
    with rusttorch.use("batch_norm"):
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), wanted)
        f = lambda x: F.batch_norm(x, None, None, training=True)  # noqa: E731
        several = torch.randn(2, 4, 3, 5)
        torch.testing.assert_close(torch.vmap(f)(several), torch.stack([f(each) for each in several]))


# With relu behind it.


def norm_relu(ops, x, weight, bias, mean, var, training, momentum=0.1, maximum=None):
    """By rusttorch's name; or by stock's."""
    if ops is torch:
        y = F.batch_norm(x, mean, var, weight, bias, training, momentum, EPS)
        return F.relu(y) if maximum is None else F.hardtanh(y, 0, maximum)
    return rusttorch.batch_norm_relu(x, weight, bias, mean, var, training, momentum, EPS, maximum)


def norm_relu_step(ops, x, parameters, statistics, grad, training, maximum=None):
    statistics = [None if t is None else t.clone() for t in statistics]
    leaves = [t.detach().requires_grad_() for t in (x, *parameters) if t is not None]
    weight, bias = leaves[1:] or (None, None)
    y = norm_relu(ops, leaves[0], weight, bias, *statistics, training, maximum=maximum)
    return [y, *torch.autograd.grad(y, leaves, grad), *(t for t in statistics if t is not None)]


@pytest.mark.parametrize("training", (True, False))
@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("affine", (True, False))
@pytest.mark.parametrize("shape, channels_last", LAYOUTS, ids=str)
@pytest.mark.parametrize("maximum", (None, 0.75), ids=("relu", "bounded"))
def test_relu_accuracy(maximum, shape, channels_last, affine, dtypes, training):
    x, parameters, statistics, grad = draw(shape, *dtypes, affine, channels_last)
    call = (x, parameters, statistics, grad, training, maximum)
    before = rusttorch.stats().get("batch_norm_relu_backward", (0, {}))[0]
    stock, ours = norm_relu_step(torch, *call), norm_relu_step(rusttorch, *call)
    assert rusttorch.stats()["batch_norm_relu_backward"].ran == before + 1
    exact = norm_relu_step(
        torch, x.double(), doubles(parameters), doubles(statistics), grad.double(), training, maximum
    )
    # Where what relu was taken of is within a rounding of a bound, either gradient is right.
    near = norm_relu(torch, x.double(), *doubles(parameters), *doubles(statistics), training, 0, None)
    if maximum is not None:
        near = torch.where(near > maximum / 2, near - maximum, near)
    near = (near.abs() < 64 * torch.finfo(dtypes[0]).eps) & (near != 0)
    terms = (grad.double().abs() * 4).transpose(0, 1).flatten(1).norm(dim=1).max()
    names = ("y", "grad_x", *(("grad_weight", "grad_bias") if affine else ()), "running_mean", "running_var")
    for name, s, o, e in zip(names, stock, ours, exact, strict=True):
        assert (o.dtype, o.shape, o.stride()) == (s.dtype, s.shape, s.stride()), name
        # (One sign more or less changes a whole channel a little.)
        loose = 4 if "grad" in name and near.any() else 1
        size = e.abs().max().clamp_min(terms if name in ("grad_weight", "grad_bias") else 1e-6)
        bound = torch.finfo(o.dtype).eps * (50 if dtypes[0] == torch.float64 else 1)
        judged = ~near if name == "grad_x" else torch.ones((), dtype=torch.bool)
        of_stock, of_ours = (((t - e).abs() * judged).max() / size for t in (s, o))
        assert of_ours <= loose * (2 * of_stock + bound), name


@pytest.mark.parametrize("training", (True, False))
@pytest.mark.parametrize("affine", (True, False))
@pytest.mark.parametrize("shape", ((4, 3), (2, 3, 4, 2)))
@pytest.mark.parametrize("maximum", (None, 0.75))
def test_relu_derivatives(maximum, shape, affine, training):
    x, parameters, statistics, _ = draw(shape, torch.float64, torch.float64, affine)
    leaves = [t.requires_grad_() for t in (x, *parameters) if t is not None]

    def f(x, weight=None, bias=None):
        # (A copy of the statistics, which a training step writes.)
        return norm_relu(rusttorch, x, weight, bias, *(t.clone() for t in statistics), training, maximum=maximum)

    torch.autograd.gradcheck(f, leaves)
    torch.autograd.gradgradcheck(f, leaves)


@pytest.mark.parametrize("value", (float("nan"), float("inf"), -float("inf"), 0.0))
@pytest.mark.parametrize("training", (True, False))
@pytest.mark.parametrize("maximum", (None, 6.0))
def test_relu_of_what_is_not_finite(maximum, value, training):
    x, parameters, statistics, grad = draw((4, 5, 6, 7), torch.float32, torch.float32, True)
    x[1, 2, 3, 4] = value
    grad[0, 1, 2, 3] = value
    call = (x, parameters, statistics, grad, training, maximum)
    for s, o in zip(norm_relu_step(torch, *call), norm_relu_step(rusttorch, *call), strict=True):
        torch.testing.assert_close(o, s, equal_nan=True, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "change",
    (
        lambda x: x.transpose(2, 3),
        lambda x: x[:, :, ::2],
        lambda x: x.expand(2, *x.shape)[0],
    ),
)
def test_relu_of_other_layouts_is_made_of_two_ops(change):
    x, (weight, bias), statistics, _ = draw((4, 5, 6, 6), torch.float32, torch.float32, True)
    for training in (True, False):
        wanted = norm_relu(torch, change(x), weight, bias, *(t.clone() for t in statistics), training)
        found = norm_relu(rusttorch, change(x), weight, bias, *(t.clone() for t in statistics), training)
        torch.testing.assert_close(found, wanted)
        found = norm_relu(rusttorch, change(x), weight, bias, *(t.clone() for t in statistics), training, maximum=1.0)
        torch.testing.assert_close(found, wanted.clamp(max=1))


def test_relu_s_errors():
    x, three, five = torch.randn(4, 3, 2), torch.ones(3), torch.ones(5)
    calls = (
        (x, five, None, None, None, True),
        (x, None, None, five, three, True),
        (x, None, None, None, None, False),
        (x.long(), None, None, None, None, True),
        (torch.randn(3), None, None, None, None, True),
        (torch.randn(1, 3), None, None, None, None, True),
    )
    for call in calls:
        same_error(lambda call=call: norm_relu(rusttorch, *call), lambda call=call: norm_relu(torch, *call))
    with pytest.raises(ValueError, match="maximum must be positive"):
        norm_relu(rusttorch, x, None, None, None, None, True, maximum=-1.0)


@pytest.mark.parametrize("training", (True, False))
def test_relu_opcheck(training):
    x, (weight, bias), statistics, _ = draw((4, 3, 5, 2), torch.float32, torch.float32, True)
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    opcheck(torch.ops.rusttorch.batch_norm_relu_forward, (*leaves, *statistics, training, EPS))
    opcheck(torch.ops.rusttorch.batch_norm_relu, (*leaves, *statistics, training, 0.1, EPS))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_relu_under_transforms():
    x, (weight, bias), (mean, var), _ = draw((4, 3, 5, 2), torch.float32, torch.float32, True)

    def f(ops, x):
        return norm_relu(ops, x, weight, bias, mean, var, False)

    compiled = torch.compile(lambda x: f(rusttorch, x), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), f(torch, x))
    several = torch.stack([x, -x])
    torch.testing.assert_close(torch.vmap(lambda x: f(rusttorch, x))(several), torch.stack([f(torch, x), f(torch, -x)]))
    for got, wanted in zip(
        *(torch.func.jvp(lambda x, ops=ops: f(ops, x), (x,), (x,)) for ops in (rusttorch, torch)), strict=True
    ):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("channels_last", (False, True))
def test_the_gradient_is_kept_where_relu_kept_the_output(channels_last, dtype):
    """Found by a reader: statistics that were rounded to 16 bits moved the border between 0 and more."""
    x = (torch.randn((8, 4, 20, 20), generator=seeded()) + 30).to(dtype)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    weight, bias = torch.ones(4, dtype=dtype, requires_grad=True), torch.zeros(4, dtype=dtype, requires_grad=True)
    y = rusttorch.batch_norm_relu(x, weight, bias, None, None, True, 0.1, EPS)
    y.sum().backward()
    torch.testing.assert_close(bias.grad, (y > 0).sum((0, 2, 3)).to(dtype))
