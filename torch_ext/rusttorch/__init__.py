"""Faster, fused, drop-in operators for PyTorch.

torch.ops.rusttorch.mish(x), rusttorch.mish(x)      one op, by name
with rusttorch.use(): ...                           every op it has, in the place of stock torch's, and the memory pool
rusttorch.enable(), disable()                       the same, from here to there
rusttorch.stats()                                   what ran, and what was handed to stock, and why
ab = rusttorch.AB()                                 what it is worth, inside a training loop
rusttorch.optim, rusttorch.clip_grad_norm_, ...     optimizers and gradients in one pass
rusttorch.fuse_(model), unfuse_(model)              layers of a model that stands, in fewer passes
rusttorch.memory                                    the memory pool
rusttorch.data                                      from files to tensors: read_csv
python -m rusttorch run [--ab] train.py             a script, unmodified, with everything, or as an A/B

All is for the whole process, and every thread. A forked process (a DataLoader's worker on Linux) inherits what is
swapped in and the pool; a spawned one imports rusttorch anew and has neither.
"""

import builtins
import textwrap

import torch

from . import _build

if _build.TORCH.split("+")[0] != torch.__version__.split("+")[0]:
    raise ImportError(
        f"rusttorch was built against torch {_build.TORCH}, but torch {torch.__version__} is installed: "
        "rebuild it with `pip install --no-build-isolation --force-reinstall --no-deps .` in its source folder "
        f"(it is for {_build.SUPPORTED})"
    )

from . import _C, _register, data, dynamo, memory, names, nn, optim
from .ab import AB, Report
from .foreach import clip_grad_norm_, clip_grad_value_, ema_update_
from .fuse import fuse_, unfuse_
from .resolve import families
from .swap import OpStats, disable, enable, is_enabled, ops, reset_stats, stats, use

_functions = {name: f for name, f in vars(_C.functions).items() if name[:2] != "__" and name not in names.FUNCTIONS}
globals().update(_functions | {name: getattr(names, name) for name in names.FUNCTIONS})
__doc__ += (
    "\nThe ops by family, of which help(rusttorch.NAME) says more (their in-place and backward forms are there too):\n"
)
_families = {}  # the names of each, once
for _op in ops():
    _families.setdefault(_op.family, {})[_op.name.partition(".")[0]] = None
for _family, _names in _families.items():
    _plain = [n for n in _names if n in globals() and n[0] != "_" and not n.endswith(("_", "_backward", "_forward"))]
    if _plain:
        __doc__ += (
            textwrap.fill(", ".join(_plain), 110, initial_indent=f"  {_family}: ", subsequent_indent="    ") + "\n"
        )
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
    "data",
    "disable",
    "ema_update_",
    "enable",
    "families",
    "fuse_",
    "is_enabled",
    "logsigmoid",
    "memory",
    "nn",
    "ops",
    "optim",
    "reset_stats",
    "stats",
    "swish",
    "unfuse_",
    "use",
    # Not what `from rusttorch import *` would put in a builtin's place.
    *(name for name in (*sorted(_functions), *names.FUNCTIONS) if not hasattr(builtins, name)),
]

_register.register()
dynamo.register()
