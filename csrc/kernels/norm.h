#pragma once

#include "stub.h"

namespace rusttorch {

// Rows of n, each made to have a mean of 0 and a variance of 1 (layer norm: J. L. Ba et al., 2016), or a mean square of
// 1 (RMS norm: B. Zhang and R. Sennrich, 2019):
//   y = (x - mean) rstd weight + bias
// mean, rstd and the gradients of weight and bias are in what is computed in: float, or double for double.
struct NormArgs {
  Dtype dtype;
  int64_t rows, n;
  const void *x, *weight, *bias;  // weight and bias: or nullptr
  void *mean, *rstd;              // one a row; RMS norm has no mean
  double eps;
  void* y;  // or the gradient of x
  // Backward: of y, and what is added to for weight and bias, or nullptr.
  const void* grad;
  void *grad_weight, *grad_bias;
};

struct NormKernel {
  void (*run)(const NormArgs&);
};

// X(name)
#define RUSTTORCH_NORM(X) \
  X(layer_norm)           \
  X(layer_norm_backward)  \
  X(rms_norm)             \
  X(rms_norm_backward)

}  // namespace rusttorch

RUSTTORCH_DECLARE_FAMILY_OF(NormKernel, norm, RUSTTORCH_NORM)
