#include "image.h"

#include <bit>

#include "pixels.h"
#include "scratch.h"

namespace rusttorch {
namespace {

constexpr int64_t L = vector_bytes / 4;       // lanes
constexpr int64_t room = 4;                   // channels of a pixel
constexpr int64_t rows_of_vector = L / room;  // rows of which a vector has a pixel each
using Integers = Vector<int32_t>;

template <class V>
RT_INLINE V as_level(V v) {
  return at_most(at_least(v, 0), 255);
}

// What the compiler makes number by number of its own operations: a pixel of each row, which is read as so many bytes;
// the same of four columns, which are read as 16 bytes; a vector in parts, to as many rows; and numbers as bytes.
template <int64_t bytes, class V>
RT_INLINE V pixels_at(const uint8_t* const* rows, int64_t at) {
  uint32_t words[rows_of_vector] = {};
  for (int64_t k = 0; k < rows_of_vector; ++k) std::memcpy(words + k, rows[k] + at, bytes);
#if defined(__AVX512F__)
  const __m128i levels = _mm_setr_epi32(int(words[0]), int(words[1]), int(words[2]), int(words[3]));
  const __m512i numbers = _mm512_cvtepu8_epi32(levels);
#elif defined(__AVX2__)
  const __m256i numbers = _mm256_cvtepu8_epi32(_mm_setr_epi32(int(words[0]), int(words[1]), 0, 0));
#else
  const __m128i zero = _mm_setzero_si128(), levels = _mm_cvtsi32_si128(int(words[0]));
  const __m128i numbers = _mm_unpacklo_epi16(_mm_unpacklo_epi8(levels, zero), zero);
#endif
  return __builtin_convertvector(__builtin_bit_cast(Integers, numbers), V);
}

#if defined(__AVX2__)
// The bytes of four pixels, of so many channels, each at the begin of its room.
RT_INLINE __m128i apart(int64_t channels) {
  const int c = int(channels), d = 2 * c, e = 3 * c;
  return _mm_setr_epi8(0, 1, 2, 3, c, c + 1, c + 2, c + 3, d, d + 1, d + 2, d + 3, e, e + 1, e + 2, e + 3);
}
template <class V>
RT_INLINE void store_pixels(const uint8_t* const* rows, int64_t at, __m128i apart, lane_t<V>* to) {
  const auto row = [&](int64_t k) { return load<__m128i>(rows[k] + at); };
  const auto put = [&](int64_t i, auto numbers) {
    store(to + i * L, __builtin_convertvector(__builtin_bit_cast(Integers, numbers), V));
  };
#if defined(__AVX512F__)
  __m512i v = _mm512_inserti32x4(_mm512_castsi128_si512(row(0)), row(1), 1);
  v = _mm512_inserti32x4(_mm512_inserti32x4(v, row(2), 2), row(3), 3);
  v = _mm512_shuffle_epi8(v, _mm512_broadcast_i32x4(apart));
  v = _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), v);
  put(0, _mm512_cvtepu8_epi32(_mm512_castsi512_si128(v)));
  put(1, _mm512_cvtepu8_epi32(_mm512_extracti32x4_epi32(v, 1)));
  put(2, _mm512_cvtepu8_epi32(_mm512_extracti32x4_epi32(v, 2)));
  put(3, _mm512_cvtepu8_epi32(_mm512_extracti32x4_epi32(v, 3)));
#else
  const __m128i first = _mm_shuffle_epi8(row(0), apart), second = _mm_shuffle_epi8(row(1), apart);
  const __m128i low = _mm_unpacklo_epi32(first, second), high = _mm_unpackhi_epi32(first, second);
  put(0, _mm256_cvtepu8_epi32(low));
  put(1, _mm256_cvtepu8_epi32(_mm_unpackhi_epi64(low, low)));
  put(2, _mm256_cvtepu8_epi32(high));
  put(3, _mm256_cvtepu8_epi32(_mm_unpackhi_epi64(high, high)));
#endif
}
#endif

