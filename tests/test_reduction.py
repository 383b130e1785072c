import itertools
import math

import families
import pytest
import rusttorch
import torch
from cases import DTYPES, INTEGERS, ON_DEVICE, Case, functional_ops
from torch import ops

# Over the last dim, or all. "p": sums that do not cancel, so that an error can be told in ulp.
CASES = [
    Case("sum", "p"),
    Case("sum.dim_IntList", "p", ([-1],)),
    Case("mean", "p"),
    Case("mean.dim", "p", ([-1], True)),
    Case("prod", "u"),
    Case("prod.dim_int", "u", (-1,)),
    Case("max", exact=True),
    Case("max.dim", args=(-1,), exact=True),
    Case("min", exact=True),
    Case("min.dim", args=(-1,), exact=True),
    Case("amax", args=([-1],), exact=True),
    Case("amin", args=([-1], True), exact=True),
    Case("argmax", args=(-1,), exact=True),
    Case("argmin", exact=True),
    Case("any", exact=True),
    Case("any.dim", args=(-1,), exact=True),
    Case("any.dims", args=([-1],), exact=True),
    Case("all", exact=True),
    Case("all.dim", args=(-1, True), exact=True),
    Case("all.dims", args=([-1],), exact=True),
    Case("var.correction", args=([-1],)),
    Case("std.correction", args=([-1],), kwargs={"correction": 0}),
    Case("var_mean.correction", args=([-1],)),
    Case("linalg_vector_norm"),
    Case("linalg_vector_norm", args=(1, [-1])),
    Case("linalg_vector_norm", args=(math.inf, [-1])),
    Case("norm.Scalar"),
    Case("norm.ScalarOpt_dim", args=(None, [-1])),
    Case("logsumexp", args=([-1],)),
]
DIFFERENTIABLE = [case for case in CASES if not case.op.startswith(("arg", "any", "all"))]


def test_table_is_complete():
    family = {op.name for op in rusttorch.ops() if op.family == "reduction"}
    assert {case.op for case in CASES} == family.intersection(functional_ops())


# Stock's and ours warn of the variance of one number. (Through torch.ops torch printed that, up to 2.14.)
test_layouts = pytest.mark.filterwarnings("ignore:.*degrees of freedom is <= 0")(families.layouts_test(CASES))
test_derivatives = families.derivatives_test(DIFFERENTIABLE)
test_opcheck = families.opcheck_test(CASES)
test_compile = families.compile_test(CASES)
test_vmap = families.vmap_test(CASES)
test_swapped = families.swapped_test(DIFFERENTIABLE)

# What is called with one dim, and what with several: op, whether it is exact, its further arguments.
ONE_DIM = [("max.dim", True), ("min.dim", True), ("argmax", True), ("argmin", True), ("prod.dim_int", False)]
DIMS = [
    *[(op, True) for op in ("amax", "amin", "any.dims", "all.dims")],
    *[(op, False) for op in ("sum.dim_IntList", "mean.dim", "var.correction", "std.correction", "logsumexp")],
    *[("var_mean.correction", False), ("linalg_vector_norm", False)],
]
FLOATS_ONLY = ("mean", "var", "std", "logsumexp", "linalg_vector_norm")


def call(namespace, op, x, dims):
    name, _, overload = op.partition(".")
    f = getattr(getattr(namespace, name), overload or "default")
    result = f(x, 2, dims) if name == "linalg_vector_norm" else f(x, dims)
    return result if isinstance(result, tuple) else (result,)


