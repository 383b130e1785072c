"""Writes torch_ext/rusttorch/__init__.pyi: what type checkers and editors know of the package, from the ops' schemas.

python tools/stubs.py
python tools/stubs.py --check  # fails where it is not what would be written
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

import rusttorch
from rusttorch import names
from rusttorch._register import overload

PATH = Path(__file__).parents[1] / "torch_ext" / "rusttorch" / "__init__.pyi"
HEAD = '''"""Faster, fused, drop-in operators for PyTorch. (Written by tools/stubs.py.)"""

from collections.abc import Sequence
from typing import Literal, overload

import torch
from torch import Tensor
from torch.types import Number
'''
# Of an argument, by the schema's own type.
TYPES = {
    "Tensor": "Tensor",
    "number": "Number | Tensor",
    "bool": "bool",
    "float": "float",
    "int": "int",
    "SymInt": "int",
    "str": "str",
    "ScalarType": "torch.dtype",
    "MemoryFormat": "torch.memory_format",
    "List[int]": "int | Sequence[int]",
    "List[SymInt]": "Sequence[int]",
}
REDUCTION = 'Literal["none", "mean", "sum"] | int'


def type_of(argument):
    text = str(argument.real_type)
    optional = re.fullmatch(r"Optional\[(.*)\]", text)
    text = TYPES[optional[1] if optional else text]
    empty = argument.has_default_value() and argument.default_value == []  # which None says too
    return f"{text} | None" if optional or empty else text


def default_of(argument):
    if argument.name == "reduction":
        return '"mean"'
    value = argument.default_value
    return "None" if value in (None, []) else repr(value)


def parameters(schema, out):
    said, keywords = [], False
    for argument in schema.arguments:
        if argument.kwarg_only and not keywords:
            said.append("*")
            keywords = True
        by_name = argument.name == "reduction" and argument.has_default_value()
        text = f"{'input' if argument.name == 'self' else argument.name}: {REDUCTION if by_name else type_of(argument)}"
        said.append(text + (f" = {default_of(argument)}" if argument.has_default_value() else ""))
    if out:
        said += [*([] if keywords else ["*"]), "out: Tensor | None = None"]
    return ", ".join(said)


def returned(schema):
    count = len(schema.returns)
    return {0: "None", 1: "Tensor"}.get(count, f"tuple[{', '.join(['Tensor'] * count)}]")


def functions():
    """{name: the schemas of its overloads, with whether they take out=}, of all that are functions of the package."""
    schemas = [overload("rusttorch", op.name)._schema for op in rusttorch.ops()]
    found = {}
    for schema in schemas:
        name = schema.name.removeprefix("rusttorch::")
        if name in rusttorch._functions and not any(a.kwarg_only and a.alias_info for a in schema.arguments):
            lines = [text for text in getattr(rusttorch, name).__doc__.splitlines() if " -> " in text]
            found.setdefault(name, []).append((schema, "out: Tensor" in lines[len(found.get(name, ()))]))
    return found


def text():
    lines = [HEAD]
    public = {
        "ab": ("AB", "Report"),
        "foreach": ("clip_grad_norm_", "clip_grad_value_", "ema_update_"),
        "names": names.FUNCTIONS,
        "resolve": ("families",),
        "swap": ("OpStats", "disable", "enable", "is_enabled", "ops", "reset_stats", "stats", "use"),
    }
    lines += ["from . import memory as memory, names as names, optim as optim"]
    for module, those in public.items():
        lines += [f"from .{module} import {', '.join(f'{name} as {name}' for name in those)}"]
    lines += ["", "__version__: str", ""]
    for name, overloads in sorted(functions().items()):
        for schema, out in overloads:
            lines += ["@overload"] * (len(overloads) > 1)
            lines += [f"def {name}({parameters(schema, out)}) -> {returned(schema)}: ..."]
    lines += ["", "swish = silu", "cross_entropy = cross_entropy_loss", ""]
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
        sys.exit(f"{PATH} is not what the schemas say: python tools/stubs.py writes it again")


if __name__ == "__main__":
    main()
