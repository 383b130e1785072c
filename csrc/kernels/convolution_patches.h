#pragma once

// Convolutions of images of few channels, as products of the filters and what each of their places reads: a line for
// each channel, row and column of a filter, with a number for each pixel of the output. So many rows of the output are
// worked on at once that their lines fit the second cache. With the channels last only the input's gradient has a
// kernel.

#include "convolution.h"
#include "convolution_phases.h"
#include "matmul_dots.h"

namespace rusttorch {
namespace {

enum class PatchesUse { lines, whole_row, padded, gradient, weight, sums, totals };

template <class T>
class Patches {
  using C = Compute<T>;
  using V = Vector<C>;
  static constexpr int64_t L = lanes<V>, line_numbers = cache_line / int64_t(sizeof(C));
  static constexpr int64_t dotted = dot_columns<V, C, C>(dot_rows);  // lines that are summed up at once

 public:
  explicit Patches(const ConvolutionArgs& a)
      : a_(a),
        taps_(a.rows.kernel * a.columns.kernel),
        places_(a.channels * taps_),
        plane_(a.rows.out * a.columns.out),
        // An odd number of cache lines, so that lines do not evict each other.
        pitch_((divide_up(rows_of_patches(a) * a.columns.out + tile_columns<V>, line_numbers) | 1) * line_numbers),
        phase_(divide_up((a.columns.out - 1) * a.columns.stride + reach(a.columns), a.columns.stride) + L),
        lines_(scratch<C, PatchesUse::lines>((places_ + 1 + dotted) * pitch_)) {}

  // Items: some rows of an image's output.
  void forward() const {
    const int64_t bands = bands_of_patches(a_), height = rows_of_patches(a_), k = places_ + 1;
    // The bias is the weight of a line of ones.
    C* const weight = scratch<C, PatchesUse::weight>(a_.filters * k);
    for (int64_t f = 0; f < a_.filters; ++f) {
      const T* const from = static_cast<const T*>(a_.weight) + f * places_;
      for (int64_t p = 0; p < places_; ++p) weight[f * k + p] = widen(from[p]);
      weight[f * k + places_] = a_.bias ? widen(static_cast<const T*>(a_.bias)[f]) : C(0);
    }
    std::fill_n(lines_ + places_ * pitch_, pitch_, C(1));
    for (int64_t item = a_.begin; item < a_.end; ++item) {
      const int64_t n = item / bands, first = item % bands * height, here = std::min(height, a_.rows.out - first);
      gather(n * a_.rows.out + first, here);
      T* const out = static_cast<T*>(a_.out) + n * a_.filters * plane_ + first * a_.columns.out;
      multiply(weight, a_.filters, k, lines_, here * a_.columns.out,
               [&](int64_t f, int64_t pixel) { return out + f * plane_ + pixel; });
    }
  }

  // Items: images.
  void backward_input() const {
    const int64_t height = rows_of_patches(a_), wide = a_.columns.out;
    C* const weight = scratch<C, PatchesUse::weight>(places_ * a_.filters);
    for (int64_t f = 0; f < a_.filters; ++f) {
      const T* const from = static_cast<const T*>(a_.weight) + f * places_;
      for (int64_t p = 0; p < places_; ++p) weight[p * a_.filters + f] = widen(from[p]);
    }
    C* const gradient = scratch<C, PatchesUse::gradient>(a_.filters * pitch_);
    const int64_t rows = (a_.rows.out - 1) * a_.rows.stride + reach(a_.rows), all = rows * padded_row();
    C* const padded = scratch<C, PatchesUse::padded>(a_.channels * all);
    for (int64_t n = a_.begin; n < a_.end; ++n) {
      std::fill_n(padded, a_.channels * all, C(0));
      for (int64_t first = 0; first < a_.rows.out; first += height) {
        const int64_t here = std::min(height, a_.rows.out - first);
        copy_gradient(n * a_.rows.out + first, here, 0, a_.filters, gradient);
        multiply(weight, places_, a_.filters, gradient, here * wide,
                 [&](int64_t place, int64_t pixel) { return lines_ + place * pitch_ + pixel; });
        each_place([&](int64_t channel, int64_t row, int64_t column, const C* line) {
          C* to = padded + channel * all + (first * a_.rows.stride + row) * padded_row() + column;
          for (int64_t r = 0; r < here; ++r, line += wide, to += a_.rows.stride * padded_row()) {
            along_row<V>(0, wide, [&](int64_t i, auto v) { v.put(to + i, v.get(to + i) + v.get(line + i)); });
          }
        });
      }
      T* const out = static_cast<T*>(a_.out) + n * a_.channels * a_.rows.in * a_.columns.in;
      for (int64_t i = 0; i < a_.channels * a_.rows.in; ++i) {
        const int64_t channel = i / a_.rows.in, y = i % a_.rows.in, row = y + a_.rows.padding;
        const C* const from = row < rows ? padded + channel * all + row * padded_row() : nullptr;
        a_.channels_last ? take_out(from, out + y * a_.columns.in * a_.channels + channel, a_.channels)
                         : take_out(from, out + i * a_.columns.in, 1);
      }
    }
  }

