"""The CPU memory pool: whose memory is whose, threads, fork, limits."""

import os
import resource
import shutil
import subprocess
import threading
from pathlib import Path

import pytest
import rusttorch
import torch
from rusttorch import memory
from torch.utils.data import DataLoader, Dataset

ROOT = Path(__file__).resolve().parent.parent
MB = 1 << 20


@pytest.fixture
def pool():
    memory.enable_pool()
    yield memory
    memory.disable_pool()
    memory.set_limit(None)
    memory.empty_cache()


@pytest.mark.parametrize("sanitizer", ("thread", "address,undefined"))
def test_threads_under_a_sanitizer(sanitizer, tmp_path):
    program = tmp_path / "stress"
    sources = [ROOT / "tests" / "arena_stress.cpp", ROOT / "csrc" / "arena.cpp"]
    flags = ["-std=c++20", "-O1", "-g", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all", "-pthread"]
    subprocess.run([os.environ.get("CXX", "c++"), *flags, *sources, "-o", program], check=True)
    # Address space that is laid out at random can be where a sanitizer wants its own. (A container may forbid to ask.)
    fixed = ["setarch", "-R"]
    may_ask = shutil.which("setarch") and subprocess.run([*fixed, "true"], check=False).returncode == 0
    ran = subprocess.run([*(fixed if may_ask else []), program], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (0, "ok\n"), ran.stderr


def test_blocks_are_kept_and_given_out_again(pool):
    x = torch.empty(4 * MB, dtype=torch.uint8)
    address, allocated = x.data_ptr(), pool.stats().allocated
    assert address % 64 == 0
    del x
    assert pool.stats().allocated == allocated - 4 * MB
    y = torch.empty(4 * MB, dtype=torch.uint8)
    assert y.data_ptr() == address


def test_a_block_behind_many_that_are_too_small(pool):
    """The last block of the arena, free and large enough, behind 64 of its class that are not."""

    def block(n):
        return torch.empty(n, dtype=torch.uint8)

    pairs = [(block(4032), block(1)) for _ in range(64)]
    rest = block(249_600)
    between = [b for _, b in pairs]
    del pairs
    found = block(4160).fill_(7)
    assert (found == 7).all()
    del rest, between


def test_no_page_faults(pool):
    def step():
        return (torch.ones(3 * MB) * 2).sum()

    step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        step()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 100  # stock: 6,000 a step


def test_whose_memory_is_whose():
    stock = torch.arange(100_000)
    memory.enable_pool()
    before = memory.stats().allocated
    ours = torch.arange(100_000)
    assert memory.stats().allocated == before + ours.nbytes
    stock.resize_(200_000)
    assert (stock[:100_000] == ours).all()
    del stock
    assert memory.stats().allocated == before + ours.nbytes
    memory.disable_pool()
    assert not memory.is_enabled()
    late = torch.arange(100_000)
    assert memory.stats().allocated == before + ours.nbytes
    array = ours.numpy()
    expected = late.numpy().copy()
    del ours
    assert (array == expected).all()
    del array
    assert memory.stats().allocated == before


def test_onednn_keeps_what_it_packed():
    """oneDNN frees with the allocator in force what it allocated with the one before."""
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3))
    x = torch.randn(4, 3, 32, 32)
    wanted = model(x)
    for first, second in ((memory.enable_pool, memory.disable_pool), (memory.disable_pool, memory.enable_pool)):
        first()
        y = model(x)
        packed = torch.randn(64, 64).to_mkldnn()
        second()
        y.sum().backward()
        del packed
        torch.testing.assert_close(y, wanted)
    memory.disable_pool()


def test_limit(pool):
    pool.empty_cache()
    pool.set_limit(0)
    held = pool.stats().held
    x = torch.ones(8 * MB)  # stock's
    assert pool.stats().held == held
    del x
    pool.set_limit(pool.stats().held + 64 * MB)
    x = torch.ones(8 * MB)
    assert pool.stats().held >= 32 * MB
    y = torch.ones(16 * MB)
    assert pool.stats().held <= held + 64 * MB
    assert (x.sum().item(), y.sum().item()) == (8 * MB, 16 * MB)
    with pytest.raises(ValueError, match="not negative, got -1"):
        pool.set_limit(-1)


def test_empty_cache(pool):
    x = torch.ones(16 * MB)
    held = pool.stats().held
    del x
    assert pool.stats().held == held
    pool.empty_cache()
    assert pool.stats().held <= held - 60 * MB
    y = torch.ones(16 * MB)
    assert pool.stats().held >= 64 * MB
    assert y.min() == 1


