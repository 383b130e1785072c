"""torch.optim's SGD, Adam and AdamW, with one pass over the parameters, the gradients and the state at each step.

Arguments, state and state_dict are torch.optim's: what one of them saved, the other loads and goes on with. What the
kernels do not take (complex or sparse tensors, differentiable=True, capturable=True, foreach or fused given) is done by
torch.optim's own step.

Under use(), torch.optim's own SGD, Adam, AdamW and Adagrad take the fused kernels too, where they were constructed
without fused and foreach: torch's hooks around every optimizer's step set fused for the length of the step.
"""

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.optim.sgd import sgd

from . import _C

_ops = _C.lists


def _is_open(group):
    """Whether the group leaves open how its step is done."""
    return (
        group["fused"] is None
        and group["foreach"] is None
        and not group["differentiable"]
        and not group.get("capturable")
    )


def _fits(params):
    """Whether the kernels take the parameters: on the CPU any floats; on a GPU all of one dtype on one device."""
    if all(p.is_cpu and p.is_floating_point() for p in params):
        return True
    p = params[0]
    return p.is_cuda and p.is_floating_point() and all((q.device, q.dtype) == (p.device, p.dtype) for q in params)


class _OnePass:
    """An optimizer whose groups are updated by self._update(group)."""

    def _takes(self, group):
        """Whether the kernels take the group. Its parameters are looked at once: a thousand take 0.2 ms."""
        params = group["params"]
        known = self.__dict__.setdefault("_known", {})
        seen = (len(params), params[0].device) if params else None
        if id(params) not in known or known[id(params)][0] != seen:
            known[id(params)] = (seen, _fits(params))
        return _is_open(group) and known[id(params)][1]

    def step(self, closure=None):
        """One step, as torch.optim's. closure: reevaluates the model and returns the loss, which is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if not all(map(self._takes, self.param_groups)):
            super().step()
            return loss
        self._accelerator_graph_capture_health_check()
        with torch.no_grad():
            for group in self.param_groups:
                self._update(group)
        return loss

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


class Hooks:
    """Around every optimizer's step: open groups of torch.optim's own optimizers are fused for its length."""

    def __init__(self):
        self.handles = []
        self.fused = []  # groups, until their step ends

    def install(self, wanted):
        """The hooks stand while they are wanted."""
        if wanted and not self.handles:
            self.handles = [
                register_optimizer_step_pre_hook(self.before),
                register_optimizer_step_post_hook(self.after),
            ]
        elif not wanted and self.handles:
            for handle in self.handles:
                handle.remove()
            self.handles = []
            self.after()  # of a step that raised

    def before(self, optimizer, args, kwargs):
        self.after()
        kinds = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad)
        if type(optimizer) in kinds:
            self.fused = [group for group in optimizer.param_groups if _is_open(group) and self.takes(group["params"])]
            for group in self.fused:
                self.count_on_the_cpu(optimizer, group)
                group["fused"] = True

    @staticmethod
    def count_on_the_cpu(optimizer, group):
        """Adam's steps begin there, as without fused: stock's own step would wait for a GPU to read each of them."""
        params = group["params"]
        on_gpu = bool(params) and params[0].is_cuda  # and so are the others
        if not on_gpu or not isinstance(optimizer, torch.optim.Adam):
            return
        if any(p.grad is not None and p not in optimizer.state for p in params):
            optimizer._init_group(group, *([] for _ in range(6)))

    @staticmethod
    def takes(params):
        return _fits(params) and not any(p.grad is not None and p.grad.is_sparse for p in params)

    def after(self, *ignored):
        for group in self.fused:
            group["fused"] = None
        self.fused = []
