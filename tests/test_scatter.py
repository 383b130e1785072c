"""Elements and slices that are added where an index says: against float64, and in 32 and 64 bits stock's to the bit."""

import pytest
import rusttorch
import torch
from cases import opcheck, same_error

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
NUMBERS = (*FLOATS, torch.int32, torch.int64)
OPS = torch.ops.rusttorch
ATEN = torch.ops.aten


def draw(shape, dtype):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (x if dtype.is_floating_point else 100 * x).to(dtype)


def ids(n, rows, dtype=torch.int64):
    return torch.randint(0, rows, (n,), generator=torch.Generator().manual_seed(1), dtype=dtype)


SHAPES = [(50, 16), (7, 33), (20, 3, 40), (6, 50, 1), (5, 4, 3, 2), (40,), (1, 1), (3, 0, 5)]
LAYOUTS = {
    "contiguous": lambda x: x,
    "transposed": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
    "misaligned": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view_as(x),
    "sliced": lambda x: torch.cat([x, x], -1)[..., : x.shape[-1]],
}


def check(name, x, *arguments):
    """All forms of an op: in 32 and 64 bits stock's to the bit, but index_put's, which adds in another order."""
    ours, stock = (getattr(m, name)(x, *arguments) for m in (OPS, ATEN))
    if x.is_floating_point() and x.numel() and (x.element_size() == 2 or name == "_index_put_impl"):
        exact = getattr(ATEN, name)(
            *(a.double() if torch.is_tensor(a) and a.is_floating_point() else a for a in (x, *arguments))
        )
        error, allowed = ((y.double() - exact).abs().max() for y in (ours, stock))
        assert error <= 2 * allowed + 2 * torch.finfo(x.dtype).eps * exact.abs().max()
    else:
        assert torch.equal(ours, stock)
    assert ours.dtype == stock.dtype and ours.stride() == stock.stride()
    self = LAYOUTS["misaligned"](x)
    assert getattr(OPS, f"{name}_")(self, *arguments) is self
    assert torch.equal(self, ours)
    if hasattr(getattr(OPS, name), "out"):
        out = torch.empty_like(x)
        assert getattr(OPS, name).out(x, *arguments, out=out) is out
        assert torch.equal(out, ours)


