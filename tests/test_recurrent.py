"""Recurrent layers: against float64 and stock, over modes, options, dtypes, layouts, packed sequences, derivatives."""

import contextlib
import itertools

import pytest
import rusttorch
import torch
from cases import AMX, CPU_FLAGS, DTYPES, INTEL, opcheck, same_error
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

# The warnings are stock's, of LSTMs with projections, and of torch.backends.mkldnn.flags.
pytestmark = [
    pytest.mark.usefixtures("take_all"),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning"),
    pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN:UserWarning"),
]
OWN = ("rnn_layer_forward", "rnn_layer_backward")
OPS, ATEN = torch.ops.rusttorch, torch.ops.aten
CELLS = ("gru", "lstm", "rnn_tanh", "rnn_relu")
MODES = (*CELLS, "lstm_projected")
# Steps, sequences, inputs, units: around the sizes of a vector and of a tile; one of each
SIZES = [
    (5, 3, 7, 5),
    (9, 4, 16, 33),
    (1, 1, 1, 1),
    (3, 1, 70, 64),
    (4, 20, 40, 19),
    (2, 33, 8, 100),
    (30, 2, 3, 8),
    (6, 16, 9, 24),
]
OPTIONS = [
    {},
    {"bias": False},
    {"batch_first": True},
    {"bidirectional": True},
    {"num_layers": 3},
    {"num_layers": 2, "bidirectional": True, "batch_first": True},
    {"num_layers": 2, "dropout": 0.4},
]
LENGTHS = [7, 7, 5, 4, 1]


def normal(*sizes, seed=0, dtype=torch.float64):
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def op_of(mode):
    return "lstm" if mode == "lstm_projected" else mode


