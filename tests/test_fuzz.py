"""Every op called with arguments drawn by its schema, most of them wrong: an exception is right, a crash is not.

The same calls in each run: FUZZ_CALLS of them, from FUZZ_SEED. `make asan` makes more of them, under AddressSanitizer
and UBSan. What is left out is what ends the process in stock as well.
"""

import os
import random
import warnings

import rusttorch
import torch
from rusttorch._register import overload

CALLS, SEED = int(os.environ.get("FUZZ_CALLS", 10_000)), int(os.environ.get("FUZZ_SEED", 0))
DTYPES = (*[torch.float32] * 4, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.bool)
RARE = (torch.uint8, torch.complex64, torch.float8_e4m3fn)
HUGE = 2**62
R, A = torch.ops.rusttorch, torch.ops.aten
# Sizes to be made: none is met by memory that is there but would take a machine's whole, and none is 0, beside which
# stock walks over the others. The largest is negative if cut to 32 bits.
SIZES = (1, 2, 3, 16, -1, -2, 2**42 + 2**31, -(2**63))
# Where a tensor of more elements than memory is refused when the output is made. Others would walk over all of them.
ELEMENTWISE = ("pointwise", "activation")


def a_size(draw):
    return draw.choice((0, 1, 1, 2, 3, 7, 16, 33, 100))


def a_tensor(draw, shape, huge, dtypes=DTYPES):
    """Of about the shape: other dtypes, layouts, ranks; expanded, sliced, overlapping; of no memory, or too much."""
    dtype = draw.choice(dtypes if draw.random() < 0.95 or dtypes is not DTYPES else RARE)
    if draw.random() < 0.2:
        shape = [a_size(draw) for _ in range(draw.randrange(4))]
    # The smallest integer, divided by -1, ends the process in stock too.
    factor = draw.choice((1, -3, 1e30, float("nan")) if dtype.is_floating_point else (1, -3, 1e9))
    x = torch.full(shape, factor).to(dtype)
    kind = draw.randrange(12)
    if kind == 0 and x.dim() > 1:
        x = x.transpose(0, -1)
    elif kind == 1 and x.dim():
        x = x[::2]
    elif kind == 2 and x.numel():
        x = x.flatten()[:1].expand(draw.choice((3, 40)), 5)
    elif kind == 3 and x.numel():
        x = torch.as_strided(x, (draw.randrange(5), 3), (0, 0))
    elif kind == 4 and huge:
        size = draw.choice(((HUGE,), (2**31, 2**31), (HUGE, 0), (0, HUGE), (2**40, 3)))
        x = torch.as_strided(torch.ones(1, dtype=dtype), size, (0,) * len(size))
    elif kind == 5:
        x = x.to("meta")
    elif kind == 6:
        x = x.to_sparse() if x.dtype == torch.float32 and x.dim() else x
    return x.requires_grad_(x.is_floating_point() and x.layout == torch.strided and draw.random() < 0.2)


def a_value(draw, kind, shape, family, huge):
    """By the schema's name of the type."""
    if kind.startswith("Optional["):
        return None if draw.random() < 0.4 else a_value(draw, kind[9:-1], shape, family, huge)
    if kind.startswith("List["):
        return [a_value(draw, kind[5:-1], shape, family, huge) for _ in range(draw.randrange(4))]
    values = {
        # Stock's smooth_l1_loss of integers divides by a beta that is 0 as an integer: the process ends.
        "Tensor": lambda: a_tensor(draw, shape, huge, DTYPES[:7] if family == "loss" else DTYPES),
        "number": lambda: draw.choice((0, 1, -2, 2.5, 1e300, float("inf"), float("nan"), True, 2**63 - 1, 1j)),
        "int": lambda: draw.choice((0, 0, 1, 2, -1, -2, 3, -100, 2**31, -(2**63))),
        "float": lambda: draw.choice((0.0, 0.5, 1.0, 1e-5, -1.0, 3.0, float("inf"), float("nan"))),
        "bool": lambda: draw.random() < 0.5,
        "str": lambda: draw.choice(("none", "tanh", "trunc", "floor", "", "x")),
    }
    return values[kind]()


def a_call(draw, op, family):
    shape = [a_size(draw) for _ in range(draw.randrange(4))]
    args, kwargs = [], {}
    for a in op._schema.arguments:
        kind = str(a.type)
        if a.name == "dtype":
            kwargs[a.name] = draw.choice((None, None, *DTYPES))
        elif a.name == "memory_format":  # any other int is an enumerator to torch, which it follows off its table
            kwargs[a.name] = draw.choice((None, torch.contiguous_format, torch.preserve_format, torch.channels_last))
        elif a.name == "num_layers":  # of fewer than one stock's lstm.data ends the process
            args.append(draw.choice((1, 1, 2, 3)))
        elif a.name in ("output_size", "input_size"):
            args.append([draw.choice(SIZES) for _ in range(draw.randrange(5))])
        elif a.kwarg_only:
            kwargs[a.name] = a_value(draw, kind, shape, family, False)
        elif not (a.has_default_value() and draw.random() < 0.5) or "Tensor" in kind:
            args.append(a_value(draw, kind, shape, family, family in ELEMENTWISE))
        else:
            args.append(a.default_value)
    return args, kwargs


