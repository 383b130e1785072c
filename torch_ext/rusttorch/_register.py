"""What torch.ops.rusttorch.* needs beside its kernels: fake tensors and vmap."""

import torch
import torch.nn.functional as F

from . import _C


def _log_sigmoid(x):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _log_sigmoid_forward(x):
    return _log_sigmoid(x), x.new_empty(0) if x.is_cuda else _log_sigmoid(x)


def _contiguous_like_input(g, x, *args, **kwargs):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _like_input(g, x, *args, **kwargs):
    return torch.empty_like(x)


def _cross_entropy_loss_forward(x, target, weight, reduction, ignore_index, label_smoothing, differentiate):
    loss = x.new_empty(() if reduction else x.shape[:-1])
    return loss, torch.empty_like(x) if differentiate else x.new_empty(0)


def _linear_cross_entropy_forward(x, weight, target, bias, reduction, ignore_index, label_smoothing, differentiate):
    summed = torch.float32 if x.dtype == torch.float16 else x.dtype  # over all rows
    likes = ((x, x.dtype), (weight, summed), (bias, summed))
    grads = [
        torch.empty_like(t, dtype=dtype) if differentiate and t is not None else x.new_empty(0) for t, dtype in likes
    ]
    return x.new_empty(()), *grads


def _linear_act_forward(x, weight, bias, activation, differentiate):
    y = F.linear(x, weight, bias)
    return y, torch.empty_like(y) if differentiate else x.new_empty(0)


def _linear_glu_forward(x, gate_weight, up_weight, activation, differentiate):
    y = F.linear(x, gate_weight)
    return y, *(torch.empty_like(y) if differentiate else x.new_empty(0) for _ in range(2))


def _fused_rms_norm_backward(g, x, shape, rstd, weight, wanted):
    return tuple(
        torch.empty_like(t) if want and t is not None else None for t, want in zip((x, weight), wanted, strict=True)
    )


# Ops that aten does not have, in its terms, and those that aten's fake kernel gets wrong.
FAKE = {
    "log_sigmoid": _log_sigmoid,
    "log_sigmoid_forward": _log_sigmoid_forward,
    "log_sigmoid_backward": lambda g, x, buffer: g * x,  # aten's wants the buffer, which may be empty here
    "softsign": lambda x: x / (x.abs() + 1),
    "squareplus": lambda x, b=4: torch.sqrt(x),
    # aten's take alpha by keyword only, where its schema lets it be given by position
    "add.Scalar_out": lambda x, s, alpha=1, *, out: torch.add(x, s, alpha=alpha, out=out),
    "sub.Scalar_out": lambda x, s, alpha=1, *, out: torch.sub(x, s, alpha=alpha, out=out),
    "fused_multiply_add": lambda a, b, c: torch.addcmul(c, a, b),
    "add_scalar": torch.ops.aten.add.Scalar,
    "mul_scalar": torch.ops.aten.mul.Scalar,
    "mse_loss_backward": _contiguous_like_input,
    "smooth_l1_loss_backward": _contiguous_like_input,
    "huber_loss_backward": _contiguous_like_input,
    "l1_loss_backward": _like_input,
    "bce_loss": lambda x, t, epsilon=1e-7, reduction=1: torch.ops.aten.mse_loss(x, t, reduction),
    "bce_loss_backward": _like_input,
    "binary_cross_entropy_with_logits_backward": _like_input,
    "kl_div_backward": _like_input,
    "cross_entropy_loss_forward": _cross_entropy_loss_forward,
    "cross_entropy_loss_backward": _like_input,
    "linear_cross_entropy_forward": _linear_cross_entropy_forward,
    "linear_act_forward": _linear_act_forward,
    "linear_glu_forward": _linear_glu_forward,
    "_fused_rms_norm_backward": _fused_rms_norm_backward,
    "clip_grad_norm_": lambda grads, *args, **kwargs: grads[0].new_empty(()) if grads else torch.empty(()),
}
LISTS = ("optimizer", "foreach")  # families
ELEMENTWISE = ("pointwise", "activation")  # families
ONE_DEVICE = ("norm", "cross_entropy", "linear")  # families that take no number from another device


def overload(namespace, name):
    """torch.ops.NAMESPACE.OP.OVERLOAD of "op.overload" (or "op"), or None."""
    base, _, suffix = name.partition(".")
    packet = getattr(getattr(torch.ops, namespace), base, None)
    return getattr(packet, suffix or "default", None) if packet is not None else None