@pytest.mark.parametrize("dtype", NUMBERS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_dim(shape, dtype):
    x = draw(shape, dtype)
    rusttorch.reset_stats()
    for dim, layout in ((d, layout) for d in range(-len(shape), len(shape)) for layout in LAYOUTS.values()):
        sizes = list(shape)
        sizes[dim] = 70
        source, index = layout(draw(sizes, dtype)), ids(70, max(1, shape[dim]))
        if shape[dim] == 0:
            source, index = source.narrow(dim, 0, 0), index[:0]
        check("index_add", x, dim, index, source)
        check("scatter_add", x, dim, layout(ids(source.numel(), max(1, shape[dim])).view_as(source)), source)
        if not source.numel():
            continue
        below = index - shape[dim] * (index % 2)  # from the end
        place = [None] * (dim % len(shape))
        check("_index_put_impl", x, [*place, below], source, True)
        rows = index.view(7, 10)
        values = source.unflatten(dim, (7, 10))
        check("_index_put_impl", x, [*place, layout(rows)], values, True)
        if 0 <= dim < len(shape) - 1:  # two neighbouring dims
            index, rows = ids(10, shape[dim + 1]), ids(7, shape[dim])[:, None]
            values = draw((*shape[:dim], 7, 10, *shape[dim + 2 :]), dtype)
            check("_index_put_impl", x, [*place, rows, index], layout(values), True)
            check(
                "_index_put_impl", x, [*place, rows[:1, 0].to(torch.int32), index], layout(values.select(dim, 0)), True
            )
    ran = {name: stats.ran for name, stats in rusttorch.stats().items()}
    if dtype in (torch.float32, torch.float64, torch.int32, torch.int64) and x.numel():
        assert ran["index_add"] == ran["index_add_"] == ran["index_add.out"] == 8 * len(shape)
        along_last = sum(torch.Size(shape[d + 1 :]).numel() == 1 for d in range(len(shape)))  # stock's
        assert ran["scatter_add"] == ran["scatter_add_"] == ran["scatter_add.out"] == 8 * (len(shape) - along_last)
        assert ran["_index_put_impl"] == ran["_index_put_impl_"] >= 16 * len(shape)


def test_any_number_of_threads():
    threads = torch.get_num_threads()
    x, index = draw((40, 60, 50), torch.float32), ids(60, 60)
    results = []
    try:
        for n in (1, 2, 5):
            torch.set_num_threads(n)
            y = x.view(2400, 50)
            results.append(
                [
                    OPS.index_add(x, 1, index, x),
                    OPS.index_add(y, 0, ids(2400, 2400), y),
                    OPS.index_add(y.bfloat16(), 0, ids(2400, 2400), y.bfloat16()),
                    OPS.scatter_add(x, 1, ids(x.numel(), 60).view_as(x), x),
                    OPS.scatter_add(y, 0, ids(y.numel(), 2400).view_as(y), y),
                    OPS._index_put_impl(x, [None, None, ids(50, 50)], x, True),
                ]
            )
    finally:
        torch.set_num_threads(threads)
    for found in results[1:]:
        assert all(map(torch.equal, found, results[0]))


def test_nothing_is_written_before_an_error():
    x = draw((20, 16, 6, 2), torch.float32)
    before = x.clone()
    for dim, wrong in ((d, w) for d in range(3) for w in (x.shape[d], -1, 2**40)):
        source = x.clone()
        index = ids(x.shape[dim], x.shape[dim])
        index[3] = wrong
        each = ids(x.numel(), x.shape[dim]).view_as(x)
        each[2, 5, 1, 1] = wrong
        place, below = [None] * dim, index - (index == -1) * 20
        for bad in (
            lambda m: m.index_add_(x, dim, index, source),  # noqa: B023
            lambda m: m.scatter_add_(x, dim, each, source),  # noqa: B023
            lambda m: m._index_put_impl_(x, [*place, below], source, True),  # noqa: B023
            lambda m: m._index_put_impl_(x, [*place[1:], index % 6, below], source.select(dim - 1, 0), True),  # noqa: B023
        )[: 4 if dim else 3]:
            with pytest.raises((IndexError, RuntimeError)):
                bad(OPS)
            assert torch.equal(x, before)
            same_error(lambda: bad(OPS), lambda: bad(ATEN))  # noqa: B023
            x.copy_(before)  # stock has written


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", [(50, 16), (7, 33), (20, 3, 40), (9, 129)], ids=str)
def test_added_at_indices(shape, dtype):
    rusttorch.reset_stats()
    x = draw(shape, dtype)
    given = [ids(n, 2 * shape[0]) - shape[0] for n in (1, 8, 300)]  # below 0 from the end
    given += [given[2].view(20, 15), given[2].view(20, 15).t(), given[1].to(torch.int32), given[1][:0], given[1][0]]
    for index in given:
        values = draw((*index.shape, *shape[1:]), dtype)
        for layout in (
            values,
            values.transpose(0, -1).contiguous().transpose(0, -1),
            values[..., :1].expand_as(values),
        ):
            ours = OPS._index_put_impl(x, [index], layout, True)
            exact = x.double().index_put((index,), layout.double(), accumulate=True)
            torch.testing.assert_close(ours, exact.to(dtype))
            self = x.clone()
            assert OPS._index_put_impl_(self, [index], layout, True) is self
            assert torch.equal(self, ours)
    stats = rusttorch.stats()
    assert (
        stats["_index_put_impl"].ran == stats["_index_put_impl_"].ran == 3 * (len(given) - 1)
    )  # nothing is stock's to add


def test_what_else_is_put():
    """By stock."""
    x, index, values = draw((20, 16), torch.float32), ids(8, 20), draw((8, 16), torch.float32)
    mask = draw((20,), torch.float32) > 0
    for self, *arguments in (
        (x, [index], values, False),
        (x, [index], values[:1], True),
        (x, [index], values[0, 0], True),
        (x, [index], values[:, :1], True),
        (x, [index, index[:1]], values[:, 0], True),
        (x, [None, index[:8] % 16], values.t().repeat(3, 1)[:20, :8], True),
        (x, [mask], values[0], True),
        (x[:, :3].contiguous(), [index], values[:, :3], True),
        (x.to(torch.int64), [index], values.to(torch.int64), True),
        (x.t().contiguous().t(), [index], values, True),
        (x[:0], [index[:0]], values[:0], True),
    ):
        ours, stock = self.clone(), self.clone()
        OPS._index_put_impl_(ours, *arguments)
        ATEN._index_put_impl_(stock, *arguments)
        assert torch.equal(ours, stock)


def test_nothing_is_added_before_an_error():
    x = draw((20, 16), torch.float32)
    before = x.clone()
    index, values = ids(8, 20), draw((8, 16), torch.float32)
    for wrong in (20, -21, 2**40):
        index[5] = wrong
        with pytest.raises(IndexError, match=f"index {wrong} is out of bounds for dimension 0 with size 20"):
            OPS._index_put_impl_(x, [index], values, True)
        assert torch.equal(x, before)
    ids_of_8 = ids(8, 20)
    for bad in (
        lambda m: m._index_put_impl_(x, [ids_of_8], x[4:12], True),
        lambda m: m._index_put_impl_(x, [ids_of_8], values.double(), True),
        lambda m: m._index_put_impl_(x, [ids_of_8.float()], values, True),
        lambda m: m._index_put_impl_(x, [ids_of_8], values[:, :5], True),
        lambda m: m._index_put_impl_(x[:0], [ids_of_8], values, True),
        lambda m: m._index_put_impl_(x[0, 0], [ids_of_8], values, True),
    ):
        same_error(lambda bad=bad: bad(OPS), lambda bad=bad: bad(ATEN))
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", [(50, 16), (7, 33), (20, 3, 40)], ids=str)
def test_index_add(shape, dtype):
    rusttorch.reset_stats()
    x, index = draw(shape, dtype), ids(700, shape[0])
    values = draw((700, *shape[1:]), dtype)
    for source in (values, values.transpose(0, -1).contiguous().transpose(0, -1), values[:1].expand_as(values)):
        for given in (index, index.flip(0), torch.stack([index, index], 1)[:, 0]):
            ours = OPS.index_add(x, 0, given, source)
            exact = x.double().index_add(0, given, source.double())
            n = 700 / shape[0]  # a row's sum, in order, errs with that
            torch.testing.assert_close(ours.double(), exact, rtol=n * torch.finfo(dtype).eps, atol=1e-5)
            self, out = x.clone(), torch.empty_like(x)
            assert OPS.index_add_(self, -x.dim(), given, source) is self
            assert OPS.index_add.out(x, 0, given, source, out=out) is out
            assert torch.equal(self, ours) and torch.equal(out, ours)
            expanded = given.reshape(-1, *[1] * (x.dim() - 1)).expand_as(source)
            assert torch.equal(OPS.scatter_add(x, 0, expanded, source), ours)
            assert torch.equal(OPS.scatter_add_(x.clone(), -x.dim(), expanded, source), ours)
            assert torch.equal(OPS.scatter_add.out(x, 0, expanded, source, out=out), ours)
            OPS.index_add.out(self.copy_(x), 0, given, source, out=self)
            assert torch.equal(self, ours)
    stats = rusttorch.stats()
    assert (stats["index_add"].ran, stats["index_add_"].ran, stats["index_add.out"].ran) == (9, 9, 18)
    assert all(stats[name].ran == 9 for name in ("scatter_add", "scatter_add_", "scatter_add.out"))


def test_what_else_is_added():
    """By stock."""
    x, index, source = draw((20, 16), torch.float32), ids(700, 20), draw((700, 16), torch.float32)
    for self, *arguments, alpha in (
        (x, 0, index, source, 2),
        (x, 1, index % 16, source[:, 0].expand(20, -1), 1),
        (x, 0, index[0], source[:1], 1),
        (x[0], 0, index % 16, source[:, 0], 1),
        (x.to(torch.int64), 0, index, source.to(torch.int64), 1),
        (x, 0, index[:2], source[:2], 1),
        (x, 0, index.to(torch.int32), source, 1),
        (x[:0], 0, index, source, 1),
        (x.t().contiguous().t(), 0, index, source, 1),
    ):
        ours, stock = (m.index_add(self, *arguments, alpha=alpha) for m in (OPS, ATEN))
        torch.testing.assert_close(ours, stock)
    before = x.clone()
    for bad in (
        lambda m: m.index_add_(x, 0, index + 1, source),
        lambda m: m.index_add_(x, 0, index - 1, source),
        lambda m: m.index_add(x, 0, (index + 1).to(torch.int32), source),
        lambda m: m.index_add_(x, 0, index[:5], source),
        lambda m: m.index_add_(x, 0, index, source.double()),
        lambda m: m.index_add_(x, 0, index.float(), source),
        lambda m: m.index_add_(x, 2, index, source),
        lambda m: m.index_add_(x, 0, index % 20, x.expand(35, 20, 16).reshape(700, 16)[:, :9]),
        lambda m: m.index_add_(x, 0, ids(1, 1).expand(20), x),
        lambda m: m.index_add_(x.view(20, 4, 4), 0, index + 1, source.view(700, 4, 4)),
    ):
        same_error(lambda bad=bad: bad(OPS), lambda bad=bad: bad(ATEN))
    assert torch.equal(x, before)


def test_what_else_is_scattered():
    """By stock."""
    x, rows, source = draw((20, 16), torch.float32), ids(700, 20), draw((700, 16), torch.float32)
    index = rows[:, None].expand_as(source)
    for self, *arguments in (
        (x, 0, index.contiguous(), source),
        (x, 0, index[:, :9], source[:, :9]),
        (x, 0, index[:, :9], source),
        (x, 1, index[:20] % 16, source[:20]),
        (x, 0, index[:0], source),
        (x[:, 0], 0, rows, source[:, 0]),
        (x.to(torch.int64), 0, index, source.to(torch.int64)),
    ):
        ours, stock = (m.scatter_add(self, *arguments) for m in (OPS, ATEN))
        torch.testing.assert_close(ours, stock)
    before = x.clone()
    with pytest.raises(RuntimeError, match="index 20 is out of bounds for dimension 0 with size 20"):
        OPS.scatter_add_(x, 0, (rows + 1)[:, None].expand_as(source), source)
    assert torch.equal(x, before)
    for bad in (
        lambda m: m.scatter_add_(x, 0, index + 1, source),
        lambda m: m.scatter_add_(x, 0, (rows - 1)[:, None].expand_as(source), source),
        lambda m: m.scatter_add_(x, 0, index, source.double()),
        lambda m: m.scatter_add_(x, 0, index, source[:9]),
        lambda m: m.scatter_add_(x, 0, rows.to(torch.int32)[:, None].expand_as(source), source),
        lambda m: m.scatter_add_(x[:, :9], 0, index, source),
        lambda m: m.scatter_add_(x, 0, index[0], source),
    ):
        same_error(lambda bad=bad: bad(OPS), lambda bad=bad: bad(ATEN))


def test_indexing_under_use():
    index = ids(60, 12).view(4, 15)
    results = []
    for swapped in (False, True):
        x = draw((12, 33), torch.float32).requires_grad_()
        rusttorch.reset_stats()
        with rusttorch.use("scatter") if swapped else torch.enable_grad():
            y = x[index]
            results.append([y, *torch.autograd.grad((y * y).sum(), x)])
    assert rusttorch.stats()["_index_put_impl_"].ran == 1
    for stock, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, stock)


