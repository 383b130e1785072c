#pragma once

// Products of few rows: the second factor is read once, as it lies, at the speed of memory.

#include "matmul_dots.h"

namespace rusttorch {
namespace {

// Rows in items, in the order of load_half and filled up with zeros to whole steps: their distance.
template <class T, class Item>
int64_t in_steps(Block<T> x, const Item*& rows) {
  using V = Vector<Compute<T>>;
  constexpr int64_t step = rusttorch::step<V, T, Item>, in_item = numbers_in<Item>;
  if constexpr (!is_narrow<T>) {
    if (x.column == 1) return rows = x.from, x.row;
  }
  const int64_t row = round_up(x.k, step) / in_item;
  Item* to = scratch<Item, Use::a>(x.m * row);
  rows = to;
  if constexpr (std::is_same_v<Item, Pair>) {
    std::fill_n(to, x.m * row, Pair{});
    pack_rows(x, row, to);
    return row;
  } else {
    for (int64_t i = 0; i < x.m; ++i, x.from += x.row, to += row) {
      int64_t p = 0;
      if (x.column == 1) {
        for (; p + step <= x.k; p += step) {
          for_halves<T>([&](auto half) { store(to + p + half * lanes<V>, load_half<V, half, Item>(x.from + p)); });
        }
      }
      for (; p < row; ++p) {
        to[p / step * step + place<V, T>(p % step)] = p < x.k ? widen(x.from[p * x.column]) : Item(0);
      }
    }
    return row;
  }
}

template <class T, class Item>
void dots_in(const MatmulArgs& g) {
  using C = Compute<T>;
  using V = Vector<C>;
  const int64_t high = even_part(g.m, dot_rows);
  // Of k, for which a lies in the second cache. (What is summed by itself must not depend on n, nor on an m of more
  // than 16 rows, which are a thread's: of those k is so short that it is not cut.)
  const int64_t deep = few_numbers * numbers_in<Item> / round_up(std::min<int64_t>(g.m, 16), dot_rows);
  // Columns of b that the first cache holds, for all rows of a.
  const int64_t most = std::max<int64_t>(1, 8192 / std::max<int64_t>(1, g.k * int64_t(sizeof(T)))) * 24;
  const int64_t row = round_up(std::min(most, g.n), lanes<V>);
  C* const sums = scratch<C, Use::sums>(g.m * row);
  const Item* a;
  int64_t a_row;
  for (int64_t j = 0; j < g.n; j += most) {
    const int64_t n = std::min(most, g.n - j);
    std::fill_n(sums, g.m * row, C(0));
    for (int64_t p = 0; p < g.k; p += deep) {
      const int64_t k = std::min(deep, g.k - p);
      if (j == 0 || k < g.k) {
        const T* from = static_cast<const T*>(g.a) + p * g.a_column;
        a_row = in_steps(Block<T>{from, g.a_row, g.a_column, g.m, k}, a);
      }
      const Block<T> b{static_cast<const T*>(g.b) + j * g.b_column + p, g.b_column, 1, n, k};
      for (int64_t i = 0; i < g.m; i += high) {
        switch (std::min(high, g.m - i)) {
          case 1: dots_of<V, 1>(b, a + i * a_row, a_row, sums + i * row, row); break;
          case 2: dots_of<V, 2>(b, a + i * a_row, a_row, sums + i * row, row); break;
          case 3: dots_of<V, 3>(b, a + i * a_row, a_row, sums + i * row, row); break;
          default: dots_of<V, 4>(b, a + i * a_row, a_row, sums + i * row, row);
        }
      }
    }
    finish<T>(g, 0, j, g.m, n, sums, row);
  }
}

void dots(const MatmulArgs& g) {
  with_type<floats>(g.dtype, [&]<class T>(T) { dots_in<T, Compute<T>>(g); });
}

// sums[0..n) += a[0] * b[0] + ... of so many rows of b; each step of the sums is in the order of load_half.
template <class T, int count, class C>
RT_INLINE void add_rows(const T* b, int64_t b_row, const T* a, int64_t a_next, int64_t n, C* sums) {
  using V = Vector<C>;
  constexpr int64_t step = rusttorch::step<V, T>;
  V x[count];
#pragma GCC unroll 8
  for (int r = 0; r < count; ++r) x[r] = splat<V>(widen(a[r * a_next]));
  const auto add = [&](C* to, auto row) {
    for_halves<T>([&](auto half) {
      V sum = load<V>(to + half * lanes<V>);
#pragma GCC unroll 8
      for (int r = 0; r < count; ++r) sum += x[r] * row(r, half);
      store(to + half * lanes<V>, sum);
    });
  };
  int64_t j = 0;
  for (; j + step <= n; j += step) {
    add(sums + j, [&](int r, auto half) { return load_half<V, half, C>(b + r * b_row + j); });
  }
  const int64_t rest = n - j;
  if (rest == 0) return;
  if constexpr (is_narrow<T>) {
    T last[count][step] = {};
    for (int r = 0; r < count; ++r) std::copy_n(b + r * b_row + j, rest, last[r]);
    add(sums + j, [&](int r, auto half) { return load_half<V, half, C>(last[r]); });
  } else {
    add(sums + j, [&](int r, auto) { return load_part<V>(b + r * b_row + j, rest, 0); });
  }
}

// The sums of a step from the order of load_half to that of the columns.
template <class V, class T>
RT_INLINE void in_order(lane_t<V>* sums) {
  constexpr int64_t step = rusttorch::step<V, T>;
  lane_t<V> found[step];
  std::copy_n(sums, step, found);
  for (int64_t c = 0; c < step; ++c) sums[c] = found[place<V, T>(c)];
}

void combinations(const MatmulArgs& g) {
  with_type<floats>(g.dtype, [&]<class T>(T) {
    using C = Compute<T>;
    using V = Vector<C>;
    constexpr int64_t step = rusttorch::step<V, T>;
    constexpr int together = 8;       // rows of b, each a stream from memory
    constexpr int64_t across = 4096;  // columns, whose sums stay in the cache
    constexpr int64_t deep = 4096;    // rows, whose sums are summed by themselves: long sums lose less
    const T *a = static_cast<const T*>(g.a), *b = static_cast<const T*>(g.b);
    const int64_t row = round_up(std::min(across, g.n), step);
    C* const sums = scratch<C, Use::sums>((g.k > deep ? 2 : 1) * g.m * row);
    for (int64_t j = 0; j < g.n; j += across) {
      const int64_t n = std::min(across, g.n - j);
      for (int64_t p0 = 0; p0 < g.k; p0 += deep) {
        C* const part = p0 ? sums + g.m * row : sums;
        std::fill_n(part, g.m * row, C(0));
        const int64_t last = std::min(p0 + deep, g.k);
        for (int64_t p = p0; p < last; p += together) {
          const T* from = b + p * g.b_row + j;
          for (int64_t i = 0; i < g.m; ++i) {
            const T* numbers = a + i * g.a_row + p * g.a_column;
            if (last - p >= together) {
              add_rows<T, together>(from, g.b_row, numbers, g.a_column, n, part + i * row);
            } else {
              for (int64_t q = 0; q < last - p; ++q) {
                add_rows<T, 1>(from + q * g.b_row, g.b_row, numbers + q * g.a_column, g.a_column, n, part + i * row);
              }
            }
          }
        }
        for (int64_t c = 0; p0 && c < g.m * row; c += lanes<V>) {
          store(sums + c, V(load<V>(sums + c) + load<V>(part + c)));
        }
      }
      for (int64_t c = 0; halves<T> == 2 && c < g.m * row; c += step) in_order<V, T>(sums + c);
      finish<T>(g, 0, j, g.m, n, sums, row);
    }
  });
}

// Some of b's rows at a time, and strips of their columns, which are read as they lie: few pages, and in each a run.
template <class T>
void strips_of(const MatmulArgs& g) {
  using C = Compute<T>;
  using V = Vector<C>;
  constexpr int64_t width = tile_columns<V>, deep = 64;
  const int64_t across = std::max(width, 4096 / g.m / width * width);  // columns, whose sums stay in the first cache
  const int64_t ahead = 4 * width;                                     // what the hardware has not found by then
  const bool groups = g.a_row == 1 && g.a_column != 1;
  // Where a is packed, all at once if that is little.
  const int64_t packed = g.m * g.k <= 1 << 18 ? g.k : deep;
  int64_t a_row;
  const C* a;
  const int64_t padded = round_up(std::min(across, g.n), width);
  C* const sums = scratch<C, Use::sums>(g.m * padded);
  for (int64_t j = 0; j < g.n; j += across) {
    const int64_t n = std::min(across, g.n - j);
    for (int64_t p = 0; p < g.k; p += deep) {
      const int64_t k = std::min(deep, g.k - p), of_packed = p % packed;
      if (of_packed == 0) {
        const T* from = static_cast<const T*>(g.a) + p * g.a_column;
        a = rows_of_a<ByVectors<V>, T, C>({from, g.a_row, g.a_column, g.m, std::min(packed, g.k - p)}, g.n, groups,
                                          a_row);
      }
      const T* b = static_cast<const T*>(g.b) + p * g.b_row + j;
      for (int64_t c = 0; c < n; c += width) {
        T last[deep * width];
        const bool is_whole = n - c >= width;
        for (int64_t q = 0; !is_whole && q < k; ++q) {
          std::fill_n(std::copy_n(b + q * g.b_row + c, n - c, last + q * width), width - (n - c), T());
        }
        for (int64_t r = 0, rows; r < g.m; r += rows) {
          rows = next_rows<V>(g.m - r);
          C* const to = sums + r * padded + c;
          Tile<C, C, T> tile{a + r * a_row + of_packed * (groups ? rows : 1),
                             groups ? rows : a_row,
                             b + c,
                             g.b_row,
                             ahead,
                             p ? to : nullptr,
                             padded,
                             to,
                             padded};
          if (!is_whole) tile.b = last, tile.b_row = width;
          groups ? multiply_tile<V, true>(rows, n - c, k, tile) : multiply_tile<V, false>(rows, n - c, k, tile);
        }
      }
    }
    finish<T>(g, 0, j, g.m, n, sums, padded);
  }
}

void strips(const MatmulArgs& g) {
  with_type<floats>(g.dtype, [&]<class T>(T) { strips_of<T>(g); });
}

}  // namespace
}  // namespace rusttorch
