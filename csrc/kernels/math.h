#pragma once

// exp, log, tanh, erf, ... without a branch or a call: selects in place of branches, tables in registers, integer
// tricks on the bits in place of frexp and ldexp. V is float, double or a vector of them (lanes.h), so that one text
// serves every instruction set and the device.
//
// A product and a sum are contracted to one FMA where the target has it (-ffp-contract=fast); nothing else may be
// reordered: -ffast-math would break the rounding tricks below.
//
// Largest error in ulp over two million floats and some thousand doubles of all sizes, against references of higher
// precision, the worst of the three instruction sets (tests/test_math.py):
//                 exp    expm1      log    log1p     tanh      erf  sigmoid
//   float        1.11     1.49     0.80     0.78     1.46     1.45     1.76
//   double       1.05     1.67     0.73     0.76     1.40     0.83     1.41
//
// The polynomials come from tools/fit_math.py. The range reductions are the usual ones (W. J. Cody and W. Waite,
// Software Manual for the Elementary Functions, 1980; Sun's fdlibm for log and log1p).

#include "lanes.h"
#include "tanh_table.h"

namespace rusttorch::math {

template <class T>
struct Constants;

template <>
struct Constants<float> {
  static constexpr float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  static constexpr int mantissa_bits = 23, bias = 127;
  static constexpr float round_magic = 0x1.8p23f;  // adding it leaves round(x) in the low bits
  static constexpr float int_magic = 0x1p23f;      // its low bits hold an integer in [0, 2^23)
  static constexpr float ln2_hi = 0x1.62e4p-1f;    // 15 bits: k * ln2_hi is exact for every exponent k
  static constexpr float ln2_lo = 0x1.7f7d1cp-20f;
  static constexpr float log2e = 0x1.715476p+0f;
  static constexpr float exp_min = -104, exp_max = 89;  // below: 0, above: inf
  static constexpr float min_normal = 0x1p-126f;
  static constexpr uint32_t sqrt_half_bits = 0x3f3504f3;
};

template <>
struct Constants<double> {
  static constexpr double inf = std::numeric_limits<double>::infinity(), nan = std::numeric_limits<double>::quiet_NaN();
  static constexpr int mantissa_bits = 52, bias = 1023;
  static constexpr double round_magic = 0x1.8p52;
  static constexpr double int_magic = 0x1p52;
  static constexpr double ln2_hi = 0x1.62e42fefap-1;  // 36 bits
  static constexpr double ln2_lo = 0x1.cf79abc9e3b39p-40;
  static constexpr double log2e = 0x1.71547652b82fep+0;
  static constexpr double exp_min = -746, exp_max = 710;
  static constexpr double min_normal = 0x1p-1022;
  static constexpr uint64_t sqrt_half_bits = 0x3fe6a09e667f3bcd;
};

// c[0] + c[1] x + c[2] x^2 + ...
template <class V>
RT_INLINE V polynomial(V, lane_t<V> c) {
  return splat<V>(c);
}
template <class V, class... Rest>
RT_INLINE V polynomial(V x, lane_t<V> c, Rest... rest) {
  return polynomial(x, rest...) * x + c;
}

// f(x) by the lanes' type: two polynomials, of the length that each precision needs.
template <class V>
constexpr bool is_float = std::is_same_v<lane_t<V>, float>;

// 2^n of t = n + round_magic, n within the normal exponents; inf for one more than the largest.
template <class V>
RT_INLINE V pow2(V t) {
  using C = Constants<lane_t<V>>;
  using B = word_t<V>;
  return from_bits<V>((bits(t) << C::mantissa_bits) + (B(C::bias) << C::mantissa_bits));
}

// y 2^k: inf and denormals as they should be. In two steps, so that neither factor leaves the range.
template <class V>
RT_INLINE V scale(V y, V k) {
  using C = Constants<lane_t<V>>;
  const V half = k * lane_t<V>(0.5) + C::round_magic;
  return y * pow2(half) * pow2(V(k - (half - C::round_magic) + C::round_magic));
}
#if defined(__AVX512F__)
template <>
RT_INLINE Vector<float> scale(Vector<float> y, Vector<float> k) {
  return _mm512_scalef_ps(y, k);
}
template <>
RT_INLINE Vector<double> scale(Vector<double> y, Vector<double> k) {
  return _mm512_scalef_pd(y, k);
}
#endif

// exp(r) for |r| <= ln(2) / 2 as 1 + r + r^2 g(r): g, the sum, and the sum less 1.
template <class V>
RT_INLINE V exp_tail(V r) {
  if constexpr (is_float<V>) {
    return polynomial(r, 0x1.fffff8p-2f, 0x1.55548ep-3f, 0x1.555b9ap-5f, 0x1.123bfp-7f, 0x1.684fe4p-10f);
  } else {
    return polynomial(r, 0x1.000000000000cp-1, 0x1.5555555555515p-3, 0x1.555555554fe4p-5, 0x1.111111112119bp-7,
                      0x1.6c16c185f760fp-10, 0x1.a01a014dbc99ep-13, 0x1.a01995e460d9dp-16, 0x1.71ded720eda62p-19,
                      0x1.28b0d4566b2bbp-22, 0x1.adfa45d221166p-26);
  }
}
template <class V>
RT_INLINE V exp_reduced(V r) {
  using T = lane_t<V>;
  return (exp_tail(r) * r + T(1)) * r + T(1);
}
template <class V>
RT_INLINE V expm1_reduced(V r) {
  return r * r * exp_tail(r) + r;
}

// x = k ln2 + r with |r| <= ln(2) / 2.
template <class V>
struct Reduced {
  V k, r;
};
template <class V>
RT_INLINE Reduced<V> reduce(V x) {
  using C = Constants<lane_t<V>>;
  const V k = (x * C::log2e + C::round_magic) - C::round_magic;
  return {k, x - k * C::ln2_hi - k * C::ln2_lo};
}

// exp(x) for x <= 0, and for x up to where exp overflows. What is 0 is not computed: results below the normal numbers
// take Intel's CPUs 150 cycles (those from exp(-104) to exp(-87.3) still do), and masks are made of zeros.
template <class V>
RT_INLINE V exp_below(V x) {
  const auto gone = x < Constants<lane_t<V>>::exp_min;
  const auto [k, r] = reduce(select(gone, V{}, x));
  return select(gone, V{}, scale(exp_reduced(r), k));
}
#if defined(__AVX512F__)
// Only the scaling makes such results, and a mask keeps lanes out of it: 20 % less time. (Not less: NaN stays.)
RT_INLINE Vector<float> scale_unless_less(Vector<float> x, float least, Vector<float> y, Vector<float> k) {
  return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(x, _mm512_set1_ps(least), _CMP_NLT_UQ), y, k);
}
template <>
RT_INLINE Vector<float> exp_below(Vector<float> x) {
  const auto [k, r] = reduce(x);
  return scale_unless_less(x, Constants<float>::exp_min, exp_reduced(r), k);
}
#endif

