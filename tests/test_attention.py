"""Attention: against float64, with an error at most twice stock's, and under use()."""

import math
import os
import subprocess
import sys

import pytest
import rusttorch
import torch
import torch.nn.functional as F
from cases import AMX, CPU_FLAGS, INTEL, opcheck, same_error
from torch._subclasses import FakeTensorMode

OPS = torch.ops.rusttorch
ATEN = torch.ops.aten
# Stock's attention of bfloat16 raises on a CPU with AMX where ATEN_CPU_CAPABILITY leaves AVX-512 out.
BFLOAT16 = (torch.bfloat16,) if AMX or "amx_bf16" not in CPU_FLAGS else ()
FLOATS = (torch.float32, torch.float64, torch.float16, *BFLOAT16)
FLASH = "_scaled_dot_product_flash_attention_for_cpu"
# Of queries and keys, with their sizes and those of the values. Parts of 128 queries and keys, and what is left.
SIZES = [
    (1, 1, 64, 64),
    (5, 7, 1, 1),
    (16, 33, 17, 40),
    (128, 128, 64, 64),
    (129, 130, 80, 80),
    (300, 257, 64, 64),
    (70, 300, 33, 16),
    (300, 70, 130, 130),
]


def is_taken(dtype):
    """Of 16 bits on Intel's CPUs: where they have the products that ours use too."""
    return not (INTEL and dtype.itemsize == 2) or (AMX and dtype == torch.bfloat16)


def draw(shape, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


# How [N, heads, rows, size] lies.
LAYOUTS = {
    "contiguous": lambda x: x,
    "projected": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "packed": lambda x: torch.cat([x, x, x], -1).transpose(1, 2).contiguous().transpose(1, 2)[..., : x.shape[-1]],
    "misaligned": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view_as(x),
    "expanded": lambda x: x[:, :1].expand_as(x),
}


def tensors(sizes, dtype, layout="contiguous", heads=4, key_heads=4):
    queries, keys, size, value_size = sizes
    shapes = ((2, heads, queries, size), (2, key_heads, keys, size), (2, key_heads, keys, value_size))
    return [LAYOUTS[layout](draw(shape, dtype, i)).requires_grad_() for i, shape in enumerate(shapes)]


def exact(q, k, v, mask=None, is_causal=False, scale=None, factor=1.0):
    """In float64, of weights that are multiplied by a factor."""
    q, k, v = (x.double() for x in (q, k, v))
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1) if is_causal else torch.zeros((), dtype=torch.bool)
    if mask is not None:
        scores = scores if mask.dtype == torch.bool else scores + mask.double()
        hidden = hidden | (~mask if mask.dtype == torch.bool else mask == -torch.inf)
    hidden = hidden.expand_as(scores)
    nothing = hidden.all(-1, True)
    weights = scores.masked_fill(hidden, -torch.inf).masked_fill(nothing, 0).softmax(-1).masked_fill(nothing, 0)
    return weights * factor @ v


def masks(queries, keys, dtype):
    """As users have them: of all, of a batch's paddings, of each head, and the window before each query."""
    kept = draw((queries, keys), torch.float32) > -0.5
    padding = (torch.arange(keys) < keys - torch.arange(2).mul(3)[:, None] % keys)[:, None, None]
    window = torch.arange(keys) - torch.arange(queries)[:, None]
    return {
        "none": None,
        "bool": kept,
        "padding": padding,
        "numbers": draw((queries, keys), dtype),
        "numbers of heads": draw((2, 4, queries, keys), dtype),
        "numbers of a row": draw((1, 1, 1, keys), dtype),
        "in steps": draw((keys, queries), dtype).t(),
        "window": ((window <= 0) & (window > -9)).to(dtype).log(),
    }


