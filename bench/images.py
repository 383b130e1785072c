"""From JPEGs to a normalized batch: rusttorch.data against Pillow and OpenCV with torch ops, on one core.

    taskset -c 1 python bench/images.py [--rounds 15] [--batch 16] [--sizes 500x375 1920x1440]

The JPEGs are scikit-learn's two pictures at each size, quality 90, in memory. An arm decodes a batch of them, resizes
to 224 x 224 by the bilinear filter, and makes float32 [N, 3, 224, 224] of it, less the mean and over the deviation. All
arms run in turns, with the memory pool; a line has the median time of an image, images a second, and how many times as
long as rusttorch it takes (the median over rounds).

    whole     of all of the image. rusttorch's decoder is told that 224 x 224 are enough (read_image's size);
              "all pixels": it is not
    crop      of a box for each image, as RandomResizedCrop draws it. rusttorch's decoder is told how many pixels are
              enough for the box to have 224 x 224
    decoded   what comes after decoding, alone, of all of the image and of a box

Pillow's filter and rusttorch's are antialiased; OpenCV's INTER_AREA is where it shrinks, INTER_LINEAR is not.
"""

import argparse
import io
import math
import random
import statistics
import time
from pathlib import Path

import cv2
import numpy as np
import rusttorch
import torch
from PIL import Image
from rusttorch.data import images_to_batch, read_image
from sklearn.datasets import load_sample_images

SIDE = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
COLUMN_MEAN, COLUMN_STD = (torch.tensor(x).view(3, 1, 1) for x in (MEAN, STD))


def jpegs(width, height):
    encoded = []
    for picture in load_sample_images().images:
        file = io.BytesIO()
        Image.fromarray(picture).resize((width, height), Image.BICUBIC).save(file, "JPEG", quality=90)
        encoded.append(file.getvalue())
    return encoded


def a_box(draw, height, width):
    """(top, left, height, width), as RandomResizedCrop's: 0.08 to 1 of the area, sides as 3:4 to 4:3."""
    while True:
        area, ratio = height * width * draw.uniform(0.08, 1), math.exp(draw.uniform(math.log(3 / 4), math.log(4 / 3)))
        h, w = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < h <= height and 0 < w <= width:
            return draw.randint(0, height - h), draw.randint(0, width - w), h, w


def batch_by_torch(arrays):
    """As torchvision's ToTensor and Normalize do, and the collation."""
    each = (torch.from_numpy(a).permute(2, 0, 1).float().div(255).sub(COLUMN_MEAN).div(COLUMN_STD) for a in arrays)
    return torch.stack(list(each))


def by_pillow(pictures, boxes):
    def resized(picture, box):
        top, left, height, width = box
        return np.array(picture.resize((SIDE, SIDE), Image.BILINEAR, box=(left, top, left + width, top + height)))

    return batch_by_torch(resized(*each) for each in zip(pictures, boxes, strict=True))


def by_opencv(how):
    def batch(arrays, boxes):
        def resized(array, box):
            top, left, height, width = box
            return cv2.resize(array[top : top + height, left : left + width], (SIDE, SIDE), interpolation=how)

        return batch_by_torch(resized(*each) for each in zip(arrays, boxes, strict=True))

    return batch


def by_rusttorch(pictures, boxes):
    return images_to_batch(pictures, SIDE, boxes=torch.tensor(boxes), mean=MEAN, std=STD)


def pillow_image(data):
    return Image.open(io.BytesIO(data)).convert("RGB")


def opencv_image(data):
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)


def just_enough(data, box, height, width):
    """An image in which the box has SIDE x SIDE pixels, if it has in the file, and the box there."""
    least = (math.ceil(SIDE * height / box[2]), math.ceil(SIDE * width / box[3]))
    picture = read_image(data, size=least)
    by = picture.shape[0] / height
    top, left, bottom, right = (round(n * by) for n in (box[0], box[1], box[0] + box[2], box[1] + box[3]))
    bottom, right = min(bottom, picture.shape[0]), min(right, picture.shape[1])
    return picture, (top, left, bottom - top, right - left)


def arms(data, boxes, height, width):
    """{part: {name: a function that makes the batch}}."""
    all_of_it = [(0, 0, height, width)] * len(data)

    def told(boxes):
        return by_rusttorch(
            *zip(*(just_enough(d, b, height, width) for d, b in zip(data, boxes, strict=True)), strict=True)
        )

    def others(boxes):
        return {
            "Pillow": lambda: by_pillow([pillow_image(d) for d in data], boxes),
            "OpenCV, area": lambda: by_opencv(cv2.INTER_AREA)([opencv_image(d) for d in data], boxes),
            "OpenCV, linear": lambda: by_opencv(cv2.INTER_LINEAR)([opencv_image(d) for d in data], boxes),
            "rusttorch, all pixels": lambda: by_rusttorch([read_image(d) for d in data], boxes),
        }

    pictures, arrays = [pillow_image(d) for d in data], [opencv_image(d) for d in data]
    tensors = [torch.from_numpy(a) for a in arrays]

    def decoded(boxes):
        return {
            "rusttorch": lambda: by_rusttorch(tensors, boxes),
            "Pillow": lambda: by_pillow(pictures, boxes),
            "OpenCV, area": lambda: by_opencv(cv2.INTER_AREA)(arrays, boxes),
            "OpenCV, linear": lambda: by_opencv(cv2.INTER_LINEAR)(arrays, boxes),
        }

    return {
        "whole": {"rusttorch": lambda: told(all_of_it)} | others(all_of_it),
        "crop": {"rusttorch": lambda: told(boxes)} | others(boxes),
        "decoded, whole": decoded(all_of_it),
        "decoded, crop": decoded(boxes),
    }


def timed(f):
    begin = time.perf_counter()
    f()
    return time.perf_counter() - begin


def cpu():
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "unknown CPU")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--sizes", nargs="+", default=["500x375", "1920x1440"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    rusttorch.memory.enable_pool()
    level = torch.backends.cpu.get_cpu_capability()
    print(f"{cpu()}, {level}, torch {torch.__version__}, Pillow {Image.__version__}, OpenCV {cv2.__version__}")
    for size in options.sizes:
        width, height = map(int, size.split("x"))
        draw = random.Random(0)
        data = (jpegs(width, height) * options.batch)[: options.batch]
        boxes = [a_box(draw, height, width) for _ in data]
        for part, by_name in arms(data, boxes, height, width).items():
            rounds = [{name: timed(f) for name, f in by_name.items()} for _ in range(options.rounds + 1)][1:]
            print(f"{size}, {part}", flush=True)
            for name in by_name:
                each = statistics.median(times[name] for times in rounds) / len(data)
                ratio = statistics.median(times[name] / times["rusttorch"] for times in rounds)
                print(f"  {name:22} {each * 1e6:7.0f} us {1 / each:7.0f} images/s  {ratio:5.2f}", flush=True)


if __name__ == "__main__":
    main()
