#include "filter.h"

#include <cmath>

#include "pixels.h"

namespace rusttorch {
namespace {

// Of numbers with a place from -size + 1 to 2 size - 2, the place mirrored about the first and the last.
int64_t mirrored(int64_t i, int64_t size) { return i < 0 ? -i : i < size ? i : 2 * (size - 1) - i; }

// Rows first, which are kept until they are no longer needed, then columns of them.
template <class T>
class Blur {
 public:
  Blur(const FilterArgs& a, int64_t image, int64_t plane)
      : a_(a),
        n_(a.width * a.step),
        pitch_(filter_pitch(a)),
        weights_(a.down + image * a.taps_down),
        across_(a.across + image * a.taps_across) {
    const int64_t start = (image * a.planes + plane) * a.height * n_;
    in_ = static_cast<const T*>(a.in) + start;
    out_ = static_cast<T*>(a.out) + start;
    kept_ = static_cast<float*>(a.scratch);
    whole_ = kept_ + a.taps_down * pitch_;
    seen_across_ = seen(across_, a.taps_across);
    seen_down_ = seen(weights_, a.taps_down);
  }

  void run() {
    const int64_t half = a_.taps_down / 2;
    int64_t there = std::max<int64_t>(0, a_.begin - half);
    for (int64_t y = a_.begin; y < a_.end; ++y) {
      for (; there < std::min(a_.height, y + half + 1); ++there) add_row(there);
      write_row(y);
    }
  }

 private:
  // How many weights in the middle are not too small, beside the largest, to be seen in a float.
  static int64_t seen(const float* weights, int64_t taps) {
    constexpr float least = 0x1p-26f;
    float largest = 0;
    for (int64_t k = 0; k < taps; ++k) largest = std::max(largest, std::abs(weights[k]));
    int64_t out = 0;
    while (taps - 2 * out > 1 && std::abs(weights[out]) < least * largest &&
           std::abs(weights[taps - 1 - out]) < least * largest) {
      ++out;
    }
    return taps - 2 * out;
  }

  // Row y lies in its place until the row `taps_down` after it. Those mirrored about an edge are not farther from y
  // than half of the taps.
  float* kept(int64_t y) { return kept_ + y % a_.taps_down * pitch_; }

  void add_row(int64_t y) {
    const T* x = in_ + y * n_;
    const int64_t half = a_.taps_across / 2, step = a_.step;
    float* middle = whole_ + half * step;
    for (int64_t i = 0; i < n_; i += lanes<Pixels>) store_pixels(middle + i, load_pixels(x + i, n_ - i), n_ - i);
    for (int64_t k = 1; k <= half; ++k) {
      for (int64_t c = 0; c < step; ++c) {
        middle[c - k * step] = middle[mirrored(-k, a_.width) * step + c];
        middle[n_ + (k - 1) * step + c] = middle[mirrored(a_.width - 1 + k, a_.width) * step + c];
      }
    }
    const int64_t from = (a_.taps_across - seen_across_) / 2;
    float* to = kept(y);
    each_sum(
        across_ + from, seen_across_, [&](int64_t k) { return whole_ + (from + k) * step; },
        [&](int64_t i, Pixels v) { store(to + i, v); });
  }

  void write_row(int64_t y) {
    const int64_t from = (a_.taps_down - seen_down_) / 2;
    const float* rows[filter_most_taps];
    for (int64_t k = 0; k < seen_down_; ++k) rows[k] = kept(mirrored(y + k - seen_down_ / 2, a_.height));
    T* to = out_ + y * n_;
    each_sum(
        weights_ + from, seen_down_, [&](int64_t k) { return rows[k]; },
        [&](int64_t i, Pixels v) { store_pixels(to + i, rounded<T>(v), n_ - i); });
  }

