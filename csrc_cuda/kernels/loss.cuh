#pragma once

#include "../../csrc/kernels/loss_formulas.h"
#include "total.cuh"
