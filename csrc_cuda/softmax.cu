#include "kernels/softmax.cuh"
#include "launchers.h"

RUSTTORCH_LAUNCHERS(softmax, SoftmaxArgs, {&launch_softmax<true, false>}, {&launch_softmax<true, true>},
                    {&launch_softmax<false, false>}, {&launch_softmax<false, true>})
