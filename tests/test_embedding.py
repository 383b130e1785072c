"""Rows of an embedding's gradient: against float64, and in 32 and 64 bits stock's to the bit."""

import contextlib

import pytest
import rusttorch
import torch
import torch.nn.functional as F
from cases import opcheck, same_error

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
OPS = torch.ops.rusttorch
ATEN = torch.ops.aten
TOLERANCES = {  # of a sum of few that is rounded once
    torch.float32: {"rtol": 1e-6, "atol": 1e-6},
    torch.float64: {"rtol": 1e-15, "atol": 1e-15},
    torch.bfloat16: {"rtol": 2**-8, "atol": 1e-6},
    torch.float16: {"rtol": 2**-11, "atol": 1e-6},
}
LAYOUTS = {
    "contiguous": lambda x: x,
    "transposed": lambda x: x.t().contiguous().t(),
    "misaligned": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view_as(x),
    "expanded": lambda x: x[:1].expand_as(x),
    "sliced": lambda x: torch.cat([x, x], 1)[:, : x.shape[1]],
}
# Rows of the weight, its columns, and how many rows of it were looked up.
SIZES = [
    (10, 8, 20),
    (30, 37, 90),
    (1, 1, 1),
    (7, 1, 100),
    (300, 65, 40),
    (70_000, 3, 500),
    (40, 300, 1000),
    (5, 0, 3),
    (9, 4, 0),
]


def draw(shape, dtype):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def ids(n, rows, dtype=torch.int64):
    return torch.randint(0, rows, (n,), generator=torch.Generator().manual_seed(1), dtype=dtype)


def sums(grad, indices, rows, padding_idx, scale_grad_by_freq):
    """In float64."""
    grad, indices = grad.double(), indices.long()
    if scale_grad_by_freq:
        grad = grad / torch.bincount(indices, minlength=rows)[indices].unsqueeze(1)
    grad = grad.masked_fill((indices == padding_idx).unsqueeze(1), 0)
    return grad.new_zeros(rows, grad.shape[1]).index_add_(0, indices, grad)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sums(size, layout, dtype):
    rows, columns, n = size
    grad, indices = LAYOUTS[layout](draw((n, columns), dtype)), ids(n, rows)
    rusttorch.reset_stats()
    for padding_idx in (-1, 0):
        for scale in (False, True):
            options = (rows, padding_idx, scale)
            ours = OPS.embedding_dense_backward(grad, indices, *options)
            stock = ATEN.embedding_dense_backward(grad, indices, *options)
            exact = sums(grad, indices, *options)
            assert ours.dtype == stock.dtype and ours.stride() == stock.stride()
            # Stock rounds each of its sums to the dtype; ours is rounded once.
            if dtype == torch.float64 or not exact.numel():
                torch.testing.assert_close(ours, exact.to(dtype))
            else:
                error, allowed = ((y.double() - exact).abs().max() for y in (ours, stock))
                assert error <= allowed * 1.01 + scale * torch.finfo(dtype).eps * exact.abs().max()
            if dtype in (torch.float32, torch.float64) and not scale:
                assert torch.equal(ours, stock)
            narrow = OPS.embedding_dense_backward(grad, indices.to(torch.int32), *options)
            assert torch.equal(narrow, ours)
    assert rusttorch.stats()["embedding_dense_backward"].ran == 8


def test_shapes_of_indices():
    weight = draw((12, 5), torch.float32)
    for grad in (torch.empty(0, 5, 7), torch.empty(0)):
        ours, stock = (m.embedding_dense_backward(grad, ids(0, 9), 9, -1, False) for m in (OPS, ATEN))
        assert ours.shape == stock.shape
    for shape in ((), (4,), (3, 4), (2, 3, 4), (0, 3)):
        indices = ids(torch.Size(shape).numel(), 12).view(shape)
        for given in (indices, indices.transpose(0, -1) if indices.dim() > 1 else indices):
            grad = draw((*given.shape, 5), torch.float32)
            ours, stock = (m.embedding_dense_backward(grad, given, 12, -1, False) for m in (OPS, ATEN))
            assert torch.equal(ours, stock)
            assert ours.shape == weight.shape


