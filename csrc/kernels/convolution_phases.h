#pragma once

// With a stride of n columns every n-th column is read beside the next: rows are kept in n phases, of which each has
// every n-th of the columns. Column c is at c % n * phase + c / n.

#include "runs.h"

namespace rusttorch {
namespace {

// Whole vectors are read and written: there is room for 2 n vectors beyond the count.
template <class V>
void split_phases(const lane_t<V>* from, int64_t count, int64_t n, int64_t phase, lane_t<V>* to) {
  constexpr int64_t L = lanes<V>;
  if (n != 2) {
    for (int64_t p = 0; p < n; ++p) {
      for (int64_t i = 0; i * n + p < count; ++i) to[p * phase + i] = from[i * n + p];
    }
    return;
  }
  bits_t<V> even, odd;
  for (int64_t i = 0; i < L; ++i) even[i] = word_t<V>(2 * i), odd[i] = word_t<V>(2 * i + 1);
  for (int64_t c = 0; c < count; c += 2 * L) {
    const V a = load<V>(from + c), b = load<V>(from + c + L);
    store(to + c / 2, __builtin_shuffle(a, b, even));
    store(to + phase + c / 2, __builtin_shuffle(a, b, odd));
  }
}

// Reads as far.
template <class V, class T>
void join_phases(const lane_t<V>* from, int64_t count, int64_t n, int64_t phase, T* to) {
  constexpr int64_t L = lanes<V>;
  if (n != 2) {
    for (int64_t p = 0; p < n; ++p) {
      for (int64_t i = 0; i * n + p < count; ++i) store_one(to + i * n + p, from[p * phase + i]);
    }
    return;
  }
  bits_t<V> low, high;
  for (int64_t i = 0; i < L; ++i) {
    low[i] = word_t<V>(i % 2 * L + i / 2);
    high[i] = word_t<V>(i % 2 * L + L / 2 + i / 2);
  }
  for (int64_t c = 0; c < count; c += 2 * L) {
    const V even = load<V>(from + c / 2), odd = load<V>(from + phase + c / 2);
    store_count(to + c, __builtin_shuffle(even, odd, low), std::min(L, count - c));
    if (c + L < count) store_count(to + c + L, __builtin_shuffle(even, odd, high), std::min(L, count - c - L));
  }
}

}  // namespace
}  // namespace rusttorch
