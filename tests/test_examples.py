"""Examples: gpt.py goes on from its file as if nothing had been; images.py. (CI runs digits.py.)"""

import importlib.util
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import rusttorch
import torch
from PIL import Image
from rusttorch.data import ImageFolder

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
sys.path.insert(0, str(EXAMPLES))
import gpt  # noqa: E402, from the path above


@pytest.mark.parametrize("bf16", (False, True))
def test_gpt_resumes(tmp_path, bf16):
    def training(name):
        sizes = {"steps": 30, "batch": 4, "width": 32, "layers": 1}
        return gpt.Training(Namespace(files=(gpt.__file__,), bf16=bf16, compile=False, out=tmp_path / name, **sizes))

    with rusttorch.use():
        straight = training("whole.pt")
        losses = [straight.train() for _ in range(20)]
        first = training("half.pt")
        found = [first.train() for _ in range(10)]
        first.validate(), first.sample(5)
        first.save()
        torch.manual_seed(9)
        second = training("half.pt")
        second.resume()
        found += [second.train() for _ in range(10)]
    assert found == losses and losses[-1] < losses[0]


def test_gpt_as_a_script(tmp_path):
    out = tmp_path / "gpt.pt"
    command = [sys.executable, EXAMPLES / "gpt.py", gpt.__file__, "--steps", "4", "--every", "2", "--out", out]
    small = ["--batch", "2", "--width", "16", "--layers", "1"]
    result = subprocess.run([*command, *small], capture_output=True, text=True, check=True)
    assert "step 2:" in result.stdout and "step 4:" in result.stdout and torch.load(out)["step"] == 4
    again = subprocess.run([*command, *small, "--resume", "--stock"], capture_output=True, text=True, check=True)
    assert "step" not in again.stdout


def test_images(tmp_path):
    """Ours and stock's way to a batch agree, and the script runs on a folder of somebody's."""
    spec = importlib.util.spec_from_file_location("example", EXAMPLES / "images.py")  # tests have images.py, too
    images = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(images)
    folder, generator = tmp_path / "images", torch.Generator().manual_seed(0)
    for k in range(60):
        path = folder / "abc"[k % 3] / f"{k}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = torch.randint(256, (9, 12, 3), generator=generator, dtype=torch.uint8).numpy()
        Image.fromarray(picture).resize((80 + k, 60)).save(path)
    for k in range(0, 60, 7):
        stock, label = (torch.manual_seed(k), images.StockFolder(folder)[k])[1]
        ours, labels = images.cut([ImageFolder(folder)[k]], torch.Generator().manual_seed(k))
        assert labels.item() == label and (ours[0] - stock).abs().max() < 1.5 / 255 / 0.22
    command = [sys.executable, EXAMPLES / "images.py", "--folder", folder, "--epochs", "2", "--workers", "1"]
    result = subprocess.run([*command, "--out", tmp_path / "out.png"], capture_output=True, text=True, check=True)
    assert "epoch  2" in result.stdout and "of 12 are mistaken" in result.stdout and (tmp_path / "out.png").exists()
