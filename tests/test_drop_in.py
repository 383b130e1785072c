"""A part of what tests/drop_in.py compares; and the comparison itself, which is to find what is wrong on purpose."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("expecttest", reason="torch's own test database needs it")
import drop_in
import drop_in_checks
import torch
from torch.testing._internal.opinfo.core import OpInfo, SampleInput

# torch has threads in this process; a child uses none of them.
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


def test_part_of_the_database():
    command = [sys.executable, drop_in.__file__, "--quick", "0"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]


def samples(op, device, dtype, requires_grad, **kwargs):
    yield SampleInput(torch.linspace(0, 1, 12, dtype=dtype).view(3, 4).requires_grad_(requires_grad))


SIN = OpInfo("sin", dtypes={torch.float32}, sample_inputs_func=samples)


@contextlib.contextmanager
def wrong(name, function):
    """An arm that has function in aten's place."""
    library = torch.library.Library("aten", "IMPL")
    library.impl(name, function, "CPU")
    yield
    library._destroy()


def differences(arm):
    [(_, kinds)] = drop_in.run([drop_in.Unit(SIN, torch.float32, samples=1)], arm)
    return {kind: result["differences"][0]["what"] for kind, result in kinds.items() if result["differences"]}


def test_stock_is_as_stock():
    assert differences(contextlib.nullcontext) == {}


def fails(x):
    raise ValueError("on purpose")


@pytest.mark.parametrize(
    ("function", "what"),
    [
        (lambda x: x.add(1e-4), "ulp where stock errs by"),
        (lambda x: x.mul(torch.nan), "nan where stock has 0.0"),
        (lambda x: x.mul(-0.0), "-0.0 where stock has 0.0"),
        (lambda x: torch.empty_like(x), "ulp where stock errs by"),
        (lambda x: x.double(), "dtype torch.float64 where stock has torch.float32"),
        (lambda x: x[0], "shape (4,) where stock has (3, 4)"),
        (lambda x: x.t().clone(memory_format=torch.contiguous_format).t(), "strides [1, 3] where stock has [4, 1]"),
        (fails, "ValueError: on purpose"),
    ],
)
def test_finds_what_is_wrong(function, what):
    assert what in differences(lambda: wrong("sin", function))["forward"]


def test_finds_what_is_written_beside_the_input():
    def function(x):
        result = x.sin()
        x.as_strided((drop_in_checks.memory(x).numel(),), (1,), 0).zero_()
        return x.copy_(result)

    assert "memory" in differences(lambda: wrong("sin_", function))["inplace"]


@pytest.mark.parametrize(
    ("function", "what"),
    [
        (lambda x: x if x.is_contiguous() else os.kill(os.getpid(), signal.SIGKILL), "ends the process (-9)"),
        (lambda x: x if x.is_contiguous() else time.sleep(60), "hangs"),
    ],
)
def test_goes_on_after_a_crash(function, what, monkeypatch):
    """The kind of check that it was is left out, the others are done."""
    monkeypatch.setattr(drop_in, "PATIENCE", 5)
    found = differences(lambda: wrong("sin_", function))
    assert found["inplace"] == what and "forward" not in found


def test_what_is_not_written_in_stock_says_nothing():
    empty = OpInfo("empty_like", dtypes={torch.float32}, sample_inputs_func=samples)
    [(_, kinds)] = drop_in.run([drop_in.Unit(empty, torch.float32, samples=1)], contextlib.nullcontext)
    assert kinds["forward"]["unrepeatable"] == kinds["forward"]["checks"]


def test_explanations(monkeypatch, capsys):
    differences = [{"where": "", "what": ""}]
    row = {"entry": "sin", "dtype": "float32", "kind": "forward", "differences": differences}
    rows = [row | {"checks": 1, "raise": 0, "unrepeatable": 0}]
    assert drop_in.report(rows, complete=True)
    monkeypatch.setattr(drop_in, "EXPLAINED", {("s*", "forward"): "why", ("cos", "forward"): "why"})
    assert not drop_in.report(rows, complete=False)
    assert not drop_in.report(rows, complete=True)  # what rounding decides may be no difference on another machine
    assert "explained, and no difference: ('cos', 'forward')" in capsys.readouterr().out
