"""Stock torch against `rusttorch.use()` on torch's own database of ops: every op, whether we swap it or not.

    python tests/drop_in.py --out build/drop_in.json       everything
    python tests/drop_in.py "nn.functional.*" sum          some entries
    python tests/drop_in.py --quick 0                      what tests/test_drop_in.py runs

A check is a generator of named results. It runs in stock and under use(): dtypes, shapes, strides, requires_grad,
values, and the exception that ends it, are to be the same. Values may be rounded otherwise: they are then held against
the same check in float64. Each entry and dtype has a process of its own, so that a crash or a hang is a result too.
"""

import argparse
import copy
import ctypes
import fnmatch
import functools
import gc
import itertools
import json
import math
import multiprocessing
import random
import sys
import time
import warnings
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NamedTuple

import rusttorch
import torch
import torch.autograd.forward_ad as fwAD
from torch.utils._pytree import tree_flatten, tree_flatten_with_path, tree_leaves, tree_map, tree_unflatten

# What differs: (pattern of entries, kind of check): why.
PARTS = "with a weight and a pos_weight the parts of stock's formula are differentiated, which keep other tensors"
ROUNDING = "what is left of a sum that cancels is rounding, in stock too"
ZERO = "the sign of a zero"
EXPLAINED = {
    ("nn.functional.cross_entropy", "backward"): "it keeps its gradient, in 16 bits; stock the log-probabilities",
    ("nn.functional.binary_cross_entropy_with_logits", "backward"): PARTS,
    ("nn.functional.binary_cross_entropy_with_logits", "input_changed"): PARTS,
    ("nn.functional.binary_cross_entropy_with_logits", "neg_view"): PARTS,
    ("nn.functional.binary_cross_entropy_with_logits", "zero_tensor"): PARTS,
    (
        "nn.functional.kl_div",
        "backward",
    ): "strides of the target's gradient, where input and target have different ones",
    ("nn.functional.rms_norm", "backward"): ROUNDING,
    ("pca_lowrank", "result_changed"): ROUNDING,
    ("native_layer_norm", "scalar"): ZERO,
    ("*softm*", "zero_tensor"): ZERO,
    ("*cross_entropy", "zero_tensor"): ZERO,
}

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool)
PATIENCE = 120  # seconds that one check may take


# The arguments.

LAYOUTS = {
    "as it is": lambda x: x,
    "transposed": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x,
    "stepped": lambda x: torch.stack([x, x], -1).flatten(-2)[..., ::2] if x.dim() else x,
    "expanded": lambda x: x[:1].expand_as(x) if x.dim() else x,
    "neg_view": lambda x: torch._neg_view(-x) if x.is_floating_point() else x,
    "zero_tensor": lambda x: torch._efficientzerotensor(x.shape, dtype=x.dtype) if x.is_floating_point() else x,
}
OWN_KINDS = ("neg_view", "zero_tensor")  # layouts that are reported as kinds of their own


class Call:
    """An op and the arguments of one sample."""

    def __init__(self, op, sample):
        self.op = op
        leaves, self.spec = tree_flatten((sample.input, sample.args, sample.kwargs))
        self.leaves = [x.detach() if isinstance(x, torch.Tensor) else x for x in leaves]
        self.tensors = [i for i, x in enumerate(leaves) if isinstance(x, torch.Tensor)]
        self.differentiable = [i for i in self.tensors if leaves[i].requires_grad]
        self.of_one_gauge = sample.output_process_fn_grad  # of an eigenvector, what does not depend on its phase

    def __call__(self, leaves, f=None, **kwargs):
        input, args, named = tree_unflatten(leaves, self.spec)
        return (f or self.op)(input, *args, **named, **kwargs)

    def fresh(self, layout="as it is", requires_grad=False):
        """The arguments, for one use."""
        leaves = list(self.leaves)
        for i, x in enumerate(leaves):
            strided = not isinstance(x, torch.Tensor) or x.layout == torch.strided
            leaves[i] = copy.deepcopy(x) if strided else x.clone()
        for i in self.tensors:
            if leaves[i].layout == torch.strided:
                leaves[i] = LAYOUTS[layout](leaves[i])
            leaves[i].requires_grad_(requires_grad and i in self.differentiable)
        return leaves

    def has(self, layout):
        """Whether that layout is another than the sample's."""
        return any(facts(x) != facts(y) for x, y in zip(self.fresh(layout), self.leaves, strict=True))

    def of(self, leaves):
        other = copy.copy(self)
        other.leaves = leaves
        other.tensors = [i for i in self.tensors if isinstance(leaves[i], torch.Tensor)]
        return other

    def double(self):
        return self.of([wider(x) for x in self.leaves])

    def near(self, seed):
        generator = torch.Generator().manual_seed(seed)
        return self.of([nudged(x, generator) for x in self.leaves])


