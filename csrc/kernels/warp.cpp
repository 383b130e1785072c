#include "warp.h"

#include "pixels.h"

namespace rusttorch {
namespace {

using One = Vector<float, 16>;  // a pixel
RT_INLINE One one_pixel(const float* p) { return load<One>(p); }
RT_INLINE One one_pixel(const uint8_t* p) { return load_bytes<One>(p); }
#if defined(__AVX2__)
using Two = Vector<float, 32>;  // and the one to its right
RT_INLINE Two two_pixels(const float* p) { return load<Two>(p); }
RT_INLINE Two two_pixels(const uint8_t* p) { return load_bytes<Two>(p); }
RT_INLINE One first(const Two& v) { return _mm256_castps256_ps128(v); }
RT_INLINE One second(const Two& v) { return _mm256_extractf128_ps(v, 1); }
#else
struct Two {
  One a, b;
  RT_INLINE friend Two operator+(const Two& x, const Two& y) { return {x.a + y.a, x.b + y.b}; }
  RT_INLINE friend Two operator-(const Two& x, const Two& y) { return {x.a - y.a, x.b - y.b}; }
  RT_INLINE friend Two operator*(float f, const Two& x) { return {f * x.a, f * x.b}; }
};
template <class T>
RT_INLINE Two two_pixels(const T* p) {
  return {one_pixel(p), one_pixel(p + warp_channels)};
}
RT_INLINE One first(const Two& v) { return v.a; }
RT_INLINE One second(const Two& v) { return v.b; }
#endif

// Red, green and blue of a vector's pixels, as pixels of four channels, and back.
template <int part>
RT_INLINE Pixels four_channels(const Colors& x) {
  constexpr int64_t n = lanes<Pixels>, first = part * n / 4;
  const Pixels two = lanes_of(x.channel[0], x.channel[1], [](int64_t i) { return i % 2 * n + first + i / 4; });
  return lanes_of(two, x.channel[2], [](int64_t i) { return i % 4 < 2 ? i : n + first + i / 4; });
}
template <class T>
RT_INLINE void store_fours(T* to, const Colors& x) {
  constexpr int64_t n = lanes<Pixels>;
  store_pixels(to, four_channels<0>(x));
  store_pixels(to + n, four_channels<1>(x));
  store_pixels(to + 2 * n, four_channels<2>(x));
  store_pixels(to + 3 * n, four_channels<3>(x));
}
template <int c>
RT_INLINE Pixels channel_of(const float* x) {
  constexpr int64_t n = lanes<Pixels>;
  const auto every_fourth = [](int64_t i) { return 4 * (i % (n / 2)) + c; };
  const Pixels low = lanes_of(load<Pixels>(x), load<Pixels>(x + n), every_fourth);
  const Pixels high = lanes_of(load<Pixels>(x + 2 * n), load<Pixels>(x + 3 * n), every_fourth);
  return lanes_of(low, high, [](int64_t i) { return i < n / 2 ? i : n / 2 + i; });
}

// Up to four channels of an image.
template <class T, bool bilinear>
class Warp {
 public:
  Warp(const WarpArgs& a, int64_t image, int64_t channel)
      : a_(a),
        channels_(std::min(warp_channels, a.channels - channel)),
        in_(static_cast<const T*>(a.in) + start(image, channel, a.in_height * a.in_width)),
        out_(static_cast<T*>(a.out) + start(image, channel, a.out_height * a.out_width)),
        matrix_(a.matrix + 9 * image),
        pitch_(a.in_width + 2 * warp_border) {
    float* const rows = reinterpret_cast<float*>(static_cast<char*>(a.scratch) + warp_source(a));
    sampled_ = rows;
    right_ = rows + warp_channels * warp_pitch(a);
    below_ = right_ + warp_pitch(a);
    at_ = reinterpret_cast<int32_t*>(below_ + warp_pitch(a));
    for (int64_t c = 0; c < channels_; ++c) fill_[c] = a.fill[channel + c];
    const float* box = a.box ? a.box + 4 * image : nullptr;
    for (int d = 0; d < 2; ++d) {
      // In the copy, where the border is twice as wide as what a pixel is sampled from: all of it may be beyond.
      const float last = float((d == 0 ? a.in_width : a.in_height) + warp_border);
      least_[d] = box ? std::min(last, std::max(0.f, box[d] + warp_border)) : 0;
      most_[d] = box ? std::min(last, std::max(least_[d], box[2 + d] - 1 + warp_border)) : last;
    }
  }

