"""rusttorch.NAME inside torch.compile: Dynamo traces torch.ops.rusttorch.NAME in the place of the builtin, and what is
random is drawn each time."""

import importlib.abc
import importlib.machinery
import sys

import torch

from . import _C

REDUCTIONS = ("none", "mean", "sum")


def reduction_of(name):
    if name not in REDUCTIONS:
        raise ValueError(f"{name} is not a valid value for reduction")
    return REDUCTIONS.index(name)


def traceable(name):
    """What the builtin does, in Python: torch.ops' arguments are aten's, which numbers reductions, says self for input,
    and has no None for a list of dims that may be empty."""
    packet = getattr(torch.ops.rusttorch, name)
    arguments = getattr(packet, packet.overloads()[0])._schema.arguments
    names = [argument.name for argument in arguments]
    at = names.index("reduction") if "reduction" in names else None
    empty = {a.name for a in arguments if a.has_default_value() and a.default_value == []}
    has_self = "self" in names
    pair = getattr(torch.return_types, name, None)

    def function(*args, **kwargs):
        if has_self and "input" in kwargs:
            kwargs["self"] = kwargs.pop("input")
        for left_out in ("out", *empty):
            if left_out in kwargs and kwargs[left_out] is None:
                del kwargs[left_out]
        args = [[] if x is None and names[k] in empty else x for k, x in enumerate(args)]
        if isinstance(kwargs.get("reduction"), str):
            kwargs["reduction"] = reduction_of(kwargs["reduction"])
        if at is not None and len(args) > at and isinstance(args[at], str):
            args[at] = reduction_of(args[at])
        result = packet(*args, **kwargs)
        return pair(result) if pair and isinstance(result, tuple) else result

    return function


def substitute():
    for name, function in vars(_C.functions).items():
        if not name.startswith("__"):
            torch.compiler.substitute_in_graph(function, skip_signature_check=True)(traceable(name))


def keep_draws_apart():
    """Two draws with the same arguments are two: torch's compiler merges equal calls, but for a list of random ops, in
    which there are aten's only."""
    from torch._functorch import compile_utils

    ops = (getattr(torch.ops.rusttorch, name.partition(".")[0]) for _, name, _ in _C.entries())
    random = torch.Tag.nondeterministic_seeded
    drawing = {op for op in ops if any(random in getattr(op, overload).tags for overload in op.overloads())}
    compile_utils.rand_ops = [*compile_utils.rand_ops, *drawing]


def prepare():
    substitute()
    keep_draws_apart()


class _AfterDynamo(importlib.abc.MetaPathFinder):
    """Prepares it once somebody imports torch._dynamo, which takes seconds and is not ours to do."""

    def find_spec(self, name, path, target=None):
        if name != "torch._dynamo":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            sys.meta_path.remove(self)
            prepare()

        spec.loader.exec_module = exec_module
        return spec


def register():
    if "torch._dynamo" in sys.modules:
        prepare()
    else:
        sys.meta_path.insert(0, _AfterDynamo())
