"""The tests that every elementwise family runs over its own table of cases."""

import itertools
import math

import pytest
import rusttorch
import torch
from cases import DTYPES, INTEGERS, LAYOUTS, ON_DEVICE, OWN, REFERENCE, clone, first, inputs, opcheck

SPECIAL = (
    0.0,
    -0.0,
    1.0,
    -1.0,
    math.inf,
    -math.inf,
    math.nan,
    1e-40,
    -1e-40,
    5e-324,
    88.0,
    -88.0,
    30.0,
    -30.0,
)


# Gradients that pass through zero inside their domain: below a tenth of the incoming gradient an error counts by its
# size, not by its ratio to what is left after cancellation. (lerp: of its start.) Losses that do: below the mean input.
CROSSING = (
    "lerp.Scalar",
    "addcmul",  # of its start too
    *("gelu_backward", "silu_backward", "mish_backward", "hardswish_backward"),
    "binary_cross_entropy_with_logits_backward",
)
CROSSING_LOSS = ("kl_div", "binary_cross_entropy_with_logits")


# What stock raises for where an input is no probability.
PROBABILITIES = ("binary_cross_entropy", "binary_cross_entropy_backward", "bce_loss", "bce_loss_backward")


# Losses that stock makes of several ops: at 30 and 88 a step of its overflows in f16, or cancels, where ours does not.
ROUNDED_BY_STOCK = ("kl_div", "kl_div_backward", "binary_cross_entropy_with_logits_backward")

# What stock makes of two ops, of which the first rounds what is next to nothing to 0, so that times infinity it is NaN.
ROUNDED_BETWEEN = ("swiglu", "geglu")

# Where stock's CUDA kernels differ from its CPU's and ours do not:
# - it multiplies by the divisor's reciprocal, which errs by more than a quotient;
INEXACT = ("div.Scalar",) if ON_DEVICE else ()
# - up to 2026 it made 0 of -0 there;
ZERO_S_SIGN = ("relu", "clamp.Tensor") if ON_DEVICE else ()
# - it refuses a number beside a whole weight.
NO_NUMBERS = ("binary_cross_entropy", "binary_cross_entropy_with_logits") if ON_DEVICE else ()

USUAL_ERRORS = {}


def error(result, reference, dtype, case, tensors):
    """Largest error in ulp of dtype, over the finite references."""
    info = torch.finfo(dtype)
    if reference.numel() == 0 or tensors[0].numel() == 0:
        return 0.0
    finite = reference.isfinite() & (reference.abs() < info.max)
    if not finite.any():
        return 0.0
    size = reference.abs().clamp(info.tiny)
    if case.op in CROSSING:
        size = torch.maximum(size, 0.1 * tensors[0].double().abs())
    if case.op in CROSSING_LOSS:
        size = size.clamp(tensors[0].double().abs().mean())
    ulp = size.log2().floor().exp2() * info.eps
    return ((result.double() - reference).abs() / ulp)[finite].max().item()


def out_name(op):
    return next(a.name for a in op._schema.arguments if a.alias_info and a.alias_info.is_write)


def run(f, case, tensors, **kwargs):
    return f(*case.arguments(tensors), **case.kwargs, **kwargs)


def usual_error(case, dtype):
    """Stock's largest over some thousand inputs, and two ulp at least: what an elementary function may err by."""
    key = (str(case), case.domain, case.positions, dtype)
    if key not in USUAL_ERRORS:
        tensors = inputs(case, "contiguous", dtype)
        result = first(run(case.stock(), case, tensors))
        USUAL_ERRORS[key] = max(2, error(result, case.reference(tensors), dtype, case, tensors))
    return USUAL_ERRORS[key]


def steps(x):
    """The strides that are ever taken."""
    return [stride for stride, n in zip(x.stride(), x.shape, strict=True) if n > 1]


