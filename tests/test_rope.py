"""Rotary embeddings: against float64, in the layouts and options of transformers' models."""

import pytest
import rusttorch
import torch
from cases import DTYPES, opcheck
from torch.autograd import gradcheck, gradgradcheck

OPS = torch.ops.rusttorch


def rotate(x, interleaved):
    """As transformers' rotate_half, and its rotate_every_two."""
    if interleaved:
        return torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)
    n = x.shape[-1] // 2
    return torch.cat((-x[..., n:], x[..., :n]), -1)


def stock(q, k, cos, sin, interleaved=False):
    """As transformers' apply_rotary_pos_emb."""
    n, cos, sin = cos.shape[-1], cos.unsqueeze(-3), sin.unsqueeze(-3)

    def turned(x):
        head = x[..., :n] * cos + rotate(x[..., :n], interleaved) * sin
        return torch.cat((head, x[..., n:]), -1)

    return turned(q), turned(k)


def draw(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def angles(batch, steps, n, dtype=torch.float64, interleaved=False):
    """As a model's rotary embedding makes them, of positions that begin anywhere."""
    each = 10000.0 ** (-torch.arange(0, n, 2, dtype=torch.float64) / n)
    angle = (torch.arange(steps) + torch.arange(batch)[:, None] * 7)[..., None] * each
    angle = angle.repeat_interleave(2, -1) if interleaved else torch.cat((angle, angle), -1)
    return angle.cos().to(dtype), angle.sin().to(dtype)


def transposed(heads, size, dtype, seed):
    """As a projection gives it."""
    return draw(2, 9, heads * size, dtype=dtype, seed=seed).view(2, 9, heads, size).transpose(1, 2)


# How q lies, and k, which has other heads: of head size D.
LAYOUTS = {
    "transposed": lambda d, dtype: (transposed(6, d, dtype, 1), transposed(2, d, dtype, 2)),
    "contiguous": lambda d, dtype: (draw(2, 6, 9, d, dtype=dtype, seed=1), draw(2, 2, 9, d, dtype=dtype, seed=2)),
    "packed": lambda d, dtype: draw(2, 9, 8, d, dtype=dtype, seed=1).transpose(1, 2).split((6, 2), 1),
    "one image": lambda d, dtype: (draw(6, 9, d, dtype=dtype, seed=1), draw(2, 9, d, dtype=dtype, seed=2)),
    "misaligned": lambda d, dtype: (
        draw(2, 6, 9, d + 1, dtype=dtype, seed=1)[..., 1:],
        draw(2, 2, 9, d + 1, dtype=dtype, seed=2)[..., 1:],
    ),
    "windows": lambda d, dtype: (  # that overlap
        draw(2, 6, 8 + d, dtype=dtype, seed=1).unfold(2, d, 1),
        draw(2, 8 + d, dtype=dtype, seed=2).unfold(1, d, 1)[:, None].expand(-1, 2, -1, -1),
    ),
    "columns apart": lambda d, dtype: (
        draw(2, 6, 9, 2 * d, dtype=dtype, seed=1)[..., ::2],
        draw(2, 2, 9, d, dtype=dtype, seed=2),
    ),
    "five dims": lambda d, dtype: (draw(2, 1, 6, 9, d, dtype=dtype, seed=1), draw(2, 1, 2, 9, d, dtype=dtype, seed=2)),
}
SIZES = (
    (64, 64),
    (128, 128),
    (80, 32),
    (80, 80),
    (72, 72),
    (96, 96),
    (10, 6),
    (2, 2),
)  # of a head, and how many of it are turned


def ran(name="rope"):
    return rusttorch.stats().get(name, (0,))[0]


def run(f, q, k, cos, sin, interleaved, grads):
    q, k = (x.detach().requires_grad_() for x in (q, k))
    results = f(q, k, cos, sin, interleaved=interleaved)
    return [*(y.detach() for y in results), *torch.autograd.grad(results, (q, k), grads)]


@pytest.mark.parametrize("interleaved", (False, True))
@pytest.mark.parametrize("batch", (1, 2))
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_accuracy(layout, dtype, sizes, batch, interleaved):
    head, turned = sizes
    if batch == 2 and layout in ("one image", "five dims"):
        pytest.skip("has no batch")
    q, k = LAYOUTS[layout](head, dtype)
    grads = [draw(*x.shape, dtype=dtype, seed=k) for k, x in enumerate((q, k))]
    cos, sin = angles(batch, 9, turned, dtype, interleaved)
    if layout in ("one image", "five dims"):
        cos, sin = cos[0], sin[0]
    wide = [t.double() for t in (q, k, cos, sin)]
    exact = run(stock, *wide, interleaved, [g.double() for g in grads])
    before = ran(), ran("rope_backward")
    ours = run(rusttorch.rope, q, k, cos, sin, interleaved, grads)
    if layout not in ("columns apart", "windows", "five dims"):
        assert (ran(), ran("rope_backward")) == (before[0] + 1, before[1] + 1), "handed to aten"
    theirs = run(stock, q, k, cos, sin, interleaved, grads)
    for e, s, o, x in zip(exact, theirs, ours, (q, k, *grads), strict=True):
        assert o.dtype == dtype and o.shape == x.shape
        assert o.stride() == torch.empty_like(x).stride()
        error = lambda t, e=e: (t.double() - e).abs().max()  # noqa: E731
        eps = torch.finfo(dtype).eps * (4 if dtype == torch.float64 else 1)
        assert error(o) <= error(s) + eps  # never worse, by more than a rounding of 1


@pytest.mark.parametrize("size", (64, 10))
@pytest.mark.parametrize("interleaved", (False, True))
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
def test_angles_of_float32_beside_16_bits(dtype, interleaved, size):
    """As under autocast; the results are of q's dtype."""
    q, k = transposed(6, size, dtype, 1), transposed(2, size, dtype, 2)
    cos, sin = angles(2, 9, size, torch.float32, interleaved)
    grads = [torch.ones_like(x) for x in (q, k)]
    exact = run(stock, q.double(), k.double(), cos.double(), sin.double(), interleaved, [g.double() for g in grads])
    for e, o in zip(exact, run(rusttorch.rope, q, k, cos, sin, interleaved, grads), strict=True):
        assert o.dtype == dtype
        torch.testing.assert_close(o.double(), e, rtol=torch.finfo(dtype).eps, atol=1e-6)
    q, k, cos, sin = (t.float() for t in (q, k, cos.to(dtype), sin.to(dtype)))
    torch.testing.assert_close(rusttorch.rope(q, k, cos.to(dtype), sin.to(dtype)), rusttorch.rope(q, k, cos, sin))


@pytest.mark.parametrize("interleaved", (False, True))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "windows"])
def test_in_place(layout, dtype, interleaved):
    q, k = LAYOUTS[layout](10, dtype)
    cos, sin = (t[0] for t in angles(1, 9, 6, dtype, interleaved))
    wanted = rusttorch.rope(q, k, cos, sin, interleaved=interleaved)
    where = [x.data_ptr() for x in (q, k)]
    assert rusttorch.rope_(q, k, cos, sin, interleaved=interleaved) is None
    assert [x.data_ptr() for x in (q, k)] == where
    assert torch.equal(q, wanted[0]) and torch.equal(k, wanted[1])


