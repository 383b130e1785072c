#include "color.h"

#include <array>
#include <cmath>

#include "pixels.h"

namespace rusttorch {
namespace {

constexpr int64_t at_once = 512;  // pixels, which stay in the first cache from step to step

// A step of one image, with what the image itself says of it.
struct Step {
  ColorStep which;
  float factor;
  float offset[3], range[3];                 // contrast, autocontrast
  std::array<std::array<float, 256>, 3> to;  // equalize
};

// Some of an image's pixels, as floats. What is beyond them in the last vector is of no account.
template <int channels>
class Block {
 public:
  int64_t count;

  RT_INLINE Colors get(int64_t i) const {
    Colors x{};
    for (int c = 0; c < channels; ++c) x.channel[c] = load<Pixels>(pixels_[c] + i);
    return x;
  }
  RT_INLINE void put(int64_t i, const Colors& x) {
    for (int c = 0; c < channels; ++c) store(pixels_[c] + i, x.channel[c]);
  }
  float* channel(int c) { return pixels_[c]; }

 private:
  alignas(vector_bytes) float pixels_[channels][at_once];
};

template <int channels, class F>
RT_INLINE Colors each_channel(Colors x, F f) {
  for (int c = 0; c < channels; ++c) x.channel[c] = f(c, x.channel[c]);
  return x;
}
template <class T, int channels>
RT_INLINE Pixels gray_of(const Colors& x) {
  if constexpr (channels == 1) {
    return x.channel[0];
  } else {
    return rounded_down<T>(x.channel[0] * 0.2989f + x.channel[1] * 0.587f + x.channel[2] * 0.114f);
  }
}

// Red, green and blue of the same value and saturation, with the hue turned by a part of all the way round. The value
// is the largest of them; what is below it, of each channel, rises and falls with the hue.
template <class T>
RT_INLINE Colors turned(const Colors& x, float by) {
  const Pixels r = x.channel[0], g = x.channel[1], b = x.channel[2];
  const Pixels value = largest(largest(r, g), b), range = value - smallest(smallest(r, g), b);
  const Pixels sixth = select(range > 0.f, 1 / range, Pixels{});
  const Pixels hue = select(value == r, (g - b) * sixth, select(value == g, (b - r) * sixth + 2, (r - g) * sixth + 4));
  Colors out;
  constexpr float first[3] = {5, 3, 1};
  for (int c = 0; c < 3; ++c) {
    Pixels k = hue + (first[c] + 6 * by);  // from -1 + 1 - 3 on, to 5 + 5 + 3
    k = k < 0.f ? k + 6 : k;
    k = k >= 6.f ? k - 6 : k;
    k = k >= 6.f ? k - 6 : k;
    const Pixels below = at_most(at_least(lesser(k, Pixels(4 - k)), 0.f), 1.f);
    // Bytes go by way of floats, of which each has the same share of those from 0 to 1.
    const Pixels v = value - range * below;
    out.channel[c] = std::is_same_v<T, uint8_t> ? rounded_down<T>(v * (255.999f / 255.f)) : v;
  }
  return out;
}

// f(formula) with what a step makes of colors; equalize() is not one.
template <class T, int channels, class F>
RT_INLINE void with_formula(const Step& step, F f) {
  constexpr bool bytes = std::is_same_v<T, uint8_t>;
  const auto by_channel = [&](auto map) { f([map](const Colors& x) { return each_channel<channels>(x, map); }); };
  const float factor = step.factor, rest = 1 - factor;
  switch (step.which) {
    case ColorStep::none:
    case ColorStep::equalize: return;
    case ColorStep::brightness:
      return by_channel([=](int, Pixels x) { return rounded_down<T>(within_range<T>(x * factor)); });
    case ColorStep::contrast: {
      const float offset = step.offset[0];
      return by_channel([=](int, Pixels x) { return rounded_down<T>(within_range<T>(x * factor + offset)); });
    }
    case ColorStep::saturation:
      return f([=](const Colors& x) {
        const Pixels gray = gray_of<T, channels>(x) * rest;
        const auto blend = [&](int, Pixels v) { return rounded_down<T>(within_range<T>(v * factor + gray)); };
        return each_channel<channels>(x, blend);
      });
    case ColorStep::hue: return f([=](const Colors& x) { return turned<T>(x, factor); });
    case ColorStep::invert: return by_channel([](int, Pixels x) { return Pixels(white<T> - x); });
    case ColorStep::solarize:
      return by_channel([=](int, Pixels x) { return select(x >= factor, Pixels(white<T> - x), x); });
    case ColorStep::posterize: {
      // Of bytes the multiple of 2^(8 - bits) below; of floats, of so many levels the one below.
      const float levels = float(1 << int(std::min(bytes ? 8.f : 23.f, std::max(0.f, factor))));
      const float in = bytes ? levels / 256 : levels, out = 1 / in;
      return by_channel([=](int, Pixels x) {
        const Pixels level = trunc(Pixels(x * in));
        return Pixels((bytes ? level : at_most(at_least(level, 0.f), levels - 1)) * out);
      });
    }
    case ColorStep::autocontrast: {
      const auto offset = std::to_array(step.offset), range = std::to_array(step.range);
      return by_channel([=](int c, Pixels x) {
        // (A quotient, so that the brightest is white.)
        const Pixels v = bytes ? (x - offset[size_t(c)]) * white<T> / range[size_t(c)]
                               : (x - offset[size_t(c)]) * (1 / range[size_t(c)]);
        return rounded_down<T>(within_range<T>(v));
      });
    }
  }
}

template <class T, int channels, bool interleaved>
class Image {
 public:
  using Pieces = Block<channels>;

