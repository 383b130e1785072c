"""rusttorch.NAME and torch.ops.rusttorch.NAME as functions: signatures, and bad input as stock."""

import copy
import inspect
import itertools
import pickle
import subprocess
import sys

import pytest
import rusttorch
import torch
import torch.nn.functional as F
from cases import Case, functional_ops, same_error
from rusttorch._register import overload
from rusttorch.sentences import SENTENCES
from torch.autograd import forward_ad

X, Y = torch.randn(6), torch.randn(6)


def test_signatures():
    assert torch.equal(rusttorch.add(X, Y, alpha=2), torch.add(X, Y, alpha=2))
    assert torch.equal(rusttorch.add(X, 2.5), torch.add(X, 2.5))
    assert torch.equal(rusttorch.add(input=X, other=Y), X + Y)
    assert torch.equal(rusttorch.clamp(X, min=0), X.clamp(min=0))
    assert torch.equal(rusttorch.clamp(X, Y, Y + 1), X.clamp(Y, Y + 1))
    assert torch.equal(rusttorch.div(X, Y, rounding_mode="floor"), torch.div(X, Y, rounding_mode="floor"))
    assert torch.equal(rusttorch.pow(X, 2), X**2)
    assert torch.equal(rusttorch.swish(X), rusttorch.silu(X))
    torch.testing.assert_close(rusttorch.gelu(X, approximate="tanh"), F.gelu(X, approximate="tanh"))
    out = torch.empty(6)
    assert rusttorch.mul(X, Y, out=out) is out
    assert rusttorch.mul(X, Y, out=None) is not out
    assert torch.equal(out, X * Y)
    z = X.clone()
    assert rusttorch.relu_(z) is z
    output, buffer = rusttorch.log_sigmoid_forward(X)
    torch.testing.assert_close(output, F.logsigmoid(X))
    torch.testing.assert_close(buffer, (-X.abs()).exp())


# Forms of aten's that are left to it: their own kernels there, or made of a form that is swapped.
LEFT_TO_ATEN = {"cumsum_", "dropout_", "softmax.int_out", "log_softmax.int_out"}


def test_every_form_of_aten_s_is_there():
    missing = set()
    for name in functional_ops():
        case = Case(name)
        for form in ("inplace", "out"):
            if case.overload("aten", form) and not case.overload("rusttorch", form):
                op = case.overload("aten", form)
                if torch.Tag.generated not in op.tags:
                    missing.add(op.name().removeprefix("aten::"))
    assert missing == LEFT_TO_ATEN


def test_every_op_has_a_function_with_a_docstring():
    # rusttorch.optim and rusttorch.foreach have the first; flags are for autograd, and indices have Python's own form.
    lists = ("List[Tensor]", "List[bool]", "List[Optional[Tensor]]")
    ops = {op.name.partition(".")[0]: overload("rusttorch", op.name)._schema.arguments for op in rusttorch.ops()}
    names = {name for name, arguments in ops.items() if not any(str(a.type) in lists for a in arguments)}
    assert all(name in getattr(rusttorch, name).__doc__ for name in names)


def test_every_function_says_what_it_does():
    """In a sentence, behind its signatures."""
    for name, function in rusttorch._functions.items():
        said = function.__doc__.split("\n\n")[-2:]
        assert said[0].endswith(".") and " -> " not in said[0], name
    assert set(SENTENCES) <= set(rusttorch._functions) | {"dropout"}  # which is a function of Python


def test_pairs_have_names():
    x = torch.randn(3, 4)
    for name in ("max", "min", "cummax", "cummin"):
        ours, stock = getattr(rusttorch, name)(x, 1), getattr(torch, name)(x, 1)
        assert type(ours) is type(stock)
        assert (ours.values == stock.values).all() and (ours.indices == stock.indices).all()