def check(q, k, v, mask=None, is_causal=False, scale=None, grouped=False):
    """Output and gradients of F.scaled_dot_product_attention under use(), each as right as stock's."""
    arguments = {"attn_mask": mask, "is_causal": is_causal, "scale": scale, "enable_gqa": grouped}
    want = exact(q, k, v, mask, is_causal, scale)
    grad = draw(tuple(want.shape), q.dtype, 7)
    want = [want, *torch.autograd.grad(want, (q, k, v), grad.double())]
    results = []
    for swapped in (False, True):
        with rusttorch.use("attention") if swapped else torch.enable_grad():
            y = F.scaled_dot_product_attention(q, k, v, **arguments)
            results.append([y, *torch.autograd.grad(y, (q, k, v), grad)])
    for stock, ours, right in zip(*results, want, strict=True):
        assert ours.dtype == stock.dtype and ours.shape == stock.shape
        allowed, error = ((x.double() - right).abs().max() for x in (stock, ours))
        # (Of one key the gradients of the scores are 0, but for what was rounded. In float64 stock is what is right.)
        factor = 8 if k.shape[2] == 1 else 2 if q.dtype == torch.float64 else 1
        room = torch.finfo(q.dtype).eps * max(1, right.abs().max()) * factor
        assert error <= 2 * allowed + 4 * room, (error / room, allowed / room)
    return results


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_attention(sizes, layout, dtype):
    q, k, v = tensors(sizes, dtype, layout)
    rusttorch.reset_stats()
    for is_causal in (False, True):
        for scale in (None, 0.3):
            stock, ours = check(q, k, v, is_causal=is_causal, scale=scale)
            if sizes[2] == sizes[3]:
                assert ours[0].stride() == stock[0].stride()
    if is_taken(dtype):
        assert rusttorch.stats()["attention_forward"].ran == rusttorch.stats()["attention_backward"].ran == 4


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("kind", masks(1, 1, torch.float32))
def test_masks(kind, dtype):
    for sizes in (SIZES[1], SIZES[2], SIZES[4], SIZES[6]):
        mask = masks(*sizes[:2], dtype)[kind]
        check(*tensors(sizes, dtype), mask)
        if dtype in (torch.bfloat16, torch.float16) and mask is not None and mask.dtype == dtype:
            check(*tensors(sizes, dtype), mask.float())


