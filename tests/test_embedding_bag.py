"""Bags of an embedding's rows: against float64; where each index went is stock's to the bit."""

import functools
import itertools

import pytest
import rusttorch
import torch
import torch.nn.functional as F
from cases import opcheck, same_error

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
OPS = torch.ops.rusttorch
ATEN = torch.ops.aten
SUM, MEAN, MAX = range(3)
# Rows of the weight, its columns, and the sizes of the bags.
SIZES = [
    (10, 8, (3, 0, 1, 7)),
    (30, 37, (0, 0, 5, 30, 0)),
    (1, 1, (4,)),
    (300, 65, (1,) * 20),
    (40, 300, (50, 2)),
    (20, 17, (3, 40)),
    (20, 33, (3, 40)),
    (7, 130, (0, 2, 0)),
]


def draw(shape, dtype):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def bags(rows, sizes, dtype=torch.int64, last=False):
    """(indices, offsets)."""
    ends = list(itertools.accumulate(sizes, initial=0))
    indices = torch.randint(0, rows, (ends[-1],), generator=torch.Generator().manual_seed(1), dtype=dtype)
    return indices, torch.tensor(ends if last else ends[:-1], dtype=dtype)


def close(ours, stock, exact):
    """As near to the float64 result as stock, which rounds more often."""
    assert ours.dtype == stock.dtype and ours.shape == stock.shape and ours.stride() == stock.stride()
    if ours.dtype == torch.float64:  # which is stock's
        torch.testing.assert_close(ours, exact, rtol=1e-14, atol=1e-14)
    elif ours.numel():
        error, allowed = ((y.double() - exact).abs().max() for y in (ours, stock))
        assert error <= 2 * allowed + torch.finfo(ours.dtype).eps * exact.abs().max()


