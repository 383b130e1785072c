"""Compiles and links all CUDA sources where there is neither a GPU nor a CUDA torch.

    python tools/cuda_check.py [--arch 90 ...] [--out build/cuda_check]

nvcc compiles csrc_cuda/*.cu (no torch header among them), the host compiler everything that RUSTTORCH_CUDA changes,
against the CPU wheel's own c10/cuda headers, warnings as errors. The link is strict (--no-undefined) against
stand-ins for libc10_cuda and libtorch_cuda, made from lists of the symbols that torch 2.13.0+cu130 exports: a name
that the real library lacks fails here. Of each kernel build/cuda_check/kernels.txt has the registers, the bytes that
spill, and the loads and stores of 16 bytes in its machine code. Spilling more than a few bytes is an error; so is a
kernel that writes what it reads, and none of it by 16 bytes.
"""

import argparse
import gzip
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from torch.utils import cpp_extension

ROOT = Path(__file__).parents[1]
HOST_SOURCES = [
    *sorted(str(f.relative_to(ROOT)) for f in (ROOT / "csrc" / "ops").glob("*.cpp")),
    *("csrc/swap.cpp", "csrc/form.cpp", "csrc/schemas.cpp", "csrc/tables.cpp", "csrc/instruction_set.cpp"),
    *("csrc/memory.cpp", "csrc/arena.cpp", "csrc_cuda/register.cpp"),
]
# In the place of what is not compiled here: the CPU's kernels, and python.cpp.
STAND_INS = f"""
#include <ATen/core/Tensor.h>
#include "{ROOT}/csrc/families.h"
#include "{ROOT}/csrc/kernels/kernels.h"
#define TABLE(set, family, Args) const Kernel<Args> set::family##_kernels[family##_count] = {{}};
#define TABLES(family, Args) TABLE(base, family, Args) TABLE(avx2, family, Args) TABLE(avx512, family, Args)
namespace rusttorch {{
RUSTTORCH_DEVICE_TABLES(TABLES) RUSTTORCH_CPU_TABLES(TABLES)
bool is_tracers(const at::Tensor&) {{ return false; }}
}}
"""


def cuda_home():
    """The toolkit's folder: nvcc's own, which a wrapper on the path would hide."""
    if "CUDA_HOME" in os.environ:
        return Path(os.environ["CUDA_HOME"])
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        sys.exit("tools/cuda_check.py needs nvcc (CUDA 13) on the path")
    dry = subprocess.run([nvcc, "--dryrun", "-x", "cu", "/dev/null"], capture_output=True, text=True).stderr
    return Path(re.search(r"#\$ TOP=(.*)", dry)[1].strip()).resolve()


def spills_too_much(kernel, stored):
    """More bytes than those that ptxas spills by choice, for a block more on a multiprocessor or around the slow path
    of a division. Of 1,024 threads each has 64 registers."""
    return stored > (80 if "ILi1024E" in kernel else 64)


# Kernels that write as much as they read, whatever they are made for; elementwise where it takes several at a time.
WRITERS = re.compile(
    r"::(softmax_forward|softmax_backward|norm_forward|norm_backward|cross_entropy_slope|cross_entropy_backward|scan_rows|"
    r"optimizer_step|pool_planes_backward)<|"
    r"::(elementwise|pool_windows|pool_large_windows|pool_channels_backward|resize_tiles)<.*, [248]>|"
    r"::channel_(normalize|gradient)<(float, 4|double, 2|__\w+, 8),|"
    r"::rope_turn<\w+, (4, float|2, double|8),"
)


def wide(source, arch):
    """{mangled kernel: loads and stores of 16 bytes} in the machine code of an object."""
    tools = Path(sysconfig.get_path("purelib")) / "nvidia" / "cu13" / "bin"
    path = {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
    command = ["cuobjdump", "-sass", "-arch", f"sm_{arch}", source]
    code = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | path).stdout
    parts = (part.split("\n", 1) for part in code.split("Function : ")[1:])
    return {name.strip(): (text.count("LDG.E.128"), text.count("STG.E.128")) for name, text in parts}


def run(command, **kwargs):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, **kwargs)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stderr