def test_names_and_arguments_of_torch_nn_functional():
    x, weight, bias = torch.randn(6, 8), torch.randn(8), torch.randn(8)
    torch.testing.assert_close(rusttorch.logsigmoid(x), F.logsigmoid(x))
    for given in ({}, {"weight": weight}, {"weight": weight, "bias": bias, "eps": 1e-3}):
        torch.testing.assert_close(rusttorch.layer_norm(x, (8,), **given), F.layer_norm(x, (8,), **given))
    for given in ({}, {"p": 0.25}, {"p": 0.9, "training": True}, {"training": False}):
        torch.manual_seed(0)
        stock = F.dropout(x, **given)
        torch.manual_seed(0)
        assert (rusttorch.dropout(x, **given) == stock).all()
    for bad in (lambda m: m.dropout(x, 1.5), lambda m: m.layer_norm(x, (7,))):
        same_error(lambda bad=bad: bad(rusttorch), lambda bad=bad: bad(F))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor's
@pytest.mark.parametrize("backend", ("eager", "inductor"))
def test_functions_are_traced_whole(backend):
    """rusttorch.NAME, with torch.compile(fullgraph=True)."""
    x, target = torch.randn(6, 5, requires_grad=True), torch.randn(6, 5)

    def f(x):
        y = rusttorch.mish(x) + rusttorch.gelu(input=x, approximate="tanh") + rusttorch.layer_norm(x, (5,))
        largest = rusttorch.max(y, 0)
        losses = rusttorch.mse_loss(y, target, "sum") + rusttorch.mse_loss(y, target, reduction="none").sum()
        return (
            losses + largest.values.sum() + rusttorch.add(y, largest.indices, out=None).sum() + rusttorch.sum(y, (0, 1))
        )

    whole = torch.compile(f, fullgraph=True, backend=backend)
    torch.testing.assert_close(whole(x), f(x))
    grads = [torch.autograd.grad(each(x), x)[0] for each in (whole, f)]
    torch.testing.assert_close(*grads)


def arguments_of(name):
    """By which torch.compile can call the function of an op, by keyword: of its first overload; or None."""
    x = torch.linspace(0.1, 0.9, 6).reshape(2, 3)
    schema = overload("rusttorch", next(op.name for op in rusttorch.ops() if op.name.partition(".")[0] == name))._schema
    values = {"Tensor": x, "number": 2.0, "bool": True, "float": 0.5, "int": 1, "SymInt": 1, "str": "none"}
    values |= {
        "List[int]": [1],
        "List[SymInt]": [3],
        "List[Tensor]": [x],
        "ScalarType": torch.float32,
        "MemoryFormat": torch.contiguous_format,
    }
    given = {}
    for argument in schema.arguments:
        key = "input" if argument.name == "self" else argument.name
        type_ = str(argument.real_type)
        if argument.name == "reduction" and argument.has_default_value():
            given[key] = "sum"
        elif argument.has_default_value():
            given |= {key: None} if argument.default_value in (None, []) else {}
        else:
            given[key] = values[type_.removeprefix("Optional[").removesuffix("]") if "Optional" in type_ else type_]
    return given | PARTICULAR.get(name, {})


