#pragma once

#include "family.h"

namespace rusttorch {

// Each pixel of an image from where a matrix says, in images of its own size or another. Points have (0, 0) at the
// corner of the first pixel, whose middle is (0.5, 0.5).
struct WarpArgs {
  bool bytes;        // uint8; else float
  bool interleaved;  // [height][width][channels]; else [channels][height][width]
  int64_t images, channels;
  int64_t in_height, in_width, out_height, out_width;
  int64_t begin, end;  // of each image, rows of the result
  const void* in;
  void* out;
  const double* matrix;  // [images][9]: from (x, y, 1) in the result to (x w, y w, w) in the image
  const float* box;      // [images][4]: left, top, right, bottom, beyond which its edge goes on; or nullptr
  const float* fill;     // [channels], for what is beyond the image where there is no box
  void* scratch;         // warp_scratch() bytes

  WarpArgs part(int64_t begin, int64_t end) const {
    WarpArgs part = *this;
    const int64_t bytes_of_channel = channels * (bytes ? 1 : 4);
    part.images = end - begin;
    advance(part.in, begin * in_height * in_width * bytes_of_channel);
    advance(part.out, begin * out_height * out_width * bytes_of_channel);
    part.matrix += 9 * begin;
    if (box) part.box += 4 * begin;
    return part;
  }
};

// An image is sampled from a copy that has four channels in a pixel, and so many pixels more on each side; where rows
// stay rows, from a row of floats at a time. Beside it is what is known of a row of the result. Whole vectors of each.
constexpr int64_t warp_border = 2, warp_channels = 4, warp_slack = 64;
inline int64_t warp_source(const WarpArgs& a) {  // bytes
  const int64_t height = a.in_height + 2 * warp_border, width = a.in_width + 2 * warp_border;
  const int64_t copy = (height * width * warp_channels + warp_slack) * (a.bytes ? 1 : 4);
  const int64_t row = (width * warp_channels + warp_slack) * 4;
  return ((copy > row ? copy : row) + 63) / 64 * 64;
}
inline int64_t warp_pitch(const WarpArgs& a) { return a.out_width + warp_slack; }
inline int64_t warp_scratch(const WarpArgs& a) { return warp_source(a) + (3 + warp_channels) * warp_pitch(a) * 4; }

#define RUSTTORCH_WARP(X) \
  X(nearest)              \
  X(bilinear)

}  // namespace rusttorch

RUSTTORCH_DECLARE_FAMILY(warp, WarpArgs, RUSTTORCH_WARP)
