#pragma once

// exp, log, tanh, erf, ... for float and double, without a branch or a call.
//
// Each function is one lane's arithmetic: selects in place of branches, integer tricks on the bits in place of
// frexp and ldexp. A plain loop over them is what compilers vectorise, at the width of whichever instruction set
// the file is compiled for, and the same text is device code for nvcc. That is why no vector type is named here.
//
// A product and a sum are contracted to one FMA where the target has it (-ffp-contract=fast); nothing else may be
// reordered: -ffast-math would break the rounding tricks below.
//
// Largest error over every float, and over 10^8 random doubles, in ulp against a reference of higher precision
// (tests/test_math.py measures it again):
//             exp   expm1  log   log1p  tanh  erf   sigmoid
//   float     1.02  1.54   0.82  1.35   1.13  1.02  1.98
//   double    1.03  1.57   0.88  1.39   1.31  1.21  1.98
//
// The polynomials come from tools/fit_math.py. The range reductions are the usual ones (W. J. Cody and W. Waite,
// Software Manual for the Elementary Functions, 1980; Sun's fdlibm for log and log1p).

#include <cstdint>
#include <limits>
#include <type_traits>

#if defined(__CUDACC__)
#define RT_INLINE __host__ __device__ __forceinline__
#else
#define RT_INLINE inline __attribute__((always_inline))
#endif

