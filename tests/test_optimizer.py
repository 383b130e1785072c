"""Optimizers against torch.optim's: the same steps, the same state, the same errors."""

import contextlib
import copy
import functools
import itertools
import sys
import threading

import pytest
import rusttorch
import torch
from cases import ON_DEVICE

SHAPES = [(), (1,), (17,), (33, 65), (40_000,), (0,), (3, 5, 7)]
ADAM = [
    {"amsgrad": amsgrad, "maximize": maximize, "weight_decay": decay}
    for amsgrad, maximize, decay in itertools.product((False, True), (False, True), (0, 0.1))
]
SGD = [
    {"momentum": momentum, "nesterov": nesterov, "dampening": dampening, "maximize": maximize, "weight_decay": decay}
    for (momentum, nesterov, dampening), maximize, decay in itertools.product(
        ((0, False, 0), (0.9, False, 0), (0.9, False, 0.3), (0.9, True, 0)), (False, True), (0, 0.1)
    )
]
OPTIMIZERS = [
    *[("Adam", {"lr": 3e-3, **options}) for options in ADAM],
    *[("AdamW", {"lr": 3e-3, "betas": (0.8, 0.95), "eps": 1e-6, **options}) for options in ADAM],
    *[("SGD", {"lr": 3e-2, **options}) for options in SGD],
    *[
        ("Adagrad", {"lr": 3e-2, "lr_decay": 0.01, "weight_decay": decay, "maximize": maximize})
        for decay, maximize in itertools.product((0, 0.1), (False, True))
    ],
]


def parameters(dtype, seed=0):
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    all_ = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in SHAPES]
    all_[3] = all_[3].t().contiguous().t()  # dense, and not contiguous
    return [torch.nn.Parameter(p) for p in all_]


@functools.cache
def gradients(step, shapes):
    """Which depend on the step alone."""
    generator = torch.Generator(torch.get_default_device()).manual_seed(step)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def train(optimizer, params, steps, first=0):
    shapes = tuple(p.shape for p in params)
    for k in range(first, first + steps):
        for p, g in zip(params, gradients(k, shapes), strict=True):
            p.grad = torch.empty_like(p).copy_(g)
        optimizer.step()


def tensors_of(optimizer, params):
    state = [t for p in params for _, t in sorted(optimizer.state[p].items()) if t is not None]
    return [*(p.detach() for p in params), *state]


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16), ids=str)
@pytest.mark.parametrize(("name", "options"), OPTIMIZERS, ids=str)
def test_hundred_steps(name, options, dtype):
    """As close to float64 as torch.optim's default, or 1e-6; bf16 on average."""
    results = []
    ours, torchs = getattr(rusttorch.optim, name), getattr(torch.optim, name)
    for kind, precision, swap in (
        (ours, dtype, contextlib.nullcontext),
        (torchs, dtype, rusttorch.use),
        (torchs, dtype, contextlib.nullcontext),
        (torchs, 0, contextlib.nullcontext),
    ):
        params = parameters(dtype)
        if precision == 0:
            params = [torch.nn.Parameter(p.detach().double()) for p in params]
        optimizer = kind(params, **options)
        with swap():
            train(optimizer, params, 100)
        results.append([t.double() for t in tensors_of(optimizer, params)])
    *both, stocks, references = results
    for mine, stock, reference in (
        (m, *rest) for ours in both for m, *rest in zip(ours, stocks, references, strict=True)
    ):
        if mine.numel() == 0:
            continue
        if dtype == torch.bfloat16:  # a walk of a hundred roundings
            if mine.numel() > 1000:
                assert (mine - reference).norm() <= 1.1 * (stock - reference).norm()
            continue
        bound = max(2 * (stock - reference).abs().max(), 1e-6 * reference.abs().mean(), 1e-6)
        assert (mine - reference).abs().max() <= bound