  // Of all its pixels, those from begin to end are changed.
  Image(const T* in, T* out, int64_t pixels, int64_t begin, int64_t end, bool stream)
      : in_{in, pixels}, out_{out, pixels, stream}, pixels_(pixels), begin_(begin), end_(end) {}

  void change(const int64_t* which, const float* factors, int64_t count, Step* steps) {
    int64_t made = 0;
    for (int64_t k = 0; k < count; ++k) {
      Step& step = steps[made];
      step.which = ColorStep(which[k]);
      step.factor = factors[k];
      if (!does(step.which)) continue;
      look(step, steps, made);
      ++made;
    }
    if (made == 0) {
      if (in_.image != out_.image) {
        each_run([&](int64_t at, int64_t n) { std::memcpy(out_.image + at, in_.image + at, size_t(n) * sizeof(T)); });
      }
    } else if (made == 1 && is_bytes && steps[0].which == ColorStep::equalize) {
      equalize_bytes(steps[0]);
    } else if (made == 1 && is_bytes && is_of_bits(steps[0].which)) {
      each_run([&](int64_t at, int64_t n) { change_bits(steps[0], in_.image + at, out_.image + at, n); });
    } else if (made == 1 && steps[0].which != ColorStep::equalize) {
      const bool looks = steps[0].which == ColorStep::contrast || steps[0].which == ColorStep::autocontrast;
      with_formula<T, channels>(steps[0], [&](auto formula) {
        along(end_ - begin_, [&](int64_t k, auto whole) {
          const int64_t i = begin_ + k;
          if (whole && looks) fetch_next(i);
          out_.put(i, end_ - i, formula(in_.get(i, end_ - i, whole)), whole);
        });
      });
    } else {
      each_block(begin_, end_, steps, made, [&](Pieces& block, int64_t begin) {
        along(block.count, [&](int64_t i, auto whole) { out_.put(begin + i, block.count - i, block.get(i), whole); });
      });
    }
  }

 private:
  static constexpr bool is_bytes = std::is_same_v<T, uint8_t>;
  static constexpr int64_t step_of_pixels = interleaved ? 3 : 1;
  template <class P>
  P channel_of(P image, int c) const {
    return image + c * (interleaved ? 1 : pixels_);
  }

  // The same pixels of the image after this one, which is looked at while nothing can be written.
  RT_INLINE void fetch_next(int64_t i) const {
    if (is_bytes) return;
    for (int k = 0; k < channels; ++k) {
      const int64_t at = interleaved ? 3 * i + k * lanes<Pixels> : k * pixels_ + i;
      _mm_prefetch(reinterpret_cast<const char*>(in_.image + channels * pixels_ + at), _MM_HINT_T1);
    }
  }

  static bool does(ColorStep which) {
    const bool is_colored = channels == 3;
    return which != ColorStep::none && (is_colored || (which != ColorStep::saturation && which != ColorStep::hue));
  }

