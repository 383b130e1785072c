"""Runs a script, unmodified, with every op and the memory pool in the place of stock torch's.

    python -m rusttorch run train.py --its --arguments
    python -m rusttorch run -m package.module --its --arguments
    python -m rusttorch run --ab train.py       # what that is worth, measured on the script's own steps
    python -m rusttorch run --profile train.py  # where its steps' time goes, in stock's ops and in ours
    python -m rusttorch info                    # this machine, this torch, and what can be swapped in

A step is what lies between the ends of two calls of an optimizer's step(): the first optimizer's, where a script has
several. --ab and --profile print at the script's end, also where that is Ctrl-C or an error. (A script that calls
rusttorch.use() or enable() itself is for neither, as they give each step its kernels.)
"""

import argparse
import functools
import os
import platform
import runpy
import sys
import weakref
from pathlib import Path

import torch

from . import _C, __version__, memory, swap
from .ab import AB, Profiler
from .resolve import families


def cpu():
    """This CPU's name, as Linux gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def info():
    rows = {
        "rusttorch": __version__,
        "torch": f"{torch.__version__} (CUDA {torch.version.cuda or 'no'})",
        "CPU": f"{cpu()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "instruction set": torch.backends.cpu.get_cpu_capability(),
        "GPU": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "ops": f"{len(swap.use().names)} of aten's can be swapped in, of {len(_C.entries())} in torch.ops.rusttorch",
        "families": " ".join(families()),
        "swapped in now": f"{len(swap._swapped.now.names)} ops" + (", and the pool" if memory.is_enabled() else ""),
    }
    for name, value in rows.items():
        print(f"{name:16s} {value}")


class ScriptSteps:
    """Makes each step of a script's first optimizer a step of `measured`, an AB or a Profiler."""

    def __init__(self, measured):
        self._measured = measured
        self._optimizer = None
        self._step = None
        self._ended = False
        self._why = None  # there is no report
        self._hook = torch.optim.Optimizer.profile_hook_step
        torch.optim.Optimizer.profile_hook_step = staticmethod(self._hooked)

    def _hooked(self, function):
        """An optimizer class's step as torch wraps it, and then the end of ours: outside of all that the profiler
        sees, which must not begin within a range."""
        step = self._hook(function)

        @functools.wraps(step)
        def then(optimizer, *args, **kwargs):
            result = step(optimizer, *args, **kwargs)
            self._stepped(optimizer)
            return result

        return then

    def _stepped(self, optimizer):
        if self._ended:
            return
        if self._optimizer is None or self._optimizer() is None:
            self._optimizer = weakref.ref(optimizer)
        if self._optimizer() is not optimizer:
            return
        try:
            step, self._step = self._step, None
            if step:
                step.__exit__(None, None, None)
            self._step = self._measured.step()
            self._step.__enter__()
        except RuntimeError as error:  # it cannot be measured: the script goes on
            self._step, self._ended, self._why = None, True, error

    def end(self):
        """Of the script. What came after the last step is none."""
        self._ended = True
        torch.optim.Optimizer.profile_hook_step = staticmethod(self._hook)
        if self._step:
            self._step.__exit__(GeneratorExit, GeneratorExit(), None)
        try:
            if self._why:
                raise self._why
            print(self._measured.report(), file=sys.stderr)
        except RuntimeError as error:
            print(f"no report: {error}", file=sys.stderr)


def run(options):
    if options.module:
        sys.argv = [options.script, *options.arguments]
        script = lambda: runpy.run_module(options.script, run_name="__main__", alter_sys=True)  # noqa: E731
    else:
        sys.argv = [options.script, *options.arguments]
        sys.path[0] = str(Path(options.script).resolve().parent)
        script = lambda: runpy.run_path(options.script, run_name="__main__")  # noqa: E731
    if options.ab or options.profile:
        steps = ScriptSteps(AB() if options.ab else Profiler())
    else:
        steps = None
        swap.enable()
    try:
        script()
    finally:
        if steps:
            steps.end()


def main():
    parser = argparse.ArgumentParser(
        prog="python -m rusttorch", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="run | info")
    running = commands.add_parser("run", help="run a script with rusttorch")
    how = running.add_mutually_exclusive_group()
    how.add_argument("--ab", action="store_true", help="its steps in turn with stock's kernels and with ours")
    how.add_argument("--profile", action="store_true", help="a few steps of each under torch.profiler")
    running.add_argument("-m", dest="module", action="store_true", help="script is a module's name")
    running.add_argument("script")
    running.add_argument("arguments", nargs=argparse.REMAINDER)
    running.set_defaults(command=run)
    commands.add_parser("info", help="what is here").set_defaults(command=lambda options: info())
    options = parser.parse_args()
    options.command(options)


if __name__ == "__main__":
    main()
