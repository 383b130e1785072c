#pragma once

#include "../../csrc/kernels/activation_formulas.h"
#include "loop.cuh"
