"""Every op is there for a GPU: read from the dispatcher where the build has CUDA, else from the sources."""

import re
from pathlib import Path

import pytest
import rusttorch
import torch
from rusttorch import _build

ROOT = Path(__file__).resolve().parent.parent
# Families of kernels that a device has no table of:
STOCK_S = {"dropout": "stock's kernel runs, with the device's own random numbers"}
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
    declaration = r"RUSTTORCH_DECLARE_FAMILY(?:_OF\(\w+, |\()(\w+),"
    declared = {
        family
        for header in (ROOT / "csrc" / "kernels").glob("*.h")
        for family in re.findall(declaration, header.read_text())
        if family != "family"
    }
    tables = set(
        re.findall(r"^RUSTTORCH_TABLE\((\w+),", (ROOT / "csrc_cuda" / "register.cpp").read_text(), re.MULTILINE)
    )
    assert declared - tables == set(STOCK_S)
