#include "kernels/reduction.cuh"
#include "launchers.h"

#define RUSTTORCH_REDUCTION_LAUNCHER(NAME, DTYPES) {&launch_reduction<reducer::NAME, DTYPES>, DTYPES},

RUSTTORCH_LAUNCHERS(reduction, ReductionArgs, RUSTTORCH_REDUCTION(RUSTTORCH_REDUCTION_LAUNCHER))
