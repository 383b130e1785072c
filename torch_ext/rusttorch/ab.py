"""A/B inside a training loop: what the swap is worth, measured on the steps themselves."""

import contextlib
import random
import resource
import time
from dataclasses import dataclass

import numpy as np
import torch

from . import memory, swap

ARMS = ("stock", "swapped")
ORDERS = (("stock", "swapped", "swapped", "stock"), ("swapped", "stock", "stock", "swapped"))
LOSS_CONFIDENCE = 0.999  # a false alarm in a thousand reports


@dataclass
class Report:
    """What an AB found. Times are seconds per step; print it for a summary."""

    rounds: int
    median: dict[str, float]  # arm -> median step time
    speedup: float  # median over rounds of stock's time over swapped's
    interval: tuple[float, float]  # its bootstrap confidence interval
    confidence: float
    per_second: dict[str, float] | None  # arm -> samples (or tokens) per second
    loss_difference: float | None  # mean over rounds of swapped's loss less stock's, relative to their mean
    loss_interval: tuple[float, float] | None  # its 99.9 % interval
    peak_memory: dict[str, int]  # arm -> bytes
    ran: dict[str, swap.OpStats]  # what the swapped ops did in the swapped steps

    @property
    def losses_agree(self):
        """Whether the interval of the loss difference holds 0; None without losses."""
        return self.loss_interval and self.loss_interval[0] <= 0 <= self.loss_interval[1]

    def __str__(self):
        low, high = self.interval
        percent = f"{self.confidence:.0%}"
        lines = [
            f"rusttorch A/B over {self.rounds} rounds",
            f"  speed-up      {self.speedup:.3f}x   {percent} interval [{low:.3f}, {high:.3f}]",
            "  median step   " + "   ".join(f"{arm} {self.median[arm] * 1e3:.3f} ms" for arm in ARMS),
        ]
        if self.per_second:
            lines.append("  per second    " + "   ".join(f"{arm} {self.per_second[arm]:,.0f}" for arm in ARMS))
        if self.loss_interval:
            low, high = self.loss_interval
            verdict = "agree" if self.losses_agree else "DIFFER"
            lines.append(
                f"  losses        {verdict}: swapped is {self.loss_difference:+.2%} from stock"
                f"   {LOSS_CONFIDENCE:.1%} interval [{low:+.2%}, {high:+.2%}]"
            )
        lines.append("  peak memory   " + "   ".join(f"{arm} {self.peak_memory[arm] / 2**20:.1f} MiB" for arm in ARMS))
        lines.append("  ops           calls here / handed to stock")
        for name, (ran, handed) in sorted(self.ran.items(), key=lambda item: -item[1].ran):
            why = ", ".join(f"{reason} {n}" for reason, n in handed.items())
            lines.append(f"    {name:28s} {ran:8d} / {sum(handed.values())}" + (f"  ({why})" if why else ""))
        return "\n".join(lines)


class Step:
    """One step of an AB. Set loss (a number or a tensor) to have the arms' losses compared."""

    def __init__(self, arm):
        self.arm = arm
        self.loss = None


