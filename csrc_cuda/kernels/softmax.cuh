#pragma once

#include "../../csrc/kernels/softmax.h"
#include "exp_sum.cuh"

namespace rusttorch {

template <int threads, bool kept, bool log, class T>
__global__ void __launch_bounds__(threads) softmax_forward(SoftmaxArgs a, DeviceTiles tiles) {
  using C = Compute<T>;
  const Place me(tiles, a.outer, a.inner);
  const int64_t at = me.run * a.n * a.inner + me.column;
  Share<kept, T, 1> share({static_cast<const T*>(a.in[0]) + at}, a.n, a.inner, me, tiles.height);
  const ExpSumState all = exp_sum(share, tiles);
  const C largest = C(all.largest), sum = C(all.sum), by = log ? ::log(sum) : 1 / sum;
  T* const out = static_cast<T*>(a.out) + at;
  share.walk([&](int64_t i, auto& v, int) {
#pragma unroll
    for (C& y : v[0]) y = log ? (y - largest) - by : exp_for<T>(y - largest) * by;
    store_values(out + i * a.inner, v[0]);
  });
}

// (g - sum(g y)) y, and g - exp(y) sum(g).
template <int threads, bool kept, bool log, class T>
__global__ void __launch_bounds__(threads) softmax_backward(SoftmaxArgs a, DeviceTiles tiles) {
  using C = Compute<T>;
  const Place me(tiles, a.outer, a.inner);
  const int64_t at = me.run * a.n * a.inner + me.column;
  const T *const g = static_cast<const T*>(a.in[0]) + at, *const y = static_cast<const T*>(a.in[1]) + at;
  Share<kept, T, 2> share({g, y}, a.n, a.inner, me, tiles.height);
  double total = 0;
  share.load();
  share.walk([&](int64_t, const auto& v, int) {
    C more = 0;
#pragma unroll
    for (int j = 0; j < count_of<decltype(v)>; ++j) more += log ? v[0][j] : v[0][j] * v[1][j];
    total += double(more);
  });
  const C sum = C(sum_threads(total, tiles.width, tiles.height));
  T* const out = static_cast<T*>(a.out) + at;
  share.walk([&](int64_t i, auto& v, int) {
#pragma unroll
    for (int j = 0; j < count_of<decltype(v)>; ++j) {
      v[0][j] = log ? v[0][j] - exp_for<T>(v[1][j]) * sum : (v[0][j] - sum) * v[1][j];
    }
    store_values(out + i * a.inner, v[0]);
  });
}

template <bool forward, bool log>
void launch_softmax(const SoftmaxArgs& a, cudaStream_t stream) {
  with_type<floats>(a.dtype, [&](auto t) {
    using T = decltype(t);
    const auto launch = [&]<int threads, bool kept>(const DeviceTiles& tiles) {
      auto* const kernel = forward ? &softmax_forward<threads, kept, log, T> : &softmax_backward<threads, kept, log, T>;
      start(kernel, dim3(unsigned(tiles.blocks)), threads, stream, a, tiles);
    };
    constexpr int inputs = forward ? 1 : 2, most = most_kept<T, inputs>;
    if (LongRows::are(a.n, a.inner, most)) {
      return launch.template operator()<LongRows::threads, false>(LongRows(a.outer, a.n));
    }
    const DeviceTiles tiles(a.outer, a.n, a.inner, most);
    const bool kept =
        forward ? can_keep<T>(tiles, a.n, a.inner, {a.in[0]}) : can_keep<T>(tiles, a.n, a.inner, {a.in[0], a.in[1]});
    kept ? launch.template operator()<block_threads, true>(tiles)
         : launch.template operator()<block_threads, false>(tiles);
  });
}

}  // namespace rusttorch
