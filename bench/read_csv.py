"""Files of numbers into tensors: rusttorch.data.read_csv against pandas and pyarrow, where they are installed.

    python bench/read_csv.py [--megabytes 200] [--columns 20] [--threads 2] [--rounds 5] [--folder FOLDER] [--peak]

Two files are made, and deleted afterwards: of float64 as repr() writes it (17 digits), and of numbers with four digits
after the point. Each reader makes one float64 tensor [rows, columns] of them, in turns, the page cache warm; a line is
the median time, MB/s, how many times as long the reader takes as read_csv, and its CPU time, which says more where
others use the machine. pandas is its C engine; pyarrow has as many threads as torch, and its columns as they are
(pyarrow) or copied into one tensor (pyarrow, tensor). --peak instead reads in a process of its own and says how much
memory that took at most beyond what it had before.
"""

import argparse
import importlib.util
import random
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
from rusttorch.data import read_csv

FILES = {"17 digits": repr, "4 after the point": lambda v: f"{10 * v:.4f}"}


def write(path, text_of, columns, megabytes):
    """Random rows, some thousands of them again and again."""
    numbers = random.Random(0)
    rows = [",".join(text_of(numbers.gauss(0, 1)) for _ in range(columns)) + "\n" for _ in range(20_000)]
    block = "".join(rows).encode()
    with open(path, "wb") as file:
        file.write(",".join(f"c{k}" for k in range(columns)).encode() + b"\n")
        while file.tell() < megabytes * 1e6:
            file.write(block)


def readers(threads):
    """By name: a function of the path that returns tensors."""
    found = {"rusttorch": lambda path: read_csv(path, dtype=torch.float64).values}
    if importlib.util.find_spec("pyarrow"):
        import pyarrow
        from pyarrow import csv

        pyarrow.set_cpu_count(threads)

        def columns(path):
            return [torch.from_numpy(column.to_numpy()) for column in csv.read_csv(path).columns]

        def one(path):
            table = csv.read_csv(path)
            values = torch.empty(table.num_rows, table.num_columns, dtype=torch.float64)
            for out, column in zip(values.unbind(1), table.columns, strict=True):
                out.copy_(torch.from_numpy(column.to_numpy()))
            return values

        found |= {"pyarrow": columns, "pyarrow, tensor": one}
    if importlib.util.find_spec("pandas"):
        import pandas

        found["pandas"] = lambda path: torch.from_numpy(pandas.read_csv(path, engine="c").to_numpy(copy=True))
    return found


def timed(f, path):
    """Seconds, by the clock and of all CPUs."""
    begin, cpu = time.perf_counter(), time.process_time()
    result = f(path)
    took = time.perf_counter() - begin, time.process_time() - cpu
    del result
    return took


PEAK = """
import sys, torch
from rusttorch.data import read_csv
def of(name):
    return next(int(line.split()[1]) / 1e3 for line in open("/proc/self/status") if line.startswith(name))
torch.set_num_threads(int(sys.argv[2]))
before = of("RssAnon")
peak_before = of("VmHWM")
values = read_csv(sys.argv[1], dtype=torch.float64).values
print(f"  tensor {values.nbytes / 1e6:.0f} MB, anonymous memory {of('RssAnon') - before:+.0f} MB at the end, "
      f"resident at most {of('VmHWM') - peak_before:+.0f} MB, the file's mapped pages among them")
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--columns", type=int, default=20)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the files are made (default: the system's)")
    parser.add_argument("--peak", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", "The given NumPy array is not writable")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "numbers.csv"
        for name, text_of in FILES.items():
            write(path, text_of, options.columns, options.megabytes)
            size = path.stat().st_size
            print(f"{name}: {size / 1e6:.0f} MB, {options.columns} columns, {options.threads} threads", flush=True)
            if options.peak:
                subprocess.run([sys.executable, "-c", PEAK, path, str(options.threads)], check=True)
                continue
            found = readers(options.threads)
            rounds = [{reader: timed(f, path) for reader, f in found.items()} for _ in range(options.rounds + 1)][1:]
            for reader in found:
                took, cpu = (statistics.median(times[reader][k] for times in rounds) for k in (0, 1))
                ratio = statistics.median(times[reader][0] / times["rusttorch"][0] for times in rounds)
                print(
                    f"  {reader:16} {took:7.3f} s {size / took / 1e6:6.0f} MB/s  {ratio:5.2f}  CPU {cpu:.3f} s",
                    flush=True,
                )


if __name__ == "__main__":
    main()
