"""What fuse_(model) does in models of transformers: norms, gated MLPs, activations, rotary embeddings and losses.

transformers has a few hundred models, whose layers are a few kinds in as many copies. So a layer is recognised by what
its class's forward reads: the set of all names in its code, of torch's and of its own. That a copy also computes what
its kind does is then seen: twins of both, with small random parameters, are given the same input. A forward that reads
other names (another version's) or computes anything else is left as it is.

Hooks on modules stay, and what is called within them is called as before: adapters in the place of a linear layer are
run. A forward is its class's again for what does not fit: a layer that has been exchanged, an activation with hooks.
"""

import copy
import functools
import inspect
import types
import weakref
from typing import NamedTuple

import torch
from torch import nn

from . import _C, fuse_loss
from .fusion import Fusion, is_plain, put, with_global

ops = _C.functions


class Kind(NamedTuple):
    """A kind of layer: how it is fused, in words; all names that its class's forward reads; and our forward.

    A twin of a module is given an input of so many tensors; its children are as in `children`, else linear layers.
    """

    how: str
    reads: frozenset
    forward: object
    inputs: int = 1
    children: dict = types.MappingProxyType({})
    why_not: object = lambda module: ""


# Norms


def _rms_norm(module, x, offset=0.0):
    """weight * (x / rms(x)), whose dtype is the wider one."""
    weight = module.weight
    eps = getattr(module, "variance_epsilon", None)
    if eps is None:
        eps = module.eps
    dtype = torch.promote_types(x.dtype, weight.dtype)
    if dtype != weight.dtype:
        return type(module).forward(module, x)
    if offset:
        return ops.rms_norm(x.to(dtype), weight.shape, weight, eps, offset=offset).to(x.dtype)
    return ops.rms_norm(x.to(dtype), weight.shape, weight, eps)


def _rms_norm_offset(module, x):
    """(1 + weight) * (x / rms(x)), in x's dtype."""
    return _rms_norm(module, x, 1.0)


def _added_norm(module, hidden_states, input_tensor):
    """BERT's: the norm of a layer's output and its input."""
    norm = module.LayerNorm
    if type(norm) is not nn.LayerNorm or not is_plain(norm):
        return type(module).forward(module, hidden_states, input_tensor)
    hidden_states = module.dropout(module.dense(hidden_states))
    shape = norm.normalized_shape
    return ops.add_layer_norm(hidden_states, input_tensor, shape, norm.weight, norm.bias, norm.eps)[0]


# Activations and gated MLPs

_geglu_tanh = functools.partial(ops.geglu, approximate="tanh")
# By the names of nn's and transformers' classes: act(gate) * up.
GATED = {
    "SiLU": ops.swiglu,
    "SiLUActivation": ops.swiglu,
    "GELUActivation": ops.geglu,
    "GELUTanh": _geglu_tanh,
    "PytorchGELUTanh": _geglu_tanh,
    "NewGELUActivation": _geglu_tanh,
}


def _gelu_tanh(module, x):
    return nn.functional.gelu(x, approximate="tanh")


def _gated(act):
    """act(gate) * up as one function, or None."""
    return GATED.get(type(act).__name__) if is_plain(act) else None


def _no_gated(module):
    act = next(getattr(module, name) for name in ("act_fn", "activation_fn", "act") if hasattr(module, name))
    return "" if _gated(act) else f"no gated op for {type(act).__name__}"


def _gated_mlp(module, x):
    gated = _gated(module.act_fn)
    if gated is None:
        return type(module).forward(module, x)
    return module.down_proj(gated(module.gate_proj(x), module.up_proj(x)))


def _packed_mlp(module, hidden_states):
    """Phi-3's: gate and up are the halves of one product."""
    gated = _gated(module.activation_fn)
    if gated is None:
        return type(module).forward(module, hidden_states)
    return module.down_proj(gated(module.gate_up_proj(hidden_states)))


