import gc
import os
import signal
import subprocess
import sys
import threading
import time
import warnings

import pytest
import rusttorch
import torch
import torch.nn.functional as F
from rusttorch._register import overload


def dispatcher():
    """The dispatcher's text for every op that can be swapped, kernels and all."""
    return {op.name: torch._C._dispatch_dump(f"aten::{op.name}") for op in rusttorch.ops() if op.swappable}


@pytest.fixture(autouse=True)
def restored():
    before = dispatcher()
    rusttorch.reset_stats()
    yield before
    rusttorch.disable()
    assert dispatcher() == before


def ran(name):
    return rusttorch.stats()[name].ran if name in rusttorch.stats() else 0


X = torch.randn(100)
torch.vmap(F.mish)(X)  # at the first vmap torch registers some of its batching rules: not a change of ours


def test_use_swaps_and_restores(restored):
    with rusttorch.use():
        assert dispatcher() != restored
        F.mish(X)
    assert ran("mish") == 1
    F.mish(X)
    assert ran("mish") == 1


def test_every_swappable_op_is_swapped(restored):
    with rusttorch.use():
        inside = dispatcher()
    assert not [name for name in restored if inside[name] == restored[name]]


def test_use_of_some():
    with rusttorch.use("mish"):
        F.mish(X), F.silu(X)
    assert (ran("mish"), ran("silu")) == (1, 0)
    with rusttorch.use("activation", exclude=["mish"]):
        F.mish(X), F.silu(X), X + X
    assert (ran("mish"), ran("silu"), ran("add.Tensor")) == (1, 1, 0)
    with rusttorch.use("add.Tensor"):
        torch.add(X, X)
    assert ran("add.Tensor") == 1


def test_composite_names_reach_their_kernel():
    for name, kernel, call in (("selu", "elu", F.selu), ("log_sigmoid", "log_sigmoid_forward", F.logsigmoid)):
        with rusttorch.use(name):
            call(X)
        assert ran(kernel) == 1


def test_inplace_and_out_belong_to_the_name():
    with rusttorch.use("exp"):
        X.clone().exp_()
        torch.exp(X, out=torch.empty_like(X))
    assert (ran("exp_"), ran("exp.out")) == (1, 1)


def test_nesting():
    with rusttorch.use("mish"):
        with rusttorch.use("mish", "silu"):
            F.mish(X), F.silu(X)
        F.mish(X), F.silu(X)
    assert (ran("mish"), ran("silu")) == (2, 1)


def test_exception_restores(restored):
    with pytest.raises(RuntimeError, match="must match"), rusttorch.use():
        torch.add(torch.ones(3), torch.ones(4))
    assert dispatcher() == restored


def test_decorator():
    @rusttorch.use("mish")
    def f():
        return F.mish(X)

    f(), f(), F.mish(X)
    assert ran("mish") == 2


def test_enable_and_disable(restored):
    rusttorch.enable("mish")
    rusttorch.enable("silu")
    with rusttorch.use("mish"):
        pass
    F.mish(X), F.silu(X)
    rusttorch.disable()
    F.mish(X), F.silu(X)
    assert (ran("mish"), ran("silu")) == (1, 1)
    assert dispatcher() == restored


