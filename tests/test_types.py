"""What type checkers know of the package."""

import builtins
import os
import subprocess
import sys
from pathlib import Path

import rusttorch

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
}


def test_the_stubs_are_those_of_the_schemas():
    done = subprocess.run([sys.executable, ROOT / "tools" / "stubs.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_mypy_knows_every_op(tmp_path):
    sys.path.insert(0, str(ROOT / "tools"))
    import stubs

    lines = ["import torch", "import rusttorch", "x = torch.ones(3)"]
    for name, overloads in stubs.functions().items():
        for schema, out in overloads:
            given = []
            for argument in schema.arguments:
                type_ = str(argument.real_type)
                value = VALUES[type_[len("Optional[") : -1] if type_.startswith("Optional") else type_]
                given.append(f"{argument.name}={value}" if argument.kwarg_only else value)
            result = stubs.returned(schema).replace("Tensor", "torch.Tensor")
            call = f"rusttorch.{name}({', '.join(given)})"
            lines.append(call if result == "None" else f"_{len(lines)}: {result} = {call}")
            if out:
                lines.append(f"rusttorch.{name}({', '.join([*given, 'out=x'])})")
    lines += ["with rusttorch.use('mish'):", "    rusttorch.mish(x)", "rusttorch.mish('text')  # expected-error"]
    path = tmp_path / "calls.py"
    path.write_text("\n".join(lines) + "\n")
    command = [sys.executable, "-m", "mypy", "--no-incremental", "--cache-dir", str(tmp_path / "cache"), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"MYPYPATH": ROOT / "torch_ext"})
    errors = [line for line in done.stdout.splitlines() if "error:" in line]
    assert [line.split(":")[1] for line in errors] == [str(len(lines))], done.stdout + done.stderr


def test_a_star_import_shadows_no_builtin():
    assert not set(rusttorch.__all__) & set(vars(builtins))