def forms(dtype, n):
    """Mode, weights of the indices, padding_idx."""
    weights = draw((n,), dtype)
    return [(mode, None, padding) for mode in (SUM, MEAN, MAX) for padding in (-1, 0)] + [
        (SUM, weights, padding) for padding in (-1, 0)
    ]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_forward(size, dtype):
    rows, columns, sizes = size
    weight = draw((rows, columns), dtype)
    rusttorch.reset_stats()
    for integers, last in ((torch.int64, False), (torch.int32, True)):
        indices, offsets = bags(rows, sizes, integers, last)
        for name in ("_embedding_bag", "_embedding_bag_forward_only"):
            for mode, weights, padding in forms(dtype, len(indices)):
                options = (False, mode, False, weights, last, padding)
                ours, stock = (getattr(m, name)(weight, indices, offsets, *options) for m in (OPS, ATEN))
                options = (False, mode, False, None if weights is None else weights.double(), last, padding)
                exact = getattr(ATEN, name)(weight.double(), indices, offsets, *options)
                close(ours[0], stock[0], exact[0])
                assert mode != MAX or torch.equal(ours[0], stock[0])
                for mine, theirs in zip(ours[1:], stock[1:], strict=True):
                    assert mine.dtype == theirs.dtype and torch.equal(mine, theirs)
    # Sums without padding are stock's, and in 16 bits means without it of most sizes.
    expected = 16 if dtype == torch.float64 else 12 if dtype == torch.float32 or columns in range(4, 32) else 10
    for name in ("_embedding_bag", "_embedding_bag_forward_only"):
        assert rusttorch.stats()[name].ran == expected


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_backward(size, dtype):
    rows, columns, sizes = size
    weight = draw((rows, columns), dtype)
    indices, offsets = bags(rows, sizes)
    rusttorch.reset_stats()
    for mode, weights, padding in forms(dtype, len(indices)):
        _, _, bag_size, largest = ATEN._embedding_bag(
            weight, indices, offsets, False, mode, False, weights, False, padding
        )
        bag = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
        for expanded in (False, True):
            grad = draw((len(sizes), columns), dtype)
            grad = grad[:1].expand_as(grad) if expanded else grad
            options = (indices, bag, bag_size, largest, rows, False, mode)
            ours, stock = (m._embedding_bag_dense_backward(grad, *options, weights, padding) for m in (OPS, ATEN))
            exact = ATEN._embedding_bag_dense_backward(
                grad.double(), *options, None if weights is None else weights.double(), padding
            )
            close(ours, stock, exact)
            assert mode != MAX or torch.equal(ours, stock)
            narrow = [t.to(torch.int32) for t in options[:4]]
            narrow = OPS._embedding_bag_dense_backward(grad, *narrow, *options[4:], weights, padding)
            assert torch.equal(narrow, ours)
            for given in (bag, bag[:0]):
                arguments = (indices, offsets, given, SUM, padding)
                ours, stock = (
                    m._embedding_bag_per_sample_weights_backward(grad, weight, *arguments) for m in (OPS, ATEN)
                )
                exact = ATEN._embedding_bag_per_sample_weights_backward(grad.double(), weight.double(), *arguments)
                close(ours, stock, exact)
                assert torch.equal(ours[indices == padding], stock[indices == padding])
    stats = rusttorch.stats()
    assert stats["_embedding_bag_dense_backward"].ran == 32
    assert stats["_embedding_bag_per_sample_weights_backward"].ran == 32


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_values_that_are_not_finite(dtype):
    nan, inf = torch.nan, torch.inf
    weight = torch.tensor([[nan, 1, -0.0], [1, inf, 0.0], [2, -inf, -0.0], [nan, nan, nan]], dtype=dtype)
    indices, offsets = torch.tensor([0, 1, 1, 0, 2, 1, 3, 2]), torch.tensor([0, 2, 4, 4, 6])
    for mode in (SUM, MEAN, MAX):
        ours, stock = (m._embedding_bag(weight, indices, offsets, False, mode, padding_idx=9) for m in (OPS, ATEN))
        for mine, theirs in zip(ours, stock, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(ours[0].signbit() & ours[0].isfinite(), stock[0].signbit() & stock[0].isfinite())


def test_large():
    """In the pool's memory zeros are written around the cache."""
    indices, offsets = bags(40_000, (40,) * 25)
    weight = draw((40_000, 256), torch.float32)
    with rusttorch.memory.pool():
        for mode in (MEAN, MAX):
            _, bag, bag_size, largest = ATEN._embedding_bag(weight, indices, offsets, False, mode)
            options = (draw((25, 256), torch.float32), indices, bag, bag_size, largest, 40_000, False, mode, None)
            ours, stock = (m._embedding_bag_dense_backward(*options) for m in (OPS, ATEN))
            torch.testing.assert_close(ours, stock)


def test_any_number_of_threads():
    indices, offsets = bags(700, (1, 90, 0, 300) * 8)
    weight, weights = draw((700, 48), torch.float32), draw((len(indices),), torch.float32)
    threads = torch.get_num_threads()
    results = []
    try:
        for n in (1, 2, 5):
            torch.set_num_threads(n)
            found = []
            for mode, given in ((SUM, weights), (MEAN, None), (MAX, None)):
                y, bag, bag_size, largest = OPS._embedding_bag(
                    weight, indices, offsets, False, mode, False, given, padding_idx=3
                )
                found += [
                    y,
                    OPS._embedding_bag_dense_backward(y, indices, bag, bag_size, largest, 700, False, mode, given, 3),
                ]
                found.append(OPS._embedding_bag_per_sample_weights_backward(y, weight, indices, offsets, bag, SUM, 3))
            results.append(found)
    finally:
        torch.set_num_threads(threads)
    for found in results[1:]:
        assert all(map(torch.equal, found, results[0]))


@pytest.mark.parametrize("mode", ("sum", "mean", "max"))
@pytest.mark.parametrize("dims", (1, 2))
@pytest.mark.parametrize(
    "options",
    ({}, {"padding_idx": 3}, {"scale_grad_by_freq": True}, {"include_last_offset": True}, {"sparse": True}),
    ids=str,
)
def test_under_use(mode, dims, options):
    if mode == "max" and ("scale_grad_by_freq" in options or "sparse" in options):
        pytest.skip("not in stock")
    if dims == 2:
        indices, offsets, options = bags(12, (6,) * 8)[0].view(8, 6), None, {**options, "include_last_offset": False}
    else:
        indices, offsets = bags(12, (5, 0, 30, 1), last="include_last_offset" in options)
    results = []
    for swapped in (False, True):
        weight = draw((12, 33), torch.float32).requires_grad_()
        inputs = [weight]
        if mode == "sum":
            inputs.append(draw(indices.shape, torch.float32).requires_grad_())
        rusttorch.reset_stats()
        with rusttorch.use("embedding_bag") if swapped else torch.enable_grad():
            y = F.embedding_bag(
                indices, weight, offsets, mode=mode, per_sample_weights=dict(enumerate(inputs)).get(1), **options
            )
            results.append([y, *torch.autograd.grad((y * y).sum(), inputs)])
    ran = {name: stats.ran for name, stats in rusttorch.stats().items()}
    assert ran.get("_embedding_bag_dense_backward", 0) == (not {"sparse", "scale_grad_by_freq"} & options.keys())
    assert ran["_embedding_bag"] == (mode != "sum" or "padding_idx" in options)
    for stock, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, stock)
        assert ours.is_sparse == stock.is_sparse


