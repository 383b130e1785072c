#pragma once

#include <limits>

#include "family.h"
#include "tiles.h"

namespace rusttorch {

// Rows of n, each made to have a mean of 0 and a variance of 1 (layer norm: J. L. Ba et al., 2016), or a mean square of
// 1 (RMS norm: B. Zhang and R. Sennrich, 2019):
//   y = (x - mean) rstd (weight + offset) + bias
// mean and rstd (and on the CPU the gradients of weight and bias) are in what is computed in: float, or double for
// double.
struct NormArgs {
  Dtype dtype;
  int64_t rows, n;
  const void *x, *weight, *bias;  // weight and bias: or nullptr
  void *mean, *rstd;              // one a row; RMS norm has no mean
  double eps;
  void* y;  // or the gradient of x
  // On the CPU: what is added to x first, and the sum, which is written, and is normalized; or nullptr. Beside floats
  // the residual may be of 16 bits.
  const void* residual;
  Dtype residual_dtype;
  void* sum;
  double offset;  // of the weight; -0 for none, which keeps the sign of a zero
  // Backward: the gradient of y, and those of weight and bias, or nullptr. On the CPU these are added to.
  const void* grad;
  void *grad_weight, *grad_bias;
  const void* grad_sum;  // on the CPU: another gradient of x, which is added; or nullptr
  void* workspace;       // on a device: a pair of sums for each of DeviceNorm's parts and each column

  NormArgs part(int64_t begin, int64_t end) const {
    NormArgs part = *this;
    part.rows = end - begin;
    const int64_t row = n * element_size(dtype), statistic = dtype == Dtype::f64 ? 8 : 4;
    advance(part.x, begin * row);
    advance(part.grad, begin * row);
    advance(part.y, begin * row);
    advance(part.residual, begin * n * element_size(residual_dtype));
    advance(part.sum, begin * row);
    advance(part.grad_sum, begin * row);
    advance(part.mean, begin * statistic);
    advance(part.rstd, begin * statistic);
    return part;
  }
};

// How a device's blocks share the sums over all rows, for the gradients of weight and bias: each leaves its part.
struct DeviceNorm : DeviceTiles {
  static constexpr int columns = 32;  // of a block, where a row is too long for a block to keep its sums

  // A thread keeps as many elements of x and of the gradient (share.cuh).
  DeviceNorm(int64_t rows, int64_t n, Dtype dtype)
      : DeviceTiles(rows, n, 1, dtype == Dtype::f64 ? 8 : 16), blocks_of_columns((n + columns - 1) / columns) {
    constexpr int64_t most = 256;  // parts: two blocks for each multiprocessor of a large device
    rows_of_part = (rows + most * runs - 1) / (most * runs) * runs;
    parts = (rows + rows_of_part - 1) / rows_of_part;
  }

  int64_t blocks_of_columns, rows_of_part, parts;
};

// RMS norm's own eps: the step of the type that is computed in.
constexpr double rms_norm_eps(bool is_double) {
  return is_double ? std::numeric_limits<double>::epsilon() : std::numeric_limits<float>::epsilon();
}

// X(name)
#define RUSTTORCH_NORM(X) \
  X(layer_norm)           \
  X(layer_norm_backward)  \
  X(rms_norm)             \
  X(rms_norm_backward)

}  // namespace rusttorch

RUSTTORCH_DECLARE_FAMILY(norm, NormArgs, RUSTTORCH_NORM)
