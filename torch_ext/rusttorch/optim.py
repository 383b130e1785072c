"""torch.optim's SGD, Adam, AdamW and Adagrad: each step is one pass over parameters, gradients and state.

Arguments, state and state_dict are torch.optim's: what one of them saved, the other loads and goes on with. What the
kernels do not take (complex or sparse tensors, differentiable=True, capturable=True, foreach or fused given) is done by
torch.optim's own step.
"""

import operator

import torch
from torch.optim.adagrad import adagrad
from torch.optim.sgd import sgd

from . import _C, fused

__all__ = ["SGD", "Adagrad", "Adam", "AdamW"]

_ops = _C.lists


def _is_open(group):
    """Whether the group leaves open how its step is done."""
    return (
        group["fused"] is None
        and group["foreach"] is None
        and not group["differentiable"]
        and not group.get("capturable")
    )


class _OnePass:
    """An optimizer whose groups are updated by self._update(group)."""

    def _takes(self, group):
        """Whether the kernels take the group. The same parameters are looked at once: a thousand take 0.2 ms."""
        params = group["params"]
        device = params[0].device if params else None
        known = self.__dict__.setdefault("_known", {})
        seen, seen_on, fits = known.get(id(params), ((), None, True))
        if len(seen) != len(params) or seen_on != device or not all(map(operator.is_, seen, params)):
            fits = fused.fits(params, fused.PLAIN)
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

    def _count_and(self, update, lists, **options):
        """update(*lists), of which the last are the steps, counted up; where a GradScaler found inf, down again."""
        amp, steps = self._amp(), lists[-1]
        _ops._foreach_add_(steps, 1)
        update(*lists, **options, **amp)
        if amp["found_inf"] is not None:
            torch._foreach_sub_(steps, [amp["found_inf"]] * len(steps))

    def _amp(self):
        return {"grad_scale": getattr(self, "grad_scale", None), "found_inf": getattr(self, "found_inf", None)}


class Adam(_OnePass, torch.optim.Adam):
    __doc__ = torch.optim.Adam.__doc__

    def _update(self, group):
        lists = [[] for _ in range(6)]
        self._init_group(group, *lists)
        if not lists[0]:
            return
        self._count_and(
            _ops._fused_adamw_ if group["decoupled_weight_decay"] else _ops._fused_adam_,
            lists,
            lr=group["lr"],
            beta1=float(group["betas"][0]),
            beta2=float(group["betas"][1]),
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=group["amsgrad"],
            maximize=group["maximize"],
        )


class AdamW(Adam, torch.optim.AdamW):
    __doc__ = torch.optim.AdamW.__doc__


class SGD(_OnePass, torch.optim.SGD):
    __doc__ = torch.optim.SGD.__doc__

    def _update(self, group):
        params, grads, buffers = [], [], []
        if self._init_group(group, params, grads, buffers):  # sparse gradients among them
            options = {name: group[name] for name in (*self._options, "lr")}
            sgd(params, grads, buffers, has_sparse_grad=True, foreach=False, **options)
            if group["momentum"] != 0:  # which may have been made there
                for p, buffer in zip(params, buffers, strict=True):
                    self.state[p]["momentum_buffer"] = buffer
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


class Adagrad(_OnePass, torch.optim.Adagrad):
    __doc__ = torch.optim.Adagrad.__doc__

    def _update(self, group):
        lists = [[] for _ in range(4)]
        has_sparse_grad, _ = self._init_group(group, *lists)
        if not lists[0]:
            return
        options = {name: group[name] for name in ("lr", "lr_decay", "weight_decay", "eps", "maximize")}
        if has_sparse_grad:
            adagrad(*lists, has_sparse_grad=True, foreach=False, **options)
            return
        self._count_and(_ops._fused_adagrad_, lists, **options)
