"""How far each function is from the exact result, in ulp: ours and stock's. Writes docs/accuracy.md.

    python tools/accuracy.py                          # every float32 there is, 2^32 of them: an hour
    python tools/accuracy.py --every 64 --others 512  # one of each 64, and of 512
    python tools/accuracy.py --functions mish --levels default avx2

--every is of the first instruction set, --others of those that come after it. All are measured that the CPU has.

An ulp is the distance from one number of the result's dtype to the next, at the exact result. That is taken for exact
which the formulas below give in float64; where those would cancel, they are written so that they do not. float64 itself
is judged by mpmath, at numbers drawn from all magnitudes. Functions of several tensors are in tools/several.py.

Goes on where it was stopped: what is done lies in build/accuracy. One process for each instruction set and function.
"""

import argparse
import itertools
import json
import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import mpmath
import rusttorch
import torch
import torch.nn.functional as F
from tqdm import tqdm

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import several  # noqa: E402
from cases import OWN, REFERENCE  # noqa: E402

FOLDER = ROOT / "build" / "accuracy"
LEVELS = ("avx512", "avx2", "default")  # as ATEN_CPU_CAPABILITY has them
# Those that this CPU has: it would die of an instruction of another.
HERE = LEVELS[LEVELS.index(torch.backends.cpu.get_cpu_capability().lower()) :]
CHUNK = 1 << 15  # numbers at a time: what the cache holds
SHARDS = 256  # after each of which the state is saved

mp = mpmath.mp
mp.prec = 160


class Function(NamedTuple):
    stock: Any
    ours: Any
    exact: Any  # of float64
    by_mpmath: Any = None  # None: exact() has one rounding only, and needs no judge


def _sigmoid(x):
    return 1 / (1 + mp.exp(-x))


def _gelu_tanh_mp(x):
    return x * _sigmoid(2 * mp.sqrt(2 / mp.pi) * (x + mp.mpf(0.044715) * x**3))


SELU = (1.6732632423543772848170429916717, 1.0507009873554804934193349852946)
r = rusttorch
FUNCTIONS = {
    "exp": Function(torch.exp, r.exp, torch.exp, mp.exp),
    "log": Function(torch.log, r.log, torch.log, mp.log),
    "sqrt": Function(torch.sqrt, r.sqrt, torch.sqrt),
    "abs": Function(torch.abs, r.abs, torch.abs),
    "neg": Function(torch.neg, r.neg, torch.neg),
    "relu": Function(F.relu, r.relu, F.relu),
    "leaky_relu": Function(F.leaky_relu, r.leaky_relu, lambda x: torch.where(x > 0, x, x * 0.01)),
    "sigmoid": Function(torch.sigmoid, r.sigmoid, torch.sigmoid, _sigmoid),
    "tanh": Function(torch.tanh, r.tanh, torch.tanh, mp.tanh),
    "gelu": Function(
        F.gelu,
        r.gelu,
        # At -inf the limit: stock's has it or NaN, by CPU and size.
        lambda x: REFERENCE["gelu"](x).where(x != -math.inf, 0.0),
        lambda x: x * mp.erfc(-x / mp.sqrt(2)) / 2,
    ),
    "gelu(tanh)": Function(
        lambda x: F.gelu(x, approximate="tanh"),
        lambda x: r.gelu(x, approximate="tanh"),
        REFERENCE["gelu-approximate=tanh"],
        _gelu_tanh_mp,
    ),
    "elu": Function(F.elu, r.elu, lambda x: torch.where(x > 0, x, x.expm1()), lambda x: x if x > 0 else mp.expm1(x)),
    "selu": Function(
        F.selu,
        r.selu,
        lambda x: SELU[1] * torch.where(x > 0, x, SELU[0] * x.expm1()),
        lambda x: SELU[1] * (x if x > 0 else SELU[0] * mp.expm1(x)),
    ),
    "celu(0.8)": Function(
        lambda x: F.celu(x, 0.8),
        lambda x: r.celu(x, 0.8),
        lambda x: torch.where(x > 0, x, 0.8 * (x / 0.8).expm1()),
        lambda x: x if x > 0 else mp.mpf(0.8) * mp.expm1(x / mp.mpf(0.8)),
    ),
    "silu": Function(F.silu, r.silu, lambda x: x / (1 + (-x).exp()), lambda x: x * _sigmoid(x)),
    "mish": Function(F.mish, r.mish, lambda x: x * x.exp().log1p().tanh(), lambda x: x * mp.tanh(mp.log1p(mp.exp(x)))),
    "softplus": Function(F.softplus, r.softplus, F.softplus, lambda x: x if x > 20 else mp.log1p(mp.exp(x))),
    "softsign": Function(F.softsign, r.softsign, F.softsign),
    "squareplus": Function(
        lambda x: (x + (x * x + 4).sqrt()) / 2,
        r.squareplus,
        OWN["squareplus"],
        lambda x: (x + mp.sqrt(x * x + 4)) / 2,
    ),
    "log_sigmoid": Function(
        F.logsigmoid,
        r.log_sigmoid,
        lambda x: x.clamp(max=0) - (-x.abs()).exp().log1p(),
        lambda x: -mp.log1p(mp.exp(-x)),
    ),
    "hardswish": Function(F.hardswish, r.hardswish, lambda x: x * ((x + 3).clamp(0, 6) / 6)),
    "hardsigmoid": Function(F.hardsigmoid, r.hardsigmoid, lambda x: (x + 3).clamp(0, 6) / 6),
}


