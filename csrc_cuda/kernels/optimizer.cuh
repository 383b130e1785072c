#pragma once

// One launch for many parameters: their pointers come as the kernel's argument, and each block takes a chunk of one.

#include "../../csrc/kernels/optimizer.h"
#include "../../csrc/kernels/optimizer_formulas.h"
#include "device.cuh"

namespace rusttorch {

constexpr int64_t optimizer_chunk = 1 << 14;

struct OptimizerBatch {
  static constexpr int most = 256;

  OptimizerArgs args;
  int count = 0;
  int first_block[most + 1] = {};  // of each entry
  OptimizerEntry entries[most];
};

// The entry whose chunk the block takes.
__device__ __forceinline__ int entry_of_block(const OptimizerBatch& batch) {
  int low = 0, high = batch.count;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (batch.first_block[middle] <= int(blockIdx.x) ? low : high) = middle;
  }
  return low;
}

template <class F, bool decays, class T, class S>
__global__ void __launch_bounds__(block_threads) optimizer_step(const OptimizerBatch batch) {
  using C = Compute<T>;
  const OptimizerArgs& a = batch.args;
  if (a.found_inf && *a.found_inf == 1) return;
  const int which = entry_of_block(batch);
  const OptimizerEntry& e = batch.entries[which];
  const double lr = a.lr_there ? double(*a.lr_there) : a.lr;
  RUSTTORCH_SHARED(formula::Rates, rates, [1]);
  if (threadIdx.x == 0) rates[0] = F::rates(a, lr, e.step_there ? double(*e.step_there) : e.step);
  __syncthreads();
  const formula::Step<C> step(a, lr, rates[0]);
  const C scale = a.grad_scale ? C(*a.grad_scale) : C(1);

  const int64_t begin = int64_t(int(blockIdx.x) - batch.first_block[which]) * optimizer_chunk;
  const int64_t left = e.n - begin, n = left < optimizer_chunk ? left : optimizer_chunk;
  T *const p = static_cast<T*>(e.p) + begin, *const g = static_cast<T*>(e.g) + begin;
  S* state[F::states + 1] = {};
  for (int k = 0; k < F::states; ++k) state[k] = static_cast<S*>(e.state[k]) + begin;
  // `size` neighbours from each of some places on, all of them loaded before the first is used.
  const auto some = [&](int64_t first, auto size, auto several) {
    constexpr int count = size, places = several;
    C x[places][count], d[places][count], s[places][F::states + 1][count];
    const auto each = [&](auto f) {
#pragma unroll
      for (int b = 0; b < places; ++b) {
        const int64_t i = first + b * block_threads * count;
        if (i + count <= n) f(b, i);
      }
    };
    each([&](int b, int64_t i) {
      load_values<count>(p + i, x[b]);
      load_values<count>(g + i, d[b]);
#pragma unroll
      for (int k = 0; k < F::states; ++k) load_values<count>(state[k] + i, s[b][k]);
    });
    each([&](int b, int64_t i) {
      if (a.grad_scale) {
#pragma unroll
        for (int j = 0; j < count; ++j) d[b][j] = widen<T>(narrow<T>(d[b][j] / scale));
        store_values<count>(g + i, d[b]);
      }
#pragma unroll
      for (int j = 0; j < count; ++j) {
        C mine[F::states + 1];
#pragma unroll
        for (int k = 0; k < F::states; ++k) mine[k] = s[b][k][j];
        formula::update<F, decays>(x[b][j], d[b][j], mine, step);
#pragma unroll
        for (int k = 0; k < F::states; ++k) s[b][k][j] = mine[k];
      }
      store_values<count>(p + i, x[b]);
#pragma unroll
      for (int k = 0; k < F::states; ++k) store_values<count>(state[k] + i, s[b][k]);
    });
  };
  constexpr int count = pack<S>, places = 2;
  for (int64_t i = int64_t(threadIdx.x) * count; i + count <= n; i += places * block_threads * count) {
    some(i, std::integral_constant<int, count>(), std::integral_constant<int, places>());
  }
  const int64_t rest = n / count * count + threadIdx.x;
  if (rest < n) some(rest, std::integral_constant<int, 1>(), std::integral_constant<int, 1>());
}

template <class F, class T, class S>
void launch_optimizer_types(const OptimizerArgs& a, cudaStream_t stream) {
  auto* const kernel =
      a.weight_decay == 0 || a.decoupled ? &optimizer_step<F, false, T, S> : &optimizer_step<F, true, T, S>;
  for (int64_t first = 0; first < a.count; first += OptimizerBatch::most) {
    OptimizerBatch batch;
    batch.args = a;
    batch.count = int(std::min<int64_t>(OptimizerBatch::most, a.count - first));
    for (int k = 0; k < batch.count; ++k) {
      batch.entries[k] = a.entries[first + k];
      const int64_t chunks = (batch.entries[k].n + optimizer_chunk - 1) / optimizer_chunk;
      batch.first_block[k + 1] = batch.first_block[k] + int(chunks);
    }
    start(kernel, dim3(unsigned(batch.first_block[batch.count])), block_threads, stream, batch);
  }
}

template <class F>
void launch_optimizer(const OptimizerArgs& a, cudaStream_t stream) {
  if (a.count == 0) return;
  with_type<floats>(a.entries[0].dtype, [&](auto t) {
    using T = decltype(t);
    if constexpr (is_narrow<T> && F::states > 0) {
      if (a.entries[0].state_dtype == Dtype::f32) return launch_optimizer_types<F, T, float>(a, stream);
    }
    launch_optimizer_types<F, T, T>(a, stream);
  });
}

}  // namespace rusttorch
