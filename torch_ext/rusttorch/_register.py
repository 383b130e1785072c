"""What torch.ops.rusttorch.* needs beside its kernels: fake tensors and vmap."""

import math

import torch
import torch.nn.functional as F

from . import _C


def _log_sigmoid(x):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _log_sigmoid_forward(x):
    return _log_sigmoid(x), x.new_empty(0) if x.is_cuda else _log_sigmoid(x)


def _wide(dtype):
    """What 16 bits are computed in."""
    return torch.promote_types(dtype, torch.float32)


def _contiguous_like_input(g, x, *args, **kwargs):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _like_input(g, x, *args, **kwargs):
    return torch.empty_like(x)


def _cross_entropy_loss_forward(x, target, weight, reduction, ignore_index, label_smoothing, differentiate):
    loss = x.new_empty(() if reduction else x.shape[:-1])
    return loss, torch.empty_like(x) if differentiate else x.new_empty(0)


def _linear_cross_entropy_forward(x, weight, target, bias, reduction, ignore, smoothing, differentiate, *options):
    summed = torch.float32 if x.dtype == torch.float16 else x.dtype  # over all rows
    likes = ((x, x.dtype), (weight, summed), (bias, summed))
    grads = [
        torch.empty_like(t, dtype=dtype) if differentiate and t is not None else x.new_empty(0) for t, dtype in likes
    ]
    return x.new_empty((), dtype=_wide(x.dtype)), *grads


def _linear_act_forward(x, weight, bias, activation, differentiate):
    y = F.linear(x, weight, bias)
    return y, torch.empty_like(y) if differentiate else x.new_empty(0)


def _linear_glu_forward(x, gate_weight, up_weight, activation, differentiate):
    y = F.linear(x, gate_weight)
    return y, *(torch.empty_like(y) if differentiate else x.new_empty(0) for _ in range(2))


def _batch_norm_relu_forward(x, weight, bias, running_mean, running_var, training, eps, maximum=None):
    y, *_ = torch.ops.aten.native_batch_norm(x, weight, bias, running_mean, running_var, training, 0, eps)
    dtype = _wide(x.dtype)
    return y, *(x.new_empty(x.shape[1] if training else 0, dtype=dtype) for _ in range(3))


def _batch_norm_relu_backward(g, x, weight, bias, *rest):
    return torch.ops.aten.native_batch_norm_backward(g, x, weight, *rest[:7])  # less a maximum


def _swiglu(gate, up):
    return F.silu(gate) * up


def _swiglu_backward(g, gate, up):
    return torch.ops.aten.silu_backward(g * up, gate), g * F.silu(gate)


def _geglu(gate, up, *, approximate="none"):
    return F.gelu(gate, approximate=approximate) * up


def _geglu_backward(g, gate, up, *, approximate="none"):
    by_gate = torch.ops.aten.gelu_backward(g * up, gate, approximate=approximate)
    return by_gate, g * F.gelu(gate, approximate=approximate)


def _packed(gated):
    """Of one tensor, whose halves are the gate and the up."""

    def fake(x, **options):
        if x.shape[-1] % 2:
            raise RuntimeError(f"Halving dimension must be even, but dimension {x.dim() - 1} is size {x.shape[-1]}")
        return gated(*x.chunk(2, -1), **options)

    return fake


def _packed_backward(g, x, **options):
    _check_one_device((g, x), {})
    return _contiguous_like_input(g, x)


def _rnn_layer_forward(
    x, hx, cx, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, batch_sizes, mode, reverse, differentiate
):
    hn, cn = (x.new_empty(0 if t is None else t.shape) for t in (hx, cx))
    hidden = (hx if cx is None else cx).shape[1]
    kept = hx.shape[1] + {"gru": 4, "lstm": 5 + (weight_hr is not None)}.get(mode, 0) * hidden
    reserve = x.new_empty(math.prod(x.shape[:-1]) * kept if differentiate else 0)
    return x.new_empty(*x.shape[:-1], hx.shape[1]), hn, cn, reserve


