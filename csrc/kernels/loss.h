#pragma once

#include "family.h"
#include "loss_formulas.h"

// Each formula element by element, and the forward ones summed.
RUSTTORCH_DECLARE_FAMILY(loss, ElementwiseArgs, RUSTTORCH_LOSS)
RUSTTORCH_DECLARE_FAMILY(loss_total, ElementwiseArgs, RUSTTORCH_LOSS_FORWARD)
