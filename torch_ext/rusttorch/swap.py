"""Putting rusttorch's kernels in the place of stock torch's, and taking them out again."""

import contextlib
import functools
import inspect
import os
import sys
import threading
import warnings
import weakref
from typing import NamedTuple

import torch

from . import _C, fused, memory
from .resolve import given, resolve


class Op(NamedTuple):
    """An op of torch.ops.rusttorch."""

    name: str  # with its overload: "add.Tensor"
    family: str  # "pointwise", "activation", ...
    swappable: bool  # whether it can take the place of the aten op of the same name


class OpStats(NamedTuple):
    """How an op's calls ended, since the start or the last reset_stats()."""

    ran: int  # calls that rusttorch's kernel took
    handed: dict[str, int]  # calls that stock's kernel took, by reason (stats() has them)


def ops():
    """Every op, as Op(name, family, swappable)."""
    return [Op(name, family, swappable) for family, name, swappable in _C.entries()]


def stats():
    """What ran and what was handed to stock: {name: OpStats(ran, handed)}, ops that were never called left out.

    handed is by reason:
    dtype   no kernel takes tensors of these dtypes, or of these together
    layout  no kernel takes these strides, or shapes that broadcast, or memory that is shared
    size    stock was measured to be faster at this size, or there is nothing to do
    option  an argument that no kernel has, tensors on several devices, or what stock refuses
    """
    return {name: OpStats(ran, handed) for name, (ran, handed) in _C.stats().items()}


def difference(after, before):
    """What was counted between two stats()."""
    counted = {}
    for name, (ran, handed) in after.items():
        old = before.get(name, OpStats(0, {}))
        new = {reason: n - old.handed.get(reason, 0) for reason, n in handed.items()}
        if ran - old.ran or any(new.values()):
            counted[name] = OpStats(ran - old.ran, {reason: n for reason, n in new.items() if n})
    return counted


def added(first, second):
    """Both counts of stats() together."""
    total = dict(first)
    for name, (ran, handed) in second.items():
        old = first.get(name, OpStats(0, {}))
        both = {reason: old.handed.get(reason, 0) + n for reason, n in handed.items()}
        total[name] = OpStats(old.ran + ran, {**old.handed, **both})
    return total


def reasons(handed, most=10):
    """{op: {reason: calls}} in words, those with most calls first."""
    said = sorted(((n, name, why) for name, by in handed.items() for why, n in by.items()), reverse=True)
    return ", ".join(f"{name} {n} ({why})" for n, name, why in said[:most]) + (", ..." if len(said) > most else "")


def reset_stats():
    """Sets every count to zero."""
    _C.reset_stats()


def _forget_dispatch(names):
    """Has torch look up ops' kernels anew: its tracers remember the key of one that may be gone, and call null."""
    # Looked up without torch's __getattr__, which would make what no tracer has seen.
    packets = vars(torch.ops.aten)
    for name in names:
        packet, _, overload = name.partition(".")
        if packet not in packets:
            continue
        seen = vars(packets[packet]).get(overload or "default")
        if seen:
            seen._dispatch_cache.clear()


def _uncompiled(f):
    """f, at which torch.compile breaks its graph; with fullgraph=True it says so.

    As torch.compiler.disable, which would import torch._dynamo even where nothing is ever compiled: that takes seconds.
    """
    reason = "it exchanges the dispatcher's kernels"

    @functools.wraps(f)
    def wrapper(*args, **kwargs):
        if "torch._dynamo" not in sys.modules:
            return f(*args, **kwargs)
        return torch.compiler.disable(f, reason=reason)(*args, **kwargs)

    wrapper._torchdynamo_disable = True
    wrapper._torchdynamo_disable_msg = reason
    return wrapper


class Swap(NamedTuple):
    """What an enable() or a use() asks for."""

    names: frozenset[str]
    pool: bool = False


NOTHING = Swap(frozenset())


class Opened:
    """One opening of a use() or an AB's block, which others may ask for the same as."""

    def __init__(self, swap):
        self.swap = swap


def requested(names, exclude, pool):
    """The Swap that the arguments of enable() and use() ask for."""
    names = given(names)
    if pool is None:
        pool = not names and memory.is_available()
        if not names and not pool:
            warnings.warn("rusttorch: without the memory pool: another allocator is in force", stacklevel=4)
    return Swap(resolve(names, exclude), bool(pool))


