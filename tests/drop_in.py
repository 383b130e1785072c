"""Stock torch against `rusttorch.use()` on torch's own databases: every op, list of tensors, module and optimizer.

    python tests/drop_in.py --out build/drop_in.json       everything
    python tests/drop_in.py "nn.functional.*" sum          some entries
    python tests/drop_in.py --quick 0                      what tests/test_drop_in.py runs

A check is a generator of named results. It runs in stock and under use(): dtypes, shapes, strides, requires_grad,
values, and the exception that ends it, are to be the same. Values may be rounded otherwise: they are then held against
the same check in float64. Each entry and dtype has a process of its own, so that a crash or a hang is a result too.
"""

import argparse
import ctypes
import fnmatch
import gc
import json
import multiprocessing
import random
import sys
import time
import warnings
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NamedTuple

import rusttorch
import torch
import torch.autograd.forward_ad as fwAD
from drop_in_checks import Call, Check, checks, forward
from drop_in_judge import Reference, difference, identical, outcome

# What differs: pattern of entries, kinds of check: why.
STRIDES = "strides of a gradient, where input and target have different ones"
REGAINED = "a second derivative regains the probabilities from the gradient, where stock has their logarithms"
TURNED = "strides of a gradient, where that of the result lies transposed"
ROUNDING = "what is left of a sum that cancels is rounding, in stock too"
ZERO = "the sign of a zero"
KEPT = "with dropout, query and key are kept, where stock keeps what it scaled: to change them is an error"
UNWRITTEN = "what nobody has written"
EXPLAINED = {
    ("nn.functional.cross_entropy", "backward"): REGAINED,
    ("nn.functional.linear_cross_entropy", "backward"): REGAINED,
    ("nn.functional.kl_div", "backward"): STRIDES,
    ("nn.KLDivLoss", "backward"): STRIDES,
    ("nn.functional.rms_norm", "backward"): ROUNDING,
    ("new_empty*", "forward vmap"): UNWRITTEN,
    ("empty*", "forward out vmap"): UNWRITTEN,
    ("resize_as_", "mixed"): UNWRITTEN,
    ("linalg.lstsq", "out"): "what LAPACK leaves behind the solution, in the memory that it is a part of",
    ("mm", "out"): "out= its own input, which stock makes smaller before it reads it: it reads what lies behind",
    ("pca_lowrank", "result_changed"): ROUNDING,
    ("*batch_norm*", "result_changed"): ROUNDING,  # the gradient of a sum of what has a mean of zero
    ("nn.BatchNorm*", "result_changed"): ROUNDING,
    ("nn.functional.instance_norm", "result_changed"): ROUNDING,
    ("_foreach_sigmoid", "backward inplace_backward neg_view"): ROUNDING,
    ("_foreach_m??imum", "forward_mode zero_tangent"): ROUNDING,
    ("nn.MultiheadAttention", "backward"): ROUNDING,
    ("nn.LSTM", "backward neg_view"): ROUNDING,
    ("nn.LSTM", "input_changed result_changed"): "stock's LSTM of oneDNN keeps results and biases: to change them ends",
    ("nn.LSTMCell", "backward"): TURNED,
    ("nn.functional.scaled_dot_product_attention", "forward"): ZERO,
    ("nn.functional.scaled_dot_product_attention", "backward"): "with dropout, gradients lie as the projections do",
    ("nn.functional.scaled_dot_product_attention", "result_changed"): ROUNDING,
    ("nn.functional.scaled_dot_product_attention", "input_changed"): KEPT,
    ("nn.Transformer*", "backward neg_view"): "stock's flash attention has no second derivative",
    ("nn.Transformer*", "result_changed"): ROUNDING,
    ("nn.GRU*", "backward"): TURNED,
    ("nn.RNN", "backward"): TURNED,
    ("nn.RNNCell", "backward input_changed neg_view"): ZERO,
    ("nn.GRUCell", "zero_tensor"): ZERO,
    ("nn.Conv1d", "zero_tensor"): ZERO,
    ("native_batch_norm", "mixed"): "parameters of too few elements are refused; stock reads beyond their end",
    ("native_layer_norm", "scalar"): ZERO,
    ("*softm*", "zero_tensor"): ZERO,
    ("*cross_entropy", "zero_tensor"): ZERO,
    ("nn.*CrossEntropyLoss", "zero_tensor"): ZERO,
    ("optim.LBFGS", "forward mixed neg_view"): "how often it looks along a line is decided by the last bit",
    ("optim.SGD", "mixed scalar"): "stock's fused SGD without momentum leaves whole vectors of bfloat16 as they are",
    ("optim.*", "scalar"): "a number beyond float32's range is infinite, where stock raises",
    (
        "optim.*",
        "forward",
    ): "stock's fused kernels do not look at strides: they write other elements, or beyond the end",
}