template <class V>
RT_INLINE V exp(V x) {
  return exp_below(at_most(x, Constants<lane_t<V>>::exp_max));
}

// 2^r for float and |r| <= 1 / 2.
template <class V>
RT_INLINE V exp2_reduced(V r) {
  return r * polynomial(r, 0x1.62e43p-1f, 0x1.ebfbdep-3f, 0x1.c6af9ep-5f, 0x1.3b2c6p-7f, 0x1.5ef4acp-10f,
                        0x1.427008p-13f) +
         1.0f;
}
// 2^x for float and x in [-150, 128].
template <class V>
RT_INLINE V exp2(V x) {
  using C = Constants<float>;
  const V k = (x + C::round_magic) - C::round_magic;
  return scale(exp2_reduced(V(x - k)), k);
}
// But 0 instead of less than a normal number, for any x <= 128.
template <class V>
RT_INLINE V exp2_normal(V x) {
  const auto gone = x < -126.0f;
  return select(gone, V{}, exp2(select(gone, V{}, x)));
}
#if defined(__AVX512F__)
template <>
RT_INLINE Vector<float> exp2_normal(Vector<float> x) {
  using C = Constants<float>;
  const Vector<float> k = (x + C::round_magic) - C::round_magic;
  return scale_unless_less(x, -126.0f, exp2_reduced(Vector<float>(x - k)), k);
}
#endif

