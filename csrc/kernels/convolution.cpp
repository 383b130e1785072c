// Depthwise convolutions, and in the table those of few channels (convolution_patches.h). What some rows of the output
// read is copied first, with the zeros around it, so that no loop has to look where the input ends: of a contiguous
// tensor a channel's rows, of a channels-last one a vector of channels. With a stride of n columns, every n-th column
// is a neighbour of the next.

#include "convolution.h"

#include <array>

#include "convolution_patches.h"
#include "convolution_phases.h"
#include "convolution_tile.h"
#include "scratch.h"

namespace rusttorch {
namespace {

enum class ConvolutionUse { input, line, weight, offsets, band, sums, totals };

// Of the copied input, at a time: of rows for the first cache; of channels, whose neighbours are copied together
// because memory is best read as it lies, for the second.
template <bool of_channels>
constexpr int64_t copied_bytes = of_channels ? 384 << 10 : 24 << 10;

// A filter's gradient is summed up in doubles after so many vectors; the kernels are given so many rows,
// and vectors of each, at once.
constexpr int64_t vectors_of_sums = 64, rows_of_sums = 8, steps_of_sums = 8;

// Which rows of a band the kernels know; more are computed than stored where there are fewer.
constexpr std::array<int64_t, 4> band_rows = {2, 4, 7, 8};
constexpr int64_t pick_rows(int64_t rows) {
  size_t k = 0;
  while (band_rows[k] < even_part(rows, band_rows.back())) ++k;
  return band_rows[k];
}

template <class V>
using Convolve = void (*)(const Band<lane_t<V>>&);

// Of the filter's height and the stride along it, or of any.
template <class V, bool of_channels>
Convolve<V> pick_convolve(int64_t height, int64_t stride, int64_t rows) {
  const auto of_rows = [&]<int known, int step>(std::integral_constant<int, known>,
                                                std::integral_constant<int, step>) -> Convolve<V> {
    switch (rows) {
      case 2: return &convolve<V, of_channels, known, step, 2>;
      case 4: return &convolve<V, of_channels, known, step, 4>;
      case 7: return &convolve<V, of_channels, known, step, 7>;
      default: return &convolve<V, of_channels, known, step, 8>;
    }
  };
  const auto of_stride = [&]<int known>(std::integral_constant<int, known> height) {
    return stride == 1 ? of_rows(height, std::integral_constant<int, 1>())
                       : of_rows(height, std::integral_constant<int, 2>());
  };
  if constexpr (std::is_same_v<lane_t<V>, float>) {
    switch (height) {
      case 3: return of_stride(std::integral_constant<int, 3>());
      case 5: return of_stride(std::integral_constant<int, 5>());
      case 7: return of_stride(std::integral_constant<int, 7>());
    }
  }
  return of_rows(std::integral_constant<int, 0>(), std::integral_constant<int, 1>());
}

template <class V>
using AddProducts = void (*)(const Products<lane_t<V>>&);

template <class V, bool whole>
AddProducts<V> pick_add_products(int64_t height, int64_t stride) {
  if constexpr (std::is_same_v<lane_t<V>, float>) {
    switch (height) {
      case 3: return stride == 1 ? &add_products<V, 3, 1, whole> : &add_products<V, 3, 2, whole>;
      case 5: return stride == 1 ? &add_products<V, 5, 1, whole> : &add_products<V, 5, 2, whole>;
      case 7: return stride == 1 ? &add_products<V, 7, 1, whole> : &add_products<V, 7, 2, whole>;
    }
  }
  return &add_products<V, 1, 1, whole>;
}

// Whether a kernel knows the height.
template <class C>
bool is_known(const ConvolutionSide& rows) {
  const int64_t k = rows.kernel;
  return std::is_same_v<C, float> && rows.dilation == 1 && rows.stride <= 2 && (k == 3 || k == 5 || k == 7);
}

// The input's side of a gradient's convolution with the turned filter, where the stride is 1.
constexpr ConvolutionSide turned(const ConvolutionSide& s) {
  return {s.out, s.in, s.kernel, 1, (s.kernel - 1) * s.dilation - s.padding, s.dilation};
}

constexpr int64_t floor_divide(int64_t a, int64_t b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }

template <class T, bool of_channels>
class Depthwise {
  using C = Compute<T>;
  using V = Vector<C>;
  using Half = Vector<C, std::max(16, vector_bytes / 2)>;
  static constexpr int64_t L = lanes<V>, width = of_channels ? L : 1;  // of a tap's weights, and of a copied column

