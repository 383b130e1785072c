#pragma once

#include "../../csrc/kernels/norm.h"
#include "device.cuh"

namespace rusttorch {

struct NormSums {
  double first, second;
};
__device__ __forceinline__ NormSums sum_rows(NormSums mine, int width, int height) {
  return join_threads(mine, width, height, [](NormSums& a, const NormSums& b) {
    a.first += b.first;
    a.second += b.second;
  });
}

// A row's sums are of x less its first element, so that little is lost where the mean is far from 0.
template <bool centered, class T>
__global__ void __launch_bounds__(block_threads) norm_forward(NormArgs a, DeviceTiles tiles) {
  using C = Compute<T>;
  const Place me(tiles, a.rows, 1);
  const T* const x = static_cast<const T*>(a.x) + me.run * a.n;
  const C origin = centered && me.inside ? widen<T>(x[0]) : C(0);
  NormSums mine{};
  if (me.inside) {
    each_pack(x, a.n, 1, me.step, tiles.height, [&](int64_t i, auto count) {
      C v[count], sum = 0, square = 0;
      load_values<count>(x + i, v);
#pragma unroll
      for (C& d : v) {
        d -= origin;
        sum += d;
        square += d * d;
      }
      mine.first += double(sum);
      mine.second += double(square);
    });
  }
  const NormSums all = sum_rows(mine, tiles.width, tiles.height);
  if (!me.inside) return;
  const double from_origin = centered ? all.first / double(a.n) : 0;
  const double variance = all.second / double(a.n) - from_origin * from_origin;
  const C mean = C(double(origin) + from_origin), rstd = C(1 / ::sqrt((variance < 0 ? 0 : variance) + a.eps));
  if (me.step == 0) {
    if (centered) static_cast<C*>(a.mean)[me.run] = mean;
    static_cast<C*>(a.rstd)[me.run] = rstd;
  }
  const T *const weight = static_cast<const T*>(a.weight), *const bias = static_cast<const T*>(a.bias);
  T* const y = static_cast<T*>(a.y) + me.run * a.n;
  each_pack(x, a.n, 1, me.step, tiles.height, [&](int64_t i, auto count) {
    C v[count], w[count];
    load_values<count>(x + i, v);
#pragma unroll
    for (C& d : v) d = (d - mean) * rstd;
    if (weight) {
      load_values<count>(weight + i, w);
#pragma unroll
      for (int j = 0; j < count; ++j) v[j] *= w[j];
    }
    if (bias) {
      load_values<count>(bias + i, w);
#pragma unroll
      for (int j = 0; j < count; ++j) v[j] += w[j];
    }
    store_values<count>(y + i, v);
  });
}

// The gradient of x (the formula is in csrc/kernels/norm.cpp).
template <bool centered, class T>
__global__ void __launch_bounds__(block_threads) norm_backward(NormArgs a, DeviceTiles tiles) {
  using C = Compute<T>;
  const Place me(tiles, a.rows, 1);
  const T *const x = static_cast<const T*>(a.x) + me.run * a.n, *const g = static_cast<const T*>(a.grad) + me.run * a.n;
  const T* const weight = static_cast<const T*>(a.weight);
  const C mean = centered && me.inside ? static_cast<const C*>(a.mean)[me.run] : C(0);
  const C rstd = me.inside ? static_cast<const C*>(a.rstd)[me.run] : C(0);
  // f(i, d, h), with d = grad weight and h = (x - mean) rstd.
  const auto walk = [&](auto f) {
    if (!me.inside) return;
    each_pack(x, a.n, 1, me.step, tiles.height, [&](int64_t i, auto count) {
      C d[count], h[count], w[count];
      load_values<count>(g + i, d);
      load_values<count>(x + i, h);
      if (weight) load_values<count>(weight + i, w);
#pragma unroll
      for (int j = 0; j < count; ++j) {
        if (weight) d[j] *= w[j];
        h[j] = (h[j] - mean) * rstd;
      }
      f(i, d, h);
    });
  };
  NormSums mine{};
  walk([&](int64_t, const auto& d, const auto& h) {
    C sum = 0, product = 0;
#pragma unroll
    for (int j = 0; j < int(std::extent_v<std::remove_reference_t<decltype(d)>>); ++j) {
      sum += d[j];
      product += d[j] * h[j];
    }
    mine.first += double(sum);
    mine.second += double(product);
  });
  const NormSums all = sum_rows(mine, tiles.width, tiles.height);
  const C mean_d = centered ? C(all.first / double(a.n)) : C(0), mean_dh = C(all.second / double(a.n));
  T* const grad_x = static_cast<T*>(a.y) + me.run * a.n;
  walk([&](int64_t i, auto& d, const auto& h) {
    constexpr int count = std::extent_v<std::remove_reference_t<decltype(d)>>;
#pragma unroll
    for (int j = 0; j < count; ++j) d[j] = rstd * (d[j] - mean_d - h[j] * mean_dh);
    store_values<count>(grad_x + i, d);
  });
}

// The gradients of weight and bias: each block sums some rows of 32 columns, and a second launch adds what they left,
// in order.
template <bool centered, class T>
__global__ void __launch_bounds__(block_threads) norm_parameters(NormArgs a, DeviceNorm parts) {
  using C = Compute<T>;
  constexpr int width = DeviceNorm::width, height = block_threads / width;
  const int64_t part = blockIdx.x / parts.column_blocks;
  const int64_t column = blockIdx.x % parts.column_blocks * width + threadIdx.x % width;
  const int64_t begin = part * parts.rows_of_part, end = std::min(a.rows, begin + parts.rows_of_part);
  NormSums mine{};
  if (column < a.n) {
    for (int64_t r = begin + threadIdx.x / width; r < end; r += height) {
      const C g = widen<T>(static_cast<const T*>(a.grad)[r * a.n + column]);
      const C mean = centered ? static_cast<const C*>(a.mean)[r] : C(0), rstd = static_cast<const C*>(a.rstd)[r];
      mine.first += double(g * ((widen<T>(static_cast<const T*>(a.x)[r * a.n + column]) - mean) * rstd));
      mine.second += double(g);
    }
  }
  const NormSums all = sum_rows(mine, width, height);
  if (column < a.n && int(threadIdx.x) < width) static_cast<NormSums*>(a.workspace)[part * a.n + column] = all;
}

template <class T>
__global__ void __launch_bounds__(block_threads) norm_add_parts(NormArgs a, DeviceNorm parts) {
  const int64_t column = int64_t(blockIdx.x) * block_threads + threadIdx.x;
  if (column >= a.n) return;
  NormSums all{};
  for (int64_t k = 0; k < parts.parts; ++k) {
    const NormSums part = static_cast<const NormSums*>(a.workspace)[k * a.n + column];
    all.first += part.first;
    all.second += part.second;
  }
  if (a.grad_weight) static_cast<T*>(a.grad_weight)[column] = narrow<T>(all.first);
  if (a.grad_bias) static_cast<T*>(a.grad_bias)[column] = narrow<T>(all.second);
}

template <bool centered>
void launch_norm(const NormArgs& a, cudaStream_t stream) {
  with_type<floats>(a.dtype, [&](auto t) {
    const DeviceTiles tiles(a.rows, a.n, 1);
    start(&norm_forward<centered, decltype(t)>, dim3(unsigned(tiles.blocks)), block_threads, stream, a, tiles);
  });
}

template <bool centered>
void launch_norm_backward(const NormArgs& a, cudaStream_t stream) {
  with_type<floats>(a.dtype, [&](auto t) {
    using T = decltype(t);
    const DeviceTiles tiles(a.rows, a.n, 1);
    start(&norm_backward<centered, T>, dim3(unsigned(tiles.blocks)), block_threads, stream, a, tiles);
    if (!a.grad_weight && !a.grad_bias) return;
    const DeviceNorm parts(a.rows, a.n);
    start(&norm_parameters<centered, T>, dim3(unsigned(parts.column_blocks * parts.parts)), block_threads, stream, a,
          parts);
    start(&norm_add_parts<T>, dim3(unsigned((a.n + block_threads - 1) / block_threads)), block_threads, stream, a,
          parts);
  });
}

}  // namespace rusttorch