def test_overlapping_threads(restored):
    """A block that ends in one thread does not end another's."""
    first_in, second_in, first_out = threading.Event(), threading.Event(), threading.Event()
    seen = []

    def first():
        with rusttorch.use("mish"):
            first_in.set()
            second_in.wait(10)
        first_out.set()

    def second():
        first_in.wait(10)
        with rusttorch.use("mish"):
            second_in.set()
            first_out.wait(10)
            F.mish(X)
            seen.append(ran("mish"))

    threads = [threading.Thread(target=f) for f in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [1]
    assert dispatcher() == restored


def test_no_warning_and_none_used_up():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with rusttorch.use():
            F.mish(X)
    if torch.__version__ >= "2.14":
        return  # overriding a kernel warns no more
    # The once-only warning about that is still there for others.
    with pytest.warns(UserWarning, match="Overriding a previously registered kernel"):
        library = torch.library.Library("aten", "IMPL")
        library.impl("mish", lambda x: x, "CPU", allow_override=True)
        library._destroy()


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(ValueError, match="unknown op or family 'mihs'; did you mean 'mish'"):
        rusttorch.use("mihs")
    with pytest.raises(ValueError, match="activation"):
        rusttorch.enable("activations")
    with pytest.raises(ValueError, match="unknown op or family 'gleu'; did you mean 'gelu'"):
        rusttorch.use(exclude=["gleu"])
    with pytest.raises(ValueError, match=r"softsign.*call rusttorch.softsign"):
        rusttorch.use("softsign")


@pytest.mark.parametrize("name", ("gelu", "aten::gelu", "F.gelu", "torch.nn.functional.gelu", "torch.ops.aten.gelu"))
def test_names_as_people_write_them(name):
    names = rusttorch.use("gelu").names
    assert names == rusttorch.use(name).names == {"gelu", "gelu.out", "gelu_"}
    assert rusttorch.use([name, "mish"]).names == rusttorch.use(name, "mish").names
    assert rusttorch.use(exclude=name).names == rusttorch.use().names - names


def test_other_names():
    for other, name in (("swish", "silu"), ("AdamW", "_fused_adamw_"), ("layer_norm", "native_layer_norm")):
        assert rusttorch.use(other).names == rusttorch.use(name).names
    with pytest.raises(ValueError, match=r"'torch\.eye' is torch's own.*nothing to swap"):
        rusttorch.use("torch.eye")
    for wrong in (3, None, F.mish, torch.add):
        with pytest.raises(TypeError, match="expected names of aten ops or families"):
            rusttorch.enable(wrong)
    with pytest.raises(TypeError, match="its name is 'gelu'"):
        rusttorch.use(rusttorch.gelu)


def test_a_decorator_without_parentheses():
    @rusttorch.use
    def swapped():
        return rusttorch.is_enabled()

    assert swapped() and not rusttorch.is_enabled()


def test_disable_by_force(restored):
    with rusttorch.use("mish"):
        rusttorch.disable()
        assert rusttorch.is_enabled()
        rusttorch.disable(force=True)
        assert not rusttorch.is_enabled()
        with rusttorch.use("gelu"):
            assert rusttorch.is_enabled()
    assert dispatcher() == restored
    rusttorch.enable("mish")
    with rusttorch.use("gelu"), rusttorch.use("silu"):
        said = rusttorch.swap._swapped.holders()
    assert said == f"enable() ({len(rusttorch.use('mish').names)} ops) and 2 open use()"


def test_families_are_names_too():
    for family in rusttorch.families():
        assert rusttorch.use(family).names
    assert set().union(*(rusttorch.use(family).names for family in rusttorch.families())) == rusttorch.use().names


def test_stats_say_why():
    integers = torch.arange(6)
    with rusttorch.use():
        torch.exp(integers)  # promotes
        torch.add(X[::2], X[::2])  # strided
        torch.div(X, X, rounding_mode="floor")
        torch.add(X, X)
    stats = rusttorch.stats()
    assert stats["exp"] == (0, {"dtype": 1})
    assert stats["add.Tensor"] == (1, {"layout": 1})
    assert stats["div.Tensor_mode"] == (0, {"option": 1})
    rusttorch.reset_stats()
    assert rusttorch.stats() == {}


def test_autograd_vmap_and_compile_reach_the_kernels():
    x = X.clone().requires_grad_()
    with rusttorch.use():
        F.mish(x).sum().backward()
        assert ran("mish") == 1
        with torch.inference_mode():
            F.mish(X)
        torch.vmap(F.mish)(X.view(10, 10))
        assert ran("mish") == 3
        torch._dynamo.reset()
        torch.compile(F.mish, fullgraph=True, backend="aot_eager")(X)
    y = X.clone().requires_grad_()
    F.mish(y).sum().backward()
    torch.testing.assert_close(x.grad, y.grad)


def test_tracing_after_a_swap_finds_stock_again():
    """torch.compile's tracers keep the key at which they found a kernel: clone has none for the CPU but ours."""

    def traced(f):
        torch._dynamo.reset()
        return torch.compile(f, fullgraph=True, backend="aot_eager")

    x = torch.randn(100)
    expected = F.mish(x)
    for _ in range(2):
        with rusttorch.use():
            torch.testing.assert_close(traced(F.mish)(x), expected)
        torch.testing.assert_close(traced(F.mish)(x), expected)


def test_data_loader_workers_may_be_forked():
    data = torch.utils.data.DataLoader(_Squares(), batch_size=4, num_workers=2, multiprocessing_context="fork")
    with rusttorch.use():
        assert torch.cat(list(data)).tolist() == [float(i * i) for i in range(16)]


class _Squares(torch.utils.data.Dataset):
    def __len__(self):
        return 16

    def __getitem__(self, i):
        return torch.tensor(float(i)).mul(i)


def test_sizes_at_which_stock_is_faster_are_handed_over():
    x = torch.randn(5000, dtype=torch.bfloat16)
    rusttorch.neg(x[:100]), rusttorch.neg(x)
    assert rusttorch.stats()["neg"] == (1, {"size": 1})


@pytest.mark.parametrize("op", [op.name for op in rusttorch.ops() if op.swappable])
def test_threads_find_no_empty_slot(op):
    """Ours has SymInts where stock's kernel has: each kind has its slot, and threads may be about to call either.

    Found by tests/test_property.py: native_layer_norm without them emptied the slot that another thread had looked at.
    """
    with rusttorch.use():
        lines = torch._C._dispatch_dump(f"aten::{op}").splitlines()
    kernels = dict(line.split(": registered at ", 1) for line in lines if ": registered at " in line)
    replaced = {
        key: kernels.get(f"{key} (inactive)") or kernels.get("CompositeImplicitAutograd[alias]")
        for key, kernel in kernels.items()
        if "swap.cpp" in kernel
    }
    assert replaced
    for key, kernel in replaced.items():
        stock = kernel or kernels["CompositeExplicitAutograd[alias]"]
        assert ("SymInt" in kernels[key]) == ("SymInt" in stock), lines


def test_the_end_of_one_is_not_that_of_another():
    """That asks for the same."""
    first = rusttorch.use()
    first.__enter__()
    rusttorch.disable(force=True)
    with rusttorch.use():
        first.__exit__(None, None, None)
        rusttorch.use().__exit__(None, None, None)  # never entered
        assert rusttorch.is_enabled() and rusttorch.memory.is_enabled()
    assert not rusttorch.is_enabled()


def test_no_names_in_a_list_are_all():
    assert rusttorch.use([]).pool and repr(rusttorch.use([])) == repr(rusttorch.use())


@pytest.mark.parametrize("op", [op.name for op in rusttorch.ops() if op.swappable])
def test_schemas_are_those_of_aten(op):
    """The dispatcher compares kernels with ours only, when they are registered under rusttorch's names."""
    ours, stock = (str(overload(namespace, op)._schema).partition("::")[2] for namespace in ("rusttorch", "aten"))
    assert ours == stock


def test_threads_call_while_others_switch():
    """Each call takes stock's kernel or ours; `make tsan` runs this under ThreadSanitizer."""
    x, classes = torch.randn(33, 17), torch.randint(17, (33,))
    calls = {
        "mish": lambda leaf: F.mish(leaf),
        "add": lambda leaf: leaf + leaf,
        "max": lambda leaf: leaf.max(0).values,
        "softmax": lambda leaf: leaf.softmax(-1),
        "cross_entropy": lambda leaf: F.cross_entropy(leaf, classes),
        "layer_norm": lambda leaf: F.layer_norm(leaf, (17,)),
    }

    def results(name):
        leaf = x.clone().requires_grad_()
        y = calls[name](leaf)
        return y.detach(), torch.autograd.grad(y.square().sum(), leaf)[0]

    expected = {name: results(name) for name in calls}
    failures, done = [], threading.Event()

    def call(name):
        while not done.is_set():
            try:
                torch.testing.assert_close(results(name), expected[name], rtol=1e-4, atol=1e-5)
            except Exception as failure:
                failures.append(failure)

    def switch():
        for family in ("activation", "norm", "softmax", "cross_entropy", "reduction"):
            for _ in range(200):
                with rusttorch.use(family):
                    pass
        with rusttorch.use("activation"), rusttorch.use():
            rusttorch.stats()

    callers = [threading.Thread(target=call, args=(name,)) for name in calls]
    switchers = [threading.Thread(target=switch) for _ in range(2)]
    for thread in callers + switchers:
        thread.start()
    for thread in switchers:
        thread.join()
    done.set()
    for thread in callers:
        thread.join()
    assert not failures, failures[0]


@rusttorch.use("mish")
def decorated(x):
    return F.mish(x)


def within(x):
    with rusttorch.use("mish"):
        return F.mish(x)


def between(x):
    rusttorch.enable("mish")
    y = F.mish(x)
    rusttorch.disable()
    return y


@pytest.mark.parametrize("f", [decorated, within, between])
def test_within_a_compiled_function(f, restored):
    """The graph breaks there; fullgraph=True says why it cannot be whole."""
    expected = F.mish(X * 2) + 1
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"exchanges the dispatcher's kernels|enter a `use`"):
        torch.compile(lambda x: f(x * 2) + 1, backend="aot_eager", fullgraph=True)(X)
    assert dispatcher() == restored
    rusttorch.reset_stats()
    compiled = torch.compile(lambda x: f(x * 2) + 1, backend="aot_eager")
    for calls in (1, 2):
        torch.testing.assert_close(compiled(X), expected)
        assert ran("mish") == calls
        assert dispatcher() == restored


