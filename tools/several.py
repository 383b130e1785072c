"""Errors of functions of several tensors, for tools/accuracy.py: the cases of the tests, element by element.

2^20 float32 operands of each, half of them as the tests draw them, half of all magnitudes that the function is for, and
one in 64 a hard case: zeros, infinities, NaN, the smallest and the largest numbers. Exact is what float64 gives.
"""

import json

import test_activation
import test_loss
import test_pointwise
import torch
from cases import first, values
from families import run

COUNT = 1 << 20
HARD = {
    "p": (0.0, 1.0, 1e-45, 1.2e-38, 3.4e38, float("inf"), float("nan")),
    "u": (0.0, 1.0, 1e-45, 1.2e-38, 1 - 2**-24),
}
HARD |= dict.fromkeys("nw", (*HARD["p"], -0.0, -1.0, -1e-45, -3.4e38, -float("inf")))


def by_element(case):
    if case.count < 2 or "s" in case.domain or case.exact:
        return False
    tensors = [values(letter, (3,), torch.float32, 0) for letter in case.domain]
    return first(run(case.stock(), case, tensors)).shape == (3,)


CASES = {
    f"{case}" + (f" of {case.positions}" if case.positions else ""): case
    for table in (test_pointwise, test_activation, test_loss)
    for case in table.CASES
    if by_element(case)
}


def operand(letter, seed):
    generator = torch.Generator().manual_seed(seed)

    def uniform(low, high):
        return torch.rand(COUNT, generator=generator, dtype=torch.float64) * (high - low) + low

    drawn = values(letter, (COUNT,), torch.float64, seed)
    magnitudes = uniform(-30, 0 if letter == "u" else 30).exp2()
    if letter in "nw":
        magnitudes *= uniform(-1, 1).sign()
    hard = torch.tensor(HARD[letter], dtype=torch.float64)
    hard = hard[torch.randint(len(hard), (COUNT,), generator=generator)]
    x = torch.where(uniform(0, 1) < 0.5, drawn, magnitudes)
    return torch.where(uniform(0, 1) < 1 / 64, hard, x).float()


def of(result, exact):
    """An arm's errors, as Exact judges them."""
    error, wrong = exact.judge(result)
    finite = error[exact.values.isfinite()]
    part = [q.item() for q in torch.quantile(finite, torch.tensor([0.5, 0.999], dtype=torch.float64))]
    return {"half": part[0], "most": part[1], "largest": finite.max().item(), "wrong": wrong}


def measure(name, path, exact_of):
    """Ours and stock's; exact_of is Exact of tools/accuracy.py."""
    case = CASES[name]
    tensors = [operand(letter, seed) for seed, letter in enumerate(case.domain)]
    exact = exact_of(case.reference(tensors), torch.float32)
    state = {
        "ours": of(first(run(case.overload("rusttorch"), case, tensors)), exact),
        "stock": of(first(run(case.stock(), case, tensors)), exact),
    }
    path.write_text(json.dumps({"done": COUNT, "total": COUNT} | state))


def report(level, states):
    """The lines of a table."""
    lines = [
        "",
        f"## Several tensors, float32, {level}: {COUNT:,} operands",
        "",
        "As the tests draw them, of all magnitudes, and hard cases. Where a result cancels, its error in ulp has no",
        "bound in any of the two: hence what half of them, and all but one in 1,000, stay within.",
        "",
        "| function | ours, half | 99.9 % | largest | wrong | stock, half | 99.9 % | largest | wrong |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, state in states.items():
        cells = [name]
        for who in ("ours", "stock"):
            cells += [f"{state[who][key]:.3g}" for key in ("half", "most", "largest")] + [str(state[who]["wrong"])]
        lines.append(f"| {' | '.join(cells)} |")
    return lines