def stand_in(name, out):
    """A library of the exported names, for the linker only. Lines of the list: kind (as nm prints it), name."""
    listing = gzip.decompress((ROOT / "tools" / "cuda_link" / f"{name}-2.13.0+cu130.symbols.gz").read_bytes())
    assembly = ""
    for line in listing.decode().split("\n"):
        if line:
            kind, symbol = line.split()
            code = kind in "TWti"
            section, type_ = ("text", "function") if code else ("data", "object")
            assembly += f'.section .{section}\n.globl "{symbol}"\n.type "{symbol}",@{type_}\n"{symbol}": .quad 0\n'
    assembly += '.section .note.GNU-stack,"",@progbits\n'
    library = out / f"{name}.so"
    command = ["c++", "-x", "assembler", "-", "-shared", "-nostdlib", f"-Wl,-soname,{name}.so", "-o", library]
    run(command, input=assembly)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--arch", nargs="+", default=["80", "90"])
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "cuda_check")
    options = parser.parse_args()
    options.out = options.out.absolute()
    options.out.mkdir(parents=True, exist_ok=True)
    home = cuda_home()
    start = time.time()

    def object_of(source):
        return options.out / ("_".join(source.parts[1:]) + ".o")

    def device(source):
        archs = [flag for a in options.arch for flag in ("-gencode", f"arch=compute_{a},code=sm_{a}")]
        flags = [
            "-std=c++20",
            "-O3",
            "-Werror",
            "all-warnings",
            "-Xptxas",
            "-v",
            "-Xcompiler",
            "-fPIC,-Wall,-Wextra",
        ]
        flags += ["--expt-relaxed-constexpr"]  # as torch.utils.cpp_extension has it
        flags += ["-diag-suppress", "177"]  # bandwidth_bound, which only the CPU's loop asks for
        return run([home / "bin" / "nvcc", *flags, *archs, "-c", source, "-o", object_of(source)])

    includes = [*cpp_extension.include_paths(), home / "include", sysconfig.get_path("include")]
    compiler = ["c++", "-std=c++20", "-O1", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror",
                "-Wno-unused-parameter", "-DRUSTTORCH_CUDA", "-DC10_CUDA_NO_CMAKE_CONFIGURE_FILE",
                *(f"-isystem{i}" for i in includes)]  # fmt: skip
    # Torch's headers, which take most of the time, once for all.
    header = options.out / "precompiled.h"
    shutil.copy(ROOT / "csrc" / header.name, header)

    def host(source):
        precompiled.result()
        run([*compiler, "-include", header, "-Winvalid-pch", "-fpch-preprocess", "-c", source, "-o", object_of(source)])

    devices = sorted((ROOT / "csrc_cuda").glob("*.cu"))
    hosts = [ROOT / source for source in HOST_SOURCES]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        precompiled = pool.submit(run, [*compiler, "-x", "c++-header", header, "-o", f"{header}.gch"])
        logs = [pool.submit(device, source) for source in devices]
        done = [pool.submit(host, source) for source in hosts]
        logs = "".join(log.result() for log in logs)
        for future in done:
            future.result()

    for name in ("libc10_cuda", "libtorch_cuda"):
        stand_in(name, options.out)
    kernels = options.out / "stand_ins.cpp"
    kernels.write_text(STAND_INS)
    host(kernels)
    objects = [object_of(source) for source in (*devices, *hosts, kernels)]
    libraries = [f"-L{options.out}", *(f"-L{p}" for p in cpp_extension.library_paths()), f"-L{home}/lib64",
                 "-lc10_cuda", "-ltorch_cuda", "-ltorch_cpu", "-ltorch", "-lc10", "-lcudart"]  # fmt: skip
    run(["c++", "-shared", *objects, "-Wl,--no-undefined", *libraries, "-o", options.out / "rusttorch.so"])

    # A kernel's name, architecture, spilled bytes and registers.
    compiled = re.findall(
        r"Compiling entry function '(\S+)' for '(\w+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads.*?"
        r"Used (\d+) registers",
        logs,
        re.DOTALL,
    )
    mangled = "\n".join(kernel for kernel, *_ in compiled)
    names = subprocess.check_output(["c++filt"], input=mangled, text=True).splitlines()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [(arch, pool.submit(wide, object_of(d), arch)) for arch in options.arch for d in devices]
        moves = {(name, f"sm_{arch}"): found for arch, job in jobs for name, found in job.result().items()}
    rows = [
        (int(r[-1]), int(r[2]) + int(r[3]), *moves[r[0], r[1]], r[1], name)
        for r, name in zip(compiled, names, strict=True)
    ]
    table = options.out / "kernels.txt"
    lines = [f"{r[0]:4} {r[1]:6} {r[2]:4} {r[3]:4} {r[4]} {r[5]}" for r in sorted(rows, reverse=True)]
    heading = "registers, bytes spilled, loads and stores of 16 bytes, architecture, kernel"
    table.write_text("\n".join([heading, *lines]) + "\n")
    wrong = [f"{r[0]} spills" for r in compiled if spills_too_much(r[0], int(r[2]))]
    wrong += [f"{r[-1]} stores by less than 16 bytes" for r in rows if WRITERS.search(r[-1]) and r[3] == 0]
    archs = ", ".join(f"sm_{a}" for a in options.arch)
    print(
        f"{len(set(names))} kernels in {len(devices)} files for {archs}, at most {max(rows)[0]} registers, "
        f"{len(wrong)} wrong; {len(hosts)} host files; strict link; {time.time() - start:.0f} s",
        *(f"  {line}" for line in lines[:3]),
        f"  and the rest in {table}",
        sep="\n",
    )
    sys.exit("\n".join(wrong) if wrong else 0)


if __name__ == "__main__":
    main()
