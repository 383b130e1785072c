#pragma once

#include <algorithm>

#include "family.h"

namespace rusttorch {

// One dim of the windows: what an element o of the output is made of.
template <class Int>
struct PoolDimOf {
  Int in, out, kernel, stride, padding, dilation;
  // Adaptive, and out does not divide in: windows differ in size, kernel is the largest's.
  bool irregular;

  PoolDimOf() = default;
  template <class Other>
  explicit PoolDimOf(const PoolDimOf<Other>& d)
      : in(Int(d.in)),
        out(Int(d.out)),
        kernel(Int(d.kernel)),
        stride(Int(d.stride)),
        padding(Int(d.padding)),
        dilation(Int(d.dilation)),
        irregular(d.irregular) {}

  // Where the window begins, which may be in the padding; its first element that is not; and where it ends.
  constexpr Int begin(Int o) const { return irregular ? o * in / out : o * stride - padding; }
  constexpr Int first(Int o) const {
    const Int b = begin(o);
    return b < 0 ? b + (-b + dilation - 1) / dilation * dilation : b;
  }
  constexpr Int end(Int o) const {
    return irregular ? ((o + 1) * in + out - 1) / out : std::min(o * stride - padding + span(), in);
  }
  // How many elements it has, with the padding or without.
  constexpr Int count(Int o, bool include_pad) const {
    return include_pad && !irregular ? std::min(kernel, in + 2 * padding - o * stride) : end(o) - first(o);
  }
  // Whether all windows have `kernel` of them, where the dilation is 1.
  bool has_equal_counts(bool include_pad) const {
    return include_pad && !irregular ? (out - 1) * stride + kernel <= in + 2 * padding : is_inside();
  }
  // The windows that have the element i, where the dilation is 1; else those among which they are.
  struct Windows {
    Int first, last;
    bool operator==(const Windows&) const = default;
  };
  constexpr Windows windows_with(Int i) const {
    if (irregular) return {i * out / in, ((i + 1) * out - 1) / in};
    const Int p = i + padding, before = p - span();
    return {before < 0 ? 0 : before / stride + 1, std::min(out - 1, p / stride)};
  }
  constexpr Int span() const { return (kernel - 1) * dilation + 1; }
  // Whether no window reaches beyond the input.
  bool is_inside() const { return !irregular && padding == 0 && (out - 1) * stride + span() <= in; }
  // How many more windows than one an element may be in.
  Int overlap() const { return irregular ? 0 : (kernel - 1) * dilation / stride; }
  // Whether 32 bits are enough for all of this, and for some hundred steps of the dilation.
  bool is_small() const {
    constexpr int64_t most = 1 << 30;
    if (irregular) return (in + 1) * (out + 1) < most;
    return in + 2 * padding + span() + stride < most && dilation < most >> 10;
  }
};
using PoolDim = PoolDimOf<int64_t>;

// Windows of images that are [image][height][width][channels], with one channel where channels come before height. Of
// the largest the index in its image's plane is written too; backward reads it.
struct PoolArgs {
  Dtype dtype;
  int64_t channels;
  // The items that are worked on: images, or on the CPU with several channels, forward, rows of the output.
  int64_t begin, end;
  PoolDim height, width;
  const void* in;  // x, or the gradient of y
  void* out;       // y, or the gradient of x
  int64_t* index;
  bool count_include_pad;
  int64_t divisor;  // instead of the count; 0: none
  void* scratch;    // of a thread of the CPU: so many numbers of 8 bytes as Pool...Rows says

  // Whether rows of the output are too short for vectors of their own, by measurement, and may be taken together.
  bool has_narrow_planes() const {
    return channels == 1 && width.out < (width.stride > 1 ? 12 : 7) && height.is_inside() && width.is_inside();
  }

  PoolArgs part(int64_t from, int64_t to) const {
    PoolArgs part = *this;
    part.begin = from;
    part.end = to;
    return part;
  }
};

// Room for whole vectors at the end of a row.
constexpr int64_t pool_slack = 64;

// Forward, with one channel: the rows of a window and of the next one (of a mean their sums), in as many lines as the
// stride, so that neighbours of the output read neighbours (irregular: a line for each element of the window).
struct PoolForwardRows {
  int64_t lines, pitch, rows;

  PoolForwardRows(const PoolArgs& a, bool largest)
      : lines(a.width.irregular ? a.width.kernel : a.width.stride),
        pitch(a.width.out + a.width.overlap() + pool_slack),
        rows(largest ? a.height.span() + std::max(a.height.stride, a.height.irregular ? a.height.kernel : 0) : 2) {}
  int64_t numbers(const PoolArgs& a) const {
    return rows * lines * pitch + 3 * (a.width.out + pool_slack) + a.width.kernel + a.height.kernel + a.width.in +
           pool_slack;
  }
};

// Backward, of a mean: the rows of the output that an element of the input may be in the windows of, and the next one;
// with several channels what a window's divisor makes of its gradient.
struct PoolBackwardRows {
  int64_t pitch, rows;

  explicit PoolBackwardRows(const PoolArgs& a)
      : pitch(std::max((a.width.in + a.width.padding) / a.width.stride, a.width.out) + a.width.overlap() + pool_slack),
        rows(a.height.overlap() + 2) {}
  int64_t numbers(const PoolArgs& a) const {
    if (a.channels > 1) return a.height.out * a.width.out;
    return rows * pitch + a.width.out + pool_slack + a.width.kernel + a.width.stride + 1;
  }
};

// X(name)
#define RUSTTORCH_POOL(X) \
  X(max_pool)             \
  X(max_pool_backward)    \
  X(avg_pool)             \
  X(avg_pool_backward)

}  // namespace rusttorch

RUSTTORCH_DECLARE_FAMILY(pool, PoolArgs, RUSTTORCH_POOL)
