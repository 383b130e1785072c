"""csrc/kernels/math.h on its own: compiled here for each instruction set, against references of higher precision."""

import ctypes
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

mpmath, special = pytest.importorskip("mpmath"), pytest.importorskip("scipy.special")
KERNELS = Path(__file__).parents[1] / "csrc" / "kernels"
FUNCTIONS = {
    "exp": (np.exp, mpmath.exp),
    "expm1": (np.expm1, mpmath.expm1),
    "log": (np.log, mpmath.log),
    "log1p": (np.log1p, mpmath.log1p),
    "tanh": (np.tanh, mpmath.tanh),
    "erf": (special.erf, mpmath.erf),
    "sigmoid": (special.expit, lambda x: 1 / (1 + mpmath.exp(-x))),
}
LEVELS = {
    "default": "",
    "avx2": "-mavx2 -mfma",
    "avx512": "-mavx512f -mavx512dq -mavx512bw -mavx512vl -mfma",
}
# log(x) and log(1 - x) of [0, 1], at least -100, with the largest error of a float.
UNIT = {"log_unit": (np.log, 2), "log1m_unit": (lambda x: np.log1p(-x), 3)}
AVAILABLE = list(LEVELS)[: {"DEFAULT": 1, "AVX2": 2, "AVX512": 3}.get(torch._C._get_cpu_capability(), 1)]


@pytest.fixture(scope="module", params=LEVELS)
def library(request, tmp_path_factory):
    if request.param not in AVAILABLE:
        pytest.skip(f"this machine has no {request.param}")
    folder = tmp_path_factory.mktemp(request.param)
    source = '#include <cstring>\n#include "math.h"\nusing namespace rusttorch;\n'
    for name in (*FUNCTIONS, *UNIT):
        for t in ("float", "double"):
            source += f"""extern "C" void {name}_{t}(const {t}* x, {t}* y, long n) {{
              for (long i = 0; i < n; i += vector_bytes / sizeof({t})) {{
                Vector<{t}> v;
                std::memcpy(&v, x + i, sizeof v);
                v = math::{name}(v);
                std::memcpy(y + i, &v, sizeof v);
              }}
            }}\n"""
    (folder / "math.cpp").write_text(source)
    flags = "-std=c++20 -O2 -shared -fPIC -ffp-contract=fast -fno-math-errno -fno-trapping-math -Wno-psabi"
    command = ["c++", *flags.split(), *LEVELS[request.param].split(), f"-I{KERNELS}"]
    subprocess.run([*command, folder / "math.cpp", "-o", folder / "math.so"], check=True)
    return ctypes.CDLL(str(folder / "math.so"))


def call(library, name, x):
    y = np.empty_like(x)
    suffix = "float" if x.dtype == np.float32 else "double"
    pointer = ctypes.c_void_p
    getattr(library, f"{name}_{suffix}")(x.ctypes.data_as(pointer), y.ctypes.data_as(pointer), ctypes.c_long(x.size))
    return y


@pytest.mark.parametrize("name", FUNCTIONS)
def test_float(library, name):
    """Every 2,039th float: all exponents, both signs, NaN and infinity."""
    x = np.arange(0, 2**32, 2039, dtype=np.uint64).astype(np.uint32)
    x = x[: x.size // 16 * 16].view(np.float32)
    y = call(library, name, x)
    with np.errstate(all="ignore"):
        reference = FUNCTIONS[name][0](x.astype(np.float64))
        rounded = reference.astype(np.float32)
        finite = np.isfinite(rounded)
        assert np.array_equal(np.isnan(y), np.isnan(rounded))
        assert np.array_equal(y[~finite & ~np.isnan(y)], rounded[~finite & ~np.isnan(y)])
        error = np.abs(y - reference)[finite] / np.spacing(np.abs(rounded[finite])).astype(np.float64)
    print(f"{name} float: {error.max():.2f} ulp at {x[finite][error.argmax()]!r}")
    assert error.max() <= 2


@pytest.mark.parametrize("name", UNIT)
def test_unit(library, name):
    """Every 251st float of [0, 1], denormals too."""
    function, bound = UNIT[name]
    x = np.append(np.arange(0, 0x3F800000, 251), [0x3F800000] * 16).astype(np.uint32)
    x = x[-(x.size // 16 * 16) :].view(np.float32)
    y = call(library, name, x)
    with np.errstate(all="ignore"):
        reference = np.maximum(function(x.astype(np.float64)), -100)
    error = np.abs(y - reference) / np.spacing(np.abs(reference.astype(np.float32))).astype(np.float64)
    print(f"{name}: {error.max():.2f} ulp at {x[error.argmax()]!r}")
    assert error.max() <= bound


@pytest.mark.parametrize("name", FUNCTIONS)
def test_double(library, name):
    """Random doubles of all sizes at which the function is neither trivial nor infinite, against 120 bits."""
    generator = np.random.default_rng(0)
    x = np.concatenate([generator.standard_normal(400) * size for size in (1e-300, 1e-8, 1e-2, 0.3, 1, 4, 30, 300)])
    if name in ("log", "log1p"):
        x = np.abs(x)
        x = np.concatenate([x, 1 / x[400:1200], -np.minimum(x[400:1200], 0.99) if name == "log1p" else x[400:1200]])
    x = np.ascontiguousarray(x[: x.size // 8 * 8])
    y = call(library, name, x)
    worst, where = 0.0, 0.0
    with mpmath.workprec(120):
        for xi, yi in zip(x, y, strict=True):
            reference = FUNCTIONS[name][1](mpmath.mpf(float(xi)))
            size = abs(float(reference))
            if np.finfo(np.float64).tiny <= size < np.inf:
                error = abs(float((mpmath.mpf(float(yi)) - reference) / mpmath.mpf(float(np.spacing(size)))))
                worst, where = max((worst, where), (error, float(xi)))
    print(f"{name} double: {worst:.2f} ulp at {where!r}")
    assert worst <= 2
