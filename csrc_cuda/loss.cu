#include "kernels/loss.cuh"
#include "launchers.h"

#define RUSTTORCH_TOTAL(NAME, ...) {&launch_total<NAME##_formula>, NAME##_formula::types},

RUSTTORCH_FORMULAS(RUSTTORCH_LOSS)
RUSTTORCH_LAUNCHERS(loss, ElementwiseArgs, RUSTTORCH_LOSS(RUSTTORCH_LAUNCHER))
RUSTTORCH_LAUNCHERS(loss_total, ElementwiseArgs, RUSTTORCH_LOSS_FORWARD(RUSTTORCH_TOTAL))
