"""Faster, fused, drop-in operators for PyTorch. (Written by tools/stubs.py.)"""

from collections.abc import Sequence
from typing import Literal, overload

import torch
from torch import Tensor
from torch.types import Number

from . import data as data
from . import memory as memory
from . import names as names
from . import nn as nn
from . import optim as optim
from .ab import AB as AB
from .ab import Report as Report
from .foreach import clip_grad_norm_ as clip_grad_norm_
from .foreach import clip_grad_value_ as clip_grad_value_
from .foreach import ema_update_ as ema_update_
from .fuse import fuse_ as fuse_
from .fuse import unfuse_ as unfuse_
from .names import arange as arange
from .names import broadcast_shape as broadcast_shape
from .names import broadcast_tensors as broadcast_tensors
from .names import contiguous as contiguous
from .names import dropout as dropout
from .names import eye as eye
from .names import from_numpy as from_numpy
from .names import full as full
from .names import layer_norm as layer_norm
from .names import linear as linear
from .names import linspace as linspace
from .names import matmul as matmul
from .names import nll_loss as nll_loss
from .names import ones as ones
from .names import randn as randn
from .names import reshape as reshape
from .names import shapes_broadcastable as shapes_broadcastable
from .names import tensor as tensor
from .names import transpose as transpose
from .names import zeros as zeros
from .resolve import families as families
from .swap import OpStats as OpStats
from .swap import disable as disable
from .swap import enable as enable
from .swap import is_enabled as is_enabled
from .swap import ops as ops
from .swap import reset_stats as reset_stats
from .swap import stats as stats
from .swap import use as use

__version__: str

def _adaptive_avg_pool2d(input: Tensor, output_size: int | Sequence[int]) -> Tensor: ...
def _adaptive_avg_pool2d_backward(grad_output: Tensor, input: Tensor) -> Tensor: ...
def _embedding_bag(
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor,
    scale_grad_by_freq: bool = False,
    mode: int = 0,
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int = -1,
) -> tuple[Tensor, Tensor, Tensor, Tensor]: ...
def _embedding_bag_dense_backward(
    grad: Tensor,
    indices: Tensor,
    offset2bag: Tensor,
    bag_size: Tensor,
    maximum_indices: Tensor,
    num_weights: int,
    scale_grad_by_freq: bool,
    mode: int,
    per_sample_weights: Tensor | None,
    padding_idx: int = -1,
) -> Tensor: ...
def _embedding_bag_forward_only(
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor,
    scale_grad_by_freq: bool = False,
    mode: int = 0,
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int = -1,
) -> tuple[Tensor, Tensor, Tensor, Tensor]: ...
def _embedding_bag_per_sample_weights_backward(
    grad: Tensor, weight: Tensor, indices: Tensor, offsets: Tensor, offset2bag: Tensor, mode: int, padding_idx: int = -1
) -> Tensor: ...
def _fused_add_layer_norm(
    input: Tensor,
    residual: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]: ...
