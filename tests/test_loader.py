"""Loader: which batches, in which order, whoever makes them; and how it ends."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
import weakref
from collections import Counter

import numpy as np
import pytest
import rusttorch
import torch
from rusttorch.data import Loader
from rusttorch.data import loader as loader_module
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    Subset,
    TensorDataset,
    default_collate,
)


class Squares(Dataset):
    """i and its square; bad where it is told so."""

    def __init__(self, n, bad=(), delay=0.0):
        self.n, self.bad, self.delay = n, bad, delay
        self.asked = Counter()

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        self.asked[i] += 1
        time.sleep(self.delay)
        if i in self.bad:
            raise OSError(f"cannot read image-{i}.jpeg")
        return torch.tensor([i, i * i]), i


class AtOnce(Squares):
    def __getitems__(self, indices):
        self.asked["batches"] += 1
        return [super(AtOnce, self).__getitem__(i) for i in indices]


def noise(batch, generator):
    return [*batch, torch.rand(len(batch[0]), generator=generator)]


def same(a, b):
    """Whether two lists of batches are the same to the bit."""
    return len(a) == len(b) and all(
        len(p) == len(q) and all(x.equal(y) for x, y in zip(p, q, strict=True)) for p, q in zip(a, b, strict=True)
    )


def seen(batches):
    return [i for batch in batches for i in batch[-1].tolist()]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert not workers()


def workers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("Loader-")]


# Which batches.


@pytest.mark.parametrize("workers", (0, 1, 2, 4))
@pytest.mark.parametrize("drop_last", (False, True))
def test_batches_are_those_of_torch_s_data_loader(workers, drop_last):
    for n in (0, 1, 7, 32, 50):
        ours = Loader(Squares(n), 8, workers=workers, drop_last=drop_last)
        stock = DataLoader(Squares(n), 8, drop_last=drop_last)
        assert len(ours) == len(stock)
        assert same(list(ours), list(stock))


@pytest.mark.parametrize("drop_last", (False, True))
@pytest.mark.parametrize("shuffle", (False, True))
@pytest.mark.parametrize("n", (0, 3, 16, 53))
def test_order_and_ranks_are_those_of_distributed_sampler(n, shuffle, drop_last):
    world_size = 5
    for epoch in (0, 3):
        everywhere = []
        for rank in range(world_size):
            sampler = DistributedSampler(range(n), world_size, rank, shuffle, seed=7, drop_last=drop_last)
            sampler.set_epoch(epoch)
            options = {"shuffle": shuffle, "seed": 7, "rank": rank, "world_size": world_size, "drop_last": drop_last}
            loader = Loader(Squares(n), 4, workers=2, **options)
            loader.set_epoch(epoch)
            mine = seen(loader)
            assert mine == list(sampler)[: len(mine)]
            assert len(mine) == (len(sampler) // 4 * 4 if drop_last else len(sampler))
            everywhere += mine
        if drop_last:
            assert len(everywhere) == len(set(everywhere))
        else:
            assert set(everywhere) == set(range(n)) and len(everywhere) < n + world_size


@pytest.mark.parametrize("n", (41, 40))
def test_ranks_have_each_sample_once_where_they_come_out_even(n):
    ranks = [seen(Loader(Squares(n), 3, shuffle=True, workers=1, rank=rank, world_size=n // 10)) for rank in range(4)]
    assert len({len(rank) for rank in ranks}) == 1
    assert sum(map(len, ranks)) - n == -n % 4
    assert set().union(*ranks) == set(range(n))


def test_order_and_augmentation_do_not_depend_on_workers():
    options = {"shuffle": True, "seed": 3, "transform": noise}
    loaders = [Loader(Squares(45), 4, **options, workers=w, prefetch=p) for w, p in ((0, 1), (1, 0), (2, 1), (4, 9))]
    first, second = ([list(loader) for loader in loaders] for _ in range(2))
    for epoch in (first, second):
        assert all(same(epoch[0], other) for other in epoch[1:])
        assert sorted(i for batch in epoch[0] for i in batch[1].tolist()) == list(range(45))
    assert not same(first[0], second[0])
    # The numbers differ between epochs, batches, ranks and seeds.
    other_seed = list(Loader(Squares(45), 4, transform=noise, seed=4, workers=1))
    ranks = [list(Loader(Squares(45), 4, transform=noise, rank=r, world_size=2, workers=1)) for r in range(2)]
    numbers = torch.cat([b[2] for batches in (first[0], second[0], other_seed, *ranks) for b in batches])
    assert numbers.unique().numel() == numbers.numel()


def test_the_default_device_is_not_where_indices_are():
    with torch.device("meta"):
        assert [len(batch) for batch in Loader(range(5), 2, shuffle=True, workers=0, collate=list)] == [2, 2, 1]


def test_epochs_follow_each_other():
    loader = Loader(Squares(20), 4, shuffle=True, workers=2)
    epochs = [seen(loader) for _ in range(3)]
    assert len({tuple(e) for e in epochs}) == 3
    loader.set_epoch(1)
    assert [seen(loader) for _ in range(2)] == epochs[1:]
    loader.set_epoch(0)
    for _ in loader:
        break
    assert seen(loader) == epochs[1]  # after a break too


def test_structures_are_collated_as_torch_collates_them():
    class Nested(Squares):
        def __getitem__(self, i):
            return {"x": (torch.full((2,), i), [float(i), str(i)]), "y": {"z": i, "b": i % 2 == 0}}

    ours, stock = list(Loader(Nested(5), 2, workers=2)), list(DataLoader(Nested(5), 2))
    assert str(ours) == str(stock)


def test_a_tensor_dataset_is_taken_at_once():
    data = TensorDataset(torch.rand(50, 3), torch.arange(50))
    stock = list(DataLoader(data, 8))
    assert same(list(Loader(data, 8, workers=2)), stock)
    assert isinstance(stock[0], type(next(iter(Loader(data, 8, workers=2)))))
    assert same(list(Loader(data, 8, workers=2, collate=default_collate)), stock)
    shuffled = list(Loader(data, 8, shuffle=True, workers=2))
    assert same(shuffled, list(Loader(data, 8, shuffle=True, workers=0, collate=default_collate)))

    assert list(Loader(data, 30, workers=1, collate=len)) == [30, 20]

    class Doubled(TensorDataset):
        def __getitem__(self, i):
            return tuple(2 * x for x in super().__getitem__(i))

    assert next(iter(Loader(Doubled(torch.arange(4)), 4, workers=1)))[0].tolist() == [0, 2, 4, 6]


def test_a_dataset_may_take_indices_at_once():
    data = AtOnce(20)
    assert same(list(Loader(data, 6, workers=2)), list(DataLoader(Squares(20), 6)))
    assert data.asked["batches"] == 4


def test_what_is_taken_at_once_is_any_batch():
    class Rows(Squares):
        def __getitems__(self, indices):
            return torch.tensor(indices)

    found = list(Loader(Rows(5), 2, workers=1, collate=lambda rows: rows))
    assert [rows.tolist() for rows in found] == [[0, 1], [2, 3], [4]]


def test_modes_are_those_of_the_iteration():
    w = torch.ones(2, 2, requires_grad=True)

    def product(batch, generator):
        return batch[0].float() @ w

    for mode in (torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16), torch.enable_grad()):
        with mode:
            here, there = (next(iter(Loader(Squares(4), 2, workers=n, transform=product))) for n in (0, 1))
        for of in ("dtype", "requires_grad"):
            assert getattr(here, of) == getattr(there, of)
        assert here.is_inference() == there.is_inference()


def test_collate_and_transform():
    loader = Loader(Squares(6), 4, workers=1, collate=len, transform=lambda n, generator: [n, generator.initial_seed()])
    (four, a), (two, b) = loader
    assert (four, two) == (4, 2) and a != b


# Where it was.


@pytest.mark.parametrize("shuffle", (False, True))
@pytest.mark.parametrize("bad", ((), (3, 17, 18, 30)))
@pytest.mark.parametrize("workers", (0, 2))
def test_resume_gives_the_same_batches(shuffle, bad, workers):
    def make(workers):
        return Loader(
            Squares(43, bad), 4, shuffle=shuffle, workers=workers, transform=noise, skip=OSError, drop_last=True
        )

    loader = make(workers)
    whole = [list(loader) for _ in range(3)]
    for stop in range(11):
        loader = make(workers)
        list(loader)
        taken, states = [], [loader.state_dict()]
        for _, batch in zip(range(stop), loader, strict=False):
            taken.append(batch)
            states.append(loader.state_dict())
        assert same(taken, whole[1][:stop])
        resumed = make(3 - workers)
        resumed.load_state_dict(states[stop])
        resumed.set_epoch(1)  # which it is of: nothing changes
        assert same(list(resumed), whole[1][stop:]), stop
        assert same(list(resumed), whole[2])


def test_a_state_of_another_order_is_refused():
    state = Loader(Squares(20), 4, shuffle=True, workers=1).state_dict()
    Loader(Squares(20), 4, shuffle=True, workers=3, rank=0).load_state_dict(state)
    for n, size, options in ((21, 4, {"shuffle": True}), (20, 5, {"shuffle": True}), (20, 4, {}), (20, 4, {"seed": 1})):
        with pytest.raises(ValueError, match="the state is of"):
            Loader(Squares(n), size, **options).load_state_dict(state)
    with pytest.raises(ValueError, match="the state has no batch, epoch"):
        Loader(Squares(20), 4, shuffle=True).load_state_dict(
            {k: state[k] for k in state if k not in ("batch", "epoch")}
        )


def test_state_at_the_ends_of_an_epoch():
    loader = Loader(Squares(8), 4, workers=1)
    assert [loader.state_dict()[k] for k in ("epoch", "batch")] == [0, 0]
    states = [loader.state_dict() for _ in loader]
    assert [s["batch"] for s in states] == [1, 2]
    assert [loader.state_dict()[k] for k in ("epoch", "batch")] == [1, 0]
    loader.load_state_dict(states[-1])
    assert list(loader) == []  # nothing was left of that epoch
    assert loader.state_dict()["epoch"] == 1 and len(list(loader)) == 2


# What is wrong.


@pytest.mark.parametrize("workers", (0, 2))
@pytest.mark.parametrize("kind", (Squares, AtOnce))
def test_an_exception_is_raised_where_its_batch_was_asked_for(workers, kind):
    loader = Loader(kind(20, bad=(9,)), 4, workers=workers)
    taken = []
    with pytest.raises(OSError, match=r"cannot read image-9\.jpeg") as caught:
        taken.extend(loader)
    assert seen(taken) == list(range(8))
    text = "".join(traceback.format_exception(caught.value))
    assert "in __getitem__" in text  # the worker's traceback
    notes = caught.value.__notes__
    assert "in batch 2 of epoch 0 of a Loader" in notes
    assert ("in dataset[9]" in notes) == (kind is Squares)
    if sys.version_info >= (3, 11):
        assert all(note in text for note in notes)
    assert loader.state_dict()["batch"] == 2


def test_a_subset_s_samples_are_told_by_their_index_in_it():
    with pytest.raises(OSError) as caught:
        list(Loader(Subset(Squares(20, bad=(9,)), range(5, 20)), 4, workers=1))
    assert "in dataset[4]" in caught.value.__notes__


@pytest.mark.parametrize("workers", (0, 2))
def test_exceptions_of_transform_and_collate_are_not_a_sample_s(workers):
    def fails(*_, **__):
        raise OSError("not a sample's")

    for options in ({"transform": fails}, {"collate": fails}):
        with pytest.raises(OSError, match="not a sample's") as caught:
            list(Loader(Squares(8), 4, workers=workers, skip=OSError, **options))
        assert caught.value.__notes__ == ["in batch 0 of epoch 0 of a Loader"]


@pytest.mark.parametrize("error", (StopIteration, KeyboardInterrupt, SystemExit))
def test_exceptions_that_mean_something_to_python(error):
    class Ends(Squares):
        def __getitem__(self, i):
            raise error

    for workers in (0, 2):
        with pytest.raises(RuntimeError if error is StopIteration else error):
            list(Loader(Ends(8), 4, workers=workers))


@pytest.mark.parametrize("workers", (0, 2))
@pytest.mark.parametrize("kind", (Squares, AtOnce))
def test_samples_are_skipped_and_counted(workers, kind):
    loader = Loader(kind(22, bad=(1, 8, 9, 10, 11)), 4, workers=workers, skip=(ValueError, OSError))
    batches = list(loader)
    assert seen(batches) == [i for i in range(22) if i not in (1, 8, 9, 10, 11)]
    assert [len(b[0]) for b in batches] == [3, 4, 4, 4, 2] and len(loader) == 6
    assert loader.skipped == {i: f"OSError: cannot read image-{i}.jpeg" for i in (1, 8, 9, 10, 11)}
    with pytest.raises(OSError):
        list(Loader(kind(22, bad=(1,)), 4, workers=workers, skip=ValueError))


def test_what_is_skipped_is_told_when_its_batch_is_delivered():
    loader = Loader(Squares(22, bad=(5, 13)), 4, workers=2, skip=OSError)
    counts = [len(loader.skipped) for _ in loader]
    assert counts == [0, 1, 1, 2, 2, 2]


def test_files_that_are_no_images(tmp_path, monkeypatch):
    image = pytest.importorskip("PIL.Image", reason="needs Pillow")
    monkeypatch.setattr(image, "MAX_IMAGE_PIXELS", 100_000)
    paths = [tmp_path / f"{k}.jpeg" for k in range(12)]
    for path in paths:
        image.new("RGB", (64, 48), "red").save(path)
    paths[2].write_bytes(paths[2].read_bytes()[:-200])  # truncated
    image.new("RGB", (1000, 1000)).save(paths[5])  # a decompression bomb
    paths[7].unlink()
    paths[7].mkdir()
    paths[8].unlink()

    class Images(Dataset):
        def __init__(self, paths):
            self.paths = paths

        def __len__(self):
            return len(self.paths)

        def __getitem__(self, i):
            with image.open(self.paths[i]) as file:
                return torch.tensor(list(file.convert("RGB").tobytes()), dtype=torch.uint8), i

    loader = Loader(Images(paths), 4, workers=2, skip=(OSError, image.DecompressionBombError))
    assert seen(loader) == [0, 1, 3, 4, 6, 9, 10, 11]
    kinds = {2: "OSError", 5: "DecompressionBombError", 7: "IsADirectoryError", 8: "FileNotFoundError"}
    assert {i: what.partition(":")[0] for i, what in loader.skipped.items()} == kinds
    assert all(str(paths[i]) in loader.skipped[i] for i in (7, 8))
    for i, kind in kinds.items():
        with pytest.raises((OSError, image.DecompressionBombError)) as caught:
            list(Loader(Images([paths[0], paths[i]]), 4, workers=2))
        assert type(caught.value).__name__ == kind and "in dataset[1]" in caught.value.__notes__


def test_errors_of_arguments():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(())

    with pytest.raises(TypeError, match="map-style"):
        Loader(Stream(), 4)
    for options in (
        {"workers": -1},
        {"prefetch": 1.5},
        {"rank": 2, "world_size": 2},
        {"rank": -1},
        {"rank": 0.5},
        {"seed": None},
        {"seed": 2**64},
        {"skip": [OSError]},
        {"skip": "OSError"},
    ):
        with pytest.raises(ValueError, match=f"Loader: {next(iter(options))} must be"):
            Loader(Squares(4), 4, **options)
    with pytest.raises(ValueError, match="batch_size must be"):
        Loader(Squares(4), 0)
    numbers = {"batch_size": 2, "workers": 1, "prefetch": 1, "seed": 3}
    both = [Loader(Squares(8), shuffle=True, **{k: of(v) for k, v in numbers.items()}) for of in (int, np.int64)]
    for batches in zip(*both, strict=True):
        assert all(map(torch.equal, *batches))


# Memory.


@pytest.mark.parametrize("workers", (1, 2))
@pytest.mark.parametrize("prefetch", (0, 1, 3))
def test_so_many_batches_are_made_ahead_and_no_more(workers, prefetch):
    data = Squares(40)
    loader = Loader(data, 1, workers=workers, prefetch=prefetch)
    for k, _ in enumerate(loader):
        time.sleep(0.01)  # a slow consumer
        assert k + 1 <= data.asked.total() <= k + 1 + prefetch
        if k == 5:
            until = time.monotonic() + 60
            while data.asked.total() < k + 1 + prefetch and time.monotonic() < until:
                time.sleep(0.01)
            time.sleep(0.1)
            assert data.asked.total() == k + 1 + prefetch


def test_slow_samples_are_made_side_by_side():
    class Meet(Squares):
        both = threading.Barrier(2, timeout=60)

        def __getitem__(self, i):
            self.both.wait()  # for a sample of another worker
            return i

    assert len(list(Loader(Meet(8), 1, workers=2))) == 8


class Large(Squares):
    def __getitem__(self, i):
        return torch.full((1 << 18,), float(i))


def test_memory_is_used_again_when_nobody_holds_it():
    assert not rusttorch.memory.is_enabled()
    data, addresses = Large(40), set()
    for batch in Loader(data, 2, workers=1, prefetch=1):
        addresses.add(batch.data_ptr())
    assert len(addresses) <= 6  # of 20: two are held, one waits, one is made, and freed ones may lie elsewhere
    held = list(Loader(data, 4, workers=2, prefetch=1))
    assert len({batch.data_ptr() for batch in held}) == 10


@pytest.mark.parametrize("hold", (lambda b: b[1:3], lambda b: b.numpy()[2], lambda b: b.detach(), torch.to_dlpack))
def test_what_is_held_is_not_written(hold):
    data = Large(40)
    held = [hold(batch) for batch in Loader(data, 4, workers=2)]
    if hold is torch.to_dlpack:
        held = [torch.from_dlpack(h) for h in held]
    expected = [hold(default_collate([data[i + k] for k in range(4)])) for i in range(0, 40, 4)]
    if hold is torch.to_dlpack:
        expected = [torch.from_dlpack(h) for h in expected]
    for a, b in zip(held, expected, strict=True):
        assert torch.as_tensor(a).equal(torch.as_tensor(b))


def test_a_batch_that_was_given_up_is_not_kept_by_the_loader():
    data = Large(12)
    allocated = rusttorch.memory.stats().allocated
    batches = iter(Loader(data, 4, workers=1, prefetch=0))
    batch = next(batches)
    assert rusttorch.memory.stats().allocated - allocated == 4 << 20
    del batch
    assert rusttorch.memory.stats().allocated == allocated
    batches.close()


def test_the_pool_is_the_workers_only():
    list(Loader(Large(8), 4, workers=2))
    assert not rusttorch.memory.is_enabled()
    allocations = rusttorch.memory.stats().allocations
    torch.empty(1 << 20)
    assert rusttorch.memory.stats().allocations == allocations


def test_operators_of_a_worker_have_one_thread():
    class Threads(Squares):
        def __getitem__(self, i):
            return torch.get_num_threads()

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert all(batch.eq(1).all() for batch in Loader(Threads(8), 2, workers=2))
        assert torch.get_num_threads() == 3
        # Other threads, of now and to come, are as before.
        found = []
        thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert found == [3]
    finally:
        torch.set_num_threads(before)


def test_pinned_memory_is_asked_for_where_there_is_cuda(monkeypatch):
    assert same(list(Loader(Squares(8), 4, workers=1, pin_memory=True)), list(Loader(Squares(8), 4, workers=1)))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self + 100)
    assert seen(Loader(Squares(4), 4, workers=1, pin_memory=True)) == [100, 101, 102, 103]
    assert seen(Loader(Squares(4), 4, workers=1)) == [0, 1, 2, 3]


# How it ends. (That no thread is left is looked at after every test.)


def test_break_exception_and_garbage():
    data = Squares(1000, delay=0.001)
    for _ in Loader(data, 4, workers=4):
        assert len(workers()) == 4
        break
    with pytest.raises(ZeroDivisionError):
        for _ in Loader(data, 4, workers=4):
            1 / 0  # noqa: B018
    batches = iter(Loader(data, 4, workers=4))
    next(batches)
    cycle = [batches]
    cycle.append(cycle)
    del batches, cycle
    gc.collect()
    assert data.asked.total() < 200  # what was prefetched is not made


def test_an_end_waits_for_samples_not_for_batches(monkeypatch):
    ended = threading.Event()

    class SlowLater(Squares):
        def __getitem__(self, i):
            self.asked[i] += 1
            if i >= 100:
                ended.wait(60)
            return i

    def end(stopped, *others):
        stopped.set()
        ended.set()
        end_of_threads(stopped, *others)

    end_of_threads = loader_module._end
    monkeypatch.setattr(loader_module, "_end", end)
    data = SlowLater(1000)
    batches = iter(Loader(data, 100, workers=2))
    next(batches)
    batches.close()
    assert data.asked.total() <= 100 + 2 and not workers()  # of a batch, what each was at


def test_a_forked_process_does_not_wait_for_threads_that_it_has_not():
    batches = iter(Loader(Squares(20), 4, workers=2))
    next(batches)
    process = os.fork()
    if process == 0:
        code = 1
        try:
            next(batches)
        except RuntimeError as error:
            code = 0 if "forked" in str(error) else 2
        finally:
            os._exit(code)
    until = time.monotonic() + 60
    while (ended := os.waitpid(process, os.WNOHANG)) == (0, 0) and time.monotonic() < until:
        time.sleep(0.01)
    if ended == (0, 0):
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    assert ended == (process, 0)
    assert len(list(batches)) == 4  # and its parent goes on


@pytest.mark.parametrize("channels", (1, 3, 4))
def test_decoded_images_are_stacked_as_others(channels):
    """[C, H, W] of bytes that are views of [H, W, C], of one size or with one among them that is none."""
    pictures = [torch.randint(0, 256, (19, 23, channels), dtype=torch.uint8).permute(2, 0, 1) for _ in range(4)]
    others = [pictures[0].contiguous(), pictures[0].float(), pictures[0][:, :, ::2].repeat(1, 1, 2)[:, :, :23]]
    for samples in (pictures, *([*pictures, other] for other in others)):
        (batch,) = Loader(samples, len(samples), workers=0)
        expected = default_collate(samples)
        assert batch.dtype == expected.dtype and batch.equal(expected) and batch.stride() == expected.stride()
    with pytest.raises(RuntimeError, match="equal size"):
        list(Loader([*pictures, pictures[0][:, 1:]], 8, workers=0))


def test_what_was_made_goes_with_an_exception():
    class Kept(Squares):
        def __getitem__(self, i):
            if i == 5:
                self.large = weakref.ref(large := torch.empty(10))
                large.fails()
            return i

    data = Kept(8)
    gc.disable()
    try:
        with pytest.raises(AttributeError) as caught:
            list(Loader(data, 4, workers=1))
        del caught
        assert data.large() is None  # no cycle keeps it until garbage is collected
    finally:
        gc.enable()


def test_two_iterations_at_a_time():
    loader = Loader(Squares(20), 4, shuffle=True, workers=2)
    alone = [seen(loader) for _ in range(2)]
    loader.set_epoch(0)
    pairs = list(zip(loader, loader, strict=True))
    assert [seen(p[k] for p in pairs) for k in range(2)] == alone


PROGRAM = """
import atexit, signal, sys, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job in the background ignores
atexit.register(lambda: print("threads", threading.active_count(), flush=True))  # the last that Python does at its exit
import torch
from rusttorch.data import Loader

