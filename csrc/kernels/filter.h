#pragma once

#include "family.h"

namespace rusttorch {

// Images, each filtered with weights of its own.
struct FilterArgs {
  bool bytes;                   // uint8; else float
  int64_t images, planes;       // of an image
  int64_t height, width, step;  // pixels, and how far apart they are in a row: the channels, where they are interleaved
  int64_t begin, end;           // of each plane, rows of the result
  const void* in;
  void* out;
  // blur: [images][taps], odd, for rows and columns, with the image mirrored about its edge.
  // sharpen: a factor for each image: x factor + (x blurred by 3 x 3) (1 - factor), but for the edge, which stays.
  const float *across, *down;
  int64_t taps_across, taps_down;
  void* scratch;  // filter_scratch() floats

  FilterArgs part(int64_t begin, int64_t end) const {
    FilterArgs part = *this;
    const int64_t bytes_of_image = planes * height * width * step * (bytes ? 1 : 4);
    part.images = end - begin;
    advance(part.in, begin * bytes_of_image);
    advance(part.out, begin * bytes_of_image);
    part.across += begin * taps_across;
    if (down) part.down += begin * taps_down;
    return part;
  }
};

// The rows that a row of the result is made of, and one row with what lies beyond it: whole vectors of each.
constexpr int64_t filter_slack = 16, filter_most_taps = 255;
inline int64_t filter_pitch(const FilterArgs& a) { return a.width * a.step + filter_slack; }
inline int64_t filter_scratch(const FilterArgs& a) {
  return (a.taps_down + 1) * filter_pitch(a) + (a.taps_across - 1) * a.step;
}

#define RUSTTORCH_FILTER(X) \
  X(blur)                   \
  X(sharpen)

}  // namespace rusttorch

RUSTTORCH_DECLARE_FAMILY(filter, FilterArgs, RUSTTORCH_FILTER)
