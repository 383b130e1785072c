#include "kernels/batch_norm.cuh"
#include "launchers.h"

RUSTTORCH_LAUNCHERS(batch_norm, BatchNormArgs, {&launch_moments, floats}, {&launch_normalize, floats},
                    {&launch_products, floats}, {&launch_gradient, floats})
