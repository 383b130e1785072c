#include "pointwise.h"

#include "loop.h"

RUSTTORCH_KERNELS(pointwise, RUSTTORCH_POINTWISE)
