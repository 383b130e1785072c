"""Tables that are tensors: [rows, columns], and labels beside them."""

import torch


def normalize(x, mean=None, std=None):
    """(x - mean) / std of each column, and mean and std, which the next set is given:

        train, mean, std = normalize(train)
        test, _, _ = normalize(test, mean, std)

    mean, std: of each column, or one for all. None: x's own mean and standard deviation (over all rows, not one less).
    A column without deviation is divided by 1, so that it is 0 and not NaN, here and in the next set. A NaN makes its
    column NaN.

    Raises ValueError if only one of mean and std is given, or neither and x has no rows.
    """
    if (mean is None) != (std is None):
        raise ValueError("normalize: mean and std are given together, or neither is")
    if mean is None:
        if len(x) == 0:
            raise ValueError("normalize: there are no rows to take mean and std of")
        std, mean = torch.std_mean(x, dim=0, correction=0)
        low, high = torch.aminmax(x, dim=0)
        std = std.masked_fill(low == high, 0)  # what is left there is rounding
    mean, std = (torch.as_tensor(given, dtype=x.dtype, device=x.device) for given in (mean, std))
    return (x - mean).div_(std.masked_fill(std == 0, 1)), mean, std


def shuffle_indices(n, generator=None):
    """The numbers from 0 to n - 1 in random order, as an int64 tensor."""
    return torch.randperm(n, generator=generator, device="cpu")


def create_batches(x, y, batch_size, *, shuffle=False, drop_last=False, generator=None):
    """An iterator of batches (x, y), each of batch_size rows of both; of x alone where y is None.

    shuffle: the rows are in random order. Else batches are views.
    drop_last: leaves out what does not fill the last batch.

    Raises ValueError if x and y have not as many rows, or if batch_size is not positive.
    """
    n = _rows(x, y, "create_batches")
    if batch_size < 1:
        raise ValueError(f"create_batches: batch_size must be positive, got {batch_size}")
    order = shuffle_indices(n, generator) if shuffle else None

    def rows(tensor, begin):
        end = begin + batch_size
        return tensor[begin:end] if order is None else tensor.index_select(0, order[begin:end].to(tensor.device))

    begins = range(0, n - n % batch_size if drop_last else n, batch_size)
    return (rows(x, begin) if y is None else (rows(x, begin), rows(y, begin)) for begin in begins)


def train_val_test_split(x, y=None, *, train_ratio=0.7, val_ratio=0.15, shuffle=True, stratify=None, generator=None):
    """Three parts of the rows: (x, y) to train on, to validate with, and to test with; of x alone where y is None.

    train_ratio, val_ratio: the first two parts' shares, rounded down to rows. The third part is the rest.
    shuffle: the rows are in random order.
    stratify: labels, one a row, often y: each part has as much of each label as of all rows, to within a row or two.

    Raises ValueError if there are not as many rows in each, or if the ratios are negative or more than 1 together.
    """
    n = _rows(x, y, "train_val_test_split")
    if min(train_ratio, val_ratio) < 0 or train_ratio + val_ratio > 1 + 1e-9:
        raise ValueError(f"train_val_test_split: no shares of the rows: {train_ratio} and {val_ratio}")
    train, val = (int(n * ratio + 1e-6) for ratio in (train_ratio, val_ratio))  # 0.29 * 100 is 28.999...
    val = min(val, n - train)
    order = shuffle_indices(n, generator) if shuffle else torch.arange(n, device="cpu")
    if stratify is None:
        parts = order.split([train, val, n - train - val])
    else:
        _rows(x, stratify, "train_val_test_split")
        parts = _stratified(stratify.cpu()[order], order, train, val)
    return tuple(x[part] if y is None else (x[part], y[part]) for part in parts)


def _rows(x, y, what):
    if y is not None and len(x) != len(y):
        raise ValueError(f"{what}: expected as many rows in both, got {len(x)} and {len(y)}")
    return len(x)


def _stratified(labels, order, train, val):
    _, classes, counts = labels.unique(return_inverse=True, return_counts=True)
    # How many of its class come before each row.
    before = torch.empty_like(order)
    by_class = classes.argsort(stable=True)
    before[by_class] = torch.arange(len(order), device="cpu") - (counts.cumsum(0) - counts)[classes[by_class]]
    of_train = _shares(counts, train)
    of_val = _shares(counts - of_train, val)
    part = (before >= of_train[classes]).int() + (before >= (of_train + of_val)[classes]).int()
    return [order[part == k] for k in range(3)]


def _shares(counts, total):
    """Of each count as much as of all of them, total together: rounded down, and up where most is missing."""
    exact = counts.double() * (total / max(1, counts.sum().item()))
    shares = exact.long()
    shares[(exact - shares).argsort(descending=True, stable=True)[: total - shares.sum().item()]] += 1
    return shares
