"""What the parts of fuse_(model) share."""

import functools
import inspect
import types
from typing import NamedTuple

import torch
from torch.nn.modules import module as torch_module


class Fusion(NamedTuple):
    """What became of layers that follow each other, or of one: by their names, and in words."""

    layers: tuple[str, ...]
    fused: bool
    how: str  # or why not


def has_hooks(module):
    own = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(own) or bool(torch_module._has_any_global_hook())


class _Put(functools.partial):
    """Of _run. Whoever asks which arguments a model takes, as generate and Trainer do, is told the class's."""

    @property
    def __signature__(self):
        _, module = self.args
        return inspect.signature(functools.partial(type(module).forward, module))


def put(module, forward):
    """Has the module run forward(module, ...), but its class's while it is compiled or traced."""
    module.forward = _Put(_run, forward, module)


def is_put(forward):
    return isinstance(forward, _Put)


def is_plain(module):
    """Whether the module can be read instead of called: no hooks, and no forward of its own but ours."""
    forward = vars(module).get("forward")
    return (forward is None or is_put(forward)) and not has_hooks(module)


def _run(forward, module, *args, **kwargs):
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return type(module).forward(module, *args, **kwargs)
    return forward(module, *args, **kwargs)


def with_global(function, name, value):
    """A copy of the function, or of what wraps it, that reads `value` for the global `name`; other globals are as now.

    None where something wraps it in a way that is not known.
    """
    if not isinstance(function, types.FunctionType):
        return None
    own, cells = function.__globals__, function.__closure__
    if name in function.__code__.co_names:
        own = own | {name: value}
    else:  # a wrapper has what it wraps in a cell
        inner = getattr(function, "__wrapped__", None)
        copy = with_global(inner, name, value)
        if copy is None or not any(cell.cell_contents is inner for cell in cells or ()):
            return None
        cells = tuple(types.CellType(copy) if cell.cell_contents is inner else cell for cell in cells)
    twin = types.FunctionType(function.__code__, own, function.__name__, function.__defaults__, cells)
    twin.__kwdefaults__ = function.__kwdefaults__
    return twin