def test_hostile_arguments():
    draw = random.Random(SEED)
    # Of bags stock reads and writes where indices and offsets say, whatever their shapes: test_bags draws those.
    ops = [(overload("rusttorch", op.name), op.family) for op in rusttorch.ops() if op.family != "embedding_bag"]
    refused = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(CALLS):
            op, family = draw.choice(ops)
            args, kwargs = a_call(draw, op, family)
            try:
                result = op(*args, **kwargs)
                if isinstance(result, torch.Tensor) and result.requires_grad and not result.is_meta:
                    result.sum().backward()
            except Exception:
                refused += 1
    assert 0.1 * CALLS < refused < 0.9 * CALLS


def outcome(f, *args):
    try:
        return f(*args)
    except Exception as e:
        return type(e)


def test_bags():
    """As stock, or its error: indices out of range, offsets in any order, too many weights. Backward an error."""
    draw, refused = random.Random(SEED), 0
    for _ in range(CALLS // 10):
        dtype, integers = draw.choice(DTYPES[:7]), draw.choice((torch.int64, torch.int64, torch.int32))
        weight = torch.randn(draw.choice((1, 3, 20)), draw.choice((1, 7, 16, 33))).to(dtype)
        outside = draw.random() < 0.1
        indices = torch.randint(-outside, len(weight) + outside, (draw.choice((1, 5, 40)),), dtype=integers)
        offsets = [draw.randrange(len(indices) + 1 + (draw.random() < 0.05)) for _ in range(draw.randrange(5))]
        offsets = torch.tensor([0, *(offsets if draw.random() < 0.1 else sorted(offsets))], dtype=integers)
        last = draw.random() < 0.3
        if last and (draw.random() < 0.9 or len(offsets) == 1):  # stock writes before the first of no bags
            offsets = torch.cat([offsets, offsets.new_tensor([len(indices)])])
        mode = draw.randrange(3)
        weights = torch.rand(len(indices) + (draw.random() < 0.1)).to(dtype) if draw.random() < 0.3 else None
        options = (False, mode, False, weights, last, draw.choice((-1, -1, 0, 2)))
        ours, stock = (outcome(m._embedding_bag, weight, indices, offsets, *options) for m in (R, A))
        if isinstance(stock, type):
            refused += 1
            assert ours == stock
            continue
        torch.testing.assert_close(ours, stock)
        bag = torch.randint(len(offsets) + (draw.random() < 0.1), indices.shape, dtype=integers)
        grad, kept = torch.randn(len(offsets), weight.shape[1]).to(dtype), (torch.ones_like(offsets), stock[3])
        rows = len(weight) - (draw.random() < 0.1)
        if mode < 2:
            found = outcome(R._embedding_bag_dense_backward, grad, indices, bag, *kept, rows, False, mode, weights)
            assert isinstance(found, torch.Tensor) == bool(bag.max() < len(grad) and indices.max() < rows)
    assert 0.05 * CALLS < 10 * refused < 0.8 * CALLS


def test_scattered():
    """As stock, or its error: of every dim, with indices out of range, sources of other sizes, and several indices."""
    draw, refused = random.Random(SEED), 0
    for _ in range(CALLS // 10):
        shape = [draw.choice((0, 1, 2, 7, 20)) for _ in range(draw.randrange(1, 4))]
        dim = draw.randrange(-len(shape), len(shape))
        x = torch.randint(9, shape).to(draw.choice((*DTYPES[:9], torch.uint8)))  # of which sums are exact
        sizes = [n if draw.random() < 0.98 else 3 for n in shape]
        sizes[dim] = draw.choice((0, 1, 5, 40))
        outside = draw.random() < 0.1
        high = max(1, shape[dim] + outside)
        source, each = torch.randint(9, sizes).to(x.dtype), torch.randint(-outside, high, sizes)
        index = torch.randint(-outside, high, (sizes[dim],), dtype=draw.choice((torch.int64, torch.int32)))
        place = [None] * (dim % len(shape))
        for name, *args in (
            ("index_add", dim, index, source),
            ("scatter_add", dim, each, source),
            ("_index_put_impl", [*place, index - (index % 2) * high], source, True),
            (
                "_index_put_impl",
                [*place, index, index][: len(shape)],
                source.select(dim, 0) if sizes[dim] else source,
                True,
            ),
        ):
            ours, stock = (outcome(getattr(m, name), x, *args) for m in (R, A))
            refused += isinstance(stock, type)
            assert ours == stock if isinstance(stock, type) else torch.equal(ours, stock)
    assert 0.02 * CALLS < refused < 0.35 * CALLS
