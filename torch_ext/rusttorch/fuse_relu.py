"""Relu, or relu6, of a model that stands, and the layer beside it: a part of fuse_(model).

A batch norm and the relu behind it are one pass. A convolution's relu and the max pool behind it change places, as the
largest of what relu makes is what relu makes of the largest, and fewer numbers are left then.

Which layers follow each other is read from the graph of the module that calls both, their parent (torch.fx). A parent
with batch norms that cannot be traced is watched while the model runs once, if inputs for that are given. Layers that
anybody else calls or looks at are left as they are. (Not seen is what torch.fx cannot trace and a forward reads in
training alone.)

Two layers do so only while their parent's forward runs, and only if both are still there, without hooks. So a part of
the model that is called by itself computes what it did, and so does one that a checkpoint within that forward computes
again after it. What the first layer returns is marked, and the second knows by the mark what is done, or left to do.
Where the second is not called after all (a branch that was not seen), that is an error.
"""

import copy
import functools
import sys
import threading
from collections import Counter
from typing import NamedTuple

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from .fusion import Fusion, is_plain, is_put, put
from .nn import batch_norm_relu

NORMS = {nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d}
RELUS = {nn.ReLU, nn.ReLU6}
POOLS = {nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d}
CONVOLUTIONS = {nn.Conv1d, nn.Conv2d, nn.Conv3d}
RELU_FUNCTIONS = {
    torch.relu,
    torch.relu_,
    nn.functional.relu,
    nn.functional.relu_,
    nn.functional.relu6,
    "relu",
    "relu_",
}


class _Now(threading.local):
    """Of a thread: the layers that may be fused, and those whose second has yet to come."""

    def __init__(self):
        self.seconds, self.waiting = {}, set()  # seconds: {first: (second, the modes when that began)}


_now = _Now()
# What the first of two layers marks its output with, which the second takes off.
FIRST = "_rusttorch_first"


def _parent(pairs, parent, *args, **kwargs):
    """The forward of a module that calls such layers: {name of the first: (of the second, of what is before them)}."""
    before = _now.seconds
    layers = filter(None, (_if_ready(parent, first, *others) for first, others in pairs.items()))
    ready = {first: (second, _modes()) for first, second in layers}
    _now.seconds = before | ready
    try:
        result = type(parent).forward(parent, *args, **kwargs)
        if not _now.waiting.isdisjoint(ready):
            raise RuntimeError(
                "fuse_: a relu was not called after its batch norm, or a max pool after its relu, as it was when "
                "fuse_ looked, so that what came between them is wrong: unfuse_(model) takes it back"
            )
        return result
    finally:
        _now.seconds = before
        _now.waiting.difference_update(ready)


def _if_ready(parent, first, second, source):
    """The two layers of such names, if they and what is before them are as they were."""
    first, second, source = (parent._modules.get(name) for name in (first, second, source))
    ours = is_put(vars(first).get("forward")) and is_put(vars(second).get("forward")) if first and second else False
    return (first, second) if ours and not _why_not(first, second, source) else None


def _why_not(first, second, source):
    """What keeps two layers from being fused, in words."""
    if getattr(first, "min_val", 0) != 0 or getattr(second, "min_val", 0) != 0:
        return "not from 0 on"
    if type(second) in POOLS:
        if type(source) not in CONVOLUTIONS or not is_plain(source):
            return "what relu is given may be others' too: only a convolution's output is known to be nobody else's"
        if second.return_indices:
            return "the largest are asked for by their places too"
        if set(_as_tuple(getattr(second, "dilation", 1))) != {1}:
            return "a window may be of padding alone"
    return "" if is_plain(first) and is_plain(second) else "with hooks, or a forward of its own"


def _as_tuple(value):
    return value if isinstance(value, tuple) else (value,)


def _second(first):
    """The layer that is fused with this one in this call, if any."""
    second, modes = _now.seconds.get(first, (None, None))
    # Not now; or for the second time; or in a checkpoint, which calls it again later; or with no_grad for it alone.
    return None if first in _now.waiting or modes != _modes() else second


