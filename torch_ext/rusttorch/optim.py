"""torch.optim's SGD, Adam and AdamW, with one pass over the parameters, the gradients and the state at each step.

Arguments, state and state_dict are torch.optim's: what one of them saved, the other loads and goes on with. What the
kernels do not take (complex or sparse tensors, differentiable=True, capturable=True, foreach or fused given) is done by
torch.optim's own step.

Under use(), torch.optim's own SGD, Adam, AdamW and Adagrad take the fused kernels too, where they were constructed
without fused and foreach: the functions that their steps end in (torch.optim.adam.adam, ...) are called with
fused=True. Nothing is changed in the optimizers.
"""

import functools
import importlib
import operator

import torch
from torch.autograd.graph import increment_version
from torch.optim.optimizer import _foreach_supported_types
from torch.optim.sgd import sgd

from . import _C

_ops = _C.lists
_PLAIN = {torch.Tensor, torch.nn.Parameter}
_DTYPES = {torch.float32, torch.float64, torch.bfloat16, torch.float16}


def _is_open(group):
    """Whether the group leaves open how its step is done."""
    return (
        group["fused"] is None
        and group["foreach"] is None
        and not group["differentiable"]
        and not group.get("capturable")
    )


def _fits(params, types):
    """Whether the kernels take the parameters: on the CPU any floats; on a GPU all of one dtype on one device.

    One that is there twice (torch only warns) takes both its steps, one after the other; one that is negated when it is
    read has no values in its memory; one made in inference mode may be changed there only. All are stock's.
    """
    dtypes, classes = {p.dtype for p in params}, {type(p) for p in params}
    if not (dtypes <= _DTYPES and classes <= types) or any(p.is_neg() or p.is_inference() for p in params):
        return False
    if len(set(map(id, params))) < len(params):
        return False
    if len({c in _PLAIN for c in classes}) > 1:  # no op takes both plain tensors and DTensors
        return False
    if all(p.is_cpu for p in params):
        return True
    return params[0].is_cuda and len(dtypes) == len({p.device for p in params}) == 1


def _is_dense(p):
    return p.is_contiguous() or p.permute(sorted(range(p.dim()), key=p.stride, reverse=True)).is_contiguous()


def _forms(tensors):
    """What a parameter, its gradient and its state must share: stock's fused kernels do not look at strides."""
    return [t.dtype for t in tensors], [t.is_contiguous() or t.stride() for t in tensors]


class _OnePass:
    """An optimizer whose groups are updated by self._update(group)."""

    def _takes(self, group):
        """Whether the kernels take the group. The same parameters are looked at once: a thousand take 0.2 ms."""
        params = group["params"]
        device = params[0].device if params else None
        known = self.__dict__.setdefault("_known", {})
        seen, seen_on, fits = known.get(id(params), ((), None, True))
        if len(seen) != len(params) or seen_on != device or not all(map(operator.is_, seen, params)):
            fits = _fits(params, _PLAIN)
            known[id(params)] = (list(params), device, fits)
        return _is_open(group) and fits

    def step(self, closure=None):
        """One step, as torch.optim's. closure: reevaluates the model and returns the loss, which is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if not all(map(self._takes, self.param_groups)):
            self._stock_step()
            return loss
        self._accelerator_graph_capture_health_check()
        with torch.no_grad():
            for group in self.param_groups:
                self._update(group)
        return loss

    def _stock_step(self):
        """torch.optim's own step, without the hooks that torch puts around it: ours has them already."""
        step = super().step.__func__
        (step.__wrapped__ if getattr(step, "hooked", False) else step)(self)

    def _amp(self):
        return {"grad_scale": getattr(self, "grad_scale", None), "found_inf": getattr(self, "found_inf", None)}