  // f(at, n) for the numbers that are side by side.
  template <class F>
  void each_run(F f) const {
    constexpr int64_t planes = interleaved ? 1 : channels, size = interleaved ? channels : 1;
    if (end_ - begin_ == pixels_) return f(0, channels * pixels_);
    for (int64_t c = 0; c < planes; ++c) f(c * pixels_ + begin_ * size, (end_ - begin_) * size);
  }

  // What is done to bytes as they are.
  static bool is_of_bits(ColorStep which) {
    return which == ColorStep::invert || which == ColorStep::solarize || which == ColorStep::posterize;
  }
  template <class B>
  static void change_bits(const Step& step, const B* x, B* y, int64_t n) {
    using V = Vector<uint8_t>;
    const auto each = [&](auto formula) {
      int64_t i = 0;
      for (; i + vector_bytes <= n; i += vector_bytes) store(y + i, V(formula(load<V>(x + i))));
      if (i == n) return;
      uint8_t last[vector_bytes] = {};
      std::memcpy(last, x + i, size_t(n - i));
      store(last, V(formula(load<V>(last))));
      std::memcpy(y + i, last, size_t(n - i));
    };
    if (step.which == ColorStep::posterize) {
      const int bits = int(std::min(8.f, std::max(0.f, step.factor)));
      const auto kept = uint8_t(256 - (1 << (8 - bits)));
      return each([=](V v) { return v & kept; });
    }
    const bool all = step.which == ColorStep::invert || step.factor <= 0;
    if (!all && !(step.factor <= 255)) return each([](V v) { return v; });
    const auto least = all ? uint8_t(0) : uint8_t(std::ceil(step.factor));
    each([=](V v) { return v ^ V(v >= least); });
  }

  template <class F>
  void each_block(int64_t first, int64_t end, const Step* steps, int64_t count, F f) {
    Pieces block;
    for (int64_t begin = first; begin < end; begin += at_once) {
      block.count = std::min(at_once, end - begin);
      along(block.count, [&](int64_t i, auto whole) { block.put(i, in_.get(begin + i, block.count - i, whole)); });
      for (int64_t k = 0; k < count; ++k) apply(steps[k], block);
      f(block, begin);
    }
  }

  static void apply(const Step& step, Pieces& block) {
    if (step.which == ColorStep::equalize) return equalize(step, block);
    with_formula<T, channels>(
        step, [&](auto formula) { along(block.count, [&](int64_t i, auto) { block.put(i, formula(block.get(i))); }); });
  }

  // What a step asks of the whole image, as the steps before it leave it.
  void look(Step& step, const Step* before, int64_t count) {
    switch (step.which) {
      case ColorStep::contrast: return look_at_mean(step, before, count);
      case ColorStep::autocontrast: return look_at_range(step, before, count);
      case ColorStep::equalize: return look_at_counts(step, before, count);
      default: return;
    }
  }

  // f(count, get) for the pixels as the steps before leave them, so many at a time: get(i, whole) is of those from i
  // on.
  template <class F>
  RT_INLINE void each_before(const Step* before, int64_t count, F f) {
    if (count > 0) {
      return each_block(0, pixels_, before, count,
                        [&](Pieces& block, int64_t) { f(block.count, [&](int64_t i, auto) { return block.get(i); }); });
    }
    for (int64_t begin = 0; begin < pixels_; begin += at_once) {
      const int64_t n = std::min(at_once, pixels_ - begin);
      f(n, [&](int64_t i, auto whole) { return in_.get(begin + i, n - i, whole); });
    }
  }

  void look_at_mean(Step& step, const Step* before, int64_t count) {
    double sum = 0;
    each_before(before, count, [&](int64_t n, auto get) {
      Pixels part{};
      along(n, [&](int64_t i, auto whole) {
        const Pixels gray = gray_of<T, channels>(get(i, whole));
        part += whole ? gray : keep_part(gray, n - i, 0);
      });
      sum += double(sum_lanes(part));
    });
    step.offset[0] = float(sum / double(pixels_)) * (1 - step.factor);
  }