class Slow:
    def __len__(self):
        return 10**6
    def __getitem__(self, i):
        if i >= 640:  # the first batch is there at once, another takes two minutes
            time.sleep(0.2)
        return torch.rand(100, 100) @ torch.rand(100, 100)

loader = Loader(Slow(), 640, workers=3)
for k, batch in enumerate(loader):
    print("batch", flush=True)
    {body}
"""


def run(body):
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(body=body)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert program.stdout.readline() == "batch\n"
    return program


@pytest.mark.parametrize("body", ("pass", "time.sleep(100)", "torch.rand(300, 300) @ torch.rand(300, 300)"))
def test_ctrl_c(body):
    program = run(body)
    time.sleep(0.3)
    program.send_signal(signal.SIGINT)
    output, errors = program.communicate(timeout=60)  # less than a batch takes
    assert program.returncode == -signal.SIGINT and output.endswith("threads 1\n")
    assert errors.count("Traceback") == 1 and errors.rstrip().endswith("KeyboardInterrupt"), errors


@pytest.mark.parametrize(
    "body", ("sys.exit()", "kept = loader; break", "other = iter(loader); next(other); sys.exit()")
)
def test_exit_in_the_middle(body):
    program = run(body)
    output, errors = program.communicate(timeout=60)  # less than a batch takes
    assert (program.returncode, errors, output) == (0, "", "threads 1\n")


# Our operators in torch's own DataLoader, and in threads.


class Mish(Dataset):
    def __len__(self):
        return 12

    def __getitem__(self, i):
        x = torch.arange(100_000.0) / 1000 - i
        return torch.nn.functional.mish(x), rusttorch.softmax(x[:100], 0)


@pytest.mark.parametrize("load", (DataLoader, Loader))
def test_our_operators_in_workers(load):
    x = torch.randn(300_000)
    options = {"num_workers": 2} if load is DataLoader else {"workers": 2}
    with rusttorch.use():
        rusttorch.mish(x)  # threads are there before they fork
        expected = list(DataLoader(Mish(), 4))
        assert same(list(load(Mish(), 4, **options)), expected)


def test_a_loader_may_be_at_work_when_a_data_loader_forks():
    for batch, other in zip(Loader(Mish(), 4, workers=2), DataLoader(Mish(), 4, num_workers=2), strict=True):
        assert same([batch], [other])
