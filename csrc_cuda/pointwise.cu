#include "kernels/pointwise.cuh"
#include "launchers.h"

RUSTTORCH_LAUNCHERS(pointwise, RUSTTORCH_POINTWISE)
