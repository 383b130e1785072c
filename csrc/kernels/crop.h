#pragma once

#include "family.h"

namespace rusttorch {

// A part of each image, of one size, some of them mirrored.
struct CropArgs {
  int64_t element_size;  // of a channel: 1 or 4
  bool stream;           // the output is too large for the cache: write it around it
  bool interleaved;      // [height][width][channels]; else [channels][height][width]
  int64_t images, channels;
  int64_t begin, end;  // of each image, rows of the result
  int64_t in_height, in_width, out_height, out_width;
  const void* in;
  void* out;
  const int64_t* corner;  // [images][2]: top and left, which may be beyond the image
  const bool* mirrored;   // [images][2]: upside down, and left to right, after it is cut out
  const void* fill;       // [channels], for what is beyond

  CropArgs part(int64_t begin, int64_t end) const {
    CropArgs part = *this;
    const int64_t bytes_of_pixel = channels * element_size;
    part.images = end - begin;
    advance(part.in, begin * in_height * in_width * bytes_of_pixel);
    advance(part.out, begin * out_height * out_width * bytes_of_pixel);
    part.corner += 2 * begin;
    part.mirrored += 2 * begin;
    return part;
  }
};

#define RUSTTORCH_CROP(X) X(cut)

}  // namespace rusttorch

RUSTTORCH_DECLARE_FAMILY(crop, CropArgs, RUSTTORCH_CROP)