template <class V>
RT_INLINE void store_apart(V v, lane_t<V>* const* rows, int64_t at) {
#if defined(__AVX512F__)
  const auto all = __builtin_bit_cast(__m512i, v);
  store(rows[0] + at, _mm512_castsi512_si128(all));
  store(rows[1] + at, _mm512_extracti32x4_epi32(all, 1));
  store(rows[2] + at, _mm512_extracti32x4_epi32(all, 2));
  store(rows[3] + at, _mm512_extracti32x4_epi32(all, 3));
#elif defined(__AVX2__)
  const auto all = __builtin_bit_cast(__m256i, v);
  store(rows[0] + at, _mm256_castsi256_si128(all));
  store(rows[1] + at, _mm256_extracti128_si256(all, 1));
#else
  store(rows[0] + at, v);
#endif
}

RT_INLINE auto bytes_of(Integers v) {
#if defined(__AVX512F__)
  return _mm512_cvtepi32_epi8(__builtin_bit_cast(__m512i, v));
#elif defined(__AVX2__)
  const auto all = __builtin_bit_cast(__m256i, v);
  const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
  return _mm_packus_epi16(words, words);
#else
  const __m128i words = _mm_packs_epi32(__builtin_bit_cast(__m128i, v), _mm_setzero_si128());
  return _mm_packus_epi16(words, words);
#endif
}

// Of two vectors, one after the other, those lanes that `from` says.
template <class V, class From>
RT_INLINE V lanes_of(V a, V b, From from) {
  bits_t<V> index;
  for (int64_t i = 0; i < L; ++i) index[i] = uint32_t(from(i));
  return __builtin_shuffle(a, b, index);
}

template <class T, class V>
RT_INLINE void put(T* y, V v, int64_t count) {
  if constexpr (std::is_same_v<T, uint8_t>) {
    const auto bytes = bytes_of(v);
    if (count == L) return std::memcpy(y, &bytes, L), void();
    for (int64_t i = 0; i < count; ++i) y[i] = reinterpret_cast<const uint8_t*>(&bytes)[i];
  } else if constexpr (std::is_same_v<T, double>) {
    for (int64_t i = 0; i < count; ++i) y[i] = v[i];
  } else {
    store_count(y, v, count);
  }
}

// What a result of T is summed in. Sums of integers are rounded.
template <class T>
using Sum = std::conditional_t<std::is_same_v<T, uint8_t>, int32_t, float>;
template <class V>
RT_INLINE V finished(V v, bool clips) {
  if constexpr (std::is_integral_v<lane_t<V>>) {
    return as_level((v + (1 << (image_weight_bits - 1))) >> image_weight_bits);
  } else {
    return clips ? as_level(v) : v;
  }
}

// Rows of the image, made as wide as the result's: several together, each in its place of a ring.
template <class C>
class WideRows {
  using V = Vector<C>;

 public:
  explicit WideRows(const ImageArgs& a) : a_(a) {
    const int64_t wide = a.columns.out * room;
    for (int64_t k = 0; k <= mask_; ++k) std::fill(row(k) + wide, row(k) + pitch_, C(0));
  }

  // Of the rows that are needed, counted in these; with room for whole vectors.
  C* row(int64_t line) const { return ring_.data() + (line & mask_) * pitch_; }

  // So many of them, from the line-th on.
  __attribute__((noinline)) void make(int64_t line) const {
    const uint8_t* rows[rows_of_vector];
    C* wide[rows_of_vector];
    for (int64_t k = 0; k < rows_of_vector; ++k) {
      rows[k] = a_.in + a_.lines[std::min(line + k, a_.line_count - 1)] * a_.line;
      wide[k] = row(line + k);
    }
    if (is_sparse_) return sum(0, a_.columns.out, [&](int64_t x) { return pixels(rows, x); }, wide);
    C* const strip = strip_.data();
    each_part([&](int64_t begin, int64_t end, const Range& range) {
      fill_strip(rows, range, strip);
      sum(begin, end, [&](int64_t x) { return load<V>(strip + (x - range.begin) * L); }, wide);
    });
  }

 private:
  enum class Use { strip, ring };
  struct Range {
    int64_t begin, end;
  };

