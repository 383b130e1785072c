import contextlib
import gc
import itertools
import weakref

import pytest
import rusttorch
import torch
import torch.nn.functional as F
from cases import DTYPES, opcheck

IGNORED = -100


def data(rows, classes, dtype, probabilities, seed=0):
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    x = (torch.randn(rows, classes, generator=generator, dtype=torch.float64) * 4).to(dtype)
    weight = (torch.rand(classes, generator=generator, dtype=torch.float64) + 0.1).to(dtype)
    if probabilities:
        return x, torch.rand(rows, classes, generator=generator, dtype=torch.float64).softmax(-1).to(dtype), weight
    target = torch.randint(classes, (rows,), generator=generator)
    target[1::5] = IGNORED
    return x, target, weight


def loss_and_grad(f, x, target, **options):
    x = x.detach().requires_grad_()
    loss = f(x, target, **options)
    g = torch.linspace(0.5, 1.5, max(loss.numel(), 1), dtype=loss.dtype).view(loss.shape)
    return loss.detach(), torch.autograd.grad(loss, x, g)[0]


def compare(x, target, weight, reduction, smoothing):
    options = {"reduction": reduction, "label_smoothing": smoothing}
    wide = target.double() if target.is_floating_point() else target
    reference = loss_and_grad(
        F.cross_entropy, x.double(), wide, weight=None if weight is None else weight.double(), **options
    )
    stock = loss_and_grad(F.cross_entropy, x, target, weight=weight, **options)
    ours = loss_and_grad(rusttorch.cross_entropy, x, target, weight=weight, **options)
    with rusttorch.use():
        swapped = loss_and_grad(F.cross_entropy, x, target, weight=weight, **options)
    for mine, also, theirs, exact in zip(ours, swapped, stock, reference, strict=True):
        if x.dtype != torch.float16:  # stock's, which under use() is made of our ops
            assert torch.equal(mine, also)
        assert mine.dtype == theirs.dtype
        assert mine.shape == theirs.shape
        error, allowed = ((y.double() - exact).abs().max() for y in (mine, theirs))
        ulp = torch.finfo(x.dtype).eps * exact.abs().max().clamp(0.5 / x.shape[0])
        assert (
            error <= 2 * allowed + (100 if x.dtype == torch.float64 else 6 if x.shape[-1] == 1 else 1) * ulp
        )  # float64: stock is the reference
    if smoothing == 0 and not target.is_floating_point() and x.dtype != torch.float64:
        assert_small_gradients(ours[1], stock[1], reference[1])


def assert_small_gradients(ours, stock, exact):
    """Each by its own size: what is a probability, and so no difference that cancels, is right to its last digits."""
    size = exact.abs().clamp(torch.finfo(ours.dtype).smallest_normal)
    small = exact.abs() < 1e-3 * exact.abs().max()
    error, allowed = (((y.double() - exact).abs() / size)[small] for y in (ours, stock))
    if small.any():
        assert error.max() <= 2 * allowed.max() + torch.finfo(ours.dtype).eps


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("probabilities", [False, True], ids=["classes", "probabilities"])
@pytest.mark.parametrize("classes", [1, 2, 10, 16, 17, 1000, 5003])
def test_loss_and_gradient(classes, probabilities, dtype):
    x, target, weight = data(13, classes, dtype, probabilities)
    for w, reduction, smoothing in itertools.product((None, weight), ("none", "mean", "sum"), (0.0, 0.3)):
        compare(x, target, w, reduction, smoothing)


def test_one_sample_and_many_threads():
    x, _, weight = data(1, 30, torch.float32, True)
    compare(x[0], torch.tensor(7), weight, "mean", 0.1)
    compare(*data(3000, 50, torch.float32, False), "mean", 0.0)


@pytest.mark.parametrize("probabilities", [False, True], ids=["classes", "probabilities"])
def test_derivatives(probabilities):
    x, target, weight = data(4, 5, torch.float64, probabilities)
    x.requires_grad_()
    inputs = (x, target.requires_grad_()) if probabilities else (x,)
    for reduction, smoothing in itertools.product(("none", "mean"), (0.0, 0.2)):

        def f(x, t=target):
            options = {"reduction": reduction, "label_smoothing": smoothing}  # noqa: B023
            return rusttorch.cross_entropy(x, t, weight, **options)

        assert torch.autograd.gradcheck(f, inputs)
        assert torch.autograd.gradgradcheck(f, inputs)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")  # torch's own, in torch.func.jvp