def compare(op, exact, x, dims):
    """Ours against stock to the bit, or against float64: at most twice stock's largest error, and one ulp."""
    if x.dtype == torch.bool and not op.startswith(("sum", "any", "all")):
        return
    if not x.is_floating_point() and op.startswith(FLOATS_ONLY):
        return
    ours, stock = call(ops.rusttorch, op, x, dims), call(ops.aten, op, x, dims)
    references = stock if exact or not x.is_floating_point() else call(ops.aten, op, x.double(), dims)
    for mine, theirs, reference in zip(ours, stock, references, strict=True):
        assert mine.dtype == theirs.dtype
        assert mine.shape == theirs.shape
        assert mine.stride() == theirs.stride()
        if op.startswith("var_mean") and mine is ours[1] and x.isinf().any():
            continue  # the mean: infinite, which stock makes NaN of where the infinity is not the last
        assert torch.equal(mine.isnan(), theirs.isnan()), (op, x.shape, dims)
        if reference is theirs or mine.numel() == 0:
            assert torch.equal(mine.nan_to_num(), theirs.nan_to_num()), (op, x.shape, dims)
            continue
        known = reference.isfinite() & theirs.isfinite()
        error, allowed = ((y.double() - reference)[known].abs() for y in (mine, theirs))
        if known.any():
            size = reference[known].abs().max()
            # A device's sum that cancels has the roundings of its terms, in an order of its own.
            if ON_DEVICE and op.startswith(("sum", "mean", "var_mean")) and x.numel():
                largest = x[x.isfinite()].double().abs().max()
                size = max(size, largest if op.startswith("sum") else largest * reference.numel() / x.numel())
            ulp = torch.finfo(mine.dtype).eps * size
            # In float64 the reference is stock itself, whose variance of 20,000 numbers errs by 900 ulp. A product, and
            # a sum that cancels, are not the better for stock's being lucky; the mean of a million normal numbers is a
            # thousandth of them.
            extra = (
                1000 if mine.dtype == torch.float64 else 16 if op.startswith(("prod", "sum", "mean", "var_mean")) else 1
            )
            bound = 2 * allowed.max() + extra * ulp
            assert error.max() <= bound, (op, x.shape, dims, error.max() / ulp, allowed.max() / ulp)


def data(shape, dtype, seed=0):
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    if dtype == torch.bool:
        return torch.rand(shape, generator=generator) < 0.3
    if not dtype.is_floating_point:
        return torch.randint(-9, 9, shape, generator=generator, dtype=dtype)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype", (*DTYPES, *INTEGERS, torch.bool), ids=str)
@pytest.mark.parametrize("size", [1, 2, 15, 16, 17, 31, 33, 255, 257, 5000])
@pytest.mark.filterwarnings("ignore:.*degrees of freedom is <= 0")
def test_sizes(size, dtype):
    """Along rows of a size and along columns of one; and rows and columns that are not whole vectors."""
    for shape, dim in (((size,), 0), ((7, size), 1), ((size, 7), 0), ((3, size, 21), 1), ((2, size, 130), 1)):
        x = data(shape, dtype)
        for op, exact in ONE_DIM:
            compare(op, exact, x, dim)
        for op, exact in DIMS:
            compare(op, exact, x, [dim])


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32), ids=str)
@pytest.mark.parametrize("shape", [(20_011,), (3, 20_011), (20_011, 5), (20_011, 4), (2, 9_001, 3)], ids=str)
def test_in_parts(shape, dtype):
    """Runs so long that a device's threads share them; the parts are joined in two ways, which the emulation takes one
    after the other, and which give the same bits."""
    x = data(shape, dtype)
    dim = shape.index(max(shape))
    calls = [(op, exact, dim) for op, exact in ONE_DIM] + [(op, exact, [dim]) for op, exact in DIMS]
    for op, exact, dims in calls:
        compare(op, exact, x, dims)
        if x.is_floating_point() or not op.startswith(FLOATS_ONLY):
            same_bits(lambda op=op, dims=dims: call(ops.rusttorch, op, x, dims))
    for order in (1, math.inf) if x.is_floating_point() else ():
        same_bits(lambda order=order: [ops.rusttorch.linalg_vector_norm(x, order, [dim])])


def same_bits(f):
    for first, second in zip(f(), f(), strict=True):
        assert torch.equal(first, second)


def test_sums_of_integers_are_exact():
    x = torch.tensor([2**60 + 1, 2**59, 1])
    assert rusttorch.sum(x) == x.sum() == 2**60 + 2**59 + 2


