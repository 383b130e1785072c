"""Writes torch_ext/rusttorch/__init__.pyi: what type checkers and editors know of the package.

python tools/stubs.py
python tools/stubs.py --check  # fails where it is not what would be written
"""

import argparse
import subprocess
import sys
from pathlib import Path

import rusttorch
from rusttorch import names

PATH = Path(__file__).parents[1] / "torch_ext" / "rusttorch" / "__init__.pyi"
HEAD = '''"""Faster, fused, drop-in operators for PyTorch. (Written by tools/stubs.py.)"""

from collections.abc import Sequence
from typing import Literal, overload

import torch
from torch import Tensor
from torch.types import Number
'''


def functions():
    """{name: its signatures, one for each overload} of the builtins: what help() shows of them."""
    lines = {name: getattr(rusttorch, name).__doc__.splitlines() for name in sorted(rusttorch._functions)}
    return {name: [line for line in of if line.startswith(f"{name}(") and " -> " in line] for name, of in lines.items()}


def text():
    lines = [HEAD]
    public = {
        "ab": ("AB", "Report"),
        "foreach": ("clip_grad_norm_", "clip_grad_value_", "ema_update_"),
        "fuse": ("fuse_", "unfuse_"),
        "names": names.FUNCTIONS,
        "resolve": ("families",),
        "swap": ("OpStats", "disable", "enable", "is_enabled", "ops", "reset_stats", "stats", "use"),
    }
    lines += ["from . import data as data, memory as memory, names as names, nn as nn, optim as optim"]
    for module, those in public.items():
        lines += [f"from .{module} import {', '.join(f'{name} as {name}' for name in those)}"]
    lines += ["", "__version__: str", ""]
    for signatures in functions().values():
        for signature in signatures:
            lines += ["@overload"] * (len(signatures) > 1)
            lines += [f"def {signature}: ..."]
    lines += ["", "swish = silu", "cross_entropy = cross_entropy_loss", "logsigmoid = log_sigmoid", ""]
    written = "\n".join(lines)
    for command in (["check", "--select", "I", "--fix", "--quiet"], ["format"]):
        command = [sys.executable, "-m", "ruff", *command, "--stdin-filename", str(PATH), "-"]
        written = subprocess.run(command, input=written, text=True, stdout=subprocess.PIPE, check=True).stdout
    return written


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    new = text()
    if not parser.parse_args().check:
        PATH.write_text(new)
    elif new != PATH.read_text():
        sys.exit(f"{PATH} is not what the docstrings say: python tools/stubs.py writes it again")


if __name__ == "__main__":
    main()
