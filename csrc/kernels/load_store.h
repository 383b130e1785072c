#pragma once

// Vectors from and to memory, for every dtype. Compiled once per instruction set.

#include <cstring>
#include <type_traits>

#include "lanes.h"

namespace rusttorch {
namespace {  // one copy per instruction set, invisible to the others

// Widened to float as they are loaded, rounded to nearest even as they are stored.
struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

template <class V>
constexpr int64_t lanes = sizeof(V) / sizeof(lane_t<V>);

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

// One number.
template <class T>
RT_INLINE T widen(T x) {
  return x;
}
RT_INLINE float widen(bf16 x) { return __builtin_bit_cast(float, uint32_t(x.bits) << 16); }
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

// One number, for every dtype, from what it was computed in.
template <class T, class C>
RT_INLINE void store_one(T* to, C value) {
  if constexpr (std::is_same_v<T, bf16>) {
    const float x = float(value);
    const uint32_t u = bits(x);
    to->bits = x != x ? 0x7fc0 : uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16);
  } else if constexpr (std::is_same_v<T, f16>) {
    *to = narrow(float(value));
  } else {
    *to = T(value);
  }
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

// The first count lanes of v, `fill` in the rest.
template <class V>
RT_INLINE V keep_part(V v, int64_t count, lane_t<V> fill) {
  for (int64_t i = 0; i < lanes<V>; ++i) v[i] = i < count ? v[i] : fill;
  return v;
}

#if defined(__AVX2__)
inline __m256i first_lanes_mask(int64_t count, float) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(int(count)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline __m256i first_lanes_mask(int64_t count, double) {
  return _mm256_cmpgt_epi64(_mm256_set1_epi64x(count), _mm256_setr_epi64x(0, 1, 2, 3));
}
#endif

// The first count lanes from memory, `fill` in the rest: nothing beyond them is read.
template <class V, class T>
RT_INLINE V load_part(const T* from, int64_t count, lane_t<V> fill) {
#if defined(__AVX512F__)
  if constexpr (sizeof(V) == 64 && std::is_same_v<T, float>) {
    return _mm512_mask_loadu_ps(splat<V>(fill), __mmask16((1u << count) - 1), from);
  }
  if constexpr (sizeof(V) == 64 && std::is_same_v<T, double>) {
    return _mm512_mask_loadu_pd(splat<V>(fill), __mmask8((1u << count) - 1), from);
  }
  if constexpr (sizeof(V) == 32 && std::is_same_v<T, float>) {
    return _mm256_mask_loadu_ps(splat<V>(fill), __mmask8((1u << count) - 1), from);
  }
#endif
#if defined(__AVX2__)
  if constexpr (sizeof(V) == 32 && std::is_same_v<T, float>) {
    const __m256i mask = first_lanes_mask(count, T());
    return _mm256_blendv_ps(splat<V>(fill), _mm256_maskload_ps(from, mask), _mm256_castsi256_ps(mask));
  }
  if constexpr (sizeof(V) == 32 && std::is_same_v<T, double>) {
    const __m256i mask = first_lanes_mask(count, T());
    return _mm256_blendv_pd(splat<V>(fill), _mm256_maskload_pd(from, mask), _mm256_castsi256_pd(mask));
  }
#endif
  T whole[lanes<V>] = {};
  for (int64_t i = 0; i < count; ++i) whole[i] = from[i];
  return keep_part(load<V>(whole), count, fill);
}
template <class V, class T>
RT_INLINE void store_part(T* to, const V& v, int64_t count) {
#if defined(__AVX512F__)
  if constexpr (sizeof(V) == 64 && std::is_same_v<T, float>) {
    return _mm512_mask_storeu_ps(to, __mmask16((1u << count) - 1), v);
  }
  if constexpr (sizeof(V) == 64 && std::is_same_v<T, double>) {
    return _mm512_mask_storeu_pd(to, __mmask8((1u << count) - 1), v);
  }
  if constexpr (sizeof(V) == 32 && std::is_same_v<T, float>) {  // AVX2's own is slow on AMD's CPUs
    return _mm256_mask_storeu_ps(to, __mmask8((1u << count) - 1), v);
  }
#endif
#if defined(__AVX2__)
  if constexpr (sizeof(V) == 32 && std::is_same_v<T, float>) {
    return _mm256_maskstore_ps(to, first_lanes_mask(count, T()), v);
  }
  if constexpr (sizeof(V) == 32 && std::is_same_v<T, double>) {
    return _mm256_maskstore_pd(to, first_lanes_mask(count, T()), v);
  }
#endif
  T whole[sizeof(V) / sizeof(lane_t<V>)];
  store(whole, v);
  for (int64_t i = 0; i < count; ++i) to[i] = whole[i];
}

// A vector's lanes as doubles: of floats, in two vectors.
template <class V>
using DoublesOf = Vector<double, sizeof(V)>;
template <class V>
struct Doubles {
  DoublesOf<V> half[sizeof(double) / sizeof(lane_t<V>)];
};
template <class V>
RT_INLINE Doubles<V> to_doubles(V v) {
  if constexpr (std::is_same_v<lane_t<V>, double>) {
    return {{v}};
  } else {
    typedef float Half __attribute__((vector_size(sizeof(V) / 2)));
    Half halves[2];
    std::memcpy(halves, &v, sizeof v);
    return {{__builtin_convertvector(halves[0], DoublesOf<V>), __builtin_convertvector(halves[1], DoublesOf<V>)}};
  }
}

template <class V>
RT_INLINE V from_doubles(const Doubles<V>& d) {
  if constexpr (std::is_same_v<lane_t<V>, double>) {
    return d.half[0];
  } else {
    typedef float Half __attribute__((vector_size(sizeof(V) / 2)));
    const Half halves[2] = {__builtin_convertvector(d.half[0], Half), __builtin_convertvector(d.half[1], Half)};
    V v;
    std::memcpy(&v, halves, sizeof v);
    return v;
  }
}

// All lanes joined into one, in halves. join takes vectors of every width.
template <class V, class Join>
RT_INLINE auto fold_lanes(V v, Join join) {
  if constexpr (sizeof(V) > 16) {
    VectorHalf<V> halves[2];
    std::memcpy(halves, &v, sizeof v);
    return fold_lanes(join(halves[0], halves[1]), join);
  } else {
    for (int64_t apart = lanes<V> / 2; apart > 0; apart /= 2) {
      bits_t<V> other;
      for (int64_t i = 0; i < lanes<V>; ++i) other[i] = word_t<V>(i ^ apart);
      v = join(v, __builtin_shuffle(v, other));
    }
    return v[0];
  }
}
template <class V>
RT_INLINE lane_t<V> sum_lanes(V v) {
  return fold_lanes(v, [](auto a, auto b) { return a + b; });
}

}  // namespace
}  // namespace rusttorch