class Exact:
    """The exact results, and how many ulp of a dtype there are in 1 at each."""

    def __init__(self, exact, dtype):
        self.values, self.dtype = exact, dtype
        info = torch.finfo(dtype)
        digits = {torch.float32: 23, torch.bfloat16: 7, torch.float16: 10}[dtype]
        size = exact.abs()
        # The power of 2, as float64 has it, at least that of the smallest normal number; and its reciprocal's.
        power = (size.view(torch.int64) >> 52).clamp_(min=int(math.log2(info.tiny)) + 1023)
        self.ulps = (2046 + digits - power).bitwise_left_shift_(52).view(torch.float64)
        self.beside = info.max * (1 - info.eps / 2)  # whose neighbour is infinity
        self.finite = bool(size.max() < self.beside)  # not where one is NaN

    def judge(self, result):
        """Each result's error in ulp; and how many are infinite or NaN where they should not be, or the reverse."""
        error = result.to(torch.float64).sub_(self.values).abs_().mul_(self.ulps)
        if self.finite and error.max() < math.inf:
            return error, 0
        rounded = self.values.to(self.dtype)
        same = (result == rounded) | (result.isnan() & rounded.isnan()) | (self.values.abs() >= self.beside)
        infinite = ~rounded.isfinite() | ~result.isfinite()
        return error.masked_fill_(infinite, 0), (infinite & ~same).sum().item()


class Tally:
    """The largest error so far, where it is, and what the mean is made of."""

    def __init__(self, state=None):
        self.__dict__.update(state or {"largest": 0.0, "at": None, "total": 0.0, "count": 0, "wrong": 0})

    def add(self, x, result, exact):
        error, wrong = exact.judge(result)
        largest = error.max().item()
        if largest > self.largest:
            self.largest, self.at = largest, x[error.argmax()].item()
        self.total += error.sum().item()
        self.count += x.numel()
        self.wrong += wrong


def numbers(dtype, begin, end, every):
    """Those whose bits are begin * every, ... in order, each moved on by a hash below `every`: all digits occur."""
    bits = torch.arange(begin, end)
    if every > 1:
        bits = bits * every + ((bits * 0x9E3779B1) >> 7) % every
    return bits.to({4: torch.int32, 2: torch.int16}[dtype.itemsize]).view(dtype)  # wraps


def measure(name, dtype, every, path):
    """All numbers of a dtype of 16 or 32 bits, or one of `every`. The state is kept in the file `path`."""
    function = FUNCTIONS[name]
    total = 2 ** (8 * dtype.itemsize) // every
    state = json.loads(path.read_text()) if path.exists() else {"done": 0, "ours": None, "stock": None}
    tallies = {who: Tally(state[who]) for who in ("ours", "stock")}
    shard = max(CHUNK, total // SHARDS)
    for begin in range(state["done"], total, shard):
        for at in range(begin, min(begin + shard, total), CHUNK):
            x = numbers(dtype, at, min(at + CHUNK, total), every)
            exact = Exact(function.exact(x.double()), dtype)
            tallies["ours"].add(x, function.ours(x), exact)
            tallies["stock"].add(x, function.stock(x), exact)
        state = {"done": min(begin + shard, total), "total": total} | {who: vars(t) for who, t in tallies.items()}
        path.write_text(json.dumps(state))


def measure_double(name, path, count=3000):
    """float64 at numbers of all magnitudes, and float64's own formula above, by mpmath."""
    function = FUNCTIONS[name]
    generator = torch.Generator().manual_seed(0)
    # Most of them where something happens.
    power = torch.rand(count, generator=generator, dtype=torch.float64) * 40 - 30
    x = torch.randn(count, generator=generator, dtype=torch.float64).sign() * power.exp2()
    if name in ("log", "sqrt"):
        x = x.abs()
    exact = [function.by_mpmath(mp.mpf(v)) for v in x.tolist()]
    state = {}
    for who, f in (("ours", function.ours), ("stock", function.stock), ("formula", function.exact)):
        errors, wrong = [], 0
        for got, wanted in zip(f(x).tolist(), exact, strict=True):
            if who == "formula" and abs(wanted) < 2**-150:
                errors.append(0.0)  # float32 has no such numbers
            elif math.isfinite(got) and abs(wanted) < sys.float_info.max:
                power = max(-1022, int(mp.floor(mp.log(abs(wanted), 2)))) if wanted else -1022
                errors.append(float(abs(mp.mpf(got) - wanted) / mp.mpf(2) ** (power - 52)))
            else:
                errors.append(0.0)
                wrong += got != float(wanted)
        k = max(range(count), key=errors.__getitem__)
        state[who] = {"largest": errors[k], "at": x[k].item(), "total": sum(errors), "count": count, "wrong": wrong}
    path.write_text(json.dumps({"done": count, "total": count} | state))


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def file_of(level, dtype, name, every):
    return FOLDER / f"{level}-{dtype}-{name}-{every}.json"


def every_of(options, level, dtype):
    """Which part of the numbers: all of those of 16 bits."""
    if dtype != "float32":
        return 1
    return options.every if level == options.levels[0] else options.others


def done(path):
    state = json.loads(path.read_text()) if path.exists() else {"done": 0, "total": 1}
    return state["done"] / state["total"]


def work(level, dtype, name, every):
    torch.set_num_threads(1)
    path = file_of(level, dtype, name, every)
    if dtype == "several":
        several.measure(name, path, Exact)
    elif dtype == "float64":
        measure_double(name, path)
    else:
        measure(name, DTYPES[dtype], every, path)


def cases(options):
    """What there is to do. float64's digits come from mpmath, where a function is more than one rounding."""
    for level, name, dtype in itertools.product(options.levels, options.functions, DTYPES):
        if dtype != "float64" or FUNCTIONS[name].by_mpmath:
            yield level, dtype, name, every_of(options, level, dtype)
    for level, name in itertools.product(options.levels, several.CASES if options.functions == list(FUNCTIONS) else ()):
        yield level, "several", name, 1


def run_all(options):
    FOLDER.mkdir(parents=True, exist_ok=True)
    todo = [case for case in cases(options) if done(file_of(*case)) < 1]
    bar = tqdm(total=len(todo), desc="functions, dtypes and instruction sets")

    def run(case):
        command = [sys.executable, __file__, "--work", *map(str, case)]
        subprocess.run(command, check=True, env={**os.environ, "ATEN_CPU_CAPABILITY": case[0]})
        bar.update()

    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(run, todo))
    bar.close()


