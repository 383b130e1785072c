#pragma once

// Powers of floats, in double: 2^(e log2|x|), which errs little more than its rounding to float. Taylor's series are
// short enough, and in double nothing is a denormal. (In float both would need pairs of numbers.)

#include "math.h"
#if !defined(__CUDACC__) && !defined(RUSTTORCH_EMULATION)
#include "load_store.h"
#endif

namespace rusttorch::math {

// log2(x) for x >= 0, to 2^-35 of it: log((1 + s) / (1 - s)) = 2 (s + s^3 / 3 + s^5 / 5 + ...).
template <class V>
RT_INLINE V log2(V x) {
  constexpr double inf = Constants<double>::inf, c = 2 * Constants<double>::log2e;
  const auto [k, f] = split(x);
  const V s = f / (2.0 + f), z = s * s;
  const V y = k + s * polynomial(z, c, c / 3, c / 5, c / 7, c / 9, c / 11, c / 13);
  return select(x > 0.0, select(x < inf, y, x), splat<V>(-inf));
}
#if defined(__AVX512F__)
// x = 2^k m with m in [3/4, 3/2), c near m by the first four bits of its mantissa, and r = m / c - 1, between -1/32 and
// 1/16: without the division. From tools/fit_math.py.
// clang-format off
alignas(64) constexpr double pow_inverse[16] = {
    0x1.p+0, 0x1.d41d41d41d41dp-1, 0x1.bacf914c1badp-1, 0x1.a41a41a41a41ap-1, 0x1.8f9c18f9c18fap-1,
    0x1.7d05f417d05f4p-1, 0x1.6c16c16c16c17p-1, 0x1.5c9882b931057p-1, 0x1.4e5e0a72f0539p+0, 0x1.4141414141414p+0,
    0x1.3521cfb2b78c1p+0, 0x1.29e4129e4129ep+0, 0x1.1f7047dc11f7p+0, 0x1.15b1e5f75270dp+0, 0x1.0c9714fbcda3bp+0, 0x1.p+0};
alignas(64) constexpr double pow_log2[16] = {
    0x0.p+0, 0x1.08c588cda79e5p-3, 0x1.acf5e2db4ec91p-3, 0x1.24407ab0e073ap-2, 0x1.6e221cd9d0cddp-2,
    0x1.b47ebf73882a1p-2, 0x1.f7a8568cb06cep-2, 0x1.1bf311e95d00ep-1, -0x1.8a8980abfbd3p-2, -0x1.4f6fbb2cec598p-2,
    -0x1.169c05363f157p-2, -0x1.bfc67a7fff4cap-3, -0x1.563dc29ffacafp-3, -0x1.e0b1ae8f2fd56p-4, -0x1.1bb32a60054a2p-4,
    0x0.p+0};
// clang-format on

RT_INLINE __m512d pow_entry(const double* table, __m512i index) {
  return _mm512_permutex2var_pd(_mm512_load_pd(table), index, _mm512_load_pd(table + 8));
}
template <>
RT_INLINE Vector<double> log2(Vector<double> x) {
  constexpr double c = Constants<double>::log2e;
  const Vector<double> m = _mm512_getmant_pd(x, _MM_MANT_NORM_p75_1p5, _MM_MANT_SIGN_src);
  const Vector<double> k = _mm512_getexp_pd(x) - _mm512_getexp_pd(m);  // of 0 -inf, of infinity inf
  const __m512i index = _mm512_srli_epi64(_mm512_castpd_si512(m), 48);
  const Vector<double> r = m * pow_entry(pow_inverse, index) - 1.0;
  return r * polynomial(r, c, -c / 2, c / 3, -c / 4, c / 5, -c / 6, c / 7, -c / 8) + (k + pow_entry(pow_log2, index));
}
#endif

// 2^x for |x| < 1000, to 2^-32 of it: exp(r) = 1 + r + r^2 / 2! + ...
template <class V>
RT_INLINE V exp2_in_range(V x) {
  const V k = (x + Constants<double>::round_magic) - Constants<double>::round_magic, r = (x - k) * 0x1.62e42fefa39efp-1;
  return scale(polynomial(r, 1.0, 1.0, 1.0 / 2, 1.0 / 6, 1.0 / 24, 1.0 / 120, 1.0 / 720, 1.0 / 5040, 1.0 / 40320), k);
}

// x^e for a float x >= 0 that is no NaN, in double, as far as a float goes.
template <class V>
RT_INLINE V pow_of_size(V x, double e) {
  return exp2_in_range(lesser(larger(V(log2(x) * e), splat<V>(-200.0)), splat<V>(200.0)));
}

// x^e, by C's rules for zeros, infinities and NaN, for a finite e other than 0. sign: -0 where e is odd, whose result
// has the sign of x, else 0. below: NaN where e is no integer, of which there is no power of a finite x < 0, else 1.
template <class V>
RT_INLINE V pow(V x, lane_t<V> e, lane_t<V> sign, lane_t<V> below) {
  if constexpr (std::is_arithmetic_v<V>) {  // a device's
    return ::pow(x, e);
  } else {
    constexpr float inf = Constants<float>::inf;
    auto parts = to_doubles(V(abs(x)));
    for (auto& v : parts.half) v = pow_of_size(v, double(e));
    const V of_size = from_doubles<V>(parts);
    const V y = from_bits<V>(bits(of_size) ^ (bits(x) & bits(splat<V>(sign))));
    return select(x != x, x, V(y * select((x < 0.0f) & (x > -inf), splat<V>(below), splat<V>(1.0f))));
  }
}

}  // namespace rusttorch::math
