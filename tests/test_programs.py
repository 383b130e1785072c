"""Whole programs, as users write them: under use() they compute what they compute in stock, and by our kernels."""

import contextlib
import copy
import functools
import io
import itertools
import os
import shutil
import threading
import time
import traceback
from datetime import timedelta

import pytest
import rusttorch
import torch
import torch.distributed as dist
import torch.nn.functional as F
from cases import INTEL
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

pytestmark = pytest.mark.skipif(os.environ.get("RUSTTORCH_DEVICE", "cpu") != "cpu", reason="programs of the CPU")

P = 0.0 if INTEL else 0.25  # of dropout: stock draws other numbers on Intel's CPUs
DROPOUT = () if INTEL else ("native_dropout", "native_dropout_backward")
WIDTH, CLASSES, BATCH = 16, 10, 8

# Where the ops of a program are ours: aten's while they are swapped, or our own.
FORMS = {
    "swapped": (torch.ops.aten, rusttorch.use),
    "torch.ops": (torch.ops.rusttorch, contextlib.nullcontext),
    "functions": (rusttorch, contextlib.nullcontext),
}
every_form = pytest.mark.parametrize("form", FORMS)
needs_compiler = pytest.mark.skipif(
    not shutil.which(os.environ.get("CXX", "g++")), reason="inductor needs a C++ compiler"
)

# What torch says of itself: it scripts its derivatives, and Dynamo looks at the .grad of what it finds.
deprecated_jit = pytest.mark.filterwarnings(r"ignore:`torch\.jit\.\w+` is (deprecated|not supported)")
grad_is_looked_at = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


@pytest.fixture(autouse=True)
def clean():
    rusttorch.reset_stats()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # what is so small gains nothing by two
    yield
    torch.set_num_threads(threads)
    rusttorch.disable()
    rusttorch.memory.disable_pool()
    torch._dynamo.reset()


def ran():
    return {name for name, stats in rusttorch.stats().items() if stats.ran}


def check(program, kernels, form="swapped", rtol=1e-4, atol=2e-6, against=None):
    """What program(ops) gives in one form is what it, or the one against, gives in stock; these kernels ran.

    Sums of float32 in another order are 1e-7 to 1e-6 of their size apart, and layers and steps make ten times more of
    it. A wrong kernel is a thousand times further off.
    """
    torch.manual_seed(0)
    expected = (against or program)(torch.ops.aten)
    ops, context = FORMS[form]
    rusttorch.reset_stats()
    torch.manual_seed(0)
    with context():
        result = program(ops)
    assert not set(kernels) - ran()
    torch.testing.assert_close(result, expected, rtol=rtol, atol=atol)


# A CNN, a transformer, and how they are trained.


class CNN(nn.Sequential):
    def __init__(self):
        super().__init__(
            *(nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(4, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Flatten()),
            *(nn.Dropout(P), nn.Linear(8 * 4 * 4, CLASSES)),
        )

    @staticmethod
    def example():
        return torch.randn(BATCH, 1, 8, 8), torch.randint(CLASSES, (BATCH,))

    # max_pool chooses one of two nearly equal values by how they are rounded: random ones are not that near.
    kernels = ("relu", "relu_", "cross_entropy_loss_forward", *DROPOUT)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.RMSNorm(WIDTH), nn.LayerNorm(WIDTH)
        # Softmax does not see a bias of the keys: its gradient is rounding, of which Adam makes whole steps.
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH), nn.Dropout(P))

    def forward(self, x):
        q, k, v = self.qkv(self.first(x)).unflatten(-1, (3, 2, WIDTH // 2)).permute(2, 0, 3, 1, 4)
        scores = F.dropout((q @ k.mT / WIDTH**0.5).softmax(-1), P, self.training)
        x = x + self.out((scores @ v).transpose(1, 2).flatten(-2))
        return x + self.mlp(self.second(x))


class Transformer(nn.Module):
    def __init__(self, blocks=2):
        super().__init__()
        self.tokens = nn.Embedding(CLASSES, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(blocks)))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        return self.head(self.blocks(self.tokens(x))).flatten(0, -2)

    @staticmethod
    def example():
        x = torch.randint(CLASSES, (BATCH, 6))
        return x, x.roll(1, 1).flatten()

    kernels = (
        *("rms_norm", "_fused_rms_norm_backward", "native_layer_norm", "native_layer_norm_backward", "gelu"),
        *("gelu_backward", "_softmax", "_softmax_backward_data", "cross_entropy_loss_forward", *DROPOUT),
    )


OPTIMIZERS = {  # constructors, and the kernel of ours that does the step
    "SGD": (functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-3), "_fused_sgd_"),
    "Adam": (functools.partial(torch.optim.Adam, lr=1e-3, eps=1e-5), "_fused_adam_"),
    "AdamW": (functools.partial(torch.optim.AdamW, lr=1e-3, eps=1e-5), "_fused_adamw_"),
    "rusttorch.SGD": (functools.partial(rusttorch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-3), "_fused_sgd_"),
    "rusttorch.Adam": (functools.partial(rusttorch.optim.Adam, lr=1e-3, eps=1e-5), "_fused_adam_"),
    "rusttorch.AdamW": (functools.partial(rusttorch.optim.AdamW, lr=1e-3, eps=1e-5), "_fused_adamw_"),
}


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def train(model, optimizer, batches):
    """The losses of some steps."""
    losses = []
    for x, y in batches:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("kind", (CNN, Transformer))
