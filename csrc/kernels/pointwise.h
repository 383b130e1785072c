#pragma once

#include "family.h"
#include "pointwise_formulas.h"

RUSTTORCH_DECLARE_FAMILY(pointwise, ElementwiseArgs, RUSTTORCH_POINTWISE)
