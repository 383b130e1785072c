"""What type checkers know of the package."""

import builtins
import os
import subprocess
import sys
from pathlib import Path

import pytest
import rusttorch
from rusttorch._register import overload

ROOT = Path(__file__).parents[1]
VALUES = {
    "Tensor": "x",
    "number": "2.0",
    "bool": "True",
    "float": "0.5",
    "int": "1",
    "SymInt": "1",
    "str": '"mean"',
    "ScalarType": "torch.float32",
    "MemoryFormat": "torch.contiguous_format",
    "List[int]": "[0]",
    "List[SymInt]": "[0]",
    "List[Tensor]": "[x]",
}


def test_the_stubs_are_what_help_says():
    pytest.importorskip("ruff", reason="formats the stubs")
    done = subprocess.run([sys.executable, ROOT / "tools" / "stubs.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def result_of(schema):
    count = len(schema.returns)
    return {0: "None", 1: "torch.Tensor"}.get(count, f"tuple[{', '.join(['torch.Tensor'] * count)}]")


def test_mypy_knows_every_op(tmp_path):
    pytest.importorskip("mypy")
    sys.path.insert(0, str(ROOT / "tools"))
    import stubs

    lines = ["import torch", "import rusttorch", "x = torch.ones(3)"]
    signatures = {name: iter(each) for name, each in stubs.functions().items()}
    for op in rusttorch.ops():
        name, schema = op.name.partition(".")[0], overload("rusttorch", op.name)._schema
        if name not in rusttorch._functions or any(a.kwarg_only and a.alias_info for a in schema.arguments):
            continue
        given = []
        for argument in schema.arguments:
            type_ = str(argument.real_type)
            value = VALUES[type_[len("Optional[") : -1] if type_.startswith("Optional") else type_]
            given.append(f"{argument.name}={value}" if argument.kwarg_only else value)
        call, result = f"rusttorch.{name}({', '.join(given)})", result_of(schema)
        lines.append(call if result == "None" else f"_{len(lines)}: {result} = {call}")
        if "out: Tensor | None" in next(signatures[name]):
            lines.append(f"rusttorch.{name}({', '.join([*given, 'out=x'])})")
    assert all(next(rest, None) is None for rest in signatures.values())
    lines += ["with rusttorch.use('mish'):", "    rusttorch.mish(x)", "rusttorch.mish('text')  # expected-error"]
    path = tmp_path / "calls.py"
    path.write_text("\n".join(lines) + "\n")
    command = [sys.executable, "-m", "mypy", "--no-incremental", "--cache-dir", str(tmp_path / "cache"), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"MYPYPATH": ROOT / "torch_ext"})
    errors = [line for line in done.stdout.splitlines() if "error:" in line]
    assert [line.split(":")[1] for line in errors] == [str(len(lines))], done.stdout + done.stderr


def test_a_star_import_shadows_no_builtin():
    assert not set(rusttorch.__all__) & set(vars(builtins))