@pytest.mark.parametrize(("name", "options"), [OPTIMIZERS[5], OPTIMIZERS[13], OPTIMIZERS[23], OPTIMIZERS[-1]], ids=str)
def test_state_dict_goes_both_ways(name, options):
    pair = (getattr(rusttorch.optim, name), getattr(torch.optim, name))
    for saver, loader in (pair, pair[::-1]):
        params = parameters(torch.float32)
        optimizer = saver(params, **options)
        train(optimizer, params, 5)
        others = [torch.nn.Parameter(p.detach().clone()) for p in params]
        other = loader(others, **options)
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        assert {k: v for k, v in other.param_groups[0].items() if k != "params"} == {
            k: v for k, v in optimizer.param_groups[0].items() if k != "params"
        }
        train(optimizer, params, 5, first=5)
        train(other, others, 5, first=5)
        for a, b in zip(tensors_of(optimizer, params), tensors_of(other, others), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD", "Adagrad"])
def test_torch_s_own_is_fused_under_use(name):
    params = parameters(torch.float32)
    optimizer = getattr(torch.optim, name)(params, lr=1e-3)
    op = "_fused_" + name.lower() + "_"
    rusttorch.reset_stats()
    train(optimizer, params, 1)
    assert op not in rusttorch.stats()
    with rusttorch.use():
        train(optimizer, params, 2)
        assert rusttorch.stats()[op] == (2, {})
        assert optimizer.param_groups[0]["fused"] is None
        explicit = getattr(torch.optim, name)(params, lr=1e-3, foreach=False)
        train(explicit, params, 1)
    assert rusttorch.stats()[op].ran == 2
    train(optimizer, params, 1)
    assert rusttorch.stats()[op].ran == 2
    with rusttorch.use("mish"):
        train(optimizer, params, 1)
    assert rusttorch.stats()[op].ran == 2


FUNCTIONS = {name: getattr(sys.modules[f"torch.optim.{name}"], name) for name in ("adam", "sgd", "adagrad")}


def functions():
    return {name: getattr(sys.modules[f"torch.optim.{name}"], name) for name in FUNCTIONS}


def ran(op):
    return rusttorch.stats()[op].ran if op in rusttorch.stats() else 0


def test_groups_are_never_changed():
    """A step that raises, and closures that step other optimizers, in this thread and in another."""
    optimizers = [torch.optim.Adam(parameters(torch.float32)) for _ in range(3)]
    other_thread = threading.Thread(target=lambda: train(optimizers[2], optimizers[2].param_groups[0]["params"], 1))

    def nested():
        train(optimizers[1], optimizers[1].param_groups[0]["params"], 1)
        other_thread.start()
        other_thread.join()
        for optimizer in optimizers:
            assert optimizer.state_dict()["param_groups"][0]["fused"] is None

    def raises():
        raise ValueError("no loss")

    for p in optimizers[0].param_groups[0]["params"]:
        p.grad = torch.ones_like(p)
    rusttorch.reset_stats()
    with rusttorch.use():
        optimizers[0].step(nested)
        assert ran("_fused_adam_") == 3
        with pytest.raises(ValueError, match="no loss"):
            optimizers[0].step(raises)
        assert optimizers[0].param_groups[0]["fused"] is None
        assert functions() != FUNCTIONS
    assert functions() == FUNCTIONS


def test_only_what_is_swapped_is_fused():
    for name, op in (("Adam", "_fused_adam_"), ("SGD", "_fused_sgd_"), ("Adagrad", "_fused_adagrad_")):
        with rusttorch.use(op):
            changed = {k for k, function in functions().items() if function is not FUNCTIONS[k]}
        assert changed == {name.lower()}


def test_subclasses_are_fused():
    class Mine(torch.optim.AdamW):
        def step(self, closure=None):
            return super().step(closure)

    params = parameters(torch.float32)
    rusttorch.reset_stats()
    with rusttorch.use():
        train(Mine(params), params, 1)
    assert ran("_fused_adamw_") == 1


@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD", "Adagrad"])
def test_hooks_run_once(name):
    p = torch.nn.Parameter(torch.ones(3))
    getattr(torch.optim, name)([p])  # torch puts the hooks around this class's step now
    for options in ({}, {"foreach": True}):
        optimizer, calls = getattr(rusttorch.optim, name)([p], **options), []
        optimizer.register_step_pre_hook(lambda *args: calls.append("pre"))  # noqa: B023
        optimizer.register_step_post_hook(lambda *args: calls.append("post"))  # noqa: B023
        p.grad = torch.ones(3)
        optimizer.step()
        assert calls == ["pre", "post"]


class Mine(torch.Tensor):
    """A tensor that no fused kernel knows."""


def transposed():
    p = torch.nn.Parameter(torch.randn(4, 3).t())
    p.grad = torch.randn(3, 4)
    return p


def of_another_dtype():
    p = torch.nn.Parameter(torch.randn(5, dtype=torch.bfloat16))
    p.grad_dtype = torch.float32
    p.grad = torch.randn(5)
    return p


def with_grad(p):
    p = p if p.requires_grad else torch.nn.Parameter(p)
    p.grad = torch.randn(p.shape)
    return p


NOT_FUSED = {
    "a gradient that lies otherwise": transposed,
    "a gradient of another dtype": of_another_dtype,  # which stock's Adam refuses
    "a slice": lambda: with_grad(torch.randn(6, 4)[::2]),
    "a view that is negated when it is read": lambda: with_grad(torch._neg_view(torch.randn(3)).requires_grad_()),
    "a tensor of another class": lambda: with_grad(torch.randn(3).as_subclass(Mine).requires_grad_()),
    "no gradient at first": lambda: torch.nn.Parameter(torch.randn(3)),
}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (n, k)
        for n in ("Adam", "SGD", "Adagrad")
        for k in NOT_FUSED
        if (n, k) != ("Adam", "a gradient of another dtype")
    ],
)
def test_what_no_fused_kernel_takes_is_stock_s(name, kind):
    """Stock's fused kernels raise for it, or, worse, do not."""
    results = []
    for swap in (contextlib.nullcontext, rusttorch.use):
        torch.manual_seed(0)
        params = [with_grad(torch.randn(3)), NOT_FUSED[kind]()]
        optimizer = getattr(torch.optim, name)(params, lr=0.1, **({"momentum": 0.9} if name == "SGD" else {}))
        with swap():
            optimizer.step()
            params[1].grad = torch.ones_like(params[1], dtype=params[1].grad_dtype)
            optimizer.step()
        results.append([p.detach() for p in params])
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["Adam", "SGD", "Adagrad"])
def test_parameters_of_the_cpu_whatever_the_default_device(name):
    """Where torch.optim makes its steps."""
    results = []
    for swap in (contextlib.nullcontext, rusttorch.use):
        p = torch.nn.Parameter(torch.ones(3, device="cpu"))
        optimizer = getattr(torch.optim, name)([p], lr=0.1)
        with swap():
            for _ in range(2):
                p.grad = torch.full_like(p, 2.0)
                optimizer.step()
        results.append(p.detach())
    torch.testing.assert_close(*results)