def _rnn_layer_backward(
    grad_y, grad_hn, grad_cn, x, hx, cx, weight_ih, weight_hh, weight_hr, batch_sizes, reserve, mode, reverse, wanted
):
    def dense(t):
        return t.new_empty(t.shape)

    def like(w):  # as stock's gradient lies
        return dense(w) if w.stride() == (w.shape[1], 1) else dense(w.t()).t()

    bias = weight_ih[:, 0]
    tensors = (x, hx, cx, weight_ih, weight_hh, bias, bias, weight_hr)
    makes = (dense, dense, dense, like, like, dense, dense, like)
    given = (t is not None and want for t, want in zip(tensors, wanted, strict=True))
    return tuple(make(t) if of else None for make, t, of in zip(makes, tensors, given, strict=True))


def _wanted(tensors, wanted):
    return tuple(
        torch.empty_like(t) if want and t is not None else None for t, want in zip(tensors, wanted, strict=True)
    )


def _attention_forward(q, k, v, mask=None, dropout_p=0.0, is_causal=False, *, scale=None):
    batch, heads, queries, size = q.shape
    as_flash = dropout_p == 0 and k.shape[1] == heads and v.shape[3] == size
    has_rows = size == 1 or torch.empty_like(q).stride(3) == 1
    out = torch.empty_like(q) if as_flash and has_rows else q.new_empty(batch, heads, queries, v.shape[3])
    dtype = _wide(q.dtype)
    states = batch * heads * ((queries + 127) // 128) if dropout_p > 0 else 0
    random = q.new_empty((states, 625) if dropout_p > 0 else 0, dtype=torch.int32)
    return out, q.new_empty(batch, queries, heads, dtype=dtype).transpose(1, 2), random


def _attention_backward(g, q, k, v, *args, **kwargs):
    return tuple(t.new_empty(t.transpose(1, 2).shape).transpose(1, 2) for t in (q, k, v))


def _fused_add_norm(x, residual, shape, statistics):
    """The norm, the sum, and so many numbers of each row."""
    rows = (*x.shape[: x.dim() - len(shape)], *(1 for _ in shape))
    x = torch.empty_like(x, dtype=x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype))
    dtype = _wide(x.dtype)
    added = x.new_empty(0) if residual is None else torch.empty_like(x)
    return torch.empty_like(x), added, *(x.new_empty(rows, dtype=dtype) for _ in range(statistics))


def _images_to_batch(images, size, *, dtype=None, memory_format=None, **kwargs):
    dtype = torch.get_default_dtype() if dtype is None else dtype
    height, width = size
    shape = (len(images), images[0].shape[2], height, width)
    return images[0].new_empty(shape, dtype=dtype).contiguous(memory_format=memory_format or torch.contiguous_format)


def _like_images(images, *args, size=None, dtype=None):
    """A batch as images is, with the channels of a pixel side by side where they are there."""
    torch._check(size is None or len(size) == 2, lambda: f"expected a size [height, width], but got {size}")
    last = images.shape[1] > 1 and not images.is_contiguous()
    last = last and images.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last else torch.contiguous_format
    shape = images.shape if size is None else (*images.shape[:2], *size)
    return images.new_empty(shape, dtype=dtype).contiguous(memory_format=layout)


