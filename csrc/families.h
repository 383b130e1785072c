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
  X(rope)                                    \
  X(batch_norm)                              \
  X(group_norm)                              \
  X(matmul)                                  \
  X(linear)                                  \
  X(convolution)                             \
  X(dropout)                                 \
  X(pool)                                    \
  X(resize)                                  \
  X(embedding)                               \
  X(embedding_bag)                           \
  X(scatter)                                 \
  X(attention)                               \
  X(recurrent)                               \
  X(foreach)

#define RUSTTORCH_FAMILIES(X)          \
  RUSTTORCH_DIFFERENTIABLE_FAMILIES(X) \
  X(color)                             \
  X(crop)                              \
  X(filter)                            \
  X(image)                             \
  X(warp)                              \
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
  X(rope, RopeArgs)                  \
  X(pool, PoolArgs)                  \
  X(resize, ResizeArgs)              \
  X(batch_norm, BatchNormArgs)       \
  X(optimizer, OptimizerArgs)

// And those that a device has not: stock's draws its own random numbers there, products are cuBLAS's and convolutions
// cuDNN's; of attention, embedding and scattering there are no kernels yet, so that stock's run. Recurrent layers are
// cuDNN's, too. Images are where they were decoded, and batches of them are changed there.
#define RUSTTORCH_CPU_TABLES(X)   \
  X(attention, AttentionArgs)     \
  X(convolution, ConvolutionArgs) \
  X(dropout, DropoutArgs)         \
  X(embedding, RowsArgs)          \
  X(image, ImageArgs)             \
  X(matmul, MatmulArgs)           \
  X(recurrent, RecurrentArgs)     \
  X(scatter, ScatterArgs)         \
  X(color, ColorArgs)             \
  X(mix, MixArgs)                 \
  X(normalize, NormalizeArgs)     \
  X(warp, WarpArgs)               \
  X(crop, CropArgs)               \
  X(filter, FilterArgs)
