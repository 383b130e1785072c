"""Loader: batches of a dataset, made by threads."""

import contextlib
import hashlib
import os
import queue
import threading
import time
import weakref
from collections import deque
from concurrent.futures import CancelledError, Future

import numpy as np
import torch
from torch.utils.data import IterableDataset, Subset, TensorDataset, default_collate
from torch.utils.data._utils.collate import collate, collate_tensor_fn, default_collate_fn_map
from torch.utils.data._utils.pin_memory import pin_memory as pinned

from .. import _C

_data = _C.data
_PATIENCE = 5  # seconds that the end of an iteration waits for threads that are busy with a sample


class Loader:
    """The batches of a map-style dataset, made by threads while the one before is worked on. Iterated again, it goes
    through the next epoch.

    dataset: has __len__, and __getitem__ or __getitems__, which is given a batch's indices at once. A TensorDataset's
        batches are taken by one index_select each.
    batch_size: samples in a batch. The last has what is left, unless drop_last.
    shuffle, seed: each epoch has an order of its own, which is DistributedSampler's with that seed.
    workers: threads. 0: batches are made where they are asked for. None: as many as there are CPUs, at most 8.
    prefetch: how many batches are made or ready, at most, while one is worked on. None: two for each worker.
    transform: transform(batch, generator=...) -> batch, after collate. The torch.Generator is the batch's own, seeded
        by seed, epoch and the batch's number.
    collate: what makes a batch of a list of samples. None: torch's default_collate.
    rank, world_size: which part of each epoch is this process's, as DistributedSampler divides it: all ranks have
        equally many batches. Where samples do not come out even, some come twice, or with drop_last some not at all.
    skip: exceptions, one or a tuple, by which a sample is left out. `skipped` has each one's index and what was wrong.
        A batch without samples is left out, after which ranks have not equally many.
    pin_memory: puts batches into pinned memory, where there is CUDA.

    Images of several sizes become a batch in transform: Loader(ImageFolder(root), 32, collate=list, transform=...),
    which is then given a list of samples (examples/images.py).

    The batches are the same whatever workers and prefetch are, if the dataset draws no random numbers: those from a
    generator that threads share come in any order, so they are drawn in transform.

    A batch is the caller's for as long as anything refers to its memory, a view or an array too. After that, and not
    before, new batches are made in it: what workers allocate is from rusttorch.memory's pool, enabled or not (which
    rusttorch.memory.empty_cache() empties at the end).

    Threads are worth it where the dataset gives up the GIL, as decoders, reading of files, and torch's operators do:
    nothing is pickled or copied from another process. Where it is Python that takes the time, threads take turns, and
    torch's DataLoader, which has processes, is faster. Each worker's operators run on one thread, with gradients,
    inference mode and the CPU's autocast as they are where the iteration begins.

    A forked process can iterate, but not go on with an iteration of its parent's, whose threads it does not have: that
    is a RuntimeError.

    An exception in a worker is raised where the batch was asked for, with its traceback and a note of which sample it
    was. With the iteration the threads end, by break, exception or Ctrl-C too, each after the sample it is at.

    state_dict() says how far the last iteration came: after load_state_dict() the next one goes on with the batch after
    that, or with none, where the last batch was delivered but the iteration not ended. It is the same on all ranks.
    """

    def __init__(
        self,
        dataset,
        batch_size,
        *,
        shuffle=False,
        seed=0,
        workers=None,
        prefetch=None,
        drop_last=False,
        transform=None,
        collate=None,
        rank=0,
        world_size=1,
        skip=(),
        pin_memory=False,
    ):
        workers = min(8, len(os.sched_getaffinity(0))) if workers is None else workers
        prefetch = 2 * workers if prefetch is None else prefetch
        if isinstance(dataset, IterableDataset):
            raise TypeError("Loader: expected a map-style dataset, got an IterableDataset")
        for name, value, least in (("batch_size", batch_size, 1), ("workers", workers, 0), ("prefetch", prefetch, 0)):
            if not isinstance(value, (int, np.integer)) or value < least:
                raise ValueError(f"Loader: {name} must be an int of at least {least}, got {value!r}")
        if not isinstance(seed, (int, np.integer)) or not -(2**63) <= seed < 2**63:
            raise ValueError(f"Loader: seed must be an int of 64 bits, got {seed!r}")
        if rank not in range(world_size):
            raise ValueError(f"Loader: rank must be from 0 to world_size - 1, got {rank} of {world_size}")
        skip = skip if isinstance(skip, tuple) else (skip,)
        if not all(isinstance(kind, type) and issubclass(kind, Exception) for kind in skip):
            raise ValueError(f"Loader: skip must be an exception's class, or a tuple of them, got {skip!r}")
        self.dataset, self.batch_size, self.shuffle, self.seed = dataset, int(batch_size), shuffle, int(seed)
        self.workers, self.prefetch, self.drop_last = int(workers), int(prefetch), drop_last
        self.transform, self.collate = transform, collate
        self.rank, self.world_size = rank, world_size
        self.skip, self.pin_memory = skip, pin_memory
        self.skipped = {}  # of each sample that was left out, by its index: what was wrong
        self._next = self._reached = _Position(0, 0)

    def __len__(self):
        """Batches in an epoch, those counted that are left out."""
        samples = self._samples()
        return samples // self.batch_size if self.drop_last else -(-samples // self.batch_size)

    def _samples(self):
        """Of an epoch, on each rank."""
        n = len(self.dataset)
        return n // self.world_size if self.drop_last else -(-n // self.world_size)

    def __iter__(self):
        position = self._reached = self._next
        self._next = _Position(position.epoch + 1, 0)
        return self._batches(position)

    def set_epoch(self, epoch):
        """The next iteration is of this epoch: of its rest, if load_state_dict() said so."""
        if epoch != self._next.epoch:
            self._next = self._reached = _Position(epoch, 0)

    def state_dict(self):
        """The epoch, how many of its batches were delivered, and what the order depends on."""
        return {"epoch": self._reached.epoch, "batch": self._reached.batch, **self._order_depends_on()}

    def load_state_dict(self, state):
        """The next iteration goes on after what state says. Raises ValueError where its order was another."""
        missing = self.state_dict().keys() - state.keys()
        if missing:
            raise ValueError(f"Loader: the state has no {', '.join(sorted(missing))}")
        for name, mine in self._order_depends_on().items():
            if state[name] != mine:
                raise ValueError(f"Loader: the state is of {name} {state[name]!r}, but this Loader has {mine!r}")
        self._next = self._reached = _Position(state["epoch"], state["batch"])

    def _order_depends_on(self):
        names = ("seed", "shuffle", "batch_size", "drop_last", "world_size")
        return {"samples": len(self.dataset), **{name: getattr(self, name) for name in names}}

    def _order(self, epoch):
        n = len(self.dataset)
        mine = torch.arange(self._samples(), device="cpu") * self.world_size + self.rank
        mine %= max(1, n)  # the last ranks' last begin anew
        if not self.shuffle:
            return mine
        return torch.randperm(n, generator=torch.Generator().manual_seed(self.seed + epoch), device="cpu")[mine]

    def _batches(self, position):
        order, size = self._order(position.epoch), self.batch_size
        tasks = ((position.epoch, k, order[k * size : (k + 1) * size]) for k in range(position.batch, len(self)))
        # (Not map(), which a StopIteration of the dataset's would end.)
        here = (self._make(task) for task in tasks)
        results = here if self.workers == 0 else _map(self._make, tasks, self.workers, self.prefetch)
        for batch, skipped in results:
            self.skipped.update(skipped)
            position.batch += 1
            if batch:
                yield batch.pop()  # and keeps no reference to it
        self._reached = self._next if self._reached is position else self._reached

    def _make(self, task, is_stopped=lambda: False):
        """A batch, in a list, or none; and what was left out."""
        epoch, number, indices = task
        skipped = {}
        try:
            if type(self.dataset) is TensorDataset and self.collate is None:
                batch = [tensor.index_select(0, indices) for tensor in self.dataset.tensors]
            else:
                samples = self._fetch(indices.tolist(), skipped, is_stopped)
                if len(skipped) == len(indices):
                    return [], skipped
                batch = (self.collate or _collate)(samples)
            if self.transform is not None:
                # The first batches of all ranks, then the second: each has a number.
                seed = repr((self.seed, epoch, number * self.world_size + self.rank)).encode()
                seed = int.from_bytes(hashlib.blake2b(seed, digest_size=8).digest(), "little")
                batch = self.transform(batch, generator=torch.Generator().manual_seed(seed))
            if self.pin_memory and torch.cuda.is_available():
                batch = pinned(batch)
        except Exception as error:
            _note(error, f"in batch {number} of epoch {epoch} of a Loader")
            raise
        return [batch], skipped

    def _fetch(self, indices, skipped, is_stopped):
        # (A Subset's takes samples one by one, if what it is of does, and does not say which one failed.)
        if hasattr(self.dataset, "__getitems__") and type(self.dataset) is not Subset:
            try:
                return self.dataset.__getitems__(indices)
            except self.skip:
                pass  # which it was is found one by one
        samples = []
        for index in indices:
            if is_stopped():
                raise CancelledError
            try:
                samples.append(self.dataset[index])
            except self.skip as error:
                skipped[index] = f"{type(error).__name__}: {error}"
            except Exception as error:
                _note(error, f"in dataset[{index}]")
                raise
        return samples


