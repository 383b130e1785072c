#pragma once

#include "along.h"
#include "family.h"

namespace rusttorch {

// out[o][k][i] from in[o][0..n)[i]: softmax and its kin along the middle of three dims.
struct SoftmaxArgs : Along {
  const void* in[2];  // the input; or, of a backward, the gradient and the output
  void* out;

  // From the element `at` on: so many outer ones, of so many columns.
  SoftmaxArgs part(int64_t at, int64_t outer, int64_t inner) const {
    SoftmaxArgs part = *this;
    part.outer = outer;
    part.inner = inner;
    for (auto& p : part.in) advance(p, at * element_size(dtype));
    advance(part.out, at * element_size(dtype));
    return part;
  }
};

#define RUSTTORCH_SOFTMAX(X) \
  X(softmax)                 \
  X(log_softmax)             \
  X(softmax_backward)        \
  X(log_softmax_backward)

}  // namespace rusttorch

RUSTTORCH_DECLARE_FAMILY(softmax, SoftmaxArgs, RUSTTORCH_SOFTMAX)