class Adam(_OnePass, torch.optim.Adam):
    __doc__ = torch.optim.Adam.__doc__

    def _update(self, group):
        lists = [[] for _ in range(6)]
        self._init_group(group, *lists)
        steps = lists[-1]
        if not steps:
            return
        amp = self._amp()
        _ops._foreach_add_(steps, 1)
        update = _ops._fused_adamw_ if group["decoupled_weight_decay"] else _ops._fused_adam_
        update(
            *lists,
            lr=group["lr"],
            beta1=float(group["betas"][0]),
            beta2=float(group["betas"][1]),
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=group["amsgrad"],
            maximize=group["maximize"],
            **amp,
        )
        if amp["found_inf"] is not None:
            torch._foreach_sub_(steps, [amp["found_inf"]] * len(steps))


class AdamW(Adam, torch.optim.AdamW):
    __doc__ = torch.optim.AdamW.__doc__


class SGD(_OnePass, torch.optim.SGD):
    __doc__ = torch.optim.SGD.__doc__

    def _update(self, group):
        params, grads, buffers = [], [], []
        if self._init_group(group, params, grads, buffers):  # sparse gradients among them
            options = {name: group[name] for name in (*self._options, "lr")}
            sgd(params, grads, buffers, has_sparse_grad=True, foreach=False, **options)
            return
        if group["momentum"] == 0:
            self._call(group, params, grads, [], False)
            return
        # The first gradient is the momentum; parameters that have none yet go apart.
        new = [k for k, buffer in enumerate(buffers) if buffer is None]
        if new:
            fresh = [torch.empty_like(grads[k]) for k in new]
            self._call(group, [params[k] for k in new], [grads[k] for k in new], fresh, True)
            for k, buffer in zip(new, fresh, strict=True):
                self.state[params[k]]["momentum_buffer"] = buffer
            rest = [k for k, buffer in enumerate(buffers) if buffer is not None]
            params, grads, buffers = ([values[k] for k in rest] for values in (params, grads, buffers))
        self._call(group, params, grads, buffers, False)

    _options = ("weight_decay", "momentum", "dampening", "nesterov", "maximize")

    def _call(self, group, params, grads, buffers, first):
        if params:
            options = {name: group[name] for name in self._options}
            _ops._fused_sgd_(params, grads, buffers, lr=group["lr"], is_first_step=first, **options, **self._amp())


def _fused(stock, lists, states):
    """stock, a function in which steps of torch.optim end, with fused=True where our kernels take what is left open.

    lists: how many lists of tensors it is given: parameters, gradients, so many states, and (but SGD's) the steps.
    """

    def takes(params, grads, *others, foreach=None, fused=None, capturable=False, differentiable=False, **options):
        if foreach is not None or fused is not None or capturable or differentiable:
            return False
        # (SGD's differentiable=True shows in the mode alone.)
        if torch.is_grad_enabled() or any(isinstance(o, torch.Tensor) and o.requires_grad for o in options.values()):
            return False
        # Of the fused ops, DTensor has Adam's.
        types = set(_foreach_supported_types) if stock.__name__ == "adam" else _PLAIN
        if not _fits(params, types) or any(g.layout != torch.strided for g in grads):
            return False
        # Momentum that only some parameters have yet is a list that is too short: no fused op takes that.
        given = ([t for t in tensors if t is not None] for tensors in (grads, *others[:states]))
        forms = _forms(params)
        return all(map(_is_dense, params)) and all(_forms(tensors) == forms for tensors in given if tensors)

    @functools.wraps(stock)
    def function(*args, **options):
        if torch.compiler.is_compiling() or len(args) != lists or not takes(*args, **options):
            return stock(*args, **options)
        stock(*args, **options | {"fused": True})
        increment_version(args[0])  # which the steps that are replaced do, and the fused ones do not

    return function


def _of(name, lists, states):
    module = importlib.import_module(f"torch.optim.{name}")
    stock = getattr(module, name)
    return module, name, stock, _fused(stock, lists, states)


_FUNCTIONS = [_of("adam", 6, 3), _of("sgd", 3, 1), _of("adagrad", 4, 1)]


def reach(swapped):
    """Has torch.optim's optimizers take the fused ops that are swapped, and no others."""
    for module, name, stock, fused in _FUNCTIONS:
        wanted = any(op.startswith(f"_fused_{name}") for op in swapped)
        # What somebody else has put there stays.
        if getattr(module, name) is (stock if wanted else fused):
            setattr(module, name, fused if wanted else stock)
