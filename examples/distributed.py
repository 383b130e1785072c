"""Trains a model on real handwritten digits in several processes, by DDP or FSDP2, stock torch against rusttorch.

    python examples/distributed.py [--processes 2] [--fsdp] [--steps 100]
    torchrun --nproc-per-node 2 examples/distributed.py [--fsdp] [--steps 100]

Every process has a part of each batch, and they add up their gradients over gloo. Both runs start from one seed: the
losses of every tenth step are printed side by side, and the median time of a step. In the second run rusttorch's ops
and its memory pool are switched on, in every process; the script says how often its kernels ran in one of them.
"""

import argparse
import os
import statistics
import tempfile
import time
from datetime import timedelta

import rusttorch
import torch
import torch.distributed as dist
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

BATCH, WIDTH = 256, 512  # of all processes together


def digits():
    """1,797 images of 8 x 8 pixels, scaled to [0, 1], and what they show."""
    data = load_digits()
    return torch.tensor(data.data, dtype=torch.float32) / 16, torch.tensor(data.target)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))

    def forward(self, x):
        return x + self.layers(x)


def make_model(fsdp):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, WIDTH), Block(), Block(), nn.Linear(WIDTH, 10))
    if not fsdp:
        return DistributedDataParallel(model)
    for block in model[1:3]:
        fully_shard(block)
    return fully_shard(model)


def train(options):
    """A run of its own: the loss of every step, averaged over the processes, and the seconds that each took."""
    model = make_model(options.fsdp)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    x, y = digits()
    generator = torch.Generator().manual_seed(0)
    losses, times = [], []
    for _ in range(options.steps):
        mine = torch.randperm(len(x), generator=generator)[:BATCH][dist.get_rank() :: dist.get_world_size()]
        start = time.perf_counter()
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x[mine]), y[mine])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        times.append(time.perf_counter() - start)
        mean = loss.detach() / dist.get_world_size()
        dist.all_reduce(mean)
        losses.append(mean.item())
    return losses, times


def run(options):
    """Both runs, in each of the processes; the first one prints."""
    torch.set_num_threads(max(1, os.cpu_count() // dist.get_world_size()))
    losses, times = {}, {}
    losses["stock"], times["stock"] = train(options)

    rusttorch.enable()
    losses["rusttorch"], times["rusttorch"] = train(options)
    rusttorch.disable()

    if dist.get_rank() == 0:
        print("  step      stock  rusttorch")
        for k in range(0, options.steps, 10):
            print(f"{k:6d} {losses['stock'][k]:10.6f} {losses['rusttorch'][k]:10.6f}")
        apart = max(abs(a - b) / a for a, b in zip(losses["stock"], losses["rusttorch"], strict=True))
        print(f"losses at most {apart:.1e} of their size apart")
        for arm, each in times.items():
            print(f"{arm:9s}  {statistics.median(each) * 1e3:.2f} ms a step")
        print(f"{sum(stats.ran for stats in rusttorch.stats().values())} calls ran in rusttorch's kernels")


def start(rank, options, file):
    """One process of those that this script starts itself."""
    where = {"init_method": f"file://{file}", "rank": rank, "world_size": options.processes}
    dist.init_process_group("gloo", timeout=timedelta(minutes=5), **where)
    run(options)
    dist.destroy_process_group()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--processes", type=int, default=2, help="on this machine; under torchrun it says how many")
    parser.add_argument("--fsdp", action="store_true", help="FSDP2, which shards the parameters, instead of DDP")
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args()
    if dist.is_torchelastic_launched():
        dist.init_process_group("gloo")
        run(options)
        dist.destroy_process_group()
        return
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(start, (options, os.path.join(folder, "store")), nprocs=options.processes)


if __name__ == "__main__":
    main()