def masks_by_blocks(queries, keys):
    """That hide all or nothing of some blocks: of 128 queries and as many keys."""
    i, j = torch.arange(queries)[:, None], torch.arange(keys)
    window = (j <= i + keys - queries) & (j > i + keys - queries - 60)
    lengths = torch.tensor([keys, 150])[:, None, None, None]
    return {
        "window": window,
        "documents": i // 130 == j // 130,
        "from the first on": j > i + 100,
        "paddings": j < lengths,
        "paddings of documents": (j < lengths) & (i // 70 == j // 90),
        "of a head": torch.stack((window, ~window, window & False, window | True)),
        "in steps": window.t().contiguous().t(),
        "of a query": (i > 130).expand(queries, keys),
        "all": window | True,
        "nothing": window & False,
    }


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("kind", masks_by_blocks(1, 1))
def test_masks_by_blocks(kind, dtype):
    """As bools, and as numbers: 0 and minus infinity."""
    for sizes in ((300, 410, 20, 24), (140, 140, 16, 16)):
        mask = masks_by_blocks(*sizes[:2])[kind]
        check(*tensors(sizes, dtype), mask)
        numbers = mask.to(dtype).log()
        check(*tensors(sizes, dtype), numbers)
        if dtype.itemsize == 2:
            check(*tensors(sizes, dtype), numbers.float())
    numbers = numbers[None] if numbers.dim() == 3 else numbers  # of 2 or 4 dims
    ours, stock = (getattr(m, FLASH)(*tensors(sizes, dtype), 0.0, True, attn_mask=numbers)[0] for m in (OPS, ATEN))
    tolerance = 2e-2 if dtype.itemsize == 2 else 1e-4
    torch.testing.assert_close(ours, stock, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [t for t in FLOATS if is_taken(t)], ids=str)
def test_what_a_mask_hides_is_not_read(dtype):
    """In whole blocks; so it is not computed."""
    q, k, v = tensors((140, 400, 16, 16), dtype)
    mask = torch.ones(140, 400, dtype=torch.bool)
    mask[:, 128:256] = False
    for hidden in (mask, mask.to(dtype).log()):
        want = torch.autograd.grad(OPS.scaled_dot_product_attention(q, k, v, hidden).square().sum(), (q, k, v))
        with torch.no_grad():
            k[:, :, 128:256], v[:, :, 128:256] = torch.nan, torch.inf
        found = torch.autograd.grad(OPS.scaled_dot_product_attention(q, k, v, hidden).square().sum(), (q, k, v))
        assert all(map(torch.equal, found, want))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_heads_that_share_keys(dtype):
    for sizes in (SIZES[2], SIZES[4]):
        for heads, key_heads in ((4, 2), (4, 1), (6, 2)):
            for is_causal in (False, True):
                q, k, v = tensors(sizes, dtype, "projected", heads, key_heads)
                check(q, k, v, is_causal=is_causal, grouped=True)
    check(q, k, v, mask=masks(*sizes[:2], dtype)["bool"], grouped=True)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_aten_s_own_op(dtype):
    """Which stock's decomposition picks, with what it returns besides."""
    for sizes in (s for s in SIZES if s[2] == s[3]):
        for mask in (None, draw(sizes[:2], dtype), draw((2, 1, 1, sizes[1]), dtype)):
            for is_causal in (False, True):
                q, k, v = (x.detach() for x in tensors(sizes, dtype, "projected"))
                ours, stock = (getattr(m, FLASH)(q, k, v, 0.0, is_causal, attn_mask=mask) for m in (OPS, ATEN))
                grad = draw(tuple(q.shape), dtype, 5)
                rest = (*stock, 0.0, is_causal)
                backward = (getattr(m, f"{FLASH}_backward")(grad, q, k, v, *rest, attn_mask=mask) for m in (OPS, ATEN))
                tolerance = {"rtol": 1e-5, "atol": 2e-5} if q.element_size() > 2 else {"rtol": 0.05, "atol": 0.06}
                for x, y in zip((*ours, *next(backward)), (*stock, *next(backward)), strict=True):
                    assert x.stride() == y.stride() and x.dtype == y.dtype
                    torch.testing.assert_close(x, y, **tolerance)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_dropout(dtype):
    """Stock draws for all weights in order; so does ours, a part of the queries after the other."""
    for sizes in (SIZES[1], SIZES[2], SIZES[4], SIZES[5]):
        for is_causal in (False, True):
            q, k, v = tensors(sizes, dtype, heads=4, key_heads=2)
            torch.manual_seed(3)
            torch.rand(5)  # in the middle of the generator's words
            y, _, random = OPS.attention_forward(q, k, v, None, 0.3, is_causal)
            after = torch.get_rng_state()
            kept = OPS.attention_kept(random, [2, 4, *sizes[:2]], 0.3)
            torch.manual_seed(3)
            torch.rand(5)
            if not INTEL:
                assert torch.equal(kept, torch.empty(2, 4, *sizes[:2]).bernoulli_(0.7).bool())
                assert torch.equal(
                    torch.rand(3), torch.Generator().set_state(after) and torch.rand(3, generator=_at(after))
                )
            want = exact(q, k, v, None, is_causal, factor=kept.double() / 0.7)
            grad = draw(tuple(y.shape), dtype)
            gradients = torch.autograd.grad(y, (q, k, v), grad)
            exact_ones = torch.autograd.grad(want, (q, k, v), grad.double())
            eps = torch.finfo(dtype).eps
            for ours, right in zip((y, *gradients), (want, *exact_ones), strict=True):
                assert (ours.double() - right).abs().max() <= 64 * eps * max(1, right.abs().max())


def _at(state):
    generator = torch.Generator()
    generator.set_state(state)
    return generator


@pytest.mark.skipif(INTEL, reason="stock draws MKL's numbers there")
def test_dropout_is_stock_s():
    for dtype in (torch.float32, torch.float64):
        q, k, v = tensors((40, 50, 16, 16), dtype)
        results = []
        for swapped in (False, True):
            torch.manual_seed(1)
            with rusttorch.use("attention") if swapped else torch.enable_grad():
                y = F.scaled_dot_product_attention(q, k, v, dropout_p=0.2)
                results.append([y, *torch.autograd.grad(y.square().sum(), (q, k, v)), torch.rand(4)])
        for stock, ours in zip(*results, strict=True):
            torch.testing.assert_close(ours, stock, rtol=1e-4, atol=1e-5)
            assert ours.stride() == stock.stride() or ours.grad_fn is None


def test_queries_that_see_nothing():
    q, k, v = tensors((20, 30, 16, 16), torch.float32)
    for mask in (torch.ones(20, 30, dtype=torch.bool), torch.zeros(20, 30)):
        mask[3] = False if mask.dtype == torch.bool else -torch.inf
        stock, ours = check(q, k, v, mask)
        assert not ours[0][:, :, 3].any() and not ours[1][:, :, 3].any()
    bias = torch.zeros(20, 30)
    bias[3] = -torch.inf
    ours, stock = (getattr(m, FLASH)(q, k, v, attn_mask=bias) for m in (OPS, ATEN))
    torch.testing.assert_close(ours, stock)


def test_masks_of_the_lowest_number():
    """As transformers' models have them for paddings: where it is all that a query sees, its keys weigh alike."""
    for dtype in FLOATS:
        q, k, v = tensors((20, 33, 16, 16), dtype)
        for keys in (1, 33):
            for lowest in (torch.finfo(dtype).min, -1e9 if dtype != torch.float16 else -1e4):
                mask = torch.zeros(20, keys, dtype=dtype)
                mask[::2] = lowest
                arguments = (q, k[:, :, :keys], v[:, :, :keys], mask)
                stock = F.scaled_dot_product_attention(*arguments)
                with rusttorch.use("attention"):
                    ours = F.scaled_dot_product_attention(*arguments)
                rtol, atol = (1e-4, 1e-5) if dtype in (torch.float32, torch.float64) else (0.02, 0.02)
                torch.testing.assert_close(ours[:, :, 1::2], stock[:, :, 1::2], rtol=rtol, atol=atol)
                if lowest < -1e9 or keys == 1:  # else scores of which there are few digits left
                    torch.testing.assert_close(ours[:, :, ::2], stock[:, :, ::2], rtol=rtol, atol=atol)
                assert all(g.isfinite().all() for g in torch.autograd.grad(ours.sum(), (q, k, v)))
                mask[3, 0] = torch.nan
                assert OPS.attention_forward(*arguments)[0][:, :, 3].isnan().all()


def test_windows():
    """Queries that overlap, of which at::empty_like would have columns. (Stock is wrong there: torch 2.13.)"""
    for heads, rows, size in ((3, 20, 33), (5, 1, 16), (2, 9, 1)):
        x = draw((2, rows + size - 1), torch.float32).requires_grad_()
        q = x.unfold(1, size, 1)[:, None].expand(-1, heads, -1, -1)
        k, v = draw((2, heads, 7, size), torch.float32, 1), draw((2, heads, 7, size), torch.float32, 2)
        results = []
        for query in (q, q.contiguous()):
            y = OPS.scaled_dot_product_attention(query, k, v)
            results.append([y, torch.autograd.grad(y.square().sum(), x)[0]])
        for ours, right in zip(*results, strict=True):
            torch.testing.assert_close(ours, right)
        mode = FakeTensorMode()
        fakes = [mode.from_tensor(t) for t in (q.detach(), k, v)]
        with mode:
            fake = OPS.attention_forward(*fakes)[0]
        assert fake.stride() == OPS.attention_forward(q, k, v)[0].stride()


def test_numbers_that_are_not_finite():
    """A NaN or an infinity among the keys is in all that see it, and in nothing else."""
    for bad in (torch.nan, torch.inf):
        for dtype in FLOATS:
            q, k, v = (x.detach() for x in tensors((150, 150, 16, 16), dtype))
            k[0, 1, 140, 2] = bad
            v[1, 2, 5, 3] = bad
            y = OPS.attention_forward(q, k, v, None, 0.0, True)[0]
            want = exact(q, k, v, is_causal=True)
            wrong = torch.zeros(2, 4, 150, 16, dtype=torch.bool)
            wrong[0, 1, 140:] = True
            wrong[1, 2, :, 3] = True  # which weights of 0 meet, as in stock
            assert y[~wrong].isfinite().all()
            assert not want[wrong].isfinite().all() and not y[1, 2, 5:, 3].isfinite().any()
    q, k, v = (torch.full((1, 1, 4, 8), x) for x in (1e30, 1e30, 1.0))  # scores overflow
    assert OPS.attention_forward(q, k, v)[0].isnan().all() and F.scaled_dot_product_attention(q, k, v).isnan().all()


def test_no_elements():
    """Of which stock's flash attention ends the process."""
    for shape, keys in (((2, 3, 0, 8), 7), ((2, 3, 5, 8), 0), ((2, 3, 5, 0), 7), ((0, 3, 5, 8), 7), ((2, 0, 5, 8), 7)):
        q = torch.randn(shape, requires_grad=True)
        k, v = (torch.randn(*shape[:2], keys, shape[3], requires_grad=True) for _ in range(2))
        y, logsumexp = getattr(OPS, FLASH)(q, k, v)
        assert y.shape == shape and not y.any() and logsumexp.shape == shape[:3]
        for create_graph in (False, True):
            gradients = torch.autograd.grad(y.sum(), (q, k, v), create_graph=create_graph, retain_graph=True)
            assert all(not g.any() for g in gradients)
        with rusttorch.use("attention"):
            ours = F.scaled_dot_product_attention(q, k, v)
        torch.testing.assert_close(ours, F.scaled_dot_product_attention(q, k, v), equal_nan=True)


def test_large_scores():
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        q, k, v = tensors((40, 200, 64, 64), dtype)
        with torch.no_grad():
            q *= 30
        check(q, k, v)
        check(q, k, v, is_causal=True)


def test_the_output_may_be_changed():
    """Where stock does not keep it."""
    for dropout_p, key_heads, value_size in ((0.5, 4, 16), (0.0, 2, 16), (0.0, 4, 8)):
        q, k, v = tensors((9, 11, 16, value_size), torch.float32, heads=4, key_heads=key_heads)
        gradients = []
        for changed in (False, True):
            torch.manual_seed(0)
            with rusttorch.use("attention"):
                y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p, enable_gqa=True)
            y = y.mul_(2) if changed else y * 2
            gradients.append(torch.autograd.grad(y.sum(), (q, k, v)))
        assert all(torch.equal(x, y) for x, y in zip(*gradients, strict=True))