PLANES, POOLED = torch.linspace(0.1, 0.9, 16).reshape(1, 4, 4), torch.ones(1, 2, 2)
WINDOWS = {"kernel_size": [2, 2], "stride": [2, 2], "padding": [0, 0]}
HEADS = torch.linspace(0.1, 0.9, 48).reshape(2, 3, 4, 2)
ENTRIES = torch.tensor([0, 2, 2, 1])  # of an embedding
CHOICES = torch.tensor([[[5, 7], [13, 15]]])
CLASSES, VECTOR = torch.tensor([0, 2]), torch.linspace(0.1, 0.9, 3)
RESIZES = {
    **{name: {} for name in ("upsample_nearest2d", "_upsample_nearest_exact2d")},
    **{
        name: {"align_corners": False}
        for name in ("upsample_bilinear2d", "upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa")
    },
}
PICTURES = {"images": torch.linspace(0.1, 0.9, 96).reshape(2, 3, 4, 4)}
# Of those whose arguments must fit each other.
PARTICULAR = {
    **{name: {"min": 0.2} for name in ("clamp", "clamp_")},
    **{name: {"half_to_float": False} for name in ("_softmax", "_log_softmax")},
    "cross_entropy_loss": {"target": CLASSES},
    "cross_entropy_loss_forward": {"target": CLASSES, "weight": None},
    "cross_entropy_loss_backward": {"grad_output": torch.tensor(2.0), "target": CLASSES},
    **{
        f"linear_cross_entropy{form}": {"target": CLASSES, "linear_weight": torch.ones(4, 3), "linear_bias": None}
        for form in ("", "_forward")
    },
    "convolution": {
        **{"input": torch.ones(1, 2, 4), "weight": torch.ones(2, 1, 3), "bias": None, "groups": 2},
        **{"stride": [1], "padding": [1], "dilation": [1], "transposed": False, "output_padding": [0]},
    },
    "native_dropout_backward": {"mask": torch.tensor([True, False, True])},
    "native_layer_norm": {"normalized_shape": [3], "weight": VECTOR, "bias": VECTOR},
    **{
        name: {**dict.fromkeys(("weight", "bias", "running_mean", "running_var"), VECTOR), "training": False}
        for name in ("native_batch_norm", "batch_norm_relu", "batch_norm_relu_forward")
    },
    "native_group_norm": {"weight": VECTOR, "bias": VECTOR, "N": 2, "C": 3, "HxW": 1, "group": 1},
    "mm": {"mat2": torch.ones(3, 2)},
    **{name: {"mat1": torch.ones(2, 4), "mat2": torch.ones(4, 3)} for name in ("addmm", "addmm_")},
    "bmm": {"input": torch.ones(2, 2, 3), "mat2": torch.ones(2, 3, 4)},
    **{
        name: {"input": torch.ones(1, 2, 2), "batch1": torch.ones(1, 2, 3), "batch2": torch.ones(1, 3, 2)}
        for name in ("baddbmm", "baddbmm_")
    },
    "mv": {"vec": VECTOR},
    "dot": {"input": VECTOR, "tensor": VECTOR},
    **{
        f"linear_act{form}": {"weight": torch.ones(4, 3), "bias": None, "activation": "gelu"}
        for form in ("", "_forward")
    },
    **{
        f"linear_glu{form}": {"gate_weight": torch.ones(4, 3), "up_weight": torch.ones(4, 3), "activation": "silu"}
        for form in ("", "_forward")
    },
    **{name: {"input": torch.ones(2), "mat": torch.ones(2, 3), "vec": VECTOR} for name in ("addmv", "addmv_")},
    **{name: {"input": PLANES[None], "output_size": [3, 5], **options} for name, options in RESIZES.items()},
    **{
        f"{name}_backward": {"grad_output": torch.ones(1, 1, 3, 5), "output_size": [3, 5], "input_size": [1, 1, 4, 4]}
        | options
        for name, options in RESIZES.items()
    },
    **{name: {"input": PLANES, **WINDOWS} for name in ("max_pool2d_with_indices", "avg_pool2d")},
    **{name: {"input": PLANES, "output_size": [2, 2]} for name in ("_adaptive_avg_pool2d", "adaptive_max_pool2d")},
    "max_pool2d_with_indices_backward": {
        **{"grad_output": POOLED, "input": PLANES, **WINDOWS},
        **{"dilation": [1, 1], "ceil_mode": False, "indices": CHOICES},
    },
    "avg_pool2d_backward": {
        **{"grad_output": POOLED, "input": PLANES, **WINDOWS},
        **{"ceil_mode": False, "count_include_pad": True, "divisor_override": None},
    },
    "_adaptive_avg_pool2d_backward": {"grad_output": POOLED, "input": PLANES},
    **{
        name: {"dim": 0, "index": torch.tensor([1, 0, 1]), "source": torch.randn(3, 3)}
        for name in ("index_add", "index_add_")
    },
    **{
        name: {"dim": 0, "index": torch.tensor([[1, 0, 1]]), "src": torch.randn(1, 3)}
        for name in ("scatter_add", "scatter_add_")
    },
    **{
        name: {"query": HEADS, "key": HEADS, "value": HEADS, "dropout_p": 0.0, "is_causal": True}
        for name in ("scaled_dot_product_attention", "_scaled_dot_product_flash_attention_for_cpu", "attention_forward")
    },
    **{
        name: {
            **{"grad_out": HEADS, "query": HEADS, "key": HEADS, "value": HEADS, "out": HEADS},
            **{"logsumexp": HEADS[..., 0], "attn_mask": None, "dropout_p": 0.0, "is_causal": True, **random},
        }
        for name, random in (
            ("attention_backward", {"random": torch.empty(0, dtype=torch.int32)}),
            ("_scaled_dot_product_flash_attention_for_cpu_backward", {}),
        )
    },
    "attention_kept": {"random": torch.ones(6, 625, dtype=torch.int32), "sizes": [2, 3, 4, 4], "dropout_p": 0.5},
    **{
        name: {"weight": torch.randn(3, 4), "indices": ENTRIES, "offsets": torch.tensor([0, 2])}
        for name in ("_embedding_bag", "_embedding_bag_forward_only")
    },
    "_embedding_bag_dense_backward": {
        **{"grad": torch.randn(2, 4), "indices": ENTRIES, "offset2bag": torch.tensor([0, 0, 1, 1])},
        **{"bag_size": torch.tensor([2, 2]), "maximum_indices": torch.tensor([0, 0]), "num_weights": 3},
        **{"scale_grad_by_freq": False, "mode": 0, "per_sample_weights": None},
    },
    "_embedding_bag_per_sample_weights_backward": {
        **{"grad": torch.randn(2, 4), "weight": torch.randn(3, 4), "indices": ENTRIES},
        **{"offsets": torch.tensor([0, 2]), "offset2bag": torch.tensor([0, 0, 1, 1]), "mode": 0},
    },
    "embedding_dense_backward": {
        **{"grad_output": torch.randn(4, 3), "indices": ENTRIES},
        **{"num_weights": 3, "padding_idx": -1, "scale_grad_by_freq": False},
    },
    **{
        name: {
            "input": torch.ones(3, 2, 4),
            "hx": [torch.ones(1, 2, 5)] * 2 if name == "lstm" else torch.ones(1, 2, 5),
            "params": weights,
        }
        | {"has_biases": False, "num_layers": 1, "dropout": 0.0, "train": True}
        | {"bidirectional": False, "batch_first": False}
        for name, hx, weights in (
            ("gru", torch.ones(1, 2, 5), [torch.ones(15, 4), torch.ones(15, 5)]),
            ("lstm", [torch.ones(1, 2, 5)] * 2, [torch.ones(20, 4), torch.ones(20, 5)]),
            *((name, torch.ones(1, 2, 5), [torch.ones(5, 4), torch.ones(5, 5)]) for name in ("rnn_tanh", "rnn_relu")),
        )
    },
    **{
        f"{name}_cell": {
            "input": torch.ones(2, 4),
            "hx": [torch.ones(2, 5)] * 2 if name == "lstm" else torch.ones(2, 5),
        }
        | {"w_ih": torch.ones(rows, 4), "w_hh": torch.ones(rows, 5)}
        for name, hx, rows in (
            ("gru", torch.ones(2, 5), 15),
            ("lstm", [torch.ones(2, 5)] * 2, 20),
            ("rnn_tanh", torch.ones(2, 5), 5),
            ("rnn_relu", torch.ones(2, 5), 5),
        )
    },
    "rnn_layer_forward": {
        **{"input": torch.ones(3, 2, 4), "hx": torch.ones(2, 5), "cx": None, "bias_ih": None, "bias_hh": None},
        **{"weight_ih": torch.ones(15, 4), "weight_hh": torch.ones(15, 5), "weight_hr": None, "batch_sizes": None},
        **{"mode": "gru", "reverse": False, "differentiate": True},
    },
    "rnn_layer_backward": {
        **{"grad_output": torch.ones(3, 2, 5), "grad_hn": None, "grad_cn": None},
        **{"input": torch.ones(3, 2, 4), "hx": torch.ones(2, 5), "cx": None},
        **{"weight_ih": torch.ones(5, 4), "weight_hh": torch.ones(5, 5), "weight_hr": None, "batch_sizes": None},
        **{"reserve": torch.ones(30), "mode": "rnn_relu", "reverse": False, "output_mask": [True] * 8},
    },
    **{
        name: PICTURES | {"steps": torch.ones(2, 1, dtype=torch.int64), "factors": torch.full((2, 1), 0.5)}
        for name in ("color_images", "color_images_")
    },
    "normalize_images": PICTURES | {"mean": VECTOR, "std": VECTOR},
    "mix_images": PICTURES | {"kept": torch.ones(2)},
    "warp_images": PICTURES | {"matrix": torch.eye(3).expand(2, 3, 3), "output_size": [3, 5]},
    "crop_images": PICTURES
    | {"corner": torch.ones(2, 2, dtype=torch.int64), "mirrored": torch.ones(2, 2) > 0, "size": [2, 3]},
    "blur_images": PICTURES | {"across": torch.ones(2, 3), "down": torch.ones(2, 1)},
    "sharpen_images": PICTURES | {"factors": torch.ones(2)},
    "adaptive_max_pool2d_backward": {"grad_output": POOLED, "input": PLANES, "indices": CHOICES},
    **{
        name: {"normalized_shape": [3], "weight": VECTOR}
        for name in ("rms_norm", "_fused_rms_norm", "add_rms_norm", "_fused_add_rms_norm", "add_layer_norm")
    },
    "_fused_add_layer_norm": {"normalized_shape": [3], "weight": VECTOR, "bias": VECTOR},
    **{
        f"rope{form}": dict(zip(names, (PLANES[None], PLANES[None], PLANES[0, :, :2], PLANES[0, :, 2:]), strict=True))
        for form, names in (
            ("", ("q", "k", "cos", "sin")),
            ("_", ("q", "k", "cos", "sin")),
            ("_backward", ("grad_q", "grad_k", "cos", "sin")),
        )
    },
}