# Ops that aten does not have, in its terms, and those that aten's fake kernel gets wrong.
FAKE = {
    "log_sigmoid": _log_sigmoid,
    "log_sigmoid_forward": _log_sigmoid_forward,
    "log_sigmoid_backward": lambda g, x, buffer: g * x,  # aten's wants the buffer, which may be empty here
    "softsign": lambda x: x / (x.abs() + 1),
    "squareplus": lambda x, b=4: torch.sqrt(x),
    "swiglu": _swiglu,
    "swiglu.packed": _packed(_swiglu),
    "swiglu_backward": _swiglu_backward,
    "swiglu_backward.packed": _packed_backward,
    "geglu": _geglu,
    "geglu.packed": _packed(_geglu),
    "geglu_backward": _geglu_backward,
    "geglu_backward.packed": _packed_backward,
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
    "attention_forward": _attention_forward,
    "attention_backward": _attention_backward,
    "attention_kept": lambda random, sizes, dropout_p: random.new_empty(sizes, dtype=torch.bool),
    "batch_norm_relu_forward": _batch_norm_relu_forward,
    "batch_norm_relu_backward": _batch_norm_relu_backward,
    "_fused_rms_norm_backward": lambda g, x, shape, rstd, weight, wanted: _wanted((x, weight), wanted),
    "_fused_add_rms_norm": lambda x, residual, shape, weight, eps, offset: _fused_add_norm(x, residual, shape, 1),
    "_fused_add_rms_norm_backward": lambda g, by_sum, x, shape, rstd, weight, offset, wanted: _wanted(
        (x, weight), wanted
    ),
    "_fused_add_layer_norm": lambda x, residual, shape, weight, bias, eps: _fused_add_norm(x, residual, shape, 2),
    "_fused_add_layer_norm_backward": lambda g, by_sum, x, shape, mean, rstd, weight, bias, wanted: _wanted(
        (x, weight, bias), wanted
    ),
    "rope": lambda q, k, *args, **kwargs: (torch.empty_like(q), torch.empty_like(k)),
    "rope_backward": lambda q, k, *args, **kwargs: (torch.empty_like(q), torch.empty_like(k)),
    "rope_": lambda *args, **kwargs: None,
    "rnn_layer_forward": _rnn_layer_forward,
    "rnn_layer_backward": _rnn_layer_backward,
    "images_to_batch": _images_to_batch,
    "images_to_batch.out": lambda *args, out, **kwargs: out,
    **dict.fromkeys(("color_images", "blur_images", "sharpen_images", "mix_images"), _like_images),
    "color_images_": lambda images, *args: images,
    "normalize_images": lambda images, mean, std: _like_images(images, dtype=torch.float32),
    "warp_images": lambda images, matrix, size, *args, **kwargs: _like_images(images, size=size),
    "crop_images": lambda images, corner, mirrored, size, *args, **kwargs: _like_images(images, size=size),
    "clip_grad_norm_": lambda grads, *args, **kwargs: grads[0].new_empty(()) if grads else torch.empty(()),
}
LISTS = ("optimizer", "foreach", "image")  # families
ELEMENTWISE = ("pointwise", "activation")  # families
# Families that take no number from another device.
ONE_DEVICE = ("norm", "rope", "cross_entropy", "linear", "image", "color", "crop", "warp", "filter")


def overload(namespace, name):
    """torch.ops.NAMESPACE.OP.OVERLOAD of "op.overload" (or "op"), or None."""
    base, _, suffix = name.partition(".")
    packet = getattr(getattr(torch.ops, namespace), base, None)
    return getattr(packet, suffix or "default", None) if packet is not None else None


def _flat(args, kwargs):
    """The arguments, and those in lists."""
    return [t for arg in (*args, *kwargs.values()) for t in (arg if isinstance(arg, (list, tuple)) else [arg])]


def _check_one_device(args, kwargs):
    devices = {x.device for x in _flat(args, kwargs) if isinstance(x, torch.Tensor)}
    if len(devices) > 1:
        found = " and ".join(sorted(map(str, devices)))
        raise RuntimeError(f"Expected all tensors to be on the same device, but found at least two devices, {found}!")


def _changes_lists(*args, **kwargs):
    """The fake kernel of an op that changes lists and returns nothing. (Of a list that has a tensor without memory in
    it, torch calls it for all.)"""
    if any(type(t) in (torch.Tensor, torch.nn.Parameter) and not t.is_meta for t in _flat(args, kwargs)):
        raise RuntimeError("Expected all tensors to be on the same device, but some are on meta")


def register_fake(name, family):
    """The rules for shapes, dtypes and layouts are aten's own: the fake kernel is aten's op on fake tensors."""
    twin = FAKE.get(name) or overload("aten", name)

    def fake(*args, **kwargs):
        if family in ONE_DEVICE:
            _check_one_device(args, kwargs)
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
        schema = overload("rusttorch", name)._schema
        # vmap has no out=, and no other tensors that are given by keyword only.
        if schema.returns and not any(a.kwarg_only and "Tensor" in str(a.type) for a in schema.arguments):
            # (A gradient is as long as a half: what broadcasts its batch would not broadcast the other's.)
            is_elementwise = family in ELEMENTWISE and not name.endswith("_backward.packed")
            (register_elementwise_vmap if is_elementwise else register_vmap)(name)
