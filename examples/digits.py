"""Trains an MLP with Mish on real handwritten digits, stock torch against rusttorch.

    python examples/digits.py [--out out/digits.png]

Prints what the swap is worth (an A/B over interleaved steps), what each swapped op takes of a step, and the test
accuracy of a model trained by each. Saves a picture: the loss curves of both, and their step times.
"""

import argparse
from pathlib import Path

import matplotlib
import rusttorch
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from tqdm import tqdm

matplotlib.use("Agg")
from matplotlib import pyplot as plt

BATCH = 128


def digits():
    """1,797 images of 8 x 8 pixels, scaled to [0, 1]: (train x, test x, train y, test y)."""
    data = load_digits()
    x = torch.tensor(data.data, dtype=torch.float32) / 16
    y = torch.tensor(data.target)
    return train_test_split(x, y, test_size=0.2, random_state=0, stratify=y)


def make_model(seed):
    torch.manual_seed(seed)
    model = nn.Sequential(
        *(nn.Linear(64, 256), nn.Mish()),
        *(nn.Linear(256, 256), nn.Mish()),
        *(nn.Linear(256, 256), nn.Mish()),
        nn.Linear(256, 10),
    )
    return model, torch.optim.Adam(model.parameters(), lr=1e-3)


def batches(x, y, steps, seed, description):
    generator = torch.Generator().manual_seed(seed)
    bar = tqdm(total=steps, desc=description, unit="step", mininterval=0.2)
    while bar.n < steps:
        for index in torch.randperm(len(x), generator=generator).split(BATCH):
            if len(index) == BATCH and bar.n < steps:
                yield x[index], y[index]
                bar.update()
    bar.close()


def train_step(model, optimizer, x, y):
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    return loss.detach()


def accuracy(model, x, y):
    with torch.no_grad():
        return (model(x).argmax(1) == y).float().mean().item()


def measure(x, y, steps):
    """One training run whose steps alternate between the arms."""
    model, optimizer = make_model(seed=0)
    ab = rusttorch.AB()
    for bx, by in batches(x, y, steps, seed=0, description="A/B, interleaved"):
        with ab.step(samples=BATCH) as step:
            step.loss = train_step(model, optimizer, bx, by)
    profile = ab.profile(lambda: train_step(model, optimizer, bx, by))
    return ab, ab.report(), profile


def train(x, y, steps, description):
    """A run of its own: the model and the loss of every step."""
    model, optimizer = make_model(seed=1)
    losses = [train_step(model, optimizer, bx, by).item() for bx, by in batches(x, y, steps, 1, description)]
    return model, losses


def draw(path, losses, ab, report):
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    left.plot(losses["stock"], label="stock torch", linewidth=3, alpha=0.5)
    left.plot(losses["swapped"], label="rusttorch", linewidth=1, color="black")
    left.set(xlabel="step", ylabel="loss", yscale="log", title="Loss of two runs with the same seed")
    left.legend()
    times = {arm: [t * 1e3 for t in ab.times(arm)] for arm in ("stock", "swapped")}
    longest = 1.5 * max(report.median.values()) * 1e3
    for arm, label in (("stock", "stock torch"), ("swapped", "rusttorch")):
        right.hist(times[arm], bins=80, range=(0, longest), alpha=0.6, label=label)
        right.axvline(report.median[arm] * 1e3, color="black", linewidth=0.8, linestyle="--")
    low, high = report.interval
    right.set(xlabel="ms per step", ylabel="steps", title=f"{report.speedup:.2f}x  [{low:.2f}, {high:.2f}]")
    right.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=1600, help="of the A/B; each run of its own takes a quarter")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("out/digits.png"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    train_x, test_x, train_y, test_y = digits()
    ab, report, profile = measure(train_x, train_y, options.steps)
    models, losses = {}, {}
    models["stock"], losses["stock"] = train(train_x, train_y, options.steps // 4, "stock torch")
    with rusttorch.use():
        models["swapped"], losses["swapped"] = train(train_x, train_y, options.steps // 4, "rusttorch")

    print(f"\n{report}\n\nper step, under the profiler:\n{profile}\n")
    for arm, model in models.items():
        print(f"test accuracy  {arm:8s} {accuracy(model, test_x, test_y):.2%}")
    apart = max(abs(a - b) / max(a, b) for a, b in zip(losses["stock"], losses["swapped"], strict=True))
    print(f"losses of the two runs, at most {apart:.1e} of their size apart over {len(losses['stock'])} steps")
    draw(options.out, losses, ab, report)
    print(f"picture        {options.out}")


if __name__ == "__main__":
    main()
