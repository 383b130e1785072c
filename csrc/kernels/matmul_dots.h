#pragma once

// Of a product: sums along k, where both factors' numbers are neighbours.

#include "matmul_tile.h"

namespace rusttorch {
namespace {

// Numbers are read in steps of a vector of items; of bfloat16 that is widened of two, of which one gets those at even
// places and one those at odd ones: each half of a word is a float's upper half, and one operation makes a vector of
// them, where widening neighbours takes two.
template <class T, class Item = Compute<T>>
constexpr int halves = std::is_same_v<T, bf16> && !std::is_same_v<Item, Pair> ? 2 : 1;
template <class V, class T, class Item = Compute<T>>
constexpr int64_t step = halves<T, Item> * numbers_in<Item> * lanes<V>;
template <class V, int half, class Item, class T>
RT_INLINE Items<V, Item> load_half(const T* from) {
  if constexpr (halves<T, Item> == 1) {
    return load_items<V, Item>(from);
  } else {
    const auto words = load<bits_t<V>>(&from->bits);
    return from_bits<V>(half ? words & 0xffff0000u : words << 16);
  }
}
// f(half) for each half of a step.
template <class T, class Item = Compute<T>, class F>
RT_INLINE void for_halves(F f) {
  f(std::integral_constant<int, 0>());
  if constexpr (halves<T, Item> == 2) f(std::integral_constant<int, 1>());
}
// Where the number at place c of a step is found.
template <class V, class T>
constexpr int64_t place(int64_t c) {
  return halves<T> == 1 ? c : c / 2 + c % 2 * lanes<V>;
}

// How many columns of b are read at a time beside so many rows of a: as the registers allow. Each is a stream from
// memory: an Intel Xeon reads eight at 18.3 GB/s (bfloat16) where it reads one, or a loop all, at 13.7 to 16. But of 16
// bits beside one row a CPU without AVX-512 reads one, as it lies: a Zen 3 16.4 GB/s, four 14.8.
template <class V, class T, class Item>
constexpr int dot_columns(int rows) {
  if (rows == 1) return is_narrow<T> && sizeof(V) < 64 ? 1 : 8;
  if (halves<T, Item> == 2 && sizeof(V) < 64) return rows == 2 ? 4 : rows == 3 ? 3 : 2;
  return sizeof(V) == 64 ? (rows == 2 ? 8 : 6) : rows == 2 ? 5 : 3;
}
constexpr int dot_rows = 4;

// To sums[r * row + c] of so many rows of a and columns of b.
template <class V, int rows, int columns, class T, class Item>
RT_INLINE void dot(const Block<T>& b, const Item* a, int64_t a_row, lane_t<V>* to, int64_t row) {
  constexpr int64_t step = rusttorch::step<V, T, Item>, in_item = numbers_in<Item>;
  // Of one row and column several sums, so that none waits for the last one's.
  constexpr bool single = rows * columns == 1;
  constexpr int sums_of_each = single ? 8 : 1, steps = single ? sums_of_each / halves<T, Item> : 1;  // at a time
  constexpr int64_t ahead = 1024 / sizeof(T);  // where the hardware has found the next column
  V sums[sums_of_each][rows][columns] = {};
  const auto add = [&](int which, auto of_a, auto of_b) {
    for_halves<T, Item>([&](auto half) {
      Items<V, Item> y[columns];
#pragma GCC unroll 8
      for (int c = 0; c < columns; ++c) y[c] = of_b(c, half);
#pragma GCC unroll 4
      for (int r = 0; r < rows; ++r) {
        const Items<V, Item> x = of_a(r, half);
#pragma GCC unroll 8
        for (int c = 0; c < columns; ++c) {
          V& sum = sums[single ? which * halves<T, Item> + half : 0][r][c];
          sum = add_products(sum, x, y[c]);
        }
      }
    });
  };
  const auto of_a = [&](int64_t p) {
    return [&, p](int r, auto half) { return load_items<V, Item>(a + r * a_row + p / in_item + half * lanes<V>); };
  };
  const auto add_step = [&](int which, int64_t p) {
    add(which, of_a(p), [&](int c, auto half) { return load_half<V, half, Item>(b.from + c * b.row + p); });
  };
  int64_t p = 0;
#pragma GCC unroll 1
  for (; p + steps * step <= b.k; p += steps * step) {
    // What is read next is on its way meanwhile: the hardware begins anew with each column.
    if constexpr (rows > 1) {
#pragma GCC unroll 8
      for (int c = 0; c < columns; ++c) __builtin_prefetch(b.from + (c + columns) * b.row + p);
    }
#pragma GCC unroll 8
    for (int s = 0; s < steps; ++s) {
      if constexpr (single && is_narrow<T>) __builtin_prefetch(b.from + p + s * step + ahead);
      add_step(s, p + s * step);
    }
  }
#pragma GCC unroll 1
  for (; steps > 1 && p + step <= b.k; p += step) add_step(0, p);
  const int64_t rest = b.k - p;
  if (rest == 0) {
  } else if constexpr (!is_narrow<T>) {
    add(
        0, [&](int r, auto) { return load_part<V>(a + r * a_row + p, rest, 0); },
        [&](int c, auto) { return load_part<V>(b.from + c * b.row + p, rest, 0); });
  } else {  // (a is filled up)
    T last[columns][step] = {};
    for (int c = 0; c < columns; ++c) std::copy_n(b.from + c * b.row + p, rest, last[c]);
    add(0, of_a(p), [&](int c, auto half) { return load_half<V, half, Item>(last[c]); });
  }
  if constexpr (single) {
#pragma GCC unroll 4
    for (int s = 0; s < 4; ++s) sums[s][0][0] += sums[s + 4][0][0];
    sums[0][0][0] = (sums[0][0][0] + sums[2][0][0]) + (sums[1][0][0] + sums[3][0][0]);
  }
#pragma GCC unroll 4
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < columns; ++c) to[r * row + c] += sum_lanes(sums[0][r][c]);
  }
}

// b's columns are the block's rows.
template <class V, int rows, class T, class Item>
__attribute__((noinline)) void dots_of(Block<T> b, const Item* a, int64_t a_row, lane_t<V>* to, int64_t row) {
  constexpr int columns = dot_columns<V, T, Item>(rows);
  int64_t c = 0;
  for (; c + columns <= b.m; c += columns, b.from += columns * b.row) {
    dot<V, rows, columns>(b, a, a_row, to + c, row);
  }
  for (; c < b.m; ++c, b.from += b.row) dot<V, rows, 1>(b, a, a_row, to + c, row);
}

}  // namespace
}  // namespace rusttorch