def test_training(kind, name):
    """With clipped gradients, a scheduler that changes lr and momentum, and averages of the weights."""
    make, step = OPTIMIZERS[name]

    def program(ops):
        model = kind()
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
        optimizer = make(model.parameters())
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=8)
        losses, norms = [], []
        for _ in range(6):
            x, y = kind.example()
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            norms.append(nn.utils.clip_grad_norm_(model.parameters(), 0.5))
            optimizer.step()
            schedule.step()
            average.update_parameters(model)
            losses.append(loss.detach())
        model.eval()
        with torch.inference_mode():
            logits = model(x).clone()
        return losses, norms, gradients(model), model.state_dict(), average.state_dict(), logits

    lists = ("_foreach_norm.Scalar", "_foreach_mul_.Tensor", "_foreach_lerp_.Scalar")
    # Adam divides by the root of the squares: what is off by rounding in a small gradient is so in a step of 1e-3.
    check(program, (*kind.kernels, step, *lists), atol=1e-5)


def test_gradients_are_accumulated():
    def program(ops):
        model = Transformer()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for k in range(8):
            x, y = model.example()
            loss = F.cross_entropy(model(x), y)
            loss /= 4
            loss.backward()
            if k % 4 == 3:
                optimizer.step()
                optimizer.zero_grad(set_to_none=False)
        return model.state_dict()

    check(program, Transformer.kernels)


# What is changed in place after an op: the result, or the input. x is [8, 16].

CALLS = {
    "cross_entropy_loss": lambda ops, x: ops.cross_entropy_loss(x, torch.arange(8)),
    "cross_entropy_loss, none": lambda ops, x: ops.cross_entropy_loss(x, torch.arange(8), None, 0),
    "mse_loss": lambda ops, x: ops.mse_loss(x, torch.ones(8, 16)),
    "l1_loss": lambda ops, x: ops.l1_loss(x, torch.ones(8, 16)),
    "smooth_l1_loss": lambda ops, x: ops.smooth_l1_loss(x, torch.ones(8, 16)),
    "huber_loss": lambda ops, x: ops.huber_loss(x, torch.ones(8, 16)),
    "kl_div": lambda ops, x: ops.kl_div(x, torch.full((8, 16), 0.5)),
    "kl_div, log_target": lambda ops, x: ops.kl_div(torch.ones(8, 16), x, log_target=True),
    "binary_cross_entropy_with_logits": lambda ops, x: ops.binary_cross_entropy_with_logits(x, torch.ones(8, 16)),
    "dropout": lambda ops, x: ops.dropout(x, 0.5, True),
    "rms_norm": lambda ops, x: ops.rms_norm(x, (16,), torch.ones(16)),
    "native_layer_norm": lambda ops, x: ops.native_layer_norm(x, (16,), torch.ones(16), None, 1e-5)[0],
    "softmax": lambda ops, x: ops.softmax(x, -1),
    "log_softmax": lambda ops, x: ops.log_softmax(x, -1),
    **{
        name: lambda ops, x, name=name: getattr(ops, name)(x)
        for name in (
            *("relu", "leaky_relu", "sigmoid", "tanh", "gelu", "elu", "selu", "celu", "silu", "mish", "softplus"),
            *("hardswish", "hardsigmoid", "log_sigmoid", "neg", "abs", "exp", "clone"),
            *("sum", "mean", "prod", "max", "min", "std", "var"),
        )
    },
    "log": lambda ops, x: ops.log(x * x + 1),
    "sqrt": lambda ops, x: ops.sqrt(x * x + 1),
    "pow": lambda ops, x: ops.pow(x, 2),
    "clamp": lambda ops, x: ops.clamp(x, -1, 1),
    "add": lambda ops, x: ops.add(x, 2),
    "mul": lambda ops, x: ops.mul(x, 2),
    "mul, tensors": lambda ops, x: ops.mul(x, torch.ones(8, 16)),
    "div": lambda ops, x: ops.div(x, torch.ones(8, 16)),
    "maximum": lambda ops, x: ops.maximum(x, torch.zeros(8, 16)),
    "addcmul": lambda ops, x: ops.addcmul(x, torch.ones(8, 16), torch.ones(8, 16)),
    "lerp": lambda ops, x: ops.lerp(x, torch.ones(8, 16), 0.5),
    "sum, dim": lambda ops, x: ops.sum(x, (1,)),
    "mean, dim": lambda ops, x: ops.mean(x, (1,)),
    "amax": lambda ops, x: ops.amax(x, (1,)),
    "max, dim": lambda ops, x: ops.max(x, 1)[0],
    "logsumexp": lambda ops, x: ops.logsumexp(x, (1,)),
    "linalg_vector_norm": lambda ops, x: ops.linalg_vector_norm(x),
    "var_mean": lambda ops, x: ops.var_mean(x, (1,))[0],
    "cumsum": lambda ops, x: ops.cumsum(x, 1),
    "cummax": lambda ops, x: ops.cummax(x, 1)[0],
}


def outcome(call, ops, disturb):
    """The gradient where something is disturbed between forward and backward; or that autograd refuses."""
    torch.manual_seed(0)
    leaf = torch.randn(8, 16, requires_grad=True)
    x = leaf + 0
    y = call(ops, x)
    weights = torch.linspace(1, 2, y.numel()).view(y.shape)
    try:
        disturb(x, y)
        (y * weights).sum().backward()
        return leaf.grad
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error) or "a second time" in str(error)
        return None


DISTURBED = {
    "result": lambda x, y: y.mul_(2),
    "input": lambda x, y: x.mul_(2),
    "graph": lambda x, y: y.sum().backward(),  # which frees what was saved
}


