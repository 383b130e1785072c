"""Whole training steps, stock torch against rusttorch, through rusttorch.AB.

    python bench/train.py [--loops mlp cnn gpt gru] [--against default fused tcmalloc ...] [--threads 1 2] [--curves]
        [--out bench/results.jsonl]

mlp: an MLP on scikit-learn's handwritten digits, Adam. cnn: a small CNN with BatchNorm and MaxPool on the same images,
Adam. gpt: a GPT of 4 layers, d 256, on the characters of the Python standard library's sources, AdamW, gradients
clipped. gru: two layers of 256 gated recurrent units on these, the same way. The swapped arm has rusttorch's ops and
its memory pool; what each of the two is worth is in its line too.

Stock is torch with its default optimizer, or with fused=True, or torch.compile with its default optimizer, which then
is compared with swapped and torch.compile together as well; or torch with tcmalloc preloaded (in both arms), which is
what people do against page faults without rusttorch: Debian's libtcmalloc-minimal4. Against the default and tcmalloc,
both arms train one model in turn; else each has its own.
"""

import argparse
import contextlib
import ctypes.util
import itertools
import multiprocessing
import os
import resource
import sys
from pathlib import Path
from unittest import mock

import rusttorch
import torch
import torch.nn.functional as F
from rusttorch.bench import results
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
from gpt import GPT, batch, characters


class RecurrentModel(nn.Module):
    def __init__(self, vocabulary, width=256, layers=2, dropout=0.1):
        super().__init__()
        self.tokens, self.dropout = nn.Embedding(vocabulary, width), nn.Dropout(dropout)
        self.layers = nn.GRU(width, width, layers, batch_first=True, dropout=dropout)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, x):
        return self.head(self.dropout(self.layers(self.tokens(x))[0])).flatten(0, 1)


def digits():
    from sklearn.datasets import load_digits  # the text, which bench/gpu.py trains on, does without

    data = load_digits()
    return torch.tensor(data.data, dtype=torch.float32) / 16, torch.tensor(data.target)


class Loop:
    """A model, its optimizer and its batches; step(x, y) trains and returns the loss."""

    clip = None

    def __init__(self, fused=False, compiled=False):
        torch.manual_seed(0)
        self.model = self.make_model()
        self.optimizer = self.make_optimizer(self.model.parameters(), fused=True if fused else None)
        self.forward = torch.compile(self.model) if compiled else self.model

    def step(self, x, y):
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.forward(x), y)
        loss.backward()
        if self.clip:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        return loss.detach()


class Digits(Loop):
    def make_optimizer(self, parameters, fused):
        return torch.optim.Adam(parameters, lr=1e-3, fused=fused)

    @classmethod
    def batches(cls, generator):
        x, y = digits()
        while True:
            for index in torch.randperm(len(x), generator=generator).split(cls.batch)[:-1]:
                yield x[index], y[index]


class MLP(Digits):
    batch, rounds = 128, 60

    def make_model(self):
        hidden = [layer for _ in range(2) for layer in (nn.Linear(256, 256), nn.Mish())]
        return nn.Sequential(nn.Linear(64, 256), nn.Mish(), *hidden, nn.Linear(256, 10))


class CNN(Digits):
    batch, rounds = 256, 15

    def make_model(self):
        def block(inputs, outputs):
            convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
            return convolution, nn.BatchNorm2d(outputs), nn.ReLU()

        return nn.Sequential(
            *(nn.Unflatten(1, (1, 8, 8)), *block(1, 32), *block(32, 64), nn.MaxPool2d(2)),
            *(*block(64, 64), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 10)),
        )


class Text(Loop):
    model_kind, batch, rounds, clip = GPT, 8, 10, 1.0
    text, vocabulary = None, None

    def make_model(self):
        if Text.text is None:
            Text.text, Text.vocabulary = characters()
        return self.model_kind(len(self.vocabulary))

    def make_optimizer(self, parameters, fused):
        return torch.optim.AdamW(parameters, lr=3e-4, fused=fused)

    @classmethod
    def batches(cls, generator):
        while True:
            yield batch(cls.text, cls.batch, generator)


class RecurrentText(Text):
    model_kind, batch, rounds = RecurrentModel, 32, 10


LOOPS = {"mlp": MLP, "cnn": CNN, "gpt": Text, "gru": RecurrentText}
# name: what stock's and swapped's models are made with; None: one model for both
AGAINST = {
    "default": None,
    "fused": ({"fused": True}, {}),
    "tcmalloc": None,
    "compile": ({"compiled": True}, {}),
    "compile both": ({"compiled": True}, {"compiled": True}),
}
TCMALLOC = "libtcmalloc_minimal.so.4"