@pytest.mark.parametrize("probabilities", [False, True], ids=["classes", "probabilities"])
def test_opcheck_compile_and_vmap(probabilities):
    x, target, weight = data(6, 9, torch.float32, probabilities)
    op = torch.ops.rusttorch.cross_entropy_loss_forward.default
    opcheck(op, (x.requires_grad_(), target, weight, 1, IGNORED, 0.1, True))
    opcheck(op, (x, target, weight, 0, IGNORED, 0.1, False))
    _, slope = op(x, target, weight, 1, IGNORED, 0.1, True)
    backward = torch.ops.rusttorch.cross_entropy_loss_backward.default
    opcheck(backward, (torch.ones(()), slope.detach().requires_grad_(), target, 1, IGNORED))

    def train(x):
        return torch.autograd.grad(F.cross_entropy(x * 2, target, weight), x)[0]

    expected = train(x)
    torch._dynamo.reset()
    with rusttorch.use():
        swapped = torch.compile(lambda x: F.cross_entropy(x * 2, target, weight), fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(torch.autograd.grad(swapped(x), x)[0], expected)
        batch = torch.stack([x.detach(), -x.detach()])
        each = torch.stack([F.cross_entropy(b, target) for b in batch])
        torch.testing.assert_close(torch.vmap(lambda b: F.cross_entropy(b, target))(batch), each)
        functional = torch.func.grad(lambda x: F.cross_entropy(x * 2, target, weight))(x.detach())
        torch.testing.assert_close(functional, expected)
        hessian = torch.func.hessian(lambda x: F.cross_entropy(x, target, weight))  # forward over reverse
        torch.testing.assert_close(
            hessian(x.detach())[0, 0],
            torch.autograd.functional.hessian(lambda x: F.cross_entropy(x, target, weight), x.detach())[0, 0],
        )
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert F.cross_entropy(x, target).dtype == torch.float32
        with torch.inference_mode():
            torch.testing.assert_close(F.cross_entropy(x, target), rusttorch.cross_entropy(x, target))
    torch.testing.assert_close(torch.vmap(lambda b: rusttorch.cross_entropy(b, target))(batch), each)


def test_swapped_grad_is_never_lost():
    """What the kernels do not take is stock's decomposition, with its derivative."""
    x = torch.randn(2, 5, 3, 4, requires_grad=True)
    target = torch.randint(5, (2, 3, 4))
    expected = torch.autograd.grad(F.cross_entropy(x, target), x)[0]
    with rusttorch.use("cross_entropy_loss"):
        rusttorch.reset_stats()
        assert torch.equal(torch.autograd.grad(F.cross_entropy(x, target), x)[0], expected)
        assert rusttorch.stats()["cross_entropy_loss"].handed == {"layout": 1}
        soft = torch.rand(4, 5, requires_grad=True)
        assert torch.autograd.grad(F.cross_entropy(torch.randn(4, 5), soft), soft)[0].abs().sum() > 0


@pytest.mark.parametrize(
    ("x", "target", "options"),
    [
        (torch.randn(3, 4), torch.tensor([0, 4, 1]), {}),
        (torch.randn(3, 4), torch.tensor([0, -1, 1]), {}),
        (torch.randn(3, 4), torch.tensor([0, 2**40, 1]), {"reduction": "none"}),
        (torch.randn(3, 4), torch.tensor([0, 1]), {}),
        (torch.randn(3, 4), torch.tensor([0, 1, 2]), {"weight": torch.ones(3)}),
        (torch.randn(3, 4), torch.tensor([0, 1, 2]), {"label_smoothing": 1.5}),
        (torch.randn(3, 4), torch.tensor([0, 1, 2], dtype=torch.int32), {}),
        (torch.ones(3, 4, dtype=torch.int64), torch.tensor([0, 1, 2]), {}),
        (torch.randn(3, 4), torch.full((3, 4), 0.25), {"ignore_index": 0}),
    ],
)
def test_errors_are_stock_s(x, target, options):
    with pytest.raises((RuntimeError, IndexError, ValueError)) as stock:
        F.cross_entropy(x, target, **options)
    with pytest.raises(stock.type) as ours:
        rusttorch.cross_entropy(x, target, **options)
    assert str(ours.value).split("\n")[0] == str(stock.value).split("\n")[0]


def test_empty_and_all_ignored():
    for x, target in (
        (torch.randn(0, 4), torch.empty(0, dtype=torch.int64)),
        (torch.randn(2, 4), torch.full((2,), -100)),
    ):
        assert rusttorch.cross_entropy(x, target).isnan()
        assert rusttorch.cross_entropy(x, target, reduction="sum") == 0
        assert rusttorch.cross_entropy(x, target, reduction="none").equal(torch.zeros(len(x)))


@pytest.mark.parametrize("bias", [False, True])
def test_linear_cross_entropy(bias):
    """Several chunks (the vocabulary is large), some targets ignored."""
    x, w, b = torch.randn(700, 12), torch.randn(30_000, 12), torch.randn(30_000)
    target = torch.randint(30_000, (700,))
    target[::7] = IGNORED
    tensors = [t.requires_grad_() for t in ((x, w, b) if bias else (x, w))]
    for reduction, smoothing in (("mean", 0.0), ("sum", 0.1)):
        options = {"reduction": reduction, "label_smoothing": smoothing}
        ours = rusttorch.linear_cross_entropy(x, w, target, linear_bias=b if bias else None, **options)
        stock = F.cross_entropy(F.linear(x, w, b if bias else None), target, **options)
        torch.testing.assert_close(ours, stock)
        wide = [t.detach().double().requires_grad_() for t in tensors]
        exact = F.cross_entropy(F.linear(*wide), target, **options)
        losses = ((ours, tensors), (stock, tensors), (exact, wide))
        for mine, theirs, right in zip(*(torch.autograd.grad(loss * 3, of) for loss, of in losses), strict=True):
            error, allowed = ((g.double() - right).norm() for g in (mine, theirs))
            assert error <= 2 * allowed + 1e-6 * right.norm()
        with torch.no_grad():
            again = rusttorch.linear_cross_entropy(x, w, target, linear_bias=b if bias else None, **options)
        torch.testing.assert_close(again, stock)


def capped_and_z(x, w, b, target, reduction, smoothing, z_loss, softcap):
    """As a user of stock writes them."""
    logits = F.linear(x, w, b)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    loss = F.cross_entropy(logits, target, reduction=reduction, label_smoothing=smoothing)
    kept = target != IGNORED
    z = z_loss * logits.logsumexp(-1).masked_fill(~kept, 0).square().sum()
    return loss + (z / kept.sum() if reduction == "mean" else z)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("z_loss", (0.0, 0.01))
@pytest.mark.parametrize("softcap", (None, 2.5, 30.0))
def test_z_loss_and_softcap(softcap, z_loss, dtype):
    generator = torch.Generator(torch.get_default_device()).manual_seed(0)
    normal = lambda *s: torch.randn(s, generator=generator, dtype=torch.float64).to(dtype)  # noqa: E731
    x, w, b = normal(70, 12), normal(1003, 12), normal(1003)
    target = torch.randint(1003, (70,), generator=generator)
    target[::7] = IGNORED
    for bias, reduction, smoothing in ((b, "mean", 0.0), (None, "sum", 0.1)):
        options = {"reduction": reduction, "label_smoothing": smoothing, "z_loss": z_loss, "softcap": softcap}
        leaves = [t.detach().requires_grad_() for t in ((x, w) if bias is None else (x, w, b))]
        wide = [t.detach().double().requires_grad_() for t in leaves]
        ours = rusttorch.linear_cross_entropy(leaves[0], leaves[1], target, *leaves[2:], **options)
        stock, exact = (
            capped_and_z(*of, *[None] * (3 - len(of)), target, reduction, smoothing, z_loss, softcap)
            for of in (leaves, wide)
        )
        assert ours.dtype == torch.promote_types(dtype, torch.float32)
        eps = torch.finfo(dtype).eps * (50 if dtype == torch.float64 else 8)  # where stock itself is the truth
        assert (ours.double() - exact).abs() <= 2 * (stock.double() - exact).abs() + eps * exact.abs()
        of_all = [torch.autograd.grad(loss, of) for loss, of in ((ours, leaves), (stock, leaves), (exact, wide))]
        for mine, theirs, right in zip(*of_all, strict=True):
            error, allowed = ((g.double() - right).norm() for g in (mine, theirs))
            assert error <= 2 * allowed + eps * right.norm()
        with torch.no_grad():
            again = rusttorch.linear_cross_entropy(leaves[0], leaves[1], target, *leaves[2:], **options)
        assert torch.equal(again, ours)


def test_z_loss_and_softcap_derivatives():
    x, w, b = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((5, 3), (7, 3), (7,)))
    target = torch.tensor([0, 6, IGNORED, 2, 2])
    for options in ({"z_loss": 0.1}, {"softcap": 1.5}, {"z_loss": 0.1, "softcap": 1.5, "label_smoothing": 0.1}):
        f = lambda x, w, b: rusttorch.linear_cross_entropy(x, w, target, b, **options)  # noqa: B023, E731
        assert torch.autograd.gradcheck(f, (x, w, b))
        assert torch.autograd.gradgradcheck(f, (x, w, b))
    op = torch.ops.rusttorch.linear_cross_entropy_forward.default
    opcheck(op, (x, w, target, b, 1, IGNORED, 0.0, True, 0.1, 1.5))
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, w, b), f(x, w, b))
    for bad in (0.0, -1.0):
        with pytest.raises(RuntimeError, match="softcap must be above 0"):
            rusttorch.linear_cross_entropy(x, w, target, softcap=bad)
    for bad in (-0.1, 1.5, torch.nan):
        with pytest.raises(RuntimeError, match="label_smoothing must be between"):
            rusttorch.linear_cross_entropy(x, w, target, label_smoothing=bad)


