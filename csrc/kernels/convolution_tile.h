#pragma once

// Of a depthwise convolution: some rows of the output, whose sums stay in registers, and the sums of a filter's
// gradient. A vector is of neighbours in a row, which have the weight in common, or of neighbouring channels.

#include "runs.h"

namespace rusttorch {
namespace {

// Rows of the output, column by column of vectors. The input lies padded: at in + r * in_row + offset is what the tap
// with this offset reads for the output row r.
template <class C>
struct Band {
  const C* in;
  int64_t in_row, in_step;
  const C *weight, *bias;  // of a tap: a number, or a vector of them
  const int64_t* offset;   // of the taps, or of one row of them
  int64_t taps;            // that have an offset
  C* to;
  int64_t to_row, to_step;
  int64_t rows, steps;
  int64_t count;  // lanes that are stored
};

// What several operations read is loaded once; the compiler would load it for each of them.
template <class V>
RT_INLINE V in_register(V v) {
  asm("" : "+v"(v));
  return v;
}

template <class V, bool of_channels>
RT_INLINE V weight_of(const lane_t<V>* weight, int64_t tap) {
  if constexpr (of_channels) {
    return load<V>(weight + tap * lanes<V>);
  } else {
    return splat<V>(weight[tap]);
  }
}

// A vector of the input is read once for all rows of the output that it belongs to, where the filter's height and the
// stride are known (height 0: they are not).
template <class V, bool of_channels, int height, int stride, int most_rows>
__attribute__((noinline)) void convolve(const Band<lane_t<V>>& b) {
  using C = lane_t<V>;
  const C *in = b.in, *const weight = b.weight;
  C* to = b.to;
  const int64_t in_row = b.in_row, taps = b.taps, to_row = b.to_row, rows = b.rows, count = b.count;
  const V bias = weight_of<V, of_channels>(b.bias, 0);
  for (int64_t s = 0; s < b.steps; ++s, in += b.in_step, to += b.to_step) {
    V sums[most_rows];
#pragma GCC unroll 8
    for (int r = 0; r < most_rows; ++r) sums[r] = bias;
#pragma GCC unroll 1
    for (int64_t t = 0; t < taps; ++t) {
      const C* x = in + b.offset[t];
      if constexpr (height == 0) {
        const V w = in_register(weight_of<V, of_channels>(weight, t));
#pragma GCC unroll 8
        for (int r = 0; r < most_rows; ++r, x += in_row) sums[r] += w * load<V>(x);
      } else {
        V w[height];
#pragma GCC unroll 8
        for (int k = 0; k < height; ++k) w[k] = in_register(weight_of<V, of_channels>(weight, k * taps + t));
#pragma GCC unroll 24
        for (int i = 0; i < (most_rows - 1) * stride + height; ++i, x += in_row) {
          const V v = in_register(load<V>(x));
#pragma GCC unroll 8
          for (int k = 0; k < height; ++k) {
            if (i >= k && (i - k) % stride == 0 && (i - k) / stride < most_rows) sums[(i - k) / stride] += w[k] * v;
          }
        }
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < most_rows; ++r) {
      if (r < rows) store_count(to + r * to_row, sums[r], count);
    }
  }
}

// Sums, one for each tap, of the output's gradient times what the tap has read.
template <class C>
struct Products {
  const C* in;
  int64_t in_row, in_step;
  const C* grad;
  int64_t grad_row, grad_step;
  const int64_t* offset;  // of a row of taps
  int64_t taps;           // in a row
  C* sums;                // vectors: [row of taps][tap]
  int64_t rows, steps;
  int64_t count;  // lanes that are read
};

// Of `at_once` taps of each of the filter's rows, and some rows of the gradient.
template <class V, int height, int stride, int at_once, bool whole>
__attribute__((noinline)) void add_products_of(const Products<lane_t<V>>& p, int64_t first_tap) {
  using C = lane_t<V>;
  const auto get = [&](const C* from) { return whole ? load<V>(from) : load_part<V>(from, p.count, 0); };
  V sums[height][at_once];
  const auto of = [&](int k, int t) { return p.sums + (k * p.taps + first_tap + t) * lanes<V>; };
#pragma GCC unroll 8
  for (int k = 0; k < height; ++k) {
#pragma GCC unroll 8
    for (int t = 0; t < at_once; ++t) sums[k][t] = load<V>(of(k, t));
  }
  const int64_t in_row = p.in_row, grad_row = p.grad_row;
  int64_t offset[at_once];
  for (int t = 0; t < at_once; ++t) offset[t] = p.offset[first_tap + t];
  int64_t r = 0;
  const auto rows_of = [&]<int rows>(std::integral_constant<int, rows>) {
    for (; r + rows <= p.rows; r += rows) {
      const C *x = p.in + r * stride * in_row, *g = p.grad + r * grad_row;
      for (int64_t s = 0; s < p.steps; ++s, x += p.in_step, g += p.grad_step) {
        V grad[rows];
#pragma GCC unroll 8
        for (int k = 0; k < rows; ++k) grad[k] = in_register(get(g + k * grad_row));
        const C* row = x;
#pragma GCC unroll 24
        for (int i = 0; i < (rows - 1) * stride + height; ++i, row += in_row) {
#pragma GCC unroll 8
          for (int t = 0; t < at_once; ++t) {
            const V v = in_register(get(row + offset[t]));
#pragma GCC unroll 8
            for (int k = 0; k < height; ++k) {
              if (i >= k && (i - k) % stride == 0 && (i - k) / stride < rows) sums[k][t] += grad[(i - k) / stride] * v;
            }
          }
        }
      }
    }
  };
  rows_of(std::integral_constant<int, (height > 3 ? 8 : 4)>());
  rows_of(std::integral_constant<int, 1>());
#pragma GCC unroll 8
  for (int k = 0; k < height; ++k) {
#pragma GCC unroll 8
    for (int t = 0; t < at_once; ++t) store(of(k, t), sums[k][t]);
  }
}

template <class V, int height, int stride, bool whole>
void add_products(const Products<lane_t<V>>& p) {
  constexpr int at_once = height == 1 ? 4 : height == 3 ? 3 : 1;
  int64_t t = 0;
  for (; t + at_once <= p.taps; t += at_once) add_products_of<V, height, stride, at_once, whole>(p, t);
  if constexpr (at_once > 1) {
    for (; t < p.taps; ++t) add_products_of<V, height, stride, 1, whole>(p, t);
  }
}

}  // namespace
}  // namespace rusttorch
