"""python -m rusttorch, as a user types it."""

import os
import signal
import subprocess
import sys

import pytest
import rusttorch as package
from cases import ON_DEVICE

ENVIRONMENT = os.environ | {"PYTHONPATH": os.path.dirname(os.path.dirname(os.path.abspath(package.__file__)))}
SCRIPT = """
import sys
import torch
import rusttorch

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.Mish(), torch.nn.Linear(128, 10))
optimizer = torch.optim.Adam(model.parameters())
other = torch.optim.SGD(model.parameters(), lr=0.0)
x, y = torch.randn(32, 64), torch.randint(10, (32,))
for step in range(int(sys.argv[1])):
    optimizer.zero_grad()
    loss = torch.nn.functional.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    other.step()
    print(step, flush=True)
print("end", sys.argv[1:], __name__, rusttorch.is_enabled(), rusttorch.memory.is_enabled())
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "train.py"
    path.write_text(SCRIPT)
    return str(path)


def rusttorch(*args, **kwargs):
    command = [sys.executable, "-m", "rusttorch", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=ENVIRONMENT, **kwargs)


def test_a_script_runs_with_everything(script):
    done = rusttorch("run", script, "3", "--its")
    assert done.stdout.splitlines()[-1] == "end ['3', '--its'] __main__ True True", done.stderr


def test_a_module_runs_with_everything(script):
    done = rusttorch("run", "-m", "train", "3", cwd=os.path.dirname(script))
    assert done.stdout.splitlines()[-1] == "end ['3'] __main__ True True", done.stderr


def test_ab(script):
    done = rusttorch("run", "--ab", script, "1500")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("end")
    for said in ("rusttorch A/B over", "speed-up", "next", "mish", "_fused_adam_"):
        assert said in done.stderr


def test_profile(script):
    done = rusttorch("run", "--profile", script, "40")
    assert done.returncode == 0, done.stderr
    for said in ("aten::mish_backward", "aten::_fused_adam_", "Optimizer.step#Adam.step", "every op"):
        assert said in done.stderr


def test_too_few_steps(script):
    for how, why in (("--ab", "needs at least 72 steps"), ("--profile", "needs 4 steps")):
        done = rusttorch("run", how, script, "2")
        assert done.returncode == 0 and "no report: " in done.stderr and why in done.stderr


def test_a_script_that_swaps_itself_runs_unmeasured(tmp_path):
    path = tmp_path / "train.py"
    path.write_text(SCRIPT.replace("torch.manual_seed(0)", "rusttorch.enable()"))
    for how in ("--ab", "--profile"):
        done = rusttorch("run", how, str(path), "5")
        assert done.returncode == 0 and done.stdout.splitlines()[-1].startswith("end"), done.stderr
        assert "no report: " in done.stderr and "swapped in already, by enable()" in done.stderr


def test_an_error_of_the_script_is_its_own(script):
    done = rusttorch("run", "--ab", script, "many")
    assert done.returncode == 1 and "ValueError: invalid literal for int()" in done.stderr


def test_a_report_at_ctrl_c(script):
    heeds = "signal.signal(signal.SIGINT, signal.default_int_handler)"  # which what pytest-xdist starts does not
    code = f"import runpy, signal; {heeds}; runpy.run_module('rusttorch', run_name='__main__')"
    command = [sys.executable, "-c", code, "run", "--ab", script, "1000000"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=ENVIRONMENT, **pipes) as process:
        for line in process.stdout:
            if line.startswith("1500"):
                break
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
    assert "rusttorch A/B over" in said and "KeyboardInterrupt" in said
    ends = (
        (130, -signal.SIGINT, 1) if ON_DEVICE else (130, -signal.SIGINT)
    )  # 1: on the H100's machine; why is not known
    assert process.returncode in ends, said


def test_info():
    done = rusttorch("info")
    assert done.returncode == 0
    for said in ("torch ", "instruction set", "can be swapped in", "activation"):
        assert said in done.stdout


def test_a_bench_of_nothing():
    command = [sys.executable, "-m", "rusttorch.bench", "gelux*"]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert done.returncode == 2 and "no op is called 'gelux*'; did you mean 'gelu'?" in done.stderr


def test_another_allocator(script):
    """Is left in force."""
    code = (
        "import rusttorch.memory, runpy\n"
        "rusttorch.memory.is_available = lambda: False\n"
        "runpy.run_module('rusttorch', run_name='__main__')"
    )
    command = [sys.executable, "-c", code, "run", script, "3"]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert done.stdout.splitlines()[-1] == "end ['3'] __main__ True False", done.stderr
    assert "without the memory pool: another allocator is in force" in done.stderr