def assert_as_right(ours, stock, case, tensors):
    """err(ours) <= 2 err(stock) + 1 ulp against float64; to the bit where stock is exact or float64 itself."""
    assert ours.dtype == stock.dtype
    assert ours.shape == stock.shape
    if ours.numel() == 0:
        return
    assert steps(ours) == steps(stock) or case.op in OWN
    assert torch.equal(ours.isnan(), stock.isnan())
    if (case.exact and case.op not in INEXACT) or not ours.dtype.is_floating_point:
        assert torch.equal(ours.nan_to_num(), stock.nan_to_num())
        return
    reference = case.reference(tensors)
    if ("softmax" in case.op or case.op == "cumsum") and ours.dtype == torch.float64:
        # Stock's own sum of 70,000 terms is not exact to the last digits, and a log near zero cancels.
        assert (ours - reference).abs().max() <= 1000 * torch.finfo(torch.float64).eps * reference.abs().max()
        return
    of_stock = error(stock, reference, ours.dtype, case, tensors)
    if ours.numel() < 1000:
        of_stock = max(of_stock, usual_error(case, ours.dtype))  # of so few, less than that is luck
    bound = 2 * of_stock + 1
    if ours.dtype == torch.float64:
        # The reference is no more precise than the op here (tests/test_math.py has one that is): a product has a
        # rounding for each factor, and a weight enlarges what cancellation leaves.
        bound = max(bound, 16, case.op == "prod" and tensors[0].numel() ** 0.5, 100 * (len(tensors) > 3))
    assert error(ours, reference, ours.dtype, case, tensors) <= bound


# In what a kernel is there for, by family; anything may be stock's in the rest of cases.LAYOUTS.
ONE_RUN = ("contiguous", "tail", "long", "misaligned")
DENSE = (*ONE_RUN, "transposed", "channels_last")
NARROW = (torch.bfloat16, torch.float16)
OF_POWERS = DTYPES if torch.backends.cpu.get_cpu_capability() == "DEFAULT" else (torch.float64,)
# And what is stock's nevertheless, because it has no kernel or stock's was measured to be faster: (the beginning of the
# case's name, layouts, dtypes).
STOCK_S = (
    *[(f"div.{op}_mode", DENSE, NARROW) for op in ("Tensor", "Scalar")],
    ("div.Tensor_mode-rounding_mode=floor", DENSE, DTYPES),
    *[(f"pow.Tensor_Scalar-{e}", DENSE, OF_POWERS) for e in (2.5, 5, -4, -1.5)],
    ("pow.Tensor_Scalar-0.5", DENSE, NARROW),
    *[(op, ("contiguous", "long"), NARROW) for op in ("neg", "abs", "pow.Tensor_Scalar-2")],
    *[(op, ("contiguous", "long"), NARROW) for op in ("sigmoid_backward", "tanh_backward", "gelu")],
    *[(f"log_sigmoid{op}", ("transposed", "channels_last"), DTYPES) for op in ("", "_forward")],
    *[(f"{op}_loss_backward", ("transposed", "channels_last"), DTYPES) for op in ("mse", "smooth_l1", "huber")],
    *[(op, ("contiguous", "channels_last"), DTYPES) for op in ("sum.dim", "mean.dim", "prod.dim", "amax", "amin")],
    *[(op, ("channels_last",), DTYPES) for op in ("max.dim", "min.dim", "argmax", "any.dim", "all.dim", "logsumexp")],
    *[(op, ("channels_last",), DTYPES) for op in ("var", "std", "linalg_vector_norm-", "norm.ScalarOpt_dim")],
    ("argmin", ("transposed", "channels_last"), DTYPES),
    *[(op, ("tail", "long", "misaligned"), DTYPES) for op in ("cummax", "cummin")],
    *[(f"{op}--1", ("contiguous",), DTYPES) for op in ("cummax", "cummin")],
    *[(f"{op}-0", ("contiguous",), (torch.float16,)) for op in ("cumsum", "cummax", "cummin")],
    ("cumsum", ("long",), DTYPES),  # on a device, of few long rows
    *[(op, ONE_RUN, NARROW) for op in ("_softmax", "softmax.int")],
    *[(op, ("contiguous",), DTYPES) for op in ("_log_softmax-0", "log_softmax.int-0")],
)
# Ops that are made of another one, which is what is counted.
MADE_OF = {"selu": "elu", "celu": "elu", "softmax": "_softmax", "log_softmax": "_log_softmax"}


def calls_of(op):
    """How many calls of an OpOverload a kernel took."""
    base, overload = op._schema.name.removeprefix("rusttorch::"), op._schema.overload_name
    inplace = base.endswith("_")
    via = MADE_OF.get(base.removesuffix("_"))
    name = via + "_" * inplace if via else f"{base}.{overload}" if overload else base
    return rusttorch.stats().get(name, (0, {}))[0]


def run_here(op, case, layout, dtype, kernels, tensors, **kwargs):
    """The result of an op of ours; where a kernel is there for the case, it is the kernel that ran."""
    before = calls_of(op)
    result = run(op, case, tensors, **kwargs)
    is_stock_s = any(str(case).startswith(name) and layout in ls and dtype in ds for name, ls, ds in STOCK_S)
    if layout in kernels and not is_stock_s:
        assert calls_of(op) == before + 1, "handed to stock"
    return result


