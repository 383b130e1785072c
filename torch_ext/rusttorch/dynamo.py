"""rusttorch.NAME inside torch.compile: Dynamo traces torch.ops.rusttorch.NAME in the place of the builtin."""

import importlib.abc
import importlib.util
import sys

import torch

from . import _C

REDUCTIONS = ("none", "mean", "sum")


def traceable(name):
    """What the builtin does, in Python: torch.ops' arguments are aten's, who counts reductions and says self."""
    packet = getattr(torch.ops.rusttorch, name)
    schema = getattr(packet, packet.overloads()[0])._schema
    names = [argument.name for argument in schema.arguments]
    at = names.index("reduction") if "reduction" in names else None
    has_self = names[0] == "self"
    pair = getattr(torch.return_types, name, None)

    def function(*args, **kwargs):
        if has_self and "input" in kwargs:
            kwargs["self"] = kwargs.pop("input")
        if kwargs.get("out", 0) is None:
            del kwargs["out"]
        if isinstance(kwargs.get("reduction"), str):
            kwargs["reduction"] = REDUCTIONS.index(kwargs["reduction"])
        if at is not None and len(args) > at and isinstance(args[at], str):
            args = (*args[:at], REDUCTIONS.index(args[at]), *args[at + 1 :])
        result = packet(*args, **kwargs)
        return pair(result) if pair and isinstance(result, tuple) else result

    return function


def substitute():
    for name, function in vars(_C.functions).items():
        if not name.startswith("__"):
            torch.compiler.substitute_in_graph(function, skip_signature_check=True)(traceable(name))


class _AfterDynamo(importlib.abc.MetaPathFinder):
    """Substitutes once somebody imports torch._dynamo, which takes seconds and is not ours to do."""

    def find_spec(self, name, path, target=None):
        if name != "torch._dynamo":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            substitute()

        spec.loader.exec_module = exec_module
        return spec


def register():
    if "torch._dynamo" in sys.modules:
        substitute()
    else:
        sys.meta_path.insert(0, _AfterDynamo())
