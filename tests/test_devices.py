"""Tensors of two devices: a number may be on the CPU where stock lets it; what else is on another device is refused."""

import contextlib

import pytest
import rusttorch
import torch
from cases import ON_DEVICE

# Of another device than what the tests make: meta where that is the CPU.
OTHER = "meta" if torch.get_default_device().type == "cpu" else "cpu"
X, Y, Z = torch.randn(101), torch.randn(101), torch.rand(101) + 0.5
TWO = torch.tensor(2.0, device="cpu")

NUMBERS = {
    "1 - x": lambda m: 1 - X,
    "1 / x": lambda m: 1 / Z,
    "number * x": lambda m: TWO * X,
    "x * number": lambda m: X * TWO,
    "mul(2.0, x)": lambda m: m.mul(2.0, X),
    **{name: lambda m, name=name: getattr(m, name)(TWO, Z) for name in ("add", "sub", "mul", "div")},
    **{f"{name} second": lambda m, name=name: getattr(m, name)(X, TWO) for name in ("add", "sub", "mul", "div")},
    "div, trunc": lambda m: m.div(TWO, Z, rounding_mode="trunc"),
    "add, alpha": lambda m: m.add(TWO, X, alpha=3),
    "maximum": lambda m: m.maximum(TWO, X),
    "minimum second": lambda m: m.minimum(X, TWO),
    "clamp": lambda m: m.clamp(X, -TWO, TWO),
    "clamp first": lambda m: m.clamp(TWO, X, Y),
    "addcmul": lambda m: m.addcmul(TWO, X, Y),
    "addcmul second": lambda m: m.addcmul(X, TWO, Y),
    "addcmul third": lambda m: m.addcmul(X, Y, TWO),
    "addcdiv": lambda m: m.addcdiv(TWO, X, Z),
    "addcdiv third": lambda m: m.addcdiv(X, Y, TWO),
    "lerp": lambda m: m.lerp(TWO, X, 0.3),
    "lerp second": lambda m: m.lerp(X, TWO, 0.3),
    "lerp weight": lambda m: m.lerp(X, Y, TWO),
    "mul out": lambda m: m.mul(TWO, X, out=torch.empty(101)),
    "out on the CPU": lambda m: m.mul(TWO, X, out=torch.empty(101, device="cpu")),
    "in place": lambda m: X.clone().mul_(TWO),
    "in place of the number": lambda m: TWO.clone().mul_(X[0]),
}


def outcome(f):
    """The result or the exception's type."""
    try:
        return f()
    except (RuntimeError, TypeError) as error:
        return type(error)


@pytest.mark.parametrize("namespace", (torch, rusttorch), ids=("use", "by name"))
@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_on_the_cpu(name, namespace):
    stock = outcome(lambda: NUMBERS[name](torch))
    with rusttorch.use() if namespace is torch else contextlib.nullcontext():
        ours = outcome(lambda: NUMBERS[name](namespace))
    if isinstance(stock, type):
        assert ours is stock
        return
    assert ours.device == stock.device
    torch.testing.assert_close(ours, stock)