template <class V>
RT_INLINE V expm1(V x) {
  using T = lane_t<V>;
  using C = Constants<T>;
  // Below, exp(x) is less than half an ulp of 1.
  const V clamped = at_least(at_most(x, C::exp_max), T(-2 * C::mantissa_bits));
  const auto [k, r] = reduce(clamped);
  V q = expm1_reduced(r);
  if constexpr (!is_float<V>) q = q + ((clamped - k * C::ln2_hi - r) - k * C::ln2_lo);  // what r's rounding dropped
  // 2^k in halves, since 2^128 is inf where exp(x) - 1 is not yet.
  const V half = pow2(V(k + (C::round_magic - 1)));
  const V y = (q * half + (half - T(0.5))) * T(2);
  // So small a number is its own result, -0 too, and a denormal would lose a digit in the halves.
  return select(abs(x) < T(1) / T(int64_t(4) << C::mantissa_bits), x, y);
}

// x = 2^(up + k) (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)), for normal x > 0.
template <class V>
struct Split {
  V k, f;
};
template <int up = 0, class V>
RT_INLINE Split<V> split(V x) {
  using T = lane_t<V>;
  using C = Constants<T>;
  using B = word_t<V>;
  constexpr B mantissa = (B(1) << C::mantissa_bits) - 1;
  const bits_t<V> shifted = bits(x) - C::sqrt_half_bits + (B(C::bias) << C::mantissa_bits);
  const V biased = from_bits<V>((shifted >> C::mantissa_bits) | bits(C::int_magic));
  const V m = from_bits<V>((shifted & mantissa) + C::sqrt_half_bits);
  return {biased - (C::int_magic + T(C::bias + up)), m - T(1)};
}

// log(1 + f) + k ln2 + c, where c is a small correction.
template <class V>
RT_INLINE V log_assemble(V f, V k, V c) {
  using C = Constants<lane_t<V>>;
  if constexpr (is_float<V>) {
    const V p = polynomial(f, 0x1.555546p-2f, -0x1.p-2f, 0x1.99a546p-3f, -0x1.555f16p-3f, 0x1.232fe8p-3f,
                           -0x1.fbc1e6p-4f, 0x1.e6f4eep-4f, -0x1.e04a3ap-4f, 0x1.16babcp-4f);
    return k * C::ln2_hi + (f + (f * f * (f * p - 0.5f) + (k * C::ln2_lo + c)));
  } else {
    const V s = f / (2.0 + f), z = s * s;
    const V p =
        z * polynomial(z, 0x1.5555555555555p-1, 0x1.9999999999d58p-2, 0x1.249249242f061p-2, 0x1.c71c725c25115p-3,
                       0x1.745cdb8ac9c59p-3, 0x1.3b21550b6bf81p-3, 0x1.0f4a7aab51f99p-3, 0x1.101febc73a72dp-3);
    const V half_square = 0.5 * f * f;
    return k * C::ln2_hi - ((half_square - (s * (half_square + p) + (k * C::ln2_lo + c))) - f);
  }
}

template <class V>
RT_INLINE V log(V x) {
  using T = lane_t<V>;
  using C = Constants<T>;
  using B = word_t<V>;
  const V zero{}, one = splat<V>(T(1));
  const V inf = splat<V>(Constants<T>::inf), nan = splat<V>(Constants<T>::nan);
  const auto denormal = x < C::min_normal;
  constexpr T up = T(B(1) << (C::mantissa_bits + 1));
  const auto [k, f] = split(V(x * select(denormal, splat<V>(up), one)));
  const V y = log_assemble(f, V(k - select(denormal, splat<V>(T(C::mantissa_bits + 1)), zero)), zero);
  const V edge = select(x == T(0), V(-inf), select(x < T(0), nan, x));  // x: inf or NaN
  return select((x > T(0)) & (x < inf), y, edge);
}
#if defined(__AVX512F__)
template <>
RT_INLINE Vector<float> log(Vector<float> x) {
  return log_by_table(x);
}
#endif

template <class V>
RT_INLINE V log1p(V x) {
  using T = lane_t<V>;
  const V inf = splat<V>(Constants<T>::inf), nan = splat<V>(Constants<T>::nan);
  const V u = T(1) + x;
  const V lost = select(x < T(1), V(x - (u - T(1))), V(T(1) - (u - x)));  // what the rounding of u dropped
  const auto [k, f] = split(u);
  const V y = log_assemble(f, k, V(lost / u));
  const V edge = select(u == T(0), V(-inf), select(u < T(0), nan, x));
  return select((u > T(0)) & (u < inf) & (x != T(0)), y, edge);
}

