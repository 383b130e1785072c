#pragma once

// tanh of a float with AVX-512: a polynomial for each of 32 intervals, whose coefficients one permutation each looks up
// for sixteen numbers. Half of the time of a quotient of exponentials, and no division.
//   tanh(c + t) = tanh(c) + c1 t + ... + c5 t^5      c near the middle of its interval
// From tools/fit_math.py.

#include "log_table.h"

#if defined(__AVX512F__)
namespace rusttorch::math {

// By the exponent and two bits of the mantissa, from 1/16 to 16; below is the first interval's too, where c is 0. A row
// each for c, tanh(c), c1, ..., c5.
alignas(64) constexpr float tanh_table[7][32] = {
    {0x0.p+0f,       0x1.5ffee6p-4f, 0x1.9ffde6p-4f, 0x1.e001e8p-4f, 0x1.2000dep-3f, 0x1.5ffecep-3f, 0x1.9fff9ap-3f,
     0x1.dfff3p-3f,  0x1.1ffe3ap-2f, 0x1.600068p-2f, 0x1.9ffe82p-2f, 0x1.e000eap-2f, 0x1.1ffeb2p-1f, 0x1.5ffe5ap-1f,
     0x1.a00154p-1f, 0x1.dfffbp-1f,  0x1.1ffeb6p+0f, 0x1.5fffdap+0f, 0x1.9fff1p+0f,  0x1.e00076p+0f, 0x1.1ffe24p+1f,
     0x1.60023p+1f,  0x1.a0006ep+1f, 0x1.e001ecp+1f, 0x1.1ffee2p+2f, 0x1.600258p+2f, 0x1.9ffda8p+2f, 0x1.e00258p+2f,
     0x1.119bf2p+3f, 0x1.4p+3f,      0x1.8p+3f,      0x1.cp+3f},
    {0x0.p+0f,       0x1.5f21bap-4f, 0x1.9e9142p-4f, 0x1.ddd274p-4f, 0x1.1e1eaap-3f, 0x1.5c91dep-3f, 0x1.9a5ebap-3f,
     0x1.d76598p-3f, 0x1.18a1f6p-2f, 0x1.52c322p-2f, 0x1.8a869cp-2f, 0x1.bfaf28p-2f, 0x1.050778p-1f, 0x1.3156dp-1f,
     0x1.5789bap-1f, 0x1.77d814p-1f, 0x1.9e5bd2p-1f, 0x1.c27894p-1f, 0x1.d9c6b6p-1f, 0x1.e878b4p-1f, 0x1.f4bf84p-1f,
     0x1.fbd52ep-1f, 0x1.fe767cp-1f, 0x1.ff6f1cp-1f, 0x1.ffdfa6p-1f, 0x1.fffbap-1f,  0x1.ffff68p-1f, 0x1.ffffecp-1f,
     0x1.fffffep-1f, 0x1.p+0f,       0x1.p+0f,       0x1.p+0f},
    {0x1.p+0f,       0x1.fc3cc4p-1f, 0x1.fac14cp-1f, 0x1.f9084cp-1f,  0x1.f601bcp-1f,  0x1.f12b18p-1f, 0x1.eb7164p-1f,
     0x1.e4dfc8p-1f, 0x1.d98baap-1f, 0x1.c7f704p-1f, 0x1.b3ffacp-1f,  0x1.9e235cp-1f,  0x1.7aebe2p-1f, 0x1.49e804p-1f,
     0x1.197ed2p-1f, 0x1.d8354p-2f,  0x1.6152e4p-2f, 0x1.cea7bep-3f,  0x1.266032p-3f,  0x1.6fce64p-4f, 0x1.641aa8p-5f,
     0x1.099ea8p-6f, 0x1.88eccep-8f, 0x1.219f04p-9f, 0x1.02c942p-11f, 0x1.182008p-14f, 0x1.2f782p-17f, 0x1.486348p-20f,
     0x1.41cabp-23f, 0x0.p+0f,       0x0.p+0f,       0x0.p+0f},
    {0x0.p+0f,         -0x1.5c8dp-4f,    -0x1.9a5204p-4f,  -0x1.d75144p-4f,  -0x1.1888e4p-3f,  -0x1.5279p-3f,
     -0x1.89e4c4p-3f,  -0x1.be6c5cp-3f,  -0x1.038e2ap-2f,  -0x1.2dafd6p-2f,  -0x1.4ff664p-2f,  -0x1.6a1d9p-2f,
     -0x1.825d7cp-2f,  -0x1.897d44p-2f,  -0x1.79c066p-2f,  -0x1.5aa258p-2f,  -0x1.1df1e6p-2f,  -0x1.970f04p-3f,
     -0x1.10665ap-3f,  -0x1.5ee78p-4f,   -0x1.5c44a6p-5f,  -0x1.077148p-6f,  -0x1.87b7bcp-8f,  -0x1.214768p-9f,
     -0x1.026566p-11f, -0x1.18bedcp-14f, -0x1.2ac7e4p-17f, -0x1.8ae266p-20f, -0x1.7955d2p-22f, 0x0.p+0f,
     0x0.p+0f,         0x0.p+0f},
    {-0x1.555544p-2f, -0x1.49c34cp-2f, -0x1.47e6fep-2f, -0x1.42c1dep-2f, -0x1.3b2af6p-2f, -0x1.2e5368p-2f,
     -0x1.2059bcp-2f, -0x1.0fd7d2p-2f, -0x1.e924d2p-3f, -0x1.9834eep-3f, -0x1.426d64p-3f, -0x1.d763cp-4f,
     -0x1.bcfc44p-5f, 0x1.d6cc62p-7f,  0x1.07434ep-4f,  0x1.8427dap-4f,  0x1.c68cdap-4f,  0x1.97d7a6p-4f,
     0x1.33e114p-4f,  0x1.a859a4p-5f,  0x1.bbd9cp-6f,   0x1.5988b6p-7f,  0x1.03944ap-8f,  0x1.80dbap-10f,
     0x1.586cdep-12f, 0x1.750a78p-15f, 0x1.94256ep-18f, 0x1.b4bbap-21f,  0x1.a587e2p-24f, 0x0.p+0f,
     0x0.p+0f,        0x0.p+0f},
    {0x0.p+0f,         0x1.bd7ap-5f,     0x1.0ab2ecp-4f,   0x1.1778d4p-4f,  0x1.675f32p-4f,  0x1.b15cfap-4f,
     0x1.ee8ebcp-4f,   0x1.1594c8p-3f,   0x1.32dd3cp-3f,   0x1.4ffc16p-3f,  0x1.5c297p-3f,   0x1.586482p-3f,
     0x1.39e462p-3f,   0x1.e93934p-4f,   0x1.474cfp-4f,    0x1.63620ap-5f,  0x1.e173eep-9f,  -0x1.59e08cp-6f,
     -0x1.9bafc2p-6f,  -0x1.55991ep-6f,  -0x1.95e546p-7f,  -0x1.5151b2p-8f, -0x1.03421ep-9f, -0x1.839456p-11f,
     -0x1.68be36p-13f, -0x1.7a8d74p-16f, -0x1.deea5cp-19f, 0x1.8e050ep-22f, 0x1.026008p-21f, 0x0.p+0f,
     0x0.p+0f,         0x0.p+0f},
    {0x1.1063dcp-3f,  -0x1.20ef0cp+4f, 0x1.4f3c1p+2f,   -0x1.01a40ap+1f, 0x1.80ec04p-2f,  -0x1.98db52p-1f,
     0x1.3d96d6p-1f,  -0x1.3d9868p-9f, 0x1.079e56p-4f,  -0x1.149292p-6f, -0x1.a70a24p-9f, 0x1.08355cp-5f,
     -0x1.780e12p-5f, -0x1.e51ff4p-5f, -0x1.0e56d6p-4f, -0x1.a10d4cp-5f, -0x1.06686ap-5f, -0x1.36ff6ap-7f,
     0x1.686d4ap-10f, 0x1.2f4af8p-8f,  0x1.04b5aep-8f,  0x1.f60b4ep-10f, 0x1.940b2ep-11f, 0x1.32d7d6p-12f,
     0x1.1e7e78p-14f, 0x1.3789e6p-17f, 0x1.51ea5p-20f,  0x1.7709ecp-23f, 0x1.bfc922p-26f, 0x0.p+0f,
     0x0.p+0f,        0x0.p+0f}};

RT_INLINE __m512 tanh_by_table(__m512 x) {
  const __m512 a = _mm512_min_ps(_mm512_set1_ps(9.1f), _mm512_abs_ps(x));  // from 9.02 on it is 1; NaN stays
  const __m512i first = _mm512_set1_epi32((127 - 4) << 2);                 // the exponent of 1/16
  const __m512i from_first = _mm512_sub_epi32(_mm512_srli_epi32(_mm512_castps_si512(a), 23 - 2), first);
  const __m512i index = _mm512_max_epi32(from_first, _mm512_setzero_si512());
  const __m512 t = a - table_entry(tanh_table[0], index);
  __m512 sum = table_entry(tanh_table[6], index);
#pragma GCC unroll 5
  for (int i = 5; i > 0; --i) sum = sum * t + table_entry(tanh_table[i], index);
  const __m512i sign = _mm512_set1_epi32(int(0x80000000u));
  return _mm512_castsi512_ps(_mm512_or_si512(_mm512_castps_si512(sum), _mm512_and_si512(_mm512_castps_si512(x), sign)));
}

}  // namespace rusttorch::math
#endif
