"""Every functional op with the arguments it is tested on. The families' own tables are in test_FAMILY.py."""

import os
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import rusttorch
import torch

ON_DEVICE = torch.get_default_device().type != "cpu"
# What tools/emulate.py runs: a device's kernels, on CPU tensors.
EMULATED = "RUSTTORCH_EMULATION_REPORT" in os.environ
CPU_FLAGS = Path("/proc/cpuinfo").read_text()
INTEL = "GenuineIntel" in CPU_FLAGS  # where stock's products and random numbers are MKL's
# Whether kernels use AMX, which they do beside AVX-512 only.
AMX = "amx_bf16" in CPU_FLAGS and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
INTEGERS = (torch.int32, torch.int64)


def same_error(ours, stock):
    """Both raise the same exception type with the same text."""
    errors = []
    for call in (stock, ours):
        with pytest.raises(Exception) as error:
            call()
        errors.append((error.type, str(error.value).split("\n")[0]))
    assert errors[0] == errors[1]


class Case(NamedTuple):
    op: str  # "add.Tensor"
    domain: str = "n"  # of the tensors, one letter each: n normal, p positive, u (0, 1), w wide, s one number
    args: tuple = ()  # what follows the tensors
    kwargs: dict[str, Any] = {}  # noqa: RUF012
    exact: bool = False  # stock's result to the bit
    integers: bool = False  # aten takes them
    positions: tuple | None = None  # of the tensors among the arguments, if they are not the first

    def __str__(self):
        parts = [self.op, *map(str, self.args), *(f"{k}={v}" for k, v in self.kwargs.items())]
        return "-".join(parts)

    @property
    def count(self):
        """How many tensors the op takes."""
        return len(self.domain)

    def overload(self, namespace, form="functional"):
        """The OpOverload of a form: functional, inplace or out; None where there is none."""
        base, _, name = self.op.partition(".")
        packet = getattr(torch.ops, namespace)
        if not hasattr(packet, base):
            return None
        if form == "functional":
            return getattr(getattr(packet, base), name or "default")
        functional = self.overload("rusttorch")._schema
        takes = [str(a.type) for a in functional.arguments]
        base += "_" if form == "inplace" else ""
        candidates = getattr(packet, base, None)
        for overload in candidates.overloads() if candidates else ():
            schema = getattr(candidates, overload)._schema
            written = [a for a in schema.arguments if a.kwarg_only and a.alias_info and a.alias_info.is_write]
            inputs = [str(a.type) for a in schema.arguments if a not in written]
            if inputs == takes and len(written) == (form == "out"):
                return getattr(candidates, overload)
        return None

    def arguments(self, tensors):
        if self.positions is None:
            return (*tensors, *self.args)
        rest = iter(self.args)
        where = dict(zip(self.positions, tensors, strict=True))
        total = len(self.args) + len(tensors)
        return tuple(where[i] if i in where else next(rest) for i in range(total))

    def reference(self, tensors):
        """The op in float64."""
        tensors = [t.double() for t in tensors]
        if str(self) in REFERENCE:
            return REFERENCE[str(self)](*tensors)
        return first(self.stock()(*self.arguments(tensors), **self.kwargs))

    def stock(self):
        """Stock's function for the same schema, from OWN where aten has none."""
        return OWN.get(self.op) or self.overload("aten")


def _gradient(loss):
    """The gradient of loss(x, target, ...) by x."""

    def gradient(g, x, *args, **kwargs):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(loss(x, *args, **kwargs), x, g)[0]

    return gradient


def _bce_loss(x, t, epsilon, reduction):
    return torch.ops.aten.binary_cross_entropy(x.clamp(epsilon, 1 - epsilon), t, None, reduction)


def _squareplus(x, b=4):
    root = (x * x + b).sqrt()
    return torch.where(x < 0, b / 2 / (root - x), (root + x) / 2)


def _swiglu(gate, up):
    return torch.nn.functional.silu(gate) * up


def _geglu(gate, up, *, approximate="none"):
    return torch.nn.functional.gelu(gate, approximate=approximate) * up


# Ops that aten does not have, in its terms.
OWN = {
    "l1_loss_backward": _gradient(torch.ops.aten.l1_loss),
    "bce_loss": _bce_loss,
    "bce_loss_backward": _gradient(_bce_loss),
    "binary_cross_entropy_with_logits_backward": _gradient(torch.ops.aten.binary_cross_entropy_with_logits),
    "kl_div_backward": _gradient(torch.ops.aten.kl_div),
    "softsign": lambda x: x / (x.abs() + 1),
    "squareplus": _squareplus,
    "swiglu": _swiglu,
    "geglu": _geglu,
    "fused_multiply_add": lambda a, b, c: torch.addcmul(c, a, b),
    "add_scalar": torch.ops.aten.add.Scalar,
    "mul_scalar": torch.ops.aten.mul.Scalar,
}


def _gelu(x):
    return 0.5 * x * torch.special.erfc(-x * 0.5**0.5)


