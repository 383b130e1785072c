#pragma once

// The loop around a formula, for every dtype. Compiled once per instruction set.

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <utility>

#include "formula.h"
#include "kernel.h"

namespace rusttorch {
namespace {  // one copy per instruction set, invisible to the others

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

// bf16 and f16 are computed in float: widened as they are loaded, rounded to nearest even as they are stored.
template <class T>
using Compute = std::conditional_t<sizeof(T) == 2, float, T>;

template <class V, class T>
RT_INLINE V load(const T* from) {
  V v;
  std::memcpy(&v, from, sizeof v);
  return v;
}
template <class V, class T>
RT_INLINE void store(T* to, const V& v) {
  std::memcpy(to, &v, sizeof v);
}

// As many 16-bit words as V has lanes.
template <class V>
using Words = Vector<uint16_t, sizeof(V) / 2>;

template <class V>
RT_INLINE V load(const bf16* from) {
  return from_bits<V>(__builtin_convertvector(load<Words<V>>(&from->bits), bits_t<V>) << 16);
}
template <class V>
RT_INLINE void store(bf16* to, const V& v) {
  const bits_t<V> u = bits(v), nearest_even = u + 0x7fff + ((u >> 16) & 1);
  const bits_t<V> nan = bits_t<V>{} + 0x7fc00000u;
  store(&to->bits, __builtin_convertvector((v != v ? nan : nearest_even) >> 16, Words<V>));
}

// Not inlined: gcc 12 fails on a loop over _Float16 conversions that it tries to vectorise.
[[maybe_unused]] __attribute__((noinline)) float widen(f16 h) {
  return static_cast<float>(__builtin_bit_cast(_Float16, h));
}
[[maybe_unused]] __attribute__((noinline)) f16 narrow(float x) {
  return __builtin_bit_cast(f16, static_cast<_Float16>(x));
}

template <class V>
RT_INLINE V load(const f16* from) {
  [[maybe_unused]] const auto* words = reinterpret_cast<const char*>(from);
#if defined(__AVX512F__)
  if constexpr (sizeof(V) == 64) return _mm512_cvtph_ps(load<__m256i>(words));
#endif
#if defined(__F16C__)
  if constexpr (sizeof(V) == 32) return _mm256_cvtph_ps(load<__m128i>(words));
#endif
  V v;
  for (size_t i = 0; i < sizeof(V) / sizeof(float); ++i) v[i] = widen(from[i]);
  return v;
}
template <class V>
RT_INLINE void store(f16* to, const V& v) {
  [[maybe_unused]] auto* words = reinterpret_cast<char*>(to);
#if defined(__AVX512F__)
  if constexpr (sizeof(V) == 64) {
    return store(words, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
#endif
#if defined(__F16C__)
  if constexpr (sizeof(V) == 32) {
    return store(words, _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
#endif
  for (size_t i = 0; i < sizeof(V) / sizeof(float); ++i) to[i] = narrow(v[i]);
}

// A vector to memory, around the cache. The address is aligned to it.
template <class T, class V>
RT_INLINE void stream_out(T* to, const V& v) {
#if defined(__AVX512F__)
  if constexpr (sizeof(V) == 64) _mm512_stream_si512(reinterpret_cast<__m512i*>(to), __builtin_bit_cast(__m512i, v));
#endif
#if defined(__AVX2__)
  if constexpr (sizeof(V) == 32) _mm256_stream_si256(reinterpret_cast<__m256i*>(to), __builtin_bit_cast(__m256i, v));
#endif
  if constexpr (sizeof(V) == 16) _mm_stream_si128(reinterpret_cast<__m128i*>(to), __builtin_bit_cast(__m128i, v));
}

template <class Op, class T, class Inputs = std::make_index_sequence<Op::tensors>,
          class Scalars = std::make_index_sequence<Op::scalars>>
struct Loop;

template <class Op, class T, size_t... I, size_t... S>
struct Loop<Op, T, std::index_sequence<I...>, std::index_sequence<S...>> {
  using C = Compute<T>;
  static constexpr bool converts = sizeof(T) == 2;
  using V = Vector<C, Op::memory_bound && !converts ? narrow_bytes : vector_bytes>;
  using Result = decltype(Op::apply((static_cast<void>(I), V())..., (static_cast<void>(S), C())...));
  static constexpr int64_t lanes = sizeof(V) / sizeof(C);
  static constexpr int outputs = std::is_same_v<Result, V> ? 1 : 2;
  static constexpr bool can_stream = !converts && outputs == 1;

  template <bool stream>
  static void write(T* const* to, int64_t i, const Result& result) {
    if constexpr (stream) {
      stream_out(to[0] + i, result);
    } else if constexpr (outputs == 1) {
      store(to[0] + i, result);
    } else {
      store(to[0] + i, result.first);
      store(to[1] + i, result.second);
    }
  }

  template <bool stream = false>
  static void elements(int64_t n, T* const* out, const T* const* in, const C* scalars) {
    [[maybe_unused]] const C s[] = {scalars[S]..., C()};
    const T* const x[] = {in[I]...};
    T* y[outputs];
    std::copy_n(out, outputs, y);
    int64_t i = 0;
    for (; i + lanes <= n; i += lanes) write<stream>(y, i, Op::apply(load<V>(x[I] + i)..., s[S]...));
    if (i == n) return;
    // What is left, through padded copies: a vector's worth may not be read or written beyond the end.
    T rest_in[Op::tensors][lanes] = {}, rest_out[outputs][lanes];
    T* const to[] = {rest_out[0], rest_out[outputs - 1]};
    for (int k = 0; k < Op::tensors; ++k) std::memcpy(rest_in[k], x[k] + i, (n - i) * sizeof(T));
    write<false>(to, 0, Op::apply(load<V>(rest_in[I])..., s[S]...));
    for (int k = 0; k < outputs; ++k) std::memcpy(y[k] + i, to[k], (n - i) * sizeof(T));
  }

  // Where an input is one element for all: a block at a time, against a block full of it.
  template <bool stream = false>
  static void broadcast(int64_t n, T* const* out, const T* const* in, const C* scalars, uint8_t which) {
    if (which == 0) return elements<stream>(n, out, in, scalars);
    constexpr int64_t block = 512;
    T full[Op::tensors][block];
    for (int k = 0; k < Op::tensors; ++k) {
      if (which >> k & 1) std::fill_n(full[k], std::min(n, block), in[k][0]);
    }
    for (int64_t i = 0; i < n; i += block) {
      const T* x[Op::tensors];
      T* y[outputs];
      for (int k = 0; k < Op::tensors; ++k) x[k] = which >> k & 1 ? full[k] : in[k] + i;
      for (int k = 0; k < outputs; ++k) y[k] = out[k] + i;
      elements<stream>(std::min(block, n - i), y, x, scalars);
    }
  }

  static void around_cache(int64_t n, T** out, const T** in, const C* scalars, uint8_t which) {
    // The elements before the first aligned one, then the rest.
    const int64_t past = reinterpret_cast<uintptr_t>(out[0]) % sizeof(V);
    const int64_t head = std::min<int64_t>(n, past ? (sizeof(V) - past) / sizeof(T) : 0);
    broadcast(head, out, in, scalars, which);
    for (int k = 0; k < Op::tensors; ++k) in[k] += (which >> k & 1) ? 0 : head;
    out[0] += head;
    broadcast<true>(n - head, out, in, scalars, which);
    _mm_sfence();
  }

  static void run(const Args& a) {
    const T* in[] = {static_cast<const T*>(a.in[I])...};
    T* out[outputs];
    for (int k = 0; k < outputs; ++k) out[k] = static_cast<T*>(a.out[k]);
    const C* scalars = static_cast<const C*>(a.scalars);
    if constexpr (can_stream) {
      if (a.stream) return around_cache(a.n, out, in, scalars, a.broadcast);
    }
    broadcast(a.n, out, in, scalars, a.broadcast);
  }
};

template <class Op>
void run(const Args& a) {
  switch (a.dtype) {
    case Dtype::f32: return Loop<Op, float>::run(a);
    case Dtype::f64: return Loop<Op, double>::run(a);
    case Dtype::bf16: return Loop<Op, bf16>::run(a);
    case Dtype::f16: return Loop<Op, f16>::run(a);
    default: break;
  }
  if constexpr (Op::integers) {
    if (a.dtype == Dtype::i32) return Loop<Op, int32_t>::run(a);
    return Loop<Op, int64_t>::run(a);
  }
}

}  // namespace
}  // namespace rusttorch

// The kernels of a family, registered for the instruction set that this file is being compiled for.
#define RUSTTORCH_KERNEL(NAME, ...) {&run<NAME##_formula>, NAME##_formula::integers},
#define RUSTTORCH_KERNELS(family, LIST)                                                \
  namespace rusttorch {                                                                \
  namespace {                                                                          \
  LIST(RUSTTORCH_FORMULA)                                                              \
  constexpr Kernel family##_kernels[] = {LIST(RUSTTORCH_KERNEL)};                      \
  const Kernel* family##_table() { return family##_kernels; }                          \
  }                                                                                    \
  }                                                                                    \
  namespace at::native {                                                               \
  ALSO_REGISTER_AVX512_DISPATCH(rusttorch_##family##_stub, &rusttorch::family##_table) \
  }
