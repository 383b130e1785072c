"""Ops over lists of tensors: as the same op on each tensor, and as torch.nn.utils."""

import copy
import math
from functools import partial

import pytest
import rusttorch
import torch
from cases import ON_DEVICE, opcheck
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

SHAPES = [(), (1,), (17,), (33, 65), (70_000,), (0,), (3, 5, 7)]
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
INF = float("inf")


def tensors(dtype, seed=0):
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    all_ = [torch.randn(shape, generator=generator, dtype=torch.float64).mul(3).to(dtype) for shape in SHAPES]
    all_[3] = all_[3].t().contiguous().t()  # dense, and not contiguous
    return all_


def without_empty(make, dtype):  # it has no infinity norm
    return [t for t in make(dtype) if t.numel()]


def strided(dtype):
    return [torch.ones(6, 4, dtype=dtype)[:, ::2], torch.ones(3, dtype=dtype)]


def both(name, lists, *args):
    """What torch.NAME and rusttorch's op leave in copies of the first list."""
    results = []
    for op in (getattr(torch, name), getattr(torch.ops.rusttorch, name)):
        mine = copy.deepcopy(lists)
        with torch.no_grad():
            op(*mine, *args)
        results.append(mine[0])
    return results


@pytest.mark.parametrize("dtype", (*FLOATS, torch.int64), ids=str)
@pytest.mark.parametrize("make", (tensors, strided))
@pytest.mark.parametrize("scalar", (2, -3))
def test_by_scalar(dtype, make, scalar):
    for name in ("_foreach_add_", "_foreach_mul_"):
        stock, ours = both(name, [make(dtype)], scalar)
        assert all(map(torch.equal, stock, ours))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("make", (tensors, strided))
def test_lerp(dtype, make):
    lists = [make(dtype), [t * 2 for t in make(dtype)]]
    stock, ours = both("_foreach_lerp_", lists, 0.25)
    for s, o, a, b in zip(stock, ours, *lists, strict=True):
        exact = torch.lerp(a.double(), b.double(), 0.25)
        assert (o - exact).abs().sum() <= 2 * (s - exact).abs().sum() + torch.finfo(dtype).eps * exact.abs().sum()


@pytest.mark.parametrize("dtype", (*FLOATS, torch.int64, torch.bool, torch.complex64), ids=str)
@pytest.mark.parametrize("make", (tensors, strided))
def test_zero(dtype, make):
    _, ours = both("_foreach_zero_", [make(dtype)])
    assert all(not t.any() for t in ours)


def test_a_list_runs_here_or_in_stock_as_a_whole():
    rusttorch.reset_stats()
    with rusttorch.use("foreach"):
        torch._foreach_add_(tensors(torch.float32), 1)
        torch._foreach_add_([*tensors(torch.float32), *strided(torch.float32)], 1)
    ran, handed = rusttorch.stats()["_foreach_add_.Scalar"]
    assert (ran, sum(handed.values())) == (1, 1)


def test_versions_and_leaves():
    x, leaf = torch.zeros(3), torch.zeros(3, requires_grad=True)
    torch.ops.rusttorch._foreach_add_([x], 1)
    assert x._version == 1
    with pytest.raises(RuntimeError, match="a leaf Variable that requires grad"):
        torch.ops.rusttorch._foreach_add_([leaf], 1)
    with pytest.raises(NotImplementedError, match=r"_foreach_mul_.* has no derivative"):
        torch.ops.rusttorch._foreach_mul_([leaf * 1], 2)
    assert not leaf.any()


@pytest.mark.parametrize("threads", (1, 2))
def test_opcheck(threads):
    torch.set_num_threads(threads)
    lists = tensors(torch.float32)
    for name, overload, args in (
        ("_foreach_add_", "Scalar", (lists, 2)),
        ("_foreach_mul_", "Scalar", (lists, 2)),
        ("_foreach_mul_", "Tensor", (lists, torch.tensor(2.0))),
        ("_foreach_clamp_min_", "Scalar", (lists, 2)),
        ("_foreach_clamp_max_", "Scalar", (lists, 2)),
        ("_foreach_lerp_", "Scalar", (lists, tensors(torch.float32, 1), 0.5)),
        ("_foreach_zero_", "default", (lists,)),
        ("_foreach_norm", "Scalar", (lists, 2)),
        ("clip_grad_norm_", "default", (lists, 1.0)),
        ("clip_grad_value_", "default", (lists, 1.0)),
    ):
        opcheck(getattr(getattr(torch.ops.rusttorch, name), overload), args)