@pytest.mark.parametrize("what", DISTURBED)
@pytest.mark.parametrize("form", ("swapped", "torch.ops"))
def test_what_autograd_takes(form, what):
    """Where stock's op does not need what it gave, or what it was given, ours does not either."""
    ops, context = FORMS[form]
    stock = {name: outcome(call, torch.ops.aten, DISTURBED[what]) for name, call in CALLS.items()}
    with context():
        ours = {name: outcome(call, ops, DISTURBED[what]) for name, call in CALLS.items()}
    assert not [name for name in CALLS if ours[name] is None and stock[name] is not None]
    both = [name for name in CALLS if ours[name] is not None and stock[name] is not None]
    # At most 1 is what a gradient's terms are in size.
    torch.testing.assert_close(*({name: each[name] for name in both} for each in (ours, stock)), rtol=1e-5, atol=1e-6)
    assert {"mish", "native_layer_norm", "exp"} <= ran()


def test_results_are_changed_in_place():
    def program(ops):
        x = torch.randn(BATCH, WIDTH, requires_grad=True)
        weight = torch.ones(WIDTH, requires_grad=True)
        r = x * 2
        y = F.dropout(x * 3, P)
        y += r
        y = F.rms_norm(y, (WIDTH,), weight)
        y += r
        y = F.layer_norm(y, (WIDTH,), weight)
        y *= 3
        loss = F.cross_entropy(y, torch.arange(BATCH))
        loss /= 4
        loss += F.l1_loss(y, r.detach()).mul_(2)
        loss.backward()
        return loss.detach(), x.grad, weight.grad

    check(program, ("dropout", "rms_norm", "native_layer_norm", "cross_entropy_loss_forward", "l1_loss")[INTEL:])


# Nodes: what autograd's own tools see and do.

SHAPE = (BATCH, WIDTH)
# Those that loss_of() reaches, in each form.
NODES = ("mish", "rms_norm", "native_layer_norm", "sigmoid", "cross_entropy_loss_forward", *DROPOUT)


def leaves():
    return torch.randn(SHAPE, requires_grad=True), torch.randn(WIDTH, WIDTH, requires_grad=True)


def loss_of(ops, x, w):
    """A loss by ops that save their inputs, their results, or both."""
    h = ops.mish(x @ w)
    h = ops.dropout(h, P, True)
    h = ops.rms_norm(h, (WIDTH,)) + ops.native_layer_norm(h, (WIDTH,), None, None, 1e-5)[0]
    return ops.cross_entropy_loss(h * ops.sigmoid(h), torch.arange(len(x)))


def nodes(tensor):
    """Every node of a graph, the last first."""
    found = [tensor.grad_fn]
    for node in found:
        found += [child for child, _ in node.next_functions if child is not None and child not in found]
    return found


@every_form
def test_hooks_pack_what_is_saved(form):
    def program(ops):
        counts = [0, 0]

        def pack(t):
            counts[0] += 1
            return t.detach().clone(), t.dtype

        def unpack(packed):
            counts[1] += 1
            return packed[0].to(packed[1])

        x, w = leaves()
        with saved_tensors_hooks(pack, unpack):
            loss = loss_of(ops, x, w)
        grads = torch.autograd.grad(loss, (x, w))
        assert min(counts) >= 6
        return loss.detach(), grads

    check(program, NODES, form)


@every_form
def test_what_hooks_unpack_is_used(form):
    def program(ops):
        x = torch.randn(SHAPE, requires_grad=True)
        with saved_tensors_hooks(lambda t: t, lambda t: t + 0.5):
            y = ops.mish(x) + ops.sigmoid(x)  # of which one saves its input, the other its result
        return torch.autograd.grad(y.sum(), x)

    check(program, ("mish", "sigmoid"), form)


@every_form
def test_save_on_cpu(form):
    def program(ops):
        x, w = leaves()
        with torch.autograd.graph.save_on_cpu():
            loss = loss_of(ops, x, w)
        return torch.autograd.grad(loss, (x, w))

    check(program, NODES, form)


@every_form
def test_hooks_on_tensors_and_nodes(form):
    def program(ops):
        x, w = leaves()
        seen = []
        h = ops.mish(x @ w)
        h.register_hook(lambda g: 2 * g)
        h.retain_grad()
        node = h.grad_fn
        node.metadata["note"] = "kept"
        node.register_prehook(lambda grads: (3 * grads[0],))
        node.register_hook(lambda inputs, outputs: seen.append((node.name(), inputs[0].shape, outputs[0].shape)))
        x.register_post_accumulate_grad_hook(lambda leaf: seen.append(leaf.grad.shape))
        h.square().sum().backward()
        assert h.grad_fn.metadata == {"note": "kept"}
        assert "mish" in seen[0][0].lower()
        assert seen[0][1:] == (SHAPE, SHAPE) and seen[1:] == [SHAPE]
        return h.grad, x.grad, w.grad

    check(program, ("mish",), form)


def test_hooks_on_modules():
    def program(ops):
        model, seen = Transformer(), []
        for module in model.blocks.modules():
            module.register_full_backward_hook(lambda module, inputs, outputs: seen.append(outputs[0].norm()))
        model.blocks[0].mlp[1].register_forward_hook(lambda module, args, result: result * 2)
        x, y = model.example()
        F.cross_entropy(model(x), y).backward()
        return seen, gradients(model)

    check(program, Transformer.kernels)