def test_values_that_are_not_finite():
    grad = torch.tensor([[torch.nan, torch.inf, -0.0], [1.0, -torch.inf, -0.0], [2.0, 3.0, -0.0]])
    for indices in (torch.tensor([1, 1, 3]), torch.tensor([3, 1, 0])):
        ours, stock = (m.embedding_dense_backward(grad, indices, 4, -1, False) for m in (OPS, ATEN))
        torch.testing.assert_close(ours, stock, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(ours.signbit(), stock.signbit())


def test_no_row_is_out_of_range():
    """As in stock, which looks at them forward."""
    grad = draw((5, 3), torch.float32)
    indices = torch.tensor([0, -1, 4, 2**40, -(2**40)])
    ours, stock = (m.embedding_dense_backward(grad, indices, 4, -1, False) for m in (OPS, ATEN))
    assert torch.equal(ours, stock)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_large(dtype):
    """Beyond the cache: from aligned rows, and others. In the pool's memory zeros are written around it."""
    for rows, columns in ((40_000, 256), (1_000_003, 9)):
        grad, indices = draw((999, columns), dtype), ids(999, rows)
        indices[:3] = rows - 1
        exact = sums(grad, indices, rows, -1, False)
        for memory in (contextlib.nullcontext, rusttorch.memory.pool):
            with memory():
                ours = OPS.embedding_dense_backward(grad, indices, rows, -1, False)
                torch.testing.assert_close(ours.double(), exact, **TOLERANCES[dtype])


def test_any_number_of_threads():
    grad, indices = draw((5000, 48), torch.float32), ids(5000, 700) ** 2 % 700
    threads = torch.get_num_threads()
    try:
        results = []
        for n in (1, 2, 5):
            torch.set_num_threads(n)
            results.append(OPS.embedding_dense_backward(grad, indices, 700, -1, True))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize("options", ({}, {"padding_idx": 3}, {"scale_grad_by_freq": True}), ids=str)
def test_embedding_under_use(options):
    indices = ids(60, 12).view(4, 15)
    results = []
    for swapped in (False, True):
        weight = draw((12, 33), torch.float32).requires_grad_()
        rusttorch.reset_stats()
        with rusttorch.use("embedding") if swapped else torch.enable_grad():
            y = F.embedding(indices, weight, **options)
            results.append([y, *torch.autograd.grad((y * y).sum(), weight)])
    assert rusttorch.stats()["embedding_dense_backward"].ran == 1
    for stock, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, stock)
    with rusttorch.use("embedding"):  # which has gradients of its own
        F.embedding(indices, weight, sparse=True).sum().backward()
    assert weight.grad.is_sparse


def test_derivatives():
    indices = torch.tensor([[0, 3, 3], [1, 0, 3]])
    grad = draw((2, 3, 4), torch.float64).requires_grad_()
    for padding_idx, scale in ((-1, False), (0, False), (3, True), (-1, True)):

        def f(grad, options=(5, padding_idx, scale)):
            return OPS.embedding_dense_backward(grad, indices, *options)

        torch.autograd.gradcheck(f, grad)
        torch.autograd.gradgradcheck(f, grad)


def test_bad_input():
    grad, indices = draw((4, 3), torch.float32), ids(4, 5)
    for bad in (
        lambda m: m.embedding_dense_backward(grad, indices.float(), 5, -1, False),
        lambda m: m.embedding_dense_backward(grad, indices, -2, -1, False),
        lambda m: m.embedding_dense_backward(grad[:3], indices, 5, -1, False),
        lambda m: m.embedding_dense_backward(grad[0, 0], indices, 5, -1, False),
    ):
        same_error(lambda bad=bad: bad(OPS), lambda bad=bad: bad(ATEN))


def test_what_is_stock_s():
    rusttorch.reset_stats()
    OPS.embedding_dense_backward(draw((4, 3), torch.float32).to(torch.complex64), ids(4, 5), 5, -1, False)
    assert rusttorch.stats()["embedding_dense_backward"].handed == {"dtype": 1}


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_opcheck(dtype):
    grad = draw((4, 3), dtype).requires_grad_()
    opcheck(OPS.embedding_dense_backward.default, (grad, ids(4, 5), 5, 1, True))


def test_compile_and_vmap():
    indices = ids(20, 7)

    def f(weight):
        y = F.embedding(indices, weight)
        return torch.autograd.grad((y * y).sum(), weight)[0]

    weight = draw((7, 5), torch.float32).requires_grad_()
    with rusttorch.use("embedding"):
        compiled = torch.compile(lambda w: (F.embedding(indices, w) ** 2).sum(), fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(torch.autograd.grad(compiled(weight), weight)[0], f(weight))
    grad = draw((2, 20, 5), torch.float32)
    each = torch.func.vmap(lambda g: OPS.embedding_dense_backward(g, indices, 7, -1, False))(grad)
    torch.testing.assert_close(each[1], OPS.embedding_dense_backward(grad[1], indices, 7, -1, False))
