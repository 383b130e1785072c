"""A/B inside a training loop: what the swap is worth, measured on the steps themselves."""

import contextlib
import itertools
import math
import random
import resource
import sys
import time
import weakref
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from . import memory, swap
from .profiler import ARMS, Profiler

OPS = "ops"  # beside the arms, where swapped steps have the pool: the ops without it
SHOWN = 10  # ops in a report


class Ratio(NamedTuple):
    """Of the times of two kinds of steps: the median over rounds, and its confidence interval."""

    ratio: float
    interval: tuple[float, float]

    def __str__(self):
        return f"{self.ratio:.3f}x   [{self.interval[0]:.3f}, {self.interval[1]:.3f}]"


@dataclass
class Report:
    """What an AB found. Times are seconds per step; print it for a summary."""

    rounds: int
    left_out: int  # steps just after an exchange of kernels
    median: dict[str, float]  # arm -> median step time
    speedup: float  # median over rounds of stock's time over swapped's
    interval: tuple[float, float]  # its confidence interval
    parts: dict[str, Ratio] | None  # stock over the "ops" alone; and those over both, what the "pool" adds
    by_total: Ratio  # as speedup, but of the mean of a round's steps, not of their median
    confidence: float  # of every interval
    few: bool  # rounds: too few for that, so that the ratios' intervals are their range
    per_second: dict[str, float] | None  # arm -> samples (or tokens) per second
    loss_difference: float | None  # mean over loss_rounds of swapped's loss less stock's, relative to their mean
    loss_interval: tuple[float, float] | None  # its confidence interval (Student's)
    loss_rounds: int  # rounds in which both arms' losses are given and finite
    rounding: float  # of the losses' dtype, relative: what is within 8 of it is no difference
    losses: dict[str, int]  # arm -> steps that gave a loss, those of the warm-up too, those left out not
    not_finite: dict[str, int]  # arm -> such steps whose loss was NaN or infinite
    peak_memory: dict[str, int]  # arm -> bytes
    ran: dict[str, swap.OpStats]  # what the swapped ops did in the swapped steps
    pool: bool  # whether the swapped steps had the memory pool too
    compiled: bool  # whether torch.compile made kernels, which the swap does not reach
    asked: dict[str, str]  # how use() is given these ops: with the "pool", and without

    @property
    def losses_agree(self):
        """Whether the losses differ by rounding only, or the interval of their difference holds 0; and no arm alone has
        losses that are not finite.

        None where it cannot be said: losses of both arms compared in fewer than 2 rounds, or losses of both that are
        not finite. (The arms train one model: once its weights are NaN, both arms' losses are, whoever made them so.)
        """
        broken = [n > 0 for n in self.not_finite.values()]
        if any(broken) and not all(broken):
            return False
        rounded = 8 * self.rounding
        if self.loss_interval and not self.loss_interval[0] - rounded <= 0 <= self.loss_interval[1] + rounded:
            return False
        return True if self.loss_interval and not any(broken) else None

    @property
    def uneven(self):
        """Whether some steps do what others do not, so that their median is not what a step takes: by a twentieth."""
        (low, high), (lowest, highest) = self.interval, self.by_total.interval
        apart = high < lowest or highest < low
        return apart and not 0.95 < self.by_total.ratio / self.speedup < 1.05

    def _losses(self):
        said = []
        if self.loss_interval:
            low, high = self.loss_interval
            some = "" if self.loss_rounds == self.rounds else f" in {self.loss_rounds} rounds"
            said.append(f"swapped is {self.loss_difference:+.2%} from stock{some}   [{low:+.2%}, {high:+.2%}]")
        else:
            said.append("given by " + " and ".join(f"{self.losses[arm]} {arm}" for arm in ARMS) + " steps")
        if any(self.not_finite.values()):
            said.append("not finite in " + " and ".join(f"{self.not_finite[arm]} {arm}" for arm in ARMS) + " steps")
        return {True: "agree: ", False: "DIFFER: ", None: "not compared: "}[self.losses_agree] + "; ".join(said)

    def advice(self):
        """What to do next, in words."""
        if self.losses_agree is False:
            return "the losses differ: leave it out, and report that"
        if self.uneven:
            return "steps are not alike: let a step be one optimizer step, and measure again"
        if self.few:
            return f"measure more steps: {self.rounds} rounds tell little"
        low, high = self.interval
        if self.parts:
            (ops_low, ops_high), (pool_low, pool_high) = (self.parts[name].interval for name in (OPS, "pool"))
            if ops_high < 1 < pool_low:
                return "the pool is faster, the ops are not: rusttorch.memory.enable_pool()"
            if pool_high < 1 < ops_low:
                return f"the ops are faster, the pool is not: rusttorch.enable({self.asked[OPS]})"
        if high < 1:
            return "slower here: leave it out"
        if low <= 1:
            return "no difference is seen: leave it out, or measure more steps"
        return f"faster: rusttorch.enable({self.asked['pool' if self.pool else OPS]})"

    def __str__(self):
        lines = [
            f"rusttorch A/B over {self.rounds} rounds, {self.confidence:.0%} intervals in brackets",
            f"  speed-up      {Ratio(self.speedup, self.interval)}",
            *(
                f"    {'ops alone' if name == OPS else 'the pool':11s} {part}"
                for name, part in (self.parts or {}).items()
            ),
            "  median step   " + "   ".join(f"{arm} {self.median[arm] * 1e3:.3f} ms" for arm in ARMS),
        ]
        if self.uneven:
            lines.append(f"  UNEVEN STEPS  by their mean: {self.by_total}")
        if self.per_second:
            lines.append("  per second    " + "   ".join(f"{arm} {self.per_second[arm]:,.0f}" for arm in ARMS))
        if any(self.losses.values()):
            lines.append("  losses        " + self._losses())
        kept = " (and what the pool keeps)" if self.pool else ""
        lines.append(
            "  peak memory   " + "   ".join(f"{arm} {self.peak_memory[arm] / 2**20:.1f} MiB" for arm in ARMS) + kept
        )
        if self.left_out:
            lines.append(f"  left out      {self.left_out} steps just after kernels were exchanged")
        if self.compiled:
            lines.append("  compiled      torch.compile made kernels of its own here, which the swap does not reach")
        lines.append("  next          " + self.advice())
        lines.append("  ops           calls here / handed to stock, of which most first")
        # An op's own forward, which it calls for its derivative's sake, is counted with it.
        of_another = {f"{name}_forward" for name in self.ran}
        whole = {name: counts for name, counts in self.ran.items() if name not in of_another}
        calls = sorted(whole.items(), key=lambda item: (-sum(item[1].handed.values()), -item[1].ran))
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

    A step is all that one optimizer step takes: where gradients are accumulated, its micro-batches together. Steps come
    in rounds of blocks of `block` steps: stock, swapped, swapped, stock or the reverse, at random, so that a trend hits
    both arms alike. Where swapped steps have the pool, there are blocks of the ops alone as well (stock, ops, swapped,
    swapped, ops, stock, in any order), which say what each of the two is worth. A round gives one ratio, of its arms'
    median times. The first `warmup` rounds are left out, and so are the steps that end within `settle` seconds after an
    exchange of kernels, when caches are cold: as many after each as were needed after any, so that the arms stay
    interleaved. Kernels are exchanged between blocks, outside the timed part; between the steps of a block nothing is
    done. Both arms train the same model, so their losses are compared round by round: the mean difference should not
    differ from 0. Rounds in which an arm gave none are left out.

    Between two steps of a block the ops stay swapped in. They are taken out by the other arm's block, an exception in
    a step, close(), report(), rusttorch.disable(), another AB's first step, the end of `with rusttorch.AB() as ab:`,
    and when the AB goes (del ab).

    names, exclude and pool choose what is swapped as in rusttorch.use(). step.arm is "stock" or "swapped", for a loop
    that gives each its own model. Raises RuntimeError if ops are swapped already; if the pool is enabled already, where
    swapped steps have it; for a step within a step or beside one of another AB; for use() and enable() within a step.
    """

    def __init__(self, *names, exclude=(), pool=None, block=4, warmup=1, settle=0.008, seed=0):
        self._opened = []  # by the block that goes on
        weakref.finalize(self, _end_all, self._opened)
        if block < 1 or warmup < 0:
            raise ValueError(f"block must be at least 1 and warmup at least 0, got {block} and {warmup}")
        swapped = swap.requested(names, exclude, pool)  # an unknown name is an error now, not at the first step
        self._swaps = {"swapped": swapped}
        if swapped.pool:
            self._swaps[OPS] = swapped._replace(pool=False)
        self._given = names, {"exclude": exclude, "pool": pool}
        self._asked = {OPS: _arguments(names, exclude, False), "pool": _arguments(names, exclude, True)}
        self._orders = [half + half[::-1] for half in itertools.permutations(("stock", *self._swaps))]
        self._block, self._warmup, self._settle = block, warmup, settle
        self._random = random.Random(seed)
        self._blocks = []  # to come in this round
        self._left = 0  # steps to come in the block that goes on
        self._kind = None  # of that block: "stock", "swapped" or OPS
        self._exchanged = 0.0  # when that was, by the clock
        self._settling = 0  # steps since, which are left out
        self._most_settling = 0  # after any exchange
        self._inside = False  # a step
        self._rows = []  # round, kind of block, seconds, samples, loss
        self._left_out = 0
        self._rounding = 0.0  # of the losses
        self._round = -1
        self._peak = dict.fromkeys(ARMS, 0)
        self._before = self._ran = {}

    @property
    def is_swapped(self):
        """Whether ops are swapped in by the block that goes on."""
        return self._kind in self._swaps

    def __repr__(self):
        return f"rusttorch.AB({len(self._swaps['swapped'].names)} ops, {len(self._rows)} steps so far)"

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
                swap._swapped.leave_steps_alone()
                self._begin()
                swap._swapped.stepping = self
            step = Step("swapped" if self.is_swapped else "stock")
            _synchronize()
            start = time.perf_counter()
            yield step
            _synchronize()
            end = time.perf_counter()
            loss = None if step.loss is None else self._number(step.loss)
            if end - self._exchanged < self._settle or self._settling < self._most_settling:
                self._left_out += 1
                self._settling += 1
                self._most_settling = max(self._most_settling, self._settling)
            else:
                self._rows.append((self._round, self._kind, end - start, samples, loss))
                self._left -= 1
                self._settling = self._most_settling  # until the next exchange
            with swap._swapped.lock:
                self._leave()
                swap._swapped.between_steps.add(self)
        except BaseException:
            self._leave()
            self.close()
            raise

    def _leave(self):
        """A step."""
        self._inside = False
        if swap._swapped.stepping is self:
            swap._swapped.stepping = None

    def _number(self, loss):
        loss = torch.as_tensor(loss).detach()
        if loss.is_floating_point():
            self._rounding = max(self._rounding, torch.finfo(loss.dtype).eps)
        return float(loss)

    def _begin(self):
        """A step: of the block that goes on, or of the next."""
        if self._round < 0:
            swap._swapped.close_between_steps()
        if self._left <= 0:
            self._next_block()
        self._check()

    def _next_block(self):
        if not self._blocks:
            self._round += 1
            self._blocks = list(self._random.choice(self._orders))
        kind = self._blocks.pop(0)
        self._left = self._block
        if kind != self._kind:
            self._end()
            self._check()
            self._before, self._kind = swap.stats(), kind
            if self.is_swapped:
                # Known before it is opened, and until it has ended: Ctrl-C may come at any time.
                self._opened.append(swap.Opened(self._swaps[kind]))
                swap._swapped.begin(self._opened[-1])
            _reset_peak_memory()
            self._settling = 0
            self._exchanged = time.perf_counter()

    def _check(self):
        """That nothing is swapped but by the block that goes on."""
        asked = self._swaps.get(self._kind)
        wanted, now = asked.names if asked else frozenset(), swap._swapped.now.names
        if now - wanted:
            raise RuntimeError(
                f"rusttorch.AB compares with stock, but ops are swapped in already, by {swap._swapped.holders(self)}; "
                "rusttorch.disable(force=True) takes them out whoever holds them"
            )
        if OPS in self._swaps and memory.is_enabled() and self._kind != "swapped":
            raise RuntimeError("rusttorch.AB compares with stock, but the pool is enabled already: call disable_pool()")
        if wanted - now or (self._kind == "swapped" and asked.pool and not memory.is_enabled()):
            raise RuntimeError("rusttorch.AB: the ops of its block, or the pool, were taken out by somebody else")

    def _end(self):
        """Ends the block that goes on."""
        kind, swapped, self._kind = self._kind, self.is_swapped, None
        _end_all(self._opened)
        if kind in ARMS:
            self._peak[kind] = max(self._peak[kind], _peak_memory())
        if swapped:
            self._ran = swap.added(self._ran, swap.difference(swap.stats(), self._before))

    def close(self):
        """Leaves the dispatcher as it was, and the round unfinished. report() does so too; further steps may follow.

        Raises RuntimeError within a step.
        """
        with swap._swapped.lock:
            if self._inside:
                raise RuntimeError("rusttorch.AB: close(), report() and profile() are for between two steps")
            swap._swapped.between_steps.discard(self)
            self._blocks, self._left = [], 0
            self._end()

    def report(self, confidence=0.99):
        """The Report so far. Raises RuntimeError before warmup + 2 rounds are complete."""
        self.close()
        kinds = ("stock", *self._swaps)
        rounds = {}
        for number, kind, *row in self._rows:
            if number >= self._warmup:
                rounds.setdefault(number, {}).setdefault(kind, []).append(row)
        whole = [r for r in rounds.values() if all(len(r.get(kind, ())) == 2 * self._block for kind in kinds)]
        if len(whole) < 2:
            need = 2 * len(kinds) * self._block * (self._warmup + 2)
            out = f", {self._left_out} left out just after an exchange of kernels" if self._left_out else ""
            raise RuntimeError(
                f"rusttorch.AB needs at least {need} steps, and has {len(self._rows)}{out}: {len(whole)} whole rounds "
                "after the warm-up (what ends swapping within a round leaves it unfinished)"
            )
        column = lambda kind, i: np.array([[row[i] for row in r[kind]] for r in whole], dtype=float)  # noqa: E731
        seconds = {kind: column(kind, 0) for kind in kinds}

        def ratio(over, under, of=np.median):
            ratios = of(seconds[over], axis=1) / of(seconds[under], axis=1)
            return Ratio(float(np.median(ratios)), _interval(ratios, confidence))

        speedup = ratio("stock", "swapped")
        samples = {arm: column(arm, 1) for arm in ARMS}
        per_second = {
            arm: float(samples[arm].sum() / seconds[arm][samples[arm] > 0].sum()) for arm in ARMS if samples[arm].any()
        }
        differences = _loss_differences(whole, self._swaps)
        compared = len(differences) >= 2
        losses = {
            arm: [loss for _, kind, _, _, loss in self._rows if kind in given and loss is not None]
            for arm, given in (("stock", ("stock",)), ("swapped", self._swaps))
        }
        return Report(
            rounds=len(whole),
            left_out=self._left_out,
            median={arm: float(np.median(seconds[arm])) for arm in ARMS},
            speedup=speedup.ratio,
            interval=speedup.interval,
            parts={OPS: ratio("stock", OPS), "pool": ratio(OPS, "swapped")} if OPS in kinds else None,
            by_total=ratio("stock", "swapped", np.mean),
            confidence=confidence,
            few=_rank(len(whole), confidence) == 0,
            per_second=per_second if len(per_second) == len(ARMS) else None,
            loss_difference=float(np.mean(differences)) if compared else None,
            loss_interval=_student(differences, confidence) if compared else None,
            loss_rounds=len(differences),
            rounding=self._rounding,
            losses={arm: len(losses[arm]) for arm in ARMS},
            not_finite={arm: sum(not math.isfinite(loss) for loss in losses[arm]) for arm in ARMS},
            peak_memory=dict(self._peak),
            ran=dict(self._ran),
            pool=OPS in kinds,
            compiled=_has_compiled(),
            asked=self._asked,
        )

    def times(self, arm):
        """The step times of an arm ("stock" or "swapped") in seconds, in order: those that the speed-up is made of, and
        those of unfinished rounds."""
        if arm not in ARMS:
            raise ValueError(f"times: expected an arm of {ARMS}, got {arm!r}")
        return [seconds for number, kind, seconds, *_ in self._rows if kind == arm and number >= self._warmup]

    def profile(self, step, steps=10):
        """How much of step() each swapped op takes in both arms: a Profile, {op: {arm: (calls, seconds) per step}},
        printable.

        step is called `steps` times per arm under torch.profiler (and once before, unmeasured), in turn; the times
        hold the profiler's own cost per call.
        """
        self.close()
        self._check()
        names, options = self._given
        profiler = Profiler(swap.use(*names, **options), steps=steps)
        for _ in range(2 * (steps + 1)):
            with profiler.step():
                step()
        return profiler.report()


def _end_all(opened):
    while opened:
        swap._swapped.end(opened[-1])
        opened.pop()


def _arguments(names, exclude, pool):
    """Those of use() that give these ops, with the pool or without."""
    said = [repr(name) for name in names]
    said += [f"exclude={exclude!r}"] if exclude else []
    said += [f"pool={pool}"] if pool == bool(names) else []  # else it is so by itself
    return ", ".join(said)


def _loss_differences(rounds, swapped):
    """Swapped's mean loss less stock's, relative to their size, of each round where both are given and finite."""
    differences = []
    for kinds in rounds:
        rows = kinds["stock"], [row for kind in swapped for row in kinds[kind]]
        given = [[loss for _, _, loss in each if loss is not None] for each in rows]
        if all(given) and all(map(math.isfinite, given[0] + given[1])):
            stock, ours = (sum(losses) / len(losses) for losses in given)
            size = max(abs(stock) + abs(ours), np.finfo(float).tiny) / 2
            differences.append((ours - stock) / size)
    return differences


def _rank(n, confidence):
    """Which of the smallest, and of the largest, of n values bound the median's interval; 0 where there are too few."""
    beyond = np.cumsum([math.comb(n, k) for k in range(n)]) / 2**n  # the chance that at most k are below the median
    return int(np.searchsorted(beyond, (1 - confidence) / 2, side="right"))


def _interval(values, confidence):
    """Of the median, by the values' order alone (W. Thompson, 1936); of too few their range."""
    n, ordered = len(values), np.sort(values)
    k = max(_rank(n, confidence), 1)
    return float(ordered[k - 1]), float(ordered[n - k])


def _student(values, confidence):
    """Of the mean (Student, The Probable Error of a Mean, 1908): a few rounds whose differences happen to have one sign
    are no alarm. NumPy has Student's distribution, but not its quantiles: that is one of a million draws."""
    n = len(values)
    t = np.quantile(np.abs(np.random.default_rng(0).standard_t(n - 1, 1_000_000)), confidence)
    half = t * np.std(values, ddof=1) / math.sqrt(n)
    return float(np.mean(values) - half), float(np.mean(values) + half)


def _has_compiled():
    """Whether torch.compile has made code with inductor in this process."""
    if "torch._inductor.compile_fx" not in sys.modules:
        return False
    return torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0


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
