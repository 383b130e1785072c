"""All gradients of a model, or all its weights, in one call: clipping, and exponential moving averages.

Under use(), torch's own _foreach_add_, _foreach_mul_, _foreach_lerp_ and _foreach_zero_ take the same kernels: those
of torch.optim's fused optimizers, of their zero_grad(set_to_none=False) and of
torch.optim.swa_utils.get_ema_multi_avg_fn.
"""

import torch

from . import _C


def _listed(parameters):
    return [parameters] if isinstance(parameters, torch.Tensor) else list(parameters)


def _grads(parameters):
    return [p.grad for p in parameters if p.grad is not None]


def _is_plain(grads):
    """Whether there are some, on one device and none sparse: the rest is torch.nn.utils' to do, or to refuse."""
    return grads and all(g.layout == torch.strided and g.device == grads[0].device for g in grads)


@torch.no_grad()
def clip_grad_norm_(parameters, max_norm, norm_type=2.0, error_if_nonfinite=False, foreach=None):
    """torch.nn.utils.clip_grad_norm_: scales the gradients so that their norm, taken together, is at most max_norm.

    parameters: a tensor or an iterable of tensors, whose grad is changed in place; those without one are left out.
    norm_type: the order p of the norm; 1, 2 and inf are one pass over the gradients. Returns the norm before, a 0-dim
    tensor. Where it is at most max_norm nothing is written. foreach is taken for compatibility.
    Raises RuntimeError if error_if_nonfinite and the norm is NaN or infinite, before anything is written.
    """
    parameters = _listed(parameters)
    grads = _grads(parameters)
    if not _is_plain(grads):
        return torch.nn.utils.clip_grad_norm_(parameters, max_norm, norm_type, error_if_nonfinite, foreach)
    return _C.lists.clip_grad_norm_(grads, float(max_norm), float(norm_type), error_if_nonfinite)


@torch.no_grad()
def clip_grad_value_(parameters, clip_value, foreach=None):
    """torch.nn.utils.clip_grad_value_: clamps every gradient, in place, to [-clip_value, clip_value].

    parameters and foreach as in clip_grad_norm_.
    """
    parameters = _listed(parameters)
    grads = _grads(parameters)
    if not _is_plain(grads):
        torch.nn.utils.clip_grad_value_(parameters, clip_value, foreach)
    else:
        _C.lists.clip_grad_value_(grads, float(clip_value))


@torch.no_grad()
def ema_update_(averages, parameters, decay):
    """averages = decay * averages + (1 - decay) * parameters, tensor by tensor, in place.

    averages, parameters: iterables of as many tensors, of the same shapes, such as ema_model.parameters() and
    model.parameters(). Raises RuntimeError if there are not as many, ValueError if decay is not between 0 and 1.
    """
    if not 0 <= decay <= 1:
        raise ValueError(f"ema_update_: decay must be between 0 and 1, got {decay}")
    _C.lists._foreach_lerp_(list(averages), list(parameters), 1 - decay)