@every_form
def test_backward_twice(form):
    def program(ops):
        x, w = leaves()
        loss = loss_of(ops, x, w)
        loss.backward(retain_graph=True)
        once = x.grad.clone(), w.grad.clone()
        loss.backward()
        torch.testing.assert_close((x.grad / 2, w.grad / 2), once)
        with pytest.raises(RuntimeError, match="a second time"):
            loss.backward()
        return once

    check(program, NODES, form)


@every_form
def test_second_derivatives(form):
    def program(ops):
        x, w = leaves()
        grads = torch.autograd.grad(loss_of(ops, x, w), (x, w), create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in grads), (x, w))

    check(program, NODES, form)


@every_form
def test_backward_in_other_threads(form):
    def program(ops):
        graphs = [leaves() for _ in range(4)]
        losses = [loss_of(ops, *each) for each in graphs]
        threads = [threading.Thread(target=loss.backward) for loss in losses]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [(x.grad, w.grad) for x, w in graphs]

    check(program, NODES, form)


@every_form
def test_anomaly_mode(form):
    def program(ops):
        x = torch.tensor([-1.0, 1.0], requires_grad=True)
        with (
            torch.autograd.set_detect_anomaly(True),
            pytest.warns(UserWarning, match="ops.sqrt"),  # the line that called it
            pytest.raises(RuntimeError, match=r"(?i)sqrt\w*Backward\w*' returned nan"),
        ):
            ops.sqrt(x).sum().backward()
        x, w = leaves()
        with torch.autograd.set_detect_anomaly(True):
            loss_of(ops, x, w).backward()
        return x.grad, w.grad

    check(program, ("sqrt", *NODES), form)


# Activation checkpointing, lower precision.


@pytest.mark.parametrize("reentrant", (True, False))
def test_checkpoint(reentrant):
    """What is dropped is dropped again when the block is computed again."""

    def run(through):
        torch.manual_seed(1)
        model, x = Transformer(), torch.randn(BATCH, 6, WIDTH, requires_grad=True)
        h = x
        for block in model.blocks:
            h = through(block, h)
        loss = F.cross_entropy(model.head(h).flatten(0, 1), torch.arange(6 * BATCH) % CLASSES)
        loss.backward()
        return loss.detach(), x.grad, gradients(model.blocks)

    def program(ops):
        result = run(functools.partial(checkpoint, use_reentrant=reentrant))
        torch.testing.assert_close(result, run(lambda block, h: block(h)), rtol=0, atol=0)
        return result

    check(program, Transformer.kernels)


@every_form
@pytest.mark.parametrize("reentrant", (True, False))
def test_checkpoint_of_ops(reentrant, form):
    def program(ops):
        x, w = leaves()
        loss = checkpoint(loss_of, ops, x, w, use_reentrant=reentrant)
        loss.backward()
        return loss.detach(), x.grad, w.grad

    check(program, NODES, form)


def test_selective_checkpoint():
    """Products are kept, all else is computed again: by a mode, which sees what rms_norm and dropout are made of."""

    def program(ops):
        model, x = Transformer(), torch.randn(BATCH, 6, WIDTH, requires_grad=True)
        contexts = functools.partial(create_selective_checkpoint_contexts, [torch.ops.aten.mm.default])
        h = x
        for block in model.blocks:
            h = checkpoint(block, h, use_reentrant=False, context_fn=contexts)
        h.square().sum().backward()
        return h.detach(), x.grad, gradients(model.blocks)

    check(program, ("native_layer_norm", "gelu", "_softmax"), atol=1e-5)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("kind", (CNN, Transformer))
def test_autocast(kind, dtype):
    """The gradients are as near those of float32 as stock's."""

    def run(enabled):
        torch.manual_seed(0)
        model = kind()
        x, y = model.example()
        with torch.autocast("cpu", dtype=dtype, enabled=enabled):
            loss = F.cross_entropy(model(x), y)
        loss.backward()
        return torch.cat([loss.detach().view(1), *(g.flatten() for g in gradients(model).values())])

    exact, stock = run(False), run(True)
    rusttorch.reset_stats()
    with rusttorch.use():
        ours = run(True)
    assert {"cross_entropy_loss_forward", *kind.kernels[:1]} <= ran() | {"rms_norm"}
    assert (ours - exact).norm() <= 1.5 * (stock - exact).norm()
    assert abs(ours[0] - exact[0]) <= 2 * abs(stock[0] - exact[0]) + torch.finfo(dtype).eps


SCALED = {
    **OPTIMIZERS,
    "Adam, fused": (functools.partial(torch.optim.Adam, lr=1e-3, eps=1e-5, fused=True), "_fused_adam_"),
}


@pytest.mark.parametrize("clip", (False, True))
@pytest.mark.parametrize("name", SCALED)
def test_grad_scaler(name, clip):
    """A step whose gradients are infinite is not done, and halves the scale."""
    make, step = SCALED[name]

    def program(ops):
        model = Transformer()
        optimizer = make(model.parameters())
        scaler = torch.amp.GradScaler("cpu", init_scale=1024, growth_interval=2)
        scales = []
        for k in range(5):
            x, y = model.example()
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            before = copy.deepcopy(model.state_dict())
            scaler.scale(loss * float("inf") if k == 2 else loss).backward()
            if clip:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            scaler.step(optimizer)
            scaler.update()
            scales.append(scaler.get_scale())
            stayed = all(torch.equal(p, before[key]) for key, p in model.state_dict().items())
            assert stayed == (k == 2)
        assert scales == [1024, 2048, 1024, 1024, 2048]
        return model.state_dict()

    check(program, (*Transformer.kernels, step), atol=1e-5)


