#pragma once

#include "stub.h"

namespace rusttorch {

// out[o][k][i] from in[o][0..n)[i]: softmax and its kin along the middle of three dims.
struct SoftmaxArgs {
  Dtype dtype;
  int64_t outer, n, inner;
  int64_t row;        // elements from [o][k] to [o][k + 1]: inner, or more where inner is a part of it
  const void* in[2];  // the input; or, of a backward, the gradient and the output
  void* out;
};

struct SoftmaxKernel {
  void (*run)(const SoftmaxArgs&);
};

#define RUSTTORCH_SOFTMAX(X) \
  X(softmax)                 \
  X(log_softmax)             \
  X(softmax_backward)        \
  X(log_softmax_backward)

}  // namespace rusttorch

RUSTTORCH_DECLARE_FAMILY_OF(SoftmaxKernel, softmax, RUSTTORCH_SOFTMAX)