// log(x) and log(1 - x) for x in [0, 1], but at least -100: without the edges that log and log1p have. A float is
// scaled up before it is split, so that a denormal is split right; a double's exponents reach far enough.
template <class V>
constexpr int unit_scale = is_float<V> ? 24 : 0;
template <class V>
RT_INLINE V log_unit(V x) {
  using T = lane_t<V>;
  constexpr int up = unit_scale<V>;
  const auto [k, f] = split<up>(V(x * T(1 << up) + T(0)));  // the sum makes 0 of -0
  return at_least(log_assemble(f, k, V{}), T(-100));
}
template <class V>
RT_INLINE V log1m_unit(V x) {
  using T = lane_t<V>;
  constexpr int up = unit_scale<V>;
  const auto [k, f] = split<up>(V(T(1 << up) - x * T(1 << up)));
  // Where the rounding of 1 - x would be felt (and k is 0), f is -x itself.
  return at_least(log_assemble(select(x < T(0.29), V(-x), f), k, V{}), T(-100));
}
#if defined(__AVX512F__)
template <>
RT_INLINE Vector<float> log_unit(Vector<float> x) {
  return at_least(Vector<float>(log_of_unit(x)), -100.0f);
}
template <>
RT_INLINE Vector<float> log1m_unit(Vector<float> x) {
  return at_least(Vector<float>(log1m_of_unit(x)), -100.0f);
}
#endif

// log(1 + t) for t in [0, 1].
template <class V>
RT_INLINE V log1p_unit(V t) {
  if constexpr (is_float<V>) {
    return t * t *
               polynomial(t, -0x1.ffffccp-2f, 0x1.554d22p-2f, -0x1.ff160ap-3f, 0x1.9305f6p-3f, -0x1.39818cp-3f,
                          0x1.b23326p-4f, -0x1.d1f56ap-5f, 0x1.443a38p-6f, -0x1.a6f30ap-9f) +
           t;
  } else {
    const V s = t / (2.0 + t), z = s * s;
    return 2.0 * s + s * z *
                         polynomial(z, 0x1.5555555555556p-1, 0x1.99999999996afp-2, 0x1.24924924b545dp-2,
                                    0x1.c71c71ad426dfp-3, 0x1.745d1cc3e4285p-3, 0x1.3b12f71d9fb2ep-3,
                                    0x1.11210ea6df189p-3, 0x1.e013003cb9d3ap-4, 0x1.c028c51c46026p-4,
                                    0x1.235b199af88c1p-4, 0x1.4d3ff1d9fccb5p-3);
  }
}

// tanh(x) for |x| < 0.55, z = x^2
template <class V>
RT_INLINE V tanh_small(V x, V z) {
  if constexpr (is_float<V>) {
    return x + x * z * polynomial(z, -0x1.555554p-2f, 0x1.110fc6p-3f, -0x1.b99a3cp-5f, 0x1.5cf418p-6f, -0x1.b0548cp-8f);
  } else {
    return x + x * z *
                   polynomial(z, -0x1.5555555555555p-2, 0x1.1111111110fdcp-3, -0x1.ba1ba1b9f95bdp-5,
                              0x1.664f4875d82ccp-6, -0x1.226e32c98efp-7, 0x1.d6d333b287948p-9, -0x1.7d979311fca0cp-10,
                              0x1.34c4195ad63dfp-11, -0x1.ec053911ed2c9p-13, 0x1.64eb32af71f26p-14,
                              -0x1.59a04824285d7p-16);
  }
}

template <class V>
RT_INLINE V tanh(V x) {
  using T = lane_t<V>;
  const V a = at_most(abs(x), T(22));  // tanh(22) is 1 in double too
  const V large = T(1) - T(2) / (exp_below(V(T(2) * a)) + T(1));
  return copysign(select(a < T(0.55), tanh_small(a, V(a * a)), large), x);
}
#if defined(__AVX512F__)
template <>
RT_INLINE Vector<float> tanh(Vector<float> x) {
  return tanh_by_table(x);
}
#endif

