#pragma once

// log of a float with AVX-512, in half of the instructions of log_assemble (math.h): the table of 32 entries lies in
// four registers, where one permutation looks up sixteen. x = 2^k m with m in [3/4, 3/2), c near m, and
//   log(x) = k ln2 + log(c) + log(1 + r)        r = m / c - 1, between -1/64 and 1/32
// From tools/fit_math.py. P. T. P. Tang, Table-driven implementation of the logarithm function, ACM TOMS 16, 1990.

#include "lanes.h"

#if defined(__AVX512F__)
namespace rusttorch::math {

// By the first five bits of m's mantissa: those from 1 on, then those below.
alignas(64) constexpr float table_inverse[32] = {
    0x1.p+0f,       0x1.e9108ap-1f, 0x1.dae26cp-1f, 0x1.cd8212p-1f, 0x1.c0e44ep-1f, 0x1.b4e46ap-1f, 0x1.a98eeap-1f,
    0x1.9eccdp-1f,  0x1.948b0ep-1f, 0x1.8ac862p-1f, 0x1.818358p-1f, 0x1.78a7f4p-1f, 0x1.702a5p-1f,  0x1.68141ap-1f,
    0x1.605558p-1f, 0x1.58e986p-1f, 0x1.51cebap+0f, 0x1.4afb8p+0f,  0x1.446f8p+0f,  0x1.3e2198p+0f, 0x1.381564p+0f,
    0x1.323e3cp+0f, 0x1.2ca196p+0f, 0x1.27364ap+0f, 0x1.21f984p+0f, 0x1.1cf25ep+0f, 0x1.181182p+0f, 0x1.135bb2p+0f,
    0x1.0ecf54p+0f, 0x1.0a661cp+0f, 0x1.0626dp+0f,  0x1.p+0f};
alignas(64) constexpr float table_log[32] = {
    0x0.p+0f,        0x1.777088p-5f,  0x1.343c96p-4f,  0x1.a94474p-4f,  0x1.0d6644p-3f,  0x1.44e406p-3f,
    0x1.7ab8cap-3f,  0x1.af2952p-3f,  0x1.e2708p-3f,   0x1.0a3a9p-2f,   0x1.228f3ep-2f,  0x1.3a5c26p-2f,
    0x1.51b52ap-2f,  0x1.687358p-2f,  0x1.7eb77cp-2f,  0x1.9483fcp-2f,  -0x1.1bf43ap-2f, -0x1.070d9ap-2f,
    -0x1.e530c8p-3f, -0x1.bd00b6p-3f, -0x1.95b20ep-3f, -0x1.6f015ap-3f, -0x1.4920a6p-3f, -0x1.23dfb4p-3f,
    -0x1.fe6d7cp-4f, -0x1.b6c89p-4f,  -0x1.700d3ep-4f, -0x1.2a9442p-4f, -0x1.ccb6eap-5f, -0x1.462ecap-5f,
    -0x1.850c1ap-6f, 0x0.p+0f};

RT_INLINE __m512 table_entry(const float* table, __m512i index) {
  return _mm512_permutex2var_ps(_mm512_load_ps(table), index, _mm512_load_ps(table + 16));
}

struct LogTerms {
  __m512 k, m, inverse, log;
};
RT_INLINE LogTerms look_up(__m512 k, __m512 m) {
  const __m512i index = _mm512_srli_epi32(_mm512_castps_si512(m), 18);
  return {k, m, table_entry(table_inverse, index), table_entry(table_log, index)};
}
// log(1 + r) = r + r^2 g(r): g.
RT_INLINE __m512 log_tail(__m512 r) { return (r * -0x1.f337b6p-3f + 0x1.555d32p-2f) * r - 0x1.00002cp-1f; }

// Of any x: the exponent of 0 is -inf, infinity's is inf, a denormal is normalized, and what is below 0 has NaN for m.
RT_INLINE __m512 log_by_table(__m512 x) {
  const __m512 m = _mm512_getmant_ps(x, _MM_MANT_NORM_p75_1p5, _MM_MANT_SIGN_nan);
  const LogTerms e = look_up(_mm512_getexp_ps(x) - _mm512_getexp_ps(m), m);
  const __m512 r = e.m * e.inverse - 1.0f;
  // ln2's upper bits times k are exact.
  return e.k * 0x1.62e4p-1f + (e.log + (r * r * log_tail(r) + (e.k * 0x1.7f7d1cp-20f + r)));
}

// Of the unit interval, a little faster, and a little less exact.
RT_INLINE LogTerms look_up_unit(__m512 x) {
  const __m512 k = _mm512_getexp_ps(x * (4.0f / 3));  // one more from 3/4 on
  return look_up(k, _mm512_getmant_ps(x, _MM_MANT_NORM_p75_1p5, _MM_MANT_SIGN_src));
}
RT_INLINE __m512 sum_of(const LogTerms& e, __m512 r) {
  return (e.k * 0x1.62e43p-1f + e.log) + (r * r * log_tail(r) + r);
}
RT_INLINE __m512 log_of_unit(__m512 x) {
  const LogTerms e = look_up_unit(x);
  return sum_of(e, e.m * e.inverse - 1.0f);
}
RT_INLINE __m512 log1m_of_unit(__m512 x) {
  const LogTerms e = look_up_unit(1.0f - x);
  // Where the rounding of 1 - x would be felt (and k is 0), x itself is taken.
  return sum_of(e, x < 0.25f ? (e.inverse - 1.0f) - x * e.inverse : e.m * e.inverse - 1.0f);
}

}  // namespace rusttorch::math
#endif
