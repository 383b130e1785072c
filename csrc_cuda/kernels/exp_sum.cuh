#pragma once

// The sum of exp(x - the largest x) in one walk: what was summed is scaled when a larger x comes.

#include "../../csrc/kernels/math.h"
#include "../../csrc/kernels/reduction_formulas.h"
#include "device.cuh"

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

// That of the run in which `me` stands, for each of its threads. x is the run's column.
template <class T>
__device__ __forceinline__ ExpSumState exp_sum(const T* x, int64_t n, int64_t row, const Place& me,
                                               const DeviceTiles& tiles) {
  ExpSum<Compute<T>> mine;
  if (me.inside) {
    each_pack(x, n, row, me.step, tiles.height, [&](int64_t i, auto count) {
      Compute<T> v[count];
      load_values<count>(x + i * row, v);
      mine.take(v);
    });
  }
  return join_threads(mine.state(), tiles.width, tiles.height, [](ExpSumState& a, const ExpSumState& b) { a.add(b); });
}

}  // namespace rusttorch
