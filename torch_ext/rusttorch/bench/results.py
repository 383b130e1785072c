"""Results are JSON Lines: one measurement a line, with what it depends on beside it.

Every line has `bench` (which benchmark: a key of KEYS), `date` and `machine`, and its own fields.
"""

import datetime
import json
import platform
from pathlib import Path

import torch


def machine():
    """What the figures depend on, but for the number of threads, which each benchmark says."""
    cpu, facts = platform.processor(), Path("/proc/cpuinfo").read_text()
    for line in facts.splitlines():
        if line.startswith("model name"):
            cpu = line.split(":")[1].strip()
    instructions = torch.backends.cpu.get_cpu_capability() + (", AMX" if "amx_bf16" in facts else "")
    return {"cpu": cpu, "torch": torch.__version__, "instruction_set": instructions}


def load(path, bench=None):
    """The lines of a file, or those of one benchmark."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for line in lines if bench in (None, line["bench"])]


# What tells one measurement of a benchmark from another.
KEYS = {
    "ops": ("op", "n", "shape", "dtype", "threads", "layout"),
    "roof": ("bytes", "threads"),
    "optimizer": ("optimizer", "sizes", "stock"),
    "train": ("loop", "threads", "against"),
    "curves": ("loop",),
    "matmul": ("dtype", "layout", "shape", "threads"),
    "models": ("model", "threads"),
}
# Those that stand side by side of several machines.
BY_MACHINE = ("ops", "roof", "matmul", "models")


def cpu(line):
    """What a line was measured on."""
    return line["machine"]["cpu"], line["machine"]["instruction_set"]


def key(line):
    beside = cpu(line) if line["bench"] in BY_MACHINE else ()
    return line["bench"], *(line[field] for field in KEYS[line["bench"]]), *beside


def save(path, bench, results, **facts):
    """Puts results of a benchmark into a file, in the place of older ones of the same; others stay as they are."""
    common = {"date": datetime.date.today().isoformat(), "machine": machine()} | facts
    new = {key(line): line for line in ({"bench": bench} | r | common for r in results)}
    old = load(path) if path.exists() else []
    merged = [new.pop(key(line), line) for line in old] + list(new.values())
    path.write_text("".join(json.dumps(line) + "\n" for line in merged))