def test_linear_cross_entropy_errors():
    x, w = torch.randn(7, 12), torch.randn(30, 12)
    with pytest.raises(IndexError, match="out of bounds"):
        rusttorch.linear_cross_entropy(x, w, torch.full((7,), 30))
    with pytest.raises(RuntimeError, match="linear_weight"):
        rusttorch.linear_cross_entropy(x, w.t(), torch.zeros(7, dtype=torch.long))
    with pytest.raises(RuntimeError, match="C > 0"):
        rusttorch.linear_cross_entropy(x, w[:0], torch.full((7,), -100))
    with pytest.raises(NotImplementedError, match="not implemented for 'Int'"):
        rusttorch.linear_cross_entropy(x.int(), w.int(), torch.zeros(7, dtype=torch.long))


def test_linear_cross_entropy_derivatives():
    x, w, b = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((5, 3), (7, 3), (7,)))
    target = torch.tensor([0, 6, IGNORED, 2, 2])

    def f(x, w, b):
        return rusttorch.linear_cross_entropy(x, w, target, linear_bias=b)

    assert torch.autograd.gradcheck(f, (x, w, b))
    assert torch.autograd.gradgradcheck(f, (x, w, b))
    op = torch.ops.rusttorch.linear_cross_entropy_forward.default
    opcheck(op, (x, w, target, b, 1, IGNORED, 0.0, True))
    late = torch.autograd.grad(op(x, w, target, b, 1, IGNORED, 0.0, False)[0], x)[0]
    torch.testing.assert_close(late, torch.autograd.grad(f(x, w, b), x)[0])
    expected = torch.autograd.grad(f(x, w, b), x)[0]
    torch.testing.assert_close(torch.func.grad(f)(x.detach(), w.detach(), b.detach()), expected)


