#include "activation.h"

#include "loop.h"

RUSTTORCH_KERNELS(activation, RUSTTORCH_ACTIVATION)
