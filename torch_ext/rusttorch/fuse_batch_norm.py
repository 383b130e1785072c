"""Batch norm and relu, or relu6, of a model that stands, in one pass: a part of fuse_(model).

Which relu follows which batch norm is read from the graph of the module that calls both, their parent (torch.fx). A
parent that cannot be traced is watched while the model runs once, if inputs for that are given. Layers that anybody
else calls or looks at are left as they are. (Not seen is what torch.fx cannot trace and a forward reads in training
alone.)

A batch norm takes relu into its pass only while its parent's forward runs, and only if both are still there, without
hooks. So a part of the model that is called by itself computes what it did, and so does one that a checkpoint within
that forward computes again after it. The batch norm's output is marked, and its relu passes on what is marked. Where
the relu is not called after all (a branch that was not seen), that is an error.
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

from .fusion import Fusion, has_hooks, is_plain, is_put, put
from .nn import batch_norm_relu

NORMS = {nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d}
RELUS = {nn.ReLU, nn.ReLU6}
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
    """Of a thread: the relus that batch norms may take into their pass, and those norms whose relu has yet to come."""

    def __init__(self):
        self.relus, self.waiting = {}, set()  # relus: {norm: (relu, the hooks on saved tensors when that began)}


_now = _Now()
# What such a batch norm marks its output with, which its relu takes off.
RECTIFIED = "_rusttorch_rectified"


def _parent(pairs, parent, *args, **kwargs):
    """The forward of a module that calls batch norms and their relus: {name of the one: name of the other}."""
    before = _now.relus
    layers = filter(None, (_if_ready(parent, names) for names in pairs.items()))
    ready = {norm: (relu, _saved_tensors_hooks()) for norm, relu in layers}
    _now.relus = before | ready
    try:
        result = type(parent).forward(parent, *args, **kwargs)
        if not _now.waiting.isdisjoint(ready):
            raise RuntimeError(
                "fuse_: a relu was not called after its batch norm, as it was when fuse_ looked, so that what "
                "came between them is wrong: unfuse_(model) takes it back"
            )
        return result
    finally:
        _now.relus = before
        _now.waiting.difference_update(ready)


def _if_ready(parent, names):
    """The batch norm and the relu of such names, if they are as they were."""
    norm, relu = (parent._modules.get(name) for name in names)
    ours = is_put(vars(norm).get("forward")) and is_put(vars(relu).get("forward")) if norm and relu else False
    return (norm, relu) if ours and not has_hooks(norm) and not has_hooks(relu) else None


def _norm(norm, input):
    """The forward of a batch norm that may take relu into its pass."""
    relu, hooks = _now.relus.get(norm, (None, None))
    # Not now; or for the second time; or in a checkpoint, which calls it again later.
    if relu is None or norm in _now.waiting or hooks != _saved_tensors_hooks():
        return type(norm).forward(norm, input)
    output = batch_norm_relu(norm, input, getattr(relu, "max_val", None))
    _now.waiting.add(norm)
    setattr(output, RECTIFIED, norm)
    return output


def _relu(relu, input):
    """The forward of a relu of which some inputs have it behind them."""
    norm = vars(input).pop(RECTIFIED, None)
    if norm is None:
        return type(relu).forward(relu, input)
    _now.waiting.discard(norm)
    return input


def _saved_tensors_hooks():
    return torch._C._autograd._top_saved_tensors_default_hooks(False)


def fuse(model, names, args, kwargs):
    """The Fusions of a model, whose modules have such names. With inputs it may run once, on them."""
    parents = [module for module in names if _may_be_parent(module)]
    links = {parent: _traced(parent) for parent in parents}
    untraced = [parent for parent in parents if links[parent] is None]
    if untraced and (args or kwargs):
        links |= _watched(model, untraced, args, kwargs)
    return [fusion for parent in parents for fusion in _fuse_in(parent, links[parent] or (), names)]


def _may_be_parent(module):
    """Whether it may call batch norms, by a forward that is its class's (a ModuleList has none)."""
    has_forward = type(module).forward is not nn.Module.forward and "forward" not in vars(module)
    return has_forward and type(module) not in NORMS and any(type(child) in NORMS for child in module.modules())


class _Link(NamedTuple):
    """A batch norm and what reads its output: names in their parent; no relu is one that is called as a function."""

    norm: str
    relu: str | None
    calls: int  # of the batch norm
    readers: int  # of its output


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
    for node, norm in modules.items():
        reader = next(iter(node.users), None)
        if type(norm) not in NORMS or reader is None:
            continue
        if type(modules.get(reader)) in RELUS:
            links.append(_Link(node.target, reader.target, calls[norm], len(node.users)))
        elif reader.target in RELU_FUNCTIONS:
            links.append(_Link(node.target, None, calls[norm], len(node.users)))
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

    def why_not(link, norm, relu):
        if link.calls > 1 or len(names[norm]) > 1:
            return "called more than once"
        if link.readers > 1:
            return "what is between them is read by others too"
        if "." in link.norm or "." in link.relu:
            return "called past the module that they are in"
        if getattr(relu, "min_val", 0) != 0:
            return "not from 0 on"
        return "" if is_plain(norm) and is_plain(relu) else "with hooks, or a forward of its own"

    for link in links:
        norm = parent.get_submodule(link.norm)
        if link.relu is None:
            reason = "relu is called as a function: as a module it would be fused"
            found.append(Fusion((names[norm][0], "relu"), False, reason))
            continue
        relu = parent.get_submodule(link.relu)
        reason = why_not(link, norm, relu)
        if not reason:
            pairs[link.norm] = link.relu
            put(norm, _norm)
            put(relu, _relu)
        found.append(Fusion((names[norm][0], names[relu][0]), not reason, reason or "one pass"))
    if pairs:
        put(parent, functools.partial(_parent, pairs))
    return found