def laid_out(cases):
    """Each case in each layout; mixed are those of several tensors."""
    both = itertools.product(cases, LAYOUTS)
    return [pytest.param(c, layout, id=f"{c}-{layout}") for c, layout in both if layout != "mixed" or c.count > 1]


def layouts_test(cases, kernels=DENSE):
    """kernels: the layouts that they take."""

    @pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
    @pytest.mark.parametrize("case, layout", laid_out(cases))
    def test(case, layout, dtype):
        tensors = inputs(case, layout, dtype)
        where = (case, layout, dtype, kernels)
        try:
            stock = first(run(case.stock(), case, tensors))
        except (RuntimeError, IndexError) as error:
            with pytest.raises(type(error)):
                run(case.overload("rusttorch"), case, tensors)
            return
        assert_as_right(first(run_here(case.overload("rusttorch"), *where, tensors)), stock, case, tensors)

        out_op = case.overload("rusttorch", "out")
        if out_op is not None:
            out = torch.empty_like(stock)
            assert run_here(out_op, *where, tensors, **{out_name(out_op): out}) is out
            assert_as_right(out, first(run(case.stock(), case, tensors)), case, tensors)
        inplace_op = case.overload("rusttorch", "inplace")
        if inplace_op is not None and layout != "expanded":
            ours, stock = clone(tensors), clone(tensors)
            assert run_here(inplace_op, *where, ours) is ours[0]
            run(case.overload("aten", "inplace"), case, stock)
            assert_as_right(ours[0], stock[0], case, tensors)

    return test


def integers_test(cases):
    @pytest.mark.parametrize("dtype", INTEGERS, ids=lambda d: str(d).removeprefix("torch."))
    @pytest.mark.parametrize("case, layout", laid_out([c for c in cases if c.integers]))
    def test(case, layout, dtype):
        tensors = inputs(case, layout, dtype)
        ours, stock = run(case.overload("rusttorch"), case, tensors), run(case.stock(), case, tensors)
        assert ours.dtype == stock.dtype
        torch.testing.assert_close(ours, stock, rtol=0 if case.exact else 1e-6, atol=0)

    return test


def special_values_test(cases):
    @pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
    @pytest.mark.parametrize("case", cases, ids=str)
    def test(case, dtype):
        """NaN, infinities and the sign of zero as stock; finite values close to it."""
        # Stock's gelu is oneDNN's or ATen's by size, and they differ at infinity (test_activation.py has ours).
        x = torch.tensor(
            [s for s in SPECIAL if not (case.op.startswith(("gelu", "geglu")) and math.isinf(s))], dtype=dtype
        )
        if case.op in PROBABILITIES:
            x = x[(x >= 0) & (x <= 1)]
        if case.op in ROUNDED_BY_STOCK:
            x = x[~x.isfinite() | (x.abs() <= 1)]
        grids = torch.meshgrid(*[x] * case.count, indexing="ij") if case.count > 1 else [x]
        tensors = [g.reshape(-1).contiguous() for g in grids]
        ours = first(run(case.overload("rusttorch"), case, tensors))
        wide = torch.promote_types(dtype, torch.float32) if case.op in ROUNDED_BETWEEN else dtype
        stock = first(run(case.stock(), case, [t.to(wide) for t in tensors])).to(dtype)
        assert torch.equal(ours.isnan(), stock.isnan()), tensors[0][ours.isnan() != stock.isnan()]
        assert torch.equal(ours.isposinf(), stock.isposinf())
        assert torch.equal(ours.isneginf(), stock.isneginf())
        # Where stock's formula cancels or has float32 constants, it says nothing about the last digits.
        ulps = 64 if case.op in CROSSING else 8
        rtol = max(ulps * torch.finfo(dtype).eps, 1e-6 if str(case) in REFERENCE else 0)
        atol = 1e-30 if str(case) in REFERENCE else 4 * torch.finfo(dtype).tiny
        torch.testing.assert_close(ours.nan_to_num(0, 0, 0), stock.nan_to_num(0, 0, 0), rtol=rtol, atol=atol)
        if case.exact and case.op not in ZERO_S_SIGN:
            zero = (stock == 0) & (ours == 0)
            assert torch.equal(ours[zero].signbit(), stock[zero].signbit())

    return test


def requiring_grad(op, case, tensors):
    """The tensors, those requiring a gradient that may: a weight may not, in stock neither (tests/test_loss.py)."""
    names = [a.name for a in op._schema.arguments]
    positions = case.positions or range(len(tensors))
    return [
        t.requires_grad_("weight" not in names[k] and t.dtype.is_floating_point)
        for k, t in zip(positions, tensors, strict=True)
    ]