@pytest.mark.parametrize(("name", "fused"), [("Adam", 2), ("SGD", 0), ("Adagrad", 0)])
def test_sharded_parameters(name, fused):
    """DTensor has Adam's fused op, and raises at the others; no op takes sharded and plain parameters at once."""
    from torch.distributed import tensor

    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        with torch.device("cpu"):  # the mesh's, where torch.optim makes its steps too
            mesh = tensor.init_device_mesh("cpu", (1,))

            def shard(value):
                return tensor.distribute_tensor(torch.full((4, 3), value), mesh, [tensor.Shard(0)])

            for plain in ([], [torch.nn.Parameter(torch.ones(3))]):
                results = []
                for swap in (contextlib.nullcontext, rusttorch.use):
                    p = torch.nn.Parameter(shard(1.0))
                    optimizer = getattr(torch.optim, name)([p, *copy.deepcopy(plain)], lr=0.1)
                    rusttorch.reset_stats()
                    with swap():
                        for step in (1.0, 2.0):
                            p.grad = shard(step)
                            for q in optimizer.param_groups[0]["params"][1:]:
                                q.grad = torch.ones_like(q)
                            optimizer.step()
                    results.append(p.detach().to_local())
                torch.testing.assert_close(*results)
                assert ran(f"_fused_{name.lower()}_") == (0 if plain else fused)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD", "Adagrad"])
