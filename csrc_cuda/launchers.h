#pragma once

// What nvcc compiles, as the torch side sees it: one table of launchers per family, in the order of its enum.

#include <cuda_runtime_api.h>

#include <iterator>

#include "../csrc/families.h"
#include "../csrc/kernels/kernels.h"

namespace rusttorch {

template <class A>
struct Launcher {
  void (*run)(const A&, cudaStream_t);
  Dtypes dtypes = everything;
};

// Each family's, in its .cu.
#define RUSTTORCH_DECLARE_LAUNCHERS(family, A) const Launcher<A>* family##_launchers();
RUSTTORCH_DEVICE_TABLES(RUSTTORCH_DECLARE_LAUNCHERS)

// A family's launchers, of arguments of type A.
#define RUSTTORCH_LAUNCHERS(family, A, ...)             \
  namespace rusttorch {                                 \
  const Launcher<A>* family##_launchers() {             \
    static constexpr Launcher<A> all[] = {__VA_ARGS__}; \
    static_assert(std::size(all) == family##_count);    \
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