  // Planes as they lie, of `count` channels.
  struct Planes {
    int64_t rows, columns, channels;
    int64_t column() const { return of_channels ? channels : 1; }
    int64_t row() const { return columns * column(); }
    template <class P>
    P* at(P* all, int64_t n, int64_t channel) const {
      return all + n * rows * columns * channels + (of_channels ? channel : channel * rows * columns);
    }
  };

  // Rows of a plane, copied: `left` columns of zeros come first (or so many are left out), and there are `padded`
  // columns. Column c is at (c % stride) * phase + c / stride, and the plane's first one where a vector begins.
  struct Copy {
    Planes plane;
    int64_t left, padded, stride, read;  // read: how far beyond the last column vectors reach
    int64_t lead = 0, phase = 0, row = 0;

    Copy(const Planes& plane, int64_t left, int64_t padded, int64_t stride, int64_t read)
        : plane(plane), left(left), padded(padded), stride(of_channels ? 1 : stride), read(read) {
      if (this->stride == 1 && !of_channels && left > 0) lead = round_up(left, L) - left;
      phase = divide_up(padded + read, this->stride) + lead + L;
      // An odd number of cache lines, so that rows do not evict each other.
      constexpr int64_t line = cache_line / int64_t(sizeof(C));
      row = (divide_up(of_channels ? padded * L : this->stride * phase, line) | 1) * line;
    }
    int64_t at(int64_t column) const {
      return of_channels ? column * L : column % stride * phase + column / stride + lead;
    }

    // Zeros in whole vectors, which may reach beyond the last.
    static void clear(C* to, int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; c += L) store(to + c, V{});
    }

    // Of neighbouring channels, in slices of `width`, each at a distance of `next` from the one before.
    void rows(const T* from, int64_t first, int64_t count, int64_t channels, C* to, int64_t next) const {
      C* const line = stride == 1 ? nullptr : scratch<C, ConvolutionUse::line>(padded + 2 * L * stride);
      const int64_t skip = std::max<int64_t>(0, -left), before = std::clamp<int64_t>(left, 0, padded);
      const int64_t inside = std::clamp<int64_t>(plane.columns - skip, 0, padded - before);
      const auto each_slice = [&](auto f) {
        for (int64_t c = 0; c < channels; c += width) f(c, to + c / width * next);
      };
      if constexpr (of_channels) {
        const int64_t whole = channels / L, rest = channels % L;
        for (int64_t y = first; y < first + count; ++y, to += row) {
          if (y < 0 || y >= plane.rows) {
            each_slice([&](int64_t, C* slice) { clear(slice, 0, padded * L); });
            continue;
          }
          each_slice([&](int64_t, C* slice) {
            clear(slice, 0, before * L);
            clear(slice, (before + inside) * L, padded * L);
          });
          const T* x = from + y * plane.row() + skip * plane.column();
          C* column = to + before * L;
          for (int64_t c = 0; c < inside; ++c, x += plane.channels, column += L) {
            for (int64_t s = 0; s < whole; ++s) store(column + s * next, load<V>(x + s * L));
            if (rest > 0) store(column + whole * next, load_part<V>(x + whole * L, rest, 0));
          }
        }
      } else {
        each_slice([&](int64_t channel, C* slice) {
          const T* const plane_of = from + channel * plane.rows * plane.columns + skip;
          for (int64_t y = first; y < first + count; ++y, slice += row) {
            if (y < 0 || y >= plane.rows) {
              clear(slice, 0, row);
              continue;
            }
            const T* const x = plane_of + y * plane.columns;
            C* const at = stride == 1 ? slice + lead : line;
            clear(at, 0, before);
            int64_t c = 0;
            for (; c + L <= inside; c += L) store(at + before + c, load<V>(x + c));
            if (c < inside) store(at + before + c, load_part<V>(x + c, inside - c, 0));
            clear(at, before + round_up(inside, L), padded);
            if (stride > 1) split_phases<V>(line, padded, stride, phase, slice);
          }
        });
      }
    }
  };

