import math
import os
import random
import subprocess
import sys
import threading

import numpy as np
import pytest
import rusttorch
import torch
import torch.nn.functional as F
from rusttorch.ab import Ratio
from rusttorch.profiler import Profiler


def AB(*names, **options):
    """Of the ops alone, and of all steps."""
    return rusttorch.AB(*names, **{"pool": False, "settle": 0, **options})


def steps(ab, n, step=lambda: None, **kwargs):
    for _ in range(n):
        with ab.step(**kwargs) as s:
            s.loss = step()


class Clock:
    """In the place of time's: a step takes what it is told to."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(rusttorch.ab.time, "perf_counter", lambda: self.now)

    def steps(self, ab, n, seconds, loss=lambda stock, k: None, samples=0):
        """seconds(stock or not, pool or not, number of the step), loss(stock or not, number of the step)"""
        for k in range(n):
            with ab.step(samples=samples) as step:
                stock = step.arm == "stock"
                self.now += seconds(stock, rusttorch.memory.is_enabled(), k)
                step.loss = loss(stock, k)


def test_finds_a_known_difference(monkeypatch):
    """By a clock of our own, swapped steps take half as long, give or take a fifth: the ratio is 2."""
    clock, jitter = Clock(monkeypatch), random.Random(0)
    ab = AB(block=2, warmup=1)
    clock.steps(ab, 8 * 31, lambda stock, pool, k: (4 if stock else 2) * jitter.uniform(0.8, 1.2), samples=32)
    report = ab.report(confidence=0.95)
    assert report.rounds == 30
    low, high = report.interval
    assert 1.8 < low <= report.speedup <= high < 2.2
    assert report.per_second["swapped"] == pytest.approx(16, rel=0.05)
    assert report.per_second["stock"] == pytest.approx(8, rel=0.05)
    assert report.loss_interval is None
    assert len(ab.times("stock")) == len(ab.times("swapped")) == 120


def test_what_the_ops_and_the_pool_are_worth(monkeypatch):
    clock = Clock(monkeypatch)
    ab = rusttorch.AB(settle=0)
    clock.steps(ab, 24 * 9, lambda stock, pool, _: 6 if stock else 2 if pool else 3)
    report = ab.report()
    assert report.rounds == 8 and report.speedup == 3
    assert report.parts == {"ops": Ratio(2, (2, 2)), "pool": Ratio(1.5, (1.5, 1.5))}
    assert "ops alone   2.000x" in str(report) and "the pool    1.500x" in str(report)
    assert report.advice() == "faster: rusttorch.enable()"


@pytest.mark.parametrize(
    ("ops", "both", "advice"),
    [(2, 3, "rusttorch.enable(pool=False)"), (7, 5, "rusttorch.memory.enable_pool()"), (7, 8, "leave it out")],
)
def test_advice_is_about_each(monkeypatch, ops, both, advice):
    clock = Clock(monkeypatch)
    ab = rusttorch.AB(settle=0)
    clock.steps(ab, 24 * 9, lambda stock, pool, _: 6 if stock else both if pool else ops)
    assert ab.report().advice().endswith(advice)


def test_advice_is_about_what_was_asked(monkeypatch):
    clock = Clock(monkeypatch)
    for given, said in (
        ((["mish"], {}), "rusttorch.enable('mish')"),
        ((["mish"], {"pool": True}), "rusttorch.enable('mish', pool=True)"),
        (([], {"exclude": ["relu"], "pool": False}), "rusttorch.enable(exclude=['relu'], pool=False)"),
        (([], {"exclude": ["relu"]}), "rusttorch.enable(exclude=['relu'])"),
    ):
        names, options = given
        ab = rusttorch.AB(*names, settle=0, **options)
        clock.steps(ab, 24 * 9, lambda stock, pool, _: 6 if stock else 2 if pool else 3)
        assert ab.report().advice() == f"faster: {said}"


def test_few_rounds_tell_little(monkeypatch):
    clock = Clock(monkeypatch)
    for rounds, few in ((7, True), (8, False)):
        ab = AB("mish")
        clock.steps(ab, 16 * (rounds + 1), lambda stock, pool, k: 2 if stock else 1)
        report = ab.report()
        assert report.rounds == rounds and report.few == few
        assert report.advice() == (
            "measure more steps: 7 rounds tell little" if few else "faster: rusttorch.enable('mish')"
        )


def test_an_interval_holds_the_median_as_often_as_it_says():
    random = np.random.default_rng(0)
    for n in (8, 20, 51):
        held = 0
        for _ in range(2000):
            low, high = rusttorch.ab._interval(random.exponential(size=n), 0.95)
            held += low <= math.log(2) <= high
        assert rusttorch.ab._rank(n, 0.95) > 0
        assert held >= 0.94 * 2000


def test_steps_just_after_an_exchange_are_left_out(monkeypatch):
    """Steps of 1 ms, and of 3 in the first 6: two such and one of 1 end within 7.5."""
    clock = Clock(monkeypatch)
    ab, exchanged = rusttorch.AB("mish", block=2, settle=0.0075), [None, 0.0]

    def seconds(stock, pool, _):
        if stock != exchanged[0]:
            exchanged[:] = stock, clock.now
        return 0.003 if clock.now - exchanged[1] < 0.0059 else 0.001

    clock.steps(ab, 400, seconds)
    report = ab.report()
    assert report.median == {"stock": pytest.approx(0.001), "swapped": pytest.approx(0.001)}
    assert ab._most_settling == 3 and report.left_out + len(ab._rows) == 400
    assert f"{report.left_out} steps just after kernels" in str(report)


def test_the_arms_stay_interleaved(monkeypatch):
    """Though a faster arm has more steps in the first 8 ms: losses that fall are no difference."""
    clock = Clock(monkeypatch)
    ab = rusttorch.AB("mish")
    clock.steps(ab, 2000, lambda stock, pool, k: 0.003 if stock else 0.001, loss=lambda stock, k: 0.99**k)
    report = ab.report()
    assert report.losses_agree, str(report)
    assert abs(report.loss_difference) < 0.01


def test_losses_that_differ_by_a_rounding_agree():
    for dtype, apart, agree in (
        (torch.float32, 2e-7, True),
        (torch.float32, 1e-5, False),
        (torch.bfloat16, 8e-3, True),
    ):
        report = lossy(lambda arm, k: torch.tensor(1.0 + apart * (arm == "stock"), dtype=dtype))  # noqa: B023
        assert report.losses_agree is agree


def test_losses_of_the_ops_alone_are_swapped_ones():
    ab = rusttorch.AB(block=1, warmup=0, settle=0)
    for _ in range(6 * 10):
        with ab.step() as step:
            alone = step.arm == "swapped" and not rusttorch.memory.is_enabled()
            step.loss = math.nan if alone else 1.0
    report = ab.report()
    assert report.not_finite == {"stock": 0, "swapped": 20} and report.losses == {"stock": 20, "swapped": 40}
    assert report.losses_agree is False


def test_steps_that_are_not_alike_are_noticed(monkeypatch):
    """Micro-batches: the optimizer is in every fourth step, and gains what the median does not show."""
    clock = Clock(monkeypatch)
    ab = AB(block=4)
    clock.steps(ab, 16 * 8, lambda stock, pool, k: 1 + (k % 4 == 3) * (4 if stock else 1))
    report = ab.report()
    assert report.speedup == 1 and report.by_total.ratio == 1.6 and report.uneven
    assert "UNEVEN STEPS" in str(report) and "1.600x" in str(report)
    assert "optimizer step" in report.advice()
    for last in (0, 0.1):  # of four steps takes a little longer: of many rounds no interval holds that
        ab = AB(block=4)
        clock.steps(ab, 16 * 8, lambda stock, pool, k: (2 if stock else 1) + last * (k % 4 == 3))  # noqa: B023
        assert not ab.report().uneven


def test_arms_run_their_kernels_and_leave_nothing():
    before = torch._C._dispatch_dump("aten::mish")
    rusttorch.reset_stats()
    ab = AB("mish", block=1, warmup=0)
    x = torch.randn(50)
    arms = []
    for _ in range(8):
        with ab.step() as step:
            ran = rusttorch.stats().get("mish", (0,))[0]
            F.mish(x), F.silu(x)
            arms.append((step.arm, rusttorch.stats().get("mish", (0,))[0] - ran))
    report = ab.report()
    assert sorted(arms) == [("stock", 0)] * 4 + [("swapped", 1)] * 4
    assert report.ran == {"mish": rusttorch.swap.OpStats(4, {})}
    assert torch._C._dispatch_dump("aten::mish") == before


def test_losses():
    ab = AB(block=2, warmup=0)
    steps(ab, 40, lambda: torch.tensor(1.0))
    report = ab.report()
    assert report.losses_agree
    assert report.loss_difference == 0
    ab = AB(block=2, warmup=0)
    for _ in range(40):
        with ab.step() as step:
            step.loss = 1.0 if step.arm == "stock" else 2.0
    assert not ab.report().losses_agree
    assert "DIFFER" in str(ab.report())


def test_report_reads_well():
    ab = AB(block=1, warmup=0)
    x = torch.randn(50)
    steps(ab, 8, lambda: F.mish(x).sum(), samples=50)
    text = str(ab.report())
    for part in ("speed-up", "99% interval", "losses", "per second", "peak memory", "mish"):
        assert part in text


def test_exception_in_a_step_restores():
    before = torch._C._dispatch_dump("aten::mish")
    ab = AB(block=1, warmup=0)
    for _ in range(4):
        with pytest.raises(ZeroDivisionError), ab.step():
            raise ZeroDivisionError
        assert torch._C._dispatch_dump("aten::mish") == before


def swapped_ab(**options):
    """An AB between two of its swapped steps."""
    ab = AB("mish", block=2, **options)
    while ab._kind != "swapped":
        with ab.step():
            pass
    assert rusttorch.swap._swapped.now.names
    return ab


@pytest.mark.parametrize("pool", (False, True))
@pytest.mark.parametrize("end", ("disable", "close", "another", "del", "with"))
def test_what_ends_swapping_between_two_steps(end, pool):
    before = torch._C._dispatch_dump("aten::mish")
    ab = swapped_ab(pool=pool)
    assert rusttorch.memory.is_enabled() == pool
    if end == "disable":
        rusttorch.disable()
    elif end == "close":
        ab.close()
    elif end == "another":
        other = AB("silu", pool=pool)
        steps(other, 1)
        other.close()
    elif end == "del":
        del ab
    else:
        with pytest.raises(KeyboardInterrupt), ab:
            raise KeyboardInterrupt
    assert torch._C._dispatch_dump("aten::mish") == before
    assert not rusttorch.memory.is_enabled()
    if end != "del":
        steps(ab, (12 if pool else 8) * 3)  # with the pool there are blocks of the ops alone
        assert ab.report().rounds == 3


def test_a_step_in_progress_is_not_ended():
    """By another thread's disable(), or another AB."""
    ab = swapped_ab()
    ab.close()
    arms = set()
    for _ in range(8):
        with ab.step() as step:
            thread = threading.Thread(target=rusttorch.disable)
            thread.start()
            thread.join()
            arms.add((step.arm, bool(rusttorch.swap._swapped.now.names)))
    assert arms == {("stock", False), ("swapped", True)}


