"""tools/gpu.py, as far as it goes without a GPU: a process that hangs, crashes or has no time left costs no more."""

import collections
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import gpu

TESTS = """
import os, time, pytest

def test_passes(): pass
def test_fails(): assert 0, "why"
def test_crashes(): os.abort()
def test_hangs(): time.sleep(100)
def test_is_skipped(): pytest.skip("why not")
"""


def ends(pid):
    """Whether a process does, in a second; nobody may have asked for its exit status."""
    stat = Path(f"/proc/{pid}/stat")
    for _ in range(20):
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] in "ZX":
            return True
        time.sleep(0.05)
    return False


def test_a_child_s_child_ends_with_it(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "LEAST", 0)
    child = "import subprocess, sys; p = subprocess.Popen(['sleep', '100']); print(p.pid, flush=True); p.wait()"
    parts = collections.deque([("late", [sys.executable, "-c", child], {})] * 2)
    ((_, status, output),) = gpu.Run(tmp_path, time.time() + 1).processes(parts)  # for the second there is no time
    assert status == gpu.OUT_OF_TIME
    assert ends(int(output))


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork")
def test_each_test_has_an_outcome_whatever_the_others_do(tmp_path):
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "test_broken.py").write_text("import nothing_of_the_name")
    files = {name: [*gpu.PYTEST, tmp_path / f"test_{name}.py", f"--rootdir={tmp_path}"] for name in ("some", "broken")}
    run = gpu.Run(tmp_path, time.time() + 120)
    found = run.tests(files, jobs=2, RUSTTORCH_TEST_SECONDS="2")
    assert [found[k] for k in ("passed", "failed", "skipped", "lost", "left")] == [1, 2, 1, 2, []]
    assert found["status"] == 1
    log = run.log.read_text()
    assert run.tests(files) == found  # nothing is run again
    assert run.log.read_text() == log
