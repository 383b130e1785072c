"""Runs the CUDA kernels without a GPU: the families' tests, on kernels that tests/emulation runs on the CPU.

    python tools/emulate.py [arguments of pytest]

Builds the package once more, in build/emulation, with csrc_cuda compiled as C++ in the CPU kernels' place. What CPU
tensors get there is what CUDA tensors get on a GPU, through the same code of csrc/ops. Fails where a launcher did not
run.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

from cuda_check import cuda_home

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "emulation"
TESTS = (
    *("pointwise", "activation", "reduction", "scan", "copy", "softmax", "loss", "cross_entropy", "norm", "optimizer"),
    "functions",
)
# Tests that are about something else:
LEFT_OUT = {
    "opcheck": "the dispatcher",
    "compile": "the dispatcher",
    "swapped": "the dispatcher",
    "vmap": "a number beside a tensor, which is stock's on a device",
    "test_long": "16M elements, which the emulation walks for minutes; test_in_parts takes the same kernels",
    "threads": "the CPU's threads",
    "errors": "what a device refuses by an assertion, the CPU refuses by an exception",
}


# Launchers that no call comes to:
CPU_ONLY = {
    "loss 7": "outside_unit looks at probabilities beforehand, where a device asserts",
    "loss_total 7": "as loss 7",
}


def read(report):
    """The counts, and the launchers that did not run, each by its family and its place in the family's list."""
    lines = report.read_text().splitlines()
    counts = [line for line in lines if "did not run" not in line]
    names = [re.search(r"(\w+)_launchers; long unsigned int k = (\d+)", line) for line in lines]
    missing = [f"{name[1]} {name[2]}" for name in names if name]
    return counts, [name for name in missing if name not in CPU_ONLY]


def main():
    environment = {**os.environ, "CUDA_HOME": str(cuda_home()), "RUSTTORCH_EMULATION": "1"}
    setup = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", BUILD]
    setup += ["build_ext", "--build-lib", BUILD, "--build-temp", BUILD / "temp"]
    subprocess.run(setup, cwd=ROOT, env=environment, check=True)

    report = BUILD / "report.txt"
    environment |= {"PYTHONPATH": str(BUILD), "RUSTTORCH_EMULATION_REPORT": str(report)}
    tests = [f"tests/test_{name}.py" for name in TESTS]
    chosen = sys.argv[1:] or ["-k", f"not ({' or '.join(LEFT_OUT)})"]
    done = subprocess.run([sys.executable, "-m", "pytest", *tests, *chosen], cwd=ROOT, env=environment)
    counts, missing = read(report)
    print(*counts, *(f"did not run: {name}" for name in missing), sep="\n")
    if missing and not sys.argv[1:]:
        sys.exit("launchers that no test reaches")
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