def test_derivatives():
    indices = torch.tensor([[0, 3, 3], [1, 0, 3]])
    grad = draw((2, 3, 4), torch.float64).requires_grad_()
    for shape, dim in (((5, 4), 0), ((4, 5), 1)):
        inputs = (draw(shape, torch.float64).requires_grad_(), draw(shape, torch.float64).requires_grad_())
        index = torch.tensor([0, 3, 3, 1, 3])
        torch.autograd.gradcheck(lambda x, y, d=dim, i=index: OPS.index_add(x, d, i, y, alpha=3), inputs)
        torch.autograd.gradgradcheck(lambda x, y, d=dim, i=index: OPS.index_add(x, d, i, y, alpha=3), inputs)
        places = torch.tensor([0, 1, 1, 3, 2, 0, 3, 3, 3, 1] * 2).view(shape)
        torch.autograd.gradcheck(lambda x, y, d=dim, i=places: OPS.scatter_add(x, d, i, y), inputs)
        torch.autograd.gradgradcheck(lambda x, y, d=dim, i=places: OPS.scatter_add(x, d, i, y), inputs)
        torch.autograd.gradcheck(lambda x, y, d=dim, i=index: OPS.index_add_(x.clone(), d, i, y), inputs)
    x = draw((5, 4), torch.float64).requires_grad_()
    for given, values, accumulate in (
        ([indices], grad, True),
        ([indices], grad[0, 0], True),
        ([torch.tensor([4, 0])], grad[0, :2], False),
        ([None, torch.tensor([1, 1, 2])], grad[0].repeat(2, 1)[:5, :3], True),
    ):

        def put(x, values, given=given, accumulate=accumulate):
            return OPS._index_put_impl(x, given, values, accumulate)

        inputs = (x, values.detach().clone().requires_grad_())
        torch.autograd.gradcheck(put, inputs)
        torch.autograd.gradgradcheck(put, inputs)
        torch.autograd.gradcheck(lambda x, v, g=given, a=accumulate: OPS._index_put_impl_(x.clone(), g, v, a), inputs)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_opcheck(dtype):
    x, values = draw((7, 16), dtype).requires_grad_(), draw((4, 16), dtype).requires_grad_()
    opcheck(OPS.index_add.default, (x, 0, ids(4, 7), values), {"alpha": 2})
    opcheck(OPS.index_add.default, (x, 1, ids(16, 16), x.detach()))
    opcheck(OPS.scatter_add.default, (x, 0, ids(4, 7)[:, None].expand(4, 16), values))
    opcheck(OPS.scatter_add.default, (x, 0, ids(64, 7).view(4, 16), values))
    for indices in ([ids(4, 7)], [ids(4, 7), ids(4, 16)]):
        for where in (x, x.detach()):
            opcheck(OPS._index_put_impl.default, (where, indices, values[:, 0] if len(indices) > 1 else values, True))
    opcheck(OPS._index_put_impl_.default, (x.detach(), [ids(4, 7)], values.detach(), True))


def test_compile():
    index = ids(20, 5)
    weight = draw((7, 5), torch.float32).requires_grad_()
    with rusttorch.use("scatter"):
        for f in (
            lambda w: w[index],
            lambda w: w[:, index],
            lambda w: w[index, index],
            lambda w: w.gather(0, index[None, :5]),
        ):

            def loss(w, f=f):
                return (f(w) ** 2).sum()

            compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
            torch.testing.assert_close(*(torch.autograd.grad(g(weight), weight) for g in (compiled, loss)))