  // The image's columns of which some of the result's are made; those may be reversed.
  Range columns_of(int64_t begin, int64_t end) const {
    const auto [least, most] = std::minmax(a_.columns.first[begin], a_.columns.first[end - 1]);
    return {least, most + a_.columns.taps};
  }
  int64_t needed() const {
    const Range all = columns_of(0, a_.columns.out);
    return all.end - all.begin;
  }
  // So many of the result's columns are made of about 256 of the image's: what fits into the first cache.
  int64_t columns_at_once() const {
    return std::clamp<int64_t>(a_.columns.out * 256 / needed(), L, std::max(L, a_.columns.out));
  }
  // Of columns that many, at most.
  int64_t most_needed() const {
    int64_t most = 0;
    each_part([&](int64_t, int64_t, const Range& range) { most = std::max(most, range.end - range.begin); });
    return most;
  }
  template <class F>
  RT_INLINE void each_part(F f) const {
    for (int64_t o = 0; o < a_.columns.out; o += at_once_) {
      const int64_t end = std::min(o + at_once_, a_.columns.out);
      f(o, end, columns_of(o, end));
    }
  }

  RT_INLINE V pixels(const uint8_t* const* rows, int64_t x) const {
    const int64_t at = x * a_.channels;
    if (at + room <= row_bytes_) return pixels_at<room, V>(rows, at);
    return a_.channels == 3 ? pixels_at<3, V>(rows, at) : pixels_at<1, V>(rows, at);
  }

  RT_INLINE void fill_strip(const uint8_t* const* rows, const Range& range, C* strip) const {
    int64_t x = range.begin;
#if defined(__AVX2__)
    const __m128i places = apart(a_.channels);
    for (; x + 4 <= range.end && x * a_.channels + 16 <= row_bytes_; x += 4, strip += 4 * L) {
      store_pixels<V>(rows, x * a_.channels, places, strip);
    }
#endif
    for (; x < range.end; ++x, strip += L) store(strip, pixels(rows, x));
  }

  template <class P>
  RT_INLINE void sum(int64_t begin, int64_t end, P pixels_at, C* const* wide) const {
    switch (a_.columns.taps) {
      case 1: return sum_of<1>(begin, end, pixels_at, wide);
      case 2: return sum_of<2>(begin, end, pixels_at, wide);
      case 3: return sum_of<3>(begin, end, pixels_at, wide);
      case 4: return sum_of<4>(begin, end, pixels_at, wide);
      case 5: return sum_of<5>(begin, end, pixels_at, wide);
      default: return sum_of<0>(begin, end, pixels_at, wide);
    }
  }
  template <int known, class P>
  RT_INLINE void sum_of(int64_t begin, int64_t end, P pixels_at, C* const* wide) const {
    const int64_t taps = known ? known : a_.columns.taps;
    const int32_t* const firsts = a_.columns.first;
    const C* weights = static_cast<const C*>(a_.columns.weights) + begin * taps;
    const bool clips = a_.clips_between;
    for (int64_t o = begin; o < end; ++o, weights += taps) {
      const int64_t first = firsts[o];
      V v = splat<V>(weights[0]) * pixels_at(first);
      for (int64_t k = 1; k < taps; ++k) v += splat<V>(weights[k]) * pixels_at(first + k);
      store_apart(finished(v, clips), wide, o * room);
    }
  }

  const ImageArgs& a_;
  const int64_t row_bytes_ = a_.width * a_.channels;
  // So few columns are needed that each is read where it is. Else all are made numbers first.
  const bool is_sparse_ = a_.columns.out * a_.columns.taps <= needed();
  const int64_t at_once_ = columns_at_once();
  const int64_t pitch_ = round_up(a_.columns.out, L) * room;
  const int64_t mask_ = int64_t(std::bit_ceil(uint64_t(a_.rows.taps + rows_of_vector - 1))) - 1;
  const Workspace<C, Use::strip> strip_{is_sparse_ ? 0 : most_needed() * L};
  const Workspace<C, Use::ring> ring_{(mask_ + 1) * pitch_};
};

// The result's rows, as sums of those.
template <class T>
class Resample {
  using C = Sum<T>;
  using V = Vector<C>;

 public:
  explicit Resample(const ImageArgs& a) : a_(a), wide_(a) {
    for (int64_t i = 0; i < L; ++i) {
      scale_[i] = a.scale[i % room];
      bias_[i] = a.bias[i % room];
    }
  }

