"""Builds rusttorch._C against the torch that is installed.

    pip install --no-build-isolation .

Kernels (csrc/kernels) are compiled once per instruction set. CUDA sources (csrc_cuda) are compiled when torch has
CUDA and nvcc is there; FORCE_CUDA=1 compiles them always, FORCE_CUDA=0 never. With RUSTTORCH_EMULATION=1 they are
compiled as C++, in place of the CPU's kernels, which is how tools/emulate.py tests them without a GPU. Everything else
here is what torch.utils.cpp_extension does.
"""

import hashlib
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from setuptools import find_packages, setup
from torch.utils import cpp_extension

ROOT = Path(__file__).resolve().parent

SANITIZE = os.environ.get("SANITIZE")  # "address,undefined": for make asan
SANITIZERS = []
if SANITIZE:
    SANITIZERS = [
        f"-fsanitize={SANITIZE}",
        "-fno-sanitize-recover=undefined",
        "-O1",
        "-fexpensive-optimizations",  # what contracts to FMA
        # AddressSanitizer's checks as calls, and not twice: a third of the compile time of products and attention.
        "--param=asan-instrumentation-with-call-threshold=0",
        "-fno-sanitize=null,alignment,object-size",
    ]

FLAGS = [
    "-std=c++20",
    "-O3",
    "-g0",
    "-fPIC",
    "-fopenmp",  # without it at::parallel_for is serial
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-Wno-unused-parameter",  # torch's headers
    *(["-Werror"] if os.environ.get("WERROR") == "1" else []),
]
TORCH_FLAGS = [
    *FLAGS,
    *SANITIZERS,
    "-DAT_PER_OPERATOR_HEADERS",  # one that includes all of them includes only what it needs, as in torch itself
]
KERNEL_FLAGS = [
    "-ffp-contract=fast",  # FMA: what the formulas in csrc/kernels are written for
    # A loop of a few instructions over a cache line's end took 1.3 to 1.7 times as long (relu in L2, Zen 4).
    "-falign-loops=64",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fwrapv",  # integer overflow wraps, as in stock
    *("-Wno-maybe-uninitialized", "-Wno-uninitialized"),  # gcc 12's own AVX-512 intrinsics
    "-Wno-psabi",  # vectors as arguments: every such function is inlined
]
# What each of csrc/instruction_set.h lets the compiler use. The base comes first, so that where the linker meets an
# inline function of a header in several copies, it keeps the one every machine can run.
INSTRUCTION_SETS = {
    "base": ["-O2"],  # a third of its compile time less; this is for CPUs from before 2013
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": [
        *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"),
        *("-mavx2", "-mfma", "-mf16c", "-mprefer-vector-width=512"),
    ],
}
# The kernels that run here are those that sanitizers see; others are compiled as ever, so that ccache has them.
BEST = {"DEFAULT": "base", "AVX2": "avx2"}.get(torch.backends.cpu.get_cpu_capability(), "avx512")
TABLES = "csrc/tables.cpp"
EMULATION = os.environ.get("RUSTTORCH_EMULATION") == "1"


def cpu_sources():
    for name, flags in INSTRUCTION_SETS.items():
        flags = [*(SANITIZERS if name == BEST else []), *flags]
        for source in sorted((ROOT / "csrc" / "kernels").glob("*.cpp")):
            yield f"{source.stem}.{name}", source, [f"-DRUSTTORCH_INSTRUCTION_SET={name}", *flags]


def emulated_sources():
    """The device's kernels as C++, what runs them (tests/emulation), and their tables in the place of the CPU's.

    All else is compiled as ever, so that ccache has it.
    """
    folder = ROOT / "tests" / "emulation"
    flags = [f"-isystem {os.environ['CUDA_HOME']}/include", "-DRUSTTORCH_EMULATION", "-Wno-unknown-pragmas"]
    flags += ["-mfma"]  # a device contracts too
    yield "device", folder / "device.cpp", flags
    for source in ("csrc_cuda/register.cpp", TABLES):
        yield Path(source).stem, ROOT / source, flags
    for source in sorted((ROOT / "csrc_cuda").glob("*.cu")):
        yield source.stem, source, [*flags, "-x c++", f"-include {folder / 'device.h'}"]


def compile_kernels(folder):
    """Compiles csrc/kernels once per instruction set (or their emulation), and returns the objects.

    torch.utils.cpp_extension has one set of flags for all sources, so this is a ninja file of our own.
    """
    folder = Path(folder).absolute() / "kernels"
    folder.mkdir(parents=True, exist_ok=True)
    command = " ".join([os.environ.get("CXX", "c++"), *FLAGS, *KERNEL_FLAGS])
    lines = ["rule kernel", f"  command = {command} $flags -MMD -MF $out.d -c $in -o $out"]
    lines += ["  depfile = $out.d", "  deps = gcc", ""]
    objects = []
    for stem, source, flags in emulated_sources() if EMULATION else cpu_sources():
        objects.append(str(folder / f"{stem}.o"))
        lines.append(f"build {objects[-1]}: kernel {source}")
        lines.append(f"  flags = {' '.join(flags)}")
    (folder / "build.ninja").write_text("\n".join(lines) + "\n")
    jobs = ["-j", os.environ["MAX_JOBS"]] if "MAX_JOBS" in os.environ else []
    subprocess.run(["ninja", "-C", folder, *jobs], check=True)
    return objects


