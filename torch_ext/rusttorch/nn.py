"""Modules of several layers in one pass, with torch.nn's arguments, parameters and state_dict."""

import torch

from . import _C


def batch_norm_relu(norm, input, maximum=None):
    """What relu(norm(input)) is, of a torch.nn.BatchNorm1d, 2d or 3d, which keeps its running statistics.

    With a maximum of 6 it is relu6(norm(input)).
    """
    norm._check_input_dim(input)
    momentum, mean, var = norm.momentum, norm.running_mean, norm.running_var
    uses_batch = norm.training or mean is None or var is None
    if norm.training and not norm.track_running_stats:
        mean = var = None
    elif norm.training and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if momentum is None:  # the mean over all batches
            momentum = 1 / norm.num_batches_tracked.item()
    if momentum is None:
        momentum = 0.0
    return _C.functions.batch_norm_relu(
        input, norm.weight, norm.bias, mean, var, uses_batch, momentum, norm.eps, maximum
    )


class BatchNormReLU1d(torch.nn.BatchNorm1d):
    """torch.nn.BatchNorm1d and relu, in one pass, whose derivative reads the input alone: [N, C] or [N, C, L]."""

    forward = batch_norm_relu


class BatchNormReLU2d(torch.nn.BatchNorm2d):
    """torch.nn.BatchNorm2d and relu, in one pass, whose derivative reads the input alone: [N, C, H, W]."""

    forward = batch_norm_relu


class BatchNormReLU3d(torch.nn.BatchNorm3d):
    """torch.nn.BatchNorm3d and relu, in one pass, whose derivative reads the input alone: [N, C, D, H, W]."""

    forward = batch_norm_relu
