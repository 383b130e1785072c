"""The one file that all benchmarks write to, each its own section."""

import json
import platform
from pathlib import Path

import torch

FILE = Path(__file__).parent / "results.json"


def machine():
    """What the figures depend on, but for the number of threads, which each benchmark says."""
    cpu = platform.processor()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.split(":")[1].strip()
    capability = torch.backends.cpu.get_cpu_capability()
    return {"cpu": cpu, "torch": torch.__version__, "instruction_set": capability}


def load(path=FILE):
    return json.loads(path.read_text()) if path.exists() else {}


def save(path, section, results, key, **facts):
    """Puts a section into the file. What is not measured again is kept: key(result) says which is which."""
    everything = load(path)
    again = {key(r): r for r in results}
    old = everything.get(section, {}).get("results", [])
    merged = [again.pop(key(r), r) for r in old] + list(again.values())
    everything[section] = {"machine": machine() | facts, "results": merged}
    path.write_text(json.dumps(everything, indent=1) + "\n")