@pytest.mark.parametrize("name", rusttorch._functions)
def test_a_traced_function_takes_what_the_builtin_takes(name):
    given = arguments_of(name)
    function = getattr(rusttorch, name)
    torch._dynamo.reset()

    def copies():
        return {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in given.items()}

    torch.manual_seed(0)
    stock = function(**copies())
    torch.manual_seed(0)
    traced = torch.compile(lambda given: function(**given), fullgraph=True, backend="eager")(copies())
    assert type(traced) is type(stock)
    torch.testing.assert_close(traced, stock, equal_nan=True)


def test_a_traced_function_refuses_what_the_builtin_refuses():
    x = torch.ones(3)
    whole = torch.compile(lambda: rusttorch.mse_loss(x, x, reduction="some"), backend="eager")
    with pytest.raises(ValueError, match="some is not a valid value for reduction"):
        whole()


def test_importing_does_not_import_dynamo():
    """That takes seconds; rusttorch.NAME is known to it whichever is imported first."""
    code = """
import importlib.util, sys, torch
{}
import rusttorch
importlib.util.find_spec("torch._dynamo")  # a look is no import
assert ("torch._dynamo" in sys.modules) == {}
import torch._dynamo
f = torch.compile(lambda x: rusttorch.mish(x), fullgraph=True, backend="eager")
print(f(torch.ones(3)).sum().item())
"""
    for first, there in (("", False), ("import torch._dynamo", True)):
        done = subprocess.run([sys.executable, "-c", code.format(first, there)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_numbers_and_promotion():
    integers = torch.arange(6)
    for a, b in (
        (integers, 2),
        (integers, 2.5),
        (X, integers),
        (X, torch.tensor(2.0, dtype=torch.float64)),
        (X.half(), 2.5),
        (X.bfloat16(), X),
        (X > 0, X > 1),
        (X.cfloat(), 2),
        (torch.tensor(3), X),
    ):
        for name in ("add", "mul", "div"):
            if name == "add" and a.dtype == torch.bool:
                continue
            ours, stock = getattr(rusttorch, name)(a, b), getattr(torch, name)(a, b)
            assert ours.dtype == stock.dtype
            torch.testing.assert_close(ours, stock, rtol=0, atol=0, equal_nan=True)
    broadcast = rusttorch.add(torch.ones(3, 1), torch.ones(1, 4))
    assert broadcast.shape == (3, 4)


def test_torch_function():
    class Loud(torch.Tensor):
        pass

    assert type(rusttorch.add(torch.ones(2).as_subclass(Loud), 1)) is Loud


def test_shapes_that_do_not_broadcast():
    a, b = torch.ones(3), torch.ones(4)
    same_error(lambda: rusttorch.add(a, b), lambda: torch.add(a, b))
    same_error(lambda: rusttorch.addcmul(a, b, b), lambda: torch.addcmul(a, b, b))
    z = torch.zeros(3)
    same_error(lambda: rusttorch.add_(z, b), lambda: z.add_(b))
    assert torch.equal(z, torch.zeros(3))


def test_out_of_the_wrong_dtype():
    out = torch.zeros(6, dtype=torch.int64)
    same_error(lambda: rusttorch.add(X, Y, out=out), lambda: torch.add(X, Y, out=out))
    same_error(lambda: rusttorch.mish(X, out=out), lambda: torch.ops.aten.mish.out(X, out=out))
    assert torch.equal(out, torch.zeros(6, dtype=torch.int64))


def test_out_that_overlaps_its_input():
    base = torch.arange(8.0)
    before = base.clone()
    same_error(lambda: rusttorch.exp(base[:6], out=base[2:]), lambda: torch.exp(base[:6], out=base[2:]))
    same_error(lambda: rusttorch.mul_(base, base[3]), lambda: base.mul_(base[3]))
    assert torch.equal(base, before)
    torch.testing.assert_close(rusttorch.exp(base, out=base), before.exp())  # all of it is no partial overlap


def test_out_is_resized_as_stock_does():
    ours, stock = torch.empty(0), torch.empty(0)
    assert torch.equal(rusttorch.add(X, Y, out=ours), torch.add(X, Y, out=stock))
    with pytest.warns(UserWarning, match="resized"):
        rusttorch.add(X, Y, out=torch.empty(3))


def test_integers_for_a_float_op():
    i = torch.arange(4)
    for ours, stock in (
        (lambda: rusttorch.gelu(i), lambda: F.gelu(i)),
        (lambda: rusttorch.mish(i), lambda: F.mish(i)),
        (lambda: rusttorch.elu(i), lambda: F.elu(i)),
        (lambda: rusttorch.add(i, i, alpha=0.5), lambda: torch.add(i, i, alpha=0.5)),
        (lambda: rusttorch.add(X, X, alpha=True), lambda: torch.add(X, X, alpha=True)),
        (lambda: rusttorch.div_(i, 2), lambda: i.div_(2)),
    ):
        same_error(ours, stock)
    assert torch.equal(i, torch.arange(4))


def test_unknown_options():
    same_error(lambda: rusttorch.gelu(X, approximate="tan"), lambda: F.gelu(X, approximate="tan"))
    same_error(lambda: rusttorch.div(X, Y, rounding_mode="up"), lambda: torch.div(X, Y, rounding_mode="up"))
    same_error(lambda: rusttorch.clamp(X), lambda: torch.clamp(X))
    same_error(lambda: rusttorch.celu(X, 0), lambda: F.celu(X, 0))
    with pytest.raises(TypeError, match="must be Tensor, not str"):
        rusttorch.mish("x")
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        rusttorch.mish(X, slope=1)


def test_two_devices():
    meta = torch.ones(6, device="meta")
    same_error(lambda: rusttorch.add(X, meta), lambda: torch.add(X, meta))
    same_error(lambda: rusttorch.mish_backward(X, meta), lambda: torch.ops.aten.mish_backward(X, meta))


def test_expanded_tensor_written_in_place():
    base = torch.ones(1)
    expanded = base.expand(5)
    same_error(lambda: rusttorch.add_(expanded, 1), lambda: expanded.add_(1))
    same_error(
        lambda: rusttorch.relu(torch.ones(5), out=expanded),
        lambda: torch.ops.aten.relu.out(torch.ones(5), out=expanded),
    )
    assert base.item() == 1


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")  # torch.autograd.forward_ad's own
def test_autograd_refusals():
    leaf = torch.ones(6, requires_grad=True)
    same_error(lambda: rusttorch.exp_(leaf), lambda: leaf.exp_())
    same_error(lambda: rusttorch.exp(leaf, out=torch.empty(6)), lambda: torch.exp(leaf, out=torch.empty(6)))
    y = rusttorch.mish(leaf * 1)
    y.sum().backward()
    with pytest.raises(RuntimeError, match="second time"):
        y.sum().backward()
    z = leaf * 1
    w = rusttorch.mish(z)
    z.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        w.sum().backward()
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="no forward-mode derivative"):
        rusttorch.mish(forward_ad.make_dual(X, Y))


def test_torch_func():
    grad = torch.func.grad(lambda x: torch.ops.rusttorch.mish(x).sum())
    torch.testing.assert_close(grad(X), torch.func.grad(lambda x: F.mish(x).sum())(X))
    hessian = torch.vmap(torch.func.grad(torch.func.grad(lambda x: torch.ops.rusttorch.mish(x))))
    torch.testing.assert_close(hessian(X), torch.vmap(torch.func.grad(torch.func.grad(F.mish)))(X))


def test_threads_give_the_same_result():
    x = torch.randn(300_007)
    wanted = rusttorch.mish(x)
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if threads > 1 else 2)
    try:
        assert torch.equal(rusttorch.mish(x), wanted)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("op", ["add", "add_number", "neg", "mish"])
