#pragma once

// The loop around a formula on the device, for every dtype: 16 bytes per load and store, grid-stride.

#include "../../csrc/kernels/formula.h"
#include "device.cuh"

namespace rusttorch {

template <class T>
struct Pointers {
  T* out[2];
  const T* in[4];
  uint8_t broadcast;  // bit k: in[k] is one element, taken for every i
};
template <class C>
struct Scalars {
  C value[3];
};

template <class T, int count>
__device__ __forceinline__ Pack<T, count> load_or_fill(const T* x, bool one, int64_t k) {
  if (!one) return load_pack<count>(x + k * count);
  Pack<T, count> p;
#pragma unroll
  for (int j = 0; j < count; ++j) p.value[j] = *x;
  return p;
}

template <class Op, class T, int count, size_t... I, size_t... S>
__device__ __forceinline__ void one_pack(const Pointers<T>& p, const Scalars<Compute<T>>& scalars, int64_t k,
                                         std::index_sequence<I...>, std::index_sequence<S...>) {
  using C = Compute<T>;
  using Result = decltype(Op::apply((static_cast<void>(I), C())..., (static_cast<void>(S), C())...));
  using P = Pack<T, count>;
  const P in[] = {load_or_fill<T, count>(p.in[I], p.broadcast >> I & 1, k)...};
  P out[2];
#pragma unroll
  for (int j = 0; j < count; ++j) {
    const Result y = Op::apply(widen<T>(in[I].value[j])..., scalars.value[S]...);
    if constexpr (std::is_same_v<Result, C>) {
      out[0].value[j] = narrow<T>(y);
    } else {
      out[0].value[j] = narrow<T>(y.first);
      out[1].value[j] = narrow<T>(y.second);
    }
  }
  store_pack(p.out[0] + k * count, out[0]);
  if constexpr (!std::is_same_v<Result, C>) store_pack(p.out[1] + k * count, out[1]);
}

// f(i, size) for all packs of `count` elements, and then for what is left, one by one: by all threads of the grid.
template <int count, class F>
__device__ __forceinline__ void each_of_grid(int64_t n, F f) {
  const int64_t first = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = first; i < n / count; i += step) f(i, std::integral_constant<int, count>());
  for (int64_t i = n / count * count + first; i < n; i += step) f(i, std::integral_constant<int, 1>());
}

template <class Op, class T, int count>
__global__ void __launch_bounds__(block_threads) elementwise(int64_t n, Pointers<T> p, Scalars<Compute<T>> scalars) {
  constexpr auto tensors = std::make_index_sequence<Op::tensors>();
  constexpr auto constants = std::make_index_sequence<Op::scalars>();
  each_of_grid<count>(n, [&](int64_t i, auto size) { one_pack<Op, T, size>(p, scalars, i, tensors, constants); });
}

// The arguments of a formula's kernel.
template <class Op, class T>
struct Operands {
  Pointers<T> pointers{};
  Scalars<Compute<T>> scalars{};
  bool aligned;

  explicit Operands(const ElementwiseArgs& a) {
    uintptr_t addresses = 0;
    for (int k = 0; k < Op::tensors; ++k) {
      pointers.in[k] = static_cast<const T*>(a.in[k]);
      if (!(a.broadcast >> k & 1)) addresses |= uintptr_t(a.in[k]);
    }
    for (int k = 0; k < 2; ++k) addresses |= uintptr_t(pointers.out[k] = static_cast<T*>(a.out[k]));
    pointers.broadcast = a.broadcast;
    std::copy_n(static_cast<const Compute<T>*>(a.scalars), Op::scalars, scalars.value);
    aligned = addresses % 16 == 0;
  }
};

template <class Op>
void launch(const ElementwiseArgs& a, cudaStream_t stream) {
  with_type<Op::types>(a.dtype, [&](auto t) {
    using T = decltype(t);
    const Operands<Op, T> operands(a);
    const int64_t packs = operands.aligned ? a.n / pack<T> + pack<T> : a.n;
    const int64_t blocks = std::min<int64_t>((packs + block_threads - 1) / block_threads, 1 << 16);
    start(operands.aligned ? &elementwise<Op, T, pack<T>> : &elementwise<Op, T, 1>, dim3(unsigned(blocks)),
          block_threads, stream, a.n, operands.pointers, operands.scalars);
  });
}

}  // namespace rusttorch
