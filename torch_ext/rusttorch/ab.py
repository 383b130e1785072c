"""A/B inside a training loop: what the swap is worth, measured on the steps themselves."""

import contextlib
import math
import random
import resource
import time
import weakref
from dataclasses import dataclass

import numpy as np
import torch

from . import memory, swap
from .profiler import ARMS, Profiler

ORDERS = (("stock", "swapped", "swapped", "stock"), ("swapped", "stock", "stock", "swapped"))
LOSS_CONFIDENCE = 0.999  # a false alarm in a thousand reports
SHOWN = 10  # ops in a report


@dataclass
class Report:
    """What an AB found. Times are seconds per step; print it for a summary."""

    rounds: int
    median: dict[str, float]  # arm -> median step time
    speedup: float  # median over rounds of stock's time over swapped's
    interval: tuple[float, float]  # its bootstrap confidence interval
    confidence: float
    per_second: dict[str, float] | None  # arm -> samples (or tokens) per second
    loss_difference: float | None  # mean over loss_rounds of swapped's loss less stock's, relative to their mean
    loss_interval: tuple[float, float] | None  # its 99.9 % interval
    loss_rounds: int  # rounds in which both arms' losses are given and finite
    losses: dict[str, int]  # arm -> steps that gave a loss, those of the warm-up too
    not_finite: dict[str, int]  # arm -> such steps whose loss was NaN or infinite
    peak_memory: dict[str, int]  # arm -> bytes
    ran: dict[str, swap.OpStats]  # what the swapped ops did in the swapped steps
    pool: bool  # whether the swapped steps had the memory pool too

    @property
    def losses_agree(self):
        """Whether the interval of the loss difference holds 0, and no arm alone has losses that are not finite.

        None where it cannot be said: losses of both arms compared in fewer than 2 rounds, or losses of both that are
        not finite. (The arms train one model: once its weights are NaN, both arms' losses are, whoever made them so.)
        """
        broken = [n > 0 for n in self.not_finite.values()]
        if any(broken) and not all(broken):
            return False
        if self.loss_interval and not self.loss_interval[0] <= 0 <= self.loss_interval[1]:
            return False
        return True if self.loss_interval and not any(broken) else None

    def _losses(self):
        said = []
        if self.loss_interval:
            low, high = self.loss_interval
            some = "" if self.loss_rounds == self.rounds else f" in {self.loss_rounds} rounds"
            said.append(
                f"swapped is {self.loss_difference:+.2%} from stock{some}"
                f"   {LOSS_CONFIDENCE:.1%} interval [{low:+.2%}, {high:+.2%}]"
            )
        else:
            said.append("given by " + " and ".join(f"{self.losses[arm]} {arm}" for arm in ARMS) + " steps")
        if any(self.not_finite.values()):
            said.append("not finite in " + " and ".join(f"{self.not_finite[arm]} {arm}" for arm in ARMS) + " steps")
        return {True: "agree: ", False: "DIFFER: ", None: "not compared: "}[self.losses_agree] + "; ".join(said)

    def advice(self):
        """What to do next, in words."""
        low, high = self.interval
        if self.losses_agree is False:
            return "the losses differ: leave it out, and report that"
        if high < 1:
            return "slower here: leave it out"
        if low <= 1:
            return "no difference is seen: leave it out, or measure more steps"
        return "faster: rusttorch.enable()" + (" and rusttorch.memory.enable_pool()" if self.pool else "")

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
        if any(self.losses.values()):
            lines.append("  losses        " + self._losses())
        lines.append("  peak memory   " + "   ".join(f"{arm} {self.peak_memory[arm] / 2**20:.1f} MiB" for arm in ARMS))
        lines.append("  next          " + self.advice())
        lines.append("  ops           calls here / handed to stock, of which most first")
        calls = sorted(self.ran.items(), key=lambda item: (-sum(item[1].handed.values()), -item[1].ran))
        for name, (ran, handed) in calls[:SHOWN]:
            why = ", ".join(f"{reason} {n}" for reason, n in handed.items())
            lines.append(f"    {name:28s} {ran:8d} / {sum(handed.values())}" + (f"  ({why})" if why else ""))
        if len(calls) > SHOWN:
            lines.append(f"    and {len(calls) - SHOWN} more: report().ran")
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
    not differ from 0. Rounds in which an arm gave none are left out.

    Between two steps of a block the ops stay swapped in. They are taken out by the other arm's block, an exception in
    a step, close(), report(), rusttorch.disable(), another AB's first step, the end of `with rusttorch.AB() as ab:`,
    and when the AB goes (del ab).

    names and exclude choose the ops as in rusttorch.use(). pool: swapped steps also take their memory from
    rusttorch.memory's pool. step.arm is "stock" or "swapped", for a loop that gives each its own model.
    Raises RuntimeError if ops are swapped already, or the pool is enabled, and for a step within a step.
    """

    def __init__(self, *names, exclude=(), pool=False, block=4, warmup=1, seed=0):
        self._entered = contextlib.ExitStack()  # what the swapped arm's block has put in
        weakref.finalize(self, self._entered.close)
        if block < 1 or warmup < 0:
            raise ValueError(f"block must be at least 1 and warmup at least 0, got {block} and {warmup}")
        self._use = swap.use(*names, exclude=exclude)  # an unknown name is an error now, not at the first step
        self._names, self._exclude = names, exclude
        self._block, self._warmup = block, warmup
        self._pool = pool
        self._random = random.Random(seed)
        self._plan = []  # arms of the steps to come in this round
        self._arm = None  # of the block that goes on
        self._inside = False  # a step
        self._rows = []  # round, arm, seconds, samples, loss
        self._round = -1
        self._peak = dict.fromkeys(ARMS, 0)
        self._ran = {}

    @property
    def is_swapped(self):
        """Whether ops are swapped in by the block that goes on."""
        return self._arm == "swapped"

    def __repr__(self):
        return f"rusttorch.AB({len(self._use.names)} ops, {len(self._rows)} steps so far)"

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    @contextlib.contextmanager
    def step(self, samples=0):
        """Times one step. samples: how many samples (or tokens) it processes. Yields a Step."""
        if self._inside:
            raise RuntimeError("rusttorch.AB: a step within a step")
        try:
            with swap._swapped.lock:
                self._inside = True
                swap._swapped.between_steps.discard(self)
            arm = self._next()
            step = Step(arm)
            _synchronize()
            start = time.perf_counter()
            yield step
            _synchronize()
            seconds = time.perf_counter() - start
            loss = None if step.loss is None else float(torch.as_tensor(step.loss).detach())
            self._rows.append((self._round, arm, seconds, samples, loss))
            self._inside = False
            swap._swapped.between_steps.add(self)
        except BaseException:
            self._inside = False
            self.close()
            raise

    def _next(self):
        """The arm of the next step, whose block has begun."""
        if not self._rows:
            swap._swapped.close_between_steps()
        if not self._plan:
            self._round += 1
            self._plan = [arm for arm in self._random.choice(ORDERS) for _ in range(self._block)]
        arm = self._plan.pop(0)
        if arm == self._arm:
            self._check()
            return arm
        self._end()
        self._check()
        self._arm = arm
        if arm == "swapped":
            self._before = swap.stats()
            self._entered.enter_context(self._use)
            if self._pool:
                self._entered.enter_context(memory.pool())
        _reset_peak_memory()
        return arm

    def _check(self):
        """That nothing is swapped but by the block that goes on."""
        swapped = self._arm == "swapped"
        if swap._swapped.names != (self._use.names if swapped else frozenset()):
            raise RuntimeError(
                f"rusttorch.AB compares with stock, but ops are swapped in already, by {swap._swapped.holders()}; "
                "rusttorch.disable(force=True) takes them out whoever holds them"
            )
        if self._pool and memory.is_enabled() and not swapped:
            raise RuntimeError("rusttorch.AB compares with stock, but the pool is enabled already: call disable_pool()")

    def _end(self):
        """Ends the block that goes on."""
        arm, self._arm = self._arm, None
        self._entered.close()
        if arm is not None:
            self._peak[arm] = max(self._peak[arm], _peak_memory())
        if arm == "swapped":
            self._ran = swap.added(self._ran, swap.difference(swap.stats(), self._before))

    def close(self):
        """Leaves the dispatcher as it was, and the round unfinished. report() does so too; further steps may follow.

        Raises RuntimeError within a step.
        """
        with swap._swapped.lock:
            if self._inside:
                raise RuntimeError("rusttorch.AB: close(), report() and profile() are for between two steps")
            swap._swapped.between_steps.discard(self)
            self._plan = []
            self._end()

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
            raise RuntimeError(
                f"rusttorch.AB needs at least {need} steps, and has {len(self._rows)}: {len(whole)} whole rounds after "
                "the warm-up (what ends swapping within a round leaves it unfinished)"
            )
        column = lambda arm, i: np.array([[row[i] for row in r[arm]] for r in whole], dtype=float)  # noqa: E731
        seconds = {arm: column(arm, 0) for arm in ARMS}
        ratios = np.median(seconds["stock"], axis=1) / np.median(seconds["swapped"], axis=1)
        samples = {arm: column(arm, 1) for arm in ARMS}
        per_second = {
            arm: float(samples[arm].sum() / seconds[arm][samples[arm] > 0].sum()) for arm in ARMS if samples[arm].any()
        }
        differences = _loss_differences(whole)
        compared = len(differences) >= 2
        losses = {arm: [row[4] for row in self._rows if row[1] == arm and row[4] is not None] for arm in ARMS}
        return Report(
            rounds=len(whole),
            median={arm: float(np.median(seconds[arm])) for arm in ARMS},
            speedup=float(np.median(ratios)),
            interval=_bootstrap(ratios, np.median, confidence, resamples),
            confidence=confidence,
            per_second=per_second if len(per_second) == len(ARMS) else None,
            loss_difference=float(np.mean(differences)) if compared else None,
            loss_interval=_bootstrap(differences, np.mean, LOSS_CONFIDENCE, 10 * resamples) if compared else None,
            loss_rounds=len(differences),
            losses={arm: len(losses[arm]) for arm in ARMS},
            not_finite={arm: sum(not math.isfinite(loss) for loss in losses[arm]) for arm in ARMS},
            peak_memory=dict(self._peak),
            ran=dict(self._ran),
            pool=self._pool,
        )

    def times(self, arm):
        """The step times of an arm ("stock" or "swapped") in seconds, in order, without the warm-up."""
        if arm not in ARMS:
            raise ValueError(f"times: expected an arm of {ARMS}, got {arm!r}")
        return [row[2] for row in self._rows if row[1] == arm and row[0] >= self._warmup]

    def profile(self, step, steps=10):
        """How much of step() each swapped op takes in both arms: a Profile, {op: {arm: (calls, seconds) per step}},
        printable.

        step is called `steps` times per arm under torch.profiler (and once before, unmeasured), in turn; the times
        hold the profiler's own cost per call.
        """
        self.close()
        self._check()
        profiler = Profiler(*self._names, exclude=self._exclude, pool=self._pool, steps=steps)
        for _ in range(2 * (steps + 1)):
            with profiler.step():
                step()
        return profiler.report()


def _loss_differences(rounds):
    """Swapped's mean loss less stock's, relative to their size, of each round where both are given and finite."""
    differences = []
    for arms in rounds:
        given = [[loss for _, _, loss in arms[arm] if loss is not None] for arm in ARMS]
        if all(given) and all(map(math.isfinite, given[0] + given[1])):
            stock, swapped = (sum(losses) / len(losses) for losses in given)
            size = max(abs(stock) + abs(swapped), np.finfo(float).tiny) / 2
            differences.append((swapped - stock) / size)
    return differences


def _bootstrap(values, statistic, confidence, resamples):
    """Percentile interval of a statistic (B. Efron, Bootstrap Methods, 1979); the same for the same values."""
    draws = np.random.default_rng(0).choice(values, size=(resamples, len(values)))
    tail = (1 - confidence) / 2
    low, high = np.quantile(statistic(draws, axis=1), [tail, 1 - tail])
    return float(low), float(high)


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
