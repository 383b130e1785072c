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
#include "../../csrc/kernels/tiles.h"
#include "math.cuh"

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

// load_pack, store_pack: by words of 16, 8 or 4 bytes, from and to an address that is aligned to the pack. The
// intrinsic keeps the compiler from splitting the store into elements, as a branch beside it does.
template <int bytes>
using Word = std::conditional_t<bytes % 16 == 0, uint4, std::conditional_t<bytes == 8, uint2, uint32_t>>;
template <int count, class T>
__device__ __forceinline__ Pack<T, count> load_pack(const T* x) {
#if defined(RUSTTORCH_EMULATION)
  return *reinterpret_cast<const Pack<T, count>*>(x);
#else
  if constexpr (count == 1) {
    return {*x};
  } else {
    using W = Word<sizeof(Pack<T, count>)>;
    W word[sizeof(Pack<T, count>) / sizeof(W)];
#pragma unroll
    for (size_t k = 0; k < sizeof word / sizeof(W); ++k) word[k] = reinterpret_cast<const W*>(x)[k];
    Pack<T, count> p;
    memcpy(&p, word, sizeof p);
    return p;
  }
#endif
}
template <int count, class T>
__device__ __forceinline__ void store_pack(T* y, const Pack<T, count>& p) {
#if defined(RUSTTORCH_EMULATION)
  *reinterpret_cast<Pack<T, count>*>(y) = p;
#else
  if constexpr (count == 1) {
    *y = p.value[0];
  } else {
    using W = Word<sizeof p>;
    W word[sizeof p / sizeof(W)];
    memcpy(word, &p, sizeof p);
#pragma unroll
    for (size_t k = 0; k < sizeof p / sizeof(W); ++k) __stwb(reinterpret_cast<W*>(y) + k, word[k]);
  }
#endif
}

constexpr int block_threads = DeviceTiles::threads, warp_threads = DeviceTiles::warp;

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
    p = load_pack<count>(x);
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
    store_pack(y, p);
  } else {
#pragma unroll
    for (int j = 0; j < count; ++j) y[j] = p.value[j];
  }
}

// exp(x), of which a T is made. For a T of 16 bits the hardware's own, which errs less than the rounding to T.
template <class T>
__device__ __forceinline__ Compute<T> exp_for(Compute<T> x) {
#ifdef __CUDA_ARCH__
  if constexpr (is_narrow<T>) return __expf(x);
#endif
  return math::exp(x);
}

// How a run of n neighbours from x on falls into packs: some elements before the first, packs, and some after the last.
template <class T>
struct Packs {
  int head;
  int64_t count, n;

  __device__ Packs(const T* x, int64_t n) : n(n) {
    const int to_first = int(-reinterpret_cast<uintptr_t>(x) % 16 / sizeof(T));
    head = n < to_first ? int(n) : to_first;
    count = (n - head) / pack<T>;
  }
  __device__ int64_t at(int64_t k) const { return head + k * pack<T>; }
  __device__ int64_t tail() const { return at(count); }
};

// f(i, v) for i = first + k along, k < all, of thread `me` of `threads`: v[l] are the `size` neighbours at the i-th row
// of input l, widened. Those of `batch` places are loaded before the first is used.
template <int size, int along, int batch, class T, int inputs, class F>
__device__ __forceinline__ void each_place(const T* const (&x)[inputs], int64_t row, int64_t first, int64_t all, int me,
                                           int threads, F& f) {
  constexpr int64_t chunk = 1 << 30;  // within which 32 bits count
  const int64_t step = int64_t(threads) * along * row;
  for (int64_t begin = 0; begin < all; begin += chunk) {
    const int some = int(all - begin < chunk ? all - begin : chunk);
    for (int k = me; k < some; k += batch * threads) {
      Pack<T, size> held[batch][inputs];
#pragma unroll
      for (int l = 0; l < inputs; ++l) {
        const T* from = x[l] + (first + (begin + k) * along) * row;
#pragma unroll
        for (int b = 0; b < batch; ++b, from += step) {
          if (k + b * threads < some) held[b][l] = load_pack<size>(from);
        }
      }
#pragma unroll
      for (int b = 0; b < batch; ++b) {
        if (k + b * threads >= some) continue;
        Compute<T> v[inputs][size];
#pragma unroll
        for (int l = 0; l < inputs; ++l) {
#pragma unroll
          for (int j = 0; j < size; ++j) v[l][j] = widen<T>(held[b][l].value[j]);
        }
        f(first + (begin + k + b * threads) * along, v);
      }
    }
  }
}

// f(i, v) for [0, n) of runs whose elements lie `row` apart, those of thread `me` of `threads` that share them, in
// order: by packs where the runs are contiguous, and lie to each other as packs do; else `batch` elements are on their
// way at a time.
template <int batch = 8, class T, int inputs, class F>
__device__ __forceinline__ void each_pack(const T* const (&x)[inputs], int64_t n, int64_t row, int me, int threads,
                                          F f) {
  bool alike = row == 1;
  for (int l = 1; l < inputs; ++l) {
    alike &= (reinterpret_cast<uintptr_t>(x[l]) - reinterpret_cast<uintptr_t>(x[0])) % 16 == 0;
  }
  if (!alike) return each_place<1, 1, batch / inputs>(x, row, 0, n, me, threads, f);
  const Packs<T> packs(x[0], n);
  each_place<1, 1, 1>(x, 1, 0, packs.head, me, threads, f);
  each_place<pack<T>, pack<T>, 4 / inputs>(x, 1, packs.head, packs.count, me, threads, f);
  each_place<1, 1, 1>(x, 1, packs.tail(), n - packs.tail(), me, threads, f);
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
// powers of 2, and their product is at least a warp. add(a, b) adds b to a, and b to a is what a to b is. All threads
// of the block must call it.
template <class State, class Add>
__device__ __forceinline__ State join_threads(State mine, int width, int height, Add add) {
  RUSTTORCH_SHARED(double, room, [block_threads * sizeof(State) / sizeof(double) + 1]);
  const int me = int(threadIdx.x), lane = me % warp_threads;
  for (int apart = warp_threads / 2; apart >= width; apart /= 2) add(mine, of_lane(mine, lane ^ apart));
  // Of each warp so many columns; so many warps stand beside each other, and so many in front of a run.
  const int columns = width < warp_threads ? width : warp_threads, across = width / columns;
  const int down = width * height / warp_threads / across;
  if (down == 1) return mine;
  State* const states = reinterpret_cast<State*>(room);
  const int warp = me / warp_threads;
  if (lane < columns) states[warp * columns + lane] = mine;
  __syncthreads();
  const int first = (warp / (across * down) * (across * down) + warp % across) * columns + lane % columns;
  State whole = states[first];
  for (int k = 1; k < down; ++k) add(whole, states[first + k * across * columns]);
  __syncthreads();  // before the room is used again
  return whole;
}
__device__ __forceinline__ double sum_threads(double mine, int width, int height) {
  return join_threads(mine, width, height, [](double& a, double b) { a += b; });
}

}  // namespace rusttorch
