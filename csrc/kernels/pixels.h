#pragma once

// Pixels of images as vectors of floats: of bytes (0 to 255) and floats, in planes or interleaved. Compiled once per
// instruction set.

#include "runs.h"

namespace rusttorch {
namespace {

using Pixels = Vector<float>;
using PixelIndices = Vector<int32_t>;

// As many bytes as V has lanes, as floats. (gcc 12 makes single lanes of __builtin_convertvector here.)
template <class V>
RT_INLINE V load_bytes(const uint8_t* from) {
#if defined(__AVX512F__)
  if constexpr (sizeof(V) == 64) return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(load<__m128i>(from)));
#endif
#if defined(__AVX2__)
  if constexpr (sizeof(V) == 32) {
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(load<long long>(from))));
  }
#endif
  if constexpr (sizeof(V) == 16) {
    const __m128i words = _mm_unpacklo_epi8(_mm_cvtsi32_si128(load<int>(from)), __m128i{});
    return _mm_cvtepi32_ps(_mm_unpacklo_epi16(words, __m128i{}));
  }
}

RT_INLINE Pixels load_pixels(const float* from) { return load<Pixels>(from); }
RT_INLINE Pixels load_pixels(const uint8_t* from) { return load_bytes<Pixels>(from); }
template <class T>
RT_INLINE Pixels load_pixels(const T* from, int64_t count) {
  if (count >= lanes<Pixels>) return load_pixels(from);
  T whole[lanes<Pixels>] = {};
  for (int64_t i = 0; i < count; ++i) whole[i] = from[i];
  return load_pixels(whole);
}

// What comes so much later. (The CPU's own guess ends with each page.)
template <class T>
RT_INLINE void fetch_ahead(const T* from) {
  _mm_prefetch(reinterpret_cast<const char*>(from) + 4096, _MM_HINT_T0);
}

// To bytes rounded down; they are from 0 to 255.
RT_INLINE void store_pixels(float* to, Pixels v) { store(to, v); }
RT_INLINE void store_pixels(uint8_t* to, Pixels v) {
#if defined(__AVX512F__)
  store(to, _mm512_cvtepi32_epi8(_mm512_cvttps_epi32(v)));
#elif defined(__AVX2__)
  const __m256i wide = _mm256_cvttps_epi32(v);
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
  store(to, _mm_cvtsi128_si64(_mm_packus_epi16(words, words)));
#else
  const __m128i words = _mm_packs_epi32(_mm_cvttps_epi32(v), __m128i{});
  store(to, _mm_cvtsi128_si32(_mm_packus_epi16(words, words)));
#endif
}
template <class T>
RT_INLINE void store_pixels(T* to, Pixels v, int64_t count) {
  if (count >= lanes<Pixels>) return store_pixels(to, v);
  T whole[lanes<Pixels>];
  store_pixels(whole, v);
  for (int64_t i = 0; i < count; ++i) to[i] = whole[i];
}

// The nearest whole number, even of two, for what is from 0 to 2^22.
RT_INLINE Pixels nearest_whole(Pixels v) { return (v + 0x1.8p23f) - 0x1.8p23f; }

// White, and what is made of a result: of bytes a whole number within them.
template <class T>
constexpr float white = std::is_same_v<T, uint8_t> ? 255.f : 1.f;
template <class T>
RT_INLINE Pixels within_range(Pixels v) {
  return at_most(at_least(v, 0.f), white<T>);
}
template <class T>
RT_INLINE Pixels rounded_down(Pixels v) {
  return std::is_same_v<T, uint8_t> ? trunc(v) : v;
}
template <class T>
RT_INLINE Pixels rounded(Pixels v) {
  return std::is_same_v<T, uint8_t> ? nearest_whole(within_range<T>(v)) : v;
}

// Lanes of a and b by a function from the lane to a place in a|b.
template <class F>
RT_INLINE Pixels lanes_of(Pixels a, Pixels b, F place) {
  PixelIndices places{};
  for (int64_t i = 0; i < lanes<Pixels>; ++i) places[i] = int32_t(place(i));
  return __builtin_shuffle(a, b, places);
}

// Three vectors of red, green and blue from as many of pixels, and back.
struct Colors {
  Pixels channel[3];
};
template <int c>
RT_INLINE Pixels every_third(const Colors& x) {
  constexpr int64_t n = lanes<Pixels>;
  const Pixels first =
      lanes_of(x.channel[0], x.channel[1], [](int64_t i) { return 3 * i + c < 2 * n ? 3 * i + c : 0; });
  return lanes_of(first, x.channel[2], [](int64_t i) { return 3 * i + c < 2 * n ? i : 3 * i + c - n; });
}
template <int k>
RT_INLINE Pixels third(const Colors& x) {
  constexpr int64_t n = lanes<Pixels>;
  const Pixels first =
      lanes_of(x.channel[0], x.channel[1], [](int64_t i) { return (k * n + i) / 3 + (k * n + i) % 3 % 2 * n; });
  return lanes_of(first, x.channel[2], [](int64_t i) { return (k * n + i) % 3 == 2 ? n + (k * n + i) / 3 : i; });
}
RT_INLINE Colors apart(const Colors& x) { return {{every_third<0>(x), every_third<1>(x), every_third<2>(x)}}; }
RT_INLINE Colors together(const Colors& x) { return {{third<0>(x), third<1>(x), third<2>(x)}}; }

// f(i, whole) for the vectors of so many pixels: whether the vector is, which is a constant, or a part is the last.
template <class F>
RT_INLINE void along(int64_t count, F f) {
  int64_t i = 0;
  for (; i + lanes<Pixels> <= count; i += lanes<Pixels>) f(i, std::true_type());
  if (i < count) f(i, std::false_type());
}

// An image of 1 or 3 channels, in planes of so many pixels or interleaved, as vectors of each channel: of the pixels
// from i on, of which `count` are left.
template <class T, int channels, bool interleaved>
struct View {
  T* image;
  int64_t pixels;
  bool stream = false;  // whole vectors go around the cache: all are aligned

  template <class Whole>
  RT_INLINE Colors get(int64_t i, int64_t count, Whole whole) const {
    Colors x{};
#pragma GCC unroll 3
    for (int k = 0; k < channels; ++k) {
      const int64_t at = interleaved ? 3 * i + k * lanes<Pixels> : k * pixels + i;
      const int64_t left = interleaved ? 3 * count - k * lanes<Pixels> : count;
      x.channel[k] = whole ? load_pixels(image + at) : left > 0 ? load_pixels(image + at, left) : Pixels{};
    }
    return interleaved ? apart(x) : x;
  }
  template <class Whole>
  RT_INLINE void put(int64_t i, int64_t count, const Colors& x, Whole whole) const {
    const Colors v = interleaved ? together(x) : x;
#pragma GCC unroll 3
    for (int k = 0; k < channels; ++k) {
      const int64_t at = interleaved ? 3 * i + k * lanes<Pixels> : k * pixels + i;
      const int64_t left = interleaved ? 3 * count - k * lanes<Pixels> : count;
      if (whole && stream) {
        put_around(image + at, v.channel[k]);
      } else if (whole) {
        store_pixels(image + at, v.channel[k]);
      } else if (left > 0) {
        store_pixels(image + at, v.channel[k], left);
      }
    }
  }

 private:
  static RT_INLINE void put_around(float* to, Pixels v) { stream_out(to, v); }
  static RT_INLINE void put_around(uint8_t* to, Pixels v) { store_pixels(to, v); }
};

}  // namespace
}  // namespace rusttorch
