"""Products of matrices: against float64 and stock, over dtypes, transpositions, sizes, what is added, and threads."""

import itertools
import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import rusttorch
import torch
import torch.nn.functional as F
from cases import AMX, CPU_FLAGS, DTYPES, opcheck, same_error
from torch.autograd import gradcheck, gradgradcheck

OPS = torch.ops.rusttorch
# m, k, n: around the sizes of a tile, of a vector and of a block; few rows and few columns; much to sum.
SIZES = [
    *itertools.product((1, 2, 7, 33), (1, 8, 17), (1, 9, 40)),
    *[(5, 70, 70), (6, 64, 16), (12, 100, 31), (14, 48, 32), (70, 3, 70), (70, 70, 1), (33, 1, 33)],
    *[(4, 2000, 9), (200, 400, 20), (40, 800, 50), (3, 100, 1100), (520, 400, 10), (40, 40, 1030), (20, 800, 530)],
]


def matrix(rows, columns, dtype, layout, seed=0):
    """Of normal numbers; t: transposed, s: strided, b: broadcast along its rows."""
    generator = torch.Generator().manual_seed(seed)
    if layout == "t":
        return matrix(columns, rows, dtype, "c", seed).t()
    if layout == "s":
        return matrix(rows, 2 * columns, dtype, "c", seed)[:, ::2]
    if layout == "b":
        return matrix(1, columns, dtype, "c", seed).expand(rows, columns)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64).to(dtype)


def ran(name):
    return rusttorch.stats().get(name, (0, {}))


def was_taken(name):
    """Every one of them, by a kernel."""
    calls, handed = ran(name)
    return calls > 0 and not handed


def as_right(ours, stock, exact, sizes, summed):
    """No element errs more than twice what stock's largest error is, or what rounding the terms may come to."""
    eps = torch.finfo(ours.dtype).eps
    computed = torch.finfo(torch.float32).eps if ours.dtype.itemsize == 2 else eps
    allowed = eps * exact.abs() + 2 * math.sqrt(summed + 1) * computed * sizes
    error = (ours.double() - exact).abs()
    assert ours.shape == exact.shape and ours.dtype == stock.dtype and ours.stride() == stock.stride()
    worst = (stock.double() - exact).abs().max() if exact.numel() else 0
    assert (error <= torch.maximum(allowed, torch.full_like(allowed, 2 * float(worst)))).all(), (error - allowed).max()


@pytest.fixture(autouse=True)
def counted():
    rusttorch.reset_stats()


# (Unless a test says otherwise.)
pytestmark = pytest.mark.usefixtures("take_all")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layouts", ("cc", "ct", "tc", "tt", "cs", "sc", "cb", "bt"))
def test_mm(dtype, layouts):
    for m, k, n in SIZES:
        a, b = matrix(m, k, dtype, layouts[0]), matrix(k, n, dtype, layouts[1], 1)
        exact, sizes = a.double() @ b.double(), a.double().abs() @ b.double().abs()
        as_right(OPS.mm(a, b), torch.mm(a, b), exact, sizes, k)
    assert was_taken("mm"), rusttorch.stats()