def test_one_step_at_a_time():
    ab = AB()
    with pytest.raises(RuntimeError, match="step within a step"), ab.step(), ab.step():
        pass
    with pytest.raises(RuntimeError, match="between two steps"), ab.step():
        ab.report()
    assert not rusttorch.swap._swapped.now.names


def test_nothing_is_swapped_within_a_step():
    ab = AB("mish", block=1)
    for asked in (rusttorch.use("silu").__enter__, lambda: rusttorch.enable("silu")):
        for _ in range(2):
            with pytest.raises(RuntimeError, match="within a step of an AB"), ab.step():
                asked()
            assert not rusttorch.swap._swapped.now.names
    with rusttorch.use("silu"):  # after it
        pass


def test_what_is_taken_out_between_two_steps_is_noticed():
    for take_out in (lambda: rusttorch.disable(force=True), rusttorch.memory.disable_pool):
        ab = swapped_ab(pool=True)
        rusttorch.swap._swapped.between_steps.discard(ab)  # so that disable() does not close it
        take_out()
        with pytest.raises(RuntimeError, match="were taken out"), ab.step():
            pass


def test_ctrl_c_at_any_call_of_an_exchange():
    """After close() nothing is swapped in, wherever it came."""
    files = ("ab.py", "swap.py", "memory.py", "fused.py", "contextlib.py")
    interrupted = 0
    for number in range(1, 200):
        ab, left = swapped_ab(pool=True), number

        def trace(frame, event, arg):
            nonlocal left
            if event == "call" and frame.f_code.co_filename.endswith(files):
                left -= 1
                if left == 0:
                    raise KeyboardInterrupt
            return trace

        before = sys.gettrace()
        try:
            sys.settrace(trace)
            for _ in range(3):  # to the block's end, and into the next
                with ab.step():
                    pass
        except KeyboardInterrupt:
            interrupted += 1
        finally:
            sys.settrace(before)
        ab.close()
        assert not rusttorch.is_enabled() and not rusttorch.memory.is_enabled(), number
        if left > 0:
            break
    assert interrupted > 10