@pytest.mark.parametrize("kind", ("none", "bool", "numbers of heads", "numbers of a row"))
def test_without_a_batch(kind):
    """[heads, rows, size], which stock takes apart: its result is contiguous, and may be changed."""
    rusttorch.reset_stats()
    for keys, layout, key_heads in ((50, "contiguous", 2), (40, "projected", 4)):
        sizes = (40, keys, 16, 16)
        mask = masks(*sizes[:2], torch.float32)[kind]
        mask = mask[0] if mask is not None and mask.dim() == 4 else mask
        is_causal = mask is None and keys == 40
        q, k, v = (x.detach()[0].requires_grad_() for x in tensors(sizes, torch.float32, layout, key_heads=key_heads))
        results = []
        for swapped in (False, True):
            with rusttorch.use("attention") if swapped else torch.enable_grad():
                y = F.scaled_dot_product_attention(q, k, v, mask, is_causal=is_causal, enable_gqa=True)
            assert y.is_contiguous()
            grad = draw(tuple(y.shape), y.dtype, 7)
            y = y.mul_(2)
            results.append((y, *torch.autograd.grad(y, (q, k, v), grad)))
        for ours, stock in zip(*results, strict=True):
            torch.testing.assert_close(ours, stock)
    assert rusttorch.stats()["attention_forward"].ran == rusttorch.stats()["attention_backward"].ran == 2