def wider(x):
    if isinstance(x, torch.Tensor):
        return x.to(wider(x.dtype))
    return torch.float64 if x in (torch.float32, torch.bfloat16) else x


def nudged(x, generator):
    """With its floats' last bits changed."""
    if not isinstance(x, torch.Tensor) or not x.is_floating_point() or x.layout != torch.strided:
        return x
    bits = torch.randint(-4, 5, x.shape, generator=generator)
    return x * (1 + bits * torch.finfo(x.dtype).eps).to(x.dtype)


def weights(x, layout="as it is"):
    """The same numbers in each dtype: for a weighted sum of x, or as its tangent."""
    w = torch.randn(x.shape, dtype=torch.bfloat16, generator=torch.Generator().manual_seed(1))
    return LAYOUTS[layout](w.to(x.dtype))


def differentiable(tree):
    return [x for x in tree_leaves(tree) if isinstance(x, torch.Tensor) and x.requires_grad]


def gradients(outputs, inputs, layout="as it is", **options):
    outputs = differentiable(outputs)
    return torch.autograd.grad(outputs, inputs, [weights(y, layout) for y in outputs], allow_unused=True, **options)


def has_memory(x):
    return isinstance(x, torch.Tensor) and x.layout == torch.strided and not x._is_zerotensor()


def place(x):
    return x.untyped_storage().data_ptr() if has_memory(x) else None


def memory(x):
    """All that x is a view of: nothing may be written beside x."""
    return torch.empty(0, dtype=x.dtype).set_(x.untyped_storage()) if has_memory(x) else None


# The checks. What follows `call` is a check's label.


def forward(call, layout):
    leaves = call.fresh(layout)
    result = call(leaves)
    yield "result", result
    of = {place(leaves[i]): i for i in reversed(call.tensors)}
    yield "is a view of argument", [of.get(place(y)) for y in tree_leaves(result)]


def inplace(call, layout):
    leaves = call.fresh(layout)
    result = call(leaves, call.op.inplace_variant)
    yield "result", result
    yield "result is the input", result is leaves[0]
    yield "memory", memory(leaves[0])


def inplace_backward(call, layout):
    leaves = call.fresh(layout, requires_grad=True)
    result = call([leaves[0].clone(), *leaves[1:]], call.op.inplace_variant)
    yield "gradient", gradients(result, differentiable(leaves), layout)


OUTS = {
    "same": torch.ones_like,
    "transposed": lambda y: LAYOUTS["transposed"](torch.ones_like(y)),
    "stepped": lambda y: LAYOUTS["stepped"](torch.ones_like(y)),
    "empty": lambda y: y.new_empty(0),
    "wrong size": lambda y: y.new_ones((*y.shape, 2)),
    "float64": lambda y: torch.ones_like(y, dtype=torch.float64),
    "int64": lambda y: torch.ones_like(y, dtype=torch.int64),
}


def out(call, which):
    result = call(call.fresh())
    outs = tree_map(OUTS[which], result if isinstance(result, torch.Tensor) else tuple(result))
    yield "result", call(call.fresh(), out=outs)
    yield "out", outs
    yield "memory", tree_map(memory, outs)


def out_input(call):
    leaves = call.fresh()
    yield "result", call(leaves, out=leaves[0])