# What is not run: pattern of entries, kind of check: why.
NOT_RUN = {("tri[lu]", "out"): "stock writes beyond what it is given: the process ends then or later, in either arm"}

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool)
PATIENCE = 120  # seconds that one check may take


# An entry and a dtype.


class Unit(NamedTuple):
    op: Any
    dtype: torch.dtype
    samples: int  # at most
    seed: int = 0

    @property
    def entry(self):
        return ".".join(filter(None, (self.op.name, self.op.variant_test_name)))

    def calls(self):
        """(number, call) of some samples."""
        torch.default_generator.manual_seed(0)
        requires_grad = self.dtype.is_floating_point and self.op.supports_autograd
        random.seed(0)  # of which numbers in lists are drawn
        every = list(self.op.sample_inputs("cpu", self.dtype, requires_grad=requires_grad))
        some = random.Random(f"{self.seed} {self.entry}").sample(range(len(every)), min(self.samples, len(every)))
        return [(i, Call(self.op, every[i])) for i in sorted(some)]

    def checks(self):
        """(number of the sample, check)."""
        every = [(i, check) for i, call in self.calls() for check in checks(self.op, call, self.dtype)]
        if self.dtype is torch.float32 and self.op.error_inputs_func:
            wrong = [Call(self.op, e.sample_input) for e in self.op.error_inputs("cpu")]
            every += [(i, Check("error", forward, call, ("as it is",))) for i, call in enumerate(wrong)]
        not_run = {kind for entries, kind in NOT_RUN if fnmatch.fnmatchcase(self.entry, entries)}
        return [(i, check) for i, check in every if check.kind not in not_run]


def poison(byte):
    """Has malloc fill what it gives: what is read before it is written is then another number in each arm."""
    ctypes.CDLL(None).mallopt(-6, byte)  # M_PERTURB of glibc


def judge(unit, left_out, arm, tell):
    """{kind: counts and differences}. tell(arm, kind, where) is called before each check."""
    todo = [(f"sample {i} {check}", check) for i, check in unit.checks() if check.kind not in left_out]

    def outcomes(name):
        for where, check in todo:
            tell(name, check.kind, where)
            yield outcome(check)

    poison(0x55)
    stock = list(outcomes("stock"))
    poison(0xAA)
    with arm():
        ours = list(outcomes("ours"))
    kinds = {}
    for (where, check), mine, theirs in zip(todo, ours, stock, strict=True):
        tell("judge", check.kind, where)
        kind = kinds.setdefault(check.kind, {"checks": 0, "raise": 0, "unrepeatable": 0, "differences": []})
        kind["checks"] += 1
        kind["raise"] += theirs.error is not None
        if identical(mine, theirs):
            continue
        if not identical(outcome(check), theirs):
            kind["unrepeatable"] += 1
        elif what := difference(mine, theirs, Reference(check)):
            kind["differences"].append({"where": where, "what": what})
    return kinds


class Child:
    """A process that judges a unit."""

    def __init__(self, unit, left_out, arm):
        context = multiprocessing.get_context("fork")
        self.unit, self.left_out = unit, left_out
        self.current, self.seen, self.since = context.RawArray("c", 200), None, 0
        self.pipe, theirs = context.Pipe(duplex=False)
        self.process = context.Process(target=self.work, args=(theirs, arm))
        self.process.start()
        theirs.close()

    def work(self, pipe, arm):
        warnings.simplefilter("ignore")
        torch.set_num_threads(1)

        def tell(*current):
            self.current.value = "\n".join(current).encode()[:199]

        tell("", "samples", "")
        pipe.send(judge(self.unit, self.left_out, arm, tell))

    def hangs(self):
        if self.seen != self.current.value:
            self.seen, self.since = self.current.value, time.monotonic()
        return time.monotonic() - self.since > PATIENCE

    def end(self):
        """What judge() returned; None where the process did not come to that, and left_out has what it was at."""
        try:
            kinds = self.pipe.recv() if self.pipe.poll() else None
        except EOFError:
            kinds = None
            self.process.join()
        how = "hangs" if self.process.is_alive() else f"ends the process ({self.process.exitcode})"
        self.process.kill()
        self.process.join()
        self.pipe.close()
        if kinds is None:
            arm, kind, where = self.current.value.decode().split("\n")
            found = [] if arm == "stock" else [{"where": where, "what": how}]
            self.left_out[kind] = {"checks": 1, "raise": 0, "unrepeatable": 1 - len(found), "differences": found}
        return kinds