def norms_and_losses():
    """Op and arguments, each of which is right."""
    x, g, weight, bias = torch.randn(4, 6), torch.randn(4, 6), torch.randn(6), torch.randn(6)
    mean, rstd = torch.zeros(4, 1), torch.ones(4, 1)
    target = torch.tensor([0, 5, 1, 2])
    options = (1, -100, 0.0)
    ops = torch.ops.rusttorch
    images, by_images = torch.randn(4, 6, 5, 3), torch.randn(4, 6, 5, 3)
    running = torch.zeros(6), torch.ones(6)
    of_groups = torch.zeros(4, 2), torch.ones(4, 2)
    y = x.softmax(1)
    loss, slope = ops.cross_entropy_loss_forward(x, target, weight, *options, True)
    return {
        "native_layer_norm": (ops.native_layer_norm, (x, [6], weight, bias, 1e-5)),
        "native_layer_norm_backward": (
            ops.native_layer_norm_backward,
            (g, x, [6], mean, rstd, weight, bias, [True, True, True]),
        ),
        "_fused_rms_norm": (ops._fused_rms_norm, (x, [6], weight, 1e-5)),
        "_fused_rms_norm_backward": (ops._fused_rms_norm_backward, (g, x, [6], rstd, weight, [True, True])),
        "native_batch_norm": (ops.native_batch_norm, (images, weight, bias, *running, True, 0.1, 1e-5)),
        "native_batch_norm_backward": (
            ops.native_batch_norm_backward,
            (by_images, images, weight, None, None, *running, True, 1e-5, [True, True, True]),
        ),
        "native_group_norm": (ops.native_group_norm, (images, weight, bias, 4, 6, 15, 2, 1e-5)),
        "native_group_norm_backward": (
            ops.native_group_norm_backward,
            (by_images, images, *of_groups, weight, 4, 6, 15, 2, [True, True, True]),
        ),
        "rms_norm": (ops.rms_norm, (x, [6], weight, 1e-5)),
        "_softmax_backward_data": (ops._softmax_backward_data, (g, y, 1, torch.float32)),
        "_log_softmax_backward_data": (ops._log_softmax_backward_data, (g, y, 1, torch.float32)),
        "cross_entropy_loss": (ops.cross_entropy_loss, (x, target, weight, *options)),
        "cross_entropy_loss_forward": (ops.cross_entropy_loss_forward, (x, target, weight, *options, True)),
        "cross_entropy_loss_backward": (
            ops.cross_entropy_loss_backward,
            (loss, slope, target, *options[:2]),
        ),
        "linear_cross_entropy_forward": (
            ops.linear_cross_entropy_forward,
            (x, torch.randn(9, 6), target, torch.randn(9), *options, True),
        ),
    }


CALLS = norms_and_losses()


@pytest.mark.parametrize(
    ("name", "position"),
    [(name, k) for name, (_, args) in CALLS.items() for k, a in enumerate(args) if isinstance(a, torch.Tensor)],
)
def test_one_tensor_elsewhere_is_refused(name, position):
    op, args = CALLS[name]
    op(*args)
    moved = [a.to(OTHER) if k == position else a for k, a in enumerate(args)]
    with pytest.raises(RuntimeError, match="device"):
        op(*moved)


ON_A_GPU = pytest.mark.skipif(not ON_DEVICE, reason="streams and graphs are a GPU's")


@ON_A_GPU
def test_reductions_on_streams_side_by_side():
    """Each stream's blocks draw tickets of their own; a 65th's need none."""
    rows = torch.rand(8, 1 << 20, generator=torch.Generator(torch.get_default_device()).manual_seed(0))
    expected = [[rusttorch.sum(row), rusttorch.argmax(row)] for row in rows]
    streams = [torch.cuda.Stream(priority=-(k % 2)) for k in range(70)]
    torch.cuda.synchronize()
    found = []
    for _ in range(20):
        for stream in streams:
            with torch.cuda.stream(stream):
                found += [[rusttorch.sum(row), rusttorch.argmax(row)] for row in rows]
    torch.cuda.synchronize()
    for k, pair in enumerate(found):
        assert all(map(torch.equal, pair, expected[k % len(rows)]))


@ON_A_GPU
def test_reductions_in_graphs_side_by_side():
    x = torch.rand(1 << 20, generator=torch.Generator(torch.get_default_device()).manual_seed(0))
    expected = rusttorch.sum(x)
    graphs, sums = [torch.cuda.CUDAGraph() for _ in range(4)], []
    for graph in graphs:
        with torch.cuda.graph(graph):
            sums.append(torch.stack([rusttorch.sum(x) for _ in range(20)]))
    streams = [torch.cuda.Stream() for _ in graphs]
    for _ in range(20):
        for graph, stream in zip(graphs, streams, strict=True):
            with torch.cuda.stream(stream):
                graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(s, expected.expand(20)) for s in sums)