def backward(call, layout):
    leaves = call.fresh(layout, requires_grad=True)
    result = call(leaves)
    yield "result", result
    first = gradients(call.of_one_gauge(result), differentiable(leaves), layout, create_graph=True)
    yield "gradient", first
    if differentiable(first):
        yield "second derivative", gradients(first, differentiable(leaves))


def forward_mode(call, layout, which):
    """Tangents for the arguments of which: where others need one, autograd makes zeros that have no memory."""
    leaves = call.fresh()
    with fwAD.dual_level():
        for i in which:
            leaves[i] = fwAD.make_dual(leaves[i], weights(leaves[i], layout))
        for y in tree_leaves(call(leaves)):
            yield "result and tangent", tuple(fwAD.unpack_dual(y))


def vmap(call):
    leaves = call.fresh()

    def f(*tensors):
        return call([tensors[call.tensors.index(i)] if i in call.tensors else x for i, x in enumerate(leaves)])

    batches = [torch.stack([leaves[i], leaves[i].flip(tuple(range(leaves[i].dim())))]) for i in call.tensors]
    yield "result", torch.vmap(f, randomness="same")(*batches)


def result_changed(call, change):
    leaves = call.fresh(requires_grad=True)
    result = differentiable(call(leaves))[0]
    getattr(result, change)(2)
    result.sum().backward()
    yield "gradient", [x.grad for x in differentiable(leaves)]


def input_changed(call, i):
    leaves = call.fresh(requires_grad=True)
    result = call(leaves)
    with torch.no_grad():
        leaves[i].mul_(0.5) if leaves[i].is_floating_point() else leaves[i].zero_()
    yield "gradient", gradients(result, differentiable(leaves))


def changed(call, *how):
    """call has what is said by how in place of some of the sample's arguments."""
    yield from forward(call, "as it is")


class Check(NamedTuple):
    kind: str
    function: Any
    call: Call
    label: tuple = ()

    def __str__(self):
        return " ".join(map(str, self.label))


OTHER_DTYPES = {torch.float32: torch.float64, torch.bool: torch.int64}


def mixed(call):
    """With an argument of another dtype, or that is one number; and all one number, which promote otherwise."""
    forms = ("other dtype", "one number", "one number, other dtype", "all one number, other dtype")
    for i, form in itertools.product(call.tensors, forms):
        leaves = list(call.leaves)
        for j in call.tensors if "all" in form else [i]:
            if "one number" in form and leaves[j].layout == torch.strided and leaves[j].numel():
                leaves[j] = leaves[j].flatten()[0]
        if "other dtype" in form:
            leaves[i] = leaves[i].to(OTHER_DTYPES.get(leaves[i].dtype, torch.float32))
        yield Check("mixed", changed, call.of(leaves), (i, form))


def scalars(call, dtype):
    """With other numbers where an argument is a number, but no size and no dim, or could be one."""
    if "_polynomial_" in call.op.name:  # of which the second is a degree, up to which stock counts
        return
    paths, _ = tree_flatten_with_path(tree_unflatten(call.leaves, call.spec))
    places = [0, 1] if getattr(call.op, "supports_rhs_python_scalar", False) else []
    for i, (path, x) in enumerate(paths):
        named = getattr(path[-1], "key", None) in ("alpha", "beta", "value", "min", "max")
        if type(x) is float or (type(x) is int and named):
            places.append(i)
    values = (1e39, -1e39, math.inf, math.nan) if dtype.is_floating_point else (2**40,)
    for i, value in itertools.product(places, (3, 2.5, *values)):
        leaves = [value if j == i else x for j, x in enumerate(call.leaves)]
        yield Check("scalar", changed, call.of(leaves), (i, value))