namespace rusttorch::math {

template <class T>
using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;

template <class T>
struct Constants;

template <>
struct Constants<float> {
  static constexpr int mantissa_bits = 23, bias = 127;
  static constexpr float round_magic = 0x1.8p23f;   // adding it leaves round(x) in the low bits
  static constexpr float int_magic = 0x1p23f;       // its low bits hold an integer in [0, 2^23)
  static constexpr float ln2_hi = 0x1.62e4p-1f;  // 15 bits: k * ln2_hi is exact for every exponent k
  static constexpr float ln2_lo = 0x1.7f7d1cp-20f;
  static constexpr float log2e = 0x1.715476p+0f;
  static constexpr float exp_min = -104, exp_max = 89;              // below: 0, above: inf
  static constexpr float exp_min_normal = -87.33f, exp2_min_normal = -126;
  static constexpr float min_normal = 0x1p-126f;
  static constexpr uint32_t sqrt_half_bits = 0x3f3504f3;
};

template <>
struct Constants<double> {
  static constexpr int mantissa_bits = 52, bias = 1023;
  static constexpr double round_magic = 0x1.8p52;
  static constexpr double int_magic = 0x1p52;
  static constexpr double ln2_hi = 0x1.62e42fefap-1;  // 36 bits
  static constexpr double ln2_lo = 0x1.cf79abc9e3b39p-40;
  static constexpr double log2e = 0x1.71547652b82fep+0;
  static constexpr double exp_min = -746, exp_max = 710;
  static constexpr double exp_min_normal = -708.39, exp2_min_normal = -1022;
  static constexpr double min_normal = 0x1p-1022;
  static constexpr uint64_t sqrt_half_bits = 0x3fe6a09e667f3bcd;
};

RT_INLINE uint32_t bits(float x) { return __builtin_bit_cast(uint32_t, x); }
RT_INLINE uint64_t bits(double x) { return __builtin_bit_cast(uint64_t, x); }
RT_INLINE float from_bits(uint32_t b) { return __builtin_bit_cast(float, b); }
RT_INLINE double from_bits(uint64_t b) { return __builtin_bit_cast(double, b); }

template <class T>
constexpr Bits<T> sign_bit = Bits<T>(1) << (8 * sizeof(T) - 1);

template <class T>
RT_INLINE T abs(T x) {
  return from_bits(Bits<T>(bits(x) & ~sign_bit<T>));
}

template <class T>
RT_INLINE T copysign(T magnitude, T sign) {
  return from_bits(Bits<T>((bits(magnitude) & ~sign_bit<T>) | (bits(sign) & sign_bit<T>)));
}

// The larger and the smaller of x and a bound; NaN stays NaN.
template <class T>
RT_INLINE T at_least(T x, T bound) {
  return x < bound ? bound : x;
}
template <class T>
RT_INLINE T at_most(T x, T bound) {
  return x > bound ? bound : x;
}

// c[0] + c[1] x + c[2] x^2 + ...
template <class T>
RT_INLINE T polynomial(T, T c) {
  return c;
}
template <class T, class... Rest>
RT_INLINE T polynomial(T x, T c, Rest... rest) {
  return polynomial(x, rest...) * x + c;
}

// 2^n of t = n + round_magic; inf where n is one more than the largest exponent.
template <class T>
RT_INLINE T pow2(T t) {
  using C = Constants<T>;
  return from_bits(Bits<T>((bits(t) << C::mantissa_bits) + (Bits<T>(C::bias) << C::mantissa_bits)));
}

// exp(r) - 1 for |r| <= ln(2) / 2.
RT_INLINE float expm1_reduced(float r) {
  return r * r * polynomial(r, 0x1.p-1f, 0x1.5554dep-3f, 0x1.555584p-5f, 0x1.120aeep-7f, 0x1.6c8bf2p-10f) + r;
}
RT_INLINE double expm1_reduced(double r) {
  return r * r *
             polynomial(r, 0x1.0000000000001p-1, 0x1.555555555554cp-3, 0x1.5555555553ccbp-5, 0x1.1111111114c57p-7,
                        0x1.6c16c178b35fep-10, 0x1.a01a01889bbddp-13, 0x1.a019b8923328fp-16, 0x1.71de63fcb05fep-19,
                        0x1.289204b44c943p-22, 0x1.ae99500f007bap-26) +
         r;
}

// x = k ln2 + r with |r| <= ln(2) / 2; t is k + round_magic.
template <class T>
struct Reduced {
  T t, k, r;
};
template <class T>
RT_INLINE Reduced<T> reduce(T x) {
  using C = Constants<T>;
  const T t = x * C::log2e + C::round_magic;
  const T k = t - C::round_magic;
  return {t, k, x - k * C::ln2_hi - k * C::ln2_lo};
}

// y * 2^k in two steps, so that neither factor leaves the range and a denormal result is rounded once.
template <class T>
RT_INLINE T scale(T y, T k) {
  using C = Constants<T>;
  const T half = k * T(0.5) + C::round_magic;
  return y * pow2(half) * pow2(k - (half - C::round_magic) + C::round_magic);
}

template <class T>
RT_INLINE T exp(T x) {
  using C = Constants<T>;
  const auto [t, k, r] = reduce(at_least(at_most(x, C::exp_max), C::exp_min));
  return scale(expm1_reduced(r) + 1, k);
}

// exp where a result below the smallest normal number may be that number instead: two thirds of exp's work.
template <class T>
RT_INLINE T exp_normal(T x) {
  using C = Constants<T>;
  const auto [t, k, r] = reduce(at_least(at_most(x, C::exp_max), C::exp_min_normal));
  return (expm1_reduced(r) + 1) * pow2(t);
}

// 2^x for x <= 0, with exp_normal's lower end.
RT_INLINE float exp2_normal(float x) {
  using C = Constants<float>;
  x = at_least(x, C::exp2_min_normal);
  const float t = x + C::round_magic;
  const float r = x - (t - C::round_magic);
  const float y = r * polynomial(r, 0x1.62e43p-1f, 0x1.ebfbdep-3f, 0x1.c6af9ep-5f, 0x1.3b2c6p-7f, 0x1.5ef4acp-10f,
                                 0x1.427008p-13f) + 1;
  return y * pow2(t);
}

template <class T>
RT_INLINE T expm1(T x) {
  using C = Constants<T>;
  const T clamped = at_least(at_most(x, C::exp_max), T(-2 * C::mantissa_bits));  // exp(-46) is less than half an ulp of 1
  const auto [t, k, r] = reduce(clamped);
  const T lost = (clamped - k * C::ln2_hi - r) - k * C::ln2_lo;  // what the rounding of r dropped
  // 2^k in halves, since 2^128 is inf where exp(x) - 1 is not yet.
  const T half = pow2(T(t - 1));
  const T y = ((expm1_reduced(r) + lost) * half + (half - T(0.5))) * 2;
  return x == 0 ? x : y;  // keeps -0
}

// x = 2^k (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)), for normal x > 0.
template <class T>
struct Split {
  T k, f;
};
template <class T>
RT_INLINE Split<T> split(T x) {
  using C = Constants<T>;
  constexpr Bits<T> mantissa = (Bits<T>(1) << C::mantissa_bits) - 1;
  const Bits<T> shifted = bits(x) - C::sqrt_half_bits + (Bits<T>(C::bias) << C::mantissa_bits);
  const T biased = from_bits(Bits<T>((shifted >> C::mantissa_bits) | bits(C::int_magic)));
  const T m = from_bits(Bits<T>((shifted & mantissa) + C::sqrt_half_bits));
  return {biased - (C::int_magic + C::bias), m - 1};
}

// log(1 + f) + k ln2 + c, where c is a small correction.
RT_INLINE float log_assemble(float f, float k, float c) {
  using C = Constants<float>;
  const float p = polynomial(f, 0x1.555546p-2f, -0x1.p-2f, 0x1.99a546p-3f, -0x1.555f16p-3f, 0x1.232fe8p-3f,
                             -0x1.fbc1e6p-4f, 0x1.e6f4eep-4f, -0x1.e04a3ap-4f, 0x1.16babcp-4f);
  return k * C::ln2_hi + (f + (f * f * (f * p - 0.5f) + (k * C::ln2_lo + c)));
}
RT_INLINE double log_assemble(double f, double k, double c) {
  using C = Constants<double>;
  const double s = f / (2 + f), z = s * s;
  const double p = z * polynomial(z, 0x1.5555555555555p-1, 0x1.9999999999d58p-2, 0x1.249249242f061p-2,
                                  0x1.c71c725c25115p-3, 0x1.745cdb8ac9c59p-3, 0x1.3b21550b6bf81p-3,
                                  0x1.0f4a7aab51f99p-3, 0x1.101febc73a72dp-3);
  const double half_square = 0.5 * f * f;
  return k * C::ln2_hi - ((half_square - (s * (half_square + p) + (k * C::ln2_lo + c))) - f);
}

template <class T>
RT_INLINE T log(T x) {
  using C = Constants<T>;
  constexpr T inf = std::numeric_limits<T>::infinity(), nan = std::numeric_limits<T>::quiet_NaN();
  const bool denormal = x < C::min_normal;
  constexpr T up = T(Bits<T>(1) << (C::mantissa_bits + 1));
  const auto [k, f] = split(T(x * (denormal ? up : T(1))));
  const T y = log_assemble(f, T(k - (denormal ? T(C::mantissa_bits + 1) : T(0))), T(0));
  const T edge = x == 0 ? -inf : (x < 0 ? nan : x);  // x: inf or NaN
  return x > 0 && x < inf ? y : edge;
}

template <class T>
RT_INLINE T log1p(T x) {
  constexpr T inf = std::numeric_limits<T>::infinity(), nan = std::numeric_limits<T>::quiet_NaN();
  const T u = 1 + x;
  const T lost = x < 1 ? x - (u - 1) : 1 - (u - x);  // what the rounding of u dropped
  const auto [k, f] = split(u);
  const T y = log_assemble(f, k, T(lost / u));
  const T edge = u == 0 ? -inf : (u < 0 ? nan : x);
  return u > 0 && u < inf && x != 0 ? y : edge;
}

// log(1 + t) for t in [0, 1].
RT_INLINE float log1p_unit(float t) {
  return t * polynomial(t, 0x1.fffffep-1f, -0x1.fffe38p-2f, 0x1.5528dap-2f, -0x1.fc66d4p-3f, 0x1.85ef2cp-3f,
                        -0x1.152208p-3f, 0x1.3a6574p-4f, -0x1.d53b5ap-6f, 0x1.493ce6p-8f);
}
RT_INLINE double log1p_unit(double t) {
  const double s = t / (2 + t), z = s * s;
  return 2 * s + s * z * polynomial(z, 0x1.5555555555556p-1, 0x1.99999999996afp-2, 0x1.24924924b545dp-2,
                                    0x1.c71c71ad426dfp-3, 0x1.745d1cc3e4285p-3, 0x1.3b12f71d9fb2ep-3,
                                    0x1.11210ea6df189p-3, 0x1.e013003cb9d3ap-4, 0x1.c028c51c46026p-4,
                                    0x1.235b199af88c1p-4, 0x1.4d3ff1d9fccb5p-3);
}

// tanh(x) for |x| < 0.55
RT_INLINE float tanh_small(float x, float z) {
  return x + x * z * polynomial(z, -0x1.555554p-2f, 0x1.110fc6p-3f, -0x1.b99a3cp-5f, 0x1.5cf418p-6f, -0x1.b0548cp-8f);
}
RT_INLINE double tanh_small(double x, double z) {
  return x + x * z * polynomial(z, -0x1.5555555555555p-2, 0x1.1111111110fdcp-3, -0x1.ba1ba1b9f95bdp-5,
                                0x1.664f4875d82ccp-6, -0x1.226e32c98efp-7, 0x1.d6d333b287948p-9,
                                -0x1.7d979311fca0cp-10, 0x1.34c4195ad63dfp-11, -0x1.ec053911ed2c9p-13,
                                0x1.64eb32af71f26p-14, -0x1.59a04824285d7p-16);
}

template <class T>
RT_INLINE T tanh(T x) {
  const T a = at_most(abs(x), T(22));  // tanh(22) is 1 in double too
  const T large = 1 - 2 / (exp_normal(2 * a) + 1);
  return copysign(a < T(0.55) ? tanh_small(a, a * a) : large, x);
}

// erf(x) for |x| < 0.9
RT_INLINE float erf_small(float x, float z) {
  return x + x * polynomial(z, 0x1.06eba4p-3f, -0x1.8126d8p-2f, 0x1.ce1b0ap-4f, -0x1.b6ac1p-6f, 0x1.48598p-8f,
                            -0x1.3fbd38p-11f);
}
RT_INLINE double erf_small(double x, double z) {
  return x + x * polynomial(z, 0x1.06eba8214db69p-3, -0x1.812746b0379f6p-2, 0x1.ce2f21a042ff6p-4,
                            -0x1.b82ce3128bfcfp-6, 0x1.565bcd0d4a1fdp-8, -0x1.c02db38bd5753p-11,
                            0x1.f9a312299ea61p-14, -0x1.f4d027a3d8a87p-17, 0x1.b9c088c3250fp-20,
                            -0x1.5dc554027fc3ep-23, 0x1.e4bdb01f3e686p-27, -0x1.d9e8f5540f4bdp-31);
}

// 1 - erf(x) for x from 0.9 to where erf(x) is 1
RT_INLINE float erfc_large(float x) {
  return exp2_normal(polynomial(at_most(x, 4.0f), -0x1.f5bbfp-13f, -0x1.a087e4p+0f, -0x1.d68042p-1f, -0x1.33a7cep-3f,
                                0x1.07d40cp-5f, -0x1.2214ccp-8f, 0x1.2c5c3ap-12f));
}
RT_INLINE double erfc_large(double x) {
  return exp_normal(polynomial(at_most(x, 6.0), -0x1.33c6edb99d0dep-24, -0x1.20dd684047692p+0, -0x1.45f3835f9253dp-1,
                               -0x1.a4e9676b0f3c4p-4, 0x1.390c191e3d8c3p-6, 0x1.f3b64540526efp-13,
                               -0x1.c3553b4bef23dp-10, 0x1.3a7b35238bf3ep-11, -0x1.109d6b6273afp-16,
                               -0x1.69192981b1324p-14, 0x1.b3c1bca69117ep-15, -0x1.3d9bf5ffacf6p-16,
                               0x1.4f3c1357184f9p-18, -0x1.0b008333dea77p-20, 0x1.40d0a936d1fffp-23,
                               -0x1.1b5368da650e1p-26, 0x1.5bf2fa1ab0097p-30, -0x1.09ab70249d177p-34,
                               0x1.7bf3c04b43863p-40));
}

template <class T>
RT_INLINE T erf(T x) {
  const T a = abs(x);
  return copysign(a < T(0.9) ? erf_small(a, a * a) : 1 - erfc_large(a), x);
}

// log2 of the standard normal distribution function at -t, for t in [0, 13.5]
RT_INLINE float log2_normal_cdf(float t) {
  return polynomial(t, -0x1.fffffep-1f, -0x1.26aefp+0f, -0x1.d637aap-2f, -0x1.ae509p-5f, 0x1.d1b8a6p-8f,
                    -0x1.566186p-13f, -0x1.7c7a6p-13f, 0x1.5cbfd6p-15f, -0x1.07db94p-18f, 0x1.1d73bcp-23f);
}

// t pdf(t) / cdf(-t) - 1 of the standard normal distribution, for t in [0, 9]
RT_INLINE float normal_mills(float t) {
  return polynomial(t, -0x1.000002p+0f, 0x1.988574p-1f, 0x1.45e5b2p-1f, 0x1.c0545cp-4f, -0x1.491c66p-6f,
                    0x1.e499ep-11f, 0x1.25f5aap-11f, -0x1.260b66p-13f, 0x1.704b1p-17f);
}

// 0 where exp(-x) overflows, as 1 / (1 + exp(-x)) is.
template <class T>
RT_INLINE T sigmoid(T x) {
  return 1 / (1 + exp(-x));
}

}  // namespace rusttorch::math
