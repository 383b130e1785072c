#include "kernels/activation.cuh"
#include "launchers.h"

RUSTTORCH_LAUNCHERS(activation, RUSTTORCH_ACTIVATION)
