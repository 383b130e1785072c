#include "kernels/resize.cuh"
#include "launchers.h"

RUSTTORCH_LAUNCHERS(resize, ResizeArgs, {&launch_resize<1>}, {&launch_interpolate})