class AB:
    """Times a loop's steps with stock kernels and with rusttorch's, interleaved.

        ab = rusttorch.AB()
        for x, y in loader:
            with ab.step(samples=len(x)) as step:
                step.loss = train_step(x, y)
        print(ab.report())

    Steps come in rounds of four blocks of `block` steps: stock, swapped, swapped, stock or the reverse, at random, so
    that a trend hits both arms alike. A round gives one ratio, of its arms' median times. The first `warmup` rounds
    are left out. Kernels are exchanged between blocks, outside the timed part; between the steps of a block nothing
    is done. Both arms train the same model, so their losses are compared round by round: the mean difference should
    not differ from 0.

    names and exclude choose the ops as in rusttorch.use(). pool: swapped steps also take their memory from
    rusttorch.memory's pool. step.arm is "stock" or "swapped", for a loop that gives each its own model.
    Raises RuntimeError if ops are swapped already, or the pool is enabled.
    """

    def __init__(self, *names, exclude=(), pool=False, block=4, warmup=1, seed=0):
        if block < 1 or warmup < 0:
            raise ValueError(f"block must be at least 1 and warmup at least 0, got {block} and {warmup}")
        self._names, self._exclude = names, exclude
        self._use = swap.use(*names, exclude=exclude)  # an unknown name is an error now, not at the first step
        self._block, self._warmup = block, warmup
        self._pool = pool
        self._random = random.Random(seed)
        self._plan = []  # arms of the steps to come in this round
        self._arm = None
        self._rows = []  # round, arm, seconds, samples, loss
        self._round = -1
        self._peak = dict.fromkeys(ARMS, 0)
        self._ran = {}

    @contextlib.contextmanager
    def step(self, samples=0):
        """Times one step. samples: how many samples (or tokens) it processes. Yields a Step."""
        if not self._plan:
            self._round += 1
            self._plan = [arm for arm in self._random.choice(ORDERS) for _ in range(self._block)]
        arm = self._plan.pop(0)
        if arm != self._arm:
            self._switch(arm)
        step = Step(arm)
        _synchronize()
        start = time.perf_counter()
        try:
            yield step
            _synchronize()
            seconds = time.perf_counter() - start
        except BaseException:
            self.close()
            raise
        loss = None if step.loss is None else float(step.loss)
        self._rows.append((self._round, arm, seconds, samples, loss))

    def _switch(self, arm):
        """Ends the block of one arm and begins that of the other; arm None: ends only."""
        if self._arm is not None:
            self._peak[self._arm] = max(self._peak[self._arm], _peak_memory())
        if self._arm == "swapped":
            self._enter(False)
            for name, (ran, handed) in _difference(swap.stats(), self._before).items():
                old = self._ran.get(name, swap.OpStats(0, {}))
                total = {reason: old.handed.get(reason, 0) + n for reason, n in handed.items()}
                self._ran[name] = swap.OpStats(old.ran + ran, {**old.handed, **total})
        if arm is not None and swap._swapped.any():
            self._arm = None
            raise RuntimeError("rusttorch.AB compares with stock, but ops are swapped already: call disable()")
        if arm is not None and self._pool and memory.is_enabled():
            self._arm = None
            raise RuntimeError("rusttorch.AB compares with stock, but the pool is enabled already: call disable_pool()")
        self._arm = arm
        if arm == "swapped":
            self._before = swap.stats()
            self._enter(True)
        if arm is not None:
            _reset_peak_memory()

    def _enter(self, swapped):
        self._use.__enter__() if swapped else self._use.__exit__()
        if self._pool:
            memory.enable_pool() if swapped else memory.disable_pool()

    def close(self):
        """Leaves the dispatcher as it was. report() does so too; further steps may follow."""
        self._switch(None)
        self._plan = []

    def report(self, confidence=0.95, resamples=2000):
        """The Report so far. Raises RuntimeError before warmup + 2 rounds are complete."""
        self.close()
        rounds = {}
        for number, arm, seconds, samples, loss in self._rows:
            if number >= self._warmup:
                rounds.setdefault(number, {}).setdefault(arm, []).append((seconds, samples, loss))
        whole = [r for r in rounds.values() if all(len(r.get(arm, ())) == 2 * self._block for arm in ARMS)]
        if len(whole) < 2:
            need = 4 * self._block * (self._warmup + 2)
            raise RuntimeError(f"rusttorch.AB needs at least {need} steps, and has {len(self._rows)}")
        column = lambda arm, i: np.array([[row[i] for row in r[arm]] for r in whole], dtype=float)  # noqa: E731
        seconds = {arm: column(arm, 0) for arm in ARMS}
        ratios = np.median(seconds["stock"], axis=1) / np.median(seconds["swapped"], axis=1)
        samples = {arm: column(arm, 1).sum() for arm in ARMS}
        losses = {arm: column(arm, 2).mean(axis=1) for arm in ARMS}  # None becomes NaN
        size = np.maximum(np.abs(losses["swapped"]) + np.abs(losses["stock"]), np.finfo(float).tiny) / 2
        differences = (losses["swapped"] - losses["stock"]) / size
        has_losses = not np.isnan(differences).any()
        return Report(
            rounds=len(whole),
            median={arm: float(np.median(seconds[arm])) for arm in ARMS},
            speedup=float(np.median(ratios)),
            interval=_bootstrap(ratios, np.median, confidence, resamples),
            confidence=confidence,
            per_second={arm: float(samples[arm] / seconds[arm].sum()) for arm in ARMS}
            if all(samples.values())
            else None,
            loss_difference=float(differences.mean()) if has_losses else None,
            loss_interval=_bootstrap(differences, np.mean, LOSS_CONFIDENCE, 10 * resamples) if has_losses else None,
            peak_memory=dict(self._peak),
            ran=dict(self._ran),
        )

    def times(self, arm):
        """The step times of an arm in seconds, in order, without the warm-up."""
        return [row[2] for row in self._rows if row[1] == arm and row[0] >= self._warmup]

    def profile(self, step, steps=10):
        """How much of step() each swapped op takes in both arms: {op: {arm: (calls, seconds) per step}}, printable.

        step is called `steps` times per arm under torch.profiler (and once before, unmeasured); the times hold the
        profiler's own cost per call.
        """
        self.close()
        totals = {}
        for arm in ARMS:
            with self._use if arm == "swapped" else contextlib.nullcontext():
                step()
                with torch.profiler.profile(acc_events=True) as profiler:
                    for _ in range(steps):
                        step()
            totals[arm] = {
                event.key: (event.count / steps, event.self_cpu_time_total * 1e-6 / steps)
                for event in profiler.key_averages()
            }
        swapped = {f"aten::{swap._base(name)}" for name in self._use.names}
        swapped |= {name + "_" for name in swapped}
        names = [name for name in totals["stock"] if name in swapped]
        names.sort(key=lambda name: -totals["stock"][name][1])
        whole = {arm: sum(t for _, t in totals[arm].values()) for arm in ARMS}
        return Profile({n: {arm: totals[arm].get(n, (0, 0.0)) for arm in ARMS} for n in names}, whole)