def test_logsumexp_of_infinity_beside_large_numbers():
    """In any order, and in runs that several threads share."""
    parts = [torch.full((40_000,), 1000.0), torch.tensor([math.inf]), torch.full((40_000,), -1000.0)]
    for order in itertools.permutations(parts):
        x = torch.cat(order)
        assert rusttorch.logsumexp(x, 0) == math.inf
        assert rusttorch.logsumexp(torch.stack([x, x.where(x < math.inf, math.nan)], 1), 0)[1].isnan()


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.int64), ids=str)
@pytest.mark.filterwarnings("ignore:.*degrees of freedom is <= 0")
def test_of_nothing(dtype):
    for op, exact in DIMS:
        if op not in ("amax", "amin"):  # which raise, see test_errors_are_stock_s
            compare(op, exact, data((4, 0), dtype), [1])
        compare(op, exact, data((4, 0), dtype), [0])


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.int64), ids=str)
def test_every_dim_of_a_permuted_tensor(dtype):
    base = data((5, 6, 7, 19), dtype)
    for order in itertools.permutations(range(4)):
        x = base.permute(order)
        for dim in range(4):
            for op, exact in ONE_DIM:
                compare(op, exact, x, dim)
        for dims in ([0], [1], [2], [3], [0, 1], [1, 2], [0, 3], [2, 3], [0, 2], [1, 2, 3], [0, 1, 2, 3]):
            for op, exact in DIMS:
                compare(op, exact, x, dims)


@pytest.mark.parametrize("shape", [(2**24 + 1,), (1_000_000, 3), (3, 1_000_000)], ids=str)
def test_long(shape):
    x = data(shape, torch.float32)
    for dims in ([0], [len(shape) - 1]):
        for op, exact in DIMS:
            compare(op, exact, x, dims)
        for op, exact in ONE_DIM:
            compare(op, exact, x, dims[0])
    # Positive, so that every rounding of a long sum goes the same way.
    total = rusttorch.sum(x.abs()).double()
    reference = x.double().abs().sum()
    assert (total - reference).abs() <= (x.abs().sum().double() - reference).abs() + 1e-7 * reference


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("special", [math.nan, math.inf, -math.inf, 0.0, -0.0])
def test_ties_and_special_values(special, dtype):
    """Which index, among equals and among NaNs; whether NaN and infinity come through."""
    for size, at in itertools.product((20, 300, 5000), ((), (3,), (3, 4), (17, 2), (0, 19))):
        x = data((size,), dtype).round()
        x[list(at)] = special
        for y, dim in ((x, 0), (x.repeat(9, 1), 1), (x.repeat(9, 1).t().contiguous(), 0)):
            for op, exact in ONE_DIM:
                if op != "prod.dim_int":
                    compare(op, exact, y, dim)
            for op, exact in DIMS:
                compare(op, exact, y, [dim])
    for value in (math.inf, -math.inf, math.nan):
        full = torch.full((40, 33), value, dtype=dtype)
        for dim in (0, 1):
            for op, exact in ONE_DIM + DIMS:
                compare(op, exact, full, dim if (op, exact) in ONE_DIM else [dim])


def test_threads_agree():
    """Several threads make of a tensor what one makes of it, to the bit."""
    x = data((300_001,), torch.float64)
    x[[70_000, 250_000]] = x.max() + 1
    before = torch.get_num_threads()
    square = x[:300_000].reshape(300, 1000)
    for f in (rusttorch.sum, rusttorch.argmax, rusttorch.var, rusttorch.amax, rusttorch.any, rusttorch.logsumexp):
        whole = [(x,), (square,)] if f is not rusttorch.logsumexp else [(x, 0)]
        for args in (
            *whole,
            (x.repeat(2).reshape(2, -1), 1),
            (x.repeat(5).reshape(5, -1), 1),
            (square, 0),
            (square, 1),
        ):
            results = []
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                results.append(f(*args))
            assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    "f",
    [
        lambda m: m.max(torch.empty(0)),
        lambda m: m.argmax(torch.empty(0)),
        lambda m: m.amax(torch.empty(3, 0), [1]),
        lambda m: m.sum(torch.ones(3, 4), [2]),
        lambda m: m.sum(torch.ones(3, 4), [0, 0]),
        lambda m: m.sum(torch.ones(3, 4), [0, -2]),
        lambda m: m.max(torch.ones(3, 4), -3),
        lambda m: m.mean(torch.ones(3, dtype=torch.int64)),
        lambda m: m.logsumexp(torch.ones(3), [1]),
        lambda m: m.var(torch.ones(3, dtype=torch.int64)),
        lambda m: m.sum(torch.ones(3), dtype="float"),
    ],
)
def test_errors_are_stock_s(f):
    with pytest.raises((RuntimeError, IndexError, TypeError)) as stock:
        f(torch)
    with pytest.raises(stock.type) as ours:
        f(rusttorch)
    assert str(ours.value).split("\n")[0][:40] == str(stock.value).split("\n")[0][:40]