class _Swapped:
    """What is swapped now: what enable() asked for, and what each open use() asks for."""

    def __init__(self):
        self.lock = threading.RLock()  # a thread may come here again: by the garbage collector, which ends an AB
        self.enabled = NOTHING
        self.used = []  # Opened
        self.now = NOTHING
        self.through = True  # with the exchange to that
        self.between_steps = weakref.WeakSet()  # of AB
        self.stepping = None  # an AB within a step, which no other may change the kernels of

    def enable(self, swap):
        with self.lock:
            self.leave_steps_alone()
            before = self.enabled
            self.enabled = Swap(before.names | swap.names, before.pool or swap.pool)
            try:
                self._apply(swap.pool)
            except BaseException:
                self.enabled = before
                self._apply()
                raise

    def disable(self):
        with self.lock:
            self.enabled = NOTHING
            self._apply()

    def begin(self, opened):
        """Which is not open if this raises (Ctrl-C, say)."""
        with self.lock:
            self.leave_steps_alone()
            self.used.append(opened)
            try:
                self._apply(opened.swap.pool)
            except BaseException:
                self.end(opened)
                raise

    def end(self, opened):
        """Once or again: who is interrupted here ends it later."""
        with self.lock:
            if opened in self.used:  # else disable(force=True) came before
                self.used.remove(opened)
            self._apply()

    def end_all(self):
        with self.lock:
            self.used.clear()
            self.stepping = None
            self._apply()

    def leave_steps_alone(self):
        if self.stepping is not None:
            raise RuntimeError(
                "rusttorch: within a step of an AB, which gives each step its kernels itself, there is no use(), no "
                "enable(), and no step of another AB"
            )

    def holders(self, ab=None):
        """Who has ops swapped in, but for an AB that asks, in words."""
        said = [f"enable() ({len(self.enabled.names)} ops)"] if self.enabled.names else []
        between = [each for each in self.between_steps if each is not ab and each.is_swapped]
        if between:
            said.append("another AB, between two steps of a block")
        others = len(self.used) - len(between) - bool(ab and ab.is_swapped)
        if others > 0:
            said.append(f"{others} open use()")
        return " and ".join(said) or "nobody"

    def _wanted(self):
        """What is asked for by all together."""
        everybody = [self.enabled, *(opened.swap for opened in self.used)]
        return Swap(frozenset().union(*(each.names for each in everybody)), any(each.pool for each in everybody))

    def _apply(self, pool=False):
        """Swaps what is asked for: again where that has changed meanwhile, and where Ctrl-C came in between.

        pool: asked for just now, which is done first, for it may be refused.
        """
        if pool:
            memory.claim(self)
        try:
            self._exchange()
        except KeyboardInterrupt:
            self._exchange()
            raise

    def _exchange(self):
        while not self.through or self.now != self._wanted():
            wanted = self._wanted()
            self.through = False
            if not wanted.pool:
                memory.release(self)
            _C.set_swapped(sorted(wanted.names))
            _forget_dispatch(wanted.names ^ self.now.names)
            fused.reach(wanted.names)
            self.now = wanted
            self.through = True

    def any(self):
        return bool(self.now.names)

    def close_between_steps(self):
        """Ends what ABs keep swapped in between two of their steps."""
        with self.lock:
            for ab in list(self.between_steps):
                ab.close()

    def after_fork(self):
        """In the child: no step goes on there."""
        self.stepping = None
        self.lock.release()


_swapped = _Swapped()

# A child of a process in which another thread swaps finds the lock open, and the dispatcher's own.
os.register_at_fork(
    before=_swapped.lock.acquire, after_in_parent=_swapped.lock.release, after_in_child=_swapped.after_fork
)


@_uncompiled
def enable(*names, exclude=(), pool=None):
    """Swaps ops in for stock torch, for every thread, until disable().

    names are aten op names ("mish", "mish_backward", "add.Tensor"; without an overload, all of them, in-place and
    out= forms included) or family names ("activation"), or lists of such; none means every op. Those of exclude are
    left out. pool: whether the memory pool comes too; by default it does if no names are given (exclude may be), and
    where another library's allocator is in force a warning says that it does not. A call that another thread makes
    meanwhile runs either kernel. torch.compile breaks its graph there, as at disable() and use().

    Raises ValueError for a name that does not exist, TypeError for what is no name, RuntimeError within a step of an
    AB, or if the pool is asked for where it cannot be.
    """
    _swapped.enable(requested(names, exclude, pool))


@_uncompiled
def disable(force=False):
    """Takes out what enable() put in, and what an AB keeps swapped in between two of its steps.

    What an open use() asks for stays until it ends, or goes too with force=True.
    """
    _swapped.close_between_steps()
    _swapped.disable()
    if force:
        _swapped.end_all()


def is_enabled():
    """Whether any op is swapped in, by whomever."""
    return _swapped.any()


class use(contextlib.ContextDecorator):
    """A with block (or a decorator) in which ops are swapped in, and the memory pool, as by enable().

    Blocks may be nested and may overlap across threads: an op is swapped while any open block asks for it. At the
    end of the last one, by return or by exception, the dispatcher is as it was. Entering and leaving a block takes
    a millisecond for all ops: put it around a loop, not into it.
    """

    def __new__(cls, *names, exclude=(), pool=None) -> "use":
        if len(names) == 1 and inspect.isfunction(names[0]) and not names[0].__module__.startswith("torch"):
            return cls(exclude=exclude, pool=pool)(names[0])  # @use without parentheses
        return super().__new__(cls)

    @_uncompiled
    def __init__(self, *names, exclude=(), pool=None):
        self._swap = requested(names, exclude, pool)
        self._opened = []  # which are alike: any of them may be ended first

    @property
    def names(self):
        """The ops, with their overloads."""
        return self._swap.names

    @property
    def pool(self):
        """Whether the pool comes too."""
        return self._swap.pool

    def __repr__(self):
        return f"rusttorch.use({len(self.names)} ops{', pool' * self.pool})"

    @_uncompiled
    def __enter__(self):
        opened = Opened(self._swap)
        _swapped.begin(opened)
        self._opened.append(opened)
        return self

    @_uncompiled
    def __exit__(self, *exception):
        if self._opened:
            _swapped.end(self._opened.pop())