def test_in_place_has_no_derivative_and_counts_as_a_change():
    q, k = draw(1, 2, 3, 4).requires_grad_(), draw(1, 2, 3, 4)
    with pytest.raises(RuntimeError, match=r"in-place operation|no derivative"):
        rusttorch.rope_(q, k, *angles(1, 3, 4))
    version = k._version
    rusttorch.rope_(k.clone(), k, *angles(1, 3, 4))
    assert k._version == version + 1
    expanded = draw(1, 1, 3, 4).expand(1, 2, 3, 4)
    with pytest.raises(RuntimeError, match="single memory location"):
        rusttorch.rope_(expanded, k, *angles(1, 3, 4))


@pytest.mark.parametrize("interleaved", (False, True))
@pytest.mark.parametrize("angles_too", (False, True))
def test_derivatives(angles_too, interleaved):
    """By cos and sin too, whatever they are: here their halves are not alike."""
    q, k = draw(2, 2, 3, 6, seed=1).requires_grad_(), draw(2, 1, 3, 6, seed=2).requires_grad_()
    for shape in ((1, 3, 4), (2, 3, 4), (3, 4)):
        cos, sin = (draw(*shape, seed=k).requires_grad_(angles_too) for k in (3, 4))

        def f(q, k, cos, sin):
            return rusttorch.rope(q, k, cos, sin, interleaved=interleaved)

        gradcheck(f, (q, k, cos, sin))
        gradgradcheck(f, (q, k, cos, sin))
        backward = lambda *x: rusttorch.rope_backward(*x, interleaved=interleaved)  # noqa: E731
        gradcheck(backward, (q, k, cos, sin))
    torch.testing.assert_close(f(q, k, cos, sin), stock(q, k, cos, sin, interleaved))