def test_smoothed_probabilities_may_be_changed():
    """Stock keeps what it has made of them."""
    x, p = torch.randn(3, 4, requires_grad=True), torch.rand(3, 4).softmax(-1)
    loss = F.cross_entropy(x, p, label_smoothing=0.1)
    with rusttorch.use():
        losses = (loss, F.cross_entropy(x, p, label_smoothing=0.1))
    p.zero_()
    torch.testing.assert_close(*(torch.autograd.grad(loss, x)[0] for loss in losses))


@pytest.mark.parametrize("create_graph", [False, True])
def test_linear_cross_entropy_with_all_ignored(create_graph):
    x, w = torch.randn(3, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    loss = rusttorch.linear_cross_entropy(x, w, torch.full((3,), IGNORED))
    for grad in torch.autograd.grad(loss, (x, w), create_graph=create_graph):
        assert grad.abs().max() == 0


@pytest.mark.parametrize("label", [10**9, 4, -1])
def test_labels_changed_after_forward(label):
    """By a NumPy array that has their memory: autograd does not see it, and nothing is read or written beyond the end.
    (Stock raises. Of ours only a second derivative reads them again, and raises.)"""
    x, target = torch.randn(3, 4, requires_grad=True), torch.tensor([0, 1, 2])
    expected = torch.autograd.grad(F.cross_entropy(x, target), x)[0]
    with rusttorch.use():
        loss = F.cross_entropy(x, target)
    target.numpy()[1] = label
    [gradient] = torch.autograd.grad(loss, x, create_graph=True)
    torch.testing.assert_close(gradient, expected)
    with pytest.raises(RuntimeError, match="out of bounds"):
        gradient.sum().backward()


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_ignored_rows_have_no_gradient_whatever_comes(reduction):
    """Zero, where what comes is infinite, or where a mean divides by nothing; as in stock."""
    x, target = torch.randn(4, 20, requires_grad=True), torch.tensor([3, IGNORED, 19, IGNORED])
    for t in (target, torch.full_like(target, IGNORED)):
        for g in (1.0, torch.inf, torch.nan):
            stock, ours = (f(x, t, reduction=reduction) for f in (F.cross_entropy, rusttorch.cross_entropy))
            grads = [torch.autograd.grad(y, x, torch.full_like(y, g))[0] for y in (stock, ours)]
            ignored = t == IGNORED
            assert all((grad[ignored] == 0).all() for grad in grads)
            torch.testing.assert_close(grads[1].isfinite(), grads[0].isfinite())


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_gradients_of_halves_by_a_scaled_loss(reduction):
    """They are stock's: a slope that waits for the scale has no room in a half where the class is unlikely."""
    x, target = torch.randn(4, 50257).mul_(3).half(), torch.randint(50257, (4,))
    stock, ours = (x.clone().requires_grad_() for _ in range(2))
    (F.cross_entropy(stock, target, reduction=reduction) * 1024).backward()
    (rusttorch.cross_entropy(ours, target, reduction=reduction) * 1024).backward()
    assert torch.equal(ours.grad, stock.grad)
    with torch.no_grad():
        rusttorch.reset_stats()
        rusttorch.cross_entropy(ours, target)
        assert rusttorch.stats()["cross_entropy_loss"].ran == 1


def penalized(f, x, target, factor, **options):
    """A loss and the square of its gradient, in one backward: both read what is kept."""
    x = x.clone().requires_grad_()
    loss = f(x, target, **options)
    [gradient] = torch.autograd.grad(loss.sum(), x, create_graph=True)
    (factor * loss.sum() + gradient.pow(2).sum()).backward()
    return x.grad


@pytest.mark.parametrize("factor", [1, 2, 0.25])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_a_gradient_penalty(reduction, factor):
    x, target, weight = data(7, 5, torch.float64, False)
    for options in ({}, {"weight": weight}, {"label_smoothing": 0.1}):
        options["reduction"] = reduction
        stock, ours = (penalized(f, x, target, factor, **options) for f in (F.cross_entropy, rusttorch.cross_entropy))
        torch.testing.assert_close(ours, stock)


@pytest.mark.parametrize("scale", [1, 3])
def test_the_kept_gradient_is_never_changed(scale):
    x, target = torch.randn(4, 20, requires_grad=True), torch.tensor([3, IGNORED, 19, 0])
    expected = torch.autograd.grad(F.cross_entropy(x, target) * scale, x)[0]

    loss = rusttorch.cross_entropy(x, target) * scale
    for retain_graph in (True, True, False):
        [gradient] = torch.autograd.grad(loss, x, retain_graph=retain_graph)
        torch.testing.assert_close(gradient, expected)
        assert not gradient.requires_grad
        gradient.mul_(5)
    with pytest.raises(RuntimeError, match="a second time"):
        loss.backward()

    kept = []  # in memory of somebody else

    def pack(t):
        kept.append(t.detach().cpu().numpy().copy())
        return len(kept) - 1

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda i: torch.from_numpy(kept[i]).to(x.device)):
        loss = rusttorch.cross_entropy(x, target) * scale
    before = [t.copy() for t in kept]
    torch.testing.assert_close(torch.autograd.grad(loss, x)[0].mul_(5), expected * 5)
    assert all((t == was).all() for t, was in zip(kept, before, strict=True))
    by_name, slope = torch.ops.rusttorch.cross_entropy_loss_forward(x, target, None, 1, IGNORED, 0.0, True)
    torch.autograd.grad(by_name, x)[0].mul_(5)
    torch.testing.assert_close(slope * scale, expected)
    for _ in range(2):  # into one .grad
        (rusttorch.cross_entropy(x, target) * scale).backward()
    torch.testing.assert_close(x.grad, 2 * expected)