  void look_at_range(Step& step, const Step* before, int64_t count) {
    constexpr float infinity = std::numeric_limits<float>::infinity();
    Pixels least[channels], most[channels];
    for (int c = 0; c < channels; ++c) {
      least[c] = splat<Pixels>(infinity);
      most[c] = -least[c];
    }
    each_before(before, count, [&](int64_t n, auto get) {
      along(n, [&](int64_t i, auto whole) {
        const Colors x = get(i, whole);
        for (int c = 0; c < channels; ++c) {
          const Pixels v = x.channel[c];
          least[c] = smallest(least[c], whole ? v : keep_part(v, n - i, infinity));
          most[c] = largest(most[c], whole ? v : keep_part(v, n - i, -infinity));
        }
      });
    });
    for (int c = 0; c < channels; ++c) {
      const float low = fold_lanes(least[c], [](auto a, auto b) { return smallest(a, b); });
      const float high = fold_lanes(most[c], [](auto a, auto b) { return largest(a, b); });
      step.offset[c] = low == high ? 0 : low;
      step.range[c] = low == high ? white<T> : high - low;
    }
  }

  // One after the other of the same value would wait for each other, so they are counted side by side.
  static constexpr int64_t side_by_side = 4;
  using Counts = int32_t[side_by_side][256];
  template <class B>
  static void count_bytes(const B* x, int64_t step, int64_t count, Counts& counts) {
    int64_t i = 0;
    for (; i + side_by_side <= count; i += side_by_side) {
      for (int64_t k = 0; k < side_by_side; ++k) ++counts[k][uint8_t(x[(i + k) * step])];
    }
    for (; i < count; ++i) ++counts[0][uint8_t(x[i * step])];
  }

  // Values are counted as bytes, and each goes to how many are below it, from 0 for the least to 255 for the most.
  static void to_bytes(const float* x, int64_t count, int32_t* to) {
    along(count, [&](int64_t i, auto) {
      Pixels v = load<Pixels>(x + i);
      if (!std::is_same_v<T, uint8_t>) v *= 255.999f;
      v = lesser(greater(v, Pixels{}), splat<Pixels>(255));  // NaN to 0
      store(to + i, __builtin_convertvector(v, PixelIndices));
    });
  }
  void look_at_counts(Step& step, const Step* before, int64_t count) {
    Counts counts[channels] = {};
    if (is_bytes && count == 0) {
      for (int c = 0; c < channels; ++c) count_bytes(channel_of(in_.image, c), step_of_pixels, pixels_, counts[c]);
    } else {
      each_block(0, pixels_, before, count, [&](Pieces& block, int64_t) {
        int32_t bytes[at_once];
        for (int c = 0; c < channels; ++c) {
          to_bytes(block.channel(c), block.count, bytes);
          count_bytes(bytes, 1, block.count, counts[c]);
        }
      });
    }
    for (int c = 0; c < channels; ++c) {
      int64_t total[256], last = 0, below = 0;
      for (int v = 0; v < 256; ++v) {
        total[v] = 0;
        for (const auto& part : counts[c]) total[v] += part[v];
        if (total[v] > 0) last = v;
      }
      const int64_t each = (pixels_ - total[last]) / 255;
      for (int v = 0; v < 256; ++v) {
        const int64_t byte = each == 0 ? v : std::min<int64_t>((below + each / 2) / each, 255);
        step.to[size_t(c)][size_t(v)] = std::is_same_v<T, uint8_t> ? float(byte) : float(byte) / 255;
        below += total[v];
      }
    }
  }
  void equalize_bytes(const Step& step) const {
    for (int c = 0; c < channels; ++c) {
      uint8_t to[256];
      for (int v = 0; v < 256; ++v) to[v] = uint8_t(step.to[size_t(c)][size_t(v)]);
      const T* x = channel_of(in_.image, c);
      T* y = channel_of(out_.image, c);
      for (int64_t i = begin_; i < end_; ++i) y[i * step_of_pixels] = to[uint8_t(x[i * step_of_pixels])];
    }
  }
  static void equalize(const Step& step, Pieces& block) {
    int32_t bytes[at_once];
    for (int c = 0; c < channels; ++c) {
      float* x = block.channel(c);
      const float* to = step.to[size_t(c)].data();
      to_bytes(x, block.count, bytes);
      for (int64_t i = 0; i < block.count; ++i) x[i] = to[bytes[i]];
    }
  }

