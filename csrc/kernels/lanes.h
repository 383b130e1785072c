#pragma once

// What the formulas are written in: arithmetic on V, where V is one number (device code) or a GCC vector of them, as
// wide as the instruction set this file is compiled for. + - * / and comparisons are the compiler's; the rest of what
// a formula needs is here.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>

// Device code: nvcc's, or that which tests/emulation runs on the CPU. There, a formula's V is one number.
#if defined(__CUDACC__)
#define RT_INLINE __host__ __device__ __forceinline__
#undef NDEBUG  // in every build, as in stock: what asserts is bad input
#include <cassert>
#define RUSTTORCH_ASSERT assert
#elif defined(RUSTTORCH_ASSERT)
#define RT_INLINE inline __attribute__((always_inline))
#else
#include <immintrin.h>
#define RT_INLINE inline __attribute__((always_inline))
#endif

namespace rusttorch {

// Where stock's kernels on a device differ from its CPU's in what a user can see (a NaN, the sign of a zero), ours are
// as those of their device. (tests/families.py has what is left. The emulation is held against stock's CPU.)
#if defined(__CUDACC__)
constexpr bool on_device = true;
#else
constexpr bool on_device = false;
#endif

// Whether a product and a sum have one rounding: the compiler joins them wherever it can.
#if defined(__FMA__) || defined(__CUDACC__)
constexpr bool fused = true;
#else
constexpr bool fused = false;
#endif

template <class V>
struct Lane {
  using type = V;  // of one number
  using bits = std::conditional_t<sizeof(V) == 4, uint32_t, uint64_t>;
};
template <class V>
using lane_t = typename Lane<V>::type;
template <class V>
using bits_t = typename Lane<V>::bits;
template <class V>
using word_t = std::conditional_t<sizeof(lane_t<V>) == 4, uint32_t, uint64_t>;

#if !defined(RUSTTORCH_ASSERT)
#if defined(__AVX512F__)
constexpr int vector_bytes = 64;
#elif defined(__AVX2__)
constexpr int vector_bytes = 32;
#else
constexpr int vector_bytes = 16;
#endif

template <class T, int bytes>
struct VectorOf {
  typedef T type __attribute__((vector_size(bytes)));
};
template <class T, int bytes = vector_bytes>
using Vector = typename VectorOf<T, bytes>::type;

// Vectors narrower than the widest are used where memory is the bound (loop.h).
constexpr int narrow_bytes = vector_bytes < 32 ? vector_bytes : 32;

#define RUSTTORCH_LANES(T, Word, bytes) \
  template <>                           \
  struct Lane<Vector<T, bytes>> {       \
    using type = T;                     \
    using bits = Vector<Word, bytes>;   \
  };
#if defined(__AVX2__)
RUSTTORCH_LANES(float, uint32_t, 16)
RUSTTORCH_LANES(double, uint64_t, 16)
#endif
RUSTTORCH_LANES(float, uint32_t, vector_bytes)
RUSTTORCH_LANES(double, uint64_t, vector_bytes)
RUSTTORCH_LANES(int32_t, uint32_t, vector_bytes)
RUSTTORCH_LANES(int64_t, uint64_t, vector_bytes)
#if defined(__AVX512F__)
RUSTTORCH_LANES(float, uint32_t, narrow_bytes)
RUSTTORCH_LANES(double, uint64_t, narrow_bytes)
RUSTTORCH_LANES(int32_t, uint32_t, narrow_bytes)
RUSTTORCH_LANES(int64_t, uint64_t, narrow_bytes)
#endif
#undef RUSTTORCH_LANES

template <class V>
using VectorHalf = Vector<typename Lane<V>::type, sizeof(V) / 2>;
#endif

// One number in every lane.
template <class V>
RT_INLINE V splat(lane_t<V> s) {
  if constexpr (std::is_arithmetic_v<V>) {
    return s;
  } else {
    return s - V{};  // not s + V{}, which would lose the sign of -0
  }
}

template <class V>
RT_INLINE bits_t<V> bits(V x) {
  return __builtin_bit_cast(bits_t<V>, x);
}
template <class V>
RT_INLINE V from_bits(bits_t<V> b) {
  return __builtin_bit_cast(V, b);
}

// where ? a : b, lane by lane.
template <class V, class Where>
RT_INLINE V select(Where where, V a, V b) {
  return where ? a : b;
}

// The larger and the smaller of x and a bound. NaN stays NaN, and of two zeros x's sign is kept.
template <class V>
RT_INLINE V at_least(V x, lane_t<V> bound) {
  return select(x < bound, splat<V>(bound), x);
}
template <class V>
RT_INLINE V at_most(V x, lane_t<V> bound) {
  return select(x > bound, splat<V>(bound), x);
}

// Whether x comes before m as the largest, or the smallest: NaN before any number.
template <class V>
RT_INLINE auto exceeds(V x, V m) {
  return (x > m) | ((x != x) & (m == m));
}
template <class V>
RT_INLINE auto precedes(V x, V m) {
  return (x < m) | ((x != x) & (m == m));
}

// A product that is rounded, and that the compiler joins with no sum.
template <class T>
RT_INLINE T rounded_product(T a, T b) {
#if defined(__CUDA_ARCH__)
  if constexpr (std::is_same_v<T, float>) {
    return __fmul_rn(a, b);
  } else {
    return __dmul_rn(a, b);
  }
#else
  return a * b;
#endif
}

// The greater and the lesser of two; the second where that is NaN. Of two zeros the second, or, by a device's
// instructions, 0 and -0.
template <class V>
RT_INLINE V greater(V a, V b) {
  return select(a > b, a, b);
}
template <class V>
RT_INLINE V lesser(V a, V b) {
  return select(a < b, a, b);
}
#if defined(__CUDACC__)
RT_INLINE float greater(float a, float b) { return b != b ? b : ::fmaxf(a, b); }
RT_INLINE double greater(double a, double b) { return b != b ? b : ::fmax(a, b); }
RT_INLINE float lesser(float a, float b) { return b != b ? b : ::fminf(a, b); }
RT_INLINE double lesser(double a, double b) { return b != b ? b : ::fmin(a, b); }
#endif

// The larger of two, where it does not matter which is taken if one is NaN: one instruction.
template <class V>
RT_INLINE V larger(V a, V b) {
  return a > b ? a : b;
}
// The larger and the smaller of two; NaN if either is.
template <class V>
RT_INLINE V largest(V m, V x) {
  return select(exceeds(x, m), x, m);
}
template <class V>
RT_INLINE V smallest(V m, V x) {
  return select(precedes(x, m), x, m);
}
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800  // one instruction each, for which 0 is larger than -0
template <>
RT_INLINE float largest(float m, float x) {
  asm("max.NaN.f32 %0, %0, %1;" : "+f"(m) : "f"(x));
  return m;
}
template <>
RT_INLINE float smallest(float m, float x) {
  asm("min.NaN.f32 %0, %0, %1;" : "+f"(m) : "f"(x));
  return m;
}
#endif

template <class V>
RT_INLINE V abs(V x) {
  constexpr word_t<V> sign = word_t<V>(1) << (8 * sizeof(lane_t<V>) - 1);
  return from_bits<V>(bits(x) & ~sign);
}
template <class V>
RT_INLINE V copysign(V magnitude, V sign_of) {
  constexpr word_t<V> sign = word_t<V>(1) << (8 * sizeof(lane_t<V>) - 1);
  return from_bits<V>((bits(magnitude) & ~sign) | (bits(sign_of) & sign));
}

#if defined(RUSTTORCH_ASSERT)
RT_INLINE float sqrt(float x) { return ::sqrtf(x); }
RT_INLINE double sqrt(double x) { return ::sqrt(x); }
RT_INLINE float trunc(float x) { return ::truncf(x); }
RT_INLINE double trunc(double x) { return ::trunc(x); }
#else
template <class V>
RT_INLINE V sqrt(V x) {
  for (size_t i = 0; i < sizeof(V) / sizeof(lane_t<V>); ++i) {
    x[i] = std::is_same_v<lane_t<V>, float> ? __builtin_sqrtf(x[i]) : __builtin_sqrt(x[i]);
  }
  return x;
}
template <class V>
RT_INLINE V trunc(V x) {
  for (size_t i = 0; i < sizeof(V) / sizeof(lane_t<V>); ++i) {
    x[i] = std::is_same_v<lane_t<V>, float> ? __builtin_truncf(x[i]) : __builtin_trunc(x[i]);
  }
  return x;
}
#endif

// Whether any lane of a comparison's result holds.
template <class Where>
RT_INLINE bool any_lane(Where where) {
  if constexpr (std::is_arithmetic_v<Where>) {
    return where;
  } else {
    uint64_t words[sizeof where / 8], all = 0;
    __builtin_memcpy(words, &where, sizeof where);
    for (const uint64_t word : words) all |= word;
    return all != 0;
  }
}

// Where there is an instruction that the compiler does not find by itself. The bound comes first in min and max,
// because they give the second operand when one is NaN. (largest and smallest put a NaN of the first back.)
#if defined(__AVX2__)
#define RUSTTORCH_AVX2_LARGEST(name, T, suffix, instruction)                                      \
  template <>                                                                                     \
  RT_INLINE Vector<T, 32> name(Vector<T, 32> m, Vector<T, 32> x) {                                \
    return _mm256_blendv_##suffix(instruction(m, x), m, _mm256_cmp_##suffix(m, m, _CMP_UNORD_Q)); \
  }
RUSTTORCH_AVX2_LARGEST(largest, float, ps, _mm256_max_ps)
RUSTTORCH_AVX2_LARGEST(largest, double, pd, _mm256_max_pd)
RUSTTORCH_AVX2_LARGEST(smallest, float, ps, _mm256_min_ps)
RUSTTORCH_AVX2_LARGEST(smallest, double, pd, _mm256_min_pd)
#undef RUSTTORCH_AVX2_LARGEST
template <>
RT_INLINE Vector<float, 32> at_least(Vector<float, 32> x, float bound) {
  return _mm256_max_ps(_mm256_set1_ps(bound), x);
}
template <>
RT_INLINE Vector<double, 32> at_least(Vector<double, 32> x, double bound) {
  return _mm256_max_pd(_mm256_set1_pd(bound), x);
}
template <>
RT_INLINE Vector<float, 32> at_most(Vector<float, 32> x, float bound) {
  return _mm256_min_ps(_mm256_set1_ps(bound), x);
}
template <>
RT_INLINE Vector<double, 32> at_most(Vector<double, 32> x, double bound) {
  return _mm256_min_pd(_mm256_set1_pd(bound), x);
}
template <>
RT_INLINE Vector<float, 32> sqrt(Vector<float, 32> x) {
  return _mm256_sqrt_ps(x);
}
template <>
RT_INLINE Vector<double, 32> sqrt(Vector<double, 32> x) {
  return _mm256_sqrt_pd(x);
}
template <>
RT_INLINE Vector<float, 32> trunc(Vector<float, 32> x) {
  return _mm256_round_ps(x, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC);
}
template <>
RT_INLINE Vector<double, 32> trunc(Vector<double, 32> x) {
  return _mm256_round_pd(x, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC);
}
#endif
#if defined(__AVX512F__)
#define RUSTTORCH_AVX512_LARGEST(name, T, suffix, instruction)                                             \
  template <>                                                                                              \
  RT_INLINE Vector<T, 64> name(Vector<T, 64> m, Vector<T, 64> x) {                                         \
    return _mm512_mask_mov_##suffix(instruction(m, x), _mm512_cmp_##suffix##_mask(m, m, _CMP_UNORD_Q), m); \
  }
RUSTTORCH_AVX512_LARGEST(largest, float, ps, _mm512_max_ps)
RUSTTORCH_AVX512_LARGEST(largest, double, pd, _mm512_max_pd)
RUSTTORCH_AVX512_LARGEST(smallest, float, ps, _mm512_min_ps)
RUSTTORCH_AVX512_LARGEST(smallest, double, pd, _mm512_min_pd)
#undef RUSTTORCH_AVX512_LARGEST
template <>
RT_INLINE Vector<float, 64> at_least(Vector<float, 64> x, float bound) {
  return _mm512_max_ps(_mm512_set1_ps(bound), x);
}
template <>
RT_INLINE Vector<double, 64> at_least(Vector<double, 64> x, double bound) {
  return _mm512_max_pd(_mm512_set1_pd(bound), x);
}
template <>
RT_INLINE Vector<float, 64> at_most(Vector<float, 64> x, float bound) {
  return _mm512_min_ps(_mm512_set1_ps(bound), x);
}
template <>
RT_INLINE Vector<double, 64> at_most(Vector<double, 64> x, double bound) {
  return _mm512_min_pd(_mm512_set1_pd(bound), x);
}
template <>
RT_INLINE Vector<float, 64> sqrt(Vector<float, 64> x) {
  return _mm512_sqrt_ps(x);
}
template <>
RT_INLINE Vector<double, 64> sqrt(Vector<double, 64> x) {
  return _mm512_sqrt_pd(x);
}
template <>
RT_INLINE Vector<float, 64> trunc(Vector<float, 64> x) {
  return _mm512_roundscale_ps(x, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC);
}
template <>
RT_INLINE Vector<double, 64> trunc(Vector<double, 64> x) {
  return _mm512_roundscale_pd(x, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC);
}
#endif

}  // namespace rusttorch
