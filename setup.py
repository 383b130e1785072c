"""Builds rusttorch._C against the torch that is installed.

    pip install --no-build-isolation .

Kernels (csrc/kernels) are compiled once per instruction set. CUDA sources (csrc_cuda) are compiled when torch has
CUDA and nvcc is there, or when FORCE_CUDA=1. CXX may be given with ccache in front. Everything else here is what
torch.utils.cpp_extension does.
"""

import os
from pathlib import Path

import torch
from setuptools import find_packages, setup
from torch.utils import cpp_extension

ROOT = Path(__file__).parent
GENERATED = ROOT / "build" / "kernels"

# How at::native::DispatchStub names the levels, and what each lets the compiler use.
INSTRUCTION_SETS = {
    "DEFAULT": None,
    "AVX2": "avx2,fma,f16c",
    "AVX512": "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512",
}
FLAGS = [
    "-std=c++20",
    "-O3",
    "-g0",
    "-fopenmp",  # without it at::parallel_for is serial
    "-fvisibility=hidden",
    "-ffp-contract=fast",  # FMA: what the formulas in csrc/kernels are written for
    "-fno-math-errno",
    "-fno-trapping-math",  # lets selects be vectorised
    "-fwrapv",  # integer overflow wraps, as in stock
    "-Wall",
    "-Wextra",
    "-Wno-unused-parameter",  # torch's headers
]
LEVELS = [("HAVE_AVX2_CPU_DEFINITION", None), ("HAVE_AVX512_CPU_DEFINITION", None)]


def kernel_sources():
    """One source per kernel file and instruction set: the file, behind the level's macros and target.

    DEFAULT comes first, so that where the linker meets an inline function of a header in several copies, it keeps
    the one that every machine can run.
    """
    GENERATED.mkdir(parents=True, exist_ok=True)
    sources = []
    for level, target in INSTRUCTION_SETS.items():
        for kernel in sorted((ROOT / "csrc" / "kernels").glob("*.cpp")):
            text = f"#define CPU_CAPABILITY {level}\n#define CPU_CAPABILITY_{level}\n"
            if target:
                text += f'#pragma GCC target("{target}")\n'
            text += f'#include "{kernel}"\n'
            source = GENERATED / f"{kernel.stem}.{level}.cpp"
            if not source.exists() or source.read_text() != text:
                source.write_text(text)
            sources.append(str(source.relative_to(ROOT)))
    return sources


def torch_sources():
    folders = [ROOT / "csrc", ROOT / "csrc" / "ops", ROOT / "csrc" / "autograd"]
    return sorted(str(f.relative_to(ROOT)) for folder in folders for f in folder.glob("*.cpp"))


def with_cuda():
    if os.environ.get("FORCE_CUDA") == "1":
        return True
    return torch.version.cuda is not None and cpp_extension.CUDA_HOME is not None


def extension():
    sources = kernel_sources() + torch_sources()
    link = ["-fopenmp", "-Wl,--exclude-libs,ALL"]
    if not with_cuda():
        return cpp_extension.CppExtension(
            "rusttorch._C",
            sources,
            define_macros=LEVELS,
            extra_compile_args=FLAGS,
            extra_link_args=link,
        )
    if cpp_extension.CUDA_HOME is None:  # torch.utils.cpp_extension forgets it under a CPU torch
        cpp_extension.CUDA_HOME = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    cuda = sorted(str(f.relative_to(ROOT)) for f in (ROOT / "csrc_cuda").glob("*.c[up]*"))
    macros = [*LEVELS, ("RUSTTORCH_CUDA", None)]
    if torch.version.cuda is None:
        macros.append(("C10_CUDA_NO_CMAKE_CONFIGURE_FILE", None))
    nvcc = ["-std=c++20", "-O3", "--use_fast_math=false", "-lineinfo"]
    return cpp_extension.CUDAExtension(
        "rusttorch._C",
        sources + cuda,
        define_macros=macros,
        extra_compile_args={"cxx": FLAGS, "nvcc": nvcc},
        extra_link_args=link,
    )


def write_build_info():
    """What the package needs to know before it loads _C: with another torch, loading fails without a word."""
    text = f'TORCH = "{torch.__version__}"\nCUDA = {with_cuda()}\n'
    path = ROOT / "torch_ext" / "rusttorch" / "_build.py"
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


write_build_info()
setup(
    packages=find_packages("torch_ext"),
    package_dir={"": "torch_ext"},
    ext_modules=[extension()],
    cmdclass={"build_ext": cpp_extension.BuildExtension},
)