@pytest.mark.parametrize("order", (0, 1, 2, 3, INF))
def test_derivatives_of_a_list(order):
    lists = [t.requires_grad_(t.dim() != 2) for t in without_empty(tensors, torch.float64) if t.numel() < 3000]

    def norms(*tensors):
        return torch.ops.rusttorch._foreach_norm.Scalar(tensors, order)

    assert torch.autograd.gradcheck(norms, lists)
    assert torch.autograd.gradgradcheck(norms, lists)
    leaves = [t for t in lists if t.requires_grad]
    # Some of the results only: the others' tensors get zeros or nothing, as stock's do.
    for op in (torch._foreach_norm, torch.ops.rusttorch._foreach_norm.Scalar):
        grads = torch.autograd.grad(op(lists, order)[2], leaves, allow_unused=True)
        assert [g is not None and bool(g.any()) for g in grads] == [False, False, order != 0, False]


def with_grads(dtype, make=tensors):
    params = [torch.nn.Parameter(torch.zeros_like(t)) for t in make(dtype)]
    for p, g in zip(params, make(dtype), strict=True):
        p.grad = g
    return [*params, torch.nn.Parameter(torch.zeros(3))]  # the last has none


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("make", (tensors, strided))
@pytest.mark.parametrize("norm_type", (1, 2, INF, 3))
@pytest.mark.parametrize("max_norm", (0.5, 1e30))
def test_clip_grad_norm(dtype, make, norm_type, max_norm):
    if dtype == torch.float16:
        max_norm = min(max_norm, 6e4)
    if norm_type == INF:
        make = partial(without_empty, make)
    stock, ours, exact = with_grads(dtype, make), with_grads(dtype, make), with_grads(torch.float64, make)
    for p, s in zip(exact, stock, strict=True):
        p.grad = s.grad.double().clone() if s.grad is not None else None
    clip = torch.nn.utils.clip_grad_norm_
    wanted, norm = clip(stock, max_norm, norm_type), rusttorch.clip_grad_norm_(ours, max_norm, norm_type)
    truth = clip(exact, max_norm, norm_type)
    assert norm.dtype == wanted.dtype
    assert norm.shape == wanted.shape == ()
    eps = torch.finfo(dtype).eps * (50 if dtype == torch.float64 else 1)  # where the truth is no more than stock's
    assert (norm - truth).abs() <= 2 * (wanted - truth).abs() + 4 * eps * truth
    for s, o, e in zip(stock, ours, exact, strict=True):
        if e.grad is None:
            assert o.grad is None
        else:
            assert (o.grad - e.grad).abs().sum() <= 2 * (s.grad - e.grad).abs().sum() + 2 * eps * e.grad.abs().sum()


@pytest.mark.parametrize("value", (float("nan"), INF, -INF))
def test_a_norm_that_is_not_finite(value):
    stock, ours = with_grads(torch.float32), with_grads(torch.float32)
    for params in (stock, ours):
        params[2].grad[3] = value
    before = [p.grad.clone() for p in ours if p.grad is not None]
    with pytest.raises(RuntimeError, match=r"total norm of order 2.*error_if_nonfinite=False"):
        rusttorch.clip_grad_norm_(ours, 1.0, error_if_nonfinite=True)
    grads = [p.grad for p in ours if p.grad is not None]
    assert all(torch.equal(g, b) or g.isnan().any() for g, b in zip(grads, before, strict=True))
    torch.testing.assert_close(
        rusttorch.clip_grad_norm_(ours, 1.0), torch.nn.utils.clip_grad_norm_(stock, 1.0), equal_nan=True
    )
    for s, o in zip(stock, ours, strict=True):
        if s.grad is not None:
            assert torch.equal(s.grad.isnan(), o.grad.isnan())


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_clip_takes_what_torch_takes():
    p = torch.nn.Parameter(torch.zeros(3))
    assert rusttorch.clip_grad_norm_([], 1.0) == 0
    assert rusttorch.clip_grad_norm_(p, 1.0) == 0
    p.grad = torch.tensor([3.0, 4.0, 0.0])
    assert rusttorch.clip_grad_norm_(p, 1.0) == 5
    torch.testing.assert_close(p.grad, torch.tensor([0.6, 0.8, 0.0]))
    rusttorch.clip_grad_value_((q for q in [p]), 0.7)
    torch.testing.assert_close(p.grad, torch.tensor([0.6, 0.7, 0.0]))
    mixed = [torch.nn.Parameter(torch.zeros(2, dtype=d)) for d in (torch.float32, torch.float64)]
    for m in mixed:
        m.grad = torch.full_like(m, 2)
    assert rusttorch.clip_grad_norm_(mixed, 1.0).item() == pytest.approx(4)
    torch.testing.assert_close(mixed[0].grad, torch.full((2,), 0.5))
    sparse = torch.nn.Parameter(torch.zeros(3))
    sparse.grad = torch.sparse_coo_tensor([[0]], [1.0], (3,))
    errors = []
    for clip in (torch.nn.utils.clip_grad_value_, rusttorch.clip_grad_value_):
        with pytest.raises(NotImplementedError) as error:
            clip([sparse], 1.0)
        errors.append(str(error.value).split("\n")[0])
    assert errors[0] == errors[1]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_stock_clips_through_our_kernels(dtype):
    stock, ours = with_grads(dtype), with_grads(dtype)
    rusttorch.reset_stats()
    for clip, bounds in ((torch.nn.utils.clip_grad_norm_, (1e4, 5.0)), (torch.nn.utils.clip_grad_value_, (1.0,))):
        for bound in bounds:
            wanted = clip(stock, bound)
            with rusttorch.use("foreach"):
                norm = clip(ours, bound)
            torch.testing.assert_close(norm, wanted)
    for s, o in zip(stock, ours, strict=True):
        torch.testing.assert_close(o.grad, s.grad)
    names = ("_foreach_norm.Scalar", "_foreach_clamp_min_.Scalar", "_foreach_clamp_max_.Scalar", "_foreach_mul_.Tensor")
    names = names if dtype.itemsize > 2 else names[:3]  # the product of 16-bit numbers is stock's
    assert all(rusttorch.stats()[name].ran for name in names)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("value", (1.5, 0.0, INF))
