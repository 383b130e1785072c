"""Tables that are tensors: normalize, create_batches, shuffle_indices, train_val_test_split."""

import pytest
import torch
from rusttorch.data import create_batches, normalize, shuffle_indices, train_val_test_split


def generator():
    return torch.Generator().manual_seed(5)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
@pytest.mark.parametrize("shape", ((1000, 7), (1, 3), (50,), (20, 3, 4)))
def test_normalize(dtype, shape):
    x = torch.randn(shape, dtype=dtype) * 5 + 3
    kept = x.clone()
    result, mean, std = normalize(x)
    wide = x.double()
    deviation = wide.std(0, correction=0)
    torch.testing.assert_close(mean.double(), wide.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(std.double(), deviation, rtol=1e-5, atol=1e-6)
    expected = (wide - wide.mean(0)) / torch.where(deviation == 0, 1, deviation)
    torch.testing.assert_close(result.double(), expected, rtol=1e-4, atol=1e-5)
    assert x.equal(kept) and result.dtype == mean.dtype == std.dtype == dtype
    # The next set, by the first one's numbers.
    following = torch.randn(shape, dtype=dtype)
    result, same_mean, same_std = normalize(following, mean, std)
    assert same_mean.equal(mean) and same_std.equal(std)
    torch.testing.assert_close(result, (following - mean) / torch.where(std == 0, 1, std))


def test_normalize_columns_without_deviation():
    x = torch.full((1001, 3), 0.1)  # whose mean is not 0.1 in float32
    x[:, 1] = torch.randn(1001)
    x[:, 2] = -1e30
    result, mean, std = normalize(x)
    assert std[0] == std[2] == 0 and std[1] > 0
    torch.testing.assert_close(result[:, ::2], torch.zeros(1001, 2), atol=1e-6 * 1e30, rtol=0)
    assert result[:, 0].abs().max() < 1e-6 and result.isfinite().all()
    following, _, _ = normalize(torch.tensor([[0.6, 0.0, -1e30]]), mean, std)
    assert following[0, 0].item() == pytest.approx(0.5)
    x[3, 1] = float("nan")
    result, _, _ = normalize(x)
    assert result[:, 1].isnan().all() and result[:, 0].isfinite().all()


def test_normalize_with_one_number_for_all():
    x = torch.randint(0, 256, (4, 3)).float()
    result, mean, std = normalize(x, 127.5, 64)
    assert result.equal((x - 127.5) / 64) and mean.item() == 127.5 and std.item() == 64
    assert normalize(x[:0], 127.5, 64)[0].shape == (0, 3)


def test_normalize_errors():
    for given in ({"mean": 0.0}, {"std": 1.0}):
        with pytest.raises(ValueError, match="together"):
            normalize(torch.rand(3, 2), **given)
    with pytest.raises(ValueError, match="no rows"):
        normalize(torch.rand(0, 2))


def test_shuffle_indices():
    order = shuffle_indices(100, generator())
    assert order.dtype == torch.int64 and order.sort().values.equal(torch.arange(100))
    assert order.equal(shuffle_indices(100, generator())) and not order.equal(torch.arange(100))
    assert shuffle_indices(0).numel() == 0


@pytest.mark.parametrize("n", (0, 1, 8, 21))
@pytest.mark.parametrize("drop_last", (False, True))
@pytest.mark.parametrize("shuffle", (False, True))
def test_create_batches(n, drop_last, shuffle):
    x, y = torch.rand(n, 3), torch.arange(n)
    batches = list(create_batches(x, y, 8, shuffle=shuffle, drop_last=drop_last, generator=generator()))
    assert [len(b) for _, b in batches] == [8] * (n // 8) + [n % 8] * (n % 8 > 0 and not drop_last)
    if batches:
        chosen = torch.cat([b for _, b in batches])
        assert torch.cat([a for a, _ in batches]).equal(x[chosen])
        order = shuffle_indices(n, generator()) if shuffle else torch.arange(n)
        assert chosen.equal(order[: len(chosen)])
    alone = list(create_batches(x, None, 8, shuffle=shuffle, drop_last=drop_last, generator=generator()))
    assert len(alone) == len(batches) and all(a.equal(b) for a, (b, _) in zip(alone, batches, strict=True))


def test_create_batches_errors_and_views():
    x = torch.rand(10, 2)
    assert next(create_batches(x, x, 4))[0].data_ptr() == x.data_ptr()
    with pytest.raises(ValueError, match="as many rows"):
        create_batches(x, x[:3], 4)
    with pytest.raises(ValueError, match="batch_size"):
        create_batches(x, None, 0)


@pytest.mark.parametrize("n", (0, 1, 10, 101))
@pytest.mark.parametrize("ratios", ((0.7, 0.15), (0, 0), (1, 0), (0.9, 0.1), (0.29, 0.3), (0.57, 0.43)))
@pytest.mark.parametrize("shuffle", (False, True))
def test_split(n, ratios, shuffle):
    x, y = torch.rand(n, 2), torch.arange(n)
    options = {"train_ratio": ratios[0], "val_ratio": ratios[1], "shuffle": shuffle}
    parts = train_val_test_split(x, y, **options, generator=generator())
    assert [len(b) for _, b in parts][:2] == [n * round(100 * r) // 100 for r in ratios]
    chosen = torch.cat([b for _, b in parts])
    assert torch.cat([a for a, _ in parts]).equal(x[chosen])
    assert chosen.equal(shuffle_indices(n, generator()) if shuffle else torch.arange(n))
    assert all(a.equal(b) for a, (b, _) in zip(
        train_val_test_split(x, **options, generator=generator()), parts, strict=True
    ))  # fmt: skip


@pytest.mark.parametrize("shuffle", (False, True))
@pytest.mark.parametrize(
    "labels",
    (
        torch.arange(300) % 3,
        torch.tensor([0] * 500 + [1] * 50 + [2] * 5 + [3]),
        torch.cat([torch.arange(1000), torch.full((1000,), -1)]),  # many with one, and one with many
        torch.randint(0, 10, (997,), generator=torch.Generator().manual_seed(1)).double(),
        torch.arange(0),
    ),
)
def test_stratified_split(labels, shuffle):
    n = len(labels)
    x = torch.arange(n)
    options = {"shuffle": shuffle, "stratify": labels}
    parts = train_val_test_split(x, labels, train_ratio=0.7, val_ratio=0.2, generator=generator(), **options)
    assert [len(a) for a, _ in parts] == [n * 7 // 10, n * 2 // 10, n - n * 7 // 10 - n * 2 // 10]
    assert torch.cat([a for a, _ in parts]).sort().values.equal(x)
    for (a, b), ratio in zip(parts, (0.7, 0.2, 0.1), strict=True):
        assert labels[a].equal(b)
        for label in labels.unique():
            assert abs((b == label).sum() - ratio * (labels == label).sum()) < 2
        assert shuffle or a.equal(a.sort().values)
    if shuffle and n:
        other = train_val_test_split(x, stratify=labels, generator=torch.Generator().manual_seed(6))
        assert not other[0].equal(train_val_test_split(x, stratify=labels, generator=generator())[0])


def test_split_errors():
    x = torch.rand(10, 2)
    for ratios in ((-0.1, 0.1), (0.5, -0.1), (0.8, 0.3)):
        with pytest.raises(ValueError, match="no shares"):
            train_val_test_split(x, train_ratio=ratios[0], val_ratio=ratios[1])
    with pytest.raises(ValueError, match="as many rows"):
        train_val_test_split(x, x[:5])
    with pytest.raises(ValueError, match="as many rows"):
        train_val_test_split(x, stratify=x[:5])