def test_what_is_left_to_stock():
    q, k, v = tensors((9, 11, 16, 16), torch.float32)
    mask = draw((9, 11), torch.float32)

    def cases():
        yield (q[0], k[0, 0], v[0, 0]), {}
        yield (q[None], k[None], v[None]), {}
        yield (q, k, v), {"attn_mask": mask.clone().requires_grad_()}
        yield (q.mT.contiguous().mT, k, v), {}
        yield (q, k[:, :1], v[:, :1]), {}  # broadcast
        yield (q[:, :, :0], k, v), {}
        yield (q, k[:, :, :0], v[:, :, :0]), {}
        yield (q[:0], k[:0], v[:0]), {}
        yield (q, k, v), {"attn_mask": mask[:, :1].contiguous()[:, 0:1].expand(9, 11)}
        yield (q, k, v), {"dropout_p": 1.0}

    for arguments, options in cases():
        with rusttorch.use("attention"):
            ours = F.scaled_dot_product_attention(*arguments, **options)
        torch.testing.assert_close(ours, F.scaled_dot_product_attention(*arguments, **options), equal_nan=True)
    rusttorch.reset_stats()
    with rusttorch.use("attention"), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        F.scaled_dot_product_attention(q, k, v)
    assert "attention_forward" not in rusttorch.stats()