def checks(op, call, dtype):
    """Every check of a sample."""
    layouts = ["as it is", *filter(call.has, LAYOUTS)]
    functions = {"forward": forward}
    if op.inplace_variant and call.tensors[:1] == [0]:
        functions["inplace"] = inplace
    if call.differentiable:
        functions |= {"backward": backward} | ({"inplace_backward": inplace_backward} if "inplace" in functions else {})
    for layout, (kind, function) in itertools.product(layouts, functions.items()):
        yield Check(layout if layout in OWN_KINDS else kind, function, call, (layout,))
    if op.supports_out:
        yield from (Check("out", out, call, (which,)) for which in OUTS)
        yield Check("out", out_input, call)
    if call.tensors:
        yield Check("vmap", vmap, call)
    if len(call.tensors) > 1:
        yield from mixed(call)
    if call.differentiable:
        yield from (Check("forward_mode", forward_mode, call, (layout, call.differentiable)) for layout in layouts[:2])
        yield from (Check("result_changed", result_changed, call, (change,)) for change in ("add_", "mul_"))
        yield from (Check("input_changed", input_changed, call, (i,)) for i in call.tensors)
    if len(call.differentiable) > 1:
        yield from (Check("zero_tangent", forward_mode, call, ("as it is", [i])) for i in call.differentiable)
    yield from scalars(call, dtype)


# What a check gives, and how it is judged.


class Leaf(NamedTuple):
    name: str
    facts: dict  # all but the values
    values: torch.Tensor | None


class Outcome(NamedTuple):
    leaves: list
    error: Exception | None


def facts(x):
    if not isinstance(x, torch.Tensor):
        return {"value": repr(x)}
    kept = {"dtype": x.dtype, "shape": tuple(x.shape), "requires_grad": x.requires_grad, "leaf": x.is_leaf}
    kept |= {"layout": x.layout, "neg": x.is_neg(), "conj": x.is_conj(), "zero_tensor": x._is_zerotensor()}
    if x.layout == torch.strided and x.numel():
        kept["strides"] = [s for n, s in zip(x.shape, x.stride(), strict=True) if n > 1]
    return kept


def outcome(check):
    """What it gives, up to the exception that ends it."""
    leaves, error = [], None
    torch.default_generator.manual_seed(0)
    try:
        for name, tree in check.function(check.call, *check.label):
            for i, x in enumerate(tree_leaves(tree)):
                known = isinstance(x, torch.Tensor) and not x._is_zerotensor()
                leaves.append(Leaf(f"{name} {i}", facts(x), x.detach() if known else None))
    except Exception as e:
        error = e.with_traceback(None)
    return Outcome(leaves, error)


def dense(x):
    """Real numbers in memory of their own kind."""
    x = (x if x.layout == torch.strided else x.to_dense()).resolve_neg().resolve_conj()
    return torch.view_as_real(x) if x.is_complex() else x


def same_bits(x, y):
    if not x.is_floating_point():
        return torch.equal(x, y)
    return bool(((x == y) & (x.signbit() == y.signbit()) | x.isnan() & y.isnan()).all())


def same_kind(x, y):
    """Elementwise: both finite, both NaN, or the same infinity."""
    return x.isfinite() & y.isfinite() | x.isnan() & y.isnan() | (x == y)


class Reference:
    """A check in float64, made when it is first asked for."""

    def __init__(self, check):
        self.check = check

    @functools.cached_property
    def values(self):
        leaves = outcome(self.check._replace(call=self.check.call.double())).leaves
        return [None if leaf.values is None else dense(leaf.values) for leaf in leaves]

    @functools.cached_property
    def scale(self):
        """The largest of its values: what has cancelled in float64 may be 2**-48 of that."""
        floats = (x for x in self.values if x is not None and x.is_floating_point() and x.numel())
        return max((x.nan_to_num(0, 0, 0).abs().max().item() for x in floats), default=0)

    def of(self, i, x):
        """The values of leaf i, if they say more than x."""
        wide = self.values[i] if i < len(self.values) else None
        more = any(wider(leaf) is not leaf for leaf in self.check.call.leaves) and x.is_floating_point()
        return wide if more and wide is not None and (wide.dtype, wide.shape) == (torch.float64, x.shape) else None

    def stock_errors(self, i):
        """Stock's largest error of leaf i at each of some inputs near the sample's."""
        for seed in range(8):
            near = Reference(self.check._replace(call=self.check.call.near(seed)))
            leaves = outcome(near.check).leaves
            x = dense(leaves[i].values) if i < len(leaves) and leaves[i].values is not None else None
            if x is not None and near.of(i, x) is not None:
                yield ulps(x, near.of(i, x), 2.0**-48 * near.scale)


