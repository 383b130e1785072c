#pragma once

#include "../../csrc/kernels/softmax.h"
#include "exp_sum.cuh"

namespace rusttorch {

template <bool log, class T>
__global__ void __launch_bounds__(block_threads) softmax_forward(SoftmaxArgs a, DeviceTiles tiles) {
  using C = Compute<T>;
  const Place me(tiles, a.outer, a.inner);
  const int64_t at = me.run * a.n * a.inner + me.column;
  const T* const x = static_cast<const T*>(a.in[0]) + at;
  const ExpSumState all = exp_sum(x, a.n, a.inner, me, tiles);
  if (!me.inside) return;
  const C largest = C(all.largest), by = log ? C(::log(all.sum)) : C(1 / all.sum);
  T* const out = static_cast<T*>(a.out) + at;
  each_pack(x, a.n, a.inner, me.step, tiles.height, [&](int64_t i, auto count) {
    C v[count];
    load_values<count>(x + i * a.inner, v);
#pragma unroll
    for (C& y : v) y = log ? (y - largest) - by : math::exp(y - largest) * by;
    store_values<count>(out + i * a.inner, v);
  });
}

// (g - sum(g y)) y, and g - exp(y) sum(g).
template <bool log, class T>
__global__ void __launch_bounds__(block_threads) softmax_backward(SoftmaxArgs a, DeviceTiles tiles) {
  using C = Compute<T>;
  const Place me(tiles, a.outer, a.inner);
  const int64_t at = me.run * a.n * a.inner + me.column;
  const T *const g = static_cast<const T*>(a.in[0]) + at, *const y = static_cast<const T*>(a.in[1]) + at;
  const auto walk = [&](auto f) {
    if (!me.inside) return;
    each_pack(g, a.n, a.inner, me.step, tiles.height, [&](int64_t i, auto count) {
      C v[count], w[count];
      load_values<count>(g + i * a.inner, v);
      load_values<count>(y + i * a.inner, w);
      f(i, v, w);
    });
  };
  double total = 0;
  walk([&](int64_t, const auto& v, const auto& w) {
    C more = 0;
#pragma unroll
    for (int j = 0; j < int(std::extent_v<std::remove_reference_t<decltype(v)>>); ++j) more += log ? v[j] : v[j] * w[j];
    total += double(more);
  });
  const C sum = C(sum_threads(total, tiles.width, tiles.height));
  T* const out = static_cast<T*>(a.out) + at;
  walk([&](int64_t i, auto& v, const auto& w) {
    constexpr int count = std::extent_v<std::remove_reference_t<decltype(v)>>;
#pragma unroll
    for (int j = 0; j < count; ++j) v[j] = log ? v[j] - math::exp(w[j]) * sum : (v[j] - sum) * w[j];
    store_values<count>(out + i * a.inner, v);
  });
}

template <bool forward, bool log>
void launch_softmax(const SoftmaxArgs& a, cudaStream_t stream) {
  with_type<floats>(a.dtype, [&](auto t) {
    using T = decltype(t);
    const DeviceTiles tiles(a.outer, a.n, a.inner);
    auto* const kernel = forward ? &softmax_forward<log, T> : &softmax_backward<log, T>;
    start(kernel, dim3(unsigned(tiles.blocks)), block_threads, stream, a, tiles);
  });
}

}  // namespace rusttorch
