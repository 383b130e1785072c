"""A pool for CPU memory: tensors' blocks are kept when they are freed, and handed out again.

Stock torch asks the C library, which gives large blocks back to the kernel; the kernel then hands out new pages, one
fault for each 4 KiB. A training step can take thousands of them.

rusttorch.enable() and rusttorch.use() of every op bring it with them. By itself:

    rusttorch.memory.enable_pool()
    train(model)
    rusttorch.memory.stats()

The pool holds about what was ever in use at a time: before it grows beyond a quarter more, it gives free pages back.
set_limit() bounds it. Tensors that were allocated before it was enabled, or after it was disabled, are stock's and stay
so; those of the pool are freed to it whenever they go. It may be shared by all threads. A process forked from this one
(a DataLoader's worker) has a copy. What a rusttorch.data.Loader's workers allocate is the pool's, enabled or not.
"""

import contextlib
from typing import NamedTuple

from . import _C


class Stats(NamedTuple):
    """Bytes, unless it says otherwise."""

    allocated: int  # asked for and not freed yet
    peak_allocated: int  # the most that was
    held: int  # what the pool has from the kernel
    allocations: int  # how many there were


_claims = set()  # by whom the pool is asked for


def _apply():
    """Switches the pool until it is as the claims say, which another thread may change meanwhile."""
    while is_enabled() != bool(_claims):
        _C.enable_pool(bool(_claims))


def claim(owner):
    """Has the pool in force until all who claimed it have released it, or disable_pool()."""
    _claims.add(owner)
    try:
        _apply()
    except BaseException:
        release(owner)
        raise


def release(owner):
    """Ends a claim, if it is one."""
    _claims.discard(owner)
    _apply()


def enable_pool():
    """From now on, CPU tensors' memory comes from the pool.

    Raises RuntimeError if another library has put an allocator of its own in force.
    """
    claim("enable_pool")


def disable_pool():
    """From now on, CPU tensors' memory comes from stock's allocator, whoever asked for the pool, until somebody asks
    again. What the pool holds stays until empty_cache()."""
    _claims.clear()
    _apply()


@contextlib.contextmanager
def pool():
    """A with block (or a decorator) in which CPU tensors' memory comes from the pool."""
    owner = object()
    claim(owner)
    try:
        yield
    finally:
        release(owner)


def is_available():
    """Whether the pool can be enabled: False where another library has put an allocator of its own in force."""
    return _C.pool_is_available()


def is_enabled():
    """Whether CPU tensors' memory comes from the pool."""
    return _C.pool_is_enabled()


def stats():
    """What the pool has handed out and what it holds, as Stats."""
    return Stats(*_C.pool_stats())


def empty_cache():
    """Gives the free pages that the pool holds back to the kernel."""
    _C.pool_empty_cache()


def set_limit(bytes):
    """The pool holds at most so many bytes; what does not fit is allocated by stock. None: no limit but its own.

    Free pages beyond it are given back at once. Raises ValueError if it is negative.
    """
    if bytes is not None and bytes < 0:
        raise ValueError(f"set_limit: expected a number of bytes that is not negative, got {bytes}")
    _C.pool_set_limit(2**64 - 1 if bytes is None else int(bytes))