def test_errors():
    q, k, v = (x.detach() for x in tensors((9, 11, 16, 16), torch.float32))
    sdpa = "scaled_dot_product_attention"
    for bad in (
        lambda m: getattr(m, sdpa)(q, k[..., :3], v),
        lambda m: getattr(m, sdpa)(q[0], k[0], v[0], torch.zeros(1, 1, 9, 11)),
        lambda m: getattr(m, sdpa)(q, k.double(), v),
        lambda m: getattr(m, sdpa)(q.long(), k.long(), v.long()),
        lambda m: getattr(m, sdpa)(q, k, v, torch.ones(4, 5)),
        lambda m: getattr(m, sdpa)(q, k, v, torch.ones(9, 11, dtype=torch.int32)),
        lambda m: getattr(m, sdpa)(q, k, v, torch.ones(9, 11).double()),
        lambda m: getattr(m, sdpa)(q, k, v, dropout_p=1.5),
        lambda m: getattr(m, sdpa)(q, k[:, :3], v[:, :3], enable_gqa=True),
        lambda m: getattr(m, sdpa)(q[0, 0, 0], k, v),
        lambda m: getattr(m, FLASH)(q[0], k[0], v[0]),
        lambda m: getattr(m, FLASH)(q, k, v[..., :3]),
        lambda m: getattr(m, FLASH)(q, k, v, attn_mask=torch.ones(9, 11, dtype=torch.bool)),
        lambda m: getattr(m, FLASH)(q, k, v, attn_mask=torch.ones(1, 9, 11)),
    ):
        same_error(lambda bad=bad: bad(OPS), lambda bad=bad: bad(ATEN))
    y, logsumexp, random = OPS.attention_forward(q, k, v)
    with pytest.raises(RuntimeError, match="attention_forward: query, key and value must be"):
        OPS.attention_forward(q[0], k, v)
    with pytest.raises(RuntimeError, match="attention_backward: query, key and value must be"):
        OPS.attention_backward(y, q, k, v, y[..., :3], logsumexp, random, None, 0.0, False)
    with pytest.raises(RuntimeError, match="attention_backward"):
        OPS.attention_backward(y, q, k, v, y, logsumexp, random, None, 0.5, False)
    with pytest.raises(RuntimeError, match="attention_kept: expected the states"):
        OPS.attention_kept(random, [2, 4, 9, 11], 0.5)
    for anything in (-1, 2**31 - 1):  # no states, but nothing is read beyond them
        OPS.attention_kept(torch.full((8, 625), anything, dtype=torch.int32), [2, 4, 9, 11], 0.5)


def test_derivatives():
    for key_heads, options in (
        (4, {}),
        (2, {"is_causal": True}),
        (4, {"attn_mask": draw((6, 5), torch.float64)}),
        (2, {"attn_mask": draw((6, 5), torch.float64) > -0.8, "scale": 0.7}),
    ):
        inputs = [
            x.detach()[:1].requires_grad_() for x in tensors((6, 5, 3, 2), torch.float64, "projected", 4, key_heads)
        ]

        def attention(q, k, v, options=options):
            return OPS.scaled_dot_product_attention(q, k, v, enable_gqa=True, **options)

        assert torch.autograd.gradcheck(attention, inputs)
        assert torch.autograd.gradgradcheck(attention, inputs)

    def dropped(*inputs):
        torch.manual_seed(0)
        return OPS.attention_forward(*inputs, None, 0.4)[0]

    assert torch.autograd.gradcheck(dropped, inputs) and torch.autograd.gradgradcheck(dropped, inputs)

    def by_aten_s_name(*inputs):
        return getattr(OPS, FLASH)(*inputs, attn_mask=draw((6, 5), torch.float64))[0]

    inputs = tensors((6, 5, 3, 3), torch.float64)
    assert torch.autograd.gradcheck(by_aten_s_name, inputs) and torch.autograd.gradgradcheck(by_aten_s_name, inputs)


