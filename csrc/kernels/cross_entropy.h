#pragma once

#include "stub.h"

namespace rusttorch {

// The cross entropy of each row x[r][0..classes) with its target: a class, or a probability for each class.
//   loss[r] = sum over c of q[c] (lse - x[c])        lse = log(sum over c of exp(x[c]))
// where q is the target smoothed, times the weight: for a class t, q[c] = w[c] (s / classes + (c == t) (1 - s)); for
// probabilities p, q[c] = w[c] (s / classes + (1 - s) p[c]).
struct CrossEntropyArgs {
  Dtype dtype;
  int64_t rows, classes;
  const void* x;
  const int64_t* target;      // each in [0, classes) or ignore_index; none: probabilities
  const void* probabilities;  // as x
  const void* weight;         // of each class; none: 1
  int64_t ignore_index;
  double smoothing;
  double* lse;  // of each row: written forward, read for the slope
  // Forward: the loss of each row, or none; and the sum of all.
  void* loss;
  double total;
  // On a device, where the total is not read: the loss and the target's weight of each row, and, if they are wanted,
  // the weights' sum and the losses' sum, divided by it for a mean.
  double *row_losses, *row_weights, *total_weight;
  void* result;
  bool mean;
  // Slope: the gradient of each row's loss, divided by *divisor. Backward: such a slope, in x, times one number, or one
  // for each row, divided by *divisor; where the target is ignored it is 0 whatever they are.
  void* grad_x;  // may be x itself
  const void* grad;
  bool grad_of_rows;
  const double* divisor;  // none: 1
};

// Whether a mean's slope is divided as it is made, or only in the backward: a half would lose it, and a loss that is
// scaled to prevent that would be scaled too late.
constexpr bool divides_slope(bool mean, bool half) { return mean && !half; }

struct CrossEntropyKernel {
  void (*run)(CrossEntropyArgs&);
};

#define RUSTTORCH_CROSS_ENTROPY(X) \
  X(forward)                       \
  X(slope)                         \
  X(backward)

}  // namespace rusttorch

RUSTTORCH_DECLARE_FAMILY_OF(CrossEntropyKernel, cross_entropy, RUSTTORCH_CROSS_ENTROPY)
