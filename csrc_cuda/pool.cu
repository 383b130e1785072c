#include "kernels/pool.cuh"
#include "launchers.h"

RUSTTORCH_LAUNCHERS(pool, PoolArgs, {&launch_pool<Largest>}, {&launch_pool_backward<true>}, {&launch_pool<Mean>},
                    {&launch_pool_backward<false>})