  void run() {
    int64_t ready = a_.rows.first[a_.begin];
    for (int64_t o = a_.begin; o < a_.end; ++o) {
      const int64_t end = a_.rows.first[o] + a_.rows.taps;
      for (; ready < end; ready += rows_of_vector) wide_.make(ready);
      sum(o);
    }
  }

 private:
  void sum(int64_t o) const {
    const int64_t first = a_.rows.first[o], taps = a_.rows.taps, columns = a_.columns.out;
    const C* const weights = static_cast<const C*>(a_.rows.weights) + o * taps;
    T* y = static_cast<T*>(a_.out) + o * a_.row_stride;
    for (int64_t x = 0; x < columns; x += L, y += L * a_.column_stride) {
      V v[room] = {};
      for (int64_t k = 0; k < taps; ++k) {
        const C* const row = wide_.row(first + k) + x * room;
        for (int64_t j = 0; j < room; ++j) v[j] += splat<V>(weights[k]) * load<V>(row + j * L);
      }
      for (V& each : v) {
        each = finished(each, a_.clips);
        if constexpr (!std::is_integral_v<C>) each = each * scale_ + bias_;
      }
      write(v, y, std::min(L, columns - x));
    }
  }

  // So many of L pixels.
  RT_INLINE void write(const V* v, T* y, int64_t count) const {
    if (a_.column_stride == 1) return put_planes(v, y, a_.channel_stride, count);
    if (has_pixels_) return put_pixels(v, y, count);
    T planes[room * L];
    put_planes(v, planes, L, L);
    for (int64_t c = 0; c < a_.channels; ++c) {
      for (int64_t i = 0; i < count; ++i) y[c * a_.channel_stride + i * a_.column_stride] = planes[c * L + i];
    }
  }

  // By channel.
  RT_INLINE void put_planes(const V* v, T* y, int64_t stride, int64_t count) const {
    two_planes<0>(v, y, stride, count);
    if (a_.channels > 2) two_planes<2>(v, y + 2 * stride, stride, count);
  }
  template <int64_t channel>
  RT_INLINE void two_planes(const V* v, T* y, int64_t stride, int64_t count) const {
    constexpr int64_t half = L / 2;
    const auto both = [](V a, V b) {  // one channel, and then the other
      return lanes_of(a, b, [](int64_t i) { return i % half * room + channel + i / half; });
    };
    const V a = both(v[0], v[1]), b = both(v[2], v[3]);
    put(y, lanes_of(a, b, [](int64_t i) { return i < half ? i : i + half; }), count);
    if (channel + 1 < a_.channels) {
      put(y + stride, lanes_of(a, b, [](int64_t i) { return i < half ? i + half : i + L; }), count);
    }
  }

  // One after the other.
  RT_INLINE void put_pixels(const V* v, T* y, int64_t count) const {
    const auto put_at = [&](int64_t j, V vector) {
      const int64_t left = count * a_.channels - j * L;
      if (left > 0) put(y + j * L, vector, std::min(L, left));
    };
    if (a_.channels == 4) {
      for (int64_t j = 0; j < 4; ++j) put_at(j, v[j]);
    } else {
      const auto third = [&]<int64_t j>(std::integral_constant<int64_t, j>) {
        put_at(j, lanes_of(v[j], v[j + 1], [](int64_t i) { return (j * L + i) / 3 * 4 + (j * L + i) % 3 - j * L; }));
      };
      third(std::integral_constant<int64_t, 0>());
      third(std::integral_constant<int64_t, 1>());
      third(std::integral_constant<int64_t, 2>());
    }
  }

  const ImageArgs& a_;
  const WideRows<C> wide_;
  Vector<float> scale_, bias_;
  const bool has_pixels_ = a_.channels > 1 && a_.channel_stride == 1 && a_.column_stride == a_.channels;
};

// Where no pixel is made of several: pixels of the image, side by side, backwards, or here and there.
template <class T, int channels>
class Copy {
 public:
  static bool takes(const ImageArgs& a) {
    if (a.channels != channels || a.columns.out < L || !is_of_one(a.rows) || !is_of_one(a.columns)) return false;
    return a.column_stride == 1 || (a.channel_stride == 1 && a.column_stride == channels);
  }

  explicit Copy(const ImageArgs& a) : a_(a) {}