def test_autograd_is_told_of_a_step(name):
    """As by the steps that are replaced: who steps before the backward of another loss is told so."""
    with torch.inference_mode():
        fixed = torch.ones(3)
    for module in (torch.optim, rusttorch.optim):
        with rusttorch.use():
            w = torch.ones(3, requires_grad=True)
            optimizer = getattr(module, name)([w])
            loss = w.square().sum()
            w.grad = torch.ones(3)
            optimizer.step()
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                loss.backward()
            fixed.grad = torch.ones(3)
            with pytest.raises(RuntimeError, match="Inplace update to inference tensor"):
                getattr(module, name)([fixed]).step()


def test_a_parameter_that_is_exchanged():
    """For one that is there already: both its steps are taken, as in stock."""
    results = []
    for module in (torch.optim, rusttorch.optim):
        torch.manual_seed(0)
        params = [with_grad(torch.ones(3)) for _ in range(2)]
        optimizer = module.Adam(params, lr=0.1)
        optimizer.step()
        optimizer.param_groups[0]["params"][1] = params[0]
        optimizer.step()
        results.append(params[0].detach())
    torch.testing.assert_close(*results)


def test_state_of_another_dtype():
    """A model that was made double after its first steps: SGD's momentum is float, and stays so."""
    results = []
    for swap in (contextlib.nullcontext, rusttorch.use):
        model = torch.nn.Linear(3, 3)
        torch.nn.init.ones_(model.weight)
        optimizer = torch.optim.SGD([model.weight], lr=0.1, momentum=0.9)
        with swap():
            for _ in range(2):
                model.weight.grad = torch.ones_like(model.weight)
                optimizer.step()
                model.double()
        results.append(model.weight.detach())
    torch.testing.assert_close(*results)


def test_what_stock_refuses_is_refused():
    p = with_grad(torch.randn(1, 4).expand(3, 4))
    with rusttorch.use(), pytest.raises(RuntimeError, match="more than one element of the written-to tensor"):
        torch.optim.Adam([p]).step()


def test_scaled_gradients():
    """Of a scale that is right, and of one that is too large, whose step is left out."""
    results = []
    for swap in (contextlib.nullcontext, rusttorch.use):
        p = torch.nn.Parameter(torch.ones(5))
        optimizer = torch.optim.Adam([p], lr=0.1)
        scaler = torch.amp.GradScaler(p.device.type, init_scale=4.0)
        with swap():
            for factor in (1.0, float("inf"), 1.0):
                optimizer.zero_grad()
                scaler.scale((p * factor).sum()).backward()
                scaler.step(optimizer)
                scaler.update()
        results.append((p.detach(), optimizer.state[p]["step"], torch.tensor(scaler.get_scale())))
    torch.testing.assert_close(*results)
    assert results[0][1] == 2


@pytest.mark.parametrize("name", ["Adam", "SGD", "Adagrad"])
def test_a_scaled_gradient_that_lies_otherwise_is_unscaled(name):
    p = torch.nn.Parameter(torch.randn(3, 4))
    gradient = torch.randn(4, 3).t()
    optimizer = getattr(torch.optim, name)([p], lr=0.1, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.ones(()))
    p.grad = gradient * 8
    with rusttorch.use():
        scaler.step(optimizer)
    torch.testing.assert_close(p.grad, gradient)


@pytest.mark.filterwarnings("ignore:.*duplicate parameters")
@pytest.mark.parametrize("name", ["Adam", "SGD", "Adagrad"])
def test_a_parameter_that_is_there_twice_takes_both_steps(name):
    results = []
    for optimizer, swap in (("torch", contextlib.nullcontext), ("torch", rusttorch.use), ("rusttorch", rusttorch.use)):
        make = getattr({"torch": torch.optim, "rusttorch": rusttorch.optim}[optimizer], name)
        p = torch.nn.Parameter(torch.linspace(-1, 1, 6))
        optimizer = make([p, p], lr=0.1)
        with swap():
            for _ in range(4):
                p.grad = p.detach() * 3
                optimizer.step()
        results.append(p.detach())
    for ours in results[1:]:
        torch.testing.assert_close(ours, results[0])


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own, the first time that it compiles
def test_a_compiled_step_is_stock_s():
    """Compiled once for each of the functions, however often ops are swapped."""
    torch._dynamo.reset()
    graphs = []
    p = torch.nn.Parameter(torch.ones(5))
    optimizer = torch.optim.Adam([p])
    step = torch.compile(optimizer.step, backend=lambda graph, inputs: graphs.append(graph) or graph)
    rusttorch.reset_stats()
    counts = []
    for _ in range(5):
        p.grad = torch.ones(5)
        step()
        with rusttorch.use():
            step()
        counts.append(len(graphs))
    assert ran("_fused_adam_") == 0
    assert 0 < counts[1] == counts[-1]
    expected = torch.nn.Parameter(torch.ones(5))
    optimizer = torch.optim.Adam([expected])
    expected.grad = torch.ones(5)
    for _ in range(10):
        optimizer.step()
    torch.testing.assert_close(p, expected)