def test_clip_grad_value(dtype, value):
    stock, ours = with_grads(dtype), with_grads(dtype)
    torch.nn.utils.clip_grad_value_(stock, value)
    rusttorch.clip_grad_value_(ours, value)
    for s, o in zip(stock, ours, strict=True):
        assert s.grad is o.grad is None or torch.equal(s.grad, o.grad)


def test_ema():
    model = torch.nn.Sequential(torch.nn.Linear(30, 40), torch.nn.Linear(40, 2))
    ours = copy.deepcopy(model)
    stock, swapped = (AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9)) for _ in range(2))
    for _ in range(4):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p))
        stock.update_parameters(model)
        with rusttorch.use("foreach"):
            swapped.update_parameters(model)
        if stock.n_averaged == 1:
            ours.load_state_dict(model.state_dict())
        else:
            rusttorch.ema_update_(ours.parameters(), model.parameters(), 0.9)
    for s, w, o in zip(stock.module.parameters(), swapped.module.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(w, s, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(o, s, rtol=1e-6, atol=1e-7)
    with pytest.raises(ValueError, match="between 0 and 1"):
        rusttorch.ema_update_(ours.parameters(), model.parameters(), 1.5)
    with pytest.raises(RuntimeError, match="same number of tensors"):
        rusttorch.ema_update_(ours.parameters(), list(model.parameters())[1:], 0.9)


def test_zero_grad_of_a_fused_optimizer():
    params = with_grads(torch.float32)
    optimizer = torch.optim.SGD(params, lr=0.1, fused=True)
    rusttorch.reset_stats()
    with rusttorch.use("foreach"):
        optimizer.zero_grad(set_to_none=False)
    assert all(not p.grad.any() for p in params if p.grad is not None)
    assert rusttorch.stats()["_foreach_zero_"].ran > 0


OVERLAPPING = {
    "twice the same": lambda: (lambda y: [y, y])(torch.ones(20_000)),
    "a part behind": lambda: (lambda y: [y, y[:100]])(torch.ones(70_000)),
    "a part before": lambda: (lambda y: [y[:100], y])(torch.ones(70_000)),
    "shifted": lambda: (lambda y: [y[:-1], y[1:]])(torch.arange(40_001.0)),
}


@pytest.mark.parametrize("make", OVERLAPPING.values(), ids=OVERLAPPING)
def test_members_that_share_memory(make):
    """Stock's order, with any number of threads."""
    threads = torch.get_num_threads()
    calls = {
        "_foreach_mul_": lambda a: (a, 2.0),
        "_foreach_add_": lambda a: (a, 1.5),
        "_foreach_lerp_": lambda a: (a, [torch.zeros_like(t) for t in a], 0.5),
        "_foreach_clamp_max_": lambda a: (a, 0.5),
    }
    try:
        torch.set_num_threads(4)
        for name, arguments in calls.items():
            stock, ours = make(), make()
            getattr(torch, name)(*arguments(stock))
            for _ in range(20):
                ours = make()
                getattr(torch.ops.rusttorch, name)(*arguments(ours))
                assert all(map(torch.equal, stock, ours)), name
    finally:
        torch.set_num_threads(threads)


def test_a_factor_that_is_in_the_list():
    def result(op):
        y = torch.full((5,), 3.0)
        op([y[0], y[1:]], y[0])
        return y

    assert torch.equal(result(torch.ops.rusttorch._foreach_mul_.Tensor), result(torch._foreach_mul_))


@pytest.mark.skipif(not hasattr(torch.Tensor, "refine_names"), reason="named tensors went from torch")
@pytest.mark.filterwarnings("ignore:.*[Nn]amed tensors:UserWarning")
def test_a_named_gradient():
    """Refused, as by stock: it was no list of the kernels, and they read beyond it."""
    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch.full((3,), 4.0).refine_names("n")
    for clip in (torch.nn.utils.clip_grad_norm_, rusttorch.clip_grad_norm_):
        with pytest.raises(RuntimeError, match="not yet supported with named tensors"):
            clip([p], 1.0)
    assert (p.grad.rename(None) == 4).all()


def test_gradients_that_share_memory_are_clipped_as_by_stock():
    def clipped(f):
        y = torch.arange(1.0, 41.0)
        params = [torch.nn.Parameter(torch.empty(30)), torch.nn.Parameter(torch.empty(30))]
        params[0].grad, params[1].grad = y[:30], y[10:]
        f(params, 1.0)
        return y

    torch.testing.assert_close(clipped(rusttorch.clip_grad_norm_), clipped(torch.nn.utils.clip_grad_norm_))


LISTS = {
    "_foreach_add_": (2.0,),
    "_foreach_mul_": (2.0,),
    "_foreach_clamp_min_": (0.5,),
    "_foreach_clamp_max_": (0.5,),
    "_foreach_zero_": (),
}


@pytest.mark.parametrize("args", [*LISTS.items(), ("_foreach_mul_", (torch.tensor(1.0),))], ids=str)
def test_autograd_is_told_of_changes(args):
    """As stock's loop over one tensor after the other tells it; and no tensor of inference mode is changed."""
    name, args = args
    with torch.inference_mode():
        fixed = torch.ones(3)
    for namespace in (torch, torch.ops.rusttorch):
        with rusttorch.use():
            x = torch.ones(3, requires_grad=True)
            h = x * 1
            y = h.square().sum()
            with torch.no_grad():
                getattr(namespace, name)([h], *args)
            assert h._version == 1
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                y.backward()
            with pytest.raises(RuntimeError, match="Inplace update to inference tensor"):
                getattr(namespace, name)([fixed], *args)
        assert torch.equal(fixed, torch.ones(3)) or ON_DEVICE  # where stock's kernels raise when they have run


@pytest.mark.parametrize(
    "call",
    [
        lambda: torch._foreach_clamp_min_([torch.ones(2)], math.nan),
        lambda: torch._foreach_clamp_max_([torch.ones(2)], math.nan),
        lambda: torch._foreach_mul_([], torch.tensor(2.0)),
        lambda: torch._foreach_mul_([torch.ones(4)], torch.full((4,), 2.0)),
        lambda: torch._foreach_mul_([torch.ones(1).expand(4)], torch.tensor(1.0)),
        lambda: torch._foreach_mul_([torch.ones(4).to(torch.float8_e4m3fn)], torch.tensor(1.0)),
        lambda b: torch._foreach_mul_([b, b[0]], b[0]),
    ],
)
def test_hostile_lists_as_stock(call):
    def outcome():
        tensors = [torch.ones(4)] if call.__code__.co_argcount else []
        try:
            return [t.tolist() for t in call(*tensors) or tensors]
        except (RuntimeError, NotImplementedError) as error:
            return type(error), str(error)

    stock = outcome()
    with rusttorch.use():
        assert str(outcome()) == str(stock)  # NaN is not itself


def test_lists_without_memory_in_part():
    x, nothing = torch.ones(2), torch.ones(2, device="meta")
    for op, args in (("_foreach_mul_", (3,)), ("_foreach_add_", (3,))):
        with pytest.raises(RuntimeError, match="on the same device"):
            getattr(torch.ops.rusttorch, op).Scalar([x, nothing], *args)
        getattr(torch.ops.rusttorch, op).Scalar([nothing, nothing], *args)
    with pytest.raises(RuntimeError, match="on the same device"):
        torch.ops.rusttorch._foreach_zero_([nothing, x])
