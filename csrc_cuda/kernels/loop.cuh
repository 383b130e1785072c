#pragma once

// The loop around a formula on the device, for every dtype: 16 bytes per load and store, grid-stride.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "../../csrc/kernels/formula.h"
#include "../../csrc/kernels/kernel.h"

namespace rusttorch {

// bf16 and f16 are computed in float.
template <class T>
using Compute = std::conditional_t<sizeof(T) == 2, float, T>;

template <class T>
__device__ __forceinline__ Compute<T> widen(T x) {
  if constexpr (std::is_same_v<T, __half>) {
    return __half2float(x);
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return __bfloat162float(x);
  } else {
    return x;
  }
}
template <class T>
__device__ __forceinline__ T narrow(Compute<T> x) {
  if constexpr (std::is_same_v<T, __half>) {
    return __float2half_rn(x);
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return __float2bfloat16_rn(x);
  } else {
    return x;
  }
}

template <class T, int count>
struct alignas(count * sizeof(T)) Pack {
  T value[count];
};

template <class T>
struct Pointers {
  T* out[2];
  const T* in[4];
};
template <class C>
struct Scalars {
  C value[3];
};

template <class Op, class T, int count, size_t... I, size_t... S>
__device__ __forceinline__ void one_pack(const Pointers<T>& p, const Scalars<Compute<T>>& scalars, int64_t pack,
                                         std::index_sequence<I...>, std::index_sequence<S...>) {
  using C = Compute<T>;
  using Result = decltype(Op::apply((static_cast<void>(I), C())..., (static_cast<void>(S), C())...));
  using P = Pack<T, count>;
  const P in[] = {reinterpret_cast<const P*>(p.in[I])[pack]...};
  P out[2];
#pragma unroll
  for (int k = 0; k < count; ++k) {
    const Result y = Op::apply(widen<T>(in[I].value[k])..., scalars.value[S]...);
    if constexpr (std::is_same_v<Result, C>) {
      out[0].value[k] = narrow<T>(y);
    } else {
      out[0].value[k] = narrow<T>(y.first);
      out[1].value[k] = narrow<T>(y.second);
    }
  }
  reinterpret_cast<P*>(p.out[0])[pack] = out[0];
  if constexpr (!std::is_same_v<Result, C>) reinterpret_cast<P*>(p.out[1])[pack] = out[1];
}

// Packs of `count` elements by all threads, what is left by the first few.
template <class Op, class T, int count>
__global__ void __launch_bounds__(256) elementwise(int64_t n, Pointers<T> p, Scalars<Compute<T>> scalars) {
  constexpr auto tensors = std::make_index_sequence<Op::tensors>();
  constexpr auto numbers = std::make_index_sequence<Op::scalars>();
  const int64_t first = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = first; i < n / count; i += step) one_pack<Op, T, count>(p, scalars, i, tensors, numbers);
  for (int64_t i = n / count * count + first; i < n; i += step) one_pack<Op, T, 1>(p, scalars, i, tensors, numbers);
}

template <class Op, class T>
void launch_type(const Args& a, cudaStream_t stream) {
  using C = Compute<T>;
  constexpr int count = 16 / sizeof(T), threads = 256;
  Pointers<T> p{};
  uintptr_t addresses = 0;
  for (int k = 0; k < Op::tensors; ++k) addresses |= uintptr_t(p.in[k] = static_cast<const T*>(a.in[k]));
  for (int k = 0; k < 2; ++k) addresses |= uintptr_t(p.out[k] = static_cast<T*>(a.out[k]));
  Scalars<C> scalars{};
  std::copy_n(static_cast<const C*>(a.scalars), Op::scalars, scalars.value);
  const bool aligned = addresses % 16 == 0;
  const int64_t packs = aligned ? a.n / count + count : a.n;
  const int64_t blocks = std::min<int64_t>((packs + threads - 1) / threads, 1 << 16);
  auto* const kernel = aligned ? &elementwise<Op, T, count> : &elementwise<Op, T, 1>;
  kernel<<<unsigned(blocks), threads, 0, stream>>>(a.n, p, scalars);
}

template <class Op>
void launch(const Args& a, cudaStream_t stream) {
  switch (a.dtype) {
    case Dtype::f32: return launch_type<Op, float>(a, stream);
    case Dtype::f64: return launch_type<Op, double>(a, stream);
    case Dtype::bf16: return launch_type<Op, __nv_bfloat16>(a, stream);
    case Dtype::f16: return launch_type<Op, __half>(a, stream);
    case Dtype::i32:
      if constexpr (Op::integers) launch_type<Op, int32_t>(a, stream);
      return;
    case Dtype::i64:
      if constexpr (Op::integers) launch_type<Op, int64_t>(a, stream);
      return;
    case Dtype::b8: return;  // no elementwise kernel takes bool
  }
}

}  // namespace rusttorch
