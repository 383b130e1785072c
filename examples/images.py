"""Trains a small ResNet on a folder of JPEGs, which rusttorch.data decodes, cuts, changes and makes batches of.

    python examples/images.py [--folder FOLDER] [--epochs 8] [--workers 2] [--ab 96] [--out out/images.png]

The images are FOLDER/CLASS/NAME.jpg. If there is no such folder it is made: scikit-learn's handwritten digits, each on
a part of one of its photographs; the class is the digit. Prints loss, test accuracy and the time spent on waiting for
data of every epoch, and saves a picture of images that are mistaken, each with what it is taken for.

--ab N then trains N more steps, every other by stock torch from batches of its DataLoader (Pillow and torch's ops), and
says what that is worth; and the same without loading.
"""

import argparse
import itertools
import time
from pathlib import Path

import matplotlib
import numpy as np
import rusttorch
import torch
import torch.nn.functional as F
from cnn import Block
from PIL import Image
from rusttorch.data import ImageFolder, Loader, images_to_batch, train_val_test_split
from rusttorch.data.transforms import ColorJitter, Compose, Normalize, RandomRotation
from sklearn.datasets import load_digits, load_sample_images
from torch import nn
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

matplotlib.use("Agg")
from matplotlib import pyplot as plt

BATCH, SIDE = 32, 48
NORMALIZE = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def make_folder(folder):
    """1,797 JPEGs of 320 x 240 pixels."""
    random = np.random.default_rng(0)
    photographs = [Image.fromarray(picture // 2) for picture in load_sample_images().images]
    digits = load_digits()
    for k, (digit, label) in enumerate(zip(tqdm(digits.images, "making images"), digits.target, strict=True)):
        photograph = photographs[random.integers(len(photographs))]
        left, top = random.integers(photograph.width - 320), random.integers(photograph.height - 240)
        image = photograph.crop((left, top, left + 320, top + 240))
        side = int(random.integers(160, 220))
        ink = Image.fromarray((digit * 255 / 16).astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
        color = tuple(random.integers(150, 256, 3).tolist())
        image.paste(color, (int(random.integers(321 - side)), int(random.integers(241 - side))), ink)
        path = folder / str(label) / f"{k:04}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, quality=90)


def boxes_in(images, generator):
    """Of each image (top, left, height, width) of nine tenths of its sides, at random."""
    sides = torch.tensor([image.shape[:2] for image in images])
    inner = sides * 9 // 10
    return torch.cat([(torch.rand(len(images), 2, generator=generator) * (sides - inner + 1)).long(), inner], 1)


def network(classes):
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, 2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        *(Block(16, 32, 2), Block(32, 64, 2), Block(64, 64, 1)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes)),
    )


class Training:
    """What Loader's transform does with a list of samples, of which each is an image and its label."""

    changes = Compose([ColorJitter(0.3, 0.3, 0.3), RandomRotation(10, "bilinear"), Normalize(**NORMALIZE)])

    def __call__(self, samples, generator):
        images, labels = zip(*samples, strict=True)
        batch = images_to_batch(images, SIDE, boxes=boxes_in(images, generator), dtype=torch.uint8)
        return self.changes(batch, generator), torch.tensor(labels)


def whole(samples, generator):
    """The same for testing, where nothing is random."""
    images, labels = zip(*samples, strict=True)
    return images_to_batch(images, SIDE, **NORMALIZE), torch.tensor(labels)


def cut(samples, generator):
    """The same for the A/B, without what Pillow and torch have no op for."""
    images, labels = zip(*samples, strict=True)
    return images_to_batch(images, SIDE, boxes=boxes_in(images, generator), **NORMALIZE), torch.tensor(labels)


class StockFolder(ImageFolder):
    """As cut(), by Pillow and torch: one image at a time."""

    def __getitem__(self, i):
        image = Image.open(self.paths[i]).convert("RGB")
        (top, left, height, width), *_ = boxes_in([np.asarray(image)], None).tolist()
        image = image.resize((SIDE, SIDE), Image.Resampling.BILINEAR, (left, top, left + width, top + height))
        x = torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div(255)
        mean, std = (torch.tensor(NORMALIZE[name])[:, None, None] for name in ("mean", "std"))
        return (x - mean) / std, self.labels[i]


def step(model, optimizer, x, y):
    loss = F.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss


def test(model, loader):
    """What each test image is taken for, and what it is."""
    model.eval()
    with torch.no_grad():
        found = [(model(x).argmax(1), y) for x, y in loader]
    model.train()
    return (torch.cat(part) for part in zip(*found, strict=True))


def train(model, optimizer, loader, test_loader, epochs):
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=epochs * len(loader))
    with tqdm(total=epochs * len(loader), unit="step", mininterval=0.2) as bar:
        for epoch in range(epochs):
            begin, waited, batches = time.perf_counter(), 0.0, iter(loader)
            for _ in range(len(loader)):
                asked = time.perf_counter()
                x, y = next(batches)
                waited += time.perf_counter() - asked
                loss = step(model, optimizer, x, y)
                schedule.step()
                bar.update()
            took = time.perf_counter() - begin
            found, right = test(model, test_loader)
            bar.write(
                f"epoch {epoch + 1:2d}   loss {loss.item():.4f}   test accuracy {(found == right).float().mean():.2%}"
                f"   {took:.1f} s, {waited / took:.0%} of it waiting for data"
            )


