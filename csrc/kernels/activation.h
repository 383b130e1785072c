#pragma once

#include "activation_formulas.h"
#include "family.h"

RUSTTORCH_DECLARE_FAMILY(activation, ElementwiseArgs, RUSTTORCH_ACTIVATION)