def _collate(samples):
    """default_collate(samples), in which decoded images are stacked by images_to_batch: torch.stack takes 2.5
    times as long where the channels of a pixel are side by side."""
    if default_collate_fn_map.get(torch.Tensor) is not collate_tensor_fn:
        return default_collate(samples)
    return collate(samples, collate_fn_map={**default_collate_fn_map, torch.Tensor: _stacked})


def _stacked(tensors, *, collate_fn_map):
    shape = tensors[0].shape
    if len(shape) == 3 and shape[0] == 3 and shape.numel() and all(_is_picture(t, shape) for t in tensors):
        pictures = [tensor.permute(1, 2, 0) for tensor in tensors]
        return torch.ops.rusttorch.images_to_batch(pictures, shape[1:], dtype=torch.uint8)
    return collate_tensor_fn(tensors, collate_fn_map=collate_fn_map)


def _is_picture(tensor, shape):
    """[channels, height, width] of bytes, as a view of [height, width, channels]."""
    if type(tensor) is not torch.Tensor or tensor.dtype != torch.uint8 or tensor.layout != torch.strided:
        return False
    channels, _, width = shape
    return tensor.is_cpu and tensor.shape == shape and tensor.stride() == (1, channels * width, channels)


class _Position:
    """In the epochs: how many batches of one were delivered."""

    def __init__(self, epoch, batch):
        self.epoch, self.batch = epoch, batch


