#pragma once

// The one list of families. A family has a file in each room that it needs: csrc/ops, csrc/kernels, csrc/autograd,
// csrc_cuda and tests. Python scripts and the Makefile read it here too.

// Those with a derivative:
#define RUSTTORCH_DIFFERENTIABLE_FAMILIES(X) \
  X(pointwise)                               \
  X(activation)                              \
  X(reduction)                               \
  X(scan)                                    \
  X(copy)                                    \
  X(softmax)                                 \
  X(loss)                                    \
  X(cross_entropy)                           \
  X(norm)                                    \
  X(matmul)                                  \
  X(linear)                                  \
  X(dropout)                                 \
  X(foreach)

#define RUSTTORCH_FAMILIES(X)          \
  RUSTTORCH_DIFFERENTIABLE_FAMILIES(X) \
  X(optimizer)

// The tables of kernels that a device has too, and what their kernels are given:
#define RUSTTORCH_DEVICE_TABLES(X)   \
  X(pointwise, ElementwiseArgs)      \
  X(activation, ElementwiseArgs)     \
  X(loss, ElementwiseArgs)           \
  X(loss_total, ElementwiseArgs)     \
  X(reduction, ReductionArgs)        \
  X(scan, ScanArgs)                  \
  X(copy, TransposeArgs)             \
  X(softmax, SoftmaxArgs)            \
  X(cross_entropy, CrossEntropyArgs) \
  X(norm, NormArgs)                  \
  X(optimizer, OptimizerArgs)

// And those that a device has not: stock's draws its own random numbers there, and products are cuBLAS's.
#define RUSTTORCH_CPU_TABLES(X) X(dropout, DropoutArgs) X(matmul, MatmulArgs)
