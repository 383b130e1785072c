import random

import pytest
import rusttorch
import torch
import torch.nn.functional as F


def steps(ab, n, step=lambda: None, **kwargs):
    for _ in range(n):
        with ab.step(**kwargs) as s:
            s.loss = step()


def test_finds_a_known_difference(monkeypatch):
    """By a clock of our own, swapped steps take half as long, give or take a fifth: the ratio is 2."""
    clock, jitter = [0.0], random.Random(0)
    monkeypatch.setattr(rusttorch.ab.time, "perf_counter", lambda: clock[0])
    ab = rusttorch.AB(block=2, warmup=1)
    for _ in range(8 * 31):
        with ab.step(samples=32) as step:
            clock[0] += (4 if step.arm == "stock" else 2) * jitter.uniform(0.8, 1.2)
    report = ab.report()
    assert report.rounds == 30
    low, high = report.interval
    assert 1.8 < low <= report.speedup <= high < 2.2
    assert report.per_second["swapped"] == pytest.approx(16, rel=0.05)
    assert report.per_second["stock"] == pytest.approx(8, rel=0.05)
    assert report.loss_interval is None
    assert len(ab.times("stock")) == len(ab.times("swapped")) == 120


def test_arms_run_their_kernels_and_leave_nothing():
    before = torch._C._dispatch_dump("aten::mish")
    rusttorch.reset_stats()
    ab = rusttorch.AB("mish", block=1, warmup=0)
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
    ab = rusttorch.AB(block=2, warmup=0)
    steps(ab, 40, lambda: torch.tensor(1.0))
    report = ab.report()
    assert report.losses_agree
    assert report.loss_difference == 0
    ab = rusttorch.AB(block=2, warmup=0)
    for _ in range(40):
        with ab.step() as step:
            step.loss = 1.0 if step.arm == "stock" else 2.0
    assert not ab.report().losses_agree
    assert "DIFFER" in str(ab.report())


def test_report_reads_well():
    ab = rusttorch.AB(block=1, warmup=0)
    x = torch.randn(50)
    steps(ab, 8, lambda: F.mish(x).sum(), samples=50)
    text = str(ab.report())
    for part in ("speed-up", "95% interval", "losses", "per second", "peak memory", "mish"):
        assert part in text


def test_exception_in_a_step_restores():
    before = torch._C._dispatch_dump("aten::mish")
    ab = rusttorch.AB(block=1, warmup=0)
    for _ in range(4):
        with pytest.raises(ZeroDivisionError), ab.step():
            raise ZeroDivisionError
        assert torch._C._dispatch_dump("aten::mish") == before


def test_refuses_what_it_cannot_measure():
    with pytest.raises(ValueError, match="did you mean 'mish'"):
        rusttorch.AB("mihs")
    with pytest.raises(ValueError, match="block must be at least 1"):
        rusttorch.AB(block=0)
    with pytest.raises(RuntimeError, match="needs at least 48 steps, and has 0"):
        rusttorch.AB().report()
    ab = rusttorch.AB()
    with rusttorch.use(), pytest.raises(RuntimeError, match="swapped already"):
        steps(ab, 1)


def test_profile():
    x = torch.randn(1000, requires_grad=True)
    profile = rusttorch.AB().profile(lambda: F.mish(x).sum().backward(), steps=3)
    assert {"aten::mish", "aten::mish_backward"} <= set(profile)
    calls, seconds = profile["aten::mish"]["swapped"]
    assert calls == 1
    assert 0 < seconds < profile.whole["swapped"]
    assert "aten::mish" in str(profile)
