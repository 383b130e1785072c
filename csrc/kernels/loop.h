#pragma once

// The loop around a formula, for every dtype. Compiled once per instruction set.

#include <immintrin.h>

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

// bf16 and f16 are computed in float, a block at a time: widened into a buffer, narrowed out of it.
template <class T>
using Compute = std::conditional_t<sizeof(T) == 2, float, T>;

constexpr int64_t block = 512;  // elements: three float inputs and two outputs stay in a 32 KiB L1 cache

inline void widen(const bf16* in, float* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = __builtin_bit_cast(float, uint32_t(in[i].bits) << 16);
}

inline void narrow(const float* in, bf16* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t u = __builtin_bit_cast(uint32_t, in[i]);
    const uint32_t nearest_even = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
    out[i].bits = uint16_t(in[i] != in[i] ? 0x7fc0 : nearest_even);
  }
}

constexpr int64_t f16_lanes = 8;

#ifndef __F16C__
// Not inlined: gcc 12 fails on a loop over _Float16 conversions that it tries to vectorise.
__attribute__((noinline)) float widen_one(f16 h) { return static_cast<float>(__builtin_bit_cast(_Float16, h)); }
__attribute__((noinline)) f16 narrow_one(float x) { return __builtin_bit_cast(f16, static_cast<_Float16>(x)); }
#endif

inline void widen_lanes(const f16* in, float* out) {
#ifdef __F16C__
  _mm256_storeu_ps(out, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in))));
#else
  for (int i = 0; i < f16_lanes; ++i) out[i] = widen_one(in[i]);
#endif
}

inline void narrow_lanes(const float* in, f16* out) {
#ifdef __F16C__
  const __m128i h = _mm256_cvtps_ph(_mm256_loadu_ps(in), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), h);
#else
  for (int i = 0; i < f16_lanes; ++i) out[i] = narrow_one(in[i]);
#endif
}

// Runs f over whole groups of lanes, and over a padded copy of what is left.
template <class In, class Out, class F>
inline void by_lanes(const In* in, Out* out, int64_t n, F f) {
  int64_t i = 0;
  for (; i + f16_lanes <= n; i += f16_lanes) f(in + i, out + i);
  if (i < n) {
    In rest[f16_lanes] = {};
    Out result[f16_lanes];
    std::memcpy(rest, in + i, (n - i) * sizeof(In));
    f(rest, result);
    std::memcpy(out + i, result, (n - i) * sizeof(Out));
  }
}

inline void widen(const f16* in, float* out, int64_t n) { by_lanes(in, out, n, widen_lanes); }
inline void narrow(const float* in, f16* out, int64_t n) { by_lanes(in, out, n, narrow_lanes); }