def module(mode, inputs, hidden, dtype=torch.float64, **options):
    torch.manual_seed(0)
    if mode == "gru":
        made = nn.GRU(inputs, hidden, **options, dtype=torch.float64)
    elif op_of(mode) == "lstm":
        projected = {"proj_size": hidden // 2} if mode == "lstm_projected" else {}
        made = nn.LSTM(inputs, hidden, **options, **projected, dtype=torch.float64)
    else:
        made = nn.RNN(inputs, hidden, nonlinearity=mode[4:], **options, dtype=torch.float64)
    return made.to(dtype)


def decide(layers):
    """Which sums of an RNN with relu are above 0, far enough for no rounding to do so."""
    with torch.no_grad():
        layers.weight_hh_l0.div_(4)
        layers.bias_ih_l0.sign_().mul_(30)


def states(mode, *sizes, dtype=torch.float64):
    """As torch.nn takes them: of an LSTM two."""
    if op_of(mode) != "lstm":
        return normal(*sizes, seed=1, dtype=dtype)
    projected = sizes[-1] // 2 if mode == "lstm_projected" else sizes[-1]
    return normal(*sizes[:-1], projected, seed=1, dtype=dtype), normal(*sizes, seed=2, dtype=dtype)


def flat(*of):
    """The tensors among tensors, tuples and nothing."""
    return [t for part in of for t in (part if isinstance(part, tuple) else () if part is None else (part,))]


def like(tensors, of):
    """Those tensors in of's place."""
    return tuple(tensors) if isinstance(of, tuple) else tensors[0] if tensors else None


def to(of, dtype):
    return like([t.to(dtype) for t in flat(of)], of)


def results(layers, x, hx=None, swapped=False):
    """Output and last states, and the gradients of all that has one."""
    leaves = [t.detach().requires_grad_() for t in flat(x.data if isinstance(x, PackedSequence) else x, hx)]
    given = PackedSequence(leaves[0], *x[1:]) if isinstance(x, PackedSequence) else leaves[0]
    torch.manual_seed(3)
    with rusttorch.use() if swapped else contextlib.nullcontext():
        output, hn = layers(given, like(leaves[1:], hx))
        ys = flat(output.data if isinstance(output, PackedSequence) else output, hn)
        ups = [normal(*t.shape, seed=7, dtype=t.dtype) for t in ys]
        grads = torch.autograd.grad(ys, [*leaves, *layers.parameters()], ups)
    return [*(y.detach() for y in ys), *grads]


def as_right(ours, stock, exact, eps=None):
    """At most twice as wrong as stock anywhere in the tensor, or by some roundings of what it is summed of."""
    for our, their, right in zip(ours, stock, exact, strict=True):
        assert our.shape == their.shape and our.dtype == their.dtype and our.stride() == their.stride()
        error, theirs = ((t.double() - right).abs().max() for t in (our, their))
        # float64: of a reference that is no more precise.
        roundings = {torch.float64: 32, torch.float32: 4}.get(our.dtype, 1)
        assert error <= 2 * theirs + roundings * (eps or torch.finfo(our.dtype).eps) * right.abs().max()


def ran(forward=1, backward=1):
    stats = rusttorch.stats()
    return [stats[name].ran if name in stats else 0 for name in OWN] == [forward, backward]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_against_float64(mode, dtype):
    for (steps, sequences, inputs, hidden), has_state in itertools.product(SIZES, (False, True)):
        if mode == "lstm_projected" and hidden == 1:
            continue
        layers = module(mode, inputs, hidden, dtype)
        if mode == "rnn_relu":
            decide(layers)
        x = normal(steps, sequences, inputs, dtype=dtype)
        hx = states(mode, 1, sequences, hidden, dtype=dtype) if has_state else None
        rusttorch.reset_stats()
        with torch.backends.mkldnn.flags(enabled=False):  # whose LSTMs stay where its products do
            ours = results(layers, x, hx, swapped=True)
        assert ran()
        stock = results(layers, x, hx)
        exact = results(layers.double(), x.double(), to(hx, torch.float64))
        as_right(ours, stock, exact)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_options(mode, options):
    """The same numbers are dropped, too."""
    layers = module(mode, 6, 9, **options)
    count = options.get("num_layers", 1) * (1 + options.get("bidirectional", False))
    x, hx = normal(5, 5, 6), states(mode, count, 5, 9)
    for training in (True, False):
        layers.train(training)
        rusttorch.reset_stats()
        ours = results(layers, x, hx, swapped=True)
        assert ran(count, count)
        for our, their in zip(ours, results(layers, x, hx), strict=True):
            torch.testing.assert_close(our, their)
            assert our.stride() == their.stride()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_packed(mode, options):
    options = {key: value for key, value in options.items() if key != "batch_first"}
    layers = module(mode, 6, 9, **options)
    count = options.get("num_layers", 1) * (1 + options.get("bidirectional", False))
    x, hx = pack_padded_sequence(normal(7, 5, 6), LENGTHS), states(mode, count, 5, 9)
    for given in (hx, None):
        rusttorch.reset_stats()
        ours = results(layers, x, given, swapped=True)
        assert ran(count, count)
        for our, their in zip(ours, results(layers, x, given), strict=True):
            torch.testing.assert_close(our, their)
    narrow = layers.float(), PackedSequence(x.data.float(), *x[1:]), to(hx, torch.float32)
    ours, stock = results(*narrow, swapped=True), results(*narrow)
    as_right(ours, stock, results(layers.double(), x, hx))


@pytest.mark.parametrize("bias", (True, False))
@pytest.mark.parametrize("mode", CELLS)
def test_cell(mode, bias):
    torch.manual_seed(0)
    options = {"nonlinearity": mode[4:]} if mode.startswith("rnn") else {}
    cell = {"gru": nn.GRUCell, "lstm": nn.LSTMCell}.get(mode, nn.RNNCell)(7, 20, bias, **options, dtype=torch.float64)

    def of(cell, x, hx, swapped=False):
        leaves = [*flat(x, hx), *cell.parameters()]
        with rusttorch.use() if swapped else contextlib.nullcontext():
            ys = flat(cell(x, hx))
            ups = [normal(*y.shape, seed=5, dtype=y.dtype) for y in ys]
            grads = torch.autograd.grad(ys, leaves, ups, create_graph=True)
            again = torch.autograd.grad(sum(g.square().sum() for g in grads), leaves, materialize_grads=True)
        return [*ys, *grads, *again]

    for shape in ((30,), ()):
        x, hx = normal(*shape, 7).requires_grad_(), states(mode, *shape, 20)
        for t in flat(hx):
            t.requires_grad_()
        torch.testing.assert_close(of(cell, x, hx, True), of(cell, x, hx))
        ys = flat(cell(x, hx))
        rusttorch.reset_stats()
        with rusttorch.use():
            sum(y.sum() for y in flat(cell(x, hx))).backward()
            with torch.no_grad():
                torch.testing.assert_close(flat(cell(x, hx)), ys)
        assert ran(2, 1)
        grad = x.grad
        torch.testing.assert_close(grad, torch.autograd.grad(sum(y.sum() for y in ys), x)[0])
    x, hx, params = x.detach(), [t.detach() for t in flat(hx)], [p.detach() for p in cell.parameters()]
    rows = [t[None] for t in hx]
    some = [([t[:, 1:] for t in rows[:1]] + rows[1:]), [*rows[:-1], rows[-1][:, 1:]], [t.expand(2, -1) for t in rows]]
    bad = [(x, hx), (x[None], hx), *((x[None], t) for t in some), (x[None, 1:], rows), (x[None].float(), rows)]
    if mode == "lstm":
        bad += [(x[None], rows[:1]), (x[None], []), (x[None], rows + rows)]
    for x, hx in bad:
        given = (x, hx if mode == "lstm" else hx[0], *params)
        same_error(
            lambda given=given: getattr(OPS, f"{mode}_cell")(*given),
            lambda given=given: getattr(ATEN, f"{mode}_cell")(*given),
        )


def test_one_sequence():
    """[T, I], which torch.nn makes [T, 1, I]."""
    layers, x = module("gru", 4, 6), normal(5, 4)
    rusttorch.reset_stats()
    ours = results(layers, x, swapped=True)
    assert ran()
    torch.testing.assert_close(ours, results(layers, x))


LAYOUTS = {
    "transposed": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
    "misaligned": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view_as(x),
    "expanded": lambda x: x[:1].expand_as(x),
    "sliced": lambda x: torch.cat([x, x], -1)[..., : x.shape[-1]],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mode", MODES)
def test_layouts(mode, layout):
    """Of all tensors that there are."""
    change = LAYOUTS[layout]
    layers = module(mode, 6, 9)
    x, hx = normal(5, 3, 6), states(mode, 1, 3, 9)
    tensors = [x, *flat(hx), *(p.detach() for p in layers.parameters())]
    first = len(flat(hx)) + 1  # of the weights
    outputs = []
    for namespace in (OPS, ATEN):
        leaves = [change(t).detach().requires_grad_() for t in tensors]
        rusttorch.reset_stats()
        y = call(namespace, mode, leaves[0], like(leaves[1:first], hx), leaves[first:])
        ups = [change(normal(*t.shape, seed=5)) for t in y]
        outputs.append([*torch.autograd.grad(y, leaves, ups), *y])
        assert ran(namespace is OPS, namespace is OPS)
    for k, (ours, stock) in enumerate(zip(*outputs, strict=True)):
        torch.testing.assert_close(ours, stock)
        assert k not in (first, first + 1) or ours.stride() == stock.stride()  # of the weights' gradients


@pytest.mark.parametrize("mode", MODES)
def test_special_values(mode):
    layers = module(mode, 4, 20, torch.float32)
    for value in (torch.nan, torch.inf, -torch.inf, 1e30, -0.0, 1e-40):
        x = normal(3, 2, 4, dtype=torch.float32)
        x[1, 0, 2] = value
        ours, stock = results(layers, x, swapped=True), results(layers, x)
        torch.testing.assert_close(ours, stock, equal_nan=True, rtol=1e-4, atol=1e-5)
        with rusttorch.use():  # as it is where a second derivative may follow
            again = torch.autograd.grad(layers(x)[0].sum(), layers.parameters(), create_graph=True)
        stock = torch.autograd.grad(layers(x)[0].sum(), layers.parameters())
        torch.testing.assert_close(again, stock, equal_nan=True, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_some_gradients(mode):
    """Of the output, the last states or the last cells alone, and by some tensors alone."""
    layers, x = module(mode, 4, 6, bidirectional=True), normal(5, 3, 4).requires_grad_()
    w = next(layers.parameters())
    for output, leaves in itertools.product(range(3 if op_of(mode) == "lstm" else 2), ([x], [w], [x, w])):
        grads = []
        for swapped in (True, False):
            rusttorch.reset_stats()
            with rusttorch.use() if swapped else contextlib.nullcontext():
                grads.append(torch.autograd.grad(flat(*layers(x))[output].sum(), leaves))
            # By the weights of one direction there is none through the other.
            assert ran(2 * swapped, (2 if leaves[0] is x else 1) * swapped)
        torch.testing.assert_close(*grads)
    for p in layers.parameters():
        p.requires_grad_(p is w)
    with rusttorch.use():
        layers(normal(5, 3, 4))[0].sum().backward()
    assert w.grad is not None and all(p.grad is None for p in layers.parameters() if p is not w)


@pytest.mark.parametrize("mode", MODES)
def test_no_gradient(mode):
    layers, x = module(mode, 4, 6), normal(5, 3, 4)
    expected = layers(x)
    for context in (torch.no_grad, torch.inference_mode):
        rusttorch.reset_stats()
        with context(), rusttorch.use():
            found = layers(x)
        assert ran(1, 0)
        torch.testing.assert_close(found, expected)
    kept = forward(mode, (x, *flat(states(mode, 3, 6)), *layers.parameters()), differentiate=False)[3]
    assert kept.numel() == 0


def leaves_of(mode, sequences=2, packed=False):
    layers = module(mode, 3, 2)
    x = pack_padded_sequence(normal(3, sequences, 3), [3, 1]).data if packed else normal(3, sequences, 3)
    tensors = (x, *flat(states(mode, sequences, 2)), *layers.parameters())
    return [t.detach().clone().requires_grad_() for t in tensors]


def split(mode, leaves):
    """(input, hx, cx, weights and biases, weight_hr)"""
    x, hx, *rest = leaves
    cx = rest.pop(0) if op_of(mode) == "lstm" else None
    hr = rest.pop() if mode == "lstm_projected" else None
    return x, hx, cx, rest, hr


def forward(mode, leaves, sizes=None, reverse=False, differentiate=True):
    x, hx, cx, weights, hr = split(mode, leaves)
    return OPS.rnn_layer_forward(x, hx, cx, *weights, hr, sizes, op_of(mode), reverse, differentiate)


@pytest.mark.parametrize("reverse", (False, True))
@pytest.mark.parametrize("packed", (False, True))
@pytest.mark.parametrize("mode", MODES)
def test_derivatives(mode, packed, reverse):
    sizes = torch.tensor([2, 1, 1]) if packed else None

    def f(*leaves, differentiate=True):
        results = forward(mode, leaves, sizes, reverse, differentiate)
        return results[: 3 if op_of(mode) == "lstm" else 2]

    leaves = leaves_of(mode, packed=packed)
    assert torch.autograd.gradcheck(f, leaves)
    assert torch.autograd.gradgradcheck(f, leaves)
    assert torch.autograd.gradcheck(lambda *leaves: f(*leaves, differentiate=False), leaves)


@pytest.mark.parametrize("mode", MODES)
def test_second_derivative_under_use(mode):
    """As stock's, where the state before depends on the input."""
    layers = module(mode, 4, 4, num_layers=2, bidirectional=True)
    found = []
    for swapped in (True, False):
        x = normal(5, 3, 4).requires_grad_()
        with rusttorch.use() if swapped else contextlib.nullcontext():
            hx = states(mode, 4, 3, 4)
            y, hn = layers(x, like([x[:4, :, : t.shape[-1]] for t in flat(hx)], hx))
            total = (y**2).sum() + sum(t.sum() for t in flat(hn))
            grads = torch.autograd.grad(total, [x, *layers.parameters()], create_graph=True)
            found.append(torch.autograd.grad(sum((g**2).sum() for g in grads), [x, *layers.parameters()]))
    torch.testing.assert_close(*found)


def test_backward_twice():
    layers, x = module("gru", 4, 6), normal(5, 3, 4)
    with rusttorch.use():
        y = layers(x)[0].sum()
        first = torch.autograd.grad(y, layers.parameters(), retain_graph=True)
        assert all(map(torch.equal, first, torch.autograd.grad(y, layers.parameters())))


@pytest.mark.parametrize("mode", MODES)
def test_what_is_changed_before_the_backward(mode):
    """The results and the biases, as in stock; not what stock keeps, too."""
    found = []
    for swapped in (True, False):
        layers, x = module(mode, 4, 6), normal(5, 3, 4).requires_grad_()
        with rusttorch.use() if swapped else contextlib.nullcontext():
            y, hn = layers(x)
            loss = y.sum() + sum(t.sum() for t in flat(hn))
            with torch.no_grad():
                for t in (y, *flat(hn), layers.bias_ih_l0, layers.bias_hh_l0):
                    t.zero_()
            found.append(torch.autograd.grad(loss, [x, *layers.parameters()], retain_graph=True))
            with torch.no_grad():
                layers.weight_hh_l0.zero_()
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                loss.backward()
    torch.testing.assert_close(*found)


def call(namespace, mode, x, hx, params, layers=1, bidirectional=False, has_biases=True):
    return getattr(namespace, op_of(mode)).input(x, hx, params, has_biases, layers, 0.0, True, bidirectional, False)


@pytest.mark.parametrize("mode", MODES)
def test_bad_input(mode):
    params = [p.detach() for p in module(mode, 4, 6).parameters()]
    x, hx = normal(5, 3, 4), states(mode, 1, 3, 6)

    def each(f):
        return like([f(t) for t in flat(hx)], hx)

    bad = [
        (x, each(lambda t: t[:, :2]), params),
        (x, each(lambda t: t[..., 1:]), params),
        (x[..., :3], hx, params),
        (x, each(lambda t: t[0]), params),
        (x[:0], hx, params),
        (x, hx, params[:3]),
        (x, hx, params[:2]),
        (x, hx, params, 2),
        (x, each(lambda t: t.expand(2, -1, -1)), params),
        (x, hx, params, 1, True),
        (x, hx, params, 0),
        (x, hx, [params[0][:-1], *params[1:]]),
        (x, hx, [*params[:2], params[2][:-1], *params[3:]]),
        (x.float(), hx, params),
        (x, each(torch.Tensor.float), params),
        (x, hx, [p.float() for p in params]),
    ]
    if op_of(mode) == "lstm":
        h, c = hx
        bad += [(x, t, params) for t in ((), (h,), (h, c, c), (h[0], c), (h, c[0]), (h[:, :2], c), (h, c[:, :2]))]
        bad += [(x, t, params) for t in ((h, c[..., 1:]), (h[..., 1:], c), (h.float(), c))]
    for arguments in bad:
        same_error(lambda a=arguments: call(OPS, mode, *a), lambda a=arguments: call(ATEN, mode, *a))
    for sizes in (torch.tensor([2, 2, 2]), torch.tensor([3.0, 3.0]), torch.tensor([2, 4])):
        both = [
            lambda n=n, sizes=sizes: getattr(n, op_of(mode)).data(
                normal(6, 4), sizes, hx, params, True, 1, 0.0, True, False
            )
            for n in (OPS, ATEN)
        ]
        same_error(*both)


@pytest.mark.parametrize("mode", MODES)
def test_bad_input_of_a_layer(mode):
    x = normal(5, 3, 4)
    leaves = [x, *flat(states(mode, 3, 6)), *(p.detach() for p in module(mode, 4, 6).parameters())]
    x, hx, cx, weights, hr = split(mode, leaves)
    kept = forward(mode, leaves)[3]
    y = x.new_zeros(5, 3, hx.shape[1])

    def backward(grad_y=None, grad_hn=None, grad_cn=None, hx=hx, cx=cx, hr=hr, reserve=kept):
        given = (x, hx, cx, *weights[:2], hr, None, reserve, op_of(mode), False)
        return OPS.rnn_layer_backward(grad_y, grad_hn, grad_cn, *given, [True] * 8)

    assert len(backward(y)) == 8
    for bad in (
        lambda: OPS.rnn_layer_forward(x, hx, cx, *weights, hr, None, "elman", False, True),
        lambda: forward(mode, [x[0], *leaves[1:]]),
        lambda: forward(mode, [x, hx.float(), *leaves[2:]]),
        lambda: OPS.rnn_layer_forward(x, hx, cx, *weights[::-1], hr, None, op_of(mode), False, True),
        lambda: OPS.rnn_layer_forward(x, hx, hx if cx is None else None, *weights, hr, None, op_of(mode), False, True),
        lambda: OPS.rnn_layer_forward(x, hx, cx, *weights, y, None, op_of(mode), False, True),
        lambda: backward(y, reserve=x),
        lambda: backward(None, hx[:1]),
        lambda: backward(y.float()),
        lambda: backward(y, None, hx[:1]),
        lambda: backward(y, hr=y),
    ):
        with pytest.raises((RuntimeError, ValueError), match=r"rnn_layer_\w+ward: expected|unknown mode 'elman'"):
            bad()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.func.jvp's own
@pytest.mark.parametrize("mode", ("gru", "lstm"))
def test_what_is_stock_s(mode):
    layers, x = module(mode, 4, 6), normal(5, 3, 4)
    params, hx = [p.detach() for p in layers.parameters()], states(mode, 1, 3, 6)

    if mode == "lstm":
        expected = call(ATEN, mode, x, (hx[0], hx[1].float()), params)

    def handed(f):
        rusttorch.reset_stats()
        with rusttorch.use():
            f()
        stats = rusttorch.stats()
        assert not stats.keys() & set(OWN)
        return {reason for name, of in stats.items() if name.startswith(f"{mode}.") for reason in of.handed}

    assert handed(lambda: torch.func.jvp(lambda x: layers(x)[0], (x,), (x,))) == {"option"}
    assert handed(lambda: torch.func.grad(lambda x: layers(x)[0].sum())(x)) == {"option"}
    none = like([t[:, :0] for t in flat(hx)], hx)
    assert handed(lambda: call(ATEN, mode, x[:, :0], none, params)) == {"size"}
    for sizes in ([3, 3, 2], [3, 3, 3, 0]):
        packed = (x.flatten(0, 1), torch.tensor(sizes), hx, params, True, 1, 0.0, True, False)
        assert handed(lambda packed=packed: getattr(ATEN, mode).data(*packed)) == {"option"}
    if mode == "lstm":  # stock promotes
        mixed = (x, (hx[0], hx[1].float()), params)
        assert handed(lambda: torch.testing.assert_close(call(ATEN, mode, *mixed), expected)) == {"dtype"}
    layers.float()
    found = torch.func.grad(lambda x: layers(x)[0].sum())(x.float())
    with rusttorch.use():
        torch.testing.assert_close(torch.func.grad(lambda x: layers(x)[0].sum())(x.float()), found)


@pytest.mark.parametrize("mode", MODES)
def test_any_number_of_threads(mode):
    threads = torch.get_num_threads()
    layers = module(mode, 100, 130, torch.float32, bidirectional=True)
    x = normal(6, 300, 100, dtype=torch.float32)
    found = []
    try:
        for n in (1, 2, 5):
            torch.set_num_threads(n)
            found.append(results(layers, x, swapped=True))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(map(torch.equal, found[0][:5], other[:5]))
        torch.testing.assert_close(found[0], other)  # sums over all rows are stock's


@pytest.mark.parametrize("mode", MODES)
def test_opcheck(mode):
    sizes = torch.tensor([2, 1, 1])
    for packed in (False, True):
        x, hx, cx, weights, hr = split(mode, leaves_of(mode, packed=packed))
        given = (x, hx, cx, *weights, hr, sizes if packed else None, op_of(mode), not packed, True)
        opcheck(OPS.rnn_layer_forward.default, given)
    leaves = leaves_of(mode)
    x, hx, cx, weights, hr = split(mode, [t.detach() for t in leaves])
    y, hn, cn, reserve = forward(mode, [t.detach() for t in leaves])

    def check(weights, wanted):
        given = (y, hn, None if cx is None else cn, x, hx, cx, *weights, hr, None, reserve, op_of(mode), False, wanted)
        opcheck(OPS.rnn_layer_backward.default, given)

    check(weights[:2], [True] * 8)
    check(weights[:2], [False, True, True, True, False, True, False, False])
    check([w.t().contiguous().t() for w in weights[:2]], [True] * 8)
    stacked = like([t[None] for t in (leaves[1:3] if op_of(mode) == "lstm" else leaves[1:2])], states(mode, 1, 2))
    params = leaves[1 + len(flat(stacked)) :]
    opcheck(getattr(OPS, op_of(mode)).input, (leaves[0], stacked, params, True, 1, 0.0, True, False, False))


@pytest.mark.parametrize("mode", MODES)
def test_compile_and_vmap(mode):
    layers, x = module(mode, 4, 6, num_layers=2, batch_first=True), normal(3, 5, 4).requires_grad_()
    params, hx = list(layers.parameters()), states(mode, 2, 3, 6)

    def f(x):
        return getattr(torch, op_of(mode))(x, hx, params, True, 2, 0.0, True, False, True)[0]

    expected = torch.autograd.grad(f(x).sum(), [x, *params])
    with rusttorch.use():
        compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
        rusttorch.reset_stats()
        torch.testing.assert_close(torch.autograd.grad(compiled(x).sum(), [x, *params]), expected)
        assert ran(2, 2)
    x, *rest = [t.detach() for t in leaves_of(mode)]
    batch = normal(4, *x.shape)
    found = torch.vmap(lambda x: forward(mode, (x, *rest), differentiate=False)[0])(batch)
    each = [forward(mode, (x, *rest), differentiate=False)[0] for x in batch]
    torch.testing.assert_close(found, torch.stack(each))


def onednn_has_the_products(dtype):
    level = torch.backends.cpu.get_cpu_capability()  # which oneDNN does not look at
    if dtype == torch.float32:
        return INTEL or level == "DEFAULT"
    return "avx512_bf16" in CPU_FLAGS and (INTEL or level != "AVX512")


@pytest.mark.parametrize("mode", ("rnn_tanh", "gru"))
def test_small_cells(mode):
    """Of an RNN's few sums stock is as fast."""
    rusttorch._C.take_all(False)
    cell = (nn.RNNCell if mode == "rnn_tanh" else nn.GRUCell)(7, 20)
    for shape in ((30,), ()):
        rusttorch.reset_stats()
        with rusttorch.use():
            cell(normal(*shape, 7, dtype=torch.float32))
        assert ran(int(bool(shape) or mode == "gru"), 0)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_lstms_of_onednn(dtype):
    """Of many rows they are faster, where nothing is differentiated; else ours are."""
    rusttorch._C.take_all(False)

    def handed(layers, rows, packed=False, lengths=None):
        x = normal(5, rows, 6, dtype=dtype)
        x = pack_padded_sequence(x, [5] * rows if lengths is None else lengths) if packed else x
        with rusttorch.use():
            rusttorch.reset_stats()
            layers(x)
            op = "lstm.data" if packed else "lstm.input"
            return rusttorch.stats()[op].handed.get("size", 0)

    layers = module("lstm", 6, 8, dtype)
    many, few = 64, 8
    if dtype == torch.bfloat16 and "avx512bw" not in CPU_FLAGS:
        pytest.skip("oneDNN has none of bfloat16")
    squares = AMX and dtype == torch.bfloat16
    always = onednn_has_the_products(dtype) and not squares
    assert handed(layers, many) == handed(layers, few) == always  # their gradients are wanted
    with torch.no_grad():
        assert handed(layers, many) and handed(layers, many, packed=True)
        assert handed(layers, few) == (always or squares)
        assert not (squares and handed(module("lstm", 6, 512, dtype), many))
        assert not handed(layers, many, packed=True, lengths=[5] * (many - 1) + [4])
        assert not handed(module("lstm_projected", 6, 8, dtype), many)
        with torch.backends.mkldnn.flags(enabled=False):
            assert not handed(layers, many)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_autocast(mode, dtype):
    """In the lower precision where all of stock's is: an RNN, oneDNN's LSTM, and what has states of that dtype."""
    options = {"num_layers": 2, "bidirectional": True, "batch_first": True}
    layers, x = module(mode, 4, 6, torch.float32, **options), normal(3, 5, 4, dtype=torch.float32)
    packed = pack_padded_sequence(normal(5, 3, 4, dtype=torch.float32), [5, 3, 3])
    narrow, wide = (states(mode, 4, 3, 6, dtype=t) for t in (dtype, torch.float32))
    for given, hx in ((x, None), (x, wide), (x, narrow), (x.to(dtype), narrow), (packed, None), (packed, narrow)):
        by_onednn = mode == "lstm" and dtype == torch.bfloat16 and given is not packed and "avx512bw" in CPU_FLAGS
        exact = results(module(mode, 4, 6, **options), given.to(torch.float64), to(hx, torch.float64))
        with torch.autocast("cpu", dtype), torch.backends.mkldnn.flags(enabled=by_onednn):
            stock = results(layers, given, hx)
            rusttorch.reset_stats()
            ours = results(layers, given, hx, swapped=True)
        assert ran(*(4, 4) if hx is narrow or mode.startswith("rnn") or by_onednn else (0, 0))
        as_right(ours, stock, exact, torch.finfo(dtype).eps)
    with torch.autocast("cpu", dtype), torch.no_grad():
        stock = layers(x)[0]
        rusttorch.reset_stats()
        with rusttorch.use():
            ours = layers(x)[0]
    by_onednn = mode == "lstm" and ("avx512bw" if dtype == torch.bfloat16 else "avx512_fp16") in CPU_FLAGS
    assert ran(4 if mode.startswith("rnn") or by_onednn else 0, 0) and ours.dtype == stock.dtype
    torch.testing.assert_close(ours, stock, rtol=0.05, atol=0.02)
    with torch.autocast("cpu", dtype):
        given, double = normal(3, 5, 4), module(mode, 4, 6, **options)
        for our, their in zip(results(double, given, swapped=True), results(double, given), strict=True):
            torch.testing.assert_close(our, their)  # not cast


def swapped(layers, x):
    with rusttorch.use():
        return layers(x)


@pytest.mark.parametrize("type", (torch.float16, torch.bfloat16), ids=str)
def test_autocast_of_lstms_that_are_not_float32(type):
    """oneDNN's LSTM, and with it the dtype of all, is picked by what is not yet cast."""
    layers, x = module("lstm", 4, 6, type), normal(5, 3, 4, dtype=type)
    for grad in (True, False):
        with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(grad):
            stock, ours = layers(x)[0], swapped(layers, x)[0]
        assert ours.dtype == stock.dtype
        torch.testing.assert_close(ours, stock, rtol=0.05, atol=0.02)


def test_autocast_of_two_dtypes():
    """Of which float64 stays: as stock has it."""
    layers, x = module("rnn_tanh", 4, 6, torch.float32), normal(5, 3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        same_error(lambda: swapped(layers, x), lambda: layers(x))


@pytest.mark.parametrize("grad", (True, False))
def test_lstms_of_onednn_under_autocast(grad):
    """Who runs them is decided by the dtype that they are cast to."""
    rusttorch._C.take_all(False)
    runs = []
    for dtype, cast in ((torch.bfloat16, False), (torch.float32, True)):
        for rows in (64, 8):
            layers, x = module("lstm", 6, 8, dtype), normal(5, rows, 6, dtype=dtype)
            with torch.autocast("cpu", torch.bfloat16, enabled=cast), torch.set_grad_enabled(grad):
                rusttorch.reset_stats()
                swapped(layers, x)
                runs.append((cast, rows, rusttorch.stats()["lstm.input"].ran))
    assert [ran for cast, _, ran in runs if cast] == [ran for cast, _, ran in runs if not cast]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_rows(mode, dtype):
    """Of so many that the weight is packed for all steps, of odd sizes, and of more units than a block has."""
    for steps, sequences, inputs, hidden in ((5, 33, 40, 70), (4, 21, 3, 530)):
        layers = module(mode, inputs, hidden, dtype)
        if mode == "rnn_relu":
            decide(layers)
        lengths = [steps] * (sequences - 6) + [3, 3, 2, 2, 1, 1]
        x = pack_padded_sequence(normal(steps, sequences, inputs, dtype=dtype), lengths)
        ours, stock = results(layers, x, swapped=True), results(layers, x)
        exact = results(layers.double(), PackedSequence(x.data.double(), *x[1:]))
        as_right(ours, stock, exact)


@pytest.mark.parametrize("mode", MODES)
def test_unsorted_sequences(mode):
    layers, x, hx = module(mode, 4, 6), normal(7, 5, 4), states(mode, 1, 5, 6)
    x = pack_padded_sequence(x, [2, 7, 1, 5, 5], enforce_sorted=False)
    rusttorch.reset_stats()
    ours = results(layers, x, hx, swapped=True)
    assert ran()
    torch.testing.assert_close(ours, results(layers, x, hx))
