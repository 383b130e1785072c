#pragma once

#include "../../csrc/kernels/scan.h"
#include "device.cuh"

namespace rusttorch {

// Running sums as doubles (integers as int64), as on the CPU.
template <class T>
struct CumSum {
  using Out = std::conditional_t<is_float_type<T>, T, int64_t>;
  using Sum = std::conditional_t<is_float_type<T>, double, int64_t>;
  Sum total = 0;

  __device__ void take(T x, int64_t) { total += Sum(widen<T>(x)); }
  __device__ void write(const ScanArgs& a, int64_t at) const { static_cast<Out*>(a.out)[at] = narrow<Out>(total); }
};

// The last of equals, and the last NaN, as in stock.
template <bool largest, class T>
struct CumExtreme {
  using C = Compute<T>;
  C best{};
  int64_t index = -1;  // of none

  __device__ void take(T value, int64_t i) {
    const C x = widen<T>(value);
    if (index >= 0 && !((x != x) | ((best == best) & (largest ? x >= best : x <= best)))) return;
    best = x;
    index = i;
  }
  __device__ void write(const ScanArgs& a, int64_t at) const {
    static_cast<T*>(a.out)[at] = narrow<T>(best);
    a.index[at] = index;
  }
};
template <class T>
using CumMax = CumExtreme<true, T>;
template <class T>
using CumMin = CumExtreme<false, T>;

// A thread for each column, which loads a few elements before it uses the first.
template <class Scan, class T>
__global__ void __launch_bounds__(block_threads) scan_columns(ScanArgs a) {
  constexpr int batch = 8;
  const int64_t k = int64_t(blockIdx.x) * block_threads + threadIdx.x;
  if (k >= a.outer * a.inner) return;
  int64_t at = k / a.inner * a.n * a.inner + k % a.inner;
  Scan scan;
  for (int64_t i = 0; i < a.n; i += batch) {
    T x[batch];
#pragma unroll
    for (int j = 0; j < batch; ++j) {
      if (i + j < a.n) x[j] = static_cast<const T*>(a.in)[at + j * a.inner];
    }
#pragma unroll
    for (int j = 0; j < batch; ++j, at += a.inner) {
      if (i + j >= a.n) return;
      scan.take(x[j], i + j);
      scan.write(a, at);
    }
  }
}

template <class Sum>
struct Sums {
  Sum before, all;
};

// Of what the `height` threads of a row have: the sum of those before this one, and that of all. They are a warp or the
// block, all of whose threads must call it.
template <class Sum>
__device__ __forceinline__ Sums<Sum> scan_threads(Sum mine, int height) {
  RUSTTORCH_SHARED(Sum, warps, [block_threads / warp_threads]);
  const int lane = int(threadIdx.x) % warp_threads, warp = int(threadIdx.x) / warp_threads;
  for (int apart = 1; apart < warp_threads; apart *= 2) {
    const Sum other = of_lane(mine, (lane + warp_threads - apart) % warp_threads);
    if (lane >= apart) mine += other;
  }
  const Sum last = of_lane(mine, (lane + warp_threads - 1) % warp_threads), all = of_lane(mine, warp_threads - 1);
  Sums<Sum> sums{lane > 0 ? last : Sum(0), all};
  if (height == warp_threads) return sums;
  if (lane == 0) warps[warp] = all;
  __syncthreads();
  sums.all = 0;
  for (int k = 0; k < block_threads / warp_threads; ++k) {
    if (k == warp) sums.before += sums.all;
    sums.all += warps[k];
  }
  __syncthreads();  // before the room is used again
  return sums;
}

// A row in steps of a pack for each of its threads. What is loaded is what the next step takes.
template <class T>
__global__ void __launch_bounds__(block_threads) scan_rows(ScanArgs a, DeviceTiles tiles) {
  using Sum = typename CumSum<T>::Sum;
  using Out = typename CumSum<T>::Out;
  constexpr int count = pack<T>;
  const Place me(tiles, a.outer, 1);
  if (!me.inside) return;
  const T* const x = static_cast<const T*>(a.in) + me.run * a.n;
  Out* const out = static_cast<Out*>(a.out) + me.run * a.n;
  // The first pack begins before the row does, so that all of them are aligned.
  const int lead = int(reinterpret_cast<uintptr_t>(x) % 16 / sizeof(T));
  const auto load = [&](int64_t i) {
    Pack<T, count> p{};
    if (i >= 0 && i + count <= a.n) {
      p = load_pack<count>(x + i);
    } else {
#pragma unroll
      for (int j = 0; j < count; ++j) {
        if (i + j >= 0 && i + j < a.n) p.value[j] = x[i + j];
      }
    }
    return p;
  };
  const int64_t step = int64_t(tiles.height) * count, first = me.step * count - lead;
  Sum before = 0;  // of the steps so far
  Pack<T, count> next = load(first);
  for (int64_t i = first; i - first < a.n + lead; i += step) {
    const Pack<T, count> now = next;
    next = load(i + step);
    Sum running[count];
    running[0] = Sum(widen<T>(now.value[0]));
#pragma unroll
    for (int j = 1; j < count; ++j) running[j] = running[j - 1] + Sum(widen<T>(now.value[j]));
    const Sums<Sum> sums = scan_threads(running[count - 1], tiles.height);
    Compute<Out> y[count];
#pragma unroll
    for (int j = 0; j < count; ++j) y[j] = Compute<Out>((before + sums.before) + running[j]);
    before += sums.all;
    if (i >= 0 && i + count <= a.n) {
      store_values(out + i, y);
    } else {
#pragma unroll
      for (int j = 0; j < count; ++j) {
        if (i + j >= 0 && i + j < a.n) out[i + j] = narrow<Out>(y[j]);
      }
    }
  }
}

template <template <class> class Scan>
void launch_scan(const ScanArgs& a, cudaStream_t stream) {
  with_type<numbers>(a.dtype, [&](auto t) {
    using T = decltype(t);
    if constexpr (std::is_same_v<Scan<T>, CumSum<T>>) {
      if (a.inner == 1 && a.n > 1) {
        DeviceTiles tiles(a.outer, a.n, 1);
        // Several rows of a block must not wait for each other.
        tiles.height = tiles.height == warp_threads ? warp_threads : block_threads;
        tiles.runs = block_threads / tiles.height;
        tiles.blocks = (a.outer + tiles.runs - 1) / tiles.runs;
        return start(&scan_rows<T>, dim3(unsigned(tiles.blocks)), block_threads, stream, a, tiles);
      }
    }
    const int64_t blocks = (a.outer * a.inner + block_threads - 1) / block_threads;
    start(&scan_columns<Scan<T>, T>, dim3(unsigned(blocks)), block_threads, stream, a);
  });
}

}  // namespace rusttorch
