"""fuse_: what is fused and what is left, and that nothing but rounding changes."""

import copy
import inspect
import io

import pytest
import rusttorch
import torch
import torch.nn.functional as F
from rusttorch.fusion import Fusion
from torch import nn


class Block(nn.Module):
    """A ResNet's: one relu, called twice, of which the second call reads a sum."""

    def __init__(self, width=6):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width, momentum=None)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + x)


class Model(nn.Module):
    """With a branch in its forward, which torch.fx does not trace; its blocks it does."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding_mode="reflect", padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(6 * 64, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU6())

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        if x.sum() > 1e9:
            return x
        return self.head(x)


def model(seed=0):
    torch.manual_seed(seed)
    return Model()


def data(n=5):
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def train(m, steps=3):
    """Losses, gradients of the last step, and the state after them."""
    optimizer, losses = torch.optim.SGD(m.parameters(), lr=0.05), []
    m.train()
    for _ in range(steps):
        optimizer.zero_grad()
        loss = m(data()).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return [*losses, *(p.grad for p in m.parameters()), *m.state_dict().values()]


def close(found, wanted):
    for f, w in zip(found, wanted, strict=True):
        torch.testing.assert_close(f, w, rtol=1e-3, atol=1e-4)


def test_what_is_fused():
    pairs = (("stem.1", "stem.2"), *((f"blocks.{i}.bn1", f"blocks.{i}.relu") for i in range(2)), ("head.2", "head.3"))
    assert rusttorch.fuse_(model()) == [Fusion(layers, True, "one pass") for layers in pairs]


def test_training_and_eval_are_the_same():
    m, fused = model(), model()
    rusttorch.fuse_(fused)
    rusttorch.reset_stats()
    close(train(fused), train(m))
    stats = rusttorch.stats()
    assert stats["batch_norm_relu_forward"].ran == stats["batch_norm_relu_backward"].ran == 3 * 4
    assert "native_batch_norm" not in stats
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            close([fused.eval()(data())], [m.eval()(data())])


def without_last(m):
    return nn.Sequential(*list(m.stem.children())[:-1])


PARTS = {
    "a slice": lambda m: m.stem[:2](data()),
    "its children in another module": lambda m: without_last(m)(data()),
    "the layer by itself": lambda m: m.stem[1](m.stem[0](data())),
    "a block": lambda m: m.blocks[0](m.stem(data())),
}
CHANGES = {
    "another relu": lambda m: m.stem.__setitem__(2, nn.GELU()),
    "another norm": lambda m: m.stem.__setitem__(1, nn.Identity()),
    "a hook on the norm": lambda m: m.stem[1].register_forward_hook(lambda *_: _[-1] * 2),
    "a hook on the relu": lambda m: m.stem[2].register_forward_pre_hook(lambda _, x: x[0] - 1),
    "weights by .data": lambda m: m.stem[0].weight.data.mul_(3),
    "statistics by .data": lambda m: m.stem[1].running_mean.data.fill_(2),
    "SyncBatchNorm": lambda m: setattr(m, "stem", nn.SyncBatchNorm.convert_sync_batchnorm(m.stem).eval()),
}


@pytest.mark.parametrize("name", PARTS)
def test_parts_called_by_themselves(name):
    m, fused = model(), model()
    rusttorch.fuse_(fused)
    close([PARTS[name](fused)], [PARTS[name](m)])


@pytest.mark.parametrize("name", CHANGES)
def test_changes_after(name):
    m, fused = model().eval(), model().eval()
    rusttorch.fuse_(fused)
    for each in (m, fused):
        CHANGES[name](each)
    close([fused(data())], [m(data())])


def test_other_parameters_for_a_call():
    m, fused = model().eval(), model().eval()
    rusttorch.fuse_(fused)
    for scale in (1.0, 2.0, 3.0):
        weights = {"stem.0.weight": m.stem[0].weight * scale}
        close(*([torch.func.functional_call(each, weights, data())] for each in (fused, m)))


def test_a_relu_that_is_left_out_is_an_error():
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.relu, self.flag = nn.BatchNorm2d(3), nn.ReLU(), True

        def forward(self, x):
            y = self.norm(x)
            return self.relu(y) if self.flag else y

    m = Branch()
    rusttorch.fuse_(m)
    torch.testing.assert_close(m(data()), F.relu(F.batch_norm(data(), None, None, training=True)))
    m.flag = False
    with pytest.raises(RuntimeError, match="a relu was not called"):
        m(data())
    rusttorch.unfuse_(m)
    torch.testing.assert_close(m(data()), F.batch_norm(data(), None, None, training=True))


def test_an_exception_between_layers_leaves_nothing_behind():
    m = model()
    rusttorch.fuse_(m)
    with pytest.raises(RuntimeError):
        m.stem(torch.randn(2, 4, 8, 8))
    close([m.stem(data())], [model().stem(data())])
    close([m.stem[:2](data())], [model().stem[:2](data())])


def test_it_is_taken_back():
    m = model()
    before = {name: dict(vars(module)) for name, module in m.named_modules()}
    state = list(m.state_dict())
    rusttorch.fuse_(m)
    assert list(m.state_dict()) == state
    assert len(rusttorch.fuse_(m)) == 4  # again, from the beginning
    rusttorch.unfuse_(m)
    assert {name: dict(vars(module)) for name, module in m.named_modules()} == before


def reload(m):
    file = io.BytesIO()
    torch.save(m, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", (copy.deepcopy, reload))
def test_copies_are_fused_too_and_stand_alone(copied):
    m = model()
    rusttorch.fuse_(m)
    other = copied(m)
    with torch.no_grad():
        for p in m.parameters():
            p.zero_()
    close(train(other), train(model()))


@pytest.mark.parametrize("training", (True, False))
def test_compile(training):
    m, fused = (model().stem.train(training) for _ in range(2))
    rusttorch.fuse_(fused)
    torch._dynamo.reset()
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    with torch.set_grad_enabled(training):
        torch.testing.assert_close(compiled(data()), m(data()))


class Calls(nn.Module):
    def __init__(self, forward, **modules):
        super().__init__()
        self.of = forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x):
        return self.of(self, x)


def hooked(norm):
    norm.register_forward_hook(lambda *_: None)
    return norm


NORM, RELU = nn.BatchNorm2d(3), nn.ReLU()
LEFT = {
    "relu is called as a function: as a module it would be fused": Calls(lambda m, x: F.relu(m.norm(x)), norm=NORM),
    "called more than once": Calls(lambda m, x: m.relu(m.norm(m.norm(x))), norm=NORM, relu=RELU),
    "what is between them is read by others too": Calls(
        lambda m, x: (lambda y: m.relu(y) + y)(m.norm(x)), norm=NORM, relu=RELU
    ),
    "with hooks, or a forward of its own": nn.Sequential(hooked(nn.BatchNorm2d(3)), nn.ReLU()),
}


@pytest.mark.parametrize("reason", LEFT)
def test_what_is_left(reason):
    m = copy.deepcopy(LEFT[reason])
    wanted = copy.deepcopy(m)(data())
    assert [(f.fused, f.how) for f in rusttorch.fuse_(m)] == [(False, reason)]
    assert torch.equal(m(data()), wanted)
    assert not any("forward" in vars(module) for module in m.modules())


def pooled(relu, pool, dims=2):
    convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    return nn.Sequential(convolution(3, 4, 3, padding=1), relu, pool, nn.Flatten(), nn.LazyLinear(2))


POOLS = {
    "1d": lambda relu: pooled(relu, nn.MaxPool1d(2), 1),
    "2d": lambda relu: pooled(relu, nn.MaxPool2d(2)),
    "overlapping": lambda relu: pooled(relu, nn.MaxPool2d(3, 2, padding=1, ceil_mode=True)),
    "3d": lambda relu: pooled(relu, nn.MaxPool3d(2), 3),
    "adaptive": lambda relu: pooled(relu, nn.AdaptiveMaxPool2d((3, 5))),
}


@pytest.mark.parametrize("relu", (nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(), nn.ReLU6(inplace=True)), ids=str)
@pytest.mark.parametrize("kind", POOLS)
def test_relu_of_what_is_pooled(kind, relu):
    """The same numbers, also of windows without a positive one, of ties and of NaN (a zero's sign may be another)."""
    torch.manual_seed(0)
    m = POOLS[kind](relu)
    dims = {"1d": 1, "3d": 3}.get(kind, 2)
    x = 9 * torch.randn(5, 3, *[8] * dims)
    x[0], x[1], x[2, 0].view(-1)[3] = -9, 0.0, float("nan")
    m(x)  # which makes the last layer
    fused = copy.deepcopy(m)
    assert rusttorch.fuse_(fused) == [Fusion(("1", "2"), True, "relu of what is pooled")]

    def results(m):
        y = m(x)
        return [y, *torch.autograd.grad(y.square().sum(), [*m.parameters()])]

    seen = []
    with fused[2].register_forward_pre_hook(lambda *_: seen.append(1)):  # with which it is not done
        with_hook = results(fused)
    assert len(seen) == 1
    for found in (with_hook, results(fused)):
        for f, w in zip(found, results(m), strict=True):
            assert torch.allclose(f, w, rtol=0, atol=0, equal_nan=True)
    assert fused[1](x.nan_to_num()).min() == 0  # by itself


def test_relu_of_what_is_pooled_is_of_fewer_numbers():
    m = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    rusttorch.fuse_(m)
    sizes = []

    class Sizes(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if function in (F.relu, torch.relu, torch.relu_):
                sizes.append(args[0].shape[-1])
            return function(*args, **kwargs or {})

    with Sizes():
        m(data())
    assert set(sizes) == {4}


class Chain(nn.Module):
    """Pools that are called after several relus, or once not at all."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.relu1, self.relu2, self.relu3 = nn.BatchNorm2d(4), nn.ReLU(True), nn.ReLU(True), nn.ReLU(True)
        self.pool, self.flag = nn.MaxPool2d(2), True

    def forward(self, x):
        x = self.pool(self.relu1(self.conv1(x)))
        x = self.relu2(self.conv2(x))
        x = self.pool(x) if self.flag else x
        return self.pool(self.relu3(self.norm(x)))


def test_a_pool_of_several_relus():
    torch.manual_seed(0)
    m = Chain()
    fused = copy.deepcopy(m)
    assert rusttorch.fuse_(fused) == [
        Fusion(("norm", "relu3"), True, "one pass"),
        Fusion(("relu1", "pool"), True, "relu of what is pooled"),
        Fusion(("relu2", "pool"), True, "relu of what is pooled"),
    ]
    close(train(fused), train(m))
    f = lambda m: torch.utils.checkpoint.checkpoint(m, data(), use_reentrant=False).square().sum()  # noqa: E731
    close(*(torch.autograd.grad(f(each), [*each.parameters()]) for each in (fused, m)))
    m.flag = fused.flag = False
    with pytest.raises(RuntimeError, match="or a max pool after its relu"):
        fused(data())
    m.flag = fused.flag = True
    close([fused(data())], [m(data())])  # which is not in the way of the next
    m.flag = fused.flag = False
    rusttorch.unfuse_(fused)
    close([fused(data())], [m(data())])


def convolved_and_pooled(forward):
    """A module that calls its layers by forward(module, x)."""
    return Calls(forward, conv=nn.Conv2d(3, 4, 3), relu=nn.ReLU(), pool=nn.MaxPool2d(2))


def test_a_pool_in_a_checkpoint():
    torch.manual_seed(0)
    layers = lambda m: lambda x: m.pool(m.relu(m.conv(x)))  # noqa: E731
    m = convolved_and_pooled(lambda m, x: torch.utils.checkpoint.checkpoint(layers(m), x, use_reentrant=False))
    fused = copy.deepcopy(m)
    rusttorch.fuse_(fused)
    close(train(fused), train(m))


class Same(nn.Conv2d):
    """Whose output is its input."""

    def forward(self, x):
        return x


def test_a_relu_without_gradients():
    """Found by a reader: it had one."""
    m = convolved_and_pooled(lambda m, x: m.pool(torch.no_grad()(m.relu)(m.conv(x))))
    assert rusttorch.fuse_(m)[0].fused
    assert not m(data()).requires_grad


def limited(maximum):
    relu = nn.ReLU6()
    relu.max_val = maximum
    return relu


def test_another_maximum():
    """Found by a reader: it was 6."""
    m = nn.Sequential(nn.Conv2d(3, 4, 3), limited(0.5), nn.MaxPool2d(2))
    wanted = m(9 * data())
    assert rusttorch.fuse_(m)[0].fused
    assert torch.equal(m(9 * data()), wanted) and wanted.max() == 0.5
    m[1].max_val = 0.25
    assert m(9 * data()).max() == 0.25


POOL_CHANGES = {
    "a hook on the convolution": lambda m: m[0].register_forward_hook(lambda m, _, y: setattr(m, "kept", y)),
    "another layer before": lambda m: m.__setitem__(0, nn.Identity()),
    "places": lambda m: setattr(m[2], "return_indices", True),
}


@pytest.mark.parametrize("name", POOL_CHANGES)
def test_changes_after_of_a_pool(name):
    """Found by a reader: what was kept, or given, was not what relu had made of it."""
    torch.manual_seed(0)
    m = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2))
    fused = copy.deepcopy(m)
    assert rusttorch.fuse_(fused)[0].fused
    inputs = [data(), data()]
    for each in (m, fused):
        POOL_CHANGES[name](each)
    results = [each(x) for each, x in zip((m, fused), inputs, strict=True)]
    torch.testing.assert_close(*results)
    torch.testing.assert_close(*inputs)
    if name.startswith("a hook"):
        assert torch.equal(fused[0].kept, m[0].kept)


CONV = nn.Conv2d(3, 4, 3)
LEFT_POOLS = {
    "called more than once": Calls(
        lambda m, x: m.pool(m.relu(m.relu(m.conv(x)))), conv=CONV, relu=nn.ReLU(), pool=nn.MaxPool2d(2)
    ),
    "what is between them is read by others too": Calls(
        lambda m, x: (lambda y: m.pool(y).sum() + y)(m.relu(m.conv(x))), conv=CONV, relu=nn.ReLU(), pool=nn.MaxPool2d(2)
    ),
    "what is changed in place is read by others too": Calls(
        lambda m, x: (lambda y: m.pool(m.relu(y)).sum() + y)(m.conv(x)),
        **{"conv": CONV, "relu": nn.ReLU(inplace=True), "pool": nn.MaxPool2d(2)},
    ),
    "places": nn.Sequential(CONV, nn.ReLU(), nn.MaxPool2d(2, return_indices=True)),
    "a hook": nn.Sequential(CONV, nn.ReLU(), hooked(nn.MaxPool2d(2))),
    "an input in place": nn.Sequential(nn.ReLU(inplace=True), nn.MaxPool2d(2)),
    "an input": Calls(lambda m, x: m.pool(m.relu(x)) - m.pool(x), relu=nn.ReLU(), pool=nn.MaxPool2d(2)),
    "two relus": Calls(
        lambda m, x: (lambda y: m.pool1(m.relu1(y)) - m.pool2(m.relu2(y)))(m.conv(x)),
        **{"conv": CONV, "relu1": nn.ReLU(), "pool1": nn.MaxPool2d(2), "relu2": nn.ReLU6(), "pool2": nn.MaxPool2d(2)},
    ),
    "another's input in place": nn.Sequential(nn.Identity(), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
    "a convolution that is none": nn.Sequential(Same(3, 3, 1), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
    "another minimum": nn.Sequential(CONV, nn.Hardtanh(), nn.MaxPool2d(2)),
    "windows of padding": nn.Sequential(CONV, nn.ReLU(), nn.MaxPool2d(2, 1, padding=1, dilation=2)),
    "a hook that keeps what is changed": nn.Sequential(
        hooked(nn.Conv2d(3, 4, 3)), nn.ReLU(inplace=True), nn.MaxPool2d(2)
    ),
}


@pytest.mark.parametrize("name", LEFT_POOLS)
def test_relus_that_are_left_before_their_pools(name):
    m = copy.deepcopy(LEFT_POOLS[name])
    x, y = data(), data()
    wanted = copy.deepcopy(m)(x)
    assert not any(fusion.fused for fusion in rusttorch.fuse_(m))
    torch.testing.assert_close(m(y), wanted)
    assert torch.equal(x, y)  # changed or not


@pytest.mark.parametrize(
    "m",
    (
        nn.Sequential(nn.SyncBatchNorm(3), nn.ReLU()),
        nn.Sequential(nn.BatchNorm2d(3), nn.GELU()),
        nn.Sequential(nn.Conv2d(3, 3, 2), nn.BatchNorm2d(3)),
        nn.ReLU(),
        Calls(lambda m, x: m.relu(m.norm(x)) if x.sum() > 0 else x, norm=NORM, relu=RELU),
    ),
    ids=str,
)
def test_what_is_not_seen(m):
    assert rusttorch.fuse_(copy.deepcopy(m)) == []


@pytest.mark.parametrize("training", (True, False))
@pytest.mark.parametrize(
    "options", ({}, {"affine": False}, {"track_running_stats": False}, {"momentum": None}, {"eps": 0.1}), ids=str
)
def test_modules(options, training):
    kinds = (("1d", (4, 3)), ("1d", (4, 3, 5)), ("2d", (4, 3, 5, 2)), ("3d", (4, 3, 2, 2, 3)))
    for kind, shape in kinds:
        ours = getattr(rusttorch.nn, f"BatchNormReLU{kind}")(3, **options).train(training)
        stock = getattr(nn, f"BatchNorm{kind}")(3, **options).train(training)
        ours.load_state_dict(stock.state_dict())
        x = torch.randn(shape)
        for _ in range(2):
            torch.testing.assert_close(ours(x), F.relu(stock(x)))
        close(ours.state_dict().values(), stock.state_dict().values())
        with pytest.raises(ValueError, match=r"expected .*D.* input"):
            ours(torch.randn(3))


class Untraced(nn.Module):
    """Looks at a size, which torch.fx has no number for."""

    def __init__(self, relu, shows=False):
        super().__init__()
        self.conv, self.norm, self.relu, self.shows = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), relu, shows

    def forward(self, x):
        x = F.pad(x, [int(x.shape[-1]) % 2] * 4)
        y = self.norm(self.conv(x))
        z = self.relu(y)
        return (y, z) if self.shows else z


@pytest.mark.parametrize("relu", (nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(), nn.ReLU6(inplace=True)), ids=str)
def test_what_cannot_be_traced_is_watched(relu):
    torch.manual_seed(0)
    m = Untraced(relu)
    fused = copy.deepcopy(m)
    before = copy.deepcopy(fused.state_dict())
    assert rusttorch.fuse_(fused) == []
    assert rusttorch.fuse_(fused, data()) == [Fusion(("norm", "relu"), True, "one pass")]
    close(fused.state_dict().values(), before.values())
    assert fused.training and not fused.norm._forward_hooks
    rusttorch.reset_stats()
    close(train(fused), train(m))
    assert rusttorch.stats()["batch_norm_relu_forward"].ran == 3


def test_what_is_seen_elsewhere_is_not_fused():
    shown = Untraced(nn.ReLU(), shows=True)
    reason = "what is between them is read by others too"
    assert rusttorch.fuse_(shown, data()) == [Fusion(("norm", "relu"), False, reason)]
    twice = nn.Sequential(Untraced(nn.ReLU()), nn.Conv2d(4, 3, 1))
    twice.append(twice[0])
    assert not any(fusion.fused for fusion in rusttorch.fuse_(twice, data()))


def test_an_error_while_it_is_watched_leaves_nothing():
    m = Untraced(nn.ReLU())
    with pytest.raises(RuntimeError):
        rusttorch.fuse_(m, torch.randn(2, 5, 8, 8))
    assert m.training and m.norm.training and not any(c._forward_hooks for c in m.modules())


class Checkpointed(nn.Module):
    """Whose layers are called again in backward, when its forward is over."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()

    def forward(self, x):
        return torch.utils.checkpoint.checkpoint(lambda x: self.relu(self.norm(self.conv(x))), x, use_reentrant=False)


def test_a_checkpoint_in_a_forward():
    """Found by a reader: gradients were those of something else."""
    torch.manual_seed(0)
    m = Checkpointed()
    fused = copy.deepcopy(m)
    rusttorch.fuse_(fused)
    whole, of_whole = model(), model()
    rusttorch.fuse_(of_whole)
    for a, b in ((fused, m), (of_whole, whole)):
        found = [
            torch.autograd.grad(
                torch.utils.checkpoint.checkpoint(f, data(), use_reentrant=False).square().sum(), [*f.parameters()]
            )
            for f in (a, b)
        ]
        close(*found)


class InTraining(Untraced):
    def forward(self, x):
        y = self.norm(self.conv(x))
        z = self.relu(y)
        return z + y if self.training else z


class Keeping(Untraced):
    def forward(self, x):
        self.kept = y = self.norm(self.conv(x))
        return self.relu(y)


class Counting(Untraced):
    def __init__(self, relu):
        super().__init__(relu)
        self.register_buffer("n", torch.zeros(()))

    def forward(self, x):
        self.n += 1
        return self.relu(self.norm(self.conv(x)))


class Through(Untraced):
    """Something that is nothing in eval."""

    def __init__(self, relu):
        super().__init__(relu)
        self.drop = nn.Dropout()

    def forward(self, x):
        x = x[: int(x.shape[0])]
        return self.relu(self.drop(self.norm(self.conv(x))))


class Listed(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()])

    def forward(self, x):
        x = x[: int(x.shape[0])]
        for layer in self.layers:
            x = layer(input=x)
        return x


@pytest.mark.parametrize("make", (InTraining, Keeping, Through, lambda relu: Listed()))
@pytest.mark.parametrize("inputs", (True, False))
@pytest.mark.parametrize("training", (True, False))
def test_what_else_reads_it(training, inputs, make):
    """Found by a reader: results changed, or what was kept."""
    torch.manual_seed(0)
    m = make(nn.ReLU()).train(training)
    fused = copy.deepcopy(m)
    assert not any(fusion.fused for fusion in rusttorch.fuse_(fused, *[data()] * inputs))
    rusttorch.unfuse_(fused)
    assert vars(fused).keys() - {"kept"} == vars(m).keys() - {"kept"}
    close(train(fused), train(m)) if make is not Through else None


def test_fuse_changes_no_state():
    """Found by a reader: the forward is traced, and had run."""
    m = Counting(nn.ReLU())
    assert [fusion.fused for fusion in rusttorch.fuse_(m)] == [True] or m.n == 0
    assert m.n == 0
    m = Untraced(nn.ReLU6())
    m.relu.min_val = -1.0
    assert [fusion.how for fusion in rusttorch.fuse_(m, data())] == ["not from 0 on"]


def test_a_fused_module_tells_its_arguments():
    m = model()
    rusttorch.fuse_(m)
    block = m.blocks[0]
    assert "forward" in vars(block) and list(inspect.signature(block.forward).parameters) == ["x"]
