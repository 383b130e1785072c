#pragma once

#include "family.h"

namespace rusttorch {

// One dim of a resized image: the element o of the result is the sum of `taps` lines of the image side by side, from
// first[o] on, by weights[o][0..taps).
struct ImageDim {
  int64_t out, taps;
  const int32_t* first;
  const void* weights;  // floats; for a result of bytes integers, 2^image_weight_bits times as large
};
constexpr int image_weight_bits = 22;

// A part of an image, resized: bytes, or levels from 0 to 255 times scale plus bias.
struct ImageArgs {
  const uint8_t* in;              // [height][width][channels]
  int64_t width, channels, line;  // line: from a row to the next, in bytes
  // The rows of the image that are needed, in ascending order: what the result's rows are made of is counted in these.
  const int32_t* lines;
  int64_t line_count;
  ImageDim rows, columns;
  int64_t begin, end;  // rows of the result
  bool clips_between;  // floats to 0 and 255 after the first pass, in which rows are made as wide as the result's
  bool clips;          // after the second
  float scale[4], bias[4];
  Dtype dtype;  // b8: bytes, which are rounded after each pass
  void* out;
  int64_t channel_stride, row_stride, column_stride;  // of the result, in elements
};

// X(name)
#define RUSTTORCH_IMAGE(X) X(resample)

}  // namespace rusttorch

RUSTTORCH_DECLARE_FAMILY(image, ImageArgs, RUSTTORCH_IMAGE)
