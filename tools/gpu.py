"""Everything that needs a GPU, in one call: build, test, sanitize and time, with the torch that is installed.

    python tools/gpu.py [--only build tests sanitizer bench]

Writes bench/results/DEVICE.json: the machine, what each step came to, how long it took, and the benchmark's figures.
Downloads nothing. Goes on after a step that fails, and fails in the end.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import torch
from emulate import TESTS

ROOT = Path(__file__).parents[1]
# A few elements of each kernel: the sanitizer makes a launch ten to a hundred times as long.
SANITIZED = "float32 and (tail or strided or misaligned or test_in_parts or test_accuracy and both) and not threads"
ON_THE_GPU = {"RUSTTORCH_DEVICE": "cuda", "PYTHONPATH": str(ROOT / "torch_ext")}


def run(command, seconds, **environment):
    """Exit status; 124 where the time was not enough."""
    print("$", " ".join(map(str, command)), flush=True)
    try:
        return subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, timeout=seconds).returncode
    except subprocess.TimeoutExpired:
        return 124


def build(out):
    jobs = os.environ.get("MAX_JOBS", str(os.cpu_count()))
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    return {"status": run(command, 300, FORCE_CUDA="1", MAX_JOBS=jobs)}


def counted(report):
    """How many tests passed, failed and were skipped, and the first that failed."""
    suite = ElementTree.parse(report).getroot().find("testsuite")
    number = {name: int(suite.get(name)) for name in ("tests", "failures", "errors", "skipped")}
    failed = [case.get("classname") + "::" + case.get("name") for case in suite if case.find("failure") is not None]
    return {
        "passed": number["tests"] - number["failures"] - number["errors"] - number["skipped"],
        "failed": number["failures"] + number["errors"],
        "skipped": number["skipped"],
        "first_failed": failed[:40],
    }


def tests(out):
    report = out / "tests.xml"
    command = [sys.executable, "-m", "pytest", "tests", "-q", "--tb=short", f"--junitxml={report}"]
    status = run([*command, "-p", "no:cacheprovider"], 280, **ON_THE_GPU)
    return {"status": status} | (counted(report) if report.exists() else {})


def sanitizer(out):
    if shutil.which("compute-sanitizer") is None:
        return {"status": 0, "left_out": "compute-sanitizer is not installed"}
    results = {"status": 0}
    shared = ("reduction", "softmax", "norm", "cross_entropy", "scan")  # families whose blocks share memory
    for tool, families in (("memcheck", TESTS), ("racecheck", shared)):
        report = out / f"{tool}.xml"
        command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", sys.executable, "-m", "pytest", "-q"]
        command += [*(f"tests/test_{family}.py" for family in families), "-k", SANITIZED, f"--junitxml={report}"]
        # Each tensor is an allocation of its own, so that what lies beyond its end is not another's.
        status = run(command, 90, **ON_THE_GPU, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
        results[tool] = {"status": status} | (counted(report) if report.exists() else {})
        results["status"] = results["status"] or status
    return results


def bench(out):
    path = out / "bench.json"
    status = run([sys.executable, "bench/gpu.py", "--out", path], 240, **ON_THE_GPU)
    return {"status": status} | (json.loads(path.read_text()) if path.exists() else {})


STEPS = {"build": build, "tests": tests, "sanitizer": sanitizer, "bench": bench}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=STEPS, default=list(STEPS))
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit(f"no GPU, or torch {torch.__version__} is built without CUDA: make cuda and make emulate need neither")
    device = torch.cuda.get_device_properties(0)
    machine = {"device": device.name, "multiprocessors": device.multi_processor_count, "memory": device.total_memory}
    machine |= {"torch": torch.__version__, "cuda": torch.version.cuda, "cores": os.cpu_count()}
    out = ROOT / "build" / "gpu"
    out.mkdir(parents=True, exist_ok=True)
    results = {"machine": machine}
    for name in options.only:
        start = time.time()
        results[name] = STEPS[name](out)
        results[name]["seconds"] = round(time.time() - start, 1)
        file = ROOT / "bench" / "results" / (re.sub(r"\W+", "-", device.name).lower() + ".json")
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(results, indent=1) + "\n")
        shown = {k: v for k, v in results[name].items() if k not in ("ops", "cases")}
        print(f"{name}: {shown}", flush=True)
    sys.exit(any(results[name]["status"] for name in options.only))


if __name__ == "__main__":
    main()
