"""Trains a GPT on characters with rusttorch: of your files, or of the Python standard library's sources.

    python examples/gpt.py [FILE ...] [--steps 2000] [--bf16] [--compile] [--stock] [--resume] [--out out/gpt.pt]

Shows the loss as it goes, and each --every steps the loss on text that was kept back and a sample of what the model
writes. There the model, the optimizer and all random numbers are saved in --out, as they are at the end and on Ctrl-C:
--resume goes on from it, as if nothing had been. --bf16 trains in bfloat16 autocast; --compile compiles the model by
torch.compile, which makes its own kernels in the place of rusttorch's; --stock trains with stock torch.
"""

import argparse
import contextlib
import math
import sysconfig
from pathlib import Path

import rusttorch
import torch
import torch.nn.functional as F
from torch import nn

CONTEXT = 128  # characters


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        n, length, width = x.shape
        q, k, v = self.qkv(x).view(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(n, length, width))


class Block(nn.Module):
    def __init__(self, width, heads, dropout):
        super().__init__()
        self.attention = nn.Sequential(nn.LayerNorm(width), Attention(width, heads), nn.Dropout(dropout))
        self.mlp = nn.Sequential(
            *(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU()),
            *(nn.Linear(4 * width, width), nn.Dropout(dropout)),
        )

    def forward(self, x):
        x = x + self.attention(x)
        return x + self.mlp(x)


class GPT(nn.Module):
    def __init__(self, vocabulary, width=256, layers=4, heads=4, dropout=0.1):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(CONTEXT, width)
        self.blocks = nn.Sequential(*(Block(width, heads, dropout) for _ in range(layers)))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, vocabulary))

    def forward(self, x):
        """Characters [N, T] to logits [N * T, vocabulary]."""
        x = self.tokens(x) + self.positions.weight[: x.shape[1]]
        return self.head(self.blocks(x)).flatten(0, 1)

    @torch.no_grad()
    def write(self, x, count, temperature=0.8):
        """So many more characters behind x, [1, T]."""
        training = self.training
        self.eval()
        for _ in range(count):
            logits = self(x[:, -CONTEXT:])[-1] / temperature
            x = torch.cat([x, torch.multinomial(logits.softmax(0), 1)[None]], 1)
        self.train(training)
        return x


def characters(files=()):
    """The files' characters as numbers, and all there are of them, in order; by default the standard library's."""
    files = files or sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:60]
    text = "".join(Path(path).read_text(encoding="utf-8", errors="ignore") for path in files)
    vocabulary = "".join(sorted(set(text)))
    number = {c: i for i, c in enumerate(vocabulary)}
    return torch.tensor([number[c] for c in text]), vocabulary


def batch(text, size, generator):
    """Windows of the text at random: [size, CONTEXT], and the characters behind each of theirs, flat."""
    at = torch.randint(len(text) - CONTEXT, (size, 1), generator=generator)
    window = text[at + torch.arange(CONTEXT + 1)]
    return window[:, :-1], window[:, 1:].flatten()


def rate(step, steps, warmup=100):
    """What the learning rate is multiplied by: up along a line, then down along a cosine to a tenth."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.55 + 0.45 * math.cos(math.pi * (step - warmup) / max(1, steps - warmup))


class Training:
    def __init__(self, options):
        self.options = options
        text, self.vocabulary = characters(options.files)
        if len(text) < 20 * CONTEXT:
            raise SystemExit(f"too little text: {len(text)} characters, where {20 * CONTEXT} are needed")
        kept_back = len(text) // 10
        self.text, self.other = text[:-kept_back], text[-kept_back:]
        torch.manual_seed(0)
        self.step, self.generator = 0, torch.Generator().manual_seed(0)
        self.model = GPT(len(self.vocabulary), options.width, options.layers)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, weight_decay=0.1, betas=(0.9, 0.95))
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: rate(step, options.steps))
        self.forward = torch.compile(self.model) if options.compile else self.model

    def loss(self, x, y):
        with torch.autocast("cpu", torch.bfloat16, enabled=self.options.bf16):
            return F.cross_entropy(self.forward(x), y)

    def train(self):
        """One step; its loss."""
        self.optimizer.zero_grad()
        loss = self.loss(*batch(self.text, self.options.batch, self.generator))
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.step += 1
        return loss.item()

    @torch.no_grad()
    def validate(self, batches=8):
        """The loss on the text that was kept back."""
        self.model.eval()
        generator = torch.Generator().manual_seed(1)
        losses = [self.loss(*batch(self.other, self.options.batch, generator)).item() for _ in range(batches)]
        self.model.train()
        return sum(losses) / batches

    def sample(self, count=200):
        with torch.random.fork_rng(devices=[]):
            x = self.model.write(self.other[None, :1], count)
        return "".join(self.vocabulary[i] for i in x[0].tolist())

    def parts(self):
        return {"model": self.model, "optimizer": self.optimizer, "schedule": self.schedule}

    def save(self):
        """Into another file first: one that is cut off leaves the last one whole."""
        path = self.options.out
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {name: part.state_dict() for name, part in self.parts().items()}
        numbers = {"of_batches": self.generator.get_state(), "of_dropout": torch.get_rng_state()}
        beside = path.with_suffix(".new")
        torch.save(state | numbers | {"step": self.step, "vocabulary": self.vocabulary}, beside)
        beside.replace(path)

    def resume(self):
        state = torch.load(self.options.out)
        if state["vocabulary"] != self.vocabulary:
            raise SystemExit(f"{self.options.out} is of other text")
        for name, part in self.parts().items():
            part.load_state_dict(state[name])
        self.generator.set_state(state["of_batches"])
        torch.set_rng_state(state["of_dropout"])
        self.step = state["step"]

    def run(self):
        from tqdm import tqdm  # here, since the bench has the model from this file, also where there is none

        options = self.options
        with tqdm(total=options.steps, initial=self.step, unit="step", mininterval=0.2) as bar:
            try:
                while self.step < options.steps:
                    bar.set_postfix(loss=f"{self.train():.3f}")
                    bar.update()
                    if self.step % options.every == 0 or self.step == options.steps:
                        bar.write(f"step {self.step}: {self.validate():.3f} on other text\n{self.sample()}\n")
                        self.save()
            except KeyboardInterrupt:
                bar.write(f"stopped at step {self.step}: --resume goes on")
                self.save()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="text to learn")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--width", type=int, default=256, help="a multiple of 4, the heads")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--every", type=int, default=250, help="steps between samples and files")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--stock", action="store_true")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("out/gpt.pt"))
    options = parser.parse_args()
    training = Training(options)
    if options.resume:
        training.resume()
    with contextlib.nullcontext() if options.stock else rusttorch.use():
        training.run()


if __name__ == "__main__":
    main()
