#pragma once

#include "../../csrc/kernels/rope.h"
#include "device.cuh"
#include "divide.cuh"

namespace rusttorch {

// Which threads have which rows, and where those lie.
struct RopeRows {
  int threads;  // of a row
  Divisor inner, middle;

  RopeRows(const RopeArgs& a, int64_t places) : threads(1), inner(a.sizes[2]), middle(a.sizes[1]) {
    while (threads < block_threads && threads < places) threads *= 2;
  }
};

// Of each row `count` neighbours at a time, and those that they make pairs with.
template <bool interleaved, int count, class T, class A>
__global__ void __launch_bounds__(block_threads) rope_turn(RopeArgs a, RopeRows rows) {
  using C = Compute<T>;
  const int step = int(threadIdx.x) % rows.threads, of_block = block_threads / rows.threads;
  const int64_t row = a.begin + int64_t(blockIdx.x) * of_block + int(threadIdx.x) / rows.threads;
  if (row >= a.end) return;
  int inner = int(row), middle = rows.inner.split(inner);
  const int outer = rows.middle.split(middle);
  const auto at = [&](const int64_t (&steps)[3]) { return outer * steps[0] + middle * steps[1] + inner * steps[2]; };
  const T* const x = static_cast<const T*>(a.x) + at(a.x_steps);
  const A* const cos = static_cast<const A*>(a.cos) + at(a.angle_steps);
  const A* const sin = static_cast<const A*>(a.sin) + at(a.angle_steps);
  T* const y = static_cast<T*>(a.y) + at(a.y_steps);
  const int64_t half = a.rotated / 2;
  for (int64_t n = int64_t(step) * count; n < (interleaved ? a.rotated : half); n += rows.threads * count) {
    C v[count], cos_v[count], sin_v[count];
    load_values<count>(x + n, v);
    load_values<count>(cos + n, cos_v);
    load_values<count>(sin + n, sin_v);
    if constexpr (interleaved) {
#pragma unroll
      for (int l = 0; l < count; l += 2) {
        const C first = v[l], second = v[l + 1];
        const C by_second = a.inverse ? second * sin_v[l + 1] : -second * sin_v[l];
        const C by_first = a.inverse ? -first * sin_v[l] : first * sin_v[l + 1];
        v[l] = first * cos_v[l] + by_second;
        v[l + 1] = second * cos_v[l + 1] + by_first;
      }
      store_values(y + n, v);
    } else {
      C w[count], cos_w[count], sin_w[count];
      load_values<count>(x + half + n, w);
      load_values<count>(cos + half + n, cos_w);
      load_values<count>(sin + half + n, sin_w);
#pragma unroll
      for (int l = 0; l < count; ++l) {
        const C first = v[l], second = w[l];
        v[l] = first * cos_v[l] + (a.inverse ? second * sin_w[l] : -second * sin_v[l]);
        w[l] = second * cos_w[l] + (a.inverse ? -first * sin_v[l] : first * sin_w[l]);
      }
      store_values(y + n, v);
      store_values(y + half + n, w);
    }
  }
  if (x == y) return;
  for (int64_t n = a.rotated + step; n < a.dim; n += rows.threads) y[n] = x[n];
}

template <bool interleaved, class T, class A>
void launch_rope(const RopeArgs& a, cudaStream_t stream) {
  const int64_t turned = interleaved ? a.rotated : a.rotated / 2;
  const auto launch = [&]<int count>() {
    const RopeRows rows(a, (turned + count - 1) / count);
    const int64_t of_block = block_threads / rows.threads;
    start(&rope_turn<interleaved, count, T, A>, dim3(unsigned((a.end - a.begin + of_block - 1) / of_block)),
          block_threads, stream, a, rows);
  };
  constexpr int single = interleaved ? 2 : 1;
  turned % pack<T> == 0 ? launch.template operator()<pack<T>>() : launch.template operator()<single>();
}

inline void launch_turn(const RopeArgs& a, cudaStream_t stream) {
  with_type<floats>(a.dtype, [&](auto t) {
    using T = decltype(t);
    const auto launch = [&]<class A>() {
      a.interleaved ? launch_rope<true, T, A>(a, stream) : launch_rope<false, T, A>(a, stream);
    };
    is_narrow<T>&& a.float_angles ? launch.template operator()<Compute<T>>() : launch.template operator()<T>();
  });
}

}  // namespace rusttorch