def test_dtype():
    x = data((50, 60), torch.float32)
    assert rusttorch.sum(x, dtype=torch.float64).equal(x.sum(dtype=torch.float64))
    assert rusttorch.mean(x, [0], dtype=torch.float64).equal(x.mean(0, dtype=torch.float64))
    assert rusttorch.prod(x.int(), 1).equal(x.int().prod(1))


@pytest.mark.parametrize("of", (torch.bool, torch.uint8, torch.int32, torch.int64, torch.float32), ids=str)
@pytest.mark.parametrize("asked", (torch.bool, torch.int32, torch.int64, torch.float32), ids=str)
def test_dtypes_that_are_asked_for(of, asked):
    x = torch.tensor([[0, 1, 1], [1, 0, 1]]).to(of)
    for f in (
        lambda m: m.sum(x, dtype=asked),
        lambda m: m.sum(x, 1, dtype=asked),
        lambda m: m.prod(x, dtype=asked),
        lambda m: m.prod(x, 1, dtype=asked),
        lambda m: m.cumsum(x, 1, dtype=torch.int16 if asked == torch.bool else asked),  # stock has none of bools
    ):
        ours, stock = f(rusttorch), f(torch)
        assert ours.dtype == stock.dtype and ours.equal(stock)


@pytest.mark.parametrize("dim", [0, -1])
@pytest.mark.parametrize("case", [c for c in DIFFERENTIABLE if c.args], ids=str)
@pytest.mark.filterwarnings("ignore::UserWarning")  # of a variance of one number
def test_derivative_of_a_number_by_its_only_dim(case, dim):
    """Found by tests/test_property.py: a dim of -1 was looked up in no dims."""
    args = [[dim] if a == [-1] else dim if a == -1 else a for a in case.args]
    slopes = []
    for f in (case.overload("rusttorch"), case.stock()):
        x = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
        y = f(x, *args, **case.kwargs)
        slopes.append(torch.autograd.grad(y[0] if isinstance(y, tuple) else y, x)[0])
    torch.testing.assert_close(*slopes, equal_nan=True)


def test_derivative_of_a_product_of_nothing():
    """Found by tests/test_property.py."""
    x = torch.empty(3, 0, dtype=torch.float64, requires_grad=True)
    for y in (rusttorch.prod(x), rusttorch.prod(x, 1).sum()):
        assert torch.autograd.grad(y, x)[0].shape == x.shape


def test_slopes_of_a_norm_below_1_at_zero():
    """Infinite, and 0 in stock."""
    x = torch.tensor([0.0, 1, -4], dtype=torch.float64, requires_grad=True)
    for p in (0.3, 0.5, 0.9):
        grads = [torch.autograd.grad(f(x, p), x)[0] for f in (torch.linalg.vector_norm, rusttorch.linalg_vector_norm)]
        torch.testing.assert_close(*grads)


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
def test_variance_of_more_numbers_than_16_bits_can_count(dtype):
    x = data((70_000,), dtype).requires_grad_()
    for name in ("var", "std"):
        ours, stock = (torch.autograd.grad(getattr(m, name)(x), x)[0] for m in (rusttorch, torch))
        torch.testing.assert_close(ours, stock, rtol=2e-2, atol=1e-7)


@pytest.mark.parametrize(("p", "x"), [(1.5, (3, -4, 0)), (3, (0, 0)), (2, (0, 0)), (3, (3, -4, 0))])
def test_second_derivatives_of_a_norm_at_zero(p, x):
    """A zero's own may be infinite, and NaN in stock; the others' are not touched by it."""
    found = []
    for f in (torch.linalg.vector_norm, rusttorch.linalg_vector_norm):
        leaf = torch.tensor(x, dtype=torch.float64, requires_grad=True)
        grad = torch.autograd.grad(f(leaf, p), leaf, create_graph=True)[0]
        found.append(torch.autograd.grad(grad.square().sum(), leaf)[0])
    torch.testing.assert_close(found[1], found[0].nan_to_num(0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("order", [1, 2, torch.inf])
def test_norms_of_columns_of_16_bits(order, dtype):
    """Of which a device's threads take two each."""
    x = torch.randn(70, 6).to(dtype)
    ours, exact = rusttorch.linalg_vector_norm(x, order, 0), torch.linalg.vector_norm(x.double(), order, 0)
    torch.testing.assert_close(ours.double(), exact, rtol=torch.finfo(dtype).eps, atol=0)