def test_an_allocation_too_large_for_the_machine(pool):
    x = torch.ones(10)
    with pytest.raises(RuntimeError) as ours:
        torch.empty(1 << 50)
    pool.disable_pool()
    with pytest.raises(RuntimeError) as stock:
        torch.empty(1 << 50)
    assert str(ours.value) == str(stock.value)
    pool.enable_pool()
    assert (torch.ones(10) + x).sum() == 20


def test_sizes_of_every_kind(pool):
    for n in (0, 1, 63, 64, 65, 4095, 4096, 4097, 100_003, 3 * MB + 1):
        x = torch.full((n,), 7, dtype=torch.uint8)
        assert x.data_ptr() % 64 == 0
        assert (x == 7).all()
    assert torch.empty(0).data_ptr() == 0


class Squares(Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, i):
        memory.enable_pool()
        work = torch.full((1000, 100), float(i))  # in the worker's copy of the pool
        return work.mean() ** 2, torch.zeros(300_000)


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")
def test_fork(pool):
    kept = torch.arange(1_000_000)
    busy = threading.Event()

    def other():  # holds the pool's lock often while workers are forked
        while not busy.is_set():
            torch.empty(1000)

    thread = threading.Thread(target=other)
    thread.start()
    try:
        for _ in range(3):
            batches = list(DataLoader(Squares(), batch_size=8, num_workers=4, timeout=60))
            assert torch.cat([x for x, _ in batches]).tolist() == [i**2 for i in range(64)]
    finally:
        busy.set()
        thread.join()
    assert kept.sum() == 999_999 * 500_000


def test_threads(pool):
    failures = []

    def work(seed):
        generator = torch.Generator().manual_seed(seed)
        for _ in range(300):
            n = int(torch.randint(1, 60_000, (1,), generator=generator))
            x = torch.full((n,), seed)
            if not (x * 2 == 2 * seed).all():
                failures.append(n)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.filterwarnings("ignore:.*Profiler clears events")  # torch's own, in 2.11 and 2.12
def test_profiler_sees_the_memory(pool):
    with torch.profiler.profile(profile_memory=True) as profile:
        x = torch.empty(1 << 18)
    del x
    assert any(event.self_cpu_memory_usage >= 1 << 20 for event in profile.key_averages())


def test_ab():
    ab = rusttorch.AB(block=1, settle=0)
    seen = set()
    for _ in range(18):
        with ab.step() as step:
            seen.add((step.arm, memory.is_enabled()))
    ab.report()
    assert seen == {("stock", False), ("swapped", False), ("swapped", True)}  # the second: the ops alone
    assert not memory.is_enabled()
    memory.enable_pool()
    with pytest.raises(RuntimeError, match=r"disable_pool\(\)"), ab.step():
        pass
    memory.disable_pool()


def test_the_swap_brings_it():
    for pool, wanted in ((None, True), (True, True), (False, False)):
        with rusttorch.use(pool=pool):
            assert memory.is_enabled() == wanted
        assert not memory.is_enabled()
        rusttorch.enable(pool=pool)
        assert memory.is_enabled() == wanted
        rusttorch.disable()
        assert not memory.is_enabled()
    with rusttorch.use("mish"):
        assert not memory.is_enabled()
    with rusttorch.use("mish", pool=True), rusttorch.use(pool=False):
        assert memory.is_enabled()


def test_who_asks_for_it_has_it():
    memory.enable_pool()
    with rusttorch.use(), memory.pool():
        pass
    assert memory.is_enabled()
    with rusttorch.use():
        memory.disable_pool()
        assert not memory.is_enabled()
    assert not memory.is_enabled()


def test_it_comes_back_with_the_next_who_asks():
    rusttorch.enable()
    memory.disable_pool()
    assert not memory.is_enabled()
    rusttorch.enable()
    assert memory.is_enabled()
    memory.disable_pool()
    with rusttorch.use():
        assert memory.is_enabled()
    rusttorch.disable()
    assert not memory.is_enabled()


def test_where_it_cannot_be(monkeypatch):
    def refuse(on):
        raise RuntimeError("another CPU allocator is in force")

    monkeypatch.setattr(memory._C, "enable_pool", refuse)
    monkeypatch.setattr(memory._C, "pool_is_available", lambda: False)
    with pytest.warns(UserWarning, match="without the memory pool"), rusttorch.use():
        assert rusttorch.is_enabled()
    for asked in (rusttorch.enable, lambda pool: rusttorch.use(pool=pool).__enter__()):
        with pytest.raises(RuntimeError, match="another CPU allocator"):
            asked(pool=True)
        assert not rusttorch.is_enabled()
