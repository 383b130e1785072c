#pragma once

#include "activation_formulas.h"
#include "stub.h"

RUSTTORCH_DECLARE_FAMILY(activation, RUSTTORCH_ACTIVATION)
