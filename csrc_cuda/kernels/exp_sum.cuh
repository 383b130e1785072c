#pragma once

// The sum of exp(x - the largest x): in one walk where x is read again for another, where what was summed is scaled
// when a larger x comes; in two of what is kept.

#include "../../csrc/kernels/reduction_formulas.h"
#include "share.cuh"

namespace rusttorch {

// Infinite numbers make it NaN, as in softmax; NaN does too.
template <class T>
struct ExpSum {
  using C = Compute<T>;
  static constexpr C none = -std::numeric_limits<C>::infinity();
  C largest = none;
  double sum = 0;

  template <int count>
  __device__ __forceinline__ void take(const C (&x)[count]) {
    C here = largest;
#pragma unroll
    for (int j = 0; j < count; ++j) here = larger(x[j], here);
    if (here > largest) {
      sum *= double(exp_for<T>(largest - here));
      largest = here;
    }
    add(x);
  }
  template <int count>
  __device__ __forceinline__ void add(const C (&x)[count]) {
    const C from = largest == none ? C(0) : largest;  // of nothing but -inf the sum is 0
    C more = 0;
#pragma unroll
    for (int j = 0; j < count; ++j) more += exp_for<T>(x[j] - from);
    sum += double(more);
  }
  // That of the run which threads share, for each of them.
  __device__ __forceinline__ ExpSumState join(int width, int height) const {
    const C whole = join_largest(width, height);
    const double scaled = sum == 0 ? 0 : sum * double(exp_for<T>(largest - whole));
    return {double(whole), sum_threads(scaled, width, height)};
  }
  __device__ __forceinline__ C join_largest(int width, int height) const {
    return join_threads(largest, width, height, [](C& a, C b) { a = larger(b, a); });
  }
};

template <bool kept, class T>
__device__ __forceinline__ ExpSumState exp_sum(Share<kept, T, 1>& share, const DeviceTiles& tiles) {
  ExpSum<T> mine;
  share.load();
  if constexpr (kept) {
    share.walk([&](int64_t, const auto& v, int) {
#pragma unroll
      for (const auto& x : v[0]) mine.largest = larger(x, mine.largest);
    });
    mine.largest = mine.join_largest(tiles.width, tiles.height);
    share.walk([&](int64_t, const auto& v, int) { mine.add(v[0]); });
    return {double(mine.largest), sum_threads(mine.sum, tiles.width, tiles.height)};
  } else {
    share.walk([&](int64_t, const auto& v, int) { mine.take(v[0]); });
    return mine.join(tiles.width, tiles.height);
  }
}

}  // namespace rusttorch
