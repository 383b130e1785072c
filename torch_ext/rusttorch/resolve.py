"""Which ops a user means by what is given to enable(), use() and AB()."""

import difflib
import functools
import re

from . import _C, names

# Ops that aten makes of another op above the kernels, and other names for some: the swap reaches them through these.
VIA = {
    "selu": "elu",
    "celu": "elu",
    "swish": "silu",
    "log_sigmoid": "log_sigmoid_forward",
    "logsigmoid": "log_sigmoid_forward",
    "log_softmax": "_log_softmax",
    "layer_norm": "native_layer_norm",
    "group_norm": "native_group_norm",
    **dict.fromkeys(("batch_norm", "instance_norm"), "native_batch_norm"),
    **dict.fromkeys(("conv1d", "conv2d"), "convolution"),
    **{
        name: f"_fused_{name.lower()}_"
        for name in ("Adam", "AdamW", "SGD", "Adagrad", "adam", "adamw", "sgd", "adagrad")
    },
}
# What is made of a family's ops.
MADE_OF = {"matmul": "matmul", "linear": "matmul", "einsum": "matmul"}
PREFIX = re.compile(r"^(aten::|rusttorch::|F\.|torch\.(ops\.(aten|rusttorch)\.|nn\.functional\.|optim\.)?)")


def base(name):
    """The name of an op without its overload, and of an in-place op without the underscore."""
    return name.partition(".")[0].removesuffix("_")


def given(what):
    """The names in it, a name or an iterable of such (or of iterables)."""
    if isinstance(what, str):
        return (what,)
    if isinstance(what, (list, tuple, set, frozenset)):
        return tuple(name for each in what for name in given(each))
    hint = getattr(what, "__name__", None)
    raise TypeError(
        f"expected names of aten ops or families, such as 'mish' or 'activation', but got {what!r}"
        + (f"; its name is {hint!r}" if isinstance(hint, str) else "")
    )


@functools.cache
def families():
    """The families of ops that can be swapped in, by name."""
    return tuple(dict.fromkeys(family for family, _, swappable in _C.entries() if swappable))


@functools.cache
def overloads(name):
    """The overloads that an op's or a family's name stands for."""
    known = _C.entries()
    if name in families():
        return frozenset(op for family, op, swappable in known if family == name and swappable)
    plain = PREFIX.sub("", name)
    if plain in MADE_OF:
        return overloads(MADE_OF[plain])
    target = VIA.get(plain.removesuffix("_"), plain)
    found = {op: swappable for _, op, swappable in known if target in (op, base(op), op.partition(".")[0])}
    if not found and plain in names.FUNCTIONS:
        raise ValueError(f"{name!r} is torch's own, under rusttorch's name too: there is nothing to swap")
    if not found:
        close = difflib.get_close_matches(plain, [*families(), *VIA, *sorted({base(op) for _, op, _ in known})], n=1)
        raise ValueError(f"unknown op or family {name!r}" + (f"; did you mean {close[0]!r}?" if close else ""))
    swappable = frozenset(op for op, swappable in found.items() if swappable)
    if not swappable:
        raise ValueError(f"{name!r} has no aten op to take the place of; call rusttorch.{plain.partition('.')[0]}")
    return swappable


@functools.cache
def everything():
    return frozenset().union(*map(overloads, families()))


def resolve(what, exclude):
    """The overloads that names (all, if there are none) without exclude stand for.

    Raises ValueError for a name that does not exist, TypeError for what is no name.
    """
    what = given(what)
    wanted = frozenset().union(*map(overloads, what)) if what else everything()
    return wanted.difference(*map(overloads, given(exclude)))
