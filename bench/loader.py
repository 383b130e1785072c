"""Batches from datasets: rusttorch.data.Loader against torch's DataLoader.

    python bench/loader.py [--workers 1 2] [--rounds 7] [--only NAME ...]

Both have the same dataset, as many workers, and two batches ahead for each; the DataLoader's are kept between epochs
(persistent_workers). An epoch of each in turns; a batch is read once, for its maximum. A line has the medians of the
samples per second, and of the paired ratios with their range.

jpeg       500 x 375 photographs in memory, decoded and resized to 224 (simplejpeg and OpenCV, else Pillow), uint8
jpeg float the same, converted to float and normalized
tensor     [3, 224, 224] floats in memory, normalized
table      a TensorDataset of 100,000 rows of 20, in batches of 1,024
python     some 200 us of Python for each sample, which threads cannot share
"""

import argparse
import importlib.util
import io
import platform
import statistics
import time
from pathlib import Path

import torch
from rusttorch.data import Loader
from torch.utils.data import DataLoader, Dataset, TensorDataset


def photographs(n):
    """JPEG files of 500 x 375: smooth colours, edges and noise, about as large as a photograph's."""
    import numpy as np
    from PIL import Image

    rng, files = np.random.default_rng(0), []
    for _ in range(n):
        small = Image.fromarray(rng.integers(0, 256, (38, 50, 3), dtype=np.uint8))
        pixels = np.asarray(small.resize((500, 375), Image.BICUBIC)) + rng.normal(0, 6, (375, 500, 3))
        file = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=85)
        files.append(file.getvalue())
    return files


def decoder():
    """bytes -> uint8 [224, 224, 3]"""
    import numpy as np

    if importlib.util.find_spec("simplejpeg") and importlib.util.find_spec("cv2"):
        import cv2
        import simplejpeg

        cv2.setNumThreads(1)  # as in the DataLoader's workers
        return lambda file: cv2.resize(simplejpeg.decode_jpeg(file), (224, 224))
    from PIL import Image

    return lambda file: np.array(Image.open(io.BytesIO(file)).convert("RGB").resize((224, 224), Image.BILINEAR))


class Samples(Dataset):
    """n of them, each made of one of the sources."""

    def __init__(self, n, sources, make):
        self.n, self.sources, self.make = n, sources, make

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        return self.make(self.sources[i % len(self.sources)]), i


def datasets():
    """By name: what makes the dataset, and the batch size."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)

    def jpeg():
        decode = decoder()
        return Samples(512, photographs(32), lambda file: torch.from_numpy(decode(file)).permute(2, 0, 1))

    def jpeg_float():
        made = jpeg()
        decode = made.make
        made.make = lambda file: decode(file).float().div_(255).sub_(mean).div_(std)
        return made

    def work(numbers):
        return sum(n * n % 7 for n in numbers)

    return {
        "jpeg": (jpeg, 64),
        "jpeg float": (jpeg_float, 64),
        "tensor": (lambda: Samples(1024, torch.rand(64, 3, 224, 224), lambda x: (x - mean) / std), 64),
        "table": (lambda: TensorDataset(torch.rand(100_000, 20), torch.rand(100_000)), 1024),
        "python": (lambda: Samples(4096, [range(3000)], work), 64),
    }


def epoch(loader, n):
    """Samples per second."""
    begin, count = time.perf_counter(), 0
    for values, _ in loader:
        values.amax()
        count += len(values)
    assert count == n
    return n / (time.perf_counter() - begin)


def cpu():
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", nargs="+", choices=datasets())
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{cpu()}, torch {torch.__version__}\n| dataset | workers | DataLoader, samples/s | Loader | ratio |")
    print("|---|---|---|---|---|")
    for name in options.only or datasets():
        make, size = datasets()[name]
        dataset = make()
        for workers in options.workers:
            stock = DataLoader(dataset, size, num_workers=workers, persistent_workers=True)
            ours = Loader(dataset, size, workers=workers)
            epochs = [[epoch(loader, len(dataset)) for loader in (stock, ours)] for _ in range(options.rounds + 1)][1:]
            del stock
            medians = [statistics.median(speeds) for speeds in zip(*epochs, strict=True)]
            ratios = sorted(b / a for a, b in epochs)
            print(
                f"| {name} | {workers} | {medians[0]:,.0f} | {medians[1]:,.0f} "
                f"| {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) |",
                flush=True,
            )


if __name__ == "__main__":
    main()
