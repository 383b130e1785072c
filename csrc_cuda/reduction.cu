#include "kernels/reduction.cuh"
#include "launchers.h"

#define RUSTTORCH_REDUCTION_LAUNCHER(NAME, DTYPES) {&launch_reduction<reducer::NAME, DTYPES>, DTYPES},

namespace rusttorch {
const Launcher<ReductionArgs>* reduction_launchers() {
  static constexpr Launcher<ReductionArgs> all[] = {RUSTTORCH_REDUCTION(RUSTTORCH_REDUCTION_LAUNCHER)};
  return all;
}
}  // namespace rusttorch