def ulps(x, exact, noise):
    """The largest error above noise, in ulp of the exact elements, or of their mean where that is more.

    What has cancelled has the error of its terms, for which the mean stands.
    """
    info = torch.finfo(x.dtype)
    finite = x.isfinite() & exact.isfinite()
    if not finite.any():
        return 0
    x, exact = x[finite].double(), exact[finite]
    size = torch.maximum(exact.abs(), exact.abs().mean()).clamp(info.tiny)
    return (((x - exact).abs() - noise).clamp(0) / (size.log2().floor().exp2() * info.eps)).max().item()


def value_difference(ours, stock, i, reference):
    """In words, of the values of leaf i.

    Our largest error may be twice stock's and 4 ulp more: an elementary function may err by 2, and a check is a chain
    of some. Stock's is the largest at some inputs near the sample's: at one it may be lucky. Where ours is not stock's
    NaN, infinity or zero, it may be what the exact value rounds to.
    """
    if ours is None or same_bits(ours := dense(ours), stock := dense(stock)):
        return None
    exact = reference.of(i, ours)
    if exact is None:
        return far(ours, stock)
    rounded = exact.to(ours.dtype)
    odd = ~same_kind(ours, stock) & ~same_kind(ours, rounded)
    odd |= (ours == 0) & (stock == 0) & (ours.signbit() != stock.signbit()) & (ours.signbit() != rounded.signbit())
    if odd.any():
        return f"{ours[odd][0]} where stock has {stock[odd][0]}"
    noise = 2.0**-48 * reference.scale
    if ours.dtype == torch.float64 and ulps(stock, exact, noise) > 1024:  # somewhere it has been float32
        ours, stock = ours.float(), stock.float()
    eps = torch.finfo(ours.dtype).eps
    error, usual = ulps(ours, exact, noise), ulps(stock, exact, noise)
    if usual * eps >= 1 and exact.abs().mean() > 8 * eps * reference.scale:
        return far(ours, stock)  # the check is another one in float64
    if error > 2 * usual + 4:
        usual = max([usual, *reference.stock_errors(i)])
    return f"errs by {error:.1f} ulp where stock errs by {usual:.1f}" if error > 2 * usual + 4 else None


def far(ours, stock):
    """By the tolerances of torch.testing."""
    try:
        torch.testing.assert_close(ours, stock, equal_nan=True)
    except AssertionError as e:
        return " ".join(str(e).split())


def error_of(outcome):
    after = f"after {outcome.leaves[-1].name}" if outcome.leaves else "at once"
    return f"{type(outcome.error).__name__}: {str(outcome.error)[:200]}, {after}" if outcome.error else f"ends {after}"


def difference(ours, stock, reference):
    """The first, in words."""
    if type(ours.error) is not type(stock.error) or len(ours.leaves) != len(stock.leaves):
        return f"{error_of(ours)}; stock {error_of(stock)}"
    for i, (mine, theirs) in enumerate(zip(ours.leaves, stock.leaves, strict=True)):
        other = [k for k in mine.facts | theirs.facts if mine.facts.get(k) != theirs.facts.get(k)]
        odd = [f"{k} {mine.facts.get(k)} where stock has {theirs.facts.get(k)}" for k in other]
        what = ", ".join(odd) or value_difference(mine.values, theirs.values, i, reference)
        if what:
            return f"{mine.name}: {what}"
    return None


def identical(x, y):
    """Whether two outcomes are the same to the bit."""
    if type(x.error) is not type(y.error) or len(x.leaves) != len(y.leaves):
        return False
    return all(
        a.facts == b.facts and (a.values is None or same_bits(dense(a.values), dense(b.values)))
        for a, b in zip(x.leaves, y.leaves, strict=True)
    )


# An entry and a dtype.


