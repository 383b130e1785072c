#include "kernels/rope.cuh"
#include "launchers.h"

RUSTTORCH_LAUNCHERS(rope, RopeArgs, {&launch_turn})
