#include "kernels/norm.cuh"
#include "launchers.h"

RUSTTORCH_LAUNCHERS(norm, NormArgs, {&launch_norm<true>}, {&launch_norm_backward<true>}, {&launch_norm<false>},
                    {&launch_norm_backward<false>})