def _gelu_backward(g, x):
    return g * (0.5 * torch.special.erfc(-x * 0.5**0.5) + x * (-0.5 * x * x).exp() * (2 * torch.pi) ** -0.5)


def _gelu_tanh(x):
    return x * torch.sigmoid(2 * (2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))


def _gelu_tanh_backward(g, x):
    u = 2 * (2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)
    slope = 2 * (2 / torch.pi) ** 0.5 * (1 + 3 * 0.044715 * x * x)
    return g * (torch.sigmoid(u) + x * torch.sigmoid(u) * torch.sigmoid(-u) * slope)


def _mish_backward(g, x):
    s = torch.nn.functional.softplus(x)
    return g * (s.tanh() + x * torch.sigmoid(x) / s.cosh() ** 2)


def _var(x, correction=1):
    """In two passes; stock's float64 errs by 40 ulp over 70,000 numbers in one thread."""
    x = torch.atleast_1d(x)
    return (x - x.mean(-1, True)).square().sum(-1) / (x.shape[-1] - correction)


# In float64, where stock's own formula cancels, has float32 constants or sums up in one pass.
REFERENCE = {
    "gelu": _gelu,
    "gelu-approximate=tanh": _gelu_tanh,
    "gelu_backward": _gelu_backward,
    "gelu_backward-approximate=tanh": _gelu_tanh_backward,
    "mish_backward": _mish_backward,
    "geglu": lambda gate, up: _gelu(gate) * up,
    "geglu-approximate=tanh": lambda gate, up: _gelu_tanh(gate) * up,
    "hardsigmoid": lambda x: (x + 3).clamp(0, 6) / 6,
    "hardswish": lambda x: x * ((x + 3).clamp(0, 6) / 6),
    "hardsigmoid_backward": lambda g, x: g / 6 * (x.abs() < 3),
    "hardswish_backward": lambda g, x: g * torch.where(x >= 3, 1.0, (x / 3 + 0.5) * (x > -3)),
    "var.correction-[-1]": _var,
    "std.correction-[-1]-correction=0": lambda x: _var(x, correction=0).sqrt(),
    "var_mean.correction-[-1]": _var,
}


def values(letter, shape, dtype, seed):
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    if not dtype.is_floating_point:
        low = 1 if letter in "pu" else -50
        return torch.randint(low, 50, shape, generator=generator, dtype=dtype)
    if letter == "n":
        x = torch.randn(shape, generator=generator, dtype=torch.float64) * 2
    elif letter == "w":
        x = torch.randn(shape, generator=generator, dtype=torch.float64) * 12
    else:
        x = torch.rand(shape, generator=generator, dtype=torch.float64) * (0.8 if letter == "u" else 4) + 0.1
    return x.to(dtype)


# How a case's tensors lie: of make(shape), and of which of them it is.
LAYOUTS = {
    "contiguous": lambda make, _: make((5, 7, 6, 11)),
    "tail": lambda make, _: make((3,)),
    "long": lambda make, _: make((70001,)),  # several blocks, several threads, an odd end
    "transposed": lambda make, _: make((37, 29)).t(),
    "strided": lambda make, _: make((12, 40))[1:9:2, 3:35:3],
    "misaligned": lambda make, _: make((1025,))[1:],
    "channels_last": lambda make, _: make((2, 5, 6, 7)).contiguous(memory_format=torch.channels_last),
    "expanded": lambda make, _: make((1, 13)).expand(9, 13),
    "scalar": lambda make, _: make(()),
    # As they come in a program: the first in another order than the second, the third in steps.
    "mixed": lambda make, i: (make((37, 29)).t(), make((29, 37)), make((58, 111))[::2, ::3])[i % 3],
    "empty": lambda make, _: make((0, 4)),
}


def inputs(case, layout, dtype):
    return [
        values("n", (), dtype, seed=i) if c == "s" else LAYOUTS[layout](lambda s, i=i, c=c: values(c, s, dtype, i), i)
        for i, c in enumerate(case.domain)
    ]


def clone(tensors):
    """Copies with the same strides (Tensor.clone() may choose others)."""
    return [torch.empty_strided(t.shape, t.stride(), dtype=t.dtype).copy_(t) for t in tensors]


def first(result):
    return result[0] if isinstance(result, tuple) else result


def functional_ops():
    """Names of the table's functional ops."""
    names = []
    for op in rusttorch.ops():
        base, _, overload = op.name.partition(".")
        schema = getattr(getattr(torch.ops.rusttorch, base), overload or "default")._schema
        if not schema.is_mutable:
            names.append(op.name)
    return names


def opcheck(*args, **kwargs):
    """torch.library.opcheck, stock's own warning aside."""
    with warnings.catch_warnings():
        # Since torch 2.14 fake tensors hide it where a warning is shown, which one that is an error never is.
        warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf", UserWarning)
        torch.library.opcheck(*args, **kwargs)
