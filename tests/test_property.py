"""Random ops on random tensors, and random sequences of ops in and out of use().

pytest tests/test_property.py takes a few hundred cases; with --hypothesis-profile=full, 20,000 of each.
"""

import contextlib
import math
import threading

import families
import pytest
import rusttorch
import test_activation
import test_loss
import test_pointwise
import test_reduction
import test_scan
import test_softmax
import torch
import torch.nn.functional as F
from cases import DTYPES, INTEGERS, OWN, clone, first, values

pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

TABLES = (test_activation, test_loss, test_pointwise, test_reduction, test_scan, test_softmax)
CASES = [case for table in TABLES for case in table.CASES]
# What a wrong size or a wrong dtype raises.
ERRORS = (RuntimeError, IndexError, TypeError, NotImplementedError)


@st.composite
def layouts(draw, shape):
    """A function that makes a tensor of the shape, from one that makes a contiguous one of any shape."""
    order = draw(st.permutations(range(len(shape))))
    steps = [draw(st.sampled_from((1, 1, 1, 2, 3))) for _ in shape]
    before = [draw(st.sampled_from((0, 0, 1))) for _ in shape]
    expanded = [draw(st.integers(0, 9)) == 0 for _ in shape]
    offset = draw(st.sampled_from((0, 0, 1, 5)))

    def made(make):
        room = [1 if e else b + s * n for s, n, b, e in zip(steps, shape, before, expanded, strict=True)]
        base = make((offset + torch.Size(room).numel(),))[offset:].view([room[d] for d in order])
        x = base.permute([order.index(d) for d in range(len(shape))])
        for d, n in enumerate(shape):
            if expanded[d]:
                x = x.expand([n if k == d else -1 for k in range(x.dim())])
            else:
                x = x[(slice(None),) * d + (slice(before[d], None, steps[d]),)]
        return x

    return made


@st.composite
def calls(draw):
    """A case of the tables and tensors for it."""
    case = draw(st.sampled_from(CASES))
    dtype = draw(st.sampled_from(DTYPES + (INTEGERS if case.integers else ())))
    sizes = st.one_of(st.integers(0, 9), st.sampled_from((1, 16, 33, 130)))
    shape = draw(st.lists(sizes, max_size=4))
    while math.prod(shape) > 20_000:
        shape[shape.index(max(shape))] = 3
    tensors = []
    for k, letter in enumerate(case.domain):
        # All but the first may be broadcast, where the op has said what that is to mean.
        broadcasts = k > 0 and case in test_pointwise.CASES and draw(st.integers(0, 4)) == 0
        own = [1 if broadcasts and draw(st.booleans()) else n for n in shape]
        own = [] if letter == "s" else own[draw(st.integers(0, len(own))) :] if broadcasts else own
        seed = draw(st.integers(0, 2**20))
        tensors.append(draw(layouts(own))(lambda s, letter=letter, seed=seed: values(letter, s, dtype, seed)))
    return case, tensors


@contextlib.contextmanager
def using_threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def outcome(f, case, tensors):
    """The result or the exception."""
    try:
        return first(families.run(f, case, tensors))
    except ERRORS as error:
        return error


@given(calls(), st.sampled_from((1, 2, 3)), st.booleans())
@settings(deadline=None, suppress_health_check=list(HealthCheck))
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_as_stock(call, thread_count, requires_grad):
    case, tensors = call
    with using_threads(thread_count):
        stock = outcome(case.stock(), case, tensors)
        op = case.overload("rusttorch")
        ours = outcome(op, case, tensors)
        if isinstance(stock, Exception) or isinstance(ours, Exception):
            assert type(ours) is type(stock), (ours, stock)
            return
        if ours.dtype.is_floating_point:
            families.assert_as_right(ours, stock, case, tensors)
        else:
            assert ours.dtype == stock.dtype
            torch.testing.assert_close(ours, stock, rtol=0 if case.exact else 1e-6, atol=0)
        inplace = case.overload("rusttorch", "inplace")
        x = tensors[0]
        expanded = any(step == 0 and n > 1 for step, n in zip(x.stride(), x.shape, strict=True))
        if inplace is not None and not expanded and (ours.shape, ours.dtype) == (x.shape, x.dtype):
            written = clone([x])[0]
            families.run(inplace, case, [written, *tensors[1:]])
            torch.testing.assert_close(written, ours, rtol=0, atol=0, equal_nan=True)
        # aten has no derivative for all of its backwards.
        differentiable = case.op not in OWN and not case.op.endswith("_backward") and stock.is_floating_point()
        if requires_grad and differentiable and x.dtype == torch.float64:
            gradients(case, op, tensors)


