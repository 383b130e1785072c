"""What tests/drop_in.py calls: the entries of torch's databases, each as an op with samples of its arguments.

That a module or an optimizer is an op of its tensors is written here.
"""

import itertools

import torch
from drop_in_checks import weights
from torch.testing._internal import common_methods_invocations as ops
from torch.testing._internal.common_modules import module_db
from torch.testing._internal.common_optimizers import optim_db
from torch.testing._internal.opinfo.core import ErrorInput, SampleInput


class Entry:
    """What is no op of torch's, with what an OpInfo has."""

    variant_test_name, inplace_variant, supports_out = "", None, False
    error_inputs_func = None


class Module(Entry):
    """(parameters and buffers, module, *arguments) -> (its result, its buffers)."""

    supports_autograd = True

    def __init__(self, info):
        self.info, self.name, self.aten_name = info, info.name, info.name

    def supports_dtype(self, dtype, device):
        return dtype in self.info.dtypes

    def sample_inputs(self, device, dtype, requires_grad):
        for training in (True, False) if self.info.train_and_eval_differ else (True,):
            options = {"device": device, "dtype": dtype, "requires_grad": requires_grad, "training": training}
            for sample in self.info.module_inputs_func(self.info, **options):
                if sample.forward_input is None:
                    continue
                module = self.info.module_cls(*sample.constructor_input.args, **sample.constructor_input.kwargs)
                module = module.to(dtype).train(training)
                state = [*module.parameters(), *module.buffers()]
                yield SampleInput(state, args=(module, *sample.forward_input.args), kwargs=sample.forward_input.kwargs)

    def __call__(self, state, module, *args, **kwargs):
        names = [name for name, _ in itertools.chain(module.named_parameters(), module.named_buffers())]
        result = torch.func.functional_call(module, dict(zip(names, state, strict=True)), args, kwargs)
        return result, [x.clone() for x in state[len(list(module.parameters())) :]]


class Optimizer(Entry):
    """(parameters, options) -> parameters and state after some steps, and whether autograd was told."""

    supports_autograd = False

    def __init__(self, info):
        self.info, self.name = info, f"optim.{info.optim_cls.__name__}"
        self.aten_name = f"_fused_{info.optim_cls.__name__.lower()}_"

    def supports_dtype(self, dtype, device):
        return dtype.is_floating_point

    def parameters(self, dtype):
        return [torch.linspace(-1, 1, rows * 4, dtype=dtype).view(rows, 4) for rows in (1, 3, 5)]

    def sample_inputs(self, device, dtype, requires_grad):
        implementations = [{}, *({name: True} for name in self.info.supported_impls)]
        for sample, how in itertools.product(self.info.optim_inputs_func(device, dtype), implementations):
            yield SampleInput(self.parameters(dtype), kwargs=sample.kwargs | how)

    def error_inputs_func(self):
        """That there is error_inputs()."""

    def error_inputs(self, device):
        for error in self.info.optim_error_inputs_func(device, torch.float32):
            wrong = error.optimizer_error_input
            parameters = self.parameters(torch.float32) if wrong.params is None else wrong.params
            sample = SampleInput(parameters, kwargs=wrong.kwargs)
            yield ErrorInput(sample, error_type=error.error_type, error_regex=error.error_regex)

    def __call__(self, parameters, **options):
        leaves = [x.detach().requires_grad_() for x in parameters]
        optimizer = self.info.optim_cls(leaves, **options)

        def closure():
            for x in leaves:
                x.grad = x.detach() * weights(x)
            return sum(x.grad.square().sum() for x in leaves)

        for _ in range(3):
            closure()
            optimizer.step(closure if self.info.step_requires_closure else None)
        return leaves, [dict(optimizer.state[x]) for x in leaves], [x._version > 0 for x in leaves]


def database():
    yield from ops.op_db
    for group in ("unary", "binary", "pointwise", "reduce", "other"):
        yield from getattr(ops, f"foreach_{group}_op_db")
    yield from (Module(info) for info in module_db if not info.is_lazy)
    yield from (Optimizer(info) for info in optim_db if not info.only_supports_sparse_grads)
