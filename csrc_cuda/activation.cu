#include "kernels/activation.cuh"
#include "launchers.h"

RUSTTORCH_FORMULAS(RUSTTORCH_ACTIVATION)
RUSTTORCH_LAUNCHERS(activation, ElementwiseArgs, RUSTTORCH_ACTIVATION(RUSTTORCH_LAUNCHER))