def test_the_node_looks_like_one_of_one_gradient():
    x, target = torch.randn(4, 20, requires_grad=True), torch.tensor([3, IGNORED, 19, 0])
    expected = torch.autograd.grad(F.cross_entropy(x, target), x)[0]
    loss = rusttorch.cross_entropy(x, target)
    loss.grad_fn.register_prehook(lambda grads: tuple(g * 2 for g in grads))
    tries = []

    def fails_once(grad_inputs, grad_outputs):
        tries.append(len(grad_outputs))
        if len(tries) == 1:
            raise ValueError("on purpose")

    loss.grad_fn.register_hook(fails_once)
    with pytest.raises(ValueError, match="on purpose"):
        loss.backward()
    loss.backward()
    assert tries == [1, 1]
    torch.testing.assert_close(x.grad, 2 * expected)


@pytest.mark.parametrize("hooked", [False, True])
def test_a_third_derivative(hooked):
    x, target, weight = data(4, 5, torch.float64, False)
    x.requires_grad_()

    def third(f):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t) if hooked else contextlib.nullcontext():
            y = f(x, target, weight, label_smoothing=0.1)
        for _ in range(3):
            y = torch.autograd.grad(y, x, create_graph=True)[0].pow(2).sum()
        return y

    torch.testing.assert_close(third(rusttorch.cross_entropy), third(F.cross_entropy))


