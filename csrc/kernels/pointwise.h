#pragma once

#include "pointwise_formulas.h"
#include "stub.h"

RUSTTORCH_DECLARE_FAMILY(pointwise, RUSTTORCH_POINTWISE)