def test_groups_schedulers_and_closures():
    def run(kind):
        params = parameters(torch.float32)
        groups = [{"params": params[:3], "lr": 1e-2}, {"params": params[3:], "weight_decay": 0.3}]
        optimizer = kind(groups, lr=1e-3)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, [1e-2, 1e-3], total_steps=20)
        losses = []
        for _ in range(15):

            def closure():
                optimizer.zero_grad()
                loss = sum((p * p).sum() for p in params)
                loss.backward()
                return loss

            losses.append(optimizer.step(closure).item())
            scheduler.step()
        return torch.tensor(losses)

    torch.testing.assert_close(run(rusttorch.optim.AdamW), run(torch.optim.AdamW))


def test_lr_that_is_a_tensor_and_parameters_without_gradient():
    for name in ("Adam", "SGD"):
        results = []
        for kind in (getattr(rusttorch.optim, name), getattr(torch.optim, name)):
            params = parameters(torch.float32)
            optimizer = kind(params, lr=torch.tensor(1e-2), fused=None)
            train(optimizer, params[2:], 3)
            results.append([p.detach() for p in params])
        torch.testing.assert_close(*results)


def test_gradient_scale_and_found_inf():
    ops = torch.ops.rusttorch
    p, m, v, step = torch.ones(5), torch.zeros(5), torch.zeros(5), torch.ones(())
    numbers = {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.0, "eps": 1e-8}
    flags = {"amsgrad": False, "maximize": False}

    def adam(ops, tensors, **options):
        return ops._fused_adam_(*[[t] for t in tensors[:4]], [], [tensors[4]], **numbers, **flags, **options)

    for found in (0.0, 1.0):
        both = []
        for namespace in (ops, torch.ops.aten):
            tensors = [t.clone() for t in (p, torch.full((5,), 6.0), m, v, step)]
            adam(namespace, tensors, grad_scale=torch.tensor(4.0), found_inf=torch.tensor(found))
            both.append(tensors)
        torch.testing.assert_close(*both)
        assert (both[0][0] == 1).all() == bool(found)


def fused(name, p, g, state, decay):
    """One call of the fused op for lists of one tensor."""
    ops, step = torch.ops.rusttorch, [torch.tensor(3.0)]
    options = {"weight_decay": decay, "maximize": False}
    if name == "adagrad":
        return ops._fused_adagrad_([p], [g], state[:1], step, lr=0.1, lr_decay=0.1, eps=1e-3, **options)
    if name.startswith("adam"):
        amsgrad = name == "adam_amsgrad"
        options |= {"beta1": 0.8, "beta2": 0.9, "eps": 1e-3, "amsgrad": amsgrad}
        return ops._fused_adam_([p], [g], state[:1], state[1:2], state[2:] if amsgrad else [], step, lr=0.1, **options)
    momentum = 0.0 if name == "sgd" else 0.9
    options |= {"momentum": momentum, "dampening": 0.1, "nesterov": name == "sgd_nesterov", "is_first_step": False}
    return ops._fused_sgd_([p], [g], state[:1] if momentum else [], lr=0.1, **options)


