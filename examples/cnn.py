"""Trains a small ResNet on real handwritten digits with rusttorch.

    python examples/cnn.py [--epochs 15] [--stock] [--out out/cnn.png]

Digits are shifted by up to a pixel while training. Prints loss and test accuracy of every epoch, and saves a picture of
the test's digits that are mistaken, each with what it is taken for. --stock trains with stock torch.
"""

import argparse
import contextlib
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

BATCH = 64


def digits():
    """1,797 images of 1 x 8 x 8 pixels, in [0, 1]: (train x, test x, train y, test y)."""
    data = load_digits()
    x, y = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16, torch.tensor(data.target)
    return train_test_split(x, y, test_size=0.2, random_state=0, stratify=y)


class Block(nn.Module):
    """K. He et al., 2016: two convolutions beside a shortcut."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else nn.Identity()

    def forward(self, x):
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


def resnet(width=32):
    return nn.Sequential(
        *(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
        *(Block(width, width, 1), Block(width, 2 * width, 2)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 10)),
    )


def shifted(x):
    """Each batch moved by up to a pixel each way."""
    down, right = torch.randint(-1, 2, (2,)).tolist()
    return F.pad(x, (1, 1, 1, 1))[:, :, 1 + down : 9 + down, 1 + right : 9 + right]


def predict(model, x):
    model.eval()
    with torch.no_grad():
        return model(x).argmax(1)


def train(model, train_x, train_y, test_x, test_y, epochs):
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    steps = epochs * (len(train_x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=steps)
    with tqdm(total=steps, unit="step", mininterval=0.2) as bar:
        for epoch in range(epochs):
            model.train()
            for index in torch.randperm(len(train_x)).split(BATCH):
                if len(index) < BATCH:
                    continue
                loss = F.cross_entropy(model(shifted(train_x[index])), train_y[index])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update()
            accuracy = (predict(model, test_x) == test_y).float().mean().item()
            bar.write(f"epoch {epoch + 1:2d}   loss {loss.item():.4f}   test accuracy {accuracy:.2%}")


def draw_mistakes(path, x, y, found):
    wrong = (found != y).nonzero().flatten().tolist()[:12]
    figure, axes = plt.subplots(1, max(1, len(wrong)), figsize=(1.4 * max(2, len(wrong)), 2), squeeze=False)
    for axis in axes[0]:
        axis.axis("off")
    for axis, i in zip(axes[0], wrong, strict=False):
        axis.imshow(x[i, 0], cmap="gray_r")
        axis.set_title(f"{y[i]} as {found[i]}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, bbox_inches="tight")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--stock", action="store_true", help="stock torch")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("out/cnn.png"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    train_x, test_x, train_y, test_y = digits()
    model = resnet()
    if not options.stock:
        rusttorch.fuse_(model)
    with contextlib.nullcontext() if options.stock else rusttorch.use():
        train(model, train_x, train_y, test_x, test_y, options.epochs)
        found = predict(model, test_x)
    draw_mistakes(options.out, test_x, test_y, found)
    print(f"{(found != test_y).sum()} of {len(test_y)} are mistaken: {options.out}")


if __name__ == "__main__":
    main()