  void run() {
    const double* m = matrix_;
    const bool affine = m[6] == 0 && m[7] == 0 && m[8] == 1;
    if (bilinear && affine && m[1] == 0 && m[3] == 0 && (a_.channels == 3 || a_.channels == 1) && has_box()) {
      if (a_.channels == 1) return run_upright(View<const T, 1, false>{in_, 0});
      return a_.interleaved ? run_upright(View<const T, 3, true>{in_, 0})
                            : run_upright(View<const T, 3, false>{in_, a_.in_height * a_.in_width});
    }
    copy();
    for (int64_t y = a_.begin; y < a_.end; ++y) {
      affine ? locate<true>(y) : locate<false>(y);
      sample();
      write(y);
    }
  }

 private:
  int64_t start(int64_t image, int64_t channel, int64_t pixels) const {
    return image * a_.channels * pixels + channel * (a_.interleaved ? 1 : pixels);
  }

  // Whether all that is read lies in the image.
  bool has_box() const {
    const auto in = [&](int d, int64_t size) {
      return least_[d] >= warp_border && most_[d] <= float(size - 1 + warp_border);
    };
    return a_.box && in(0, a_.in_width) && in(1, a_.in_height);
  }

  // Rows stay rows: two of them are blended, and then what is side by side in that. There is no copy.
  template <class In>
  void run_upright(const In& in) {
    float* const blended = static_cast<float*>(a_.scratch);
    // (Up to the column beyond what is read last, of which that may have a part.)
    const int64_t first = int64_t(least_[0]) - warp_border;
    const int64_t end = std::min(int64_t(most_[0]) - warp_border + 2, a_.in_width);
    locate<true>(0);
    const float* const start =
        blended - (at_[0] / (pitch_ * warp_channels) * pitch_ + warp_border + first) * warp_channels;
    for (int64_t y = a_.begin; y < a_.end; ++y) {
      const float at = float(matrix_[4] * (double(y) + 0.5) + matrix_[5] - 0.5 + double(warp_border));
      const float py = lesser(greater(at, least_[1]), most_[1]);
      const int64_t upper = int64_t(py) - warp_border, lower = std::min(upper + 1, a_.in_height - 1);
      const float below = py - float(int64_t(py));
      along(end - first, [&](int64_t i, auto whole) {
        const int64_t x = first + i, left = end - x;
        Colors v = in.get(upper * a_.in_width + x, left, whole);
        const Colors w = in.get(lower * a_.in_width + x, left, whole);
        for (int c = 0; c < 3; ++c) v.channel[c] += below * (w.channel[c] - v.channel[c]);
        store_fours(blended + i * warp_channels, v);
      });
      std::memcpy(blended + (end - first) * warp_channels, blended + (end - first - 1) * warp_channels, sizeof(One));
      each_sample([start](int32_t at, float right, float) {
        const One left = load<One>(start + at);
        return One(left + right * (load<One>(start + at + warp_channels) - left));
      });
      write(y);
    }
  }

  // Of a box only the rows that are read.
  void copy() {
    T* to = static_cast<T*>(a_.scratch);
    T border[warp_channels] = {};
    for (int64_t c = 0; c < channels_; ++c) border[c] = T(rounded<T>(splat<Pixels>(fill_[c]))[0]);
    const auto put_border = [&](int64_t pixels) {
      for (; pixels > 0; --pixels, to += warp_channels) std::memcpy(to, border, sizeof border);
    };
    put_border(warp_border * pitch_);
    for (int64_t y = 0; y < a_.in_height; ++y) {
      const float row = float(y + warp_border);
      if (row + 1 <= least_[1] || row > most_[1] + 1) {
        to += pitch_ * warp_channels;
        continue;
      }
      put_border(warp_border);
      copy_row(to, y * a_.in_width);
      to += a_.in_width * warp_channels;
      put_border(warp_border);
    }
    put_border(warp_border * pitch_);
  }

  void copy_row(T* to, int64_t at) const {
    if (a_.channels == 1) return copy_colors(to, View<const T, 1, false>{in_, 0}, at);
    if (a_.channels == 3) {
      return a_.interleaved ? copy_colors(to, View<const T, 3, true>{in_, 0}, at)
                            : copy_colors(to, View<const T, 3, false>{in_, a_.in_height * a_.in_width}, at);
    }
    const int64_t pixel = a_.interleaved ? a_.channels : 1, channel = a_.interleaved ? 1 : a_.in_height * a_.in_width;
    for (int64_t x = 0; x < a_.in_width; ++x) {
      for (int64_t c = 0; c < channels_; ++c) to[warp_channels * x + c] = in_[(at + x) * pixel + c * channel];
    }
  }
  template <class In>
  void copy_colors(T* to, const In& in, int64_t at) const {
    along(a_.in_width,
          [&](int64_t x, auto whole) { store_fours(to + x * warp_channels, in.get(at + x, a_.in_width - x, whole)); });
  }