@pytest.mark.parametrize("name", ("sgd", "sgd_momentum", "sgd_nesterov", "adam", "adam_amsgrad", "adagrad"))
@pytest.mark.parametrize("decay", (0.0, 0.1))
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("state_dtype", (None, torch.float32), ids=str)
def test_16_bits(name, decay, dtype, state_dtype):
    """As with the same numbers in float64, rounded once; the state too, which may be float."""
    draws = [torch.randn(1003), torch.randn(1003), *(torch.rand(1003) for _ in range(3))]
    p, g, *state = (t.to(dtype) for t in draws)
    state = [t.to(state_dtype or dtype) for t in state]
    exact = [t.double() for t in (p, g, *state)]
    fused(name, p, g, state, decay)
    fused(name, *exact[:2], exact[2:], decay)
    for ours, wanted in zip((p, *state), (exact[0], *exact[2:]), strict=True):
        eps = torch.finfo(ours.dtype).eps
        torch.testing.assert_close(ours.double(), wanted, rtol=2 * eps, atol=2 * eps)


@pytest.mark.parametrize("name", ("sgd_momentum", "sgd_nesterov", "adam", "adam_amsgrad"))
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
def test_means_that_have_decayed(name, dtype):
    """What is less than a normal number is 0, so that it ends; stock's stays a few of the least numbers."""
    least = torch.finfo(dtype).smallest_normal
    before = torch.tensor([least / 1024, least, 4 * least, 1e-3, 0.0, torch.nan], dtype=dtype).repeat(9)
    p, g, states = torch.ones_like(before), torch.zeros_like(before), [before.clone() for _ in range(3)]
    fused(name, p, g, states, 0.0)
    for state, beta in zip(
        states[: 2 if name.startswith("adam") else 1], (0.9 if "sgd" in name else 0.8, 0.9), strict=False
    ):
        assert ((state == 0) | (state >= least) | state.isnan()).all()
        kept = before * beta
        torch.testing.assert_close(state, kept.where(~(kept < least), 0), rtol=1e-6, atol=0, equal_nan=True)
    assert (p[before < 1e-5] == 1).all()


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16), ids=str)
def test_updates_of_one_tensor(dtype):
    """As torch.optim's, and seen by autograd as changes."""

    def stock(kind, **options):
        q = torch.nn.Parameter(p.clone())
        optimizer = kind([q], **options)
        for _ in range(2):
            q.grad = g.clone()
            optimizer.step()
        return q.detach()

    p, g = torch.randn(501).to(dtype), torch.randn(501).to(dtype)
    tolerance = {"rtol": 2**-6, "atol": 2**-6} if dtype == torch.bfloat16 else {"rtol": 1e-6, "atol": 1e-6}
    for name, kind in (("adam_update", torch.optim.Adam), ("adamw_update", torch.optim.AdamW)):
        for amsgrad in (False, True):
            q, m, v, largest = p.clone(), torch.zeros_like(p), torch.zeros_like(p), torch.zeros_like(p)
            for step in (1, 2):
                version = q._version
                getattr(rusttorch, name)(q, g, m, v, step, largest if amsgrad else None)
                assert q._version > version
            torch.testing.assert_close(q, stock(kind, amsgrad=amsgrad), **tolerance)
    q = p.clone()
    for _ in range(2):
        rusttorch.sgd_update(q, g, lr=0.1, weight_decay=0.2)
    torch.testing.assert_close(q, stock(torch.optim.SGD, lr=0.1, weight_decay=0.2), **tolerance)
    q, buffer = p.clone(), torch.zeros_like(p)
    for first in (True, False):
        rusttorch.sgd_momentum_update(q, g, buffer, lr=0.1, momentum=0.9, nesterov=True, is_first_step=first)
    torch.testing.assert_close(q, stock(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True), **tolerance)