ADDED = {
    "bias": lambda m, n, dtype: matrix(1, n, dtype, "c", 2)[0],
    "matrix": lambda m, n, dtype: matrix(m, n, dtype, "c", 2),
    "column": lambda m, n, dtype: matrix(m, 1, dtype, "c", 2),
    "number": lambda m, n, dtype: matrix(1, 1, dtype, "c", 2)[0, 0],
    "transposed": lambda m, n, dtype: matrix(m, n, dtype, "t", 2),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("added", ADDED)
def test_addmm(dtype, added):
    for (m, k, n), (beta, alpha) in itertools.product(SIZES[-13:], ((1, 1), (0.5, 2), (0, -1))):
        a, b, c = matrix(m, k, dtype, "c"), matrix(k, n, dtype, "t", 1), ADDED[added](m, n, dtype)
        exact = beta * c.double() + alpha * (a.double() @ b.double())
        sizes = (beta * c.double()).abs() + abs(alpha) * (a.double().abs() @ b.double().abs())
        stock = torch.addmm(c, a, b, beta=beta, alpha=alpha)
        as_right(OPS.addmm(c, a, b, beta=beta, alpha=alpha), stock, exact, sizes, k)
        if added == "matrix":
            own, out = c.clone(), torch.full((m, n), math.nan, dtype=dtype)
            assert OPS.addmm_(own, a, b, beta=beta, alpha=alpha) is own
            as_right(own, stock, exact, sizes, k)
            OPS.addmm.out(c, a, b, beta=beta, alpha=alpha, out=out)
            as_right(out, stock, exact, sizes, k)
    assert added == "transposed" or was_taken("addmm"), rusttorch.stats()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_batches(dtype):
    for batch, (m, k, n) in itertools.product(
        (1, 3, 50), ((7, 17, 9), (33, 64, 40), (1, 64, 20), (20, 64, 1), (2, 3, 4))
    ):
        a, b = matrix(batch * m, k, dtype, "c").view(batch, m, k), matrix(batch * n, k, dtype, "c", 1).view(batch, n, k)
        c = matrix(batch * m, n, dtype, "c", 2).view(batch, m, n)
        for left, right in (
            (a, b.mT),
            (a.mT.contiguous().mT, b.mT),
            (a, b.mT.contiguous()),
            (a[:1].expand_as(a), b.mT),
        ):
            exact, sizes = left.double() @ right.double(), left.double().abs() @ right.double().abs()
            as_right(OPS.bmm(left, right), torch.bmm(left, right), exact, sizes, k)
            for added in (c, c[0], c[:, :1], c[0, 0]):
                wanted = 2 * added.double() + 3 * exact
                stock = torch.baddbmm(added, left, right, beta=2, alpha=3)
                ours = OPS.baddbmm(added, left, right, beta=2, alpha=3)
                as_right(ours, stock, wanted, 2 * added.double().abs() + 3 * sizes, k)
    assert was_taken("bmm") and was_taken("baddbmm"), rusttorch.stats()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_vectors(dtype):
    for (m, k), layout in itertools.product(((1, 1), (7, 17), (40, 64), (100, 3), (9, 1000)), "cts"):
        a, x, c = matrix(m, k, dtype, layout), matrix(1, k, dtype, "c", 1)[0], matrix(1, m, dtype, "c", 2)[0]
        for vector in (x, x.repeat_interleave(2)[::2]):
            exact, sizes = a.double() @ x.double(), a.double().abs() @ x.double().abs()
            as_right(OPS.mv(a, vector), torch.mv(a, vector), exact, sizes, k)
            for added in (c, c[0]):
                ours, stock = (op.addmv(added, a, vector, beta=2, alpha=-1) for op in (OPS, torch))
                as_right(ours, stock, 2 * added.double() - exact, 2 * added.double().abs() + sizes, k)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dot(dtype):
    for k in (1, 7, 8, 100, 10_000):
        x, y = (matrix(1, k, dtype, "c", seed)[0] for seed in (0, 1))
        for left, right in ((x, y), (x.repeat_interleave(3)[::3], y), (x, y.repeat_interleave(2)[::2])):
            exact, sizes = left.double() @ right.double(), left.double().abs() @ right.double().abs()
            as_right(OPS.dot(left, right), torch.dot(left, right), exact, sizes, k)
            out = torch.empty((), dtype=dtype)
            assert torch.equal(OPS.dot.out(left, right, out=out), OPS.dot(left, right))
    assert was_taken("dot"), rusttorch.stats()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", "ct")
def test_long_sums(dtype, layout):
    """Of so many terms that a number's own precision would not do."""
    k = 200_000
    for m, n in ((1, 5), (3, 40), (20, 3)):
        a, b = matrix(m, k, dtype, "c").abs(), matrix(k, n, dtype, layout, 1).abs()
        exact = a.double() @ b.double()
        ours = OPS.mm(a, b).double()
        if dtype != torch.float16:  # whose range they leave
            assert ((ours - exact).abs() <= exact * max(torch.finfo(dtype).eps, 5e-6)).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_special_values(dtype):
    """Of a row and a column: they stay there. What is not read is not there."""
    for m, k, n in ((33, 17, 40), (1, 64, 40), (3, 20, 50)):
        for value in (math.nan, math.inf, -math.inf):
            a, b = matrix(m, k, dtype, "c"), matrix(k, n, dtype, "t", 1)
            a[0, 3], b[2, 5] = value, value
            ours, stock = OPS.mm(a, b), torch.mm(a, b)
            assert (ours.isfinite() == stock.isfinite()).all() and (ours.isnan() == stock.isnan()).all()
        nothing = torch.full((m, n), math.nan, dtype=dtype)
        assert OPS.addmm(nothing, a.zero_(), b.zero_(), beta=0).eq(0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_numbers_at_their_ends(dtype):
    """Of alpha and beta: where they are 0 nothing is read; others go through as in stock."""
    nan, b, c = torch.full((3, 20), math.nan, dtype=dtype), matrix(20, 50, dtype, "t"), matrix(3, 50, dtype, "c", 1)
    a = matrix(3, 20, dtype, "c", 2)
    for alpha, beta, left, added in (
        *[(0, 2, nan, c), (1, 0, a, torch.full_like(c, math.nan)), (0, 0, nan, c)],
        *[(1, math.nan, a, c), (True, 3, a, c), (1e-60, 1, a, c)],
    ):
        ours, stock = (op.addmm(added, left, b, alpha=alpha, beta=beta) for op in (OPS, torch))
        tolerance = 2e-2 if dtype.itemsize == 2 else 1e-5
        torch.testing.assert_close(ours, stock, rtol=tolerance, atol=tolerance, equal_nan=True)
    # (MKL's are NaN on Intel's CPUs, which scales a factor.)
    torch.testing.assert_close(OPS.addmm(c, a, b, alpha=math.inf), c + math.inf * torch.mm(a, b))


def test_empty():
    for m, k, n in ((0, 3, 4), (3, 0, 4), (3, 4, 0), (0, 0, 0)):
        a, b, c = torch.randn(m, k), torch.randn(k, n), torch.randn(m, n)
        assert torch.equal(OPS.mm(a, b), torch.mm(a, b))
        assert torch.equal(OPS.addmm(c, a, b, beta=2), torch.addmm(c, a, b, beta=2))
        assert torch.equal(OPS.bmm(a[None], b[None]), torch.bmm(a[None], b[None]))


def test_bad_input_is_refused_as_by_stock():
    x, y = torch.randn(3, 4), torch.randn(5, 6)
    for bad in (
        lambda op: op.mm(x, y),
        lambda op: op.mm(x, y[0]),
        lambda op: op.mm(x, x.t().double()),
        lambda op: op.addmm(y, x, x.t()),
        lambda op: op.addmm(y, x, x.t(), beta=0),
        lambda op: op.bmm(x[None], y[None]),
        lambda op: op.bmm(x[None], x.t().expand(2, 4, 3)),
        lambda op: op.baddbmm(y, x[None], x.t()[None]),
        lambda op: op.mv(x, y[0]),
        lambda op: op.addmv(y, x, x[0]),
        lambda op: op.dot(x[0], y[0]),
        lambda op: op.dot(x, x),
        lambda op: op.dot(x[0], x[0].double()),
    ):
        same_error(lambda bad=bad: bad(rusttorch), lambda bad=bad: bad(torch))


def test_what_is_handed_over():
    x = torch.randn(40, 64)
    for call in (
        lambda: OPS.mm(x.int(), x.t().int()),
        lambda: OPS.mm(x.cfloat(), x.t().cfloat()),
        lambda: OPS.mm.out(x, x.t(), out=torch.empty(40, 40).t()),
        lambda: OPS.mm.out(x, x.t(), out=torch.empty(3)),
        lambda: OPS.addmm(torch.randn(40, 40).t(), x, x.t()),
    ):
        rusttorch.reset_stats()
        call()
        assert all(stats.ran == 0 and stats.handed for stats in rusttorch.stats().values()), rusttorch.stats()


def test_out_may_be_what_is_added():
    x, c = torch.randn(40, 900), torch.randn(40, 40)
    wanted = torch.addmm(c, x, x.t(), beta=0.5)
    torch.testing.assert_close(OPS.addmm.out(c, x, x.t(), beta=0.5, out=c), wanted, rtol=1e-4, atol=1e-4)
    memory = torch.randn(40 * 200).bfloat16()
    strided, vector = memory.view(40, 200)[:, :50], torch.randn(50).bfloat16()
    for name, call in (  # a factor may not: that is stock's to do
        ("mm.out", lambda: OPS.mm.out(x, x.t(), out=x.view(-1)[:1600].view(40, 40))),
        ("mv.out", lambda: OPS.mv.out(strided, vector, out=memory[4000:4040])),
    ):
        call()
        assert ran(name)[0] == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", "ct")
def test_any_number_of_threads_gives_the_same(dtype, layout):
    before = torch.get_num_threads()
    try:
        for m, k, n in (
            (200, 300, 500),
            (2, 300, 3000),
            (3, 390, 3000),
            (300, 900, 40),
            (1, 20000, 65),
            (13, 3000, 129),
            (300, 1024, 16),  # a few columns of many rows
            (600, 128, 32),
            (253, 517, 32),
            (20, 6553, 33),
        ):
            a, b, bias = matrix(m, k, dtype, "c"), matrix(k, n, dtype, layout, 1), matrix(1, n, dtype, "c", 2)[0]
            results = []
            rusttorch.reset_stats()
            for threads in (1, 2, 3, 7):
                torch.set_num_threads(threads)
                results.append(OPS.addmm(bias, a, b, beta=0.3, alpha=1.7))
            assert all(torch.equal(results[0], other) for other in results[1:]), (m, k, n)
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(
    "avx512_bf16" not in CPU_FLAGS
    or "AuthenticAMD" not in CPU_FLAGS
    or not torch.backends.cpu.get_cpu_capability().startswith("AVX512"),
    reason="of an AMD CPU with AVX512-BF16",
)
def test_pairs_are_taken():
    rusttorch._C.take_all(False)
    for m, layout in ((1, "t"), (8, "t"), (40, "t"), (8, "c"), (40, "c")):
        rusttorch.reset_stats()
        OPS.mm(matrix(m, 200, torch.bfloat16, "c"), matrix(200, 100, torch.bfloat16, layout, 1))
        assert ran("mm") == (1, {}), (m, layout)


of_amx = pytest.mark.skipif(not AMX, reason="of a CPU with AMX")


@of_amx
def test_squares_are_taken():
    rusttorch._C.take_all(False)
    for m, layout in ((1, "t"), (8, "t"), (40, "t"), (1, "c"), (3, "c"), (8, "c"), (40, "c")):
        rusttorch.reset_stats()
        OPS.mm(matrix(m, 200, torch.bfloat16, "c"), matrix(200, 100, torch.bfloat16, layout, 1))
        assert ran("mm") == (1, {}), (m, layout)


@pytest.mark.parametrize("layouts", ("cc", "ct", "tc", "tt"))
def test_squares_and_what_is_left_of_them(layouts):
    """Sizes around 16 and 32 along each dim, in bfloat16: nothing beside a factor is read as a number (it is NaN).

    Stock is no judge of it: oneDNN's products with AMX are NaN there.
    """
    for m, k, n in itertools.product(
        (4, 15, 16, 17, 31, 32, 33, 100), (31, 32, 33, 62, 65), (1, 15, 16, 17, 31, 33, 70)
    ):
        factors = []
        for rows, columns, layout, seed in ((m, k, layouts[0], 0), (k, n, layouts[1], 1)):
            x = matrix(rows, columns, torch.bfloat16, "c", seed)
            beside = torch.full((rows + 40, columns + 40), math.nan, dtype=x.dtype)
            beside = beside if layout == "c" else beside.t().contiguous().t()
            inside = beside[20 : 20 + rows, 20 : 20 + columns]
            factors.append(inside.copy_(x))
        a, b = factors
        exact, sizes = a.double() @ b.double(), a.double().abs() @ b.double().abs()
        as_right(OPS.mm(a, b), exact.to(a.dtype), exact, sizes, k)


@of_amx
def test_squares_and_those_of_onednn():
    """Both set the shape of AMX's registers: products of several heights by one and the other, in several threads."""

    def work(seed):
        for k in range(60):
            m = (5, 16, 17, 33, 40)[(k // 4 + seed) % 5]  # two of a height, one after the other
            a, b = matrix(m, 64, torch.bfloat16, "c", k), matrix(64, 48, torch.bfloat16, "c", seed)
            torch.testing.assert_close(
                (OPS.mm, torch.mm)[k % 2](a, b).double(), a.double() @ b.double(), rtol=0.01, atol=0.01
            )

    with ThreadPoolExecutor(3) as threads:
        list(threads.map(work, range(3)))
    assert ran("mm") == (90, {})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_tall_factor_times_few_columns(dtype):
    """A classifier's head over more rows than a thread may have of few numbers."""
    a, b = matrix(70_000, 128, dtype, "c"), matrix(128, 10, dtype, "t", 1)
    exact = a.double() @ b.double()
    eps = torch.finfo(torch.float32 if dtype.itemsize == 2 else dtype).eps
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        error = (OPS.mm(a, b).double() - exact).abs()
    finally:
        torch.set_num_threads(before)
    assert (error <= torch.finfo(dtype).eps * exact.abs() + 128 * eps * exact.abs().max()).all()


def double(*sizes):
    return torch.randn(*sizes, dtype=torch.float64, requires_grad=True)


DIFFERENTIABLE = {
    "mm": (OPS.mm, lambda: (double(3, 4), double(4, 5))),
    "bmm": (OPS.bmm, lambda: (double(2, 3, 4), double(2, 4, 5))),
    "addmm": (lambda *args: OPS.addmm(*args, beta=2, alpha=3), lambda: (double(5), double(3, 4), double(4, 5))),
    "baddbmm": (lambda *args: OPS.baddbmm(*args, beta=2), lambda: (double(3, 1), double(2, 3, 4), double(2, 4, 5))),
    "mv": (OPS.mv, lambda: (double(3, 4), double(4))),
    "dot": (OPS.dot, lambda: (double(4), double(4))),
    "addmv": (lambda *args: OPS.addmv(*args, alpha=3), lambda: (double(3), double(3, 4), double(4))),
}


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_derivatives(name):
    op, make = DIFFERENTIABLE[name]
    leaves = make()
    assert gradcheck(op, leaves) and gradgradcheck(op, leaves)
    for k in range(len(leaves)):
        fixed = [x.detach().requires_grad_(i == k) for i, x in enumerate(leaves)]
        assert gradcheck(op, fixed)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_opcheck(name):
    _, make = DIFFERENTIABLE[name]
    opcheck(getattr(OPS, name).default, make())


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_vmap(name):
    op, make = DIFFERENTIABLE[name]
    leaves = [torch.stack([x.detach(), 2 * x.detach()]) for x in make()]
    wanted = torch.stack([op(*(x[i] for x in leaves)) for i in range(2)])
    torch.testing.assert_close(torch.func.vmap(op)(*leaves), wanted)


def test_vmap_refuses_to_write_what_is_not_batched():
    c, a, b = torch.zeros(3, 5), torch.randn(2, 3, 4), torch.randn(2, 4, 5)
    with pytest.raises(RuntimeError, match="writes a tensor that is not batched"):
        torch.func.vmap(lambda a, b: OPS.addmm_(c, a, b))(a, b)
    torch.testing.assert_close(torch.func.vmap(OPS.addmm_)(c.expand(2, 3, 5).clone(), a, b), a @ b)


def test_compile():
    x, w, b = torch.randn(6, 8), torch.randn(5, 8), torch.randn(5)

    def f(x, w, b):
        return rusttorch.addmm(b, x, w.t()) + rusttorch.mm(x, w.t())

    torch.testing.assert_close(torch.compile(f, fullgraph=True, backend="aot_eager")(x, w, b), f(x, w, b))


def test_autocast():
    x, y = torch.randn(40, 64), torch.randn(64, 40)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert OPS.mm(x, y).dtype == torch.mm(x, y).dtype == torch.bfloat16
        assert OPS.mv(x, y[:, 0]).dtype == torch.mv(x, y[:, 0]).dtype


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_made_of_products_is_swapped(dtype):
    x, w, b = (matrix(*size, dtype, "c", k) for k, size in enumerate(((33, 70), (40, 70), (1, 40))))
    calls = {
        "addmm": lambda: F.linear(x, w, b[0]),
        "mm": lambda: F.linear(x, w),
        "bmm": lambda: torch.einsum("bij,bkj->bik", x.view(3, 11, 70), w.view(4, 10, 70)[:3]),
        "mv": lambda: x @ w[0],
    }
    for name, call in calls.items():
        stock = call()
        rusttorch.reset_stats()
        with rusttorch.use("matmul"):
            ours = call()
        assert ran(name) == (1, {}), (name, rusttorch.stats())
        torch.testing.assert_close(
            ours, stock, rtol=2e-2 if dtype.itemsize == 2 else 1e-5, atol=1e-1 if dtype.itemsize == 2 else 1e-4
        )


def test_a_network_trains_in_sixteen_bits():
    """Its losses and gradients are those of float32, as near as bfloat16 comes."""
    torch.manual_seed(0)
    x, y = torch.randn(64, 32), torch.randint(10, (64,))
    model = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.GELU(), torch.nn.Linear(64, 10))
    losses = []
    for swap, dtype in ((False, torch.float32), (True, torch.bfloat16)):
        with rusttorch.use() if swap else torch.enable_grad(), torch.autocast("cpu", dtype, enabled=swap):
            loss = F.cross_entropy(model(x), y)
        loss.backward()
        losses.append((loss.detach(), [p.grad.clone() for p in model.parameters()]))
        model.zero_grad()
    torch.testing.assert_close(losses[0][0], losses[1][0].float(), rtol=1e-2, atol=1e-2)
    for a, b in zip(losses[0][1], losses[1][1], strict=True):
        assert (a - b).norm() < 0.05 * a.norm()