  // All channels' weights as the kernels read them, slice by slice, and each slice's bias (or zeros) behind it.
  class Weights {
   public:
    explicit Weights(const ConvolutionArgs& a)
        : a_(a),
          taps_(a.rows.kernel * a.columns.kernel),
          all_(scratch<C, ConvolutionUse::weight>(divide_up(a.channels, width) * (taps_ + 1) * width)) {}

    // Those of a group, tap t being order(t) of the filter.
    template <class Order>
    void load(int64_t channel, int64_t channels, Order order) const {
      for (int64_t c = channel; c < channel + channels; c += width) {
        C* const to = const_cast<C*>(of(c));
        const int64_t count = std::min(width, a_.channels - c);
        const T *weight = static_cast<const T*>(a_.weight) + c * taps_, *bias = static_cast<const T*>(a_.bias);
        for (int64_t t = 0; t < taps_; ++t) {
          const int64_t from = order(t);
          for (int64_t l = 0; l < width; ++l) to[t * width + l] = l < count ? widen(weight[l * taps_ + from]) : C(0);
        }
        for (int64_t l = 0; l < width; ++l) to[taps_ * width + l] = bias && l < count ? widen(bias[c + l]) : C(0);
      }
    }
    const C* of(int64_t channel) const { return all_ + channel / width * (taps_ + 1) * width; }
    const C* bias(int64_t channel) const { return of(channel) + taps_ * width; }

   private:
    const ConvolutionArgs& a_;
    int64_t taps_;
    C* all_;
  };

  // f(n, channel, channels, is_new) for the items in groups of so many slices at most; a group is new until all
  // channels have come.
  template <class F>
  static void each_group(const ConvolutionArgs& a, int64_t slices, F f) {
    const int64_t size = channels_of_item(a), blocks = divide_up(a.channels, size), most = slices * width;
    for (int64_t item = a.begin, last; item < a.end; item = last) {
      const int64_t n = item / blocks;
      last = std::min((n + 1) * blocks, a.end);
      const int64_t end = std::min((last - n * blocks) * size, a.channels);
      int64_t channels;
      for (int64_t c = (item - n * blocks) * size; c < end; c += channels) {
        channels = std::min(even_part(end - c, most), end - c);
        channels = std::min(round_up(channels, width), end - c);
        f(n, c, channels, c / size + n * blocks - a.begin < blocks);
      }
    }
  }

  // `convolve` over all columns of a band.
  class Columns {
   public:
    Columns(int64_t height, int64_t stride, int64_t rows)
        : whole_(pick_convolve<V, of_channels>(height, stride, rows)) {
      if constexpr (!of_channels) half_ = pick_convolve<Half, false>(height, stride, rows);
    }

    void run(Band<C>& b, int64_t columns, int64_t count) const {
      if constexpr (of_channels) {
        b.steps = columns;
        b.count = count;
        return whole_(b);
      } else {
        const int64_t rest = columns % L;
        b.in_step = b.to_step = b.count = L;
        b.steps = columns / L;
        if (b.steps > 0) whole_(b);
        if (rest == 0) return;
        b.in += b.steps * L;
        b.to += b.steps * L;
        b.steps = 1;
        b.count = rest;
        rest <= lanes<Half> ? half_(b) : whole_(b);
      }
    }

   private:
    Convolve<V> whole_;
    Convolve<Half> half_ = nullptr;
  };

  // A band that was kept in rows of `kept` columns, to the result, rounded.
  static void round(const C* kept, int64_t row, int64_t rows, int64_t columns, int64_t count, T* to, int64_t to_row,
                    int64_t to_column) {
    for (int64_t r = 0; r < rows; ++r) {
      if constexpr (of_channels) {
        for (int64_t c = 0; c < columns; ++c) {
          store_count(to + r * to_row + c * to_column, load<V>(kept + r * row + c * L), count);
        }
      } else {
        for (int64_t c = 0; c < columns; c += L) {
          store_count(to + r * to_row + c, load<V>(kept + r * row + c), std::min(L, columns - c));
        }
      }
    }
  }

  // How much is copied at a time: so many rows of the output, in multiples of a band's, of so many slices of channels.
  struct Cut {
    int64_t rows, slices, next;  // next: from slice to slice

