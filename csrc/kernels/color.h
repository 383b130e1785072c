#pragma once

#include "family.h"

namespace rusttorch {

// What is done to the colors of an image, as torchvision.transforms.v2 means it; with what factor (factor) is.
enum class ColorStep : uint8_t {
  none,
  brightness,    // times the factor
  contrast,      // x factor + (the image's mean gray) (1 - factor)
  saturation,    // x factor + gray (1 - factor)
  hue,           // turned by the factor, of which 1 is all the way round
  invert,        // white - x
  solarize,      // white - x from the factor on
  posterize,     // all but the factor's first bits cleared
  autocontrast,  // each channel stretched from black to white
  equalize,      // each channel's values spread evenly
};
constexpr int color_steps = int(ColorStep::equalize) + 1;
constexpr int64_t color_most_steps = 8;  // of an image
constexpr int64_t color_unit = 64;

// Several steps for each image, one after the other. Whole numbers stay whole after each.
struct ColorArgs {
  bool bytes;        // uint8, whose white is 255; else float, whose white is 1
  bool interleaved;  // [pixels][3]; else [channels][pixels]
  bool stream;       // the output is too large for the cache: floats are written around it
  int64_t images, channels, pixels;
  int64_t begin, end;  // of each image, so many pixels of the result, color_unit at a time
  const void* in;
  void* out;  // may be in
  int64_t steps;
  const int64_t* which;  // [images][steps]: ColorSteps
  const float* factors;  // [images][steps]

  ColorArgs part(int64_t begin, int64_t end) const {
    ColorArgs part = *this;
    const int64_t bytes_of_image = channels * pixels * (bytes ? 1 : 4);
    part.images = end - begin;
    advance(part.in, begin * bytes_of_image);
    advance(part.out, begin * bytes_of_image);
    part.which += begin * steps;
    part.factors += begin * steps;
    return part;
  }
};

// out = in scale + shift, floats, in rows of n: each of a channel, or all of pixels, whose channels take turns.
struct NormalizeArgs {
  bool bytes, interleaved;
  bool stream;  // the output is too large for the cache: write it around it
  int64_t begin, end, n, channels;
  const void* in;
  float* out;
  const float *scale, *shift;  // of each channel; interleaved, again and again for normalize_period pixels

  NormalizeArgs part(int64_t from, int64_t to) const {
    NormalizeArgs part = *this;
    part.begin = from;
    part.end = to;
    return part;
  }
};
constexpr int64_t normalize_period = 16;

// Each image blended with the one before it, the first with the last: in kept + before (1 - kept). Rows of n floats:
// each image's channels.
struct MixArgs {
  bool stream;  // the output is too large for the cache: write it around it
  int64_t begin, end, n, channels;
  int64_t images;
  const float* in;
  float* out;
  const float* kept;  // of each image

  MixArgs part(int64_t from, int64_t to) const {
    MixArgs part = *this;
    part.begin = from;
    part.end = to;
    return part;
  }
};

#define RUSTTORCH_COLOR(X) X(change)
#define RUSTTORCH_NORMALIZE(X) X(scale_and_shift)
#define RUSTTORCH_MIX(X) X(with_before)

}  // namespace rusttorch

RUSTTORCH_DECLARE_FAMILY(color, ColorArgs, RUSTTORCH_COLOR)
RUSTTORCH_DECLARE_FAMILY(normalize, NormalizeArgs, RUSTTORCH_NORMALIZE)
RUSTTORCH_DECLARE_FAMILY(mix, MixArgs, RUSTTORCH_MIX)