  // put(i, sum of weights[k] from(k)[i]). What is read beyond a row is room in the scratch.
  template <class From, class Put>
  RT_INLINE void each_sum(const float* weights, int64_t taps, From from, Put put) {
    constexpr int64_t side_by_side = 4, L = lanes<Pixels>;
    int64_t i = 0;
    for (; i + side_by_side * L <= n_; i += side_by_side * L) {
      Pixels sum[side_by_side] = {};
      for (int64_t k = 0; k < taps; ++k) {
        const float* x = from(k) + i;
        for (int64_t j = 0; j < side_by_side; ++j) sum[j] += load<Pixels>(x + j * L) * weights[k];
      }
      for (int64_t j = 0; j < side_by_side; ++j) put(i + j * L, sum[j]);
    }
    for (; i < n_; i += L) {
      Pixels sum{};
      for (int64_t k = 0; k < taps; ++k) sum += load<Pixels>(from(k) + i) * weights[k];
      put(i, sum);
    }
  }

  const FilterArgs& a_;
  int64_t n_, pitch_;
  const float *weights_, *across_;
  const T* in_;
  T* out_;
  float *kept_, *whole_;
  int64_t seen_across_, seen_down_;
};

template <class T>
void sharpen(const FilterArgs& a, const T* in, T* out, float factor) {
  const int64_t n = a.width * a.step, step = a.step, inner = n - 2 * step;
  const auto copy_row = [&](int64_t y) { std::memcpy(out + y * n, in + y * n, size_t(n) * sizeof(T)); };
  if (a.height <= 2 || a.width <= 2 || factor == 1) {
    for (int64_t y = a.begin; y < a.end; ++y) copy_row(y);
    return;
  }
  if (a.begin == 0) copy_row(0);
  if (a.end == a.height) copy_row(a.height - 1);
  float* columns = static_cast<float*>(a.scratch);
  for (int64_t y = std::max<int64_t>(1, a.begin); y < std::min(a.height - 1, a.end); ++y) {
    const T* x = in + y * n;
    T* to = out + y * n;
    for (int64_t i = 0; i < n; i += lanes<Pixels>) {
      const int64_t left = n - i;
      store(columns + i,
            Pixels(load_pixels(x + i - n, left) + load_pixels(x + i, left) + load_pixels(x + i + n, left)));
    }
    std::memcpy(to, x, size_t(step) * sizeof(T));
    for (int64_t i = step; i < step + inner; i += lanes<Pixels>) {
      const Pixels middle = load_pixels(x + i, n - i);
      const Pixels sum =
          load<Pixels>(columns + i - step) + load<Pixels>(columns + i) + load<Pixels>(columns + i + step);
      const Pixels blurred = rounded<T>((sum + middle * 4) * (1.f / 13));
      const Pixels v = middle + (blurred - middle) * (1 - factor);
      store_pixels(to + i, rounded_down<T>(within_range<T>(v)), step + inner - i);
    }
    std::memcpy(to + n - step, x + n - step, size_t(step) * sizeof(T));
  }
}

template <class T>
void blur(const FilterArgs& a) {
  for (int64_t n = 0; n < a.images; ++n) {
    for (int64_t p = 0; p < a.planes; ++p) Blur<T>(a, n, p).run();
  }
}
void blur(const FilterArgs& a) { a.bytes ? blur<uint8_t>(a) : blur<float>(a); }

template <class T>
void sharpen(const FilterArgs& a) {
  const int64_t size = a.height * a.width * a.step;
  for (int64_t p = 0; p < a.images * a.planes; ++p) {
    sharpen(a, static_cast<const T*>(a.in) + p * size, static_cast<T*>(a.out) + p * size, a.across[p / a.planes]);
  }
}
void sharpen(const FilterArgs& a) { a.bytes ? sharpen<uint8_t>(a) : sharpen<float>(a); }

}  // namespace
}  // namespace rusttorch

RUSTTORCH_DEFINE_TABLE(filter, FilterArgs, {&blur}, {&sharpen})
