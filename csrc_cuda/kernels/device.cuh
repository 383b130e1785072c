#pragma once

// What the device's kernels are written with: numbers, runs of them, blocks of threads that put their parts together.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "../../csrc/kernels/kernel.h"
#include "../../csrc/kernels/lanes.h"
#include "../../csrc/kernels/tiles.h"

namespace rusttorch {

using bf16 = __nv_bfloat16;
using f16 = __half;

}  // namespace rusttorch

#include "../../csrc/kernels/types.h"  // of these

namespace rusttorch {

template <class T>
__device__ __forceinline__ Compute<T> widen(T x) {
  if constexpr (std::is_same_v<T, f16>) {
    return __half2float(x);
  } else if constexpr (std::is_same_v<T, bf16>) {
    return __bfloat162float(x);
  } else {
    return x;
  }
}
template <class T, class C>
__device__ __forceinline__ T narrow(C x) {
  if constexpr (std::is_same_v<T, f16>) {
    return __float2half_rn(float(x));
  } else if constexpr (std::is_same_v<T, bf16>) {
    return __float2bfloat16_rn(float(x));
  } else {
    return T(x);
  }
}

template <class T, int count>
struct alignas(count * sizeof(T)) Pack {
  T value[count];
};
// 16 bytes, the most that a thread loads at once.
template <class T>
constexpr int pack = 16 / sizeof(T);

constexpr int block_threads = DeviceTiles::threads, warp_threads = 32;

#if !defined(RUSTTORCH_EMULATION)  // which has its own (tests/emulation)
// An array that the threads of a block share. (The emulation fills it with rubbish before each block.)
#define RUSTTORCH_SHARED(type, name, size) __shared__ type name size

template <class... P, class... A>
void start(void (*kernel)(P...), dim3 grid, int threads, cudaStream_t stream, A... args) {
  kernel<<<grid, threads, 0, stream>>>(args...);
}

// That of a thread of the same warp. All of its threads must call it.
template <class State>
__device__ __forceinline__ State of_lane(State mine, int lane) {
  unsigned words[(sizeof mine + 3) / 4] = {};
  memcpy(words, &mine, sizeof mine);
#pragma unroll
  for (unsigned& word : words) word = __shfl_sync(0xffffffff, word, lane);
  memcpy(&mine, words, sizeof mine);
  return mine;
}
#endif

// `count` neighbours, widened, and back: by one load or store where the address allows.
template <int count, class T>
__device__ __forceinline__ void load_values(const T* x, Compute<T> (&v)[count]) {
  Pack<T, count> p;
  if (count > 1 && reinterpret_cast<uintptr_t>(x) % sizeof p == 0) {
    p = *reinterpret_cast<const Pack<T, count>*>(x);
  } else {
#pragma unroll
    for (int j = 0; j < count; ++j) p.value[j] = x[j];
  }
#pragma unroll
  for (int j = 0; j < count; ++j) v[j] = widen<T>(p.value[j]);
}
template <int count, class T>
__device__ __forceinline__ void store_values(T* y, const Compute<T> (&v)[count]) {
  Pack<T, count> p;
#pragma unroll
  for (int j = 0; j < count; ++j) p.value[j] = narrow<T>(v[j]);
  if (count > 1 && reinterpret_cast<uintptr_t>(y) % sizeof p == 0) {
    *reinterpret_cast<Pack<T, count>*>(y) = p;
  } else {
#pragma unroll
    for (int j = 0; j < count; ++j) y[j] = p.value[j];
  }
}

// f(i, count) for [i, i + count) in [0, n): those of thread `me` of `threads` that share a run. By packs where the run
// is contiguous (row is 1), which T* x must be aligned to.
template <class T, class F>
__device__ __forceinline__ void each_pack(const T* x, int64_t n, int64_t row, int me, int threads, F f) {
  int64_t i = 0;
  if (row == 1 && reinterpret_cast<uintptr_t>(x) % 16 == 0) {
#pragma unroll 4
    for (int64_t k = me; k < n / pack<T>; k += threads) f(k * pack<T>, std::integral_constant<int, pack<T>>());
    i = n / pack<T> * pack<T>;
  }
#pragma unroll 4
  for (i += me; i < n; i += threads) f(i, std::integral_constant<int, 1>());
}

// Where a thread stands in [outer][n][inner] (tiles.h).
struct Place {
  int step;  // of the `height` that share a column
  int64_t run, column;
  bool inside;

  __device__ Place(const DeviceTiles& t, int64_t outer, int64_t inner)
      : step(int(threadIdx.x) / t.width % t.height),
        run(int64_t(blockIdx.x) / t.column_blocks * t.runs + int(threadIdx.x) / (t.width * t.height)),
        column(int64_t(blockIdx.x) % t.column_blocks * t.width + int(threadIdx.x) % t.width),
        inside(run < outer && column < inner) {}
};

// The states of the `height` threads that stand `width` apart, put together: every one of them gets the whole. Both are
// powers of 2, and their product is at least a warp. add(a, b) adds b to a. All threads of the block must call it.
template <class State, class Add>
__device__ __forceinline__ State join_threads(State mine, int width, int height, Add add) {
  RUSTTORCH_SHARED(double, room, [block_threads * sizeof(State) / sizeof(double) + 1]);
  State* const states = reinterpret_cast<State*>(room);
  const int me = int(threadIdx.x), first = me - me / width % height * width;
  for (int apart = warp_threads / 2; apart >= width; apart /= 2) add(mine, of_lane(mine, me % warp_threads + apart));
  states[me] = mine;
  __syncthreads();
  const int next = width < warp_threads ? warp_threads : width;
  State whole = states[first];
  for (int k = first + next; k < first + width * height; k += next) add(whole, states[k]);
  __syncthreads();  // before the room is used again
  return whole;
}
__device__ __forceinline__ double sum_threads(double mine, int width, int height) {
  return join_threads(mine, width, height, [](double& a, double b) { a += b; });
}

}  // namespace rusttorch
