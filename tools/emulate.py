"""Runs the CUDA kernels without a GPU: the families' tests, on kernels that tests/emulation runs on the CPU.

    python tools/emulate.py [arguments of pytest]

Builds the package once more, in build/emulation, with csrc_cuda compiled as C++ in the CPU kernels' place. What CPU
tensors get there is what CUDA tensors get on a GPU, through the same code of csrc/ops. Fails where a launcher or a
kernel did not run.
"""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cuda_check import cuda_home

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "emulation"
# As deep as other builds' objects, which ccache has then: it knows relative paths.
OBJECTS = ROOT / "build" / "emulation_objects"
DEVICE_TABLES = (
    (ROOT / "csrc" / "families.h").read_text().split("#define RUSTTORCH_DEVICE_TABLES")[1].split("#define")[0]
)
FAMILIES = re.findall(r"X\((\w+), \w+\)", DEVICE_TABLES)
TESTS = [
    name for name in (*FAMILIES, "gated", "group_norm", "functions") if (ROOT / "tests" / f"test_{name}.py").exists()
]
# Tests that are about something else:
LEFT_OUT = {
    "opcheck": "the dispatcher",
    "compile": "the dispatcher",
    "swapped": "the dispatcher",
    "vmap": "a number beside a tensor, which is stock's on a device",
    "test_long": "16M elements, which the emulation walks for minutes; test_in_parts takes the same kernels",
    "threads": "the CPU's threads",
    "attention_": "the CPU's kernels; a device has stock's",
    "rnn_layer_forward": "the CPU's kernels; a device has cuDNN's",
    **dict.fromkeys(
        (f"{name}_images" for name in ("color", "normalize", "mix", "warp", "crop", "blur", "sharpen")),
        "no device has them",
    ),
    "images_to_batch": "no device has it",
    "_fused_add_": "the CPU's kernels; on a device sums and their norms are made of other ops",
    "errors": "what a device refuses by an assertion, the CPU refuses by an exception",
    "indices_from_elsewhere": "a device asks the windows that have an element, as stock's max_pool2d does there",
    "(2.009 and (test_nearest or upsample_nearest2d))": "a scale beside a size that is doubled: the CPU's rule",
    "test_sizes_at_which_stock_is_faster": "the CPU's sizes",
    "zeros_over_a_divisor": "which are 0 in one of stock's CPU kernels, and -0 on a device as in the other",
}


# Kernels for memory that is not aligned, which no tensor brings there: linear_cross_entropy allocates what it caps.
UNREACHED = re.compile(r"softcap_formula, \w+, 1>")
NONE_CHOSEN = 5  # what pytest exits with


def last_line(done):
    return (done.stdout.strip() or done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]


def read(reports):
    """How many launchers there are; which ran in none, by family and place in its list; where kernels are that ran."""
    ran, left, kernels = 0, None, set()
    for report in reports:
        lines = report.read_text().splitlines()
        names = [re.search(r"(\w+)_launchers; long unsigned int k = (\d+)", line) for line in lines]
        missing = {f"{name[1]} {name[2]}" for name in names if name}
        ran = int(lines[0].split()[0]) + len(missing)
        left = missing if left is None else left & missing
        kernels |= {int(line.split()[-1], 16) for line in lines if line.startswith("kernel at")}
    return ran, sorted(left), kernels


def kernels_of(library):
    """Address and name of every kernel in the built package: the instances of what csrc_cuda marks __global__."""
    declaration = r"__global__ void __launch_bounds__\([^)]*\)\s+(\w+)\("
    sources = (ROOT / "csrc_cuda" / "kernels").glob("*.cuh")
    marked = {name for source in sources for name in re.findall(declaration, source.read_text())}
    symbols = subprocess.run(["nm", "-C", "--defined-only", library], capture_output=True, text=True, check=True).stdout
    found = re.findall(r"^([0-9a-f]+) [tTwW] (void rusttorch::(\w+)<.*)$", symbols, re.MULTILINE)
    return {int(at, 16): name for at, name, base in found if base in marked and "[clone" not in name}


def main():
    environment = {**os.environ, "CUDA_HOME": str(cuda_home()), "RUSTTORCH_EMULATION": "1"}
    setup = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", BUILD]
    setup += ["build_ext", "--build-lib", BUILD, "--build-temp", OBJECTS]
    subprocess.run(setup, cwd=ROOT, env=environment, check=True)

    chosen = sys.argv[1:] or ["-k", f"not ({' or '.join(LEFT_OUT)})"]

    def test(name):
        """A file's tests, in a process of their own."""
        report = BUILD / f"{name}.report"
        report.unlink(missing_ok=True)
        here = {"PYTHONPATH": str(BUILD), "RUSTTORCH_EMULATION_REPORT": str(report), "OMP_WAIT_POLICY": "passive"}
        command = [sys.executable, "-m", "pytest", f"tests/test_{name}.py", *chosen]
        done = subprocess.run(command, cwd=ROOT, env=environment | here, capture_output=True, text=True)
        print(f"{done.stdout if done.returncode not in (0, NONE_CHOSEN) else ''}{name}: {last_line(done)}", flush=True)
        return report, done.returncode in (0, NONE_CHOSEN)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        reports, passed = zip(*pool.map(test, TESTS), strict=True)
    count, missing, ran = read(reports)
    kernels = kernels_of(next((BUILD / "rusttorch").glob("_C*.so")))
    left = [name for at, name in kernels.items() if at not in ran and not UNREACHED.search(name)]
    print(
        f"{count - len(missing)} launchers of {count} ran, {len(ran)} kernels of {len(kernels)}",
        *(f"did not run: {name}" for name in missing + left),
        sep="\n",
    )
    if (missing or left) and not sys.argv[1:]:
        sys.exit("launchers or kernels that no test reaches")
    sys.exit(not all(passed))


if __name__ == "__main__":
    main()