def precompile(compiler):
    """Compiles csrc/precompiled.h, which takes half of the time that a source needs by itself; returns the flags.

    It lies where every build with these flags looks for it, so that ccache has what another build compiled.
    """
    text = (ROOT / "csrc" / "precompiled.h").read_text()
    includes = [f"-isystem{path}" for path in cpp_extension.include_paths()]
    command = [os.environ.get("CXX", "c++"), *compiler[1:], *TORCH_FLAGS, *includes]
    made = "\n".join([torch.__version__, *command, text])
    header = ROOT / "build" / "precompiled" / hashlib.sha256(made.encode()).hexdigest()[:16] / "precompiled.h"
    if not header.exists():
        header.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=header.parent) as folder:  # another build may be at it
            source, compiled = Path(folder, header.name), Path(folder, f"{header.name}.gch")
            source.write_text(text)
            subprocess.run([*command, "-x", "c++-header", source, "-o", compiled], check=True)
            compiled.rename(f"{header}.gch")
            source.rename(header)
    return ["-include", str(header), "-Winvalid-pch", "-fpch-preprocess"]  # the last for ccache


class Build(cpp_extension.BuildExtension):
    def build_extensions(self):
        objects = compile_kernels(self.build_temp)
        flags = precompile(self.compiler.compiler_so)
        for extension in self.extensions:
            extension.extra_objects += objects
            extension.depends += objects
            by_language = extension.extra_compile_args
            by_language = by_language if isinstance(by_language, dict) else {"cxx": by_language}
            extension.extra_compile_args = by_language | {"cxx": [*by_language["cxx"], *flags]}
        super().build_extensions()


def torch_sources():
    folders = [ROOT / "csrc", *(ROOT / "csrc" / room for room in ("ops", "autograd", "data"))]
    return sorted(str(f.relative_to(ROOT)) for folder in folders for f in folder.glob("*.cpp"))


def with_cuda():
    force = os.environ.get("FORCE_CUDA")
    if force in ("0", "1"):
        return force == "1"
    return torch.version.cuda is not None and cpp_extension.CUDA_HOME is not None


def extension():
    sources = torch_sources()
    headers = sorted(str(f.relative_to(ROOT)) for f in ROOT.glob("csrc*/**/*.[hc]*"))
    link = ["-fopenmp", "-Wl,--exclude-libs,ALL", *SANITIZERS]
    if EMULATION or not with_cuda():
        return cpp_extension.CppExtension(
            "rusttorch._C",
            [source for source in sources if not (EMULATION and source == TABLES)],
            depends=headers,
            extra_compile_args=TORCH_FLAGS,
            extra_link_args=link,
        )
    if cpp_extension.CUDA_HOME is None:  # torch.utils.cpp_extension forgets it under a CPU torch
        cpp_extension.CUDA_HOME = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    cuda = sorted(str(f.relative_to(ROOT)) for f in (ROOT / "csrc_cuda").glob("*.c[up]*"))
    macros = [("RUSTTORCH_CUDA", None)]
    if torch.version.cuda is None:
        macros.append(("C10_CUDA_NO_CMAKE_CONFIGURE_FILE", None))
    if not torch.cuda.is_available():  # no GPU to ask for its architecture
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "8.0;9.0+PTX")
    nvcc = ["-std=c++20", "-O3", "-lineinfo"]
    return cpp_extension.CUDAExtension(
        "rusttorch._C",
        sources + cuda,
        depends=headers,
        define_macros=macros,
        extra_compile_args={"cxx": TORCH_FLAGS, "nvcc": nvcc},
        extra_link_args=link,
    )


def supported_torch():
    """The range in pyproject.toml, which pip does not look at with --no-build-isolation, nor python setup.py ever."""
    text = (ROOT / "pyproject.toml").read_text()
    torches, oldest, beyond = re.search(r'"(torch>=([\d.]+),<([\d.]+))"', text).groups()
    release = [[int(n) for n in version.split(".")[:2]] for version in (oldest, torch.__version__, beyond)]
    if not release[0] <= release[1] < release[2]:
        sys.exit(f"rusttorch is for {torches}, but torch {torch.__version__} is installed")
    return torches


def write_build_info():
    """What the package needs to know before it loads _C: with another torch, loading fails without a word."""
    text = f'TORCH = "{torch.__version__}"\nSUPPORTED = "{supported_torch()}"\nCUDA = {with_cuda()}\n'
    path = ROOT / "torch_ext" / "rusttorch" / "_build.py"
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


write_build_info()
setup(
    license="MIT",
    packages=find_packages("torch_ext"),
    package_dir={"": "torch_ext"},
    package_data={"rusttorch": ["py.typed", "*.pyi"]},
    ext_modules=[extension()],
    cmdclass={"build_ext": Build},
)