@pytest.mark.parametrize("offset", [0, 1, 5])
def test_outputs_too_large_for_the_cache(op, offset):
    """Streaming stores, with an output that is not aligned to a vector and does not end on one."""
    n = 9_000_011
    x, y, out = torch.randn(n), torch.randn(n), torch.empty(n + 8)[offset : offset + n]
    ours = {
        "add": lambda: rusttorch.add(x, y, out=out),
        "add_number": lambda: rusttorch.add(x, 2.5, out=out),
        "neg": lambda: rusttorch.neg(x, out=out),
        "mish": lambda: rusttorch.mish(x, out=out),
    }
    stock = {
        "add": lambda: x + y,
        "add_number": lambda: x + 2.5,
        "neg": lambda: -x,
        "mish": lambda: F.mish(x),
    }
    torch.testing.assert_close(ours[op](), stock[op]())


def test_built_for_another_torch(monkeypatch):
    import importlib

    monkeypatch.setattr(rusttorch._build, "TORCH", "1.0.0+cpu")
    with pytest.raises(ImportError, match=r"built against torch 1\.0\.0\+cpu, but torch .* is for torch>="):
        importlib.reload(rusttorch)


BEYOND = {
    "mul": lambda x, s: x * s,
    "add": lambda x, s: x + s,
    "add_": lambda x, s: x.clone().add_(s),
    "sub": lambda x, s: x - s,
    "rsub": lambda x, s: s - x,
    "div": lambda x, s: x / s,
    "alpha": lambda x, s: torch.add(x, x, alpha=s),
    "addcmul": lambda x, s: torch.addcmul(x, x, x, value=s),
    "lerp": lambda x, s: torch.lerp(x, x, s),
    "clamp": lambda x, s: x.clamp(max=s),
    "clamp_min": lambda x, s: x.clamp_min(s),
    "pow": lambda x, s: x**s,
    "elu": lambda x, s: torch.nn.functional.elu(x, s),
    "leaky_relu": lambda x, s: torch.nn.functional.leaky_relu(x, s),
    "softplus": lambda x, s: torch.nn.functional.softplus(x, s),
    "foreach": lambda x, s: torch._foreach_mul([x, x], s),
    "foreach_": lambda x, s: torch._foreach_add_([x.clone()], s),
    "norm": lambda x, s: x.norm(s),
}