def test_some_gradients():
    q, k, v = tensors((20, 30, 16, 16), torch.float32)
    want = torch.autograd.grad(exact(q, k, v).sum(), (q, k, v))
    for i, x in enumerate((q, k, v)):
        others = [t if t is x else t.detach() for t in (q, k, v)]
        grad = torch.autograd.grad(OPS.scaled_dot_product_attention(*others).sum(), x)[0]
        torch.testing.assert_close(grad, want[i], rtol=1e-4, atol=1e-5)


def test_opcheck():
    q, k, v = tensors((9, 11, 16, 16), torch.float32, "projected", 4, 2)
    for options in ((None, 0.0, True), (draw((9, 11), torch.float32), 0.0, False), (None, 0.5, False)):
        opcheck(OPS.attention_forward.default, (q, k, v, *options), test_utils=("test_schema", "test_faketensor"))
        y, logsumexp, random = OPS.attention_forward(q, k, v, *options)
        given = [x.detach() for x in (y, q, k, v, y, logsumexp, random)]
        opcheck(OPS.attention_backward.default, (*given, *options))
    opcheck(OPS.attention_kept.default, (random, [2, 4, 9, 11], 0.5))
    opcheck(OPS.attention_forward.default, (q, k, v, None, 0.0, True))
    opcheck(OPS.scaled_dot_product_attention.default, (q, k, v), {"enable_gqa": True})
    opcheck(getattr(OPS, FLASH).default, tuple(tensors((9, 11, 16, 16), torch.float32)))


def test_compiled():
    q, k, v = tensors((20, 30, 16, 16), torch.float32, "projected", 4, 2)

    def attention(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).square().sum()

    want = torch.autograd.grad(attention(q, k, v), (q, k, v))
    torch._dynamo.reset()
    rusttorch.reset_stats()
    with rusttorch.use("attention"):
        compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
        ours = torch.autograd.grad(compiled(q, k, v), (q, k, v))
    assert rusttorch.stats()["attention_backward"].ran == 1
    for x, y in zip(ours, want, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of stock's vmap
def test_transforms():
    q, k, v = (x.detach() for x in tensors((5, 7, 8, 8), torch.float32))
    many = [torch.stack([x, 2 * x, -x]) for x in (q, k, v)]
    want = torch.stack([F.scaled_dot_product_attention(*each) for each in zip(*many, strict=True)])
    for op in (OPS.scaled_dot_product_attention, lambda *each: OPS.attention_forward(*each)[0]):
        torch.testing.assert_close(torch.vmap(op)(*many), want)
    with rusttorch.use("attention"):
        torch.testing.assert_close(torch.vmap(F.scaled_dot_product_attention)(*many), want)
        ours = torch.func.grad(lambda q: F.scaled_dot_product_attention(q, k, v).square().sum())(q)
    stock = torch.func.grad(lambda q: F.scaled_dot_product_attention(q, k, v).square().sum())(q)
    torch.testing.assert_close(ours, stock)


@pytest.mark.parametrize("autocast", (False, True))
def test_layers_under_use(autocast):
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
    decoder = torch.nn.TransformerDecoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
    x = draw((3, 20, 32), torch.float32)
    padding = torch.arange(20) > torch.tensor([[19], [12], [7]])
    results = []
    for swapped in (False, True):
        rusttorch.reset_stats()
        with (
            rusttorch.use("attention") if swapped else torch.enable_grad(),
            torch.autocast("cpu", torch.bfloat16, enabled=autocast),
        ):
            y = decoder(layer(x, src_key_padding_mask=padding), x)
            loss = y.float().square().mean()
        results.append([y, *torch.autograd.grad(loss, [*layer.parameters(), *decoder.parameters()])])
    if not autocast or is_taken(torch.bfloat16):
        assert rusttorch.stats()["attention_forward"].ran == 3
    for stock, ours in zip(*results, strict=True):
        torch.testing.assert_close(
            ours, stock, **({"rtol": 0.1, "atol": 0.05} if autocast else {"rtol": 1e-4, "atol": 1e-5})
        )


def test_any_number_of_threads():
    threads = torch.get_num_threads()
    q, k, v = tensors((300, 290, 64, 64), torch.float32, "projected", 4, 2)
    try:
        results = []
        for n in (1, 2, 5):
            torch.set_num_threads(n)
            torch.manual_seed(0)
            y = OPS.attention_forward(q, k, v, None, 0.1, True)[0]
            results.append([y, *torch.autograd.grad(y.square().sum(), (q, k, v))])
    finally:
        torch.set_num_threads(threads)
    for many in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], many, strict=True))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("is_causal", (False, True))