def _dropped_mlp(module, hidden_states):
    """T5's, with dropout before the last layer, which may be kept in another dtype."""
    gated = _gated(module.act)
    if gated is None:
        return type(module).forward(module, hidden_states)
    hidden_states = module.dropout(gated(module.wi_0(hidden_states), module.wi_1(hidden_states)))
    weight = module.wo.weight
    if isinstance(weight, torch.Tensor) and weight.dtype not in (hidden_states.dtype, torch.int8):
        hidden_states = hidden_states.to(weight.dtype)
    return module.wo(hidden_states)


_OF_RMS_NORM = {"dtype", "float32", "mean", "pow", "rsqrt", "to", "torch", "variance_epsilon", "weight"}
KINDS = (
    Kind("rms_norm", frozenset(_OF_RMS_NORM), _rms_norm),
    Kind("rms_norm", frozenset(_OF_RMS_NORM | {"float16", "bfloat16"}), _rms_norm),
    Kind("rms_norm.offset", frozenset({"_norm", "float", "type_as", "weight"}), _rms_norm_offset),
    Kind(
        "add_layer_norm",
        frozenset({"LayerNorm", "dense", "dropout"}),
        _added_norm,
        inputs=2,
        children={"LayerNorm": lambda: nn.LayerNorm(WIDTH, dtype=torch.float32, device="cpu")},
    ),
    Kind("gelu", frozenset({"math", "pi", "pow", "sqrt", "tanh", "torch"}), _gelu_tanh),
    Kind("gelu", frozenset({"tanh", "torch"}), _gelu_tanh),
    Kind("gated", frozenset({"act_fn", "down_proj", "gate_proj", "up_proj"}), _gated_mlp, why_not=_no_gated),
    Kind(
        "gated, packed",
        frozenset({"activation_fn", "chunk", "down_proj", "gate_up_proj"}),
        _packed_mlp,
        children={"gate_up_proj": lambda: _linear(2 * WIDTH)},
        why_not=_no_gated,
    ),
    Kind(
        "gated",
        frozenset(
            {"Tensor", "act", "dropout", "dtype", "int8", "isinstance", "to", "torch", "weight", "wi_0", "wi_1", "wo"}
        ),
        _dropped_mlp,
        why_not=_no_gated,
    ),
)
WIDTH = 8  # of a twin


def _small(*sizes):
    return torch.randn(sizes, dtype=torch.float32, device="cpu")


def _linear(outputs):
    return nn.Linear(WIDTH, outputs, dtype=torch.float32, device="cpu")


def _twin(module, kind):
    """The module with small random parameters and children, on the CPU, whatever its own are."""

    def small(name, child):
        if name in kind.children:
            return kind.children[name]()
        if isinstance(child, nn.Dropout):
            return nn.Identity()
        return copy.copy(child) if next(child.parameters(), None) is None else _linear(WIDTH)

    twin = copy.copy(module)
    vars(twin).pop("forward", None)
    twin._parameters = {name: p if p is None else nn.Parameter(_small(WIDTH)) for name, p in module._parameters.items()}
    twin._modules = {name: small(name, child) for name, child in module._modules.items()}
    return twin


def _agree(stock, ours, *inputs):
    """Whether two functions return the same."""
    try:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            torch.testing.assert_close(ours(*inputs), stock(*inputs), rtol=1e-4, atol=1e-5)
    except Exception:  # whatever else stock's may need
        return False
    return True


def _computes(module, kind):
    twin = _twin(module, kind)
    stock, ours = functools.partial(type(module).forward, twin), functools.partial(kind.forward, twin)
    return _agree(stock, ours, *(_small(2, 3, WIDTH) for _ in range(kind.inputs)))


# Rotary embeddings: a function that attention's forward finds among its module's globals

ROPE = "apply_rotary_pos_emb"