// erf(x) for |x| < 0.9, z = x^2
template <class V>
RT_INLINE V erf_small(V x, V z) {
  if constexpr (is_float<V>) {
    return x + x * polynomial(z, 0x1.06eba4p-3f, -0x1.8126d8p-2f, 0x1.ce1b0ap-4f, -0x1.b6ac1p-6f, 0x1.48598p-8f,
                              -0x1.3fbd38p-11f);
  } else {
    return x + x * polynomial(z, 0x1.06eba8214db69p-3, -0x1.812746b0379f6p-2, 0x1.ce2f21a042ff6p-4,
                              -0x1.b82ce3128bfcfp-6, 0x1.565bcd0d4a1fdp-8, -0x1.c02db38bd5753p-11,
                              0x1.f9a312299ea61p-14, -0x1.f4d027a3d8a87p-17, 0x1.b9c088c3250fp-20,
                              -0x1.5dc554027fc3ep-23, 0x1.e4bdb01f3e686p-27, -0x1.d9e8f5540f4bdp-31);
  }
}

// 1 - erf(x) for x from 0.9 to where erf(x) is 1
template <class V>
RT_INLINE V erfc_large(V x) {
  if constexpr (is_float<V>) {
    return exp2(polynomial(at_most(x, 4.0f), -0x1.f5bbfp-13f, -0x1.a087e4p+0f, -0x1.d68042p-1f, -0x1.33a7cep-3f,
                           0x1.07d40cp-5f, -0x1.2214ccp-8f, 0x1.2c5c3ap-12f));
  } else {
    return exp_below(
        polynomial(at_most(x, 6.0), -0x1.33c6edb99d0dep-24, -0x1.20dd684047692p+0, -0x1.45f3835f9253dp-1,
                   -0x1.a4e9676b0f3c4p-4, 0x1.390c191e3d8c3p-6, 0x1.f3b64540526efp-13, -0x1.c3553b4bef23dp-10,
                   0x1.3a7b35238bf3ep-11, -0x1.109d6b6273afp-16, -0x1.69192981b1324p-14, 0x1.b3c1bca69117ep-15,
                   -0x1.3d9bf5ffacf6p-16, 0x1.4f3c1357184f9p-18, -0x1.0b008333dea77p-20, 0x1.40d0a936d1fffp-23,
                   -0x1.1b5368da650e1p-26, 0x1.5bf2fa1ab0097p-30, -0x1.09ab70249d177p-34, 0x1.7bf3c04b43863p-40));
  }
}

template <class V>
RT_INLINE V erf(V x) {
  using T = lane_t<V>;
  const V a = abs(x);
  return copysign(select(a < T(0.9), erf_small(a, V(a * a)), V(T(1) - erfc_large(a))), x);
}

// 1 / (1 + exp(-x)), from exp(-|x|) <= 1, so that nothing overflows and the small end keeps its digits.
template <class V>
RT_INLINE V sigmoid(V x) {
  using T = lane_t<V>;
  const V e = exp_below(V(-abs(x)));
  const V d = T(1) + e;
  const V lost = e - (d - T(1));  // by the rounding of d, which is between 1 and 2
  const V y = select(x < T(0), e, splat<V>(T(1))) / d;
  return y - y * lost;
}

// float: log2 of the standard normal distribution function at -t, for t in [0, 14.5], beyond which t 2^that is 0.
template <class V>
RT_INLINE V log2_normal_cdf(V t) {
  return polynomial(t, -0x1.fffffep-1f, -0x1.26aef2p+0f, -0x1.d6374cp-2f, -0x1.ae5b28p-5f, 0x1.d2358cp-8f,
                    -0x1.5f08a8p-13f, -0x1.7dbf18p-13f, 0x1.6a8b56p-15f, -0x1.3532p-18f, 0x1.00505ap-22f,
                    -0x1.4ba992p-28f);
}

// float: (cdf(-t) - t pdf(t)) exp(t^2 / 2) of the standard normal distribution, for t in [0, 6]; too large beyond
template <class V>
RT_INLINE V normal_slope(V t) {
  return polynomial(t, 0x1.fffffep-2f, -0x1.988408p-1f, 0x1.ffee56p-3f, -0x1.0fed1cp-3f, 0x1.fab1acp-5f,
                    -0x1.9fa8ecp-6f, 0x1.241a2ap-7f, -0x1.4cf32p-9f, 0x1.1e4e36p-11f, -0x1.53b48ep-14f, 0x1.e704d4p-18f,
                    -0x1.3a3572p-22f);
}

}  // namespace rusttorch::math