  View<const T, channels, interleaved> in_;
  View<T, channels, interleaved> out_;
  int64_t pixels_, begin_, end_;
};

template <class T, int channels, bool interleaved>
void change(const ColorArgs& a) {
  Step steps[color_most_steps];
  for (int64_t n = 0; n < a.images; ++n) {
    const int64_t at = n * a.channels * a.pixels;
    T* out = static_cast<T*>(a.out) + at;
    const bool stream =
        a.stream && a.pixels % lanes<Pixels> == 0 && reinterpret_cast<uintptr_t>(out) % vector_bytes == 0;
    const int64_t begin = a.begin * color_unit, end = std::min(a.end * color_unit, a.pixels);
    Image<T, channels, interleaved> image(static_cast<const T*>(a.in) + at, out, a.pixels, begin, end, stream);
    image.change(a.which + n * a.steps, a.factors + n * a.steps, a.steps, steps);
  }
  if (a.stream) _mm_sfence();
}

template <class T>
void change(const ColorArgs& a) {
  if (a.channels == 1) return change<T, 1, false>(a);
  a.interleaved ? change<T, 3, true>(a) : change<T, 3, false>(a);
}
void change(const ColorArgs& a) { a.bytes ? change<uint8_t>(a) : change<float>(a); }

// n numbers, of which each takes the next of `period` factors; or all the same, of a period of 0.
template <bool stream, bool repeats, class T>
void scale_row(const T* x, float* y, int64_t n, const float* scale, const float* shift, int64_t period) {
  int64_t at = 0;
  Pixels a = splat<Pixels>(*scale), b = splat<Pixels>(*shift);
  along(n, [&](int64_t i, auto whole) {
    if (repeats) {
      a = load<Pixels>(scale + at);
      b = load<Pixels>(shift + at);
      if ((at += lanes<Pixels>) == period) at = 0;
    }
    if (whole) {
      fetch_ahead(x + i);
      const Pixels v = load_pixels(x + i) * a + b;
      stream ? stream_out(y + i, v) : store_pixels(y + i, v);
    } else {
      store_pixels(y + i, load_pixels(x + i, n - i) * a + b, n - i);
    }
  });
}

template <class T>
void scale_and_shift(const NormalizeArgs& a) {
  for (int64_t row = a.begin; row < a.end; ++row) {
    const T* x = static_cast<const T*>(a.in) + row * a.n;
    float* y = a.out + row * a.n;
    const int64_t c = a.interleaved ? 0 : row % a.channels, period = a.interleaved ? a.channels * normalize_period : 0;
    const bool stream = a.stream && reinterpret_cast<uintptr_t>(y) % vector_bytes == 0;
    const auto run = a.interleaved ? (stream ? scale_row<true, true, T> : scale_row<false, true, T>)
                                   : (stream ? scale_row<true, false, T> : scale_row<false, false, T>);
    run(x, y, a.n, a.scale + c, a.shift + c, period);
  }
  if (a.stream) _mm_sfence();
}
void scale_and_shift(const NormalizeArgs& a) { a.bytes ? scale_and_shift<uint8_t>(a) : scale_and_shift<float>(a); }

// As lerp, from the nearer of the two.
template <bool stream>
void mix_row(const float* x, const float* before, float* y, int64_t n, float kept) {
  const float* const nearer = kept < 0.5f ? before : x;
  const float part = kept < 0.5f ? kept : kept - 1;
  along(n, [&](int64_t i, auto whole) {
    if (whole) fetch_ahead(x + i);
    const int64_t left = whole ? lanes<Pixels> : n - i;
    const Pixels apart = load_pixels(x + i, left) - load_pixels(before + i, left);
    const Pixels v = load_pixels(nearer + i, left) + apart * part;
    stream&& whole ? stream_out(y + i, v) : store_pixels(y + i, v, left);
  });
}
void with_before(const MixArgs& a) {
  for (int64_t row = a.begin; row < a.end; ++row) {
    const int64_t image = row / a.channels, back = (image > 0 ? 1 : 1 - a.images) * a.channels * a.n;
    const float* x = a.in + row * a.n;
    float* y = a.out + row * a.n;
    const bool stream = a.stream && reinterpret_cast<uintptr_t>(y) % vector_bytes == 0;
    (stream ? mix_row<true> : mix_row<false>)(x, x - back, y, a.n, a.kept[image]);
  }
  if (a.stream) _mm_sfence();
}

}  // namespace
}  // namespace rusttorch

RUSTTORCH_DEFINE_TABLE(color, ColorArgs, {&change})
RUSTTORCH_DEFINE_TABLE(normalize, NormalizeArgs, {&scale_and_shift})
RUSTTORCH_DEFINE_TABLE(mix, MixArgs, {&with_before})