def _fused_add_rms_norm(
    input: Tensor,
    residual: Tensor | None,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    eps: float | None,
    offset: float,
) -> tuple[Tensor, Tensor, Tensor]: ...
def _fused_rms_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None, eps: float | None
) -> tuple[Tensor, Tensor]: ...
def _log_softmax(input: Tensor, dim: int, half_to_float: bool, *, out: Tensor | None = None) -> Tensor: ...
def _log_softmax_backward_data(
    grad_output: Tensor, output: Tensor, dim: int, input_dtype: torch.dtype, *, out: Tensor | None = None
) -> Tensor: ...
def _scaled_dot_product_flash_attention_for_cpu(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> torch.return_types._scaled_dot_product_flash_attention_for_cpu: ...
def _scaled_dot_product_flash_attention_for_cpu_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    dropout_p: float,
    is_causal: bool,
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]: ...
def _softmax(input: Tensor, dim: int, half_to_float: bool, *, out: Tensor | None = None) -> Tensor: ...
def _softmax_backward_data(
    grad_output: Tensor, output: Tensor, dim: int, input_dtype: torch.dtype, *, out: Tensor | None = None
) -> Tensor: ...
def _upsample_bicubic2d_aa(
    input: Tensor,
    output_size: int | Sequence[int],
    align_corners: bool,
    scales_h: float | None = None,
    scales_w: float | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor: ...
def _upsample_bicubic2d_aa_backward(
    grad_output: Tensor,
    output_size: int | Sequence[int],
    input_size: int | Sequence[int],
    align_corners: bool,
    scales_h: float | None = None,
    scales_w: float | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor: ...
def _upsample_bilinear2d_aa(
    input: Tensor,
    output_size: int | Sequence[int],
    align_corners: bool,
    scales_h: float | None = None,
    scales_w: float | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor: ...
def _upsample_bilinear2d_aa_backward(
    grad_output: Tensor,
    output_size: int | Sequence[int],
    input_size: int | Sequence[int],
    align_corners: bool,
    scales_h: float | None = None,
    scales_w: float | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor: ...
def _upsample_nearest_exact2d(
    input: Tensor,
    output_size: int | Sequence[int],
    scales_h: float | None = None,
    scales_w: float | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor: ...
def _upsample_nearest_exact2d_backward(
    grad_output: Tensor,
    output_size: int | Sequence[int],
    input_size: int | Sequence[int],
    scales_h: float | None = None,
    scales_w: float | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor: ...
def abs(input: Tensor, *, out: Tensor | None = None) -> Tensor: ...
def abs_(input: Tensor) -> Tensor: ...
def adam_update(
    input: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: int,
    max_exp_avg_sq: Tensor | None = None,
    *,
    lr: float = 0.001,
    beta1: float = 0.90000000000000002,
    beta2: float = 0.999,
    eps: float = 1e-08,
    weight_decay: float = 0.0,
    maximize: bool = False,
) -> None: ...
def adamw_update(
    input: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: int,
    max_exp_avg_sq: Tensor | None = None,
    *,
    lr: float = 0.001,
    beta1: float = 0.90000000000000002,
    beta2: float = 0.999,
    eps: float = 1e-08,
    weight_decay: float = 0.01,
    maximize: bool = False,
) -> None: ...
def adaptive_max_pool2d(input: Tensor, output_size: int | Sequence[int]) -> tuple[Tensor, Tensor]: ...
def adaptive_max_pool2d_backward(
    grad_output: Tensor, input: Tensor, indices: Tensor, *, out: Tensor | None = None
) -> Tensor: ...
@overload
def add(input: Tensor, other: Tensor, *, alpha: Number | Tensor = 1, out: Tensor | None = None) -> Tensor: ...
@overload
def add(input: Tensor, other: Number | Tensor, alpha: Number | Tensor = 1, *, out: Tensor | None = None) -> Tensor: ...
@overload
def add_(input: Tensor, other: Tensor, *, alpha: Number | Tensor = 1) -> Tensor: ...
@overload
def add_(input: Tensor, other: Number | Tensor, alpha: Number | Tensor = 1) -> Tensor: ...
def add_layer_norm(
    input: Tensor,
    residual: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1.0000000000000001e-05,
) -> tuple[Tensor, Tensor]: ...
def add_rms_norm(
    input: Tensor,
    residual: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    offset: float = 0.0,
) -> tuple[Tensor, Tensor]: ...
def add_scalar(input: Tensor, other: Number | Tensor, alpha: Number | Tensor = 1) -> Tensor: ...
def addcdiv(
    input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: Number | Tensor = 1, out: Tensor | None = None
) -> Tensor: ...
def addcdiv_(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: Number | Tensor = 1) -> Tensor: ...
def addcmul(
    input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: Number | Tensor = 1, out: Tensor | None = None
) -> Tensor: ...
def addcmul_(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: Number | Tensor = 1) -> Tensor: ...
def addmm(
    input: Tensor,
    mat1: Tensor,
    mat2: Tensor,
    *,
    beta: Number | Tensor = 1,
    alpha: Number | Tensor = 1,
    out: Tensor | None = None,
) -> Tensor: ...
def addmm_(
    input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: Number | Tensor = 1, alpha: Number | Tensor = 1
) -> Tensor: ...
def addmv(
    input: Tensor,
    mat: Tensor,
    vec: Tensor,
    *,
    beta: Number | Tensor = 1,
    alpha: Number | Tensor = 1,
    out: Tensor | None = None,
) -> Tensor: ...
def addmv_(
    input: Tensor, mat: Tensor, vec: Tensor, *, beta: Number | Tensor = 1, alpha: Number | Tensor = 1
) -> Tensor: ...
@overload
def all(input: Tensor, *, out: Tensor | None = None) -> Tensor: ...
@overload
def all(input: Tensor, dim: int, keepdim: bool = False, *, out: Tensor | None = None) -> Tensor: ...
@overload
def all(
    input: Tensor, dim: Sequence[int] | None = None, keepdim: bool = False, *, out: Tensor | None = None
) -> Tensor: ...
def amax(
    input: Tensor, dim: int | Sequence[int] | None = None, keepdim: bool = False, *, out: Tensor | None = None
) -> Tensor: ...
def amin(
    input: Tensor, dim: int | Sequence[int] | None = None, keepdim: bool = False, *, out: Tensor | None = None
) -> Tensor: ...
@overload
def any(input: Tensor, *, out: Tensor | None = None) -> Tensor: ...
@overload
def any(input: Tensor, dim: int, keepdim: bool = False, *, out: Tensor | None = None) -> Tensor: ...
@overload
def any(
    input: Tensor, dim: Sequence[int] | None = None, keepdim: bool = False, *, out: Tensor | None = None
) -> Tensor: ...
def argmax(input: Tensor, dim: int | None = None, keepdim: bool = False, *, out: Tensor | None = None) -> Tensor: ...
def argmin(input: Tensor, dim: int | None = None, keepdim: bool = False, *, out: Tensor | None = None) -> Tensor: ...
def attention_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    random: Tensor,
    attn_mask: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    *,
    scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]: ...
def attention_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]: ...
def attention_kept(random: Tensor, sizes: Sequence[int], dropout_p: float) -> Tensor: ...
def avg_pool2d(
    input: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor: ...
def avg_pool2d_backward(
    grad_output: Tensor,
    input: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
    *,
    out: Tensor | None = None,
) -> Tensor: ...
def baddbmm(
    input: Tensor,
    batch1: Tensor,
    batch2: Tensor,
    *,
    beta: Number | Tensor = 1,
    alpha: Number | Tensor = 1,
    out: Tensor | None = None,
) -> Tensor: ...
def baddbmm_(
    input: Tensor, batch1: Tensor, batch2: Tensor, *, beta: Number | Tensor = 1, alpha: Number | Tensor = 1
) -> Tensor: ...
def batch_norm_relu(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    maximum: float | None = None,
) -> Tensor: ...
def batch_norm_relu_forward(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    eps: float,
    maximum: float | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]: ...
def bce_loss(
    input: Tensor,
    target: Tensor,
    epsilon: float = 9.9999999999999995e-08,
    reduction: Literal["none", "mean", "sum"] | int = "mean",
) -> Tensor: ...
def bce_loss_backward(grad_output: Tensor, input: Tensor, target: Tensor, epsilon: float, reduction: int) -> Tensor: ...
def binary_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: Literal["none", "mean", "sum"] | int = "mean",
    *,
    out: Tensor | None = None,
) -> Tensor: ...
def binary_cross_entropy_backward(
    grad_output: Tensor,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: Literal["none", "mean", "sum"] | int = "mean",
    *,
    out: Tensor | None = None,
) -> Tensor: ...
def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    reduction: Literal["none", "mean", "sum"] | int = "mean",
) -> Tensor: ...
def binary_cross_entropy_with_logits_backward(
    grad_output: Tensor, input: Tensor, target: Tensor, weight: Tensor | None, pos_weight: Tensor | None, reduction: int
) -> Tensor: ...
def blur_images(images: Tensor, across: Tensor, down: Tensor) -> Tensor: ...
def bmm(input: Tensor, mat2: Tensor, *, out: Tensor | None = None) -> Tensor: ...
def celu(input: Tensor, alpha: Number | Tensor = 1.0) -> Tensor: ...
def celu_(input: Tensor, alpha: Number | Tensor = 1.0) -> Tensor: ...
@overload
def clamp(
    input: Tensor, min: Tensor | None = None, max: Tensor | None = None, *, out: Tensor | None = None
) -> Tensor: ...
@overload
def clamp(
    input: Tensor, min: Number | Tensor | None = None, max: Number | Tensor | None = None, *, out: Tensor | None = None
) -> Tensor: ...
@overload
def clamp_(input: Tensor, min: Tensor | None = None, max: Tensor | None = None) -> Tensor: ...
@overload
def clamp_(input: Tensor, min: Number | Tensor | None = None, max: Number | Tensor | None = None) -> Tensor: ...
def clone(input: Tensor, *, memory_format: torch.memory_format | None = None) -> Tensor: ...
def color_images(images: Tensor, steps: Tensor, factors: Tensor) -> Tensor: ...
def color_images_(images: Tensor, steps: Tensor, factors: Tensor) -> Tensor: ...
def convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Tensor: ...
def crop_images(
    images: Tensor, corner: Tensor, mirrored: Tensor, size: int | Sequence[int], fill: Tensor | None = None
) -> Tensor: ...
def cross_entropy_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: Literal["none", "mean", "sum"] | int = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Tensor: ...
def cross_entropy_loss_backward(
    grad_output: Tensor, slope: Tensor, target: Tensor, reduction: int, ignore_index: int
) -> Tensor: ...
def cross_entropy_loss_forward(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: int,
    ignore_index: int,
    label_smoothing: float,
    differentiate: bool,
) -> tuple[Tensor, Tensor]: ...
def cummax(input: Tensor, dim: int) -> torch.return_types.cummax: ...
def cummin(input: Tensor, dim: int) -> torch.return_types.cummin: ...
def cumsum(input: Tensor, dim: int, *, dtype: torch.dtype | None = None, out: Tensor | None = None) -> Tensor: ...
@overload
def div(input: Tensor, other: Tensor, *, out: Tensor | None = None) -> Tensor: ...
@overload
def div(input: Tensor, other: Tensor, *, rounding_mode: str | None, out: Tensor | None = None) -> Tensor: ...
@overload
def div(input: Tensor, other: Number | Tensor, *, out: Tensor | None = None) -> Tensor: ...
@overload
def div(input: Tensor, other: Number | Tensor, *, rounding_mode: str | None, out: Tensor | None = None) -> Tensor: ...
@overload
def div_(input: Tensor, other: Tensor) -> Tensor: ...
@overload
def div_(input: Tensor, other: Tensor, *, rounding_mode: str | None) -> Tensor: ...
@overload
def div_(input: Tensor, other: Number | Tensor) -> Tensor: ...
@overload
def div_(input: Tensor, other: Number | Tensor, *, rounding_mode: str | None) -> Tensor: ...
def dot(input: Tensor, tensor: Tensor, *, out: Tensor | None = None) -> Tensor: ...
def elu(
    input: Tensor,
    alpha: Number | Tensor = 1,
    scale: Number | Tensor = 1,
    input_scale: Number | Tensor = 1,
    *,
    out: Tensor | None = None,
) -> Tensor: ...
def elu_(
    input: Tensor, alpha: Number | Tensor = 1, scale: Number | Tensor = 1, input_scale: Number | Tensor = 1
) -> Tensor: ...
def elu_backward(
    grad_output: Tensor,
    alpha: Number | Tensor,
    scale: Number | Tensor,
    input_scale: Number | Tensor,
    is_result: bool,
    self_or_result: Tensor,
    *,
    out: Tensor | None = None,
) -> Tensor: ...
def embedding_dense_backward(
    grad_output: Tensor, indices: Tensor, num_weights: int, padding_idx: int, scale_grad_by_freq: bool
) -> Tensor: ...
def exp(input: Tensor, *, out: Tensor | None = None) -> Tensor: ...
def exp_(input: Tensor) -> Tensor: ...
def fused_multiply_add(a: Tensor, b: Tensor, c: Tensor) -> Tensor: ...
@overload
def geglu(gate: Tensor, up: Tensor, *, approximate: str = "none") -> Tensor: ...
@overload
def geglu(input: Tensor, *, approximate: str = "none") -> Tensor: ...
@overload
def geglu_backward(
    grad_output: Tensor, gate: Tensor, up: Tensor, *, approximate: str = "none"
) -> tuple[Tensor, Tensor]: ...
@overload
def geglu_backward(grad_output: Tensor, input: Tensor, *, approximate: str = "none") -> Tensor: ...
def gelu(input: Tensor, *, approximate: str = "none", out: Tensor | None = None) -> Tensor: ...
def gelu_(input: Tensor, *, approximate: str = "none") -> Tensor: ...
def gelu_backward(
    grad_output: Tensor, input: Tensor, *, approximate: str = "none", out: Tensor | None = None
) -> Tensor: ...
@overload
def gru(
    input: Tensor,
    hx: Tensor,
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, Tensor]: ...
@overload
def gru(
    data: Tensor,
    batch_sizes: Tensor,
    hx: Tensor,
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
) -> tuple[Tensor, Tensor]: ...
def gru_cell(
    input: Tensor, hx: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None = None, b_hh: Tensor | None = None
) -> Tensor: ...
def hardsigmoid(input: Tensor, *, out: Tensor | None = None) -> Tensor: ...
def hardsigmoid_(input: Tensor) -> Tensor: ...
def hardsigmoid_backward(grad_output: Tensor, input: Tensor, *, out: Tensor | None = None) -> Tensor: ...
def hardswish(input: Tensor, *, out: Tensor | None = None) -> Tensor: ...
def hardswish_(input: Tensor) -> Tensor: ...
def hardswish_backward(grad_output: Tensor, input: Tensor, *, out: Tensor | None = None) -> Tensor: ...
def huber_loss(
    input: Tensor,
    target: Tensor,
    reduction: Literal["none", "mean", "sum"] | int = "mean",
    delta: float = 1.0,
    *,
    out: Tensor | None = None,
) -> Tensor: ...
def huber_loss_backward(
    grad_output: Tensor, input: Tensor, target: Tensor, reduction: int, delta: float, *, out: Tensor | None = None
) -> Tensor: ...
def index_add(
    input: Tensor, dim: int, index: Tensor, source: Tensor, *, alpha: Number | Tensor = 1, out: Tensor | None = None
) -> Tensor: ...
def index_add_(input: Tensor, dim: int, index: Tensor, source: Tensor, *, alpha: Number | Tensor = 1) -> Tensor: ...
def kl_div(
    input: Tensor, target: Tensor, reduction: Literal["none", "mean", "sum"] | int = "mean", *, log_target: bool = False
) -> Tensor: ...
def kl_div_backward(
    grad_output: Tensor, input: Tensor, target: Tensor, reduction: int, *, log_target: bool
) -> Tensor: ...
def l1_loss(input: Tensor, target: Tensor, reduction: Literal["none", "mean", "sum"] | int = "mean") -> Tensor: ...
def l1_loss_backward(grad_output: Tensor, input: Tensor, target: Tensor, reduction: int) -> Tensor: ...
def leaky_relu(input: Tensor, negative_slope: Number | Tensor = 0.01, *, out: Tensor | None = None) -> Tensor: ...
def leaky_relu_(input: Tensor, negative_slope: Number | Tensor = 0.01) -> Tensor: ...
def leaky_relu_backward(
    grad_output: Tensor,
    input: Tensor,
    negative_slope: Number | Tensor,
    self_is_result: bool,
    *,
    out: Tensor | None = None,
) -> Tensor: ...
@overload
def lerp(input: Tensor, end: Tensor, weight: Tensor, *, out: Tensor | None = None) -> Tensor: ...
@overload
def lerp(input: Tensor, end: Tensor, weight: Number | Tensor, *, out: Tensor | None = None) -> Tensor: ...
@overload
def lerp_(input: Tensor, end: Tensor, weight: Tensor) -> Tensor: ...
@overload
def lerp_(input: Tensor, end: Tensor, weight: Number | Tensor) -> Tensor: ...
def linalg_vector_norm(
    input: Tensor,
    ord: Number | Tensor = 2,
    dim: int | Sequence[int] | None = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,
) -> Tensor: ...
def linear_act(input: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor: ...
def linear_act_forward(
    input: Tensor, weight: Tensor, bias: Tensor | None, activation: str, differentiate: bool
) -> tuple[Tensor, Tensor]: ...
def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None = None,
    reduction: Literal["none", "mean", "sum"] | int = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    *,
    z_loss: float = 0.0,
    softcap: float | None = None,
) -> Tensor: ...
def linear_cross_entropy_forward(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    reduction: int,
    ignore_index: int,
    label_smoothing: float,
    differentiate: bool,
    z_loss: float = 0.0,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]: ...
def linear_glu(input: Tensor, gate_weight: Tensor, up_weight: Tensor, activation: str = "silu") -> Tensor: ...
def linear_glu_forward(
    input: Tensor, gate_weight: Tensor, up_weight: Tensor, activation: str, differentiate: bool
) -> tuple[Tensor, Tensor, Tensor]: ...
def log(input: Tensor, *, out: Tensor | None = None) -> Tensor: ...
def log_(input: Tensor) -> Tensor: ...
def log_sigmoid(input: Tensor, *, out: Tensor | None = None) -> Tensor: ...
def log_sigmoid_backward(
    grad_output: Tensor, input: Tensor, buffer: Tensor, *, out: Tensor | None = None
) -> Tensor: ...
def log_sigmoid_forward(input: Tensor) -> tuple[Tensor, Tensor]: ...
def log_softmax(input: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor: ...
def logsumexp(
    input: Tensor, dim: int | Sequence[int], keepdim: bool = False, *, out: Tensor | None = None
) -> Tensor: ...
@overload
def lstm(
    input: Tensor,
    hx: Sequence[Tensor],
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, Tensor, Tensor]: ...
@overload
def lstm(
    data: Tensor,
    batch_sizes: Tensor,
    hx: Sequence[Tensor],
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
) -> tuple[Tensor, Tensor, Tensor]: ...
def lstm_cell(
    input: Tensor,
    hx: Sequence[Tensor],
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> tuple[Tensor, Tensor]: ...
@overload
def max(input: Tensor, *, out: Tensor | None = None) -> Tensor: ...
@overload
def max(input: Tensor, dim: int, keepdim: bool = False) -> torch.return_types.max: ...
def max_pool2d_with_indices(
    input: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
) -> tuple[Tensor, Tensor]: ...
def max_pool2d_with_indices_backward(
    grad_output: Tensor,
    input: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    dilation: int | Sequence[int],
    ceil_mode: bool,
    indices: Tensor,
    *,
    out: Tensor | None = None,
) -> Tensor: ...
def maximum(input: Tensor, other: Tensor, *, out: Tensor | None = None) -> Tensor: ...
@overload
def mean(input: Tensor, *, dtype: torch.dtype | None = None, out: Tensor | None = None) -> Tensor: ...
@overload
def mean(
    input: Tensor,
    dim: int | Sequence[int] | None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,
) -> Tensor: ...
@overload
def min(input: Tensor, *, out: Tensor | None = None) -> Tensor: ...
@overload
def min(input: Tensor, dim: int, keepdim: bool = False) -> torch.return_types.min: ...
def minimum(input: Tensor, other: Tensor, *, out: Tensor | None = None) -> Tensor: ...
def mish(input: Tensor, *, out: Tensor | None = None) -> Tensor: ...
def mish_(input: Tensor) -> Tensor: ...
def mish_backward(grad_output: Tensor, input: Tensor) -> Tensor: ...
def mix_images(images: Tensor, kept: Tensor) -> Tensor: ...
def mm(input: Tensor, mat2: Tensor, *, out: Tensor | None = None) -> Tensor: ...
def mse_loss(
    input: Tensor,
    target: Tensor,
    reduction: Literal["none", "mean", "sum"] | int = "mean",
    *,
    out: Tensor | None = None,
) -> Tensor: ...
def mse_loss_backward(
    grad_output: Tensor, input: Tensor, target: Tensor, reduction: int, *, out: Tensor | None = None
) -> Tensor: ...
@overload
def mul(input: Tensor, other: Tensor, *, out: Tensor | None = None) -> Tensor: ...
@overload
def mul(input: Tensor, other: Number | Tensor, *, out: Tensor | None = None) -> Tensor: ...
@overload
def mul_(input: Tensor, other: Tensor) -> Tensor: ...
@overload
def mul_(input: Tensor, other: Number | Tensor) -> Tensor: ...
def mul_scalar(input: Tensor, other: Number | Tensor) -> Tensor: ...
def mv(input: Tensor, vec: Tensor, *, out: Tensor | None = None) -> Tensor: ...
def native_batch_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]: ...
def native_dropout(input: Tensor, p: float, train: bool | None) -> tuple[Tensor, Tensor]: ...
def native_dropout_backward(grad_output: Tensor, mask: Tensor, scale: float) -> Tensor: ...
def native_group_norm(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, N: int, C: int, HxW: int, group: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]: ...
def native_layer_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]: ...
def neg(input: Tensor, *, out: Tensor | None = None) -> Tensor: ...
def neg_(input: Tensor) -> Tensor: ...
@overload
def norm(input: Tensor, p: Number | Tensor = 2) -> Tensor: ...
@overload
def norm(
    input: Tensor,
    p: Number | Tensor | None,
    dim: int | Sequence[int],
    keepdim: bool = False,
    *,
    out: Tensor | None = None,
) -> Tensor: ...
def normalize_images(images: Tensor, mean: Tensor, std: Tensor) -> Tensor: ...
def pow(input: Tensor, exponent: Number | Tensor, *, out: Tensor | None = None) -> Tensor: ...
def pow_(input: Tensor, exponent: Number | Tensor) -> Tensor: ...
@overload
def prod(input: Tensor, *, dtype: torch.dtype | None = None, out: Tensor | None = None) -> Tensor: ...
@overload
def prod(
    input: Tensor, dim: int, keepdim: bool = False, *, dtype: torch.dtype | None = None, out: Tensor | None = None
) -> Tensor: ...
def relu(input: Tensor, *, out: Tensor | None = None) -> Tensor: ...
def relu_(input: Tensor) -> Tensor: ...
@overload
def rms_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor: ...
@overload
def rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    offset: float,
) -> Tensor: ...
def rnn_layer_forward(
    input: Tensor,
    hx: Tensor,
    cx: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    weight_hr: Tensor | None,
    batch_sizes: Tensor | None,
    mode: str,
    reverse: bool,
    differentiate: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]: ...
@overload
def rnn_relu(
    input: Tensor,
    hx: Tensor,
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, Tensor]: ...
@overload
def rnn_relu(
    data: Tensor,
    batch_sizes: Tensor,
    hx: Tensor,
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
) -> tuple[Tensor, Tensor]: ...
def rnn_relu_cell(
    input: Tensor, hx: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None = None, b_hh: Tensor | None = None
) -> Tensor: ...
@overload
def rnn_tanh(
    input: Tensor,
    hx: Tensor,
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, Tensor]: ...
@overload
def rnn_tanh(
    data: Tensor,
    batch_sizes: Tensor,
    hx: Tensor,
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
) -> tuple[Tensor, Tensor]: ...
def rnn_tanh_cell(
    input: Tensor, hx: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None = None, b_hh: Tensor | None = None
) -> Tensor: ...
def rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False) -> tuple[Tensor, Tensor]: ...
def rope_(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False) -> None: ...
def rope_backward(
    grad_q: Tensor, grad_k: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False
) -> tuple[Tensor, Tensor]: ...
def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor: ...
def scatter_add(input: Tensor, dim: int, index: Tensor, src: Tensor, *, out: Tensor | None = None) -> Tensor: ...
def scatter_add_(input: Tensor, dim: int, index: Tensor, src: Tensor) -> Tensor: ...
def selu(input: Tensor) -> Tensor: ...
def selu_(input: Tensor) -> Tensor: ...
def sgd_momentum_update(
    input: Tensor,
    grad: Tensor,
    momentum_buffer: Tensor,
    *,
    lr: float,
    momentum: float,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    is_first_step: bool = False,
) -> None: ...
def sgd_update(
    input: Tensor, grad: Tensor, *, lr: float, weight_decay: float = 0.0, maximize: bool = False
) -> None: ...
def sharpen_images(images: Tensor, factors: Tensor) -> Tensor: ...
def sigmoid(input: Tensor, *, out: Tensor | None = None) -> Tensor: ...
def sigmoid_(input: Tensor) -> Tensor: ...
def sigmoid_backward(grad_output: Tensor, output: Tensor, *, out: Tensor | None = None) -> Tensor: ...
def silu(input: Tensor, *, out: Tensor | None = None) -> Tensor: ...
def silu_(input: Tensor) -> Tensor: ...
def silu_backward(grad_output: Tensor, input: Tensor, *, out: Tensor | None = None) -> Tensor: ...
def smooth_l1_loss(
    input: Tensor,
    target: Tensor,
    reduction: Literal["none", "mean", "sum"] | int = "mean",
    beta: float = 1.0,
    *,
    out: Tensor | None = None,
) -> Tensor: ...
def smooth_l1_loss_backward(
    grad_output: Tensor, input: Tensor, target: Tensor, reduction: int, beta: float, *, out: Tensor | None = None
) -> Tensor: ...
def softmax(input: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor: ...
def softplus(
    input: Tensor, beta: Number | Tensor = 1, threshold: Number | Tensor = 20, *, out: Tensor | None = None
) -> Tensor: ...
def softplus_backward(
    grad_output: Tensor, input: Tensor, beta: Number | Tensor, threshold: Number | Tensor, *, out: Tensor | None = None
) -> Tensor: ...
def softsign(input: Tensor) -> Tensor: ...
def sqrt(input: Tensor, *, out: Tensor | None = None) -> Tensor: ...
def sqrt_(input: Tensor) -> Tensor: ...
def squareplus(input: Tensor, b: Number | Tensor = 4) -> Tensor: ...
def std(
    input: Tensor,
    dim: int | Sequence[int] | None = None,
    *,
    correction: Number | Tensor | None = None,
    keepdim: bool = False,
    out: Tensor | None = None,
) -> Tensor: ...
@overload
def sub(input: Tensor, other: Tensor, *, alpha: Number | Tensor = 1, out: Tensor | None = None) -> Tensor: ...
@overload
def sub(input: Tensor, other: Number | Tensor, alpha: Number | Tensor = 1, *, out: Tensor | None = None) -> Tensor: ...
@overload
def sub_(input: Tensor, other: Tensor, *, alpha: Number | Tensor = 1) -> Tensor: ...
@overload
def sub_(input: Tensor, other: Number | Tensor, alpha: Number | Tensor = 1) -> Tensor: ...
@overload
def sum(input: Tensor, *, dtype: torch.dtype | None = None, out: Tensor | None = None) -> Tensor: ...
@overload
def sum(
    input: Tensor,
    dim: int | Sequence[int] | None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,
) -> Tensor: ...
@overload
def swiglu(gate: Tensor, up: Tensor) -> Tensor: ...
@overload
def swiglu(input: Tensor) -> Tensor: ...
@overload
def swiglu_backward(grad_output: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]: ...
@overload
def swiglu_backward(grad_output: Tensor, input: Tensor) -> Tensor: ...
def tanh(input: Tensor, *, out: Tensor | None = None) -> Tensor: ...
def tanh_(input: Tensor) -> Tensor: ...
def tanh_backward(grad_output: Tensor, output: Tensor, *, out: Tensor | None = None) -> Tensor: ...
def upsample_bicubic2d(
    input: Tensor,
    output_size: int | Sequence[int],
    align_corners: bool,
    scales_h: float | None = None,
    scales_w: float | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor: ...
def upsample_bicubic2d_backward(
    grad_output: Tensor,
    output_size: int | Sequence[int],
    input_size: int | Sequence[int],
    align_corners: bool,
    scales_h: float | None = None,
    scales_w: float | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor: ...
def upsample_bilinear2d(
    input: Tensor,
    output_size: int | Sequence[int],
    align_corners: bool,
    scales_h: float | None = None,
    scales_w: float | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor: ...
def upsample_bilinear2d_backward(
    grad_output: Tensor,
    output_size: int | Sequence[int],
    input_size: int | Sequence[int],
    align_corners: bool,
    scales_h: float | None = None,
    scales_w: float | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor: ...
def upsample_nearest2d(
    input: Tensor,
    output_size: int | Sequence[int],
    scales_h: float | None = None,
    scales_w: float | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor: ...
def upsample_nearest2d_backward(
    grad_output: Tensor,
    output_size: int | Sequence[int],
    input_size: int | Sequence[int],
    scales_h: float | None = None,
    scales_w: float | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor: ...
def var(
    input: Tensor,
    dim: int | Sequence[int] | None = None,
    *,
    correction: Number | Tensor | None = None,
    keepdim: bool = False,
    out: Tensor | None = None,
) -> Tensor: ...
def var_mean(
    input: Tensor,
    dim: int | Sequence[int] | None = None,
    *,
    correction: Number | Tensor | None = None,
    keepdim: bool = False,
) -> tuple[Tensor, Tensor]: ...
def warp_images(
    images: Tensor,
    matrix: Tensor,
    output_size: int | Sequence[int],
    bilinear: bool = True,
    box: Tensor | None = None,
    fill: Tensor | None = None,
) -> Tensor: ...

swish = silu
cross_entropy = cross_entropy_loss
logsigmoid = log_sigmoid