# Graphs: torch.compile, compiled autograd, torch.jit, torch.export.


BACKENDS = ("aot_eager", pytest.param("inductor", marks=(needs_compiler, deprecated_jit)))


def three_steps(rows, compiled=lambda model: model):
    """What is left of a model after three steps."""
    model = Transformer(blocks=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    forward, losses = compiled(model), []
    for n in rows:
        x, y = model.example()
        losses += train(forward, optimizer, [(x[:n], y[: 6 * n])])
    return losses, model.state_dict()


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_model(backend):
    compiled = functools.partial(torch.compile, backend=backend, fullgraph=True)
    # inductor makes kernels of its own of aten's ops, and calls ours where a swap has put an op of ours in the graph.
    check(
        lambda ops: three_steps((8, 8, 8), compiled),
        ("cross_entropy_loss_forward", "_fused_rms_norm", "_fused_rms_norm_backward", *DROPOUT),
        against=lambda ops: three_steps((8, 8, 8)),
    )


def test_compiled_model_of_any_size():
    compiled = functools.partial(torch.compile, backend="aot_eager", fullgraph=True, dynamic=True)
    check(
        lambda ops: three_steps((8, 4, 6), compiled),
        ("gelu", "gelu_backward", "_softmax"),
        against=lambda ops: three_steps((8, 4, 6)),
    )


def loss_and_gradients(loss):
    x, w = leaves()
    y = loss(x, w)
    y.backward()
    return y.detach(), x.grad, w.grad


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_ops(backend):
    def program(ops):
        return loss_and_gradients(torch.compile(functools.partial(loss_of, ops), backend=backend, fullgraph=True))

    against = lambda ops: loss_and_gradients(functools.partial(loss_of, ops))  # noqa: E731
    check(program, NODES, "torch.ops", against=against)


@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace the builtin:UserWarning")
@grad_is_looked_at
def test_compiled_functions():
    """Dynamo does not trace a C function: the graph breaks there."""

    def loss(x, w):
        return rusttorch.mse_loss(rusttorch.mish(x @ w).cos(), x)

    check(
        lambda ops: loss_and_gradients(torch.compile(loss, backend="aot_eager")),
        ("mish", "mse_loss"),
        "functions",
        against=lambda ops: loss_and_gradients(lambda x, w: F.mse_loss(F.mish(x @ w).cos(), x)),
    )


def test_compiled_functions_stay_random():
    """Two dropouts of one tensor are two, and a checkpointed one is dropped again as it was."""
    x = torch.randn(1000)

    def two(x):
        return F.dropout(x, 0.5) - F.dropout(x, 0.5)

    def checkpointed(x):
        return checkpoint(lambda x: F.dropout(x.cos(), 0.5).sin(), x, use_reentrant=False)

    with rusttorch.use():
        assert torch.compile(two, backend="aot_eager", fullgraph=True)(x).count_nonzero() > 400
        results = []
        for f in (checkpointed, torch.compile(checkpointed, backend="aot_eager", fullgraph=True)):
            torch.manual_seed(0)
            leaf = x.clone().requires_grad_()
            y = f(leaf)
            y.sum().backward()
            results.append((y.detach(), leaf.grad))
    assert "native_dropout" in ran()
    torch.testing.assert_close(*results)


@grad_is_looked_at
@every_form
def test_compiled_autograd(form):
    compiled = functools.partial(torch.compile, backend="aot_eager")

    def program(ops):
        x, w = leaves()
        loss = loss_of(ops, x, w)
        with torch._dynamo.compiled_autograd._enable(compiled):
            loss.backward()
        return loss.detach(), x.grad, w.grad

    against = lambda ops: loss_and_gradients(functools.partial(loss_of, ops))  # noqa: E731
    check(program, NODES, form, against=against)


@grad_is_looked_at
def test_compiled_autograd_of_a_model():
    def step(model, x, y):
        loss = F.cross_entropy(model(x), y)
        loss.backward()

    def program(ops, step=step):
        model = Transformer(blocks=1)
        with torch._dynamo.config.patch(compiled_autograd=True):
            step(model, *model.example())
        return gradients(model)

    compiled = functools.partial(program, step=torch.compile(step, backend="aot_eager"))
    check(compiled, ("gelu", "gelu_backward", "_softmax", "cross_entropy_loss_forward"), against=program)


@deprecated_jit
@pytest.mark.parametrize("how", ("trace", "script"))
def test_torchscript(how):
    """Made, saved and loaded while ours are swapped in; and run when they are, and when they are not."""

    def program(ops):
        model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.LayerNorm(WIDTH), nn.RMSNorm(WIDTH), nn.Dropout(P))
        model.append(nn.Softmax(-1)).eval()
        x = torch.randn(SHAPE, requires_grad=True)
        made = torch.jit.trace(model, x) if how == "trace" else torch.jit.script(model)
        file = io.BytesIO()
        torch.jit.save(made, file)
        file.seek(0)
        loaded = torch.jit.load(file)
        for _ in range(3):  # the profiling executor's runs differ
            results = [f(x) for f in (made, loaded, model)]
            grads = [torch.autograd.grad(y[:, 0].sum(), x) for y in results]
            kept.append(loaded)
        return results, grads

    kept = []
    check(program, ("gelu", "gelu_backward", "native_layer_norm", "rms_norm", "_softmax"))
    x = torch.randn(SHAPE)
    rusttorch.reset_stats()
    y = kept[-1](x)  # in stock
    assert "gelu" not in ran()
    torch.testing.assert_close(y.sum(-1), torch.ones(BATCH))


@pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:The given buffer is not writable")  # torch.export.load's own, in torch 2.12
def test_export():
    """What is exported while ours are swapped in runs in stock as well."""
    torch.manual_seed(0)
    model = Transformer().eval()
    x = model.example()[0]
    expected = model(x)
    with rusttorch.use():
        program = torch.export.export(model, (x,), strict=False)
        rusttorch.reset_stats()
        swapped = program.module()(x)
        assert {"gelu", "_softmax", "native_layer_norm"} <= ran()
        file = io.BytesIO()
        torch.export.save(program, file)
    file.seek(0)
    for stock in (program.module()(x), torch.export.load(file).module()(x), program.run_decompositions().module()(x)):
        torch.testing.assert_close(stock, expected)
    torch.testing.assert_close(swapped, expected)


def test_export_of_ops():
    class Model(nn.Module):
        def forward(self, x, w):
            return loss_of(torch.ops.rusttorch, x, w)

    def program(ops):
        x, w = (t.detach() for t in leaves())
        if ops is torch.ops.aten:
            return loss_of(ops, x, w)
        state = torch.get_rng_state()
        exported = torch.export.export(Model(), (x, w))
        torch.set_rng_state(state)
        return exported.module()(x, w)

    check(program, NODES[:5], "torch.ops")


# Copies of models and optimizers, torch.func, workers, tensors of other kinds.


