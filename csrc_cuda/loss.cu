#include "kernels/loss.cuh"
#include "launchers.h"

#define RUSTTORCH_TOTAL(NAME, ...) {&launch_total<NAME##_formula>, NAME##_formula::types},

RUSTTORCH_FORMULAS(RUSTTORCH_LOSS)
RUSTTORCH_LAUNCHERS(loss, Args, RUSTTORCH_LOSS(RUSTTORCH_LAUNCHER))
RUSTTORCH_LAUNCHERS(loss_total, Args, RUSTTORCH_LOSS_FORWARD(RUSTTORCH_TOTAL))