def test_bad_input():
    weight, (indices, offsets) = draw((9, 4), torch.float32), bags(9, (3, 0, 4))
    wrong = indices.clone()
    for bad in (
        lambda m, **o: m._embedding_bag(weight, indices.float(), offsets, **o),
        lambda m, **o: m._embedding_bag(weight, indices, offsets.float(), **o),
        lambda m, **o: m._embedding_bag(weight, indices, offsets + 1, **o),
        lambda m, **o: m._embedding_bag(weight, indices, offsets * 3, **o),
        lambda m, **o: m._embedding_bag(weight, wrong, offsets, **o),
        lambda m, **o: m._embedding_bag(weight.long(), indices, offsets, **o),
        lambda m, **o: m._embedding_bag(weight, indices, offsets, False, per_sample_weights=weight[0], **o),
        lambda m, **o: m._embedding_bag(
            weight, indices, offsets, False, per_sample_weights=weight.double()[:7, 0], **o
        ),
        lambda m, **o: m._embedding_bag(weight, indices, offsets[:0], include_last_offset=True, **o),
    ):
        for value, mode, padding in itertools.product((9, -1, 2**40), (SUM, MEAN, MAX), (-1, 2)):
            wrong[5] = value
            options = {"mode": mode, "padding_idx": padding}
            same_error(lambda: bad(OPS, **options), lambda: bad(ATEN, **options))  # noqa: B023
    grad, bag = draw((3, 4), torch.float32), torch.tensor([0, 0, 0, 2, 2, 2, 2])
    options = (torch.tensor([3, 0, 4]), torch.tensor([3, 0, 4]), 9, False, SUM, None)
    with pytest.raises(RuntimeError, match="embedding_bag: Expected idx"):
        OPS._embedding_bag_dense_backward(grad, wrong, bag, *options)
    with pytest.raises(RuntimeError, match="embedding_bag: Expected idx"):
        OPS._embedding_bag_dense_backward(grad, indices, bag + 1, *options)
    with pytest.raises(RuntimeError, match="embedding_bag: Expected idx"):
        OPS._embedding_bag_per_sample_weights_backward(grad, weight, wrong, offsets, bag, SUM)
    for ends in (torch.tensor([0, 3, 3, 5]), torch.arange(7)):  # more bags than gradients, and no bag of each index
        with pytest.raises(RuntimeError, match="embedding_bag: Expected idx"):
            OPS._embedding_bag_per_sample_weights_backward(grad, weight, indices, ends, bag[:0], SUM)
    largest = (torch.ones_like(bag[:3]), torch.full((3, 4), 9), 9, False, MAX, None)
    same_error(*(lambda m=m: m._embedding_bag_dense_backward(grad, indices, bag, *largest) for m in (OPS, ATEN)))


def test_int32_under_all_of_use():
    """Stock's backward makes the bags by other ops, which are swapped too."""
    weight = draw((9, 4), torch.float32).requires_grad_()
    indices, offsets = bags(9, (3, 0, 4), torch.int32)
    for mode in ("sum", "mean", "max"):
        with rusttorch.use():
            y = F.embedding_bag(indices, weight, offsets, mode=mode)
            ours = torch.autograd.grad(y.sum(), weight)
        torch.testing.assert_close(
            ours, torch.autograd.grad(F.embedding_bag(indices, weight, offsets, mode=mode).sum(), weight)
        )


def test_what_is_stock_s():
    weight, (indices, offsets) = draw((9, 4), torch.float32), bags(9, (3, 0, 4))
    rusttorch.reset_stats()
    for arguments in (
        (weight, indices, offsets, False, SUM),
        (weight.t().contiguous().t(), indices, offsets, False, MAX),
        (weight, indices, offsets.to(torch.int32), False, MEAN),
        (weight, indices, torch.tensor([0, 5, 3]), False, MAX),
    ):
        ours, stock = (m._embedding_bag(*arguments) for m in (OPS, ATEN))
        assert all(map(torch.equal, ours, stock))
    assert rusttorch.stats()["_embedding_bag"].handed == {"size": 1, "layout": 1, "option": 2}