def _note(error, text):
    """error.add_note(text), which Python 3.10 does not have, and does not print."""
    error.__notes__ = [*getattr(error, "__notes__", ()), text]


# What torchdata's nodes or SPDL's pipeline would do. In its place they make 0.96 and 0.64 times as many JPEGs a second,
# and 0.37 and 0.22 times as many tensors (two workers, two cores), so neither is worth a dependency.
def _map(f, tasks, workers, prefetch):
    """f(task, is_stopped) of all tasks in their order, by threads, which are so many tasks ahead at most."""
    threads = _Threads(workers)
    pending = deque()
    try:
        for task in tasks:
            pending.append(threads.submit(f, task))
            if len(pending) > prefetch:
                yield threads.result(pending.popleft())
        while pending:
            yield threads.result(pending.popleft())
    finally:
        threads.end()


class _Threads:
    """Threads that do what is submitted, in that order, until end(), which cancels what is left.

    concurrent.futures would finish all of that before Python exits. These are daemons, for which Python does not wait
    before it calls end().
    """

    def __init__(self, count):
        self._process = os.getpid()
        self._stopped = threading.Event()
        self._tasks = queue.SimpleQueue()
        device = torch.cuda.current_device() if torch.cuda.is_initialized() else None
        arguments = (self._tasks, device, _modes())
        threads = [
            threading.Thread(target=_work, args=arguments, name=f"Loader-{k}", daemon=True) for k in range(count)
        ]
        for thread in threads:
            thread.start()
        self.end = weakref.finalize(self, _end, self._stopped, self._tasks, threads)

    def submit(self, f, task):
        future = Future()
        self._tasks.put((future, f, task, self._stopped.is_set))
        return future

    def result(self, future):
        if os.getpid() != self._process:  # in which nobody would make it
            raise RuntimeError("Loader: a forked process cannot go on with its parent's iteration, only begin its own")
        try:
            return future.result()
        finally:
            del future  # which the traceback would keep


def _modes():
    """What a thread has of its own, as it is in this one: f() makes a context of it in another."""
    inference, grad = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
    autocast = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")

    @contextlib.contextmanager
    def modes():
        with (
            torch.inference_mode(inference),
            torch.set_grad_enabled(grad),
            torch.autocast("cpu", autocast[1], enabled=autocast[0]),
        ):
            yield

    return modes


def _work(tasks, device, modes):
    _data.begin_worker()
    if device is not None:
        torch.cuda.set_device(device)  # whose context pinned memory is of
    with modes():
        while _do(tasks.get()):
            pass


def _do(task):
    if task is None:
        return False
    future, f, *args = task
    try:
        future.set_result(f(*args))
    except BaseException as error:
        future.set_exception(error)
    finally:
        del task, future  # which the traceback would keep
    return True


def _end(stopped, tasks, threads):
    stopped.set()
    for _ in threads:
        tasks.put(None)
    until = time.monotonic() + _PATIENCE
    for thread in threads:
        if thread is not threading.current_thread():  # in which garbage was collected
            thread.join(max(0, until - time.monotonic()))
