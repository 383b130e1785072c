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

// A thread for each column.
template <class Scan, class T>
__global__ void __launch_bounds__(block_threads) scan_columns(ScanArgs a) {
  const int64_t k = int64_t(blockIdx.x) * block_threads + threadIdx.x;
  if (k >= a.outer * a.inner) return;
  int64_t at = k / a.inner * a.n * a.inner + k % a.inner;
  Scan scan;
  for (int64_t i = 0; i < a.n; ++i, at += a.inner) {
    scan.take(static_cast<const T*>(a.in)[at], i);
    scan.write(a, at);
  }
}

// A block for each row: a thread sums a few neighbours, the threads' sums are scanned by doubling the distance.
template <class T>
__global__ void __launch_bounds__(block_threads) scan_row(ScanArgs a) {
  using Sum = typename CumSum<T>::Sum;
  constexpr int each = 8;
  RUSTTORCH_SHARED(Sum, sums, [2][block_threads]);
  const int me = int(threadIdx.x);
  const int64_t row = int64_t(blockIdx.x) * a.n;
  CumSum<T> before;  // of all elements of the row so far
  for (int64_t i = 0; i < a.n; i += block_threads * each) {
    const int64_t first = i + me * each, end = first + each < a.n ? first + each : a.n;
    CumSum<T> mine;
    for (int64_t k = first; k < end; ++k) mine.take(static_cast<const T*>(a.in)[row + k], k);
    int from = 0;
    sums[from][me] = mine.total;
    __syncthreads();
    for (int apart = 1; apart < block_threads; apart *= 2, from = 1 - from) {
      sums[1 - from][me] = sums[from][me] + (me >= apart ? sums[from][me - apart] : Sum(0));
      __syncthreads();
    }
    CumSum<T> running{before.total + (me > 0 ? sums[from][me - 1] : Sum(0))};
    before.total += sums[from][block_threads - 1];
    for (int64_t k = first; k < end; ++k) {
      running.take(static_cast<const T*>(a.in)[row + k], k);
      running.write(a, row + k);
    }
    __syncthreads();  // before the sums are written again
  }
}

template <template <class> class Scan>
void launch_scan(const ScanArgs& a, cudaStream_t stream) {
  with_type<numbers>(a.dtype, [&](auto t) {
    using T = decltype(t);
    if constexpr (std::is_same_v<Scan<T>, CumSum<T>>) {
      if (a.inner == 1 && a.n > 1) return start(&scan_row<T>, dim3(unsigned(a.outer)), block_threads, stream, a);
    }
    const int64_t blocks = (a.outer * a.inner + block_threads - 1) / block_threads;
    start(&scan_columns<Scan<T>, T>, dim3(unsigned(blocks)), block_threads, stream, a);
  });
}

}  // namespace rusttorch