    Cut(const Copy& copy, const ConvolutionSide& side, int64_t high, int64_t all_slices) {
      const int64_t beyond = (side.kernel - 1) * side.dilation + 1;
      const int64_t fit = copied_bytes<of_channels> / int64_t(sizeof(C)) / copy.row;  // rows of the input
      const int64_t fit_of_each = of_channels ? fit / all_slices : fit;
      rows = ((fit_of_each - beyond) / side.stride + 1) / high * high;
      rows = std::clamp(rows, high, round_up(side.out, high));
      const int64_t read = (rows - 1) * side.stride + beyond;
      slices = of_channels || rows >= side.out ? std::clamp<int64_t>(fit / read, 1, all_slices) : 1;
      next = read * copy.row + (of_channels ? L : 0);
    }
    C* memory(const Copy& copy) const { return scratch<C, ConvolutionUse::input>(slices * next + 2 * L * copy.stride); }
  };

  // Memory that is read next, or written, a part of it at a time, while there is something to compute.
  template <bool written>
  class Ahead {
   public:
    Ahead(const T* next, int64_t elements, int64_t parts)
        : next_(reinterpret_cast<const char*>(next)),
          lines_(divide_up(elements * int64_t(sizeof(T)), cache_line * parts)) {}

    void fetch() {
      for (int64_t k = 0; k < lines_; ++k, next_ += cache_line) __builtin_prefetch(next_, written, written ? 3 : 2);
    }

   private:
    const char* next_;
    int64_t lines_;
  };

 public:
  // The convolution of `in` to a.out. (Also of a gradient, with the turned filter.)
  static void forward(const ConvolutionArgs& a, const void* in, const ConvolutionSide& rows,
                      const ConvolutionSide& columns, bool turns) {
    const Planes from{rows.in, columns.in, a.channels}, to{rows.out, columns.out, a.channels};
    const int64_t taps = rows.kernel * columns.kernel, reach = (columns.kernel - 1) * columns.dilation;
    const Copy copy(from, columns.padding, (columns.out - 1) * columns.stride + reach + 1, columns.stride,
                    L * columns.stride);
    const bool known = is_known<C>(rows);
    const int64_t high = pick_rows(rows.out), beyond = (rows.kernel - 1) * rows.dilation + 1;
    const Cut cut(copy, rows, high, divide_up(a.channels, width));
    C* const input = cut.memory(copy);
    const Weights weights(a);
    int64_t* const offset = scratch<int64_t, ConvolutionUse::offsets>(taps);
    for (int64_t t = 0; t < taps; ++t) {
      offset[t] = t / columns.kernel * rows.dilation * copy.row + copy.at(t % columns.kernel * columns.dilation);
    }
    const int64_t kept_row = round_up(columns.out, L) * width;
    C* const kept = scratch<C, ConvolutionUse::band>(std::is_same_v<T, C> ? 0 : high * kept_row);
    const Columns band_columns(known ? rows.kernel : 0, rows.stride, high);
    each_group(a, cut.slices, [&](int64_t n, int64_t channel, int64_t channels, bool is_new) {
      if (is_new) weights.load(channel, channels, [&](int64_t t) { return turns ? taps - 1 - t : t; });
      const T* x = from.at(static_cast<const T*>(in), n, channel);
      for (int64_t o = 0; o < rows.out; o += cut.rows) {
        const int64_t here = std::min(cut.rows, rows.out - o);
        copy.rows(x, o * rows.stride - rows.padding, (here - 1) * rows.stride + beyond, channels, input, cut.next);
        const int64_t read = here * rows.stride * from.columns * channels;
        const bool is_run = !of_channels || channels == a.channels;
        const int64_t written = here * to.row() * (of_channels ? 1 : channels),
                      parts = divide_up(channels, width) * divide_up(here, high);
        Ahead<false> next(x + o * rows.stride * from.row() + read, is_run ? read : 0, parts);
        const T* const here_out = to.at(static_cast<T*>(a.out), n, channel) + o * to.row();
        Ahead<true> out_next(here_out + written, is_run ? written : 0, parts);
        for (int64_t c = 0; c < channels; c += width) {
          const int64_t count = std::min(width, channels - c);
          const C* const slice = input + c / width * cut.next;
          T* const y = to.at(static_cast<T*>(a.out), n, channel + c) + o * to.row();
          for (int64_t r = 0; r < here; r += high) {
            Band<C> band{slice + r * rows.stride * copy.row,
                         known ? copy.row : rows.stride * copy.row,
                         columns.stride * L,
                         weights.of(channel + c),
                         weights.bias(channel + c),
                         offset,
                         known ? columns.kernel : taps,
                         kept,
                         kept_row,
                         L,
                         std::min(high, here - r),
                         0,
                         0};
            next.fetch();
            out_next.fetch();
            T* const out = y + r * to.row();
            if constexpr (std::is_same_v<T, C>) {
              band.to = out, band.to_row = to.row(), band.to_step = to.column();
              band_columns.run(band, columns.out, count);
            } else {
              band_columns.run(band, columns.out, count);
              round(kept, kept_row, band.rows, columns.out, count, out, to.row(), to.column());
            }
          }
        }
      }
    });
  }

