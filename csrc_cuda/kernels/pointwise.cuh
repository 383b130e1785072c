#pragma once

#include "../../csrc/kernels/pointwise_formulas.h"
#include "loop.cuh"