def _mark(first, output):
    _now.waiting.add(first)
    setattr(output, FIRST, first)
    return output


def _take_mark(input):
    """The first of the two layers, if the second is called with what the first has returned."""
    first = vars(input).pop(FIRST, None)
    _now.waiting.discard(first)
    return first


def _norm(norm, input):
    """The forward of a batch norm that may take relu into its pass."""
    relu = _second(norm)
    if relu is None:
        return type(norm).forward(norm, input)
    return _mark(norm, batch_norm_relu(norm, input, getattr(relu, "max_val", None)))


def _relu(relu, input):
    """The forward of a relu of which some inputs have it behind them."""
    return type(relu).forward(relu, input) if _take_mark(input) is None else input


def _relu_later(relu, input):
    """The forward of a relu that may leave its work to the pool behind it."""
    return type(relu).forward(relu, input) if _second(relu) is None else _mark(relu, input)


def _pool(pool, input):
    """The forward of a max pool of which some inputs have relu yet to come."""
    relu = _take_mark(input)
    output = type(pool).forward(pool, input)
    return output if relu is None else type(relu).forward(relu, output)


def _modes():
    return torch._C._autograd._top_saved_tensors_default_hooks(False), torch.is_grad_enabled()


def fuse(model, names, args, kwargs):
    """The Fusions of a model, whose modules have such names. With inputs it may run once, on them."""
    parents = [module for module in names if _may_be_parent(module)]
    links = {parent: _traced(parent) for parent in parents}
    untraced = [parent for parent in parents if links[parent] is None and _has(parent, NORMS)]
    if untraced and (args or kwargs):
        links |= _watched(model, untraced, args, kwargs)
    return [fusion for parent in parents for fusion in _fuse_in(parent, links[parent] or (), names)]


def _may_be_parent(module):
    """Whether it may call such layers, by a forward that is its class's (a ModuleList has none)."""
    has_forward = type(module).forward is not nn.Module.forward and "forward" not in vars(module)
    return has_forward and next(module.children(), None) is not None and _has(module, NORMS | POOLS)


def _has(module, types):
    return any(type(child) in types for child in module.modules())


class _Link(NamedTuple):
    """A layer and what reads its output: names in their parent; no second is a relu that is called as a function."""

    first: str
    second: str | None
    calls: int  # of the first
    readers: int  # of its output; of a relu's before a pool its input's too
    source: str | None = None  # what makes that input


class _Tracer(torch.fx.Tracer):
    """Of one module: what it calls is not looked into."""

    def is_leaf_module(self, module, name):
        return True


def _traced(parent):
    """The links in the graphs of a module, in training and in eval; None where torch.fx makes none."""
    in_training, in_eval = (_traced_in(parent, mode) for mode in (True, False))
    if in_training is None or in_eval is None:
        return None
    return [link for link in in_training if link in in_eval]


def _traced_in(parent, training):
    # A copy, since a forward may change its module.
    twin = copy.copy(parent)
    twin._buffers = {name: None if t is None else t.clone() for name, t in parent._buffers.items()}
    twin.training = training
    before = dict(vars(twin))
    try:
        nodes = _Tracer().trace(twin).nodes
    except Exception:  # whatever a forward does that torch.fx has no node for
        return None
    if vars(twin).keys() != before.keys() or any(vars(twin)[key] is not before[key] for key in before):
        return None  # what it keeps is not in the graph
    modules = {node: parent.get_submodule(node.target) for node in nodes if node.op == "call_module"}
    calls = Counter(modules.values())
    links = []
    for node, first in modules.items():
        reader = next(iter(node.users), None)
        if reader is None:
            continue
        if type(first) in NORMS and type(modules.get(reader)) in RELUS:
            links.append(_Link(node.target, reader.target, calls[first], len(node.users)))
        elif type(first) in NORMS and reader.target in RELU_FUNCTIONS:
            links.append(_Link(node.target, None, calls[first], len(node.users)))
        elif type(first) in RELUS and type(modules.get(reader)) in POOLS:
            given = node.all_input_nodes[0]
            readers = max(len(node.users), len(given.users))
            source = given.target if given in modules else None
            links.append(_Link(node.target, reader.target, calls[first], readers, source))
    return links