def saved_and_loaded(objects):
    file = io.BytesIO()
    torch.save(objects, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("name", (*OPTIMIZERS, "Adam, fused"))
@pytest.mark.parametrize("copied", (copy.deepcopy, saved_and_loaded), ids=("deepcopy", "torch.save"))
@pytest.mark.parametrize("contexts", [*itertools.product(("stock", "use"), repeat=2)], ids="-".join)
def test_copies_go_on(contexts, copied, name):
    """Half of the steps, a copy, and the other half, in stock or under use(): as all steps in stock without a copy."""
    torch.manual_seed(0)
    make, step = SCALED[name]
    model = Block().eval()  # nothing is dropped
    start = copy.deepcopy(model.state_dict())
    batches = [(torch.randn(BATCH, 3, WIDTH), torch.randn(BATCH, 3, WIDTH).softmax(-1)) for _ in range(6)]
    optimizer = make(model.parameters())
    losses = train(model, optimizer, batches)
    end = copy.deepcopy(model.state_dict())

    model.load_state_dict(start)
    optimizer = make(model.parameters())
    swapped = {"stock": contextlib.nullcontext, "use": rusttorch.use}
    rusttorch.reset_stats()
    with swapped[contexts[0]]():
        first = train(model, optimizer, batches[:3])
        model, optimizer = copied((model, optimizer))
    with swapped[contexts[1]]():
        second = train(model, optimizer, batches[3:])
    if "use" in contexts:
        assert {"gelu", step} <= ran()
    torch.testing.assert_close(first + second, losses, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(model.state_dict(), end, rtol=1e-4, atol=1e-5)


def functional_loss(model):
    def loss(parameters, x, y):
        return F.cross_entropy(torch.func.functional_call(model, parameters, (x,)), y)

    return loss, {name: p.detach() for name, p in model.named_parameters()}


def test_torch_func():
    """Gradients, and those of each sample, of a model as a function of its parameters."""

    def program(ops):
        model = Transformer().eval()
        loss, parameters = functional_loss(model)
        x, y = model.example()
        grads = torch.func.grad(loss)(parameters, x, y)
        each = torch.vmap(torch.func.grad(loss), (None, 0, 0))(parameters, x[:, None], y.view(BATCH, 6))
        for k, name in itertools.product(range(2), parameters):
            one = torch.func.grad(loss)(parameters, x[k : k + 1], y.view(BATCH, 6)[k])
            torch.testing.assert_close(each[name][k], one[name], rtol=1e-4, atol=2e-6)
        return grads, each

    check(program, ("gelu", "gelu_backward", "_softmax", "_softmax_backward_data"))


@deprecated_jit
def test_torch_func_forward_mode():
    """Of all parameters, of some (the others have no tangent), and twice."""

    def program(ops):
        model = Transformer().eval()
        loss, parameters = functional_loss(model)
        x, y = model.example()
        tangents = {name: torch.randn_like(p) for name, p in parameters.items()}
        whole = torch.func.jvp(lambda p: loss(p, x, y), (parameters,), (tangents,))
        some = {"head.weight": parameters["head.weight"]}
        of_some = lambda p: loss({**parameters, **p}, x, y)  # noqa: E731
        part = torch.func.jvp(of_some, (some,), ({"head.weight": tangents["head.weight"]},))
        small = lambda v: F.layer_norm(F.gelu(v), (4,), torch.ones(4)).softmax(-1).square().sum()  # noqa: E731
        v = torch.randn(4)
        return whole, part, torch.func.jacfwd(torch.func.jacrev(small))(v), torch.func.hessian(small)(v)

    check(program, ("gelu",))


@deprecated_jit
def test_forward_mode_of_each_op():
    """Dual numbers through what can be swapped, beside tensors that have no tangent."""

    def program(ops):
        results = []
        for name, call in CALLS.items():
            if name != "dropout":
                with torch.autograd.forward_ad.dual_level():
                    x = torch.autograd.forward_ad.make_dual(torch.randn(8, 16), torch.randn(8, 16))
                    results.append(tuple(torch.autograd.forward_ad.unpack_dual(call(ops, x))))
        return results

    check(program, ("mish", "exp", "_softmax", "mse_loss"))


@deprecated_jit
def test_forward_over_reverse_of_each_op():
    """Second derivatives by forward mode over backward, where zero tensors stand for tangents that are not there."""

    def program(ops):
        x, results = torch.randn(8, 16), {}
        for name, call in CALLS.items():
            if name != "dropout":
                slope = torch.func.grad(lambda s, call=call: call(ops, x * s).square().sum())
                try:
                    results[name] = torch.func.jacfwd(slope)(torch.tensor(0.5))
                except RuntimeError:  # stock refuses some: it has no formula, or it would write a zero tensor
                    results[name] = None
        return results

    check(program, ("_softmax", "_log_softmax", "abs"), atol=1e-3)


class Activated(Dataset):
    """Rows, activated in a worker, and how often our kernel ran there."""

    def __len__(self):
        return 32

    def __getitem__(self, i):
        x = torch.linspace(-1, 1, WIDTH) * i
        y = F.layer_norm(F.gelu(x), (WIDTH,))
        return y, i % CLASSES, len({"gelu", "native_layer_norm"} & ran())


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes")
def test_workers_are_forked_between_steps():
    def program(ops):
        model = nn.Sequential(nn.Linear(WIDTH, 64), nn.GELU(), nn.Linear(64, CLASSES))
        optimizer = torch.optim.Adam(model.parameters())
        loader = DataLoader(Activated(), batch_size=8, num_workers=2, multiprocessing_context="fork", timeout=60)
        losses, counts = [], []
        for _ in range(2):
            for x, y, in_worker in loader:
                losses += train(model, optimizer, [(x, y)])
                counts.append(in_worker)
        kernels_in_workers.append(torch.cat(counts).unique().tolist())
        return losses, model.state_dict()

    def pooled(ops):
        rusttorch.memory.enable_pool()
        return program(ops)

    kernels_in_workers = []
    check(pooled, ("gelu", "gelu_backward", "_fused_adam_"), against=program)
    assert kernels_in_workers == [[0], [2]]


def test_meta_and_fake_tensors():
    """What has no data runs no kernel, and has the shapes of what has."""
    torch.manual_seed(0)
    with rusttorch.use():
        for kind in (CNN, Transformer):
            x, y = kind.example()
            with torch.device("meta"):
                model = kind()
            assert model(x.to("meta")).shape == kind()(x).shape
            rusttorch.reset_stats()
            F.cross_entropy(model(x.to("meta")), y.to("meta")).backward()
            with torch._subclasses.FakeTensorMode() as mode:
                model = kind()
                loss = F.cross_entropy(model(mode.from_tensor(x)), mode.from_tensor(y))
                loss.backward()
            assert not {"gelu", "relu", "native_layer_norm", "native_dropout", "cross_entropy_loss_forward"} & ran()
            assert (loss.shape, loss.dtype, loss.device.type) == ((), torch.float32, "cpu")
            assert all(p.grad.shape == p.shape and p.grad.device.type == "cpu" for p in model.parameters())


def test_flop_counter():
    def program(ops):
        model = Transformer()
        x, y = model.example()
        with FlopCounterMode(display=False) as counter:
            F.cross_entropy(model(x), y).backward()
        assert counter.get_total_flops() > 100_000
        return counter.get_total_flops(), gradients(model)

    check(program, ("gelu", "native_layer_norm", "_softmax"))


@pytest.mark.filterwarnings("ignore:.*Profiler clears events")  # torch's own, in 2.11 and 2.12
def test_profiler():
    def program(ops):
        model = Transformer()
        x, y = model.example()
        with torch.profiler.profile(record_shapes=True, profile_memory=True) as profile:
            F.cross_entropy(model(x), y).backward()
        names = {event.key for event in profile.key_averages()}
        assert {"aten::gelu", "aten::native_layer_norm", "aten::_softmax", "aten::gelu_backward"} <= names
        return gradients(model)

    check(program, Transformer.kernels)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("layout", (torch.jagged, torch.strided), ids=str)
def test_nested_tensors(layout):
    def program(ops):
        parts = [torch.randn(n, WIDTH) for n in (2, 5, 3)]
        x = torch.nested.nested_tensor(parts, layout=layout, requires_grad=True)
        y = F.layer_norm(F.gelu(x) * 2, (WIDTH,), torch.ones(WIDTH), torch.zeros(WIDTH))
        y = F.dropout(y, P).softmax(-1)
        y = y.relu() if layout == torch.strided else F.rms_norm(F.mish(y), (WIDTH,))
        grad = torch.autograd.grad(sum(part.square().sum() for part in y.unbind()), x)[0]
        return [part.detach() for part in y.unbind()], list(grad.unbind())

    check(program, ("gelu", "gelu_backward"), atol=1e-5)


class Tagged(torch.Tensor):
    """A subclass as torch's documentation has it: results keep its type."""


@every_form
def test_torch_function_subclasses(form):
    def program(ops):
        x, w = leaves()
        loss = loss_of(ops, x.as_subclass(Tagged), w)
        assert type(loss) is Tagged
        return torch.autograd.grad(loss, (x, w))

    check(program, NODES, form)


class Wrapped(torch.Tensor):
    """A subclass that holds a tensor and hands aten's ops on to it: it knows no others."""

    @staticmethod
    def __new__(cls, held):
        return torch.Tensor._make_wrapper_subclass(cls, held.shape, dtype=held.dtype, strides=held.stride())

    def __init__(self, held):
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        assert func.namespace in ("aten", "prim"), func
        unwrap = lambda t: t.held if isinstance(t, Wrapped) else t  # noqa: E731
        args, kwargs = torch.utils._pytree.tree_map(unwrap, (args, kwargs or {}))
        result = func(*args, **kwargs)
        return torch.utils._pytree.tree_map(lambda t: Wrapped(t) if isinstance(t, torch.Tensor) else t, result)


class Nothing(TorchDispatchMode):
    """A mode of a user's, under which others see what they always see."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("mode", [contextlib.nullcontext, Nothing])
def test_torch_dispatch_subclasses(mode):
    def program(ops):
        x, w = (Wrapped(t.detach()).requires_grad_() for t in leaves())
        h = F.layer_norm(F.gelu(x @ w), (WIDTH,))
        h = F.rms_norm(F.dropout(h, P), (WIDTH,)).softmax(-1)
        loss = F.cross_entropy(h, torch.arange(BATCH)) + F.l1_loss(h, x) + F.mse_loss(h, x)
        loss = loss + F.binary_cross_entropy_with_logits(h, x) + F.kl_div(x, h, reduction="sum")
        loss.backward()
        return loss.held, x.grad.held, w.grad.held

    def under_mode(ops):
        with mode():
            return program(ops)

    check(under_mode, ("gelu", "native_layer_norm", "_softmax"))


def test_a_mode_sees_what_it_always_sees():
    """A user's mode is shown aten's ops, those that are swapped with derivatives of their own too."""

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **kwargs or {})

    def run():
        x, t = torch.rand(4, 6, requires_grad=True), torch.rand(4, 6)
        with Recorder():
            loss = F.binary_cross_entropy_with_logits(x, t) + F.l1_loss(x, t) + F.kl_div(x, t, reduction="sum")
            loss = loss + F.cross_entropy(x, torch.arange(4)) + F.rms_norm(F.dropout(x), (6,)).sum()
            loss.backward()

    seen = []
    run()
    stock = seen.copy()
    seen.clear()
    with rusttorch.use():
        run()
    assert seen == stock


# Two processes.


class Distributed:
    """A model in each way that torch distributes one over two processes; its full parameters after some steps."""

    @staticmethod
    def ddp(model, mesh):
        return nn.parallel.DistributedDataParallel(model)

    @staticmethod
    def fsdp2(model, mesh):
        from torch.distributed.fsdp import fully_shard

        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        return fully_shard(model, mesh=mesh)

    @staticmethod
    def tensor_parallel(model, mesh):
        from torch.distributed.tensor.parallel import (
            ColwiseParallel,
            RowwiseParallel,
            SequenceParallel,
            parallelize_module,
        )

        for block in model.blocks:
            plan = {"mlp.0": ColwiseParallel(), "mlp.2": RowwiseParallel()}
            parallelize_module(block, mesh, plan | {"second": SequenceParallel(use_local_output=True)})
        return model


def distributed_steps(way, make, rank):
    mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
    torch.manual_seed(0)
    model = getattr(Distributed, way)(Transformer().eval(), mesh)  # nothing is dropped: the processes would differ
    optimizer = make(model.parameters())
    losses, norms = [], []
    for _ in range(4):
        x, y = Transformer.example()
        if way != "tensor_parallel":  # each process has its part of the batch
            x, y = x[rank::2], y.view(BATCH, -1)[rank::2].flatten()
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        if way != "tensor_parallel":  # where stock does not take both kinds of tensors in one list
            norms.append(nn.utils.clip_grad_norm_(model.parameters(), 0.5))
        optimizer.step()
        losses.append(loss.detach())
    whole = lambda t: t.full_tensor() if hasattr(t, "full_tensor") else t  # noqa: E731
    return losses, [whole(norm) for norm in norms], {name: whole(p.detach()) for name, p in model.named_parameters()}


CASES = [("ddp", "AdamW"), ("fsdp2", "AdamW"), ("fsdp2", "rusttorch.AdamW"), ("tensor_parallel", "SGD")]


def distributed_process(rank, folder):
    """Every case in turn; writes down how each ended."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(seconds=60))
    errors = {}
    for way, name in CASES:
        make, step = OPTIMIZERS[name]
        stock = OPTIMIZERS[name.removeprefix("rusttorch.")][0]
        steps = () if way == "tensor_parallel" else (step,)  # a list of both kinds of tensors is stock's
        try:
            check(
                lambda ops, way=way, make=make: distributed_steps(way, make, rank),
                ("gelu", "gelu_backward", "native_layer_norm", "cross_entropy_loss_forward", *steps),
                atol=1e-5,
                against=lambda ops, way=way, make=stock: distributed_steps(way, make, rank),
            )
        except Exception:
            errors[way, name] = traceback.format_exc()
    torch.save(errors, folder / f"errors{rank}")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def distributed_errors(tmp_path_factory):
    """What went wrong in each case, in each of two processes, which are started once for all."""
    folder = tmp_path_factory.mktemp("processes")
    processes = torch.multiprocessing.spawn(distributed_process, (folder,), nprocs=2, join=False, daemon=True)
    end = time.monotonic() + 240
    while not processes.join(timeout=5):
        if time.monotonic() > end:
            for process in processes.processes:
                process.kill()
            pytest.fail("the processes hang")
    return [torch.load(folder / f"errors{rank}", weights_only=False) for rank in range(2)]


@pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="needs torch.distributed with gloo")
@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_two_processes(case, distributed_errors):
    for errors in distributed_errors:
        assert case not in errors, errors[case]