def _check_one_device(args):
    devices = {x.device for x in args if isinstance(x, torch.Tensor)}
    if len(devices) > 1:
        found = " and ".join(sorted(map(str, devices)))
        raise RuntimeError(f"Expected all tensors to be on the same device, but found at least two devices, {found}!")


def _changes_lists(*args, **kwargs):
    """The fake kernel of an op that changes lists and returns nothing. (Of a list that has a tensor without memory in
    it, torch calls it for all.)"""
    tensors = [t for arg in (*args, *kwargs.values()) for t in (arg if isinstance(arg, (list, tuple)) else [arg])]
    if any(type(t) in (torch.Tensor, torch.nn.Parameter) and not t.is_meta for t in tensors):
        raise RuntimeError("Expected all tensors to be on the same device, but some are on meta")


def register_fake(name, family):
    """The rules for shapes, dtypes and layouts are aten's own: the fake kernel is aten's op on fake tensors."""
    twin = FAKE.get(name) or overload("aten", name)

    def fake(*args, **kwargs):
        if family in ONE_DEVICE:
            _check_one_device(args)
        return twin(*args, **kwargs)

    torch.library.register_fake(f"rusttorch::{name}", fake)


def check_inplace(name, in_dims):
    if name.partition(".")[0].endswith("_") and in_dims[0] is None:
        raise RuntimeError(
            f"vmap: rusttorch.{name} writes a tensor that is not batched, with one that is; use the out-of-place op"
        )


def register_vmap(name):
    """A batch of calls, one after the other."""
    op = overload("rusttorch", name)

    def batched(info, in_dims, *args, **kwargs):
        check_inplace(name, in_dims)

        def example(i):
            batched = zip(args, in_dims, strict=True)
            each = [x.select(dim, i) if isinstance(dim, int) else x for x, dim in batched]
            return op(*each, **kwargs)

        outs = [example(i) for i in range(info.batch_size)]
        if isinstance(outs[0], tuple):
            return tuple(torch.stack(each) for each in zip(*outs, strict=True)), (0,) * len(outs[0])
        return torch.stack(outs), 0

    torch.library.register_vmap(f"rusttorch::{name}", batched)


def register_elementwise_vmap(name):
    """The batch dimension goes first, and ranks are made equal behind it."""
    op = overload("rusttorch", name)

    def batched(info, in_dims, *args, **kwargs):
        check_inplace(name, in_dims)
        is_batched = [dim is not None and isinstance(x, torch.Tensor) for x, dim in zip(args, in_dims, strict=True)]
        tensors = [x for x in args if isinstance(x, torch.Tensor)]
        rank = max(x.dim() - b for x, b in zip(args, is_batched, strict=True) if isinstance(x, torch.Tensor))
        # What promotion should see is the rank of one example: a batch of numbers counts as a number.
        dtype = tensors[0].dtype
        for x, b in zip(args, is_batched, strict=True):
            if isinstance(x, torch.Tensor):
                one = x.new_empty(()) if b and x.dim() == 1 else x
                dtype = torch.result_type(torch.empty((0,) * (rank > 0), dtype=dtype, device=x.device), one)

        def align(x, dim, batched):
            if not batched:
                return x
            x = x.movedim(dim, 0)
            if x.dim() == 1 and rank > 0:
                x = x.to(dtype)
            return x.reshape(x.shape[:1] + (1,) * (rank + 1 - x.dim()) + x.shape[1:])

        out = op(*map(align, args, in_dims, is_batched), **kwargs)
        if isinstance(out, tuple):
            return out, (0,) * len(out)
        return out, 0

    torch.library.register_vmap(f"rusttorch::{name}", batched)


def register():
    for family, name, _ in _C.entries():
        if family in LISTS:  # which vmap does not know
            nothing = not overload("rusttorch", name)._schema.returns
            if nothing:
                torch.library.register_fake(f"rusttorch::{name}", _changes_lists)
            else:
                register_fake(name, family)
            continue
        composite = torch._C._dispatch_has_kernel_for_dispatch_key(f"rusttorch::{name}", "CompositeImplicitAutograd")
        if not composite:  # else made of other ops of the table, which have their fake kernels
            register_fake(name, family)
        arguments = overload("rusttorch", name)._schema.arguments
        if not any(a.kwarg_only and a.alias_info for a in arguments):  # vmap has no out=
            (register_elementwise_vmap if family in ELEMENTWISE else register_vmap)(name)
