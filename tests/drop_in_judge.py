"""What a check of tests/drop_in_checks.py gives, and how it is judged against stock's."""

import functools
from typing import NamedTuple

import torch
from drop_in_checks import facts, wider
from torch.utils._pytree import tree_leaves


class Leaf(NamedTuple):
    name: str
    facts: dict  # all but the values
    values: torch.Tensor | None


class Outcome(NamedTuple):
    leaves: list
    error: Exception | None


def outcome(check):
    """What it gives, up to the exception that ends it."""
    leaves, error = [], None
    torch.default_generator.manual_seed(0)
    try:
        for name, tree in check.function(check.call, *check.label):
            for i, x in enumerate(tree_leaves(tree)):
                if type(x) is float:  # a value too
                    x = torch.tensor(x, dtype=torch.float64)
                known = isinstance(x, torch.Tensor) and not x._is_zerotensor()
                leaves.append(Leaf(f"{name} {i}", facts(x), x.detach() if known else None))
    except Exception as e:
        error = e.with_traceback(None)
    return Outcome(leaves, error)


def dense(x):
    """Real numbers in memory of their own kind."""
    x = (x if x.layout == torch.strided else x.to_dense()).resolve_neg().resolve_conj()
    return torch.view_as_real(x) if x.is_complex() else x


def same_bits(x, y):
    if not x.is_floating_point():
        return torch.equal(x, y)
    return bool(((x == y) & (x.signbit() == y.signbit()) | x.isnan() & y.isnan()).all())


def same_kind(x, y):
    """Elementwise: both finite, both NaN, or the same infinity."""
    return x.isfinite() & y.isfinite() | x.isnan() & y.isnan() | (x == y)


class Reference:
    """A check in float64, made when it is first asked for."""

    def __init__(self, check):
        self.check = check

    @functools.cached_property
    def values(self):
        leaves = outcome(self.check._replace(call=self.check.call.double())).leaves
        return [None if leaf.values is None else dense(leaf.values) for leaf in leaves]

    @functools.cached_property
    def scale(self):
        """The largest of its values: what has cancelled in float64 may be 2**-48 of that."""
        floats = (x for x in self.values if x is not None and x.is_floating_point() and x.numel())
        return max((x.nan_to_num(0, 0, 0).abs().max().item() for x in floats), default=0)

    def of(self, i, x):
        """The values of leaf i, if they say more than x."""
        wide = self.values[i] if i < len(self.values) else None
        more = any(wider(leaf) is not leaf for leaf in self.check.call.leaves) and x.is_floating_point()
        return wide if more and wide is not None and (wide.dtype, wide.shape) == (torch.float64, x.shape) else None

    def stock_errors(self, i):
        """Stock's largest error of leaf i at each of some inputs near the sample's."""
        for seed in range(8):
            near = Reference(self.check._replace(call=self.check.call.near(seed)))
            leaves = outcome(near.check).leaves
            x = dense(leaves[i].values) if i < len(leaves) and leaves[i].values is not None else None
            if x is not None and near.of(i, x) is not None:
                yield ulps(x, near.of(i, x), 2.0**-48 * near.scale)


def ulps(x, exact, noise):
    """The largest error above noise, in ulp of the exact elements, or of their mean where that is more.

    What has cancelled has the error of its terms, for which the mean stands.
    """
    info = torch.finfo(x.dtype)
    finite = x.isfinite() & exact.isfinite()
    if not finite.any():
        return 0
    x, exact = x[finite].double(), exact[finite]
    size = torch.maximum(exact.abs(), exact.abs().mean()).clamp(info.tiny)
    return (((x - exact).abs() - noise).clamp(0) / (size.log2().floor().exp2() * info.eps)).max().item()


def value_difference(ours, stock, i, reference):
    """In words, of the values of leaf i.

    Our largest error may be twice stock's and 4 ulp more: an elementary function may err by 2, and a check is a chain
    of some. Stock's is the largest at some inputs near the sample's: at one it may be lucky. Where ours is not stock's
    NaN, infinity or zero, it may be what the exact value rounds to.
    """
    if ours is None or same_bits(ours := dense(ours), stock := dense(stock)):
        return None
    exact = reference.of(i, ours)
    if exact is None:
        return far(ours, stock)
    rounded = exact.to(ours.dtype)
    odd = ~same_kind(ours, stock) & ~same_kind(ours, rounded)
    odd |= (ours == 0) & (stock == 0) & (ours.signbit() != stock.signbit()) & (ours.signbit() != rounded.signbit())
    if odd.any():
        return f"{ours[odd][0]} where stock has {stock[odd][0]}"
    noise = 2.0**-48 * reference.scale
    if ours.dtype == torch.float64 and ulps(stock, exact, noise) > 1024:  # somewhere it has been float32
        ours, stock = ours.float(), stock.float()
    eps = torch.finfo(ours.dtype).eps
    error, usual = ulps(ours, exact, noise), ulps(stock, exact, noise)
    if usual * eps >= 1 and exact.abs().mean() > 8 * eps * reference.scale:
        return far(ours, stock)  # the check is another one in float64
    if error > 2 * usual + 4:
        usual = max([usual, *reference.stock_errors(i)])
    return f"errs by {error:.1f} ulp where stock errs by {usual:.1f}" if error > 2 * usual + 4 else None


def far(ours, stock):
    """By the tolerances of torch.testing."""
    try:
        torch.testing.assert_close(ours, stock, equal_nan=True)
    except AssertionError as e:
        return " ".join(str(e).split())


def error_of(outcome):
    after = f"after {outcome.leaves[-1].name}" if outcome.leaves else "at once"
    return f"{type(outcome.error).__name__}: {str(outcome.error)[:200]}, {after}" if outcome.error else f"ends {after}"


def difference(ours, stock, reference):
    """The first, in words."""
    if type(ours.error) is not type(stock.error) or len(ours.leaves) != len(stock.leaves):
        return f"{error_of(ours)}; stock {error_of(stock)}"
    for i, (mine, theirs) in enumerate(zip(ours.leaves, stock.leaves, strict=True)):
        other = [k for k in mine.facts | theirs.facts if mine.facts.get(k) != theirs.facts.get(k)]
        odd = [f"{k} {mine.facts.get(k)} where stock has {theirs.facts.get(k)}" for k in other]
        what = ", ".join(odd) or value_difference(mine.values, theirs.values, i, reference)
        if what:
            return f"{mine.name}: {what}"
    return None


def identical(x, y):
    """Whether two outcomes are the same to the bit."""
    if type(x.error) is not type(y.error) or len(x.leaves) != len(y.leaves):
        return False
    return all(
        a.facts == b.facts and (a.values is None or same_bits(dense(a.values), dense(b.values)))
        for a, b in zip(x.leaves, y.leaves, strict=True)
    )