  // Where a row's pixels are in the copy, and how far from there to the next to the right and below.
  template <bool affine>
  void locate(int64_t y) {
    const double* m = matrix_;
    const double shift = double(warp_border) - (bilinear ? 0.5 : 0);
    float start[3];
    for (int r = 0; r < 3; ++r) {
      start[r] = float(m[3 * r] * 0.5 + m[3 * r + 1] * (double(y) + 0.5) + m[3 * r + 2] + (affine ? shift : 0));
    }
    Pixels lane;
    for (int64_t i = 0; i < lanes<Pixels>; ++i) lane[i] = float(i);
    for (int64_t i = 0; i < a_.out_width; i += lanes<Pixels>) {
      const Pixels along = lane + float(i);
      Pixels px = along * float(m[0]) + start[0], py = along * float(m[3]) + start[1];
      if (!affine) {
        const Pixels w = along * float(m[6]) + start[2];
        px = px / w + float(shift);
        py = py / w + float(shift);
      }
      // (NaN to the least.)
      px = lesser(greater(px, splat<Pixels>(least_[0])), splat<Pixels>(most_[0]));
      py = lesser(greater(py, splat<Pixels>(least_[1])), splat<Pixels>(most_[1]));
      const PixelIndices ix = __builtin_convertvector(px, PixelIndices), iy = __builtin_convertvector(py, PixelIndices);
      store(at_ + i, PixelIndices((iy * int32_t(pitch_) + ix) * int32_t(warp_channels)));
      if (bilinear) {
        store(right_ + i, Pixels(px - __builtin_convertvector(ix, Pixels)));
        store(below_ + i, Pixels(py - __builtin_convertvector(iy, Pixels)));
      }
    }
  }

  void sample() const {
    each_sample(
        [copy = static_cast<const T*>(a_.scratch), row = pitch_ * warp_channels](int32_t at, float right, float below) {
          const T* p = copy + at;
          if constexpr (bilinear) {
            const Two top = two_pixels(p), bottom = two_pixels(p + row);
            const Two v = top + below * (bottom - top);
            return One(first(v) + right * (second(v) - first(v)));
          } else {
            return one_pixel(p);
          }
        });
  }

  // (What the loop reads is copied: a vector that is stored may be anything, to the compiler.)
  template <class F>
  RT_INLINE void each_sample(F f) const {
    const int32_t* const at = at_;
    const float *const right = right_, *const below = below_;
    float* const to = sampled_;
    const int64_t width = a_.out_width;
    for (int64_t i = 0; i < width; ++i) store(to + i * warp_channels, f(at[i], right[i], below[i]));
  }

  void write(int64_t y) const {
    const int64_t at = y * a_.out_width, plane = a_.out_height * a_.out_width;
    if (a_.channels == 1) return write_colors(View<T, 1, false>{out_, 0}, at);
    if (a_.channels == 3) {
      return a_.interleaved ? write_colors(View<T, 3, true>{out_, 0}, at)
                            : write_colors(View<T, 3, false>{out_, plane}, at);
    }
    const int64_t pixel = a_.interleaved ? a_.channels : 1, channel = a_.interleaved ? 1 : plane;
    for (int64_t i = 0; i < a_.out_width; ++i) {
      const Pixels v = result(load<Pixels>(sampled_ + i * warp_channels));
      for (int64_t c = 0; c < channels_; ++c) out_[(at + i) * pixel + c * channel] = T(v[c]);
    }
  }
  template <class Out>
  void write_colors(const Out& out, int64_t at) const {
    along(a_.out_width, [&](int64_t i, auto whole) {
      const float* x = sampled_ + i * warp_channels;
      const Colors v = {{result(channel_of<0>(x)), result(channel_of<1>(x)), result(channel_of<2>(x))}};
      out.put(at + i, a_.out_width - i, v, whole);
    });
  }
  static RT_INLINE Pixels result(Pixels v) { return bilinear ? rounded<T>(v) : v; }

  const WarpArgs& a_;
  int64_t channels_;
  const T* in_;
  T* out_;
  const double* matrix_;
  int64_t pitch_;
  float fill_[warp_channels] = {}, least_[2], most_[2];
  float *sampled_, *right_, *below_;
  int32_t* at_;
};

template <bool bilinear>
void run(const WarpArgs& a) {
  for (int64_t n = 0; n < a.images; ++n) {
    for (int64_t c = 0; c < a.channels; c += warp_channels) {
      a.bytes ? Warp<uint8_t, bilinear>(a, n, c).run() : Warp<float, bilinear>(a, n, c).run();
    }
  }
}

}  // namespace
}  // namespace rusttorch

RUSTTORCH_DEFINE_TABLE(warp, WarpArgs, {&run<false>}, {&run<true>})
