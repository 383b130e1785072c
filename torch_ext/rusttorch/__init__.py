"""Faster, fused, drop-in operators for PyTorch.

torch.ops.rusttorch.mish(x), rusttorch.mish(x)      one op, by name
with rusttorch.use(): ...                           every op it has, in the place of stock torch's
ab = rusttorch.AB()                                 what that is worth, inside a training loop
"""

import builtins

import torch

from . import _build

if _build.TORCH.split("+")[0] != torch.__version__.split("+")[0]:
    raise ImportError(
        f"rusttorch was built against torch {_build.TORCH}, but torch {torch.__version__} is installed: "
        "rebuild it with `pip install --no-build-isolation --force-reinstall --no-deps .` in its source folder "
        f"(it is for {_build.SUPPORTED})"
    )

from . import _C, _register, dynamo, memory, names, optim
from .ab import AB, Report
from .foreach import clip_grad_norm_, clip_grad_value_, ema_update_
from .resolve import families
from .swap import OpStats, disable, enable, is_enabled, ops, reset_stats, stats, use

_functions = {name: f for name, f in vars(_C.functions).items() if not name.startswith("__")}
globals().update(_functions | {name: getattr(names, name) for name in names.FUNCTIONS})
swish = _C.functions.silu  # the name of its paper (P. Ramachandran et al., 2017)
# torch.nn.functional's names
cross_entropy = _C.functions.cross_entropy_loss
logsigmoid = _C.functions.log_sigmoid

__version__ = "0.1.0"
__all__ = [
    "AB",
    "OpStats",
    "Report",
    "clip_grad_norm_",
    "clip_grad_value_",
    "cross_entropy",
    "disable",
    "ema_update_",
    "enable",
    "families",
    "is_enabled",
    "logsigmoid",
    "memory",
    "ops",
    "optim",
    "reset_stats",
    "stats",
    "swish",
    "use",
    # Not what `from rusttorch import *` would put in a builtin's place.
    *(name for name in (*sorted(_functions), *names.FUNCTIONS) if not hasattr(builtins, name)),
]

_register.register()
dynamo.register()
