#include "kernels/optimizer.cuh"
#include "launchers.h"

#define RUSTTORCH_OPTIMIZER_LAUNCHER(NAME, ...) {&launch_optimizer<formula::NAME##_formula>},
RUSTTORCH_LAUNCHERS(optimizer, OptimizerArgs, RUSTTORCH_OPTIMIZER(RUSTTORCH_OPTIMIZER_LAUNCHER))
