#pragma once

// All families' kernels.

#include "activation.h"
#include "copy.h"
#include "cross_entropy.h"
#include "dropout.h"
#include "loss.h"
#include "matmul.h"
#include "norm.h"
#include "optimizer.h"
#include "pointwise.h"
#include "reduction.h"
#include "scan.h"
#include "softmax.h"