class Unit(NamedTuple):
    op: Any
    dtype: torch.dtype
    samples: int  # at most
    seed: int = 0

    @property
    def entry(self):
        return ".".join(filter(None, (self.op.name, self.op.variant_test_name)))

    def calls(self):
        """(number, call) of some samples."""
        torch.default_generator.manual_seed(0)
        requires_grad = self.dtype.is_floating_point and self.op.supports_autograd
        every = list(self.op.sample_inputs("cpu", self.dtype, requires_grad=requires_grad))
        some = random.Random(f"{self.seed} {self.entry}").sample(range(len(every)), min(self.samples, len(every)))
        return [(i, Call(self.op, every[i])) for i in sorted(some)]

    def checks(self):
        """(number of the sample, check)."""
        every = [(i, check) for i, call in self.calls() for check in checks(self.op, call, self.dtype)]
        if self.dtype is torch.float32 and self.op.error_inputs_func:
            wrong = [Call(self.op, e.sample_input) for e in self.op.error_inputs("cpu")]
            every += [(i, Check("error", forward, call, ("as it is",))) for i, call in enumerate(wrong)]
        return every


def poison(byte):
    """Has malloc fill what it gives: what is read before it is written is then another number in each arm."""
    ctypes.CDLL(None).mallopt(-6, byte)  # M_PERTURB of glibc


def judge(unit, left_out, arm, tell):
    """{kind: counts and differences}. tell(arm, kind, where) is called before each check."""
    todo = [(f"sample {i} {check}", check) for i, check in unit.checks() if check.kind not in left_out]

    def outcomes(name):
        for where, check in todo:
            tell(name, check.kind, where)
            yield outcome(check)

    poison(0x55)
    stock = list(outcomes("stock"))
    poison(0xAA)
    with arm():
        ours = list(outcomes("ours"))
    kinds = {}
    for (where, check), mine, theirs in zip(todo, ours, stock, strict=True):
        tell("judge", check.kind, where)
        kind = kinds.setdefault(check.kind, {"checks": 0, "raise": 0, "unrepeatable": 0, "differences": []})
        kind["checks"] += 1
        kind["raise"] += theirs.error is not None
        if identical(mine, theirs):
            continue
        if not identical(outcome(check), theirs):
            kind["unrepeatable"] += 1
        elif what := difference(mine, theirs, Reference(check)):
            kind["differences"].append({"where": where, "what": what})
    return kinds


class Child:
    """A process that judges a unit."""

    def __init__(self, unit, left_out, arm):
        context = multiprocessing.get_context("fork")
        self.unit, self.left_out = unit, left_out
        self.current, self.seen, self.since = context.RawArray("c", 200), None, 0
        self.pipe, theirs = context.Pipe(duplex=False)
        self.process = context.Process(target=self.work, args=(theirs, arm))
        self.process.start()
        theirs.close()

    def work(self, pipe, arm):
        warnings.simplefilter("ignore")
        torch.set_num_threads(1)

        def tell(*current):
            self.current.value = "\n".join(current).encode()[:199]

        tell("", "samples", "")
        pipe.send(judge(self.unit, self.left_out, arm, tell))

    def hangs(self):
        if self.seen != self.current.value:
            self.seen, self.since = self.current.value, time.monotonic()
        return time.monotonic() - self.since > PATIENCE

    def end(self):
        """What judge() returned; None where the process did not come to that, and left_out has what it was at."""
        try:
            kinds = self.pipe.recv() if self.pipe.poll() else None
        except EOFError:
            kinds = None
            self.process.join()
        how = "hangs" if self.process.is_alive() else f"ends the process ({self.process.exitcode})"
        self.process.kill()
        self.process.join()
        self.pipe.close()
        if kinds is None:
            arm, kind, where = self.current.value.decode().split("\n")
            found = [] if arm == "stock" else [{"where": where, "what": how}]
            self.left_out[kind] = {"checks": 1, "raise": 0, "unrepeatable": 1 - len(found), "differences": found}
        return kinds