  // The input's gradient where a stride is not 1: the rows and columns of each phase (y % stride, x % stride) are the
  // gradient's convolution with a part of the filter.
  static void backward_input(const ConvolutionArgs& a) {
    const auto &rows = a.rows, &columns = a.columns;
    const Planes from{rows.out, columns.out, a.channels}, to{rows.in, columns.in, a.channels};
    // Input y reads, by tap k, the gradient at (y + padding - k * dilation) / stride, if that is whole.
    const auto least = [](const ConvolutionSide& s) {
      return floor_divide(s.padding - (s.kernel - 1) * s.dilation, s.stride);
    };
    const auto most = [](const ConvolutionSide& s) { return floor_divide(s.stride - 1 + s.padding, s.stride); };
    const int64_t high = pick_rows(divide_up(rows.in, rows.stride)), wide = divide_up(columns.in, columns.stride);
    const int64_t above = least(rows), beyond = most(rows) - above + 1, taps = rows.kernel * columns.kernel;
    const Copy copy(from, -least(columns), wide + most(columns) - least(columns), 1, L);
    C* const input = scratch<C, ConvolutionUse::input>((high - 1 + beyond) * copy.row + 2 * L);
    const Weights weights(a);
    int64_t *const offset = scratch<int64_t, ConvolutionUse::offsets>(2 * taps), *const order = offset + taps;
    const int64_t kept_wide = round_up(wide, L), kept_row = columns.stride * kept_wide * width;
    C* const kept = scratch<C, ConvolutionUse::band>(high * kept_row + 2 * L * columns.stride);
    // f(y, x, first, taps) for each phase and its taps, from the first on.
    const auto each_phase = [&](auto f) {
      int64_t first = 0;
      for (int64_t y = 0; y < rows.stride; ++y) {
        for (int64_t x = 0; x < columns.stride; ++x) {
          int64_t t = first;
          for (int64_t k = 0; k < rows.kernel; ++k) {
            const int64_t row = y + rows.padding - k * rows.dilation;
            if (row % rows.stride != 0) continue;
            for (int64_t j = 0; j < columns.kernel; ++j) {
              const int64_t column = x + columns.padding - j * columns.dilation;
              if (column % columns.stride != 0) continue;
              offset[t] = (row / rows.stride - above) * copy.row + copy.at(column / columns.stride - least(columns));
              order[t++] = k * columns.kernel + j;
            }
          }
          f(y, x, first, t - first);
          first = t;
        }
      }
    };
    each_phase([](int64_t, int64_t, int64_t, int64_t) {});
    const Columns band_columns(0, 1, high);
    each_group(a, 1, [&](int64_t n, int64_t channel, int64_t count, bool is_new) {
      if (is_new) weights.load(channel, count, [&](int64_t t) { return order[t]; });
      const T* g = from.at(static_cast<const T*>(a.grad), n, channel);
      T* out = to.at(static_cast<T*>(a.out), n, channel);
      for (int64_t r = 0; r * rows.stride < rows.in; r += high) {
        copy.rows(g, r + above, high - 1 + beyond, count, input, 0);
        each_phase([&](int64_t y, int64_t x, int64_t first, int64_t taps_of) {
          const int64_t here = std::min(high, divide_up(rows.in - y, rows.stride) - r);
          const int64_t there = divide_up(columns.in - x, columns.stride);
          const int64_t to_row = rows.stride * to.row();
          T* const y_out = out + (r * rows.stride + y) * to.row();
          Band<C> band{input,
                       copy.row,
                       L,
                       weights.of(channel) + first * width,
                       weights.bias(channel),
                       offset + first,
                       taps_of,
                       kept,
                       kept_row,
                       L,
                       here,
                       0,
                       0};
          if (here <= 0) return;
          if constexpr (of_channels) {
            T* const x_out = y_out + x * to.column();
            const int64_t to_column = columns.stride * to.column();
            if constexpr (std::is_same_v<T, C>) {
              band.to = x_out, band.to_row = to_row, band.to_step = to_column;
              band_columns.run(band, there, count);
            } else {
              band_columns.run(band, there, count);
              round(kept, kept_row, here, there, count, x_out, to_row, to_column);
            }
          } else {
            band.to += x * kept_wide;
            band_columns.run(band, there, count);
            if (x + 1 < columns.stride) return;
            for (int64_t i = 0; i < here; ++i) {
              join_phases<V>(kept + i * kept_row, columns.in, columns.stride, kept_wide, y_out + i * to_row);
            }
          }
        });
      }
    });
  }