def test_a_profile_compares_with_stock():
    with rusttorch.use("silu"), pytest.raises(RuntimeError, match="swapped in already"), Profiler().step():
        pass


def test_a_fork_within_a_step_is_in_none():
    ab = AB("mish")
    with ab.step():
        child = os.fork()
        if child == 0:
            try:
                with rusttorch.use("silu"):
                    os._exit(0)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_step_beside_a_step_is_refused():
    first, second = AB("mish"), AB("silu")
    with pytest.raises(RuntimeError, match="within a step of an AB"), first.step(), second.step():
        pass
    with first.step():
        pass
    assert not rusttorch.swap._swapped.stepping


def test_two_in_turn_are_refused():
    first, second = AB("mish", block=1), AB("silu", block=1)
    with pytest.raises(RuntimeError, match="another AB"):
        for _ in range(8):
            steps(first, 1)
            steps(second, 1)
    first.close()
    second.close()
    assert not rusttorch.swap._swapped.now.names


def test_ops_swapped_within_a_block_are_noticed():
    ab, arm = AB("mish", block=2), None
    while arm != "stock":
        with ab.step() as step:
            arm = step.arm
    with rusttorch.use("silu"), pytest.raises(RuntimeError, match="swapped in already"):
        steps(ab, 1)
    with rusttorch.use("silu"), pytest.raises(RuntimeError, match="swapped in already"):
        ab.profile(lambda: None)