def test_swapping_does_not_import_dynamo():
    """Which takes seconds."""
    program = (
        "import sys, rusttorch\nwith rusttorch.use(): rusttorch.enable()\n"
        "rusttorch.disable()\nassert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.fixture
def interrupt(monkeypatch):
    """The next exchange of kernels ends with a Ctrl-C."""
    exchange = rusttorch.swap._C.set_swapped

    def interrupted(names):
        monkeypatch.setattr(rusttorch.swap._C, "set_swapped", exchange)
        exchange(names)
        raise KeyboardInterrupt

    return lambda: monkeypatch.setattr(rusttorch.swap._C, "set_swapped", interrupted)


def test_interrupted_at_the_start(interrupt, restored):
    interrupt()
    with pytest.raises(KeyboardInterrupt), rusttorch.use():
        pass
    assert dispatcher() == restored
    interrupt()
    with pytest.raises(KeyboardInterrupt):
        rusttorch.enable()
    assert dispatcher() == restored


def test_interrupted_at_the_end(interrupt, restored):
    with rusttorch.use("mish"):
        with pytest.raises(KeyboardInterrupt), rusttorch.use():
            interrupt()
        F.mish(X)
    assert ran("mish") == 1
    assert dispatcher() == restored


def test_the_garbage_collector_may_end_an_ab_within_an_exchange(monkeypatch, restored):
    ab = rusttorch.AB("mish", block=1)
    arm = None
    while arm != "swapped":
        with ab.step() as step:
            arm = step.arm
    ab.itself = ab
    exchange = rusttorch.swap._C.set_swapped

    def collecting(names):
        gc.collect()
        exchange(names)

    monkeypatch.setattr(rusttorch.swap._C, "set_swapped", collecting)
    del ab, step
    with rusttorch.use("silu"):
        F.mish(X), F.silu(X)
    assert (ran("mish"), ran("silu")) == (0, 1)
    assert dispatcher() == restored


def test_fork_while_other_threads_swap():
    done = threading.Event()

    def swap():
        while not done.is_set():
            with rusttorch.use():
                pass

    threads = [threading.Thread(target=swap) for _ in range(2)]
    for thread in threads:
        thread.start()
    hung = 0
    try:
        for _ in range(20):
            child = os.fork()
            if child == 0:
                with rusttorch.use():
                    pass
                os._exit(0)
            deadline = time.monotonic() + 20
            while os.waitpid(child, os.WNOHANG) == (0, 0):
                if time.monotonic() > deadline:
                    os.kill(child, signal.SIGKILL)
                    os.waitpid(child, 0)
                    hung += 1
                    break
                time.sleep(0.01)
            if hung:
                break
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert not hung
