#include "kernels/pointwise.cuh"
#include "launchers.h"

RUSTTORCH_FORMULAS(RUSTTORCH_POINTWISE)
RUSTTORCH_LAUNCHERS(pointwise, ElementwiseArgs, RUSTTORCH_POINTWISE(RUSTTORCH_LAUNCHER))