  // Items: filters. Each number is a sum of floats over some rows, and of doubles over all.
  void backward_weight() const {
    const int64_t filters = a_.end - a_.begin, rows = a_.batch * a_.rows.out, height = rows_of_patches(a_);
    // The bias' gradient is a line of ones', and lines of zeros make the last ones as many as the others.
    const int64_t k = round_up(places_ + (a_.out_bias ? 1 : 0), dotted);
    C* const gradient = scratch<C, PatchesUse::gradient>(filters * pitch_);
    C* const sums = scratch<C, PatchesUse::sums>(filters * k);
    double* const totals = scratch<double, PatchesUse::totals>(filters * k);
    std::fill_n(totals, filters * k, 0.0);
    std::fill_n(lines_ + places_ * pitch_, dotted * pitch_, C(0));
    if (a_.out_bias) std::fill_n(lines_ + places_ * pitch_, pitch_, C(1));
    constexpr int64_t lines_at_once = 12;  // of which 500 pixels fit the first cache
    // Of an image at a time, or of several: then, or of 16 bits, the gradient is copied.
    const int64_t images = std::max<int64_t>(1, height / a_.rows.out);
    const bool is_direct = std::is_same_v<T, C> && images == 1;
    int64_t here;
    for (int64_t first = 0; first < rows; first += here) {
      here = std::min({height, images * a_.rows.out - first % (images * a_.rows.out), rows - first});
      const int64_t pixels = here * a_.columns.out, row = is_direct ? plane_ : pitch_;
      const C* g = gradient;
      gather(first, here);
      if constexpr (std::is_same_v<T, C>) {
        if (is_direct) g = gradient_of(first, a_.begin);
      }
      if (!is_direct) copy_gradient(first, here, a_.begin, a_.end, gradient);
      std::fill_n(sums, filters * k, C(0));
      for (int64_t p = 0; p < k; p += lines_at_once) {
        const Block<C> lines{lines_ + p * pitch_, pitch_, 1, std::min(lines_at_once, k - p), pixels};
        int64_t f = 0;
        for (; f + dot_rows <= filters; f += dot_rows) {
          // What these filters read next is on its way meanwhile, a part of it at a time.
          const int64_t part = divide_up(pixels, divide_up(k, lines_at_once)), done = p / lines_at_once * part;
          for (int64_t i = 0; i < dot_rows && first + here < rows; ++i) {
            fetch(gradient_of(first + here, a_.begin + f + i) + done, part);
          }
          dots_of<V, dot_rows>(lines, g + f * row, row, sums + f * k + p, k);
        }
        for (; f < filters; ++f) dots_of<V, 1>(lines, g + f * row, row, sums + f * k + p, k);
      }
      for (int64_t i = 0; i < filters * k; ++i) totals[i] += double(sums[i]);
    }
    for (int64_t f = 0; f < filters; ++f) {
      T* const out = static_cast<T*>(a_.out) + (a_.begin + f) * places_;
      for (int64_t p = 0; p < places_; ++p) store_one(out + p, C(totals[f * k + p]));
      if (a_.out_bias) store_one(static_cast<T*>(a_.out_bias) + a_.begin + f, C(totals[f * k + places_]));
    }
  }