def test_gradient_of_one_of_both():
    q, k = draw(1, 2, 3, 4).requires_grad_(), draw(1, 1, 3, 4).requires_grad_()
    cos, sin = angles(1, 3, 4)
    for n in (0, 1):
        ours, theirs = (
            torch.autograd.grad(f(q, k, cos, sin)[n].sum(), (q, k), materialize_grads=True)
            for f in (rusttorch.rope, stock)
        )
        torch.testing.assert_close(ours, theirs)


def test_turning_back():
    q, k = transposed(6, 64, torch.float64, 1), transposed(2, 64, torch.float64, 2)
    cos, sin = angles(2, 9, 64)
    torch.testing.assert_close(rusttorch.rope_backward(*rusttorch.rope(q, k, cos, sin), cos, sin), (q, k))


def test_not_a_number_stays_in_its_pair():
    q, k = draw(1, 1, 2, 8), draw(1, 1, 2, 8)
    q[0, 0, 1, 2] = float("nan")
    turned, _ = rusttorch.rope(q, k, *angles(1, 2, 8))
    assert turned.isnan().nonzero().tolist() == [[0, 0, 1, 2], [0, 0, 1, 6]]


def test_bad_input():
    q, k, (cos, sin) = draw(2, 2, 3, 4), draw(2, 2, 3, 4), angles(1, 3, 4)
    for message, arguments in (
        ("even number of columns", (q, k, cos[..., :3], sin[..., :3])),
        ("even number of columns", (q[..., :2], k, cos, sin)),
        ("one shape", (q, k, cos, sin[..., :2])),
        ("must match|broadcast", (q, k, *angles(1, 4, 4))),
        ("must match|broadcast", (q, k, *angles(3, 3, 4))),
        ("floating point", (q.long(), k, cos, sin)),
    ):
        before = q.clone()
        for f in (rusttorch.rope, rusttorch.rope_):
            with pytest.raises(RuntimeError, match=message):
                f(*arguments)
        assert torch.equal(q, before)


def test_empty():
    for shape in ((0, 2, 3, 4), (2, 0, 3, 4)):
        y, _ = rusttorch.rope(draw(*shape), draw(2, 2, 3, 4), *angles(1, 3, 4))
        assert y.shape == shape


def test_threads_give_the_same_bits():
    q, k = draw(2, 8, 128, 64, dtype=torch.float32), draw(2, 2, 128, 64, dtype=torch.float32)
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(rusttorch.rope(q, k, *angles(1, 128, 64, torch.float32)))
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("layout", ("transposed", "packed", "columns apart"))
def test_opcheck(layout):
    q, k = LAYOUTS[layout](10, torch.float32)
    cos, sin = angles(1, 9, 6, torch.float32)
    opcheck(OPS.rope, (q.detach().requires_grad_(), k.detach().requires_grad_(), cos, sin))
    opcheck(OPS.rope_backward, (q, k, cos, sin), {"interleaved": True})
    opcheck(OPS.rope_, (q.clone(), k.clone(), cos, sin))


def test_compile_and_vmap():
    q, k = (x.detach().requires_grad_() for x in LAYOUTS["transposed"](10, torch.float32))
    cos, sin = angles(1, 9, 6, torch.float32)

    def f(q, k):
        q, k = rusttorch.rope(q * 2, k, cos, sin)
        return (q * k.repeat_interleave(3, 1)).sum()

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(q, k), f(q, k))
    torch.testing.assert_close(torch.autograd.grad(compiled(q, k), (q, k)), torch.autograd.grad(f(q, k), (q, k)))

    def in_place(q, k):
        q, k = q + 1, k + 1
        rusttorch.rope_(q, k, cos, sin, interleaved=True)
        return q, k

    with torch.no_grad():
        compiled = torch.compile(in_place, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(q, k), in_place(q, k))
    ours = torch.vmap(lambda q, k: rusttorch.rope(q, k, cos[0], sin[0]))(q, k)
    torch.testing.assert_close(ours, rusttorch.rope(q, k, cos, sin))
