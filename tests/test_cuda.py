"""Every op is there for a GPU: read from the dispatcher where the build has CUDA, else from the sources."""

import re
from pathlib import Path

import pytest
import rusttorch
import torch
from rusttorch import _build

ROOT = Path(__file__).resolve().parent.parent
# Families of kernels that a device has no table of:
STOCK_S = {
    "convolution": "cuDNN runs, through aten",
    "dropout": "stock's kernel runs, with the device's own random numbers",
    "matmul": "cuBLAS runs, through aten",
    "embedding": "stock's kernels run",
    "scatter": "stock's kernels run",
    "attention": "stock's kernels run",
    "recurrent": "cuDNN runs, through aten",
    "image": "none: images are where they were decoded",
    **dict.fromkeys(
        ("color", "normalize", "mix", "warp", "crop", "filter"), "batches of images are changed on the CPU only"
    ),
}
KEYS = ("CPU", "CUDA") if _build.CUDA else ("CPU",)


@pytest.mark.parametrize("key", KEYS)
def test_every_op_is_registered(key):
    def has(op, key):
        return torch._C._dispatch_has_kernel_for_dispatch_key(f"rusttorch::{op.name}", key)

    missing = [op.name for op in rusttorch.ops() if not has(op, key) and not has(op, "CompositeImplicitAutograd")]
    assert not missing


def test_what_is_registered_for_the_cpu_is_for_cuda():
    text = (ROOT / "csrc" / "swap.cpp").read_text()
    at = dict(re.findall(r"TORCH_LIBRARY_IMPL\(rusttorch, (\w+), m\) \{ (.*?) \}", text))
    assert at["CUDA"] == at["CPU"]


def test_every_family_of_kernels_has_a_table_for_a_device():
    """But those that say whose a device's are."""
    lists = (ROOT / "csrc" / "families.h").read_text().split("#define ")
    tables = {text.split("(")[0]: set(re.findall(r"X\((\w+), \w+\)", text)) for text in lists}
    headers = (header.read_text() for header in (ROOT / "csrc" / "kernels").glob("*.h"))
    declared = {family for text in headers for family in re.findall(r"^RUSTTORCH_DECLARE_FAMILY\((\w+),", text, re.M)}
    assert tables["RUSTTORCH_CPU_TABLES"] == set(STOCK_S)
    assert tables["RUSTTORCH_DEVICE_TABLES"] | set(STOCK_S) == declared


def test_kernels_know_no_torch():
    """No header of torch's, directly or through another, under csrc/kernels and csrc_cuda/kernels."""
    folders = (ROOT / "csrc" / "kernels", ROOT / "csrc_cuda" / "kernels")
    for source in (f for folder in folders for f in folder.iterdir()):
        for name in re.findall(r'^#\s*include ["<](.*)[">]', source.read_text(), re.M):
            here = (source.parent / name).resolve()
            assert here.parent in folders if here.exists() else not name.startswith(("ATen", "c10", "torch")), source