def run(units, arm=rusttorch.use, processes=2):
    """Yields (unit, kinds). A kind that crashes or hangs is left out when the rest of its unit runs again."""
    todo, running = [(unit, {}) for unit in reversed(units)], []
    while todo or running:
        while todo and len(running) < processes:
            running.append(Child(*todo.pop(), arm))
        ready = wait([child.pipe for child in running], timeout=1)
        for child in [child for child in running if child.pipe in ready or child.hangs()]:
            running.remove(child)
            kinds = child.end()
            if kinds is None and "samples" not in child.left_out:
                todo.append((child.unit, child.left_out))
            else:
                yield child.unit, (kinds or {}) | child.left_out


# The command.


def swapped(op):
    """Whether rusttorch has a kernel of the entry's own name."""
    ours = {known.name.partition(".")[0] for known in rusttorch.ops()}
    return not ours.isdisjoint({op.name.rpartition(".")[2], op.name.replace(".", "_"), op.aten_name})


def part(db, seed):
    """What we swap and a tenth of the rest, float32 and another dtype, one sample each."""
    draw = random.Random(seed)
    some = [op for op in db if swapped(op) or draw.random() < 0.1]
    return [Unit(op, dtype, 1, seed) for op in some for dtype in (torch.float32, draw.choice(DTYPES[1:]))]


def explanation(row):
    found = (key for key in EXPLAINED if fnmatch.fnmatchcase(row["entry"], key[0]) and row["kind"] == key[1])
    return next(found, None)


def report(rows, complete):
    """Prints the summary, and what is explained in vain; returns whether anything is left to explain."""
    different = [row for row in rows if row["differences"]]
    left = [row for row in different if not explanation(row)]
    for row in sorted(left, key=lambda row: (row["kind"], row["entry"])):
        first, count = row["differences"][0], f"{len(row['differences'])} of {row['checks']}"
        print(f"{row['kind']}: {row['entry']} {row['dtype']} ({count}): {first['where']}: {first['what']}")
    stale = set(EXPLAINED) - {explanation(row) for row in different} if complete else ()
    for key in stale:
        print(f"explained, and no difference: {key}")
    counts = {name: sum(row[name] for row in rows) for name in ("checks", "raise", "unrepeatable")}
    counts["differences"] = sum(len(row["differences"]) for row in rows)
    print(f"{len({row['entry'] for row in rows})} entries, {counts}; {len(left)} rows not explained")
    return bool(left)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("entries", nargs="*", default=["*"], help="patterns")
    parser.add_argument("--samples", type=int, default=8, help="of an entry and dtype, at most")
    parser.add_argument("--quick", type=int, metavar="SEED", help="what we swap, some of the rest; one sample each")
    parser.add_argument("--out", type=Path, help="a JSON file for every count and difference")
    options = parser.parse_args()

    # Children are forked from here: no OpenMP thread may have been made.
    torch.set_num_threads(1)
    from torch.testing._internal.common_methods_invocations import op_db

    with fwAD.dual_level():  # what torch loads when it is first asked, once for all children
        fwAD.make_dual(torch.ones(1), torch.vmap(torch.neg)(torch.ones(1)))
    gc.freeze()  # a collector in a child would copy the pages of all that is here
    every = [Unit(op, dtype, options.samples) for op in op_db for dtype in DTYPES]
    units = every if options.quick is None else part(op_db, options.quick)
    units = [
        unit
        for unit in units
        if unit.op.supports_dtype(unit.dtype, "cpu")
        and any(fnmatch.fnmatchcase(unit.entry, e) for e in options.entries)
    ]
    rows, start = [], time.monotonic()
    for done, (unit, kinds) in enumerate(run(units), 1):
        dtype = str(unit.dtype).removeprefix("torch.")
        print(f"\r{done} of {len(units)} {unit.entry} {dtype}\033[K", end="", file=sys.stderr, flush=True)
        rows += [{"entry": unit.entry, "dtype": dtype, "kind": kind} | result for kind, result in kinds.items()]
    print(file=sys.stderr)
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1))
    failed = report(rows, complete=len(units) == sum(unit.op.supports_dtype(unit.dtype, "cpu") for unit in every))
    print(f"{time.monotonic() - start:.0f} s")
    return failed


if __name__ == "__main__":
    sys.exit(main())