def test_a_round_that_is_ended_does_not_count():
    ab = AB(block=1, warmup=0)
    for _ in range(10):
        steps(ab, 3)
        ab.close()
    with pytest.raises(RuntimeError, match="needs at least 8 steps, and has 30: 0 whole rounds"):
        ab.report()


def lossy(loss, rounds=10):
    """The report on losses of loss(arm, number of the step), which are set where they are not None."""
    ab = AB("mish", block=1, warmup=0)
    for k in range(4 * rounds):
        with ab.step() as step:
            step.loss = loss(step.arm, k)
    return ab.report()


@pytest.mark.parametrize("value", (math.nan, math.inf, -math.inf))
@pytest.mark.parametrize("arm", ("stock", "swapped"))
def test_losses_of_one_arm_that_are_not_finite_differ(arm, value):
    for first in (0, 30):
        report = lossy(lambda a, k: torch.tensor(value if a == arm and k >= first else 1.0))  # noqa: B023
        assert report.losses_agree is False
        assert "DIFFER" in str(report)
        assert f"not finite in {report.not_finite['stock']} stock and {report.not_finite['swapped']}" in str(report)
    assert report.not_finite[arm] == 5
    assert (report.loss_rounds, report.loss_difference) == (7, 0)


def test_losses_of_both_arms_that_are_not_finite_are_not_compared():
    """Weights that one arm made NaN are NaN in the other."""
    report = lossy(lambda arm, k: math.nan if k > 20 else 1.0)
    assert report.losses_agree is None
    assert "not compared: swapped is +0.00% from stock in 5 rounds" in str(report)
    report = lossy(lambda arm, k: (1.0 if arm == "stock" else 2.0) if k < 20 else math.nan)
    assert report.losses_agree is False