def gradients(case, op, tensors):
    """Ours by rusttorch's own formulas, stock's by aten's."""
    results = []
    for f in (op, case.stock()):
        leaves = families.requiring_grad(op, case, [t.detach().clone() for t in tensors])
        y = first(families.run(f, case, leaves))
        if not y.requires_grad:
            return
        if case.op.startswith("std") and (y < 1e-12).any():
            return  # of equal numbers: 0, or what rounding leaves, and the slope is over it
        results.append(torch.autograd.grad(y.sum(), [t for t in leaves if t.requires_grad], allow_unused=True))
    for ours, stock in zip(*results, strict=True):
        if ours is not None and stock is not None:
            torch.testing.assert_close(ours, stock, rtol=1e-8, atol=1e-8, equal_nan=True)


# Steps that enlarge no rounding: a layer norm of what is nearly constant would.
STEPS = {
    "mish": F.mish,
    "gelu": F.gelu,
    "silu_": lambda x: F.silu(x.clone(), inplace=True),
    "softmax": lambda x: torch.softmax(x, -1),
    "layer_norm": lambda x: F.layer_norm(x, x.shape[-1:], eps=1),
    "add": lambda x: x + 1.5,
    "mul": lambda x: x * x.mean(),
    "transpose": lambda x: x.transpose(0, -1),
    "slice": lambda x: x[:, ::2] if x.shape[1] > 2 else x,
    "amax": lambda x: x - x.amax(0),
    "cumsum": lambda x: x.cumsum(1) / x.shape[1],
    "clamp": lambda x: x.clamp(-2, 2),
    "contiguous": lambda x: x.contiguous(),
    "sigmoid": torch.sigmoid,
    "where": lambda x: torch.where(x > 0, x, x / 2),
}
FAMILIES = sorted({op.family for op in rusttorch.ops() if op.swappable})


@pytest.fixture
def caller():
    """Another thread, which calls all the while, whatever is swapped: it gets stock's results or ours."""
    x = values("n", (7, 9), torch.float64, 0)
    expected = {name: step(x) for name, step in STEPS.items()}
    failures, done = [], threading.Event()

    def call():
        while not done.is_set():
            for name, step in STEPS.items():
                if not torch.allclose(step(x), expected[name], rtol=1e-9, atol=1e-9):
                    failures.append(name)

    thread = threading.Thread(target=call)
    thread.start()
    yield
    done.set()
    thread.join()
    assert not failures


@given(
    st.lists(st.tuples(st.sampled_from(sorted(STEPS)), st.sampled_from((None, "", *FAMILIES))), min_size=1, max_size=8),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.integers(0, 2**20),
)
@settings(deadline=None, suppress_health_check=list(HealthCheck))
def test_sequences_in_and_out_of_use(caller, steps, shape, seed):
    """Each step outside use() (None), in use() of all ("") or of a family: results and gradients are stock's."""
    x = values("n", shape, torch.float64, seed)
    results = []
    for swapped in (False, True):
        leaf = x.clone().requires_grad_()
        y = leaf
        for name, family in steps:
            used = swapped and family is not None
            with rusttorch.use(*filter(None, [family])) if used else contextlib.nullcontext():
                y = STEPS[name](y)
        with rusttorch.use() if swapped else contextlib.nullcontext():
            results.append((y.detach(), torch.autograd.grad(y.square().sum(), leaf)[0]))
    assert not rusttorch.swap._swapped.any()
    for ours, stock in zip(*reversed(results), strict=True):
        torch.testing.assert_close(ours, stock, rtol=1e-9, atol=1e-9)