def test_threads_agree():
    """Many small parameters and a large one, in one parallel region."""
    results = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        params = [torch.nn.Parameter(torch.linspace(-1, 1, n)) for n in [64] * 1000 + [100_000, 7]]
        optimizer = rusttorch.optim.AdamW(params)
        train(optimizer, params, 2)
        results.append([p.detach() for p in params])
    torch.set_num_threads(2)
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_not_finite_is_as_in_stock():
    # On a device stock has no fused Adagrad, and its Adam makes NaN of a gradient whose square overflows.
    large, names = ([], ("Adam", "SGD")) if ON_DEVICE else ([1e30], ("Adam", "SGD", "Adagrad"))
    values = torch.tensor([0.0, float("inf"), -float("inf"), float("nan"), *large, 1e-30])
    for name in names:
        results = []
        for swap in (False, True):
            p = torch.nn.Parameter(values.clone())
            optimizer = getattr(torch.optim, name)([p], lr=0.1, fused=True)
            p.grad = values.flip(0)
            if swap:
                with rusttorch.use():
                    optimizer.step()
            else:
                optimizer.step()
            results.append(p.detach())
        torch.testing.assert_close(*results, equal_nan=True)


def test_errors_are_stock_s():
    kinds = (rusttorch.optim.Adam, torch.optim.Adam)
    messages = []
    for kind in kinds:
        with pytest.raises(ValueError, match="Invalid learning rate") as caught:
            kind(parameters(torch.float32), lr=-1)
        messages.append(str(caught.value))
        p = torch.nn.Parameter(torch.ones(3, 3))
        p.grad = torch.eye(3).to_sparse()
        with pytest.raises(RuntimeError, match="does not support sparse gradients"):
            kind([p]).step()
        assert (p == 1).all()
        optimizer = kind([p])
        with pytest.raises(ValueError, match="parameter group"):
            optimizer.load_state_dict(kind(parameters(torch.float32)).state_dict())
    assert messages[0] == messages[1]
    p, state = torch.ones(3), [torch.zeros(3), torch.zeros(3)]
    with pytest.raises(RuntimeError, match=r"parameter's shape \[3\], but got \[4\]"):
        rusttorch.adam_update(p, torch.ones(4), *state, 1)
    with pytest.raises(ValueError, match="step must be at least 1"):
        rusttorch.adam_update(p, torch.ones(3), *state, 0)
    assert (p == 1).all()


def test_sparse_gradients_of_sgd():
    results = []
    for kind in (rusttorch.optim.SGD, torch.optim.SGD):
        p, q = torch.nn.Parameter(torch.ones(3, 3)), torch.nn.Parameter(torch.ones(5))
        optimizer = kind([p, q], lr=0.1)
        p.grad, q.grad = torch.eye(3).to_sparse(), torch.ones(5)
        optimizer.step()
        results.append((p.detach(), q.detach()))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("make", [lambda x: x[::2], lambda x: x.t(), lambda x: x], ids=["slice", "transposed", "plain"])
def test_parameters_and_gradients_that_lie_differently(make):
    """Stock's fused kernels do not look at strides, and rusttorch.optim handed them such tensors."""
    results = []
    for adam in (torch.optim.Adam, rusttorch.optim.Adam):
        x = torch.arange(24.0).view(6, 4)
        p = make(x).detach().requires_grad_()
        optimizer = adam([p], lr=0.1)
        for _ in range(3):
            p.grad = torch.arange(p.numel(), dtype=torch.float32).view(p.shape).sub(5)
            optimizer.step()
        results.append(x)
    torch.testing.assert_close(*results)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled")  # stock's Adagrad's
@pytest.mark.parametrize(
    ("name", "options"),
    [
        *(("SGD", {"momentum": 0.9, "nesterov": n, "maximize": m}) for n in (False, True) for m in (False, True)),
        ("Adagrad", {}),
    ],
    ids=str,
)
def test_sparse_gradients_among_dense_ones(name, options):
    """Their momentum, too, is kept from step to step."""
    results = []
    for module in (torch.optim, rusttorch.optim):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Embedding(10, 4, sparse=True), torch.nn.Linear(4, 2))
        optimizer = getattr(module, name)(model.parameters(), lr=0.1, **options)
        for k in range(4):
            optimizer.zero_grad()
            model(torch.tensor([k, 1, 2])).square().sum().backward()
            optimizer.step()
        results.append((list(model.parameters()), optimizer.state_dict()["state"]))
    (stock, stock_state), (ours, our_state) = results
    for a, b in zip(stock, ours, strict=True):
        torch.testing.assert_close(b, a)
    assert {k: set(state) for k, state in our_state.items()} == {k: set(state) for k, state in stock_state.items()}
