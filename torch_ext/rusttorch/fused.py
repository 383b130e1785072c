"""torch.optim's own steps with fused=True, while the fused ops they call are swapped.

Under use(), torch.optim's SGD, Adam, AdamW and Adagrad take the fused kernels where they were constructed without fused
and foreach: the functions that their steps end in (torch.optim.adam.adam, ...) are called with fused=True. Nothing is
changed in the optimizers.
"""

import functools
import importlib
import itertools

import torch
from torch.autograd.graph import increment_version
from torch.optim.optimizer import _foreach_supported_types

PLAIN = {torch.Tensor, torch.nn.Parameter}
DTYPES = {torch.float32, torch.float64, torch.bfloat16, torch.float16}


def fits(params, types):
    """Whether the kernels take the parameters: on the CPU any floats; on a GPU all of one dtype on one device.

    One that is there twice (torch only warns) takes both its steps, one after the other; one that is negated when it is
    read has no values in its memory; one made in inference mode may be changed there only. All are stock's.
    """
    dtypes, classes = {p.dtype for p in params}, {type(p) for p in params}
    if not (dtypes <= DTYPES and classes <= types) or any(p.is_neg() or p.is_inference() for p in params):
        return False
    if len(set(map(id, params))) < len(params):
        return False
    if len({c in PLAIN for c in classes}) > 1:  # no op takes both plain tensors and DTensors
        return False
    if all(p.is_cpu for p in params):
        return True
    return params[0].is_cuda and len(dtypes) == len({p.device for p in params}) == 1


def _is_dense(p):
    return p.is_contiguous() or p.permute(sorted(range(p.dim()), key=p.stride, reverse=True)).is_contiguous()


def _forms(tensors):
    """What a parameter, its gradient and its state must share: stock's fused kernels do not look at strides."""
    return [t.dtype for t in tensors], [t.is_contiguous() or t.stride() for t in tensors]


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
        types = set(_foreach_supported_types) if stock.__name__ == "adam" else PLAIN
        if not fits(params, types) or any(g.layout != torch.strided for g in grads):
            return False
        # Steps are made on torch's default device, and no fused op reads a GPU's for a parameter of the CPU.
        if any(step.device != params[0].device and not step.is_cpu for step in itertools.chain(*others[states:])):
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