 private:
  static int64_t reach(const ConvolutionSide& s) { return (s.kernel - 1) * s.dilation + 1; }

  // A row of the input with the zeros around it. Of a stride of n columns each n-th is a neighbour of the next.
  int64_t padded_row() const { return a_.columns.stride * phase_; }
  void put_in(const T* x, C* to) const {
    const auto& c = a_.columns;
    const int64_t wide = c.stride * (phase_ - L), inside = std::clamp<int64_t>(wide - c.padding, 0, c.in);
    C* const line = c.stride == 1 ? to : scratch<C, PatchesUse::whole_row>(wide + 2 * L * c.stride);
    std::fill_n(line, std::min(c.padding, wide), C(0));
    along_row<V>(0, inside, [&](int64_t i, auto v) { v.put(line + c.padding + i, v.get(x + i)); });
    if (c.padding + inside < wide) std::fill(line + c.padding + inside, line + wide, C(0));
    if (c.stride > 1) split_phases<V>(line, wide, c.stride, phase_, to);
  }
  // (Where no filter reads there are zeros.)
  void take_out(const C* from, T* out, int64_t next) const {
    const auto& c = a_.columns;
    const int64_t wide = c.stride * (phase_ - L), inside = from ? std::clamp<int64_t>(wide - c.padding, 0, c.in) : 0;
    C* const line = scratch<C, PatchesUse::whole_row>(wide + 2 * L * c.stride);
    if (from) join_phases<V>(from, wide, c.stride, phase_, line);
    if (next == 1) {
      along_row<V>(0, inside, [&](int64_t i, auto v) { v.put(out + i, v.get(line + c.padding + i)); });
    } else {
      for (int64_t i = 0; i < inside; ++i) store_one(out + i * next, line[c.padding + i]);
    }
    for (int64_t i = inside; i < c.in; ++i) out[i * next] = T{};
  }

  // f(channel, row, column, line): where each place of a filter reads first, of padded rows, and its line.
  template <class F>
  void each_place(F f) const {
    for (int64_t channel = 0; channel < a_.channels; ++channel) {
      for (int64_t tap = 0; tap < taps_; ++tap) {
        const int64_t row = tap / a_.columns.kernel * a_.rows.dilation;
        const int64_t column = tap % a_.columns.kernel * a_.columns.dilation, stride = a_.columns.stride;
        f(channel, row, column % stride * phase_ + column / stride, lines_ + (channel * taps_ + tap) * pitch_);
      }
    }
  }

  static void fetch(const T* next, int64_t count) {
    for (int64_t i = 0; i < count; i += cache_line / int64_t(sizeof(T))) __builtin_prefetch(next + i, 0, 2);
  }

  // f(n, row, count, before) for the images that rows of all images' outputs are of.
  template <class F>
  void each_image(int64_t first, int64_t count, F f) const {
    for (int64_t done = 0; done < count;) {
      const int64_t row = (first + done) % a_.rows.out, here = std::min(count - done, a_.rows.out - row);
      f((first + done) / a_.rows.out, row, here, done);
      done += here;
    }
  }

  // What each place reads for so many rows of the output.
  void gather(int64_t first, int64_t count) const {
    each_image(first, count, [&](int64_t n, int64_t row, int64_t here, int64_t before) {
      const int64_t read = (here - 1) * a_.rows.stride + reach(a_.rows), wide = a_.columns.out;
      const int64_t top = row * a_.rows.stride - a_.rows.padding;
      C* const padded = scratch<C, PatchesUse::padded>(a_.channels * read * padded_row());
      const T* const image = static_cast<const T*>(a_.input) + n * a_.channels * a_.rows.in * a_.columns.in;
      for (int64_t i = 0; i < a_.channels * read; ++i) {
        const int64_t y = top + i % read;
        C* const to = padded + i * padded_row();
        if (y < 0 || y >= a_.rows.in) {
          std::fill_n(to, padded_row(), C(0));
        } else {
          put_in(image + (i / read * a_.rows.in + y) * a_.columns.in, to);
        }
      }
      each_place([&](int64_t channel, int64_t first_row, int64_t column, C* line) {
        const C* from = padded + (channel * read + first_row) * padded_row() + column;
        C* to = line + before * wide;
        for (int64_t r = 0; r < here; ++r, to += wide, from += a_.rows.stride * padded_row()) {
          // (In whole vectors: what is beyond the row's end is written next, or room.)
          for (int64_t i = 0; i < wide; i += L) store(to + i, load<V>(from + i));
        }
      });
    });
  }

