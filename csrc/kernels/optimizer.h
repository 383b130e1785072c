#pragma once

#include "stub.h"

namespace rusttorch {

// One step of an optimizer over a run of parameters, in place. Kernels keep their state in the parameters' dtype, or,
// for bf16 and f16 parameters, in float.
struct OptimizerArgs {
  Dtype dtype, state_dtype;
  bool maximize;
  bool begins;  // the first step: momentum is the gradient
  int64_t n;
  void* p;
  const void* g;
  void* state[3];       // momentum; or mean, mean square and the largest so far of that; or sum of squares
  double lr;            // of this step
  double weight_decay;  // times the parameter, added to the gradient
  double kept;          // of the parameter, where its decay is apart from the gradient
  double beta1, beta2;  // beta1: or the momentum
  double taken;         // of the gradient, into the momentum
  double correction;    // of the root of the mean square
  double eps;
};

struct OptimizerKernel {
  void (*run)(const OptimizerArgs&);
};

// X(name, states)
#define RUSTTORCH_OPTIMIZER(X) \
  X(sgd, 0)                    \
  X(sgd_momentum, 1)           \
  X(sgd_nesterov, 1)           \
  X(adam, 2)                   \
  X(adam_amsgrad, 3)           \
  X(adagrad, 1)

}  // namespace rusttorch

RUSTTORCH_DECLARE_FAMILY_OF(OptimizerKernel, optimizer, RUSTTORCH_OPTIMIZER)