def test_a_post_hook_may_replace_the_gradient():
    x, target = torch.randn(4, 20, requires_grad=True), torch.tensor([3, IGNORED, 19, 0])
    loss = rusttorch.cross_entropy(x, target)
    loss.grad_fn.register_hook(lambda grad_inputs, grad_outputs: (grad_inputs[0] * 3,))
    expected = 3 * torch.autograd.grad(F.cross_entropy(x, target), x)[0]
    torch.testing.assert_close(torch.autograd.grad(loss, x)[0], expected)


def test_a_gradient_that_is_still_read_elsewhere_is_a_copy():
    """By the graph of an earlier gradient: it goes through the slope."""
    x, target = torch.randn(4, 5, requires_grad=True), torch.tensor([0, 1, 2, 1])
    results = []
    for f in (F.cross_entropy, rusttorch.cross_entropy):
        loss = f(x, target)
        [gradient] = torch.autograd.grad(loss, x, create_graph=True)
        [last] = torch.autograd.grad(loss, x, retain_graph=f is F.cross_entropy)
        last.zero_()
        results.append(torch.autograd.grad(gradient.pow(2).sum(), x)[0])
    torch.testing.assert_close(*results)


def test_nothing_is_kept_after_the_backward():
    """A hook that gives back what it is given holds the slope, and the slope its node."""
    x, target = torch.randn(8, 20, requires_grad=True), torch.randint(20, (8,))
    packed = []

    def pack(t):
        packed.append(weakref.ref(t))
        return t

    with rusttorch.use(), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = F.cross_entropy(x, target)
    loss.backward()
    del loss
    gc.collect()
    assert packed
    assert {ref() is None or ref() is target for ref in packed} == {True}


