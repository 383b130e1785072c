#pragma once

// What nvcc compiles, as the torch side sees it: one table of launchers per family, in the order of its enum.

#include <cuda_runtime_api.h>

#include "../csrc/kernels/kernel.h"

namespace rusttorch {

template <class A>
struct Launcher {
  void (*run)(const A&, cudaStream_t);
  uint8_t dtypes = everything;
};

struct CrossEntropyArgs;
struct NormArgs;
struct OptimizerArgs;
struct ReductionArgs;
struct ScanArgs;
struct SoftmaxArgs;
struct TransposeArgs;

const Launcher<Args>* pointwise_launchers();
const Launcher<Args>* activation_launchers();
const Launcher<Args>* loss_launchers();
const Launcher<Args>* loss_total_launchers();
const Launcher<ReductionArgs>* reduction_launchers();
const Launcher<ScanArgs>* scan_launchers();
const Launcher<SoftmaxArgs>* softmax_launchers();
const Launcher<TransposeArgs>* copy_launchers();
const Launcher<CrossEntropyArgs>* cross_entropy_launchers();
const Launcher<NormArgs>* norm_launchers();
const Launcher<OptimizerArgs>* optimizer_launchers();

// A family's launchers, of arguments of type A.
#define RUSTTORCH_LAUNCHERS(family, A, ...)             \
  namespace rusttorch {                                 \
  const Launcher<A>* family##_launchers() {             \
    static constexpr Launcher<A> all[] = {__VA_ARGS__}; \
    return all;                                         \
  }                                                     \
  }
#define RUSTTORCH_LAUNCHER(NAME, ...) {&launch<NAME##_formula>, NAME##_formula::types},
#define RUSTTORCH_FORMULAS(LIST) \
  namespace rusttorch {          \
  namespace {                    \
  LIST(RUSTTORCH_FORMULA)        \
  }                              \
  }

}  // namespace rusttorch