def _rotates(q, k, cos, sin):
    """Whether the op takes them as they are, and returns them in the dtypes that they have or are used in."""
    if q.dim() != 4 or k.dim() != 4 or cos.dim() != 3 or cos.shape != sin.shape:
        return False
    if not cos.shape[1:] == (q.shape[2], q.shape[3]) == (k.shape[2], k.shape[3]):
        return False
    # (Autocast casts q and k, which stock's has made float32, for the attention.)
    device = q.device.type  # (there is none to ask for of meta)
    casts = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    dtypes = {q.dtype, torch.float32} if casts else {q.dtype}
    return q.dtype == k.dtype and cos.dtype == sin.dtype and cos.dtype in dtypes


def _rope(stock, q, k, cos, sin, *args, **kwargs):
    if args or kwargs or not _rotates(q, k, cos, sin):
        return stock(q, k, cos, sin, *args, **kwargs)
    return ops.rope(q, k, cos, sin)


def _is_rope(function):
    angles = _small(1, 3, WIDTH // 2).repeat(1, 1, 2)
    inputs = _small(1, 2, 3, WIDTH), _small(1, 1, 3, WIDTH), angles.cos(), angles.sin()
    return _agree(function, ops.rope, *inputs)


def _names(code):
    """All names that the code reads, and the functions within it."""
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return set(code.co_names).union(*map(_names, inner))


_ROPES = weakref.WeakSet()  # functions that have been seen to compute it
_ROTATING = weakref.WeakKeyDictionary()  # a forward: globals, those of them that it reads, and its copy


def _rotating(forward):
    """A class's forward with our rope in the place of its own, or None where there is another or none can be put.

    Made again when a global that it reads has changed.
    """
    own, reads, twin = _ROTATING.get(forward, (None, {}, None))
    if own is None or any(own.get(name) is not value for name, value in reads.items()):
        inner = inspect.unwrap(forward)
        if not isinstance(inner, types.FunctionType):
            return None
        own = inner.__globals__
        reads = {name: own.get(name) for name in _names(inner.__code__)}
        stock = reads.get(ROPE)
        if stock not in _ROPES:
            return None
        twin = with_global(forward, ROPE, functools.partial(_rope, stock))
        _ROTATING[forward] = own, reads, twin
    return twin


def _attention(module, *args, **kwargs):
    forward = type(module).forward
    return (_rotating(forward) or forward)(module, *args, **kwargs)


# All of them


def _reads(module):
    """All names that the module's class's forward reads; none of a class that is not transformers'."""
    forward = inspect.unwrap(type(module).forward)
    if not getattr(forward, "__module__", "").startswith("transformers."):
        return frozenset()
    return frozenset(forward.__code__.co_names)


def fuse(names, with_loss):
    """The Fusions of modules with such names."""
    found, agree = [], {}

    def computes(module, what, check, *args):
        """check(*args), once for each class."""
        key = type(module), what  # (a kind's children do not hash)
        if key not in agree:
            agree[key] = check(*args)
        return agree[key]

    def layer(module, reads):
        """Our forward of a layer, and what that is; or why there is none; or nothing."""
        kinds = [kind for kind in KINDS if kind.reads == reads]
        for kind in kinds:
            why_not = kind.why_not(module)
            if why_not:
                return None, why_not
            if computes(module, kind.forward, _computes, module, kind):
                return kind.forward, kind.how
        if kinds:
            return None, f"computes something else than {kinds[0].how}"
        if ROPE in reads:
            function = inspect.unwrap(type(module).forward).__globals__[ROPE]
            if computes(module, ROPE, _is_rope, function):
                _ROPES.add(function)
            if _rotating(type(module).forward):
                return _attention, "rope"
            return None, f"its {ROPE} is not rope's"
        return None, None

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for module, called in names.items():
            reads = _reads(module)
            if not reads:
                continue
            forward, how = layer(module, reads)
            if how is None and with_loss:
                forward, how = fuse_loss.fuse(module, reads)
            if how is None:
                continue
            if forward is not None and "forward" in vars(module):
                forward, how = None, "has a forward of its own"
            if forward is not None:
                put(module, forward)
            found.append(Fusion((called[0],), forward is not None, how))
    return found
