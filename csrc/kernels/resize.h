#pragma once

#include <algorithm>
#include <bit>
#include <type_traits>

#include "family.h"
#include "resize_rule.h"

namespace rusttorch {

// One dim, from what is given to the result. A device goes by the rule, from the input to the output, which a gradient
// goes backward. The CPU has tables of it: the element o of the result is the sum of counts[o] elements from[k][o] of
// what is given, by weights[k][o]; or 0. Those of one k ascend with o.
struct ResizeDim {
  int64_t in, out;
  ResizeRule<double> rule;
  int64_t taps;         // the most that an element has
  int64_t pitch;        // from from[k] to from[k + 1]: room for a vector beyond `out`
  const void* from;     // ResizeIndex of what is computed in
  const void* weights;  // in what is computed in
  const int64_t* counts;
  // (A vector of columns reads as many taps for each: a column with fewer has its last element several times, with a
  // share of its weight each.)
};

template <class C>
using ResizeIndex = std::conditional_t<sizeof(C) == 4, int32_t, int64_t>;

constexpr int64_t resize_slack = 64;    // room for whole vectors at the end of a row
constexpr int resize_device_taps = 80;  // the most that a device has room for

// Planes of [height][width][channels], with one channel where channels come before the height.
struct ResizeArgs {
  Dtype dtype;
  int64_t planes, channels;
  int64_t begin, end;  // rows of the result, counted through all planes: the CPU's part
  ResizeDim height, width;
  const void* in;
  void* out;
  bool is_gradient;
  bool stream;    // the result is too large for the cache: write it around that
  void* scratch;  // of a thread, for resize_scratch() numbers of 8 bytes

  ResizeArgs part(int64_t from, int64_t to) const {
    ResizeArgs part = *this;
    part.begin = from;
    part.end = to;
    return part;
  }
  // Where there are fewer rows of what is given than of the result, they are made wide first.
  bool is_width_first() const { return height.in <= height.out; }
  int64_t line() const { return width.in * channels + resize_slack; }
  int64_t wide_line() const { return (width.out * channels + resize_slack) / resize_slack * resize_slack; }
  // As many wide rows as an element has taps, or more, so that they are found by bits of a row's number.
  int64_t ring() const { return int64_t(std::bit_ceil(uint64_t(height.taps))); }
};

inline int64_t resize_scratch(const ResizeArgs& a) {
  return a.line() + a.ring() * (a.wide_line() + 2) + 2 * a.width.taps * a.width.pitch;
}

// X(name)
#define RUSTTORCH_RESIZE(X) \
  X(pick)                   \
  X(interpolate)

}  // namespace rusttorch

RUSTTORCH_DECLARE_FAMILY(resize, ResizeArgs, RUSTTORCH_RESIZE)
