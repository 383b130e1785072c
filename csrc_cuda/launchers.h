#pragma once

// What nvcc compiles, as the torch side sees it: one table of launchers per family, in the order of its enum.

#include <cuda_runtime_api.h>

#include "../csrc/kernels/kernel.h"

namespace rusttorch {

struct Launcher {
  void (*run)(const Args&, cudaStream_t);
  bool integers;
};

#define RUSTTORCH_LAUNCHER(NAME, ...) {&launch<NAME##_formula>, NAME##_formula::integers},
#define RUSTTORCH_LAUNCHERS(family, LIST)                                          \
  namespace rusttorch {                                                            \
  namespace {                                                                      \
  LIST(RUSTTORCH_FORMULA)                                                          \
  constexpr Launcher family##_table[] = {LIST(RUSTTORCH_LAUNCHER)};                \
  }                                                                                \
  const Launcher& family##_launcher(int kernel) { return family##_table[kernel]; } \
  }

const Launcher& pointwise_launcher(int kernel);
const Launcher& activation_launcher(int kernel);

}  // namespace rusttorch
