#pragma once

// Walks over rows and columns, a few vectors side by side. Compiled once per instruction set.

#include <algorithm>
#include <cstring>
#include <limits>
#include <type_traits>

#include "load_store.h"
#include "types.h"

namespace rusttorch {
namespace {

constexpr int64_t rows_at_once = 32;    // then what was summed goes to doubles
constexpr int64_t bytes_at_once = 256;  // of a row, in several vectors, so that one need not wait for the one before
constexpr int64_t columns_at_once = 1024;
template <class V>
constexpr int64_t vectors = bytes_at_once / sizeof(V);
template <class V>
constexpr int64_t block = vectors<V> * lanes<V> * rows_at_once;

// A vector of a row, and the last one, of which there is a part.
template <class V>
struct Whole {
  template <class T>
  RT_INLINE V get(const T* p, lane_t<V> = 0) const {
    return load<V>(p);
  }
  template <class T>
  RT_INLINE void put(T* p, V v) const {
    store(p, v);
  }
  RT_INLINE V keep(V v) const { return v; }
};
template <class V>
struct Part {
  int64_t count;
  template <class T>
  RT_INLINE V get(const T* p, lane_t<V> fill = 0) const {
    return load_part<V>(p, count, fill);
  }
  template <class T>
  RT_INLINE void put(T* p, V v) const {
    store_part(p, v, count);
  }
  RT_INLINE V keep(V v) const { return keep_part(v, count, 0); }
};
template <class V, class T>
RT_INLINE void store_count(T* to, V v, int64_t count) {
  count == lanes<V> ? store(to, v) : store_part(to, v, count);
}

template <class V, class Vectors = Whole<V>, class F>
RT_INLINE void along_row(int64_t begin, int64_t end, F f) {
  int64_t i = begin;
  for (; i + lanes<V> <= end; i += lanes<V>) f(i, Vectors());
  if (i < end) f(i, Part<V>{end - i});
}

// f(k, x) for the vectors of x[0..n), several k side by side. What is beyond n in the last is `fill`.
template <class V, class T, class F>
RT_INLINE void each_vector(const T* x, int64_t n, lane_t<V> fill, F f) {
  constexpr int64_t at_once = vectors<V> * lanes<V>;
  int64_t i = 0;
  for (; i + at_once <= n; i += at_once) {
    for (int64_t k = 0; k < vectors<V>; ++k) f(k, load<V>(x + i + k * lanes<V>));
  }
  // k stays a constant of each copy of the loop's body: what f indexes with it can stay in registers.
#pragma GCC unroll 8
  for (int64_t k = 0; k < vectors<V> - 1; ++k) {
    if (i + lanes<V> > n) break;
    f(k, load<V>(x + i));
    i += lanes<V>;
  }
  if (i < n) f(vectors<V> - 1, load_part<V>(x + i, n - i, fill));
}

// The several joined into one.
template <class V, class Join>
RT_INLINE V fold_vectors(V* v, Join join) {
  for (int64_t apart = vectors<V> / 2; apart > 0; apart /= 2) {
    for (int64_t k = 0; k < apart; ++k) v[k] = join(v[k], v[k + apart]);
  }
  return v[0];
}
// The lanes of that, as doubles where the result is one.
template <class State, class V, class Join>
RT_INLINE State fold_lanes_to(V v, Join join) {
  if constexpr (std::is_same_v<State, lane_t<V>>) {
    return fold_lanes(v, join);
  } else {
    const auto d = to_doubles(v);
    return fold_lanes(join(d.half[0], d.half[1]), join);
  }
}
template <class V>
RT_INLINE double sum_vectors(V* v) {
  const auto join = [](auto a, auto b) { return a + b; };
  return fold_lanes_to<double>(fold_vectors(v, join), join);
}

template <class C>
constexpr C lowest = -std::numeric_limits<C>::infinity();

// The largest of a row; which one, where there is a NaN, is not said.
template <class V, class T>
RT_INLINE lane_t<V> largest_of_row(const T* x, int64_t n) {
  const auto join = [](auto a, auto b) { return larger(a, b); };
  V part[vectors<V>];
  for (V& p : part) p = splat<V>(lowest<lane_t<V>>);
  each_vector<V>(x, n, lowest<lane_t<V>>, [&](int64_t k, V v) { part[k] = larger(part[k], v); });
  return fold_lanes(fold_vectors(part, join), join);
}

// A part of a row of columns, where the last may be less than a vector.
template <class V, class T>
RT_INLINE V load_at(const T* y, int64_t i, int64_t n) {
  return i + lanes<V> <= n ? load<V>(y + i) : load_part<V>(y + i, n - i, 0);
}
template <class V, class T>
RT_INLINE void store_at(T* y, int64_t i, int64_t n, const V& v) {
  i + lanes<V> <= n ? store(y + i, v) : store_part(y + i, v, n - i);
}

// Columns of x[0..n)[0..width), in blocks of rows, and in each all groups of a few vectors: f(group, c, r, end, load)
// for the columns from c and the rows from r to end, with load(row, k) for the k-th vector. A group is an integral
// constant, the number of vectors.
template <class V, class T, class F>
RT_INLINE void each_group(const T* x, int64_t n, int64_t row, int64_t width, F f) {
  constexpr int64_t L = lanes<V>;
  for (int64_t r = 0; r < n; r += rows_at_once) {
    const int64_t end = std::min(n, r + rows_at_once);
    int64_t c = 0;
    const auto groups_of = [&]<int64_t count>(std::integral_constant<int64_t, count> group) {
      for (; c + count * L <= width; c += count * L) {
        f(group, c, r, end, [&](int64_t i, int64_t k) { return load<V>(x + i * row + c + k * L); });
      }
    };
    groups_of(std::integral_constant<int64_t, vectors<V>>());
    groups_of(std::integral_constant<int64_t, 2>());
    groups_of(std::integral_constant<int64_t, 1>());
    if (c < width) {
      f(std::integral_constant<int64_t, 1>(), c, r, end,
        [&](int64_t i, int64_t) { return load_part<V>(x + i * row + c, width - c, 0); });
    }
  }
}

// Room for the columns, whole vectors of them.
template <class C>
using Columns = C[columns_at_once + 64];

}  // namespace
}  // namespace rusttorch
