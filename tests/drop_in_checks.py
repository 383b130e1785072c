"""What tests/drop_in.py does with an op and one sample of its arguments: a check is a generator of named results."""

import copy
import itertools
import math
from typing import Any, NamedTuple

import torch
import torch.autograd.forward_ad as fwAD
from torch.testing._internal.opinfo.core import ForeachFuncInfo
from torch.utils._pytree import tree_flatten, tree_flatten_with_path, tree_leaves, tree_map, tree_unflatten

LAYOUTS = {
    "as it is": lambda x: x,
    "transposed": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x,
    "stepped": lambda x: torch.stack([x, x], -1).flatten(-2)[..., ::2] if x.dim() else x,
    "expanded": lambda x: x[:1].expand_as(x) if x.dim() else x,
    "neg_view": lambda x: torch._neg_view(-x) if x.is_floating_point() else x,
    "zero_tensor": lambda x: torch._efficientzerotensor(x.shape, dtype=x.dtype) if x.is_floating_point() else x,
}
FEW = 6  # arguments, where lists have many
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


def facts(x):
    """All but the values."""
    if not isinstance(x, torch.Tensor):
        return {"value": repr(x)}
    kept = {"dtype": x.dtype, "shape": tuple(x.shape), "requires_grad": x.requires_grad, "leaf": x.is_leaf}
    kept |= {"layout": x.layout, "neg": x.is_neg(), "conj": x.is_conj(), "zero_tensor": x._is_zerotensor()}
    if x.layout == torch.strided and x.numel():
        kept["strides"] = [s for n, s in zip(x.shape, x.stride(), strict=True) if n > 1]
    return kept


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
    before = [leaves[i]._version for i in call.tensors]
    result = call(leaves, call.op.inplace_variant)
    yield "result", result
    yield "autograd is told", [leaves[i]._version > version for i, version in zip(call.tensors, before, strict=True)]
    yield "is argument", [next((i for i, x in enumerate(leaves) if x is y), None) for y in tree_leaves(result)]
    yield "memory", [memory(leaves[i]) for i in call.tensors]


def inplace_backward(call, layout):
    leaves = call.fresh(layout, requires_grad=True)
    of_input = range(len(tree_leaves(tree_unflatten(leaves, call.spec)[0])))
    result = call([x.clone() if i in of_input else x for i, x in enumerate(leaves)], call.op.inplace_variant)
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
    for i, form in itertools.product(call.tensors[:FEW], forms):
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
    if op.supports_out and not isinstance(op, ForeachFuncInfo):  # of which it says that there is a functional op
        yield from (Check("out", out, call, (which,)) for which in OUTS)
        yield Check("out", out_input, call)
    if call.tensors:
        yield Check("vmap", vmap, call)
    if len(call.tensors) > 1:
        yield from mixed(call)
    if call.differentiable:
        yield from (Check("forward_mode", forward_mode, call, (layout, call.differentiable)) for layout in layouts[:2])
        yield from (Check("result_changed", result_changed, call, (change,)) for change in ("add_", "mul_"))
        yield from (Check("input_changed", input_changed, call, (i,)) for i in call.tensors[:FEW])
    if len(call.differentiable) > 1:
        yield from (Check("zero_tangent", forward_mode, call, ("as it is", [i])) for i in call.differentiable[:FEW])
    yield from scalars(call, dtype)
