#pragma once

#include "loss_formulas.h"
#include "stub.h"

// Each formula element by element, and the forward ones summed.
RUSTTORCH_DECLARE_FAMILY(loss, RUSTTORCH_LOSS)
RUSTTORCH_DECLARE_FAMILY(loss_total, RUSTTORCH_LOSS_FORWARD)