class _Watch(TorchFunctionMode):
    """Sees which relu a batch norm's output goes to, and how many others read that."""

    def __init__(self):
        super().__init__()
        self.outputs = {}  # by id: the batch norm, and its output, which lives so that no other has the id
        self.kept = []  # for that alone
        self.norms = {}  # of each parent
        self.calls, self.readers, self.relus = Counter(), Counter(), {}

    def after_norm(self, norm, _inputs, output):
        self.calls[norm] += 1
        self.outputs[id(output)] = norm, output

    def after_relu(self, relu, inputs, output):
        if not inputs or id(inputs[0]) not in self.outputs:
            return
        norm, _ = self.outputs[id(inputs[0])]
        self.relus[norm] = relu
        if output is inputs[0]:  # in place: who reads it from here on reads what relu has made
            del self.outputs[id(output)]
            self.kept.append(output)

    def before_other(self, _module, inputs):
        self.read(inputs)

    def after_parent(self, parent, _inputs, _result):
        held = 3  # by self.outputs, by `output`, and by the call below
        for norm, output in self.outputs.values():
            if norm in self.norms[parent] and sys.getrefcount(output) > held:
                self.readers[norm] += 1  # returned, or kept

    def read(self, *values):
        self.readers.update(self.outputs[id(t)][0] for t in tree_leaves(values) if id(t) in self.outputs)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        self.read(args, kwargs)
        return function(*args, **kwargs)


def _watched(model, parents, args, kwargs):
    """The links that are seen in some modules while the model runs, by module."""
    watch, hooks = _Watch(), []
    for parent in parents:
        watch.norms[parent] = {child for child in parent.children() if type(child) in NORMS}
        hooks.append(parent.register_forward_hook(watch.after_parent))
        for child in parent.children():
            if type(child) in NORMS:
                hooks.append(child.register_forward_hook(watch.after_norm))
            elif type(child) in RELUS:
                hooks.append(child.register_forward_hook(watch.after_relu))
            else:
                hooks.append(child.register_forward_pre_hook(watch.before_other))
    # (Not by eval(), which a module may have made more of.)
    modes = {module: module.training for module in model.modules()}
    try:
        for module in modes:
            module.training = False
        with torch.no_grad(), watch:
            model(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
    links = {}
    for parent in parents:
        children = {module: name for name, module in parent.named_children()}
        links[parent] = [
            _Link(name, children[watch.relus[norm]], watch.calls[norm], watch.readers[norm])
            for norm, name in children.items()
            if watch.relus.get(norm) in children
        ]
    return links


def _fuse_in(parent, links, names):
    """Fuses what the module `parent` calls."""
    found, pairs = [], {}

    def why_not(link, first, second):
        if link.calls > 1 or len(names[first]) > 1:
            return "called more than once"
        if link.readers > 1:
            return "what is between them is read by others too"
        if "." in link.first or "." in link.second:
            return "called past the module that they are in"
        return _why_not(first, second, parent._modules.get(link.source))

    for link in sorted(links, key=lambda link: type(parent.get_submodule(link.first)) not in NORMS):
        first = parent.get_submodule(link.first)
        if link.second is None:
            reason = "relu is called as a function: as a module it would be fused"
            found.append(Fusion((names[first][0], "relu"), False, reason))
            continue
        if any(link.first == second for second, _ in pairs.values()):  # a relu in its batch norm's pass
            continue
        second = parent.get_submodule(link.second)
        reason, is_norm = why_not(link, first, second), type(first) in NORMS
        if not reason:
            pairs[link.first] = link.second, link.source
            put(first, _norm if is_norm else _relu_later)
            put(second, _relu if is_norm else _pool)
        how = "one pass" if is_norm else "relu of what is pooled"
        found.append(Fusion((names[first][0], names[second][0]), not reason, reason or how))
    if pairs:
        put(parent, functools.partial(_parent, pairs))
    return found
