"""The tests run where RUSTTORCH_DEVICE says, on the CPU if it says nothing: what they make is made there."""

import importlib.util
import os
import random
import sys
from pathlib import Path

import pytest
import rusttorch
import torch

sys.path.insert(0, str(Path(__file__).parent))

if importlib.util.find_spec("hypothesis"):
    from hypothesis import settings

    settings.register_profile("default", max_examples=200, derandomize=True)  # the same in each run
    settings.register_profile("full", max_examples=20_000)

if importlib.util.find_spec("expecttest") is None:
    torch.library.opcheck = lambda *args, **kwargs: pytest.skip("torch.library.opcheck needs expecttest")

# Whose models it fuses: what the Makefile installs, and a machine with a GPU may lack.
collect_ignore = [] if importlib.util.find_spec("transformers") else ["test_fuse_transformers.py"]

DEVICE = torch.device(os.environ.get("RUSTTORCH_DEVICE", "cpu"))
if "RUSTTORCH_DEVICE" in os.environ:
    torch.set_default_device(DEVICE)

# What is about the CPU, by a part of a test's name.
OF_THE_CPU = {
    "test_memory.py": "the CPU's memory pool",
    "test_math.py": "the CPU's elementary functions",
    "test_compat.py": "the CPU's constructors",
    "test_fuzz.py": "classes and indices that are none: an assertion on a device, after which it is of no use",
    "test_gpu_tool.py": "what runs these tests",
    "test_csv.py": "files into the CPU's tensors",
    "test_image.py": "images are where they were decoded",
    "test_loader.py": "the CPU's threads",
    "test_tabular.py": "functions of torch's ops",
    "test_examples.py": "scripts for the CPU",
    "test_dropout.py": "the CPU's random numbers; a device has stock's dropout",
    "test_matmul.py": "the CPU's kernels; a device has cuBLAS's",
    "test_attention.py": "the CPU's kernels; a device has stock's",
    "[attention_": "the CPU's kernels; a device has stock's",
    **{
        f"test_{name}.py": "batches of images are changed on the CPU only"
        for name in ("color", "warp", "crop", "filter", "transforms")
    },
    "_images]": "batches of images are changed on the CPU only",
    "_images_]": "batches of images are changed on the CPU only",
    "images_to_batch": "images are where they were decoded",
    "test_recurrent.py": "the CPU's kernels; a device has cuDNN's",
    "[rnn_layer_forward]": "the CPU's kernels; a device has cuDNN's",
    "[_fused_add_": "the CPU's kernels; on a device sums and their norms are made of other ops",
    "test_a_linear_kernel_runs": "the CPU's kernels; a device has cuBLAS's",
    "threads": "the CPU's threads",
    "_errors": "what the CPU refuses by an exception, a device refuses by an assertion, after which it is of no use",
    "test_a_list_runs_here_or_in_stock_as_a_whole": "lists of tensors are stock's on a device",
    "test_stock_clips_through_our_kernels": "lists of tensors are stock's on a device",
    "test_zero_grad_of_a_fused_optimizer": "lists of tensors are stock's on a device",
    "test_data_loader_workers_may_be_forked": "a process that has used a device cannot be forked",
    "test_sizes_at_which_stock_is_faster": "the CPU's sizes",
    "test_what_ran": "a device has layer norms of 16 bits too",
    "test_gelu_at_infinity_is_its_limit": "the CPU's gelu",
    "test_powers_err_little_more_than_their_rounding": "the CPU's pow; a device's is its own library's",
    "test_exponents_are_rounded_as_stock_rounds_them": "the CPU's pow; a device's is its own library's",
    "test_inputs_of_16_bits_may_be_changed": "what stock keeps of them on the CPU; on a device it keeps the tensor",
    "test_labels_changed_after_forward": "labels out of range: an assertion on a device, after which it is of no use",
    "test_members_that_share_memory": "lists of tensors are stock's on a device, where the members race",
    "test_indices_from_elsewhere": "a device asks the windows that have an element, as stock's max_pool2d does there",
    "a view that is negated when it is read": "torch.optim's steps refuse it on a device",
    "test_long_sum_errs_no_more_than_stock[(1000003,)]": "a device's long rows are stock's, and err by chance",
    "unscaled[Adagrad]": "torch has no fused Adagrad for CUDA",
}


@pytest.fixture
def take_all():
    """Our kernels run where stock's are faster, too."""
    rusttorch._C.take_all(True)
    yield
    rusttorch._C.take_all(False)


def pytest_addoption(parser):
    parser.addoption("--one-in", type=int, default=1, metavar="N", help="runs one test in N, others each time")
    parser.addoption("--draw", type=int, metavar="SEED", help="which those are")


def pytest_configure(config):
    if hasattr(config, "workerinput"):  # one of pytest-xdist's workers, which all run what was drawn once
        config.option.draw = config.workerinput["draw"]
    elif config.option.draw is None:
        config.option.draw = random.randrange(10**6)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node):
    node.workerinput["draw"] = node.config.option.draw


def pytest_terminal_summary(terminalreporter, config):
    n, seed = config.getoption("one_in"), config.getoption("draw")
    if n > 1:
        terminalreporter.write_line(f"one test in {n}; the same again: --one-in {n} --draw {seed}")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    n, seed = config.getoption("one_in"), config.getoption("draw")
    if n > 1:
        drawn = random.Random(seed).sample(range(len(items)), -(-len(items) // n))
        items[:] = [items[i] for i in sorted(drawn)]
    for item in items if DEVICE.type != "cpu" else ():
        for part, why in OF_THE_CPU.items():
            if part in item.nodeid:
                item.add_marker(pytest.mark.skip(reason=why))
