#include "loss.h"

#include "loop.h"
#include "total.h"

RUSTTORCH_KERNELS(loss, RUSTTORCH_LOSS)

#define RUSTTORCH_TOTAL(NAME, ...) {&run_total<NAME##_formula>, NAME##_formula::types},
RUSTTORCH_DEFINE_TABLE(loss_total, ElementwiseArgs, RUSTTORCH_LOSS_FORWARD(RUSTTORCH_TOTAL))