def test_losses_of_some_steps():
    report = lossy(lambda arm, k: None if k % 8 < 4 else 1.0)
    assert report.losses_agree is True
    assert (report.rounds, report.loss_rounds, report.losses) == (10, 5, {"stock": 10, "swapped": 10})
    report = lossy(lambda arm, k: 1.0 if arm == "stock" else None)
    assert report.losses_agree is None
    assert "not compared: given by 20 stock and 0 swapped steps" in str(report)
    report = lossy(lambda arm, k: None)
    assert report.losses_agree is None
    assert "losses" not in str(report)


def test_a_loss_that_is_no_number_is_an_error():
    ab = AB("mish", block=1)
    for _ in range(4):
        with pytest.raises((RuntimeError, ValueError), match="converted to"), ab.step() as step:
            step.loss = torch.ones(3)
        assert not rusttorch.swap._swapped.now.names


def test_samples_of_some_steps(monkeypatch):
    """Count against the time of those steps."""
    clock = Clock(monkeypatch)
    ab = AB("mish", block=2, warmup=0)
    for k in range(8 * 3):
        with ab.step(samples=10 * (k % 2)):
            clock.now += 1
    assert ab.report().per_second == {"stock": 10, "swapped": 10}


def test_refuses_what_it_cannot_measure():
    with pytest.raises(ValueError, match="did you mean 'mish'"):
        AB("mihs")
    with pytest.raises(ValueError, match="block must be at least 1"):
        AB(block=0)
    with pytest.raises(RuntimeError, match="needs at least 48 steps, and has 0"):
        AB().report()
    with pytest.raises(ValueError, match="expected an arm"):
        AB().times("swaped")
    ab = AB()
    with rusttorch.use(), pytest.raises(RuntimeError, match="swapped in already"):
        steps(ab, 1)


def test_compiled_code_is_mentioned():
    code = """
import sys, torch, rusttorch
f = torch.compile(torch.nn.functional.mish, backend=sys.argv[1])
ab = rusttorch.AB("mish", block=1, warmup=0, settle=0)
for _ in range(8):
    with ab.step():
        f(torch.randn(100))
print(ab.report())
"""
    for backend in ("inductor", "eager"):
        done = subprocess.run([sys.executable, "-c", code, backend], capture_output=True, text=True, check=True)
        assert ("compiled " in done.stdout) == (backend == "inductor"), done.stdout


def test_profile():
    x = torch.randn(1000, requires_grad=True)
    profile = AB().profile(lambda: F.mish(x).sum().backward(), steps=3)
    assert {"aten::mish", "aten::mish_backward"} <= set(profile)
    calls, seconds = profile["aten::mish"]["swapped"]
    assert calls == 1
    assert 0 < seconds < profile.whole["swapped"]
    assert "aten::mish" in str(profile)