  void run() const {
    const auto step = steps();
    for (int64_t o = a_.begin; o < a_.end; ++o) {
      const uint8_t* const x = a_.in + a_.lines[a_.rows.first[o]] * a_.line;
      T* const y = static_cast<T*>(a_.out) + o * a_.row_stride;
      step == 1 ? row<1>(x, y) : step == -1 ? row<-1>(x, y) : row<0>(x, y);
    }
  }

 private:
  // Whether elements are each one of the image's as it is. (A cubic of one pixel can be less by a rounding.)
  static bool is_of_one(const ImageDim& dim) {
    const auto* const weights = static_cast<const Sum<T>*>(dim.weights);
    constexpr auto one = Sum<T>(std::is_integral_v<Sum<T>> ? 1 << image_weight_bits : 1);
    return dim.taps == 1 && std::all_of(weights, weights + dim.out, [](Sum<T> w) { return w == one; });
  }

  // From a pixel to the next, if that is 1 or -1 everywhere; else 0.
  int32_t steps() const {
    const int32_t* const first = a_.columns.first;
    const int32_t step = first[1] - first[0];
    for (int64_t o = 1; o < a_.columns.out; ++o) {
      if (first[o] - first[o - 1] != step) return 0;
    }
    return step == 1 || step == -1 ? step : 0;
  }

  // L pixels from the i-th of the result's on. Of three bytes a fourth is read with them, but where the row's last
  // pixel is among them.
  RT_INLINE Colors picked(const uint8_t* x, int64_t i) const {
    const int32_t* const at = a_.columns.first + i;
    Integers words{};
    if constexpr (channels == 1) {
      for (int64_t k = 0; k < L; ++k) words[k] = x[at[k]];
    } else {
      uint32_t read[L] = {};
      if (std::max(at[0], at[L - 1]) + 1 < a_.width) {
        for (int64_t k = 0; k < L; ++k) std::memcpy(read + k, x + 3 * at[k], 4);
      } else {
        for (int64_t k = 0; k < L; ++k) std::memcpy(read + k, x + 3 * at[k], 3);
      }
      words = load<Integers>(reinterpret_cast<const int32_t*>(read));
    }
    Colors v{};
    for (int c = 0; c < channels; ++c) v.channel[c] = __builtin_convertvector(words >> 8 * c & 255, Pixels);
    return v;
  }

  // The last vector may have what the one before it has.
  template <int step>
  void row(const uint8_t* x, T* y) const {
    const int64_t n = a_.columns.out;
    const int32_t* const first = a_.columns.first;
    const View<const uint8_t, channels, channels == 3> in{x + std::min(first[0], first[n - 1]) * channels, 0};
    const bool planes = a_.column_stride == 1;
    for (int64_t i = 0; i < n; i += L) {
      i = std::min(i, n - L);
      Colors v = step == 0 ? picked(x, i) : in.get(step < 0 ? n - L - i : i, L, std::true_type());
      for (int c = 0; c < channels; ++c) {
        Pixels& x = v.channel[c];
        if (step < 0) x = rusttorch::lanes_of(x, x, [](int64_t k) { return L - 1 - k; });
        if (!std::is_same_v<T, uint8_t>) x = x * a_.scale[c] + a_.bias[c];
      }
      if (!planes && channels == 3) v = together(v);
      for (int c = 0; c < channels; ++c)
        put_levels(y + (planes ? i + c * a_.channel_stride : channels * i + c * L), v.channel[c]);
    }
  }
  static RT_INLINE void put_levels(T* y, Pixels v) {
    if constexpr (std::is_same_v<T, uint8_t>) {
      rusttorch::store_pixels(y, v);
    } else {
      put(y, v, L);
    }
  }

  const ImageArgs& a_;
};

template <class T>
void run_as(const ImageArgs& a) {
  if (Copy<T, 3>::takes(a)) return Copy<T, 3>(a).run();
  if (Copy<T, 1>::takes(a)) return Copy<T, 1>(a).run();
  Resample<T>(a).run();
}
void run(const ImageArgs& a) {
  with_type<floats | 1 << int(Dtype::b8)>(a.dtype, [&](auto t) { run_as<decltype(t)>(a); });
}

}  // namespace
}  // namespace rusttorch

RUSTTORCH_DEFINE_TABLE(image, ImageArgs, {&run, floats | 1 << int(Dtype::b8)})