def test_only_the_inputs_are_read(dtype, is_causal):
    """Where kernels read whole vectors and tiles: what lies beside the inputs, and what a call before read, is NaN."""

    def run(q, k, v, grad):
        y = OPS.attention_forward(q, k, v, None, 0.0, is_causal)[0]
        return [y, *torch.autograd.grad(y, (q, k, v), grad)]

    def inputs(sizes):
        return [*tensors(sizes, dtype), draw((2, 4, sizes[0], sizes[3]), dtype, 7)]

    nothing = [torch.full_like(x, math.nan).requires_grad_(x.requires_grad) for x in inputs((130, 130, 140, 140))]
    for sizes in ((1, 17, 7, 9), (15, 33, 40, 65), (129, 130, 24, 100), (33, 200, 65, 31)):
        alone = inputs(sizes)
        beside = [F.pad(x.detach(), (3, 5, 2, 7), value=math.nan)[..., 2:-7, 3:-5] for x in alone]
        expected = run(*alone)
        run(*nothing)
        found = run(*[x.requires_grad_(y.requires_grad) for x, y in zip(beside, alone, strict=True)])
        assert all(map(torch.equal, found, expected)), sizes


MEMORY = """
import resource, torch, rusttorch
x = [torch.randn(1, 1, 12000, 16, requires_grad=True) for _ in range(3)]
with rusttorch.use("attention"):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    y = torch.nn.functional.scaled_dot_product_attention(*x, is_causal=True, dropout_p=0.1)
    y.sum().backward()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


def test_memory():
    """In proportion to the queries and the keys: all scores of these would be 549 MB."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", MEMORY], env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 60


KEPT = """
import torch, rusttorch
attention = torch.ops.rusttorch.scaled_dot_product_attention
q = torch.randn(1, 1, 16, 32, requires_grad=True)
size = lambda: int(open("/proc/self/statm").read().split()[1]) >> 8
for keys in (1000, 400_000):
    k, v = (torch.randn(1, 1, keys, 32, requires_grad=True) for _ in range(2))
    attention(q, k, v, dropout_p=0.1).sum().backward()
    del k, v
    before = size() if keys == 1000 else before
print(size() - before)
"""


def test_memory_is_given_back():
    """The sums of the gradients by these keys and values are 98 MiB; what is kept is less than 16 of each."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    # AddressSanitizer, under which this may run, would keep 256 MiB of what is freed.
    environment["ASAN_OPTIONS"] = os.environ.get("ASAN_OPTIONS", "") + ":quarantine_size_mb=1"
    done = subprocess.run([sys.executable, "-c", KEPT], env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 40


def test_scales():
    q, k, v = (x.detach() for x in tensors((9, 11, 16, 16), torch.float32))
    for is_causal in (False, True):  # (Of less than 0 stock's is NaN with is_causal.)
        for scale in (None, 1.5, 0.0, -0.5):
            ours = OPS.scaled_dot_product_attention(q, k, v, is_causal=is_causal, scale=scale)
            torch.testing.assert_close(ours.double(), exact(q, k, v, None, is_causal, scale), rtol=1e-5, atol=1e-5)