def derivatives_test(cases):
    @pytest.mark.parametrize("case", cases, ids=str)
    def test(case):
        op = case.overload("rusttorch")
        differentiable = requiring_grad(op, case, inputs(case, "tail", torch.float64))

        def f(*tensors):
            return first(run(op, case, tensors))

        assert torch.autograd.gradcheck(f, differentiable)
        assert torch.autograd.gradgradcheck(f, differentiable)

    return test


def inplace_derivatives_test(cases):
    @pytest.mark.parametrize("case", [c for c in cases if c.overload("rusttorch", "inplace")], ids=str)
    def test(case):
        op = case.overload("rusttorch", "inplace")
        differentiable = [t.double().requires_grad_() for t in inputs(case, "tail", torch.float64)]

        def f(first_tensor, *tensors):
            return run(op, case, [first_tensor.clone(), *tensors])

        def on_view(first_tensor, *tensors):
            base = torch.stack([first_tensor, first_tensor])
            run(op, case, [base[1], *tensors])
            return base

        assert torch.autograd.gradcheck(f, differentiable)
        assert torch.autograd.gradcheck(on_view, differentiable)

    return test


def opcheck_test(cases):
    @pytest.mark.parametrize("form", ["functional", "inplace", "out"])
    @pytest.mark.parametrize("case", cases, ids=str)
    def test(case, form):
        op = case.overload("rusttorch", form)
        if op is None:
            return  # not every op has the form
        for requires_grad in (False, True) if form == "functional" else (False,):
            tensors = inputs(case, "channels_last", torch.float32)
            if requires_grad:
                tensors = requiring_grad(op, case, tensors)
            kwargs = dict(case.kwargs)
            if form == "out":
                kwargs[out_name(op)] = torch.empty_like(first(run(case.stock(), case, tensors)))
            opcheck(op, case.arguments(tensors), kwargs)

    return test


def compile_test(cases):
    @pytest.mark.parametrize("form", ["functional", "inplace", "out"])
    @pytest.mark.parametrize("case", cases, ids=str)
    def test(case, form):
        op = case.overload("rusttorch", form)
        if op is None:
            return
        torch._dynamo.reset()
        name = out_name(op) if form == "out" else None

        def f(*tensors):
            if form == "functional":
                return first(run(op, case, tensors)) * 2
            written = (tensors[0] if form == "inplace" else first(run(case.stock(), case, tensors))).clone()
            if form == "inplace":
                return run(op, case, [written, *tensors[1:]]) + written
            return run(op, case, tensors, **{name: written}) + written

        tensors = inputs(case, "contiguous", torch.float32)
        compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(*tensors), f(*tensors))

    return test


def vmap_test(cases):
    @pytest.mark.parametrize("case", cases, ids=str)
    def test(case):
        op = case.overload("rusttorch")
        tensors = inputs(case, "transposed", torch.float32)

        def f(*xs):
            return first(run(op, case, xs))

        for dim in (0, 1):
            each = torch.stack([f(*xs) for xs in zip(*[x.unbind(dim) for x in tensors], strict=True)])
            torch.testing.assert_close(torch.vmap(f, in_dims=dim)(*tensors), each)
        if case.count == 3 and case.op in NO_NUMBERS:
            return
        if case.count > 1:  # one batched, of lower rank; the others whole
            dims = (0, *[None] * (case.count - 1))
            columns = [tensors[0][:, 0], *tensors[1:]]
            each = torch.stack([f(x, *tensors[1:]) for x in columns[0]])
            torch.testing.assert_close(torch.vmap(f, in_dims=dims)(*columns), each)

    return test


def swapped_test(cases):
    @pytest.mark.parametrize("case", [c for c in cases if c.op not in OWN], ids=str)
    def test(case):
        """Under use(), aten's op gives what rusttorch's gives, with its own derivative."""
        differentiable = not case.op.endswith("_backward")  # aten has no derivative for all of those
        tensors = [t.requires_grad_(differentiable) for t in inputs(case, "contiguous", torch.float32)]

        def both(op):
            y = first(run(op, case, tensors))
            return y, torch.autograd.grad(y.sum(), tensors, materialize_grads=True) if differentiable else ()

        ours, wanted = both(case.overload("rusttorch"))
        with rusttorch.use():
            swapped, got = both(case.overload("aten"))
        assert torch.equal(ours, swapped)
        torch.testing.assert_close(got, wanted)

    return test
