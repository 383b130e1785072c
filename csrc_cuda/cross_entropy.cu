#include "kernels/cross_entropy.cuh"
#include "launchers.h"

RUSTTORCH_LAUNCHERS(cross_entropy, CrossEntropyArgs, {&launch_cross_entropy<true>}, {&launch_cross_entropy<false>})