  // The filters' gradients, and the biases'.
  static void backward_weight(const ConvolutionArgs& a) {
    const auto &rows = a.rows, &columns = a.columns;
    const Planes from{rows.in, columns.in, a.channels}, of_grad{rows.out, columns.out, a.channels};
    const int64_t taps = rows.kernel * columns.kernel, reach = (columns.kernel - 1) * columns.dilation;
    const Copy copy(from, columns.padding, (columns.out - 1) * columns.stride + reach + 1, columns.stride,
                    L * columns.stride);
    const int64_t beyond = (rows.kernel - 1) * rows.dilation + 1;
    const Cut cut(copy, rows, std::min(rows.out, rows_of_sums), divide_up(a.channels, width));
    C* const input = cut.memory(copy);
    int64_t* const offset = scratch<int64_t, ConvolutionUse::offsets>(columns.kernel);
    for (int64_t k = 0; k < columns.kernel; ++k) offset[k] = copy.at(k * columns.dilation);
    const int64_t kept_row = round_up(columns.out, L) * width;
    constexpr bool is_direct = std::is_same_v<T, C> && !of_channels;
    C* const kept = scratch<C, ConvolutionUse::band>(is_direct ? 0 : cut.slices * cut.rows * kept_row);
    const bool halves = !of_channels && columns.out <= lanes<Half>;
    Sums sums(taps + 1, cut.slices, halves);  // the last one of the gradient itself

    const auto add_rows = [&]<class U>(U, Products<C> p, int64_t slice) {
      const bool whole = p.count == lanes<U>;
      const auto add = [&](const Products<C>& p, int64_t height, int64_t stride) {
        (whole ? pick_add_products<U, true> : pick_add_products<U, false>)(height, stride)(p);
      };
      if (is_known<C>(rows)) {
        add(p, rows.kernel, rows.stride);
      } else {
        Products<C> of_row = p;
        of_row.in_row *= rows.stride;
        for (int64_t k = 0; k < rows.kernel; ++k) {
          add(of_row, 1, 1);
          of_row.in += rows.dilation * copy.row;
          of_row.sums += columns.kernel * lanes<U>;
        }
      }
      if (a.out_bias) add_up<U>(p, whole, p.sums + taps * lanes<U>);
      sums.added(slice, p.rows * p.steps);
    };
    // Vectors along the columns, or some columns of vectors at a time.
    const auto all_columns = [&]<class U>(U, Products<C> p, int64_t slice, int64_t count) {
      if constexpr (!of_channels) p.in_step = p.grad_step = lanes<U>;
      const int64_t steps = of_channels ? columns.out : columns.out / lanes<U>;
      p.count = of_channels ? count : lanes<U>;
      for (int64_t s = 0; s < steps; s += steps_of_sums) {
        p.steps = std::min(steps_of_sums, steps - s);
        add_rows(U(), p, slice);
        p.in += p.steps * p.in_step;
        p.grad += p.steps * p.grad_step;
      }
      if (of_channels || columns.out % lanes<U> == 0) return;
      p.steps = 1;
      p.count = columns.out % lanes<U>;
      add_rows(U(), p, slice);
    };

    each_group(a, cut.slices, [&](int64_t, int64_t channel, int64_t channels, bool) {
      sums.begin();
      for (int64_t n = 0; n < a.batch; ++n) {
        const T* x = from.at(static_cast<const T*>(a.input), n, channel);
        const T* g = of_grad.at(static_cast<const T*>(a.grad), n, channel);
        for (int64_t o = 0; o < rows.out; o += cut.rows) {
          const int64_t here = std::min(cut.rows, rows.out - o);
          copy.rows(x, o * rows.stride - rows.padding, (here - 1) * rows.stride + beyond, channels, input, cut.next);
          if constexpr (!is_direct) widen_rows(g, of_grad, o, here, channels, kept, kept_row, cut.rows * kept_row);
          // What comes next: more rows, or the same channels of the next of the batch.
          const int64_t parts = divide_up(channels, width);
          const auto following = [&](const T* plane, const Planes& planes, int64_t stride) {
            const int64_t row = planes.row() * stride, all = planes.rows * planes.columns * planes.channels;
            const bool is_run = !of_channels || channels == a.channels;
            const T* const next = plane + (o + here < rows.out ? (o + here) * row : all);
            return Ahead<false>(next, is_run ? here * stride * planes.columns * channels : 0, parts);
          };
          Ahead<false> next = following(x, from, rows.stride), next_grad = following(g, of_grad, 1);
          for (int64_t c = 0, slice = 0; c < channels; c += width, ++slice) {
            Products<C> p{input + slice * cut.next,
                          copy.row,
                          columns.stride * L,
                          nullptr,
                          kept_row,
                          L,
                          offset,
                          columns.kernel,
                          sums.of(slice),
                          0,
                          0,
                          0};
            if constexpr (is_direct) {
              p.grad = g + slice * of_grad.rows * of_grad.columns + o * of_grad.row(), p.grad_row = of_grad.row();
            } else {
              p.grad = kept + slice * cut.rows * kept_row;
            }
            next.fetch();
            next_grad.fetch();
            for (int64_t r = 0; r < here; r += rows_of_sums) {
              p.rows = std::min(rows_of_sums, here - r);
              const int64_t count = std::min(width, channels - c);
              halves ? all_columns(Half(), p, slice, count) : all_columns(V(), p, slice, count);
              p.in += rows_of_sums * rows.stride * copy.row;
              p.grad += rows_of_sums * p.grad_row;
            }
          }
        }
      }
      for (int64_t c = 0, slice = 0; c < channels; c += width, ++slice) {
        const double* const totals = sums.to_totals(slice);
        for (int64_t l = 0; l < std::min(width, channels - c); ++l) {
          T* const out = static_cast<T*>(a.out) + (channel + c + l) * taps;
          for (int64_t t = 0; t < taps; ++t) store_one(out + t, C(totals[t * width + l]));
          if (a.out_bias) store_one(static_cast<T*>(a.out_bias) + channel + c + l, C(totals[taps * width + l]));
        }
      }
    });
  }