class Profile(dict):
    """op -> arm -> (calls, seconds) per step; `whole`: arm -> seconds per step over all ops, swapped or not."""

    def __init__(self, ops, whole):
        super().__init__(ops)
        self.whole = whole

    def __str__(self):
        lines = [f"  {'op':26s} {'calls':>6s} {'stock':>18s} {'swapped':>18s} {'ratio':>7s}"]

        def cell(arm, seconds):
            return f"{seconds * 1e6:9.1f} us {seconds / self.whole[arm]:5.1%}"

        for name, arms in self.items():
            calls, stock = arms["stock"]
            swapped = arms["swapped"][1]
            ratio = f"{stock / swapped:6.2f}x" if swapped else "   gone"  # an op above it was swapped
            lines.append(
                f"  {name:26s} {calls:6.1f} {cell('stock', stock):>18s} {cell('swapped', swapped):>18s} {ratio}"
            )
        total = [cell(arm, self.whole[arm]) for arm in ARMS]
        lines.append(f"  {'every op, swapped or not':33s} {total[0]:>18s} {total[1]:>18s}")
        return "\n".join(lines)


def _bootstrap(values, statistic, confidence, resamples):
    """Percentile interval of a statistic (B. Efron, Bootstrap Methods, 1979); the same for the same values."""
    draws = np.random.default_rng(0).choice(values, size=(resamples, len(values)))
    tail = (1 - confidence) / 2
    low, high = np.quantile(statistic(draws, axis=1), [tail, 1 - tail])
    return float(low), float(high)


def _difference(after, before):
    """What was counted between two stats()."""
    counted = {}
    for name, (ran, handed) in after.items():
        old = before.get(name, swap.OpStats(0, {}))
        new = {reason: n - old.handed.get(reason, 0) for reason, n in handed.items()}
        if ran - old.ran or any(new.values()):
            counted[name] = swap.OpStats(ran - old.ran, {reason: n for reason, n in new.items() if n})
    return counted


def _synchronize():
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _reset_peak_memory():
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
        return
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as f:
        f.write("5")  # Linux: resets the peak resident size


def _peak_memory():
    """Bytes: of the device if CUDA is in use, else the process's peak resident size."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    with contextlib.suppress(OSError), open("/proc/self/status") as f:
        for line in f:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