def test_what_was_traced_without_a_gradient_has_one():
    x, target = torch.randn(4, 3), torch.tensor([0, 1, 1, IGNORED])
    with rusttorch.use():
        traced = torch.fx.experimental.proxy_tensor.make_fx(lambda x: F.cross_entropy(x, target))(x)
    assert "cross_entropy_loss_forward" in traced.code
    x.requires_grad_()
    [ours] = torch.autograd.grad(traced(x), x, create_graph=True)
    [stock] = torch.autograd.grad(F.cross_entropy(x, target), x, create_graph=True)
    torch.testing.assert_close(ours, stock)
    torch.testing.assert_close(*(torch.autograd.grad(g.pow(2).sum(), x)[0] for g in (ours, stock)))


@pytest.mark.parametrize("absent", [torch.inf, torch.nan])
def test_weight_of_a_class_that_is_absent(absent):
    """1 / bincount(target) is infinite there."""
    x, target = torch.randn(4, 3, requires_grad=True), torch.tensor([0, 1, 1, 0])
    weight = torch.tensor([1.0, 2.0, absent])
    for reduction in ("none", "mean", "sum"):
        losses = [f(x, target, weight, reduction=reduction).sum() for f in (F.cross_entropy, rusttorch.cross_entropy)]
        torch.testing.assert_close(*losses)
        grads = [torch.autograd.grad(loss, x, create_graph=True)[0] for loss in losses]
        torch.testing.assert_close(*grads)
        torch.testing.assert_close(*(torch.autograd.grad(g.pow(2).sum(), x)[0] for g in grads))


@pytest.mark.parametrize(("dtype", "shift"), [(torch.float32, 1e16), (torch.float32, -3.4e38), (torch.float64, 1e10)])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_huge_logits_that_are_nearly_equal(smoothing, dtype, shift):
    """A row masked by the lowest number: log(sum(exp(x))) is the largest x and a logarithm that is not seen in it."""
    x = torch.full((2, 40), shift, dtype=dtype)
    x[1] = torch.randn(40).to(dtype) + shift
    x.requires_grad_()
    target = torch.tensor([3, 4])
    losses = [f(x, target, label_smoothing=smoothing) for f in (F.cross_entropy, rusttorch.cross_entropy)]
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*(torch.autograd.grad(loss, x)[0] for loss in losses))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_slope_and_backward_by_name(reduction, dtype):
    """Of halves too, which under autograd are stock's."""
    x, target, _ = data(13, 1000, dtype, False)
    number = ("none", "mean", "sum").index(reduction)
    grad = torch.linspace(0.5, 1.5, 13).to(dtype) if reduction == "none" else torch.tensor(1.25, dtype=dtype)
    slope = torch.ops.rusttorch.cross_entropy_loss_forward(x, target, None, number, IGNORED, 0.0, True)[1]
    ours = torch.ops.rusttorch.cross_entropy_loss_backward(grad, slope, target, number, IGNORED)
    wide = x.double().requires_grad_()
    exact = torch.autograd.grad(F.cross_entropy(wide, target, reduction=reduction), wide, grad.double())[0]
    eps = torch.finfo(dtype).eps * (4 if dtype == torch.float64 else 1)  # the reference's own are among them
    torch.testing.assert_close(ours.double(), exact, rtol=2 * eps, atol=eps)