def run(units, arm=rusttorch.use, processes=2):
    """Yields (unit, kinds). A kind that crashes or hangs is left out when the rest of its unit runs again."""
    todo, running = [(unit, {}) for unit in reversed(units)], []
    while todo or running:
        while todo and len(running) < processes:
            running.append(Child(*todo.pop(), arm))
        ready = wait([child.pipe for child in running], timeout=1)
        for child in [child for child in running if child.pipe in ready or child.hangs()]:
            running.remove(child)
            kinds = child.end()
            if kinds is None and "samples" not in child.left_out:
                todo.append((child.unit, child.left_out))
            else:
                yield child.unit, (kinds or {}) | child.left_out


# The command.


def swapped(op):
    """Whether rusttorch has a kernel of the entry's own name."""
    ours = {known.name.partition(".")[0] for known in rusttorch.ops()}
    return not ours.isdisjoint({op.name.rpartition(".")[2], op.name.replace(".", "_"), op.aten_name})


def part(db, seed):
    """What we swap and a tenth of the rest, float32 and another dtype, one sample each."""
    draw = random.Random(seed)
    some = [op for op in db if swapped(op) or draw.random() < 0.1]
    return [Unit(op, dtype, 1, seed) for op in some for dtype in (torch.float32, draw.choice(DTYPES[1:]))]


def explanation(row):
    found = (key for key in EXPLAINED if fnmatch.fnmatchcase(row["entry"], key[0]) and row["kind"] in key[1].split())
    return next(found, None)


def report(rows, complete):
    """Prints the summary, and what is explained in vain; returns whether anything is left to explain."""
    different = [row for row in rows if row["differences"]]
    left = [row for row in different if not explanation(row)]
    for row in sorted(left, key=lambda row: (row["kind"], row["entry"])):
        first, count = row["differences"][0], f"{len(row['differences'])} of {row['checks']}"
        print(f"{row['kind']}: {row['entry']} {row['dtype']} ({count}): {first['where']}: {first['what']}")
    stale = set(EXPLAINED) - {explanation(row) for row in different} if complete else ()
    for key in stale:
        print(f"explained, and no difference: {key}")
    counts = {name: sum(row[name] for row in rows) for name in ("checks", "raise", "unrepeatable")}
    counts["differences"] = sum(len(row["differences"]) for row in rows)
    print(f"{len({row['entry'] for row in rows})} entries, {counts}; {len(left)} rows not explained")
    return bool(left)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("entries", nargs="*", default=["*"], help="patterns")
    parser.add_argument("--samples", type=int, default=8, help="of an entry and dtype, at most")
    parser.add_argument("--quick", type=int, metavar="SEED", help="what we swap, some of the rest; one sample each")
    parser.add_argument("--out", type=Path, help="a JSON file for every count and difference")
    options = parser.parse_args()

    # Children are forked from here: no OpenMP thread may have been made.
    torch.set_num_threads(1)
    from drop_in_database import database

    with fwAD.dual_level():  # what torch loads when it is first asked, once for all children
        fwAD.make_dual(torch.ones(1), torch.vmap(torch.neg)(torch.ones(1)))
    gc.freeze()  # a collector in a child would copy the pages of all that is here
    every = [Unit(op, dtype, options.samples) for op in database() for dtype in DTYPES]
    units = every if options.quick is None else part(database(), options.quick)
    units = [
        unit
        for unit in units
        if unit.op.supports_dtype(unit.dtype, "cpu")
        and any(fnmatch.fnmatchcase(unit.entry, e) for e in options.entries)
    ]
    rows, start = [], time.monotonic()
    for done, (unit, kinds) in enumerate(run(units), 1):
        dtype = str(unit.dtype).removeprefix("torch.")
        print(f"\r{done} of {len(units)} {unit.entry} {dtype}\033[K", end="", file=sys.stderr, flush=True)
        rows += [{"entry": unit.entry, "dtype": dtype, "kind": kind} | result for kind, result in kinds.items()]
    print(file=sys.stderr)
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1))
    failed = report(rows, complete=len(units) == sum(unit.op.supports_dtype(unit.dtype, "cpu") for unit in every))
    print(f"{time.monotonic() - start:.0f} s")
    return failed


if __name__ == "__main__":
    sys.exit(main())
