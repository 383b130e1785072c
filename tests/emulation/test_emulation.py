"""The emulation of a GPU on its own: what is right runs right, and what is wrong shows."""

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT / "tools"))

# The numbers from 0 to 255 summed by 256 threads, and in four ways to get it wrong: through shared memory, and by warps
# that exchange what they have.
SOURCE = """
#include "device.h"

__global__ void sum(int* out, int wrong) {
  RUSTTORCH_SHARED(int, held, [256]);
  const int me = int(threadIdx.x);
  held[me] = me;
  if (wrong != 1) __syncthreads();
  for (int apart = 128; apart > 0; apart /= 2) {
    if (me < apart) held[me] += held[me + apart];
    if (wrong == 2 && me >= apart) continue;
    __syncthreads();
  }
  RUSTTORCH_ASSERT(wrong != 3 || me != 100);
  if (me == 0) *out = held[0];
}

__global__ void sum_by_warps(int* out, int wrong) {
  RUSTTORCH_SHARED(int, held, [8]);
  const int me = int(threadIdx.x);
  int mine = me;
  for (int apart = 16; apart > 0; apart /= 2) {
    if (wrong == 4 && me == 77) continue;
    mine += rusttorch::of_lane(mine, me % 32 + apart);
  }
  if (me % 32 == 0) held[me / 32] = mine;
  __syncthreads();
  if (me == 0) *out = std::accumulate(held, held + 8, 0);
}

extern "C" int run(bool by_warps, int wrong, char* message) {
  int out = 0;
  try {
    rusttorch::start(by_warps ? &sum_by_warps : &sum, dim3(3), 256, nullptr, &out, wrong);
  } catch (const std::exception& e) {
    std::snprintf(message, 200, "%s", e.what());
    return -1;
  }
  return out;
}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    if shutil.which("nvcc") is None:
        pytest.skip("needs the headers of CUDA's toolkit")
    from cuda_check import cuda_home

    folder = tmp_path_factory.mktemp("emulation")
    (folder / "sum.cpp").write_text("#include <cstdio>\n#include <exception>\n#include <numeric>\n" + SOURCE)
    command = ["c++", "-std=c++20", "-O2", "-shared", "-fPIC", f"-I{HERE}", f"-isystem{cuda_home()}/include"]
    subprocess.run([*command, folder / "sum.cpp", HERE / "device.cpp", "-o", folder / "sum.so"], check=True)
    library = ctypes.CDLL(str(folder / "sum.so"))

    def run(wrong, by_warps=False):
        message = ctypes.create_string_buffer(200)
        return library.run(by_warps, wrong, message), message.value.decode()

    return run


@pytest.mark.parametrize("by_warps", (False, True))
def test_right(run, by_warps):
    assert run(0, by_warps) == (255 * 256 // 2, "")


def test_a_missing_barrier_is_a_wrong_sum(run):
    assert run(1)[0] != 255 * 256 // 2


def test_a_barrier_that_some_threads_miss(run):
    for result, message in (run(2), run(4, by_warps=True)):
        assert result == -1
        assert "a barrier that only some threads" in message


def test_an_assertion_is_an_error(run):
    result, message = run(3)
    assert result == -1
    assert "Assertion `wrong != 3 || me != 100` failed" in message
    assert run(0)[0] == 255 * 256 // 2