def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def measure(name, against, threads):
    """One training run whose steps alternate between the arms."""
    torch.set_num_threads(threads)
    kind = LOOPS[name]
    if AGAINST[against] is None:
        loops = dict.fromkeys(rusttorch.ab.ARMS, kind())
    else:
        loops = {arm: kind(**made) for arm, made in zip(rusttorch.ab.ARMS, AGAINST[against], strict=True)}
    ab = rusttorch.AB()
    batches = kind.batches(torch.Generator().manual_seed(0))
    fault_counts = {arm: [] for arm in loops}
    for _ in range(24 * (kind.rounds + 1)):
        x, y = next(batches)
        with ab.step(samples=y.numel()) as step:
            before = faults()
            step.loss = loops[step.arm].step(x, y)
            if step.arm == "stock" or rusttorch.memory.is_enabled():  # else a step of the ops alone
                fault_counts[step.arm].append(faults() - before)
    report, memory = ab.report(confidence=0.95), rusttorch.memory.stats()
    result = {
        **{"loop": name, "threads": threads, "against": against, "speedup": report.speedup},
        **{"interval": report.interval, "median": report.median},
        "parts": {name: {"ratio": part.ratio, "interval": part.interval} for name, part in report.parts.items()},
        "faults": {arm: sorted(counts)[len(counts) // 2] for arm, counts in fault_counts.items()},
        **{"loss_difference": report.loss_difference, "loss_interval": report.loss_interval},
        **{"held": memory.held, "peak_allocated": memory.peak_allocated},
    }
    low, high = report.interval
    print(
        f"{name:4} {threads} thread(s) against {against:12} {report.speedup:.3f}x [{low:.3f}, {high:.3f}]  "
        f"(ops {report.parts['ops'].ratio:.3f}x, pool {report.parts['pool'].ratio:.3f}x)  "
        f"{report.median['stock'] * 1e3:.2f} -> {report.median['swapped'] * 1e3:.2f} ms, "
        f"faults a step {result['faults']['stock']} -> {result['faults']['swapped']}, "
        f"held {memory.held / memory.peak_allocated:.2f} of the live peak",
        flush=True,
    )
    return result


def losses_of(name, swapped=False, nudged=False, steps=200):
    """The losses of a run from one seed. nudged: with one weight off by its last bit."""
    loop, batches = LOOPS[name](), LOOPS[name].batches(torch.Generator().manual_seed(0))
    weight = next(p for p in loop.model.parameters() if p.dim() > 1).detach().view(-1)
    if nudged:
        weight[0] = torch.nextafter(weight[0], weight.new_tensor(9))
    torch.manual_seed(1)  # of the dropout
    with rusttorch.use() if swapped else contextlib.nullcontext():
        return [loop.step(*next(batches)).item() for _ in range(steps)]


def curves(names):
    """How far the losses of stock's run and swapped's are apart, and those of two of stock's where one is nudged."""
    torch.set_num_threads(1)
    found = []
    for name in names:
        losses = {"stock": losses_of(name), "swapped": losses_of(name, swapped=True)}
        nudged = losses_of(name, nudged=True)
        apart = [
            max(abs(a - b) / abs(a) for a, b in zip(losses["stock"], other, strict=True))
            for other in (losses["swapped"], nudged)
        ]
        print(f"{name:4} losses at most {apart[0]:.1e} of their size apart; of stock's with one bit off {apart[1]:.1e}")
        found.append({"loop": name, "apart": apart[0], "apart_nudged": apart[1], "losses": losses})
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--loops", nargs="+", default=list(LOOPS), choices=LOOPS)
    parser.add_argument("--against", nargs="+", default=list(AGAINST), choices=AGAINST)
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--curves", action="store_true", help="and the losses of 200 steps from one seed")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if "tcmalloc" in options.against and not ctypes.util.find_library("tcmalloc_minimal"):
        print(f"no {TCMALLOC} (Debian: libtcmalloc-minimal4): tcmalloc is left out")
        options.against.remove("tcmalloc")
    found = []
    for case in itertools.product(options.loops, options.against, options.threads):
        # Each in a process of its own: what the C library keeps of its heap depends on what ran before.
        preload = {"LD_PRELOAD": TCMALLOC} if case[1] == "tcmalloc" else {}
        with mock.patch.dict(os.environ, preload), multiprocessing.get_context("spawn").Pool(1) as fresh:
            found.append(fresh.apply(measure, case))
    if options.out:
        results.save(options.out, "train", found)
        if options.curves:
            results.save(options.out, "curves", curves(options.loops))


if __name__ == "__main__":
    main()
