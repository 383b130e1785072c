#pragma once

#include <initializer_list>

#include "family.h"

namespace rusttorch {

// The cross entropy of each row x[r][0..classes) with its target: a class, or a probability for each class.
//   loss[r] = sum over c of q[c] (lse - x[c])        lse = log(sum over c of exp(x[c]))
// and z_loss lse^2 (PaLM: A. Chowdhery et al., 2022), unless the target is ignored. q is the target smoothed, times the
// weight: for a class t, q[c] = w[c] (s / classes + (c == t) (1 - s)); for probabilities p, q[c] = w[c] (s / classes +
// (1 - s) p[c]).
struct CrossEntropyArgs {
  Dtype dtype;
  int64_t rows, classes;
  const void* x;
  const int64_t* target;      // each in [0, classes) or ignore_index; none: probabilities
  const void* probabilities;  // as x
  const void* weight;         // of each class; none: 1
  int64_t ignore_index;
  double smoothing, z_loss;
  double softcap;  // x is softcap tanh of what the slope is asked for; 0: it is that itself
  // Of each row, written forward, read for the slope: the largest x, and log(sum(exp(x - largest))). Their sum is lse;
  // where the largest is huge, the sum is not seen in it.
  double *largest, *log_sum;
  // Forward: the loss of each row, or none; and, on the CPU, the sum of all.
  void* loss;
  double* total;
  // On a device, where the total is not read: the loss and the target's weight of each row, and, if they are wanted,
  // the weights' sum and the losses' sum, divided by it for a mean.
  double *row_losses, *row_weights, *total_weight;
  void* result;
  bool mean;
  // Slope: the gradient of each row's loss, divided by *divisor.
  void* grad_x;           // may be x itself
  const double* divisor;  // none: 1
  // Backward: grad_x is a slope, which x is, times one number, or one for each row. Where the target is ignored it is 0
  // whatever they are.
  const void* grad;
  bool grad_of_rows;

  CrossEntropyArgs part(int64_t begin, int64_t end) const {
    CrossEntropyArgs part = *this;
    part.rows = end - begin;
    const int64_t size = element_size(dtype), row = classes * size;
    advance(part.x, begin * row);
    advance(part.probabilities, begin * row);
    advance(part.grad_x, begin * row);
    advance(part.target, begin * int64_t(sizeof(int64_t)));
    for (double** p : {&part.largest, &part.log_sum}) advance(*p, begin * int64_t(sizeof(double)));
    advance(part.loss, begin * size);
    if (grad_of_rows) advance(part.grad, begin * size);
    return part;
  }
};

#define RUSTTORCH_CROSS_ENTROPY(X) \
  X(forward)                       \
  X(slope)                         \
  X(backward)

}  // namespace rusttorch

RUSTTORCH_DECLARE_FAMILY(cross_entropy, CrossEntropyArgs, RUSTTORCH_CROSS_ENTROPY)
