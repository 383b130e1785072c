"""Where a step's time goes: in stock's ops and in ours."""

import contextlib
from collections import Counter

import torch

from . import swap
from .resolve import base

ARMS = ("stock", "swapped")
OPTIMIZER = "Optimizer.step#"  # torch's own mark around a whole step, of which the time of all it calls is shown


class Profiler:
    """Takes a loop's steps in turn with stock's kernels and with rusttorch's, under torch.profiler.

        profiler = Profiler()
        for x, y in loader:
            with profiler.step():
                train_step(x, y)
        print(profiler.report())

    `warmup` steps of each arm are not measured, and neither is what comes after `steps` of each, which stock takes.
    use is what swapped steps have: a rusttorch.use(), of every op and the pool where it is not said.
    """

    def __init__(self, use=None, steps=10, warmup=1):
        self._use = use or swap.use()
        self._steps, self._warmup = steps, warmup
        self._begun = 0
        self._measured = Counter()  # arm -> steps
        self._calls = {arm: Counter() for arm in ARMS}
        self._seconds = {arm: Counter() for arm in ARMS}
        self._ran = {}

    @contextlib.contextmanager
    def step(self):
        number, which = divmod(self._begun, 2)
        self._begun += 1
        if number >= self._warmup + self._steps:
            yield
            return
        arm = ARMS[which]
        if swap._swapped.now.names:
            raise RuntimeError(
                f"a profile compares with stock, but ops are swapped in already, by {swap._swapped.holders()}; "
                "rusttorch.disable(force=True) takes them out whoever holds them"
            )
        with contextlib.ExitStack() as entered:
            if arm == "swapped":
                before = swap.stats()
                entered.enter_context(self._use)
            if number < self._warmup:
                yield
                return
            with torch.profiler.profile() as profiler:
                yield
        self._measured[arm] += 1
        for event in profiler.key_averages():
            whole = event.key.startswith(OPTIMIZER)
            self._calls[arm][event.key] += event.count
            self._seconds[arm][event.key] += (event.cpu_time_total if whole else event.self_cpu_time_total) * 1e-6
        if arm == "swapped":
            self._ran = swap.added(self._ran, swap.difference(swap.stats(), before))

    def report(self):
        """The Profile so far. Raises RuntimeError before one step of each arm was measured."""
        if not all(self._measured[arm] for arm in ARMS):
            raise RuntimeError(f"a profile needs {2 * self._warmup + 2} steps, and has {self._begun}")
        per_step = {
            arm: {
                name: (calls / self._measured[arm], self._seconds[arm][name] / self._measured[arm])
                for name, calls in self._calls[arm].items()
            }
            for arm in ARMS
        }
        swapped = {f"aten::{base(name)}" for name in self._use.names}
        swapped |= {name + "_" for name in swapped}
        names = [n for n in {**per_step["stock"], **per_step["swapped"]} if n in swapped or n.startswith(OPTIMIZER)]
        ops = {name: {arm: per_step[arm].get(name, (0, 0.0)) for arm in ARMS} for name in names}
        whole = {arm: sum(s for n, (_, s) in per_step[arm].items() if not n.startswith(OPTIMIZER)) for arm in ARMS}
        by_time = sorted(ops.items(), key=lambda item: -max(seconds for _, seconds in item[1].values()))
        return Profile(dict(by_time), whole, self._ran)


class Profile(dict):
    """op -> arm -> (calls, seconds) per step; `whole`: arm -> seconds per step over all ops, swapped or not; `ran`:
    what became of the calls of the swapped steps, as in rusttorch.stats()."""

    def __init__(self, ops, whole, ran):
        super().__init__(ops)
        self.whole, self.ran = whole, ran

    def __str__(self):
        width = max([26, *map(len, self)])

        def cell(arm, seconds):
            return f"{seconds * 1e6:9.1f} us {seconds / self.whole[arm] if self.whole[arm] else 0:5.1%}"

        lines = [f"  {'a step':{width}s} {'calls':>13s} {'stock':>18s} {'swapped':>18s} {'ratio':>7s}"]
        for name, arms in self.items():
            calls, seconds = ([arms[arm][i] for arm in ARMS] for i in (0, 1))
            ratio = f"{seconds[0] / seconds[1]:6.2f}x" if all(seconds) else "   gone" if seconds[0] else "    new"
            times = " ".join(f"{cell(arm, s):>18s}" for arm, s in zip(ARMS, seconds, strict=True))
            lines.append(f"  {name:{width}s} {calls[0]:6.1f} {calls[1]:6.1f} {times} {ratio}")
        total = " ".join(f"{cell(arm, self.whole[arm]):>18s}" for arm in ARMS)
        lines.append(f"  {'every op, swapped or not':{width + 14}s} {total}")
        lines += [
            "  calls: stock's, swapped's. Times are an op's own, without what it calls; they hold the profiler's cost"
        ]
        lines += [f"  for each call. {OPTIMIZER}: a whole step. gone, new: the other arm calls another op."]
        handed = {name: handed for name, (_, handed) in self.ran.items() if handed}
        if handed:
            lines.append("  handed to stock: " + swap.reasons(handed))
        return "\n".join(lines)