// A vector to memory, around the cache. The address is aligned to it.
template <class T, class V>
inline void stream_out(T* to, const V& v) {
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
  using V = Vector<C, Op::memory_bound ? narrow_bytes : vector_bytes>;
  static constexpr int64_t lanes = sizeof(V) / sizeof(C);
  using Result = decltype(Op::apply((static_cast<void>(I), V())..., (static_cast<void>(S), C())...));
  static constexpr int outputs = std::is_same_v<Result, V> ? 1 : 2;

  template <bool stream = false>
  static void elements(int64_t n, C* const* out, const C* const* in, const C* scalars) {
    [[maybe_unused]] const C s[] = {scalars[S]..., C()};
    const C* const x[] = {in[I]...};
    C* y[outputs];
    std::copy_n(out, outputs, y);
    int64_t i = 0;
    for (; i + lanes <= n; i += lanes) write<stream>(y, i, Op::apply(load(x[I] + i)..., s[S]...));
    if (i == n) return;
    // What is left, through padded copies: a vector's worth may not be read or written beyond the end.
    V rest_in[Op::tensors] = {}, rest_out[outputs];
    C* const to[] = {reinterpret_cast<C*>(&rest_out[0]), reinterpret_cast<C*>(&rest_out[outputs - 1])};
    for (int k = 0; k < Op::tensors; ++k) std::memcpy(&rest_in[k], x[k] + i, (n - i) * sizeof(C));
    write<false>(to, 0, Op::apply(rest_in[I]..., s[S]...));
    for (int k = 0; k < outputs; ++k) std::memcpy(y[k] + i, to[k], (n - i) * sizeof(C));
  }

  static V load(const C* from) {
    V v;
    std::memcpy(&v, from, sizeof v);
    return v;
  }
  template <bool stream>
  static void write(C* const* to, int64_t i, const Result& result) {
    if constexpr (stream) {
      stream_out(to[0] + i, result);
    } else if constexpr (outputs == 1) {
      std::memcpy(to[0] + i, &result, sizeof result);
    } else {
      std::memcpy(to[0] + i, &result.first, sizeof(V));
      std::memcpy(to[1] + i, &result.second, sizeof(V));
    }
  }

  // A block at a time, through buffers where an input or output is not what the loop reads or writes: types that
  // are not computed in, and one element for all.
  template <bool stream = false>
  static void blocks(int64_t n, T* const* out, const T* const* in, const C* scalars, uint8_t broadcast) {
    constexpr bool convert = sizeof(T) == 2;
    alignas(64) C buffer[Op::tensors + outputs][block];
    const auto is_one = [&](int k) { return (broadcast >> k & 1) != 0; };
    const int64_t longest = std::min(n, block);
    for (int k = 0; k < Op::tensors; ++k) {
      if (!is_one(k) || n == 0) continue;
      read(in[k], buffer[k], 1);
      std::fill_n(buffer[k] + 1, longest - 1, buffer[k][0]);
    }
    for (int64_t i = 0; i < n; i += block) {
      const int64_t m = std::min(block, n - i);
      const C* x[Op::tensors];
      C* y[outputs];
      for (int k = 0; k < Op::tensors; ++k) {
        x[k] = buffer[k];
        if (is_one(k)) continue;
        if constexpr (convert) {
          read(in[k] + i, buffer[k], m);
        } else {
          x[k] = in[k] + i;
        }
      }
      for (int k = 0; k < outputs; ++k) {
        if constexpr (convert) {
          y[k] = buffer[Op::tensors + k];
        } else {
          y[k] = out[k] + i;
        }
      }
      elements<stream>(m, y, x, scalars);
      if constexpr (convert) {
        for (int k = 0; k < outputs; ++k) narrow(y[k], out[k] + i, m);
      }
    }
  }

  static void read(const T* in, C* out, int64_t n) {
    if constexpr (sizeof(T) == 2) {
      widen(in, out, n);
    } else {
      std::copy_n(in, n, out);
    }
  }

  static void run(const Args& a) {
    const T* in[] = {static_cast<const T*>(a.in[I])...};
    T* out[outputs];
    for (int k = 0; k < outputs; ++k) out[k] = static_cast<T*>(a.out[k]);
    const C* scalars = static_cast<const C*>(a.scalars);
    if constexpr (sizeof(T) > 2 && outputs == 1) {
      if (a.stream) return around_cache(a.n, out, in, scalars, a.broadcast);
    }
    if constexpr (sizeof(T) > 2) {
      if (a.broadcast == 0) return elements(a.n, out, in, scalars);
    }
    blocks(a.n, out, in, scalars, a.broadcast);
  }

  static void around_cache(int64_t n, T** out, const T** in, const C* scalars, uint8_t broadcast) {
    // The elements before the first aligned one, then the rest.
    const int64_t past = reinterpret_cast<uintptr_t>(out[0]) % vector_bytes;
    const int64_t head = std::min<int64_t>(n, past ? (vector_bytes - past) / sizeof(T) : 0);
    blocks(head, out, in, scalars, broadcast);
    for (int k = 0; k < Op::tensors; ++k) in[k] += (broadcast >> k & 1) ? 0 : head;
    out[0] += head;
    blocks<true>(n - head, out, in, scalars, broadcast);
    _mm_sfence();
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