def compare(model, optimizer, ours, stock, steps):
    """The A/B of whole steps, and of steps on a batch that is there."""
    batches = {"swapped": endless(ours), "stock": endless(stock)}
    x, y = next(batches["swapped"])
    for title, is_loading in (("with loading", True), ("without", False)):
        ab = rusttorch.AB(pool=True)
        for _ in tqdm(range(steps), title):
            with ab.step(samples=BATCH) as this:
                if is_loading:
                    x, y = next(batches[this.arm])
                this.loss = step(model, optimizer, x, y)
        print(f"\n{title}:\n{ab.report()}")


def endless(loader):
    return itertools.chain.from_iterable(itertools.repeat(loader))


def draw_mistakes(path, dataset, indices, found, right):
    wrong = (found != right).nonzero().flatten().tolist()[:8]
    figure, axes = plt.subplots(1, max(1, len(wrong)), figsize=(1.8 * max(2, len(wrong)), 2), squeeze=False)
    for axis in axes[0]:
        axis.axis("off")
    for axis, i in zip(axes[0], wrong, strict=False):
        image, label = dataset[indices[i]]
        axis.imshow(image)
        axis.set_title(f"{dataset.classes[label]} as {dataset.classes[found[i]]}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, bbox_inches="tight")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("out/images"))
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--ab", type=int, default=0, metavar="N", help="then measure N steps")
    parser.add_argument("--out", type=Path, default=Path("out/images.png"))
    options = parser.parse_args()
    if 0 < options.ab < 72:
        parser.error("--ab: rusttorch.AB needs at least 72 steps")
    torch.set_num_threads(1)
    torch.manual_seed(0)

    if not options.folder.exists():
        make_folder(options.folder)
    dataset = ImageFolder(options.folder, size=SIDE)
    everything = torch.arange(len(dataset))
    parts = train_val_test_split(everything, train_ratio=0.8, val_ratio=0, stratify=torch.tensor(dataset.labels))
    train_set, _, test_set = (Subset(dataset, part.tolist()) for part in parts)
    threads = {"workers": options.workers, "collate": list}
    test_loader = Loader(test_set, 64, transform=whole, **threads)
    loader = Loader(train_set, BATCH, shuffle=True, drop_last=True, transform=Training(), **threads)

    model = network(len(dataset.classes))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    with rusttorch.use():
        train(model, optimizer, loader, test_loader, options.epochs)
        found, right = test(model, test_loader)
    draw_mistakes(options.out, dataset, test_set.indices, found, right)
    print(f"{(found != right).sum()} of {len(right)} are mistaken: {options.out}")

    if options.ab:
        ours = Loader(train_set, BATCH, shuffle=True, drop_last=True, transform=cut, **threads)
        stock_set = Subset(StockFolder(options.folder), train_set.indices)
        stock = DataLoader(stock_set, BATCH, shuffle=True, drop_last=True, num_workers=options.workers)
        compare(model, optimizer, ours, stock, options.ab)


if __name__ == "__main__":
    main()
