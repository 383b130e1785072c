#include "kernels/copy.cuh"
#include "launchers.h"

RUSTTORCH_LAUNCHERS(copy, TransposeArgs, {&launch_transpose})
