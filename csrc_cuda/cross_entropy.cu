#include "kernels/cross_entropy.cuh"
#include "launchers.h"

RUSTTORCH_LAUNCHERS(cross_entropy, CrossEntropyArgs, {&launch_cross_entropy<cross_entropy::forward>},
                    {&launch_cross_entropy<cross_entropy::slope>}, {&launch_cross_entropy<cross_entropy::backward>})
