"""Everything that needs a GPU: build, test, time and sanitize, with the torch that is installed. Downloads nothing.

    python tools/gpu.py [--only build tests bench sanitizer] [--files norm softmax] [--families norm softmax]
                        [--again] [--budget 540] [--out ...]

A call ends within its budget of seconds, and says what is left; the next one with the same folder goes on there (with
--again it begins anew what it is told to do). For each device and state of the sources the folder has one with
    results.json    the machine, what each step came to, and how long it took
    tests.jsonl     each test, as it ended (tools/recorder.py)
    bench.json      the benchmark's figures (bench/gpu.py)
    log.txt         what all of them printed
    built.tar.gz    the library, for a machine that has been given the folder and has no build
Exit status: 0; 1 where something failed; 75 where something is left. RUSTTORCH_DEVICE=cpu rehearses it without a GPU.
"""

import argparse
import collections
import contextlib
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

import torch
from cuda_check import cuda_home
from emulate import TESTS
from recorder import SESSION, read, write

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "torch_ext" / "rusttorch"
DEVICE = os.environ.get("RUSTTORCH_DEVICE", "cuda")
# pytest's plugins that happen to be installed are not asked for.
ENVIRONMENT = {
    "RUSTTORCH_DEVICE": DEVICE,
    "PYTHONPATH": os.pathsep.join([str(ROOT / "torch_ext"), str(ROOT / "tools")]),
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
}
# "error" in pyproject.toml is for the torch that the CPU's tests run with; another one's warnings are no failures.
PYTEST = [
    sys.executable,
    "-m",
    "pytest",
    "-q",
    "--tb=short",
    "-p",
    "recorder",
    "-p",
    "no:cacheprovider",
    "-W",
    "default",
]
CALL = f"import rusttorch, torch; print(rusttorch.mish(torch.ones(3, device='{DEVICE}')))"
# A few elements of each kernel: the sanitizer makes a launch ten to a hundred times as long.
SANITIZED = "float32 and (tail or strided or misaligned or test_in_parts or test_accuracy and both) and not threads"
SHARED = ("reduction", "softmax", "norm", "cross_entropy", "scan")  # families whose blocks share memory
LEAST = 20  # seconds for which nothing is started
LONGEST = ("loss", "pointwise", "reduction", "activation", "optimizer")
JOBS = max(4, (os.cpu_count() or 1) * 3 // 4)  # test files at a time: what they wait for is mostly Python
OUT_OF_TIME, LEFT = 124, 75


def kill(process):
    """With all that it has started, and that has left no group of its own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(10)


class Run:
    """The folder of results, and the time there is."""

    def __init__(self, folder, until, files=(), again=False, families=()):
        self.folder, self.until, self.files, self.again = folder, until, files, again
        self.families = ["--families", *families] if families else []
        self.record, self.log = folder / "tests.jsonl", folder / "log.txt"

    def left(self):
        return self.until - time.time()

    def processes(self, waiting, jobs=1):
        """waiting: a deque of (name, command, environment), to which more may be added.

        Yields each, its exit status (OUT_OF_TIME where the time was not enough) and its output.
        """
        running = {}
        try:
            while running or (waiting and self.left() > LEAST):
                while waiting and len(running) < jobs and self.left() > LEAST:
                    part = waiting.popleft()
                    print("$", *part[1], flush=True)
                    output = tempfile.TemporaryFile()  # noqa: SIM115
                    process = subprocess.Popen(
                        list(map(str, part[1])),
                        cwd=ROOT,
                        env=os.environ | ENVIRONMENT | part[2],
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        process_group=0,  # killed as one; a session of its own could outlive the command that called us
                    )
                    running[process] = part, output
                for process, (part, output) in list(running.items()):
                    status = process.poll()
                    if status is None and self.left() > 0:
                        continue
                    kill(process)
                    del running[process]
                    with output:
                        output.seek(0)
                        text = output.read().decode(errors="replace")
                    with open(self.log, "a") as log:
                        log.write(f"$ {' '.join(map(str, part[1]))}\n{text}\n")
                    yield part, OUT_OF_TIME if status is None else status, text
                time.sleep(0.05)
        finally:
            for process in running:
                kill(process)

    def process(self, command, **environment):
        """Exit status and output of one."""
        for _, status, output in self.processes(collections.deque([("", command, environment)])):
            return status, output
        return OUT_OF_TIME, ""

    def tests(self, parts, jobs=1, **environment):
        """parts: {name: command}. Where a process ends within a test, another goes on after it."""
        if self.again and self.record.exists():
            lines = self.record.read_text().splitlines(keepends=True)
            self.record.write_text("".join(line for line in lines if json.loads(line)["under"] not in parts))
        environment |= {"RUSTTORCH_RECORD": str(self.record)}
        known = read(self.record)
        waiting = collections.deque(
            (name, command, environment | {"RUSTTORCH_UNDER": name})
            for name, command in parts.items()
            if (name, SESSION) not in known
        )
        ended = collections.Counter(under for (under, _), line in known.items() if line["outcome"] != "began")
        for part, status, output in self.processes(waiting, jobs):
            name = part[0]
            lines = {test: line for (under, test), line in read(self.record).items() if under == name}
            if SESSION in lines or status == OUT_OF_TIME:
                continue
            why = {"under": name, "status": status, "message": output[-1500:]}
            for test, line in lines.items():
                if line["outcome"] == "began":
                    write(self.record, test=test, outcome="lost", **why)
            if len(lines) > ended[name]:
                ended[name] = len(lines)
                waiting.append(part)
            else:  # it comes no further
                write(self.record, test=SESSION, outcome="lost", **why)
        return self.outcomes(parts)

    def outcomes(self, names):
        lines = {key: line for key, line in read(self.record).items() if key[0] in names}
        count = collections.Counter(line["outcome"] for line in lines.values())
        bad = {test or name: reason(line) for (name, test), line in lines.items() if failed(line)}
        left = [name for name in names if (name, SESSION) not in lines]
        outcomes = {name: count[name] for name in ("passed", "failed", "skipped", "lost")}
        return {"status": int(bool(bad)), **outcomes, "left": left, "first_failed": dict(list(bad.items())[:40])}


def failed(line):
    """Of a test, or of pytest as a whole, which ends with 1 where a test has failed and with 5 where there was none."""
    return line["outcome"] in ("failed", "lost") or line.get("status", 0) not in (0, 1, 5)


def reason(line):
    """In a line: what pytest says of the exception, or else the end of it all."""
    said = line.get("message", "")
    return " ".join(re.findall("^E +(.*)", said, re.MULTILINE))[:300] or said[-300:]


def build(run):
    archive = run.folder / "built.tar.gz"
    if archive.exists() and not run.again:
        shutil.unpack_archive(archive, PACKAGE)
        return checked(run)
    environment = {"FORCE_CUDA": "1", "MAX_JOBS": os.environ.get("MAX_JOBS", str(os.cpu_count()))}
    with contextlib.suppress(SystemExit, TypeError):  # where it finds no nvcc, setup.py looks further
        environment["CUDA_HOME"] = str(cuda_home())
    status, output = run.process([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], **environment)
    if status:
        return {"status": status, "output": output[-3000:], "left": ["build"] if status == OUT_OF_TIME else []}
    found = checked(run)
    if found["status"] == 0:
        with tempfile.TemporaryDirectory() as folder:
            for file in (*PACKAGE.glob("_C*.so"), PACKAGE / "_build.py"):
                shutil.copy(file, folder)
            shutil.make_archive(str(archive).removesuffix(".tar.gz"), "gztar", folder)
    return found


def checked(run):
    status, output = run.process([sys.executable, "-c", f"{CALL}; assert rusttorch._build.CUDA"])
    return {"status": status} | ({"output": output[-3000:]} if status else {})


def tests(run):
    if importlib.util.find_spec("pytest") is None:
        return {"status": 1, "left_out": "pytest is not installed"}
    names = run.files or sorted(f.stem.removeprefix("test_") for f in (ROOT / "tests").glob("test_*.py"))
    names = sorted(names, key=lambda name: name not in LONGEST)  # which are not to be waited for in the end
    files = [f"tests/test_{name}.py" for name in names]
    # References are computed on the CPU, by several files at a time.
    return run.tests({file: [*PYTEST, file] for file in files}, JOBS, OMP_NUM_THREADS="2", OMP_WAIT_POLICY="passive")


def sanitizer(run):
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        return {"status": 0, "left_out": "compute-sanitizer is not installed"}
    # Stock's kernels are not ours to check; calls that torch tries, and that fail, are no errors.
    tool = [tool, "--kernel-name", "kns=rusttorch", "--report-api-errors", "no", "--error-exitcode", "9"]
    status, output = run.process([*tool, sys.executable, "-c", CALL])
    if status:
        return {"status": 0, "left_out": f"compute-sanitizer does not run here ({status}): {output[-1000:]}"}
    results, whole = {"status": 0, "left": []}, run.until
    for share, name, families in ((1 / 2, "memcheck", TESTS), (1, "racecheck", SHARED)):
        run.until = time.time() + share * (whole - time.time())
        before = run.log.stat().st_size if run.again else 0  # else what an earlier call was told counts too
        files = [f"tests/test_{family}.py" for family in families]
        # Each tensor is an allocation of its own, so that what lies beyond its end is not another's.
        found = run.tests(
            {name: [*tool, "--tool", name, *PYTEST, *files, "-k", SANITIZED]},
            PYTORCH_NO_CUDA_MEMORY_CACHING="1",
            RUSTTORCH_TEST_SECONDS="300",
        )
        printed = re.split("^\\$ ", run.log.read_bytes()[before:].decode(errors="replace"), flags=re.MULTILINE)
        lines = [
            line for part in printed if f" --tool {name} " in part.partition("\n")[0] for line in part.splitlines()
        ]
        wrong = [k for k, line in enumerate(lines) if re.match("=+ .*(Invalid |Race reported|SUMMARY: [1-9])", line)]
        found["said"] = [lines[k] for k in sorted({i for k in wrong[:10] for i in range(k, k + 5)}) if k < len(lines)]
        results[name] = found
        results["status"] |= found["status"] | bool(wrong)
        results["left"] += found["left"]
    run.until = whole
    return results


def bench(run):
    path = run.folder / "bench.json"
    if run.again:
        path.unlink(missing_ok=True)
    while True:
        before = path.read_bytes() if path.exists() else b""
        seconds = ["--seconds", int(run.left() - 45)]
        command = [sys.executable, "bench/gpu.py", "--device", DEVICE, "--out", path, *seconds, *run.families]
        status, output = run.process(command)
        after = path.read_bytes() if path.exists() else b""
        # A process that ended within a cell has left it as an error, and the next one goes on after it.
        if status in (0, LEFT, OUT_OF_TIME) or before == after:
            break
    found = json.loads(path.read_text()) if path.exists() else {}
    cells = {label: cell for name in ("cases", "ops") for label, cell in found.get(name, {}).items()}
    errors = {label: cell.get("error") or cell.get("ours", {}).get("error") for label, cell in cells.items()}
    errors = {label: error for label, error in errors.items() if error}
    left = ["bench"] if status in (LEFT, OUT_OF_TIME) else []
    status = 0 if left else status
    return {"status": status or int(bool(errors)), "left": left, "measured": len(cells), "errors": errors} | (
        {"output": output[-3000:]} if status else {}
    )


STEPS = {"build": build, "tests": tests, "bench": bench, "sanitizer": sanitizer}


def machine():
    about = {"device": platform.processor() or "cpu", "torch": torch.__version__, "cuda": torch.version.cuda}
    if DEVICE == "cuda":
        device = torch.cuda.get_device_properties(0)
        about |= {"device": device.name, "multiprocessors": device.multi_processor_count, "memory": device.total_memory}
        about["l2"] = device.L2_cache_size
    return about | {"python": platform.python_version(), "cores": os.cpu_count()}


def sources():
    """What the library is made of, in eight digits."""
    files = [ROOT / "setup.py", *(f for f in sorted(ROOT.glob("csrc*/**/*")) if f.is_file())]
    digest = hashlib.sha256(f"{torch.__version__} {sys.version_info}".encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:8]


def main():
    start = time.time()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--files", nargs="+", default=[], help="of the tests: norm is tests/test_norm.py")
    parser.add_argument("--families", nargs="+", default=[], help="of the benchmark")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--budget", type=float, default=540, help="seconds for this call")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu")
    options = parser.parse_args()
    if DEVICE == "cuda" and not torch.cuda.is_available():
        sys.exit(f"no GPU, or torch {torch.__version__} is built without CUDA: make cuda and make emulate need neither")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # which ends what it has started
    # Where ninja is, of a Python whose environment is not activated, and the toolkit.
    os.environ["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"], "/usr/local/cuda/bin"])
    about = machine()
    folder = options.out.absolute() / f"{re.sub(r'[^a-z0-9]+', '-', about['device'].lower())}-{sources()}"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "results.json"
    results = (json.loads(file.read_text()) if file.exists() else {}) | {"machine": about}
    run = Run(folder, start + options.budget, options.files, options.again, options.families)
    print(folder, flush=True)
    for name in options.only:
        begin = time.time()
        if run.left() < LEAST:
            results.setdefault(name, {"status": 0, "left": [name]})
            continue
        try:
            found = STEPS[name](run)
        except Exception as error:  # what is wrong with one step need not be with the next
            found = {"status": 1, "error": repr(error)}
        results[name] = found | {"seconds": round(time.time() - begin, 1)}
        file.write_text(json.dumps(results, indent=1) + "\n")
        print(f"{name}: {json.dumps(results[name], indent=1)[:4000]}", flush=True)
        if name == "build" and found["status"]:
            break
    named = [results.get(name, {"status": 0, "left": [name]}) for name in options.only]
    left = [part for step in named for part in step.get("left", ())]
    if left:
        print("left:", *left)
    sys.exit(1 if any(step["status"] for step in named) else LEFT if left else 0)


if __name__ == "__main__":
    main()