 private:
  // Each slice's sums, in vectors or in halves of them, which go to doubles now and then.
  class Sums {
   public:
    Sums(int64_t count, int64_t slices, bool halves)
        : count_(count),
          slices_(slices),
          halves_(halves),
          vectors_(scratch<C, ConvolutionUse::sums>(slices * count * L)),
          totals_(scratch<double, ConvolutionUse::totals>(slices * count * width)),
          since_(scratch<int64_t, ConvolutionUse::sums>(slices)) {}

    C* of(int64_t slice) const { return vectors_ + slice * count_ * L; }

    void begin() const {
      std::fill_n(vectors_, slices_ * count_ * L, C(0));
      std::fill_n(totals_, slices_ * count_ * width, 0.0);
      std::fill_n(since_, slices_, 0);
    }
    void added(int64_t slice, int64_t n) const {
      since_[slice] += n;
      if (since_[slice] >= vectors_of_sums) to_totals(slice);
    }
    const double* to_totals(int64_t slice) const {
      C* const vectors = of(slice);
      double* const totals = totals_ + slice * count_ * width;
      for (int64_t t = 0; t < count_; ++t) {
        if constexpr (of_channels) {
          for (int64_t l = 0; l < L; ++l) totals[t * L + l] += double(vectors[t * L + l]);
        } else if (halves_) {
          totals[t] += double(sum_lanes(load<Half>(vectors + t * lanes<Half>)));
        } else {
          totals[t] += double(sum_lanes(load<V>(vectors + t * L)));
        }
      }
      std::fill_n(vectors, count_ * L, C(0));
      since_[slice] = 0;
      return totals;
    }