@pytest.mark.parametrize("mode", (SUM, MEAN, MAX))
def test_derivatives(mode):
    indices, offsets = torch.tensor([0, 3, 3, 1, 0, 4]), torch.tensor([0, 2, 2])
    weight = draw((5, 4), torch.float64).requires_grad_()
    weights = draw((6,), torch.float64).requires_grad_()
    grad = draw((3, 4), torch.float64).requires_grad_()
    bag = torch.tensor([0, 0, 2, 2, 2, 2])
    for given, padding in ((None, -1), (None, 3), (weights, -1), (weights, 3)):
        if given is not None and mode != SUM:
            continue
        inputs = (weight,) if given is None else (weight, given)

        def f(weight, given=None, op=OPS._embedding_bag, padding=padding):
            return op(weight, indices, offsets, False, mode, False, given, False, padding)[0]

        torch.autograd.gradcheck(f, inputs)
        torch.autograd.gradgradcheck(f, inputs)
        forward_only = functools.partial(f, op=OPS._embedding_bag_forward_only)
        torch.autograd.gradcheck(forward_only, inputs)
        _, _, sizes, largest = OPS._embedding_bag(weight, indices, offsets, False, mode, False, given, False, padding)

        def backward(grad, given=None, padding=padding, sizes=sizes, largest=largest):
            return OPS._embedding_bag_dense_backward(grad, indices, bag, sizes, largest, 5, False, mode, given, padding)

        torch.autograd.gradcheck(backward, (grad, *inputs[1:]))
        torch.autograd.gradgradcheck(backward, (grad, *inputs[1:]))
    if mode == SUM:
        for padding, given in ((-1, bag), (3, bag[:0])):

            def dots(grad, weight, padding=padding, given=given):
                return OPS._embedding_bag_per_sample_weights_backward(
                    grad, weight, indices, offsets, given, SUM, padding
                )

            torch.autograd.gradcheck(dots, (grad, weight))
            torch.autograd.gradgradcheck(dots, (grad, weight))


def test_sparse_gradient():
    indices, offsets = bags(12, (5, 0, 30, 1))
    grads = []
    for ops in (OPS, ATEN):
        weight = draw((12, 33), torch.float32).requires_grad_()
        ops._embedding_bag(weight, indices, offsets, False, MEAN, True)[0].square().sum().backward()
        grads.append(weight.grad)
    assert grads[0].is_sparse
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_opcheck(dtype):
    indices, offsets = bags(7, (3, 0, 4))
    weight, grad = draw((7, 16), dtype).requires_grad_(), draw((3, 16), dtype).requires_grad_()
    weights = draw((7,), dtype).requires_grad_()
    for mode, given in ((SUM, weights), (MEAN, None), (MAX, None)):
        opcheck(OPS._embedding_bag.default, (weight, indices, offsets, False, mode, False, given, False, 1))
        _, bag, sizes, largest = OPS._embedding_bag(weight.detach(), indices, offsets, False, mode, padding_idx=1)
        arguments = (grad, indices, bag, sizes, largest, 7, False, mode, given)
        opcheck(OPS._embedding_bag_dense_backward.default, arguments)
    opcheck(OPS._embedding_bag_forward_only.default, (weight.detach(), indices, offsets, False, MEAN))
    opcheck(OPS._embedding_bag_per_sample_weights_backward.default, (grad, weight, indices, offsets, bag, SUM))


def test_compile_and_vmap():
    indices, offsets = bags(7, (3, 0, 4))
    weight = draw((7, 5), torch.float32).requires_grad_()

    def f(weight):
        return (F.embedding_bag(indices, weight, offsets, mode="max") ** 2).sum()

    with rusttorch.use("embedding_bag"):
        compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(*(torch.autograd.grad(g(weight), weight) for g in (compiled, f)))
    grad, bag = draw((2, 3, 5), torch.float32), torch.tensor([0, 0, 0, 2, 2, 2, 2])

    def backward(grad):
        return OPS._embedding_bag_dense_backward(grad, indices, bag, bag[:3], bag[:3], 7, False, SUM, None)

    torch.testing.assert_close(torch.func.vmap(backward)(grad)[1], backward(grad[1]))
