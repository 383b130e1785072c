#pragma once

#include "family.h"

namespace rusttorch {

// Some of a parameter, with its gradient and state.
struct OptimizerEntry {
  Dtype dtype, state_dtype;  // of bf16 and f16 parameters the state may be float
  int64_t n;
  void* p;
  void* g;         // written where it is unscaled, on a device
  void* state[3];  // momentum; or mean, mean square and the largest so far of that; or sum of squares
  double step;     // how many steps this one makes; or, on a device, in *step_there
  const float* step_there;
};

// One step of an optimizer over a list of them, in place. On a device all are of one dtype.
struct OptimizerArgs {
  const OptimizerEntry* entries;
  int64_t count;
  bool maximize;
  bool begins;      // the first step: momentum is the gradient
  bool decoupled;   // the decay is apart from the gradient
  double lr;        // or, on a device, in *lr_there
  double lr_decay;  // of Adagrad
  double weight_decay;
  double beta1, beta2;  // beta1: or the momentum
  double taken;         // of the gradient, into the momentum
  double eps;
  const float *lr_there, *grad_scale, *found_inf;  // on a device, or nullptr
};

// X(name, states, rates): rates is how lr follows from the step (optimizer_formulas.h).
#define RUSTTORCH_OPTIMIZER(X)       \
  X(sgd, 0, constant)                \
  X(sgd_momentum, 1, constant)       \
  X(sgd_nesterov, 1, constant)       \
  X(adam, 2, bias_corrected)         \
  X(adam_amsgrad, 3, bias_corrected) \
  X(adagrad, 1, decaying)

}  // namespace rusttorch

RUSTTORCH_DECLARE_FAMILY(optimizer, OptimizerArgs, RUSTTORCH_OPTIMIZER)