  const T* gradient_of(int64_t row, int64_t filter) const {
    const int64_t n = row / a_.rows.out, y = row % a_.rows.out;
    return static_cast<const T*>(a_.grad) + (n * a_.filters + filter) * plane_ + y * a_.columns.out;
  }
  // So many rows of the output's gradient, a line for each of the filters.
  void copy_gradient(int64_t first, int64_t count, int64_t begin, int64_t end, C* to) const {
    each_image(first, count, [&](int64_t n, int64_t row, int64_t here, int64_t before) {
      C* const lines = to + before * a_.columns.out;
      const int64_t pixels = here * a_.columns.out;
      if (a_.channels_last) {
        const T* const from = static_cast<const T*>(a_.grad) + (n * plane_ + row * a_.columns.out) * a_.filters;
        return turn(from + begin, pixels, end - begin, lines);
      }
      for (int64_t f = begin; f < end; ++f) {
        const T* const from = gradient_of(n * a_.rows.out + row, f);
        C* const line = lines + (f - begin) * pitch_;
        along_row<V>(0, pixels, [&](int64_t i, auto v) { v.put(line + i, v.get(from + i)); });
      }
    });
  }

  // Of pixels with so many filters each to lines, in squares.
  void turn(const T* from, int64_t pixels, int64_t filters, C* to) const {
    for (int64_t i = 0; i < pixels; i += L) {
      along_row<V>(0, filters, [&](int64_t f, auto v) {
        bits_t<V> square[L] = {};
        const int64_t high = std::min(L, pixels - i);
        for (int64_t r = 0; r < high; ++r) square[r] = bits(v.get(from + (i + r) * a_.filters + f));
        transpose<word_t<V>>(square);
        const int64_t wide = std::min(L, filters - f);
        for (int64_t r = 0; r < wide; ++r) store(to + (f + r) * pitch_ + i, from_bits<V>(square[r]));
      });
    }
  }

  // a[m][k] times lines[k][pixels], to where at(i, pixel) says.
  template <class At>
  void multiply(const C* a, int64_t m, int64_t k, const C* lines, int64_t pixels, At at) const {
    constexpr int64_t wide = tile_columns<V>;
    using Out = std::remove_pointer_t<decltype(at(0, 0))>;
    alignas(cache_line) C kept[tile_rows<V> * wide];
    for (int64_t j = 0; j < pixels; j += wide) {
      const int64_t columns = std::min(wide, pixels - j);
      for (int64_t i = 0, rows; i < m; i += rows) {
        rows = next_rows<V>(m - i);
        Tile<C, C, C> tile{a + i * k, k, lines + j, pitch_, 0, nullptr, 0, kept, wide};
        if constexpr (std::is_same_v<Out, C>) {
          if (columns == wide) {
            tile.to = at(i, j), tile.to_row = at(1, 0) - at(0, 0);
            multiply_tile<V, false>(rows, wide, k, tile);
            continue;
          }
        }
        multiply_tile<V, false>(rows, wide, k, tile);
        for (int64_t r = 0; r < rows; ++r) {
          along_row<V>(0, columns, [&](int64_t c, auto v) { v.put(at(i + r, j) + c, v.get(kept + r * wide + c)); });
        }
      }
    }
  }

  const ConvolutionArgs& a_;
  int64_t taps_, places_, plane_, pitch_, phase_;
  C* lines_;
};

}  // namespace
}  // namespace rusttorch