def test_backward_by_name_checks_what_it_is_given():
    x, target = torch.randn(3, 4), torch.tensor([0, 1, 2])
    forward, backward = (getattr(torch.ops.rusttorch, f"cross_entropy_loss_{end}") for end in ("forward", "backward"))
    slope = forward(x, target, None, 1, IGNORED, 0.0, True)[1]
    nothing = forward(x, target, None, 1, IGNORED, 0.0, False)[1]
    assert nothing.shape == (0,)
    one = torch.ones(())

    def call(grad=one, slope=slope, reduction=1):
        return backward(grad, slope, target, reduction, IGNORED)

    assert torch.equal(call(), slope)
    for wrong in (
        {"slope": nothing},
        {"slope": slope[:2]},
        {"slope": slope.int()},
        {"grad": torch.ones(2)},
        {"grad": one.double()},
        {"grad": one, "reduction": 0},
    ):
        with pytest.raises(RuntimeError, match="expected"):
            call(**wrong)
    strided = {"grad": torch.ones(3, 2)[:, 0], "slope": slope.t().contiguous().t()}
    assert torch.equal(call(**strided, reduction=0), slope)


def test_linear_cross_entropy_sums_16_bits_in_32():
    """The weight's gradient is a sum over chunks of rows; rounded at each it was five times as far off as stock's."""
    torch.manual_seed(0)
    x, w = torch.randn(2048, 32).bfloat16(), torch.randn(20_000, 32).mul_(0.1).bfloat16().requires_grad_()
    target = torch.randint(20, (2048,))
    wide = w.detach().double().requires_grad_()
    exact = torch.autograd.grad(F.cross_entropy(F.linear(x.double(), wide), target), wide)[0]
    stock = torch.autograd.grad(F.cross_entropy(F.linear(x, w), target), w)[0]
    ours = torch.autograd.grad(rusttorch.linear_cross_entropy(x, w, target), w)[0]
    error, allowed = ((g.double() - exact).norm() / exact.norm() for g in (ours, stock))
    assert error <= 1.5 * allowed


def test_linear_cross_entropy_of_halves_and_a_scaled_loss():
    """Most classes are unlikely: their slopes, divided by the number of rows, have no room in a half."""
    torch.manual_seed(0)
    x, w = (0.1 * torch.randn(256, 4)).half(), (1 + 0.1 * torch.randn(20_000, 4)).half()
    target = torch.randint(10_000, (256,))
    grads = []
    for f, tensors in (
        (lambda x, w: F.cross_entropy(F.linear(x, w), target), [x.double(), w.double()]),
        (lambda x, w: F.cross_entropy(F.linear(x, w), target), [x.clone(), w.clone()]),
        (lambda x, w: rusttorch.linear_cross_entropy(x, w, target), [x.clone(), w.clone()]),
    ):
        tensors = [t.requires_grad_() for t in tensors]
        (f(*tensors) * 1024).backward()
        grads.append([t.grad for t in tensors])
    for exact, stock, ours in zip(*grads, strict=True):
        error, allowed = ((g.double() - exact).norm() for g in (ours, stock))
        assert error <= 2 * allowed + 2e-3 * exact.norm()
        assert (ours == 0).sum() <= (stock == 0).sum() + ours.numel() // 100


def test_linear_cross_entropy_refuses_what_does_not_fit():
    x, w, target = torch.randn(7, 12), torch.randn(30, 12), torch.zeros(7, dtype=torch.long)
    with pytest.raises(RuntimeError, match=r"linear_bias must be \[C\]"):
        rusttorch.linear_cross_entropy(x, w, target, linear_bias=torch.ones(1))
    with pytest.raises(RuntimeError, match="expected tensors of"):
        rusttorch.linear_cross_entropy(x, w.bfloat16(), target)


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
def test_a_second_derivative_of_more_numbers_than_16_bits_can_count(dtype):
    x, target = torch.randn(1000, 100, dtype=torch.float64), torch.rand(1000, 100, dtype=torch.float64).softmax(1)
    v = torch.randn(1000, 100, dtype=torch.float64)
    found = []
    for cast in (torch.float64, dtype):
        logits = x.to(cast).requires_grad_()
        loss = torch.ops.rusttorch.cross_entropy_loss_forward(logits, target.to(cast), None, 1, -100, 0.0, True)[0]
        grad = torch.autograd.grad(loss, logits, create_graph=True)[0]
        found.append(torch.autograd.grad((grad.double() * v * 1000).sum(), logits)[0].double())
    torch.testing.assert_close(found[1], found[0], rtol=0.05, atol=0.02 * found[0].abs().max().item())