   private:
    int64_t count_, slices_;
    bool halves_;
    C* vectors_;
    double* totals_;
    int64_t* since_;
  };

  // The sum of some rows of the gradient: of each by itself first, which errs less.
  template <class U>
  static void add_up(const Products<C>& p, bool whole, C* sum) {
    U total = load<U>(sum);
    for (int64_t r = 0; r < p.rows; ++r) {
      const C* g = p.grad + r * p.grad_row;
      U of_row{};
      for (int64_t s = 0; s < p.steps; ++s, g += p.grad_step) {
        of_row += whole ? load<U>(g) : load_part<U>(g, p.count, 0);
      }
      total += of_row;
    }
    store(sum, total);
  }

  // Some rows of the gradient, as the kernels read them: slices at a distance of `next`.
  static void widen_rows(const T* from, const Planes& plane, int64_t first, int64_t rows, int64_t channels, C* to,
                         int64_t to_row, int64_t next) {
    for (int64_t r = 0; r < rows; ++r, to += to_row) {
      const T* x = from + (first + r) * plane.row();
      if constexpr (of_channels) {
        const int64_t whole = channels / L, rest = channels % L;
        for (int64_t c = 0; c < plane.columns; ++c, x += plane.channels) {
          for (int64_t s = 0; s < whole; ++s) store(to + s * next + c * L, load<V>(x + s * L));
          if (rest > 0) store(to + whole * next + c * L, load_part<V>(x + whole * L, rest, 0));
        }
      } else {
        for (int64_t s = 0; s < channels; ++s, x += plane.rows * plane.columns) {
          for (int64_t c = 0; c < plane.columns; c += L) {
            const int64_t here = std::min(L, plane.columns - c);
            store(to + s * next + c, here == L ? load<V>(x + c) : load_part<V>(x + c, here, 0));
          }
        }
      }
    }
  }
};

// f of the Depthwise that the arguments are for.
template <class F>
void with_layout(const ConvolutionArgs& a, F f) {
  with_type<floats>(a.dtype, [&]<class T>(T) {
    a.channels_last ? f(std::type_identity<Depthwise<T, true>>()) : f(std::type_identity<Depthwise<T, false>>());
  });
}

void depthwise(const ConvolutionArgs& a) {
  with_layout(a, [&]<class D>(std::type_identity<D>) { D::forward(a, a.input, a.rows, a.columns, false); });
}
void depthwise_backward_input(const ConvolutionArgs& a) {
  with_layout(a, [&]<class D>(std::type_identity<D>) {
    if (a.rows.stride == 1 && a.columns.stride == 1) {
      D::forward(a, a.grad, turned(a.rows), turned(a.columns), true);
    } else {
      D::backward_input(a);
    }
  });
}
void depthwise_backward_weight(const ConvolutionArgs& a) {
  with_layout(a, [&]<class D>(std::type_identity<D>) { D::backward_weight(a); });
}

void patches(const ConvolutionArgs& a) {
  with_type<floats>(a.dtype, [&]<class T>(T) { Patches<T>(a).forward(); });
}
void patches_backward_input(const ConvolutionArgs& a) {
  with_type<floats>(a.dtype, [&]<class T>(T) { Patches<T>(a).backward_input(); });
}
void patches_backward_weight(const ConvolutionArgs& a) {
  with_type<floats>(a.dtype, [&]<class T>(T) { Patches<T>(a).backward_weight(); });
}

}  // namespace
}  // namespace rusttorch

RUSTTORCH_DEFINE_TABLE(convolution, ConvolutionArgs, {&depthwise, floats}, {&depthwise_backward_input, floats},
                       {&depthwise_backward_weight, floats}, {&patches, floats}, {&patches_backward_input, floats},
                       {&patches_backward_weight, floats})
