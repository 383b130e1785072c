"""What autograd keeps of a call, and what it may be given: results that are changed, tangents without memory."""

import functools

import pytest
import rusttorch
import torch
import torch.autograd.forward_ad as fwAD
import torch.nn.functional as F

X, TARGET = torch.randn(6, 8), torch.randint(8, (6,))
RESIDUAL = torch.randn(6, 8)


def saved_bytes(f, *inputs):
    """Bytes of the tensors that f saves for its backward, its inputs and outputs among them, each memory once."""
    seen = {}

    def pack(t):
        seen[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        f(*inputs)
    return sum(seen.values())


# In-place on the result of what is swapped as a whole, or has a derivative here.
CHANGED = {
    "cross_entropy": (lambda x: F.cross_entropy(x, TARGET), lambda y: y.div_(4)),
    "cross_entropy, none": (lambda x: F.cross_entropy(x, TARGET, reduction="none"), lambda y: y.mul_(2)),
    "dropout": (lambda x: F.dropout(x, 0.5), lambda y: y.add_(RESIDUAL)),
    "rms_norm": (lambda x: F.rms_norm(x, (8,)), lambda y: y.add_(RESIDUAL)),
    "layer_norm": (lambda x: F.layer_norm(x, (8,)), lambda y: y.add_(RESIDUAL)),
    "l1_loss": (lambda x: F.l1_loss(x, RESIDUAL), lambda y: y.div_(4)),
    "mse_loss": (lambda x: F.mse_loss(x, RESIDUAL), lambda y: y.div_(4)),
    "kl_div": (lambda x: F.kl_div(x, RESIDUAL.softmax(-1), reduction="sum"), lambda y: y.div_(4)),
    "bce_with_logits": (lambda x: F.binary_cross_entropy_with_logits(x, RESIDUAL.sigmoid()), lambda y: y.div_(4)),
    "max": (lambda x: x.max(0).values, lambda y: y.mul_(2)),
    "sum": (lambda x: x.sum(0), lambda y: y.mul_(2)),
    "var": (lambda x: x.var(0), lambda y: y.mul_(2)),
    "cummax": (lambda x: x.cummax(0).values, lambda y: y.mul_(2)),
}


@pytest.mark.parametrize("name", CHANGED)
def test_a_result_may_be_changed_before_backward(name):
    """`loss /= 4`, `y += residual`, as users write it."""
    forward, change = CHANGED[name]

    def gradient():
        torch.manual_seed(0)
        x = X.clone().requires_grad_()
        y = forward(x)
        change(y).sum().backward()
        return x.grad

    expected = gradient()
    with rusttorch.use():
        torch.testing.assert_close(gradient(), expected)


def test_a_result_may_be_changed_by_name_too():
    h, w = torch.randn(6, 4, requires_grad=True), torch.randn(8, 4, requires_grad=True)
    calls = {
        "linear_cross_entropy": lambda: rusttorch.linear_cross_entropy(h, w, TARGET).div_(4),
        "cross_entropy": lambda: rusttorch.cross_entropy(h @ w.t(), TARGET).div_(4),
        "logsumexp's input": lambda: rusttorch.sum(h, 0).mul_(2).sum(),
        "max": lambda: rusttorch.max(h, 0)[0].mul_(2).sum(),
        "layer_norm": lambda: torch.ops.rusttorch.native_layer_norm(h, [4], None, None, 1e-5)[0].mul_(2).sum(),
    }
    for name, call in calls.items():
        assert torch.autograd.grad(call(), h)[0].isfinite().all(), name


def test_what_a_formula_reads_may_not_be_changed():
    """It is noticed, as in stock."""
    x = X.clone().requires_grad_()
    y = rusttorch.sigmoid(x)
    y.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_what_is_saved():
    """No more than a formula reads: no input of a sum, and one factor of a product by a constant."""
    x, constant = torch.randn(1000, requires_grad=True), torch.randn(1000)
    big = x.untyped_storage().nbytes()
    assert saved_bytes(rusttorch.sum, x) == 0
    assert saved_bytes(lambda x: rusttorch.mean(x.view(10, 100), 1), x) == 0
    assert saved_bytes(lambda x: rusttorch.max(x.view(10, 100), 1), x) == 10 * 8  # the indices
    assert saved_bytes(lambda x: torch.ops.rusttorch.cummax(x, 0), x) == 1000 * 8
    assert saved_bytes(rusttorch.mul, x, constant) == big
    assert saved_bytes(rusttorch.addcmul, x, constant, constant) == 0
    assert saved_bytes(lambda x: rusttorch.softmax(x, 0), x) == big  # the result alone
    assert saved_bytes(rusttorch.mish, x) == big
    assert saved_bytes(lambda x: torch.ops.rusttorch.native_dropout(x, 0.5, True), x) == 1000  # a byte each


def test_factors_of_a_product_by_a_constant_may_be_changed():
    x, constant = torch.randn(10, requires_grad=True), torch.randn(10)
    h = x * 1
    y = rusttorch.mul(h, constant)
    h.add_(1)
    y.sum().backward()
    torch.testing.assert_close(x.grad, constant)


ZERO = {
    "add": lambda x: torch.add(x, RESIDUAL, alpha=2),
    "add both": lambda x: torch.add(RESIDUAL, x, alpha=2),
    "sub": lambda x: torch.sub(x, RESIDUAL, alpha=2),
    "rsub": lambda x: torch.rsub(x, 3),
    "addcmul": lambda x: torch.addcmul(RESIDUAL, x, RESIDUAL, value=2),
    "addcdiv": lambda x: torch.addcdiv(RESIDUAL, x, RESIDUAL, value=2),
    "addr": lambda x: torch.addr(x, RESIDUAL[:, 0], RESIDUAL[0], beta=2, alpha=3),
    "ldexp": lambda x: torch.ldexp(x, torch.ones(8)),
    "index_add": lambda x: x.index_add(0, torch.tensor([0, 2]), RESIDUAL[:2], alpha=2),
    "clone": lambda x: x.t().clone(memory_format=torch.contiguous_format),
    "mul": lambda x: x * 3,
    "lerp": lambda x: torch.lerp(x, RESIDUAL, 0.3),
    "mish": F.mish,
    "softmax": lambda x: x.softmax(-1),
    "sum": lambda x: x.sum(0),
    "layer_norm": lambda x: F.layer_norm(x, (8,)),
    "cross_entropy": lambda x: F.cross_entropy(x, TARGET),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")  # torch's own, in forward-mode AD
@pytest.mark.parametrize("name", ZERO)
def test_tangents_without_memory(name):
    """A tangent that is a ZeroTensor, which has no memory, arrives at what aten lets it through to."""

    def tangent(zeros):
        with fwAD.dual_level():
            return fwAD.unpack_dual(ZERO[name](fwAD.make_dual(X, zeros))).tangent

    expected = tangent(torch.zeros_like(X))
    with rusttorch.use():
        for zeros in (torch._efficientzerotensor(X.shape, device=X.device), torch.zeros_like(X)):
            found = tangent(zeros)
            assert (found is None) == (expected is None)
            if found is not None:
                torch.testing.assert_close(found + 0, expected + 0)


@pytest.mark.parametrize("place", [0, 1])
def test_a_value_without_memory_in_a_loss_that_changes_it_in_place(place):
    values = [torch.rand(3, 4), torch.rand(3, 4)]
    values[place] = torch._efficientzerotensor((3, 4), device=X.device)
    loss = functools.partial(F.binary_cross_entropy_with_logits, *values, torch.rand(3, 4), pos_weight=torch.rand(4))
    expected = loss()
    with rusttorch.use():
        torch.testing.assert_close(loss(), expected)


@pytest.mark.parametrize("op", ["clone", "mul", "add", "neg_", "sum", "softmax", "mish"])
def test_values_that_are_negated_when_they_are_read(op):
    negated = torch._neg_view(torch.randn(9, 10).t())
    plain = negated.resolve_neg().clone()
    calls = {
        "clone": lambda x: x.clone(memory_format=torch.contiguous_format),
        "mul": lambda x: x * 3,
        "add": lambda x: torch.add(x, 1, alpha=2),
        "neg_": lambda x: x.clone().neg_(),
        "sum": lambda x: x.sum(0),
        "softmax": lambda x: x.softmax(-1),
        "mish": F.mish,
    }
    with rusttorch.use():
        torch.testing.assert_close(calls[op](negated).resolve_neg(), calls[op](plain))


@pytest.mark.filterwarnings("ignore:.*not a leaf Tensor:UserWarning")  # torch's tracer, of all its inputs
def test_compiled_autograd_takes_our_nodes():
    weight, target = torch.randn(8, 8), torch.randint(8, (6,))

    def loss(x):
        y = rusttorch.mish(x) * rusttorch.softmax(x @ weight, -1)
        y = torch.ops.rusttorch.native_layer_norm(rusttorch.mul(y, x), [8], None, None, 1e-5)[0]
        return (
            rusttorch.cross_entropy(y, target) + rusttorch.max(y, 1)[0].sum() + rusttorch.mean(y.view(2, 24), 1).sum()
        )

    x, expected = X.clone().requires_grad_(), X.clone().requires_grad_()
    loss(expected).backward()
    torch._dynamo.reset()
    with torch._dynamo.compiled_autograd._enable(lambda graph: torch.compile(graph, backend="aot_eager")):
        for _ in range(2):  # traced, and from the cache
            x.grad = None
            loss(x).backward()
            torch.testing.assert_close(x.grad, expected.grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_inputs_of_16_bits_may_be_changed(dtype):
    """Stock keeps what it made of them in 32 bits. (Of float32 it keeps the input, and so do we.)"""

    def gradients(change):
        x, weight = X.to(dtype).requires_grad_(), torch.linspace(1, 2, 8).to(dtype).requires_grad_()
        h = x * 1
        y = F.rms_norm(h, (8,), weight)
        if change:
            h.mul_(3)
        return torch.autograd.grad((y * RESIDUAL.to(dtype)).sum(), (x, weight))

    with rusttorch.use():
        torch.testing.assert_close(gradients(change=True), gradients(change=False), rtol=0, atol=0)


@pytest.mark.skipif(not hasattr(torch.autograd.graph, "node_creation_hook"), reason="torch has it from 2.14 on")
def test_nodes_are_shown_when_they_are_made():
    """Complete: a hook on the node sees its gradients."""
    shown, ran_backward = [], []

    def hook(node):
        shown.append(node.name())
        node.register_hook(lambda grad_inputs, grad_outputs: ran_backward.append(node.name()))

    x = X.clone().requires_grad_()
    with torch.autograd.graph.node_creation_hook(hook):
        y = torch.ops.rusttorch.mish_(rusttorch.mul(x, RESIDUAL))
        torch.ops.rusttorch.sigmoid_(y[0])  # of a view: autograd's own node stands around ours
        rusttorch.cross_entropy(y, TARGET).backward()
    ours = [
        "Rusttorchmul.TensorBackward",
        "RusttorchmishBackward",
        "torch::autograd::CopySlices",
        "Rusttorchcross_entropy_loss_forwardBackward",
    ]
    assert [name for name in shown if name in ours] == ours
    assert set(ours) <= set(ran_backward)


def test_a_long_graph_is_freed_without_recursion():
    y = torch.ones(1, requires_grad=True)
    for _ in range(200_000):
        y = rusttorch.mul(y, 1.0)
    del y
