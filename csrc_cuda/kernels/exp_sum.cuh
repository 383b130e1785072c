#pragma once

// The sum of exp(x - the largest x) in one walk: what was summed is scaled when a larger x comes.

#include "../../csrc/kernels/math.h"
#include "../../csrc/kernels/reduction_formulas.h"
#include "share.cuh"

namespace rusttorch {

// Infinite numbers make it NaN, as in softmax; NaN does too.
template <class C>
struct ExpSum {
  C largest = -std::numeric_limits<C>::infinity();
  double sum = 0;

  template <int count>
  __device__ __forceinline__ void take(const C (&x)[count]) {
    C here = largest;
#pragma unroll
    for (int j = 0; j < count; ++j) here = larger(x[j], here);
    if (here > largest) {
      sum *= sum == 0 ? 1 : double(math::exp(largest - here));
      largest = here;
    }
    C more = 0;
#pragma unroll
    for (int j = 0; j < count; ++j)
      more += x[j] == -std::numeric_limits<C>::infinity() ? C(0) : math::exp(x[j] - largest);
    sum += double(more);
  }
  __device__ __forceinline__ ExpSumState state() const { return {double(largest), sum}; }
};

// That of the run that threads share, for each of them.
template <bool kept, class T>
__device__ __forceinline__ ExpSumState exp_sum(Share<kept, T, 1>& share, const DeviceTiles& tiles) {
  ExpSum<Compute<T>> mine;
  share.walk([&](int64_t, const auto& v, int) { mine.take(v[0]); });
  return join_threads(mine.state(), tiles.width, tiles.height, [](ExpSumState& a, const ExpSumState& b) { a.add(b); });
}

}  // namespace rusttorch