@pytest.mark.parametrize("number", [1e39, -1e39, 1e5, float("inf"), float("nan"), 2**40, 2**63, -(2**63), True])
@pytest.mark.parametrize("name", BEYOND)
def test_numbers_beyond_a_dtype_s_range(name, number):
    """Infinite where stock is, an error where stock raises."""

    def outcome(x):
        try:
            return BEYOND[name](x, number)
        except (RuntimeError, TypeError, OverflowError) as error:
            return type(error)

    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int32, torch.int64):
        x = torch.ones(3, dtype=dtype)
        expected = outcome(x)
        with rusttorch.use():
            found = outcome(x)
        if isinstance(expected, type):
            assert found == expected, dtype
        else:
            torch.testing.assert_close(found, expected, equal_nan=True)


MIXED = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "maximum": lambda x, y: torch.maximum(torch.as_tensor(x), torch.as_tensor(y)),
    "rsub": lambda x, y: y - x,
    "addcmul": lambda x, y: torch.addcmul(torch.as_tensor(x), torch.as_tensor(y), torch.as_tensor(y)),
    "addcmul, last": lambda x, y: torch.addcmul(torch.as_tensor(x), torch.as_tensor(x), torch.as_tensor(y)),
    "lerp": lambda x, y: torch.lerp(torch.as_tensor(x), torch.as_tensor(x), torch.as_tensor(y)),
    "clamp": lambda x, y: torch.clamp(torch.as_tensor(x), torch.as_tensor(y), torch.as_tensor(y)),
    "mse_loss": lambda x, y: F.mse_loss(torch.as_tensor(x), torch.as_tensor(y)),
}


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("name", MIXED)
def test_promotion_of_numbers_and_tensors_of_one_element(name):
    """0-dim tensors promote each other, numbers and one-element operands of a lower rank do not."""

    def outcome(x, y):
        try:
            return MIXED[name](x, y)
        except (RuntimeError, TypeError) as error:
            return type(error)

    dtypes = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int32, torch.int64, torch.bool)
    operands = [torch.ones(shape, dtype=dtype) for dtype in dtypes for shape in ((), (1,), (3,))]
    operands += [2, 2.5, True]
    for x, y in itertools.product(operands, operands):
        if not (isinstance(x, torch.Tensor) or isinstance(y, torch.Tensor)):
            continue
        expected = outcome(x, y)
        with rusttorch.use("pointwise", "loss"):
            found = outcome(x, y)
        where = f"{x} and {y}"
        if isinstance(expected, type):
            assert found is expected, where
        else:
            assert found.dtype == expected.dtype, where
            torch.testing.assert_close(found, expected, msg=where)


def test_help_is_python_s():
    assert str(inspect.signature(rusttorch.gelu)) == "(input, *, approximate='none', out=None)"
    said = 'gelu(input: Tensor, *, approximate: str = "none", out: Tensor | None = None) -> Tensor'
    assert said in rusttorch.gelu.__doc__
    assert "max(input: Tensor, dim: int, keepdim: bool = False) -> torch.return_types.max" in rusttorch.max.__doc__
    for function in rusttorch._functions.values():
        assert not any(word in function.__doc__ for word in ("c10::", "int64_t", "IntArrayRef"))


def test_functions_are_pickled_by_name():
    for name in ("gelu", "max", "cross_entropy"):
        function = getattr(rusttorch, name)
        assert pickle.loads(pickle.dumps(function)) is function
        assert copy.deepcopy(function) is function
    module = torch.nn.Sequential(torch.nn.Linear(3, 3))
    module.activation = rusttorch.gelu
    assert pickle.loads(pickle.dumps(module)).activation is rusttorch.gelu