def of_number(x):
    return "" if x is None else f"{x:.9g}"


def verdict(ours, stock):
    """At most 2 ulp where stock's is; never more than stock's and one."""
    fine = ours["largest"] <= (2 if stock["largest"] <= 2 else stock["largest"] + 1)
    return "" if fine and ours["wrong"] <= stock["wrong"] else " !"


def report(options, path):
    """The tables; and the rows that are not as they should be."""
    lines = [
        "# How right: errors in ulp",
        "",
        f"Written by `make accuracy`, with torch {torch.__version__}: the largest and the mean error of ours and of",
        "stock's, and the input of the largest. An ulp is the distance between neighbours of the dtype at the exact",
        "result; 0.5 is what rounding alone costs. `wrong` counts results that are infinite or NaN and should not be,",
        "or the reverse. `!` marks what is more than 2 ulp where stock is not, or more than stock's error and one.",
    ]
    marked = []
    for level, dtype in itertools.product(options.levels, DTYPES):
        files = {n: file_of(level, dtype, n, every_of(options, level, dtype)) for n in options.functions}
        states = {n: json.loads(file.read_text()) for n, file in files.items() if file.exists()}
        count = next(iter(states.values()))["total"]
        what = f"{count:,} numbers of all magnitudes" if dtype == "float64" else f"{count:,} of all inputs"
        lines += ["", f"## {dtype}, {level}: {what}", ""]
        lines += ["| function | ours, largest | mean | at | wrong | stock, largest | mean | at | wrong |"]
        lines += ["|---|---|---|---|---|---|---|---|---|"]
        for name, state in states.items():
            cells = [name + verdict(state["ours"], state["stock"])]
            for who in ("ours", "stock"):
                t = state[who]
                cells += [f"{t['largest']:.3f}", f"{t['total'] / t['count']:.3f}", of_number(t["at"]), f"{t['wrong']}"]
            lines.append(f"| {' | '.join(cells)} |")
            if "!" in cells[0]:
                marked.append(f"{dtype}, {level}: {lines[-1]}")
        if dtype == "float64":
            worst = max(state["formula"]["largest"] for state in states.values())
            lines += ["", f"The float64 formulas that judge float32 err by at most {worst:.1f} ulp of float64 here."]
    for level in options.levels:
        files = {name: file_of(level, "several", name, 1) for name in several.CASES}
        lines += several.report(level, {n: json.loads(file.read_text()) for n, file in files.items() if file.exists()})
    path.write_text("\n".join(lines) + "\n")
    return marked


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="one of so many float32 numbers")
    parser.add_argument("--others", type=int, default=64)
    parser.add_argument("--functions", nargs="+", choices=FUNCTIONS, default=list(FUNCTIONS))
    parser.add_argument("--levels", nargs="+", choices=HERE, default=list(HERE))
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "accuracy.md")
    parser.add_argument("--work", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        level, dtype, name, every = options.work
        return work(level, dtype, name, int(every))
    run_all(options)
    marked = report(options, options.out)
    sys.exit("\n".join(marked) or None)


if __name__ == "__main__":
    main()
