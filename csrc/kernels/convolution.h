#pragma once

#include "family.h"

namespace rusttorch {

// One dim of a convolution: output o reads the inputs o * stride - padding + k * dilation for k in [0, kernel).
struct ConvolutionSide {
  int64_t in, out, kernel, stride, padding, dilation;
};

// A depthwise convolution: each of the channels has a filter of its own, and a plane of its own for each of the batch.
// Of 16 bits it is summed in float. Items are blocks of channels (`channels_of_item`), times the batch unless it is the
// filters' gradient that is asked for, which is a sum over all of the batch.
// Or a convolution of few channels, which all filters read ("patches", contiguous): items are some rows of an image's
// output (`rows_of_patches`); images, of the input's gradient; or filters, of theirs.
struct ConvolutionArgs {
  Dtype dtype;
  bool channels_last;
  int64_t batch, channels, filters;
  ConvolutionSide rows, columns;
  const void *input, *weight, *bias, *grad;  // grad: of the output. Those that the kernel reads; bias or nullptr
  void *out, *out_bias;  // the output; the input's gradient; the weight's and the bias' (or nullptr)
  int64_t begin, end;    // items

  ConvolutionArgs part(int64_t first, int64_t last) const {
    ConvolutionArgs part = *this;
    part.begin = first;
    part.end = last;
    return part;
  }
};

// How many channels an item has, for any instruction set.
constexpr int64_t channels_of_item(const ConvolutionArgs& a) {
  return !a.channels_last ? 1 : a.dtype == Dtype::f64 ? 8 : 16;
}

// Of patches: how many rows of the output are worked on at once, in as many bands as that makes of an image.
constexpr int64_t rows_of_patches(const ConvolutionArgs& a) {
  constexpr int64_t bytes = 512 << 10;
  const int64_t lines = a.channels * a.rows.kernel * a.columns.kernel + a.filters;
  const int64_t rows = bytes / (lines * a.columns.out * (a.dtype == Dtype::f64 ? 8 : 4));
  return rows < 1 ? 1 : rows;
}
constexpr int64_t bands_of_patches(const ConvolutionArgs& a) {
  return (a.rows.out + rows_of_patches(a) - 1) / rows_of_patches(a);
}

// Whether a copy of an image's rows, with the zeros around them and in the phases of a stride, is not many times as
// large.
constexpr bool has_room_for_copies(const ConvolutionArgs& a) {
  const auto padded = [](const ConvolutionSide& s) { return s.in + 2 * s.padding; };
  constexpr int64_t vector = 16, little = 1 << 16;
  if (padded(a.rows) > little || padded(a.columns) > (1 << 24) || a.columns.stride > little) return false;
  return padded(a.rows) * (padded(a.columns) + vector * a.columns.stride) <= 4 * a.rows.in * a.columns.in + little;
}

// X(name)
#define RUSTTORCH_CONVOLUTION(X) \
  X(depthwise)                   \
  X(depthwise_backward_input)    \
  X(depthwise_backward_weight)   \
  X(patches)                     \
  X(patches_backward_input)      \
  X(patches_backward_weight)

}  // namespace rusttorch

RUSTTORCH_DECLARE_FAMILY(convolution, ConvolutionArgs, RUSTTORCH_CONVOLUTION)
