#include "resize.h"

#include "runs.h"

namespace rusttorch {
namespace {

// A row of the result is rows of what is given, summed by the height's weights, and each of its elements is elements of
// that, summed by the width's: in the one order or the other. weighted: else an element is one element.
template <class T, bool weighted>
class Resize {
  using C = Compute<T>;
  using V = Vector<C>;
  using Index = ResizeIndex<C>;
  using Indices = Vector<Index, sizeof(V)>;
  using Wide = std::conditional_t<weighted, C, T>;

 public:
  explicit Resize(const ResizeArgs& a) : a_(a) {
    std::fill_n(held_, ring_mask_ + 1, -1);
    if (vector_bytes >= 32 && a.channels == 1) find_windows();
  }

  void run() {
    T* y = static_cast<T*>(a_.out) + a_.begin * wide_;
    int64_t plane = a_.begin / a_.height.out, o = a_.begin % a_.height.out;
    for (int64_t r = a_.begin; r < a_.end; ++r, y += wide_) {
      if (a_.channels > 1 && a_.height.taps * a_.width.taps <= at_once_) {
        at_once(plane, o, y);
      } else if (!weighted || a_.is_width_first()) {
        width_first(plane, o, y);
      } else {
        height_first(plane, o, y);
      }
      if (++o == a_.height.out) o = 0, ++plane;
    }
    if (a_.stream) _mm_sfence();
  }

 private:
  static constexpr int64_t at_once_ = 4;  // taps, of both dims

  const ResizeArgs& a_;
  const int64_t narrow_ = a_.width.in * a_.channels, wide_ = a_.width.out * a_.channels;
  const int64_t pitch_ = a_.width.pitch, wide_pitch_ = a_.wide_line(), ring_mask_ = a_.ring() - 1;
  const T* const end_ = static_cast<const T*>(a_.in) + a_.planes * a_.height.in * narrow_;
  const Index* const from_ = static_cast<const Index*>(a_.width.from);
  const C* const weights_ = static_cast<const C*>(a_.width.weights);
  // Scratch: a row of what is given, as many wide rows as one of the result needs, and what is known of these.
  C* const line_ = static_cast<C*>(a_.scratch);
  Wide* const wides_ = reinterpret_cast<Wide*>(static_cast<double*>(a_.scratch) + a_.line());
  int64_t* const held_ =
      reinterpret_cast<int64_t*>(static_cast<double*>(a_.scratch) + a_.line() + (ring_mask_ + 1) * wide_pitch_);
  const Wide** const rows_ = reinterpret_cast<const Wide**>(held_ + ring_mask_ + 1);
  // Of each vector of a row of the result, and each of its taps, where the window begins that its elements are from,
  // and where in that they are: -1 where it is made of nothing.
  Index* const window_ = reinterpret_cast<Index*>(rows_ + ring_mask_ + 1);
  Index* const within_ = window_ + a_.width.taps * pitch_;
  // A sum of nothing but -0 is -0, but a gradient is added to 0.
  const C start_ = a_.is_gradient ? C(0) : -C(0);
  int windows_ = 0;           // of a vector each; 0: more than two
  bool one_for_all_ = false;  // taps

  void find_windows() {
    const int64_t taps = a_.width.taps;
    Index apart = 0, all_apart = 0;
    for (int64_t o = 0; o < wide_; o += lanes<V>) {
      const int64_t last = std::min(o + lanes<V>, wide_) - 1;
      for (int64_t k = 0; k < taps; ++k)
        apart = std::max(apart, Index(from_[k * pitch_ + last] - from_[k * pitch_ + o]));
      all_apart = std::max(all_apart, Index(from_[(taps - 1) * pitch_ + last] - from_[o]));
    }
    one_for_all_ = all_apart < 2 * lanes<V>;
    if (one_for_all_) apart = all_apart;
    windows_ = apart < lanes<V> ? 1 : apart < 2 * lanes<V> ? 2 : 0;
    for (int64_t k = 0; k < taps; ++k) {
      for (int64_t o = 0; o < wide_; o += lanes<V>) {
        const int64_t at = k * pitch_ + o;
        window_[at] = from_[one_for_all_ ? o : at];
        store(within_ + at, load<Indices>(from_ + at) - window_[at]);
        for (int64_t i = 0; i < lanes<V>; ++i) {
          if (a_.width.counts[o + i] == 0) within_[at + i] = -1;
        }
      }
    }
  }

  const T* row_of(int64_t plane, int64_t o, int64_t k) const {
    return static_cast<const T*>(a_.in) + (plane * a_.height.in + row_from(o, k)) * narrow_;
  }
  Index row_from(int64_t o, int64_t k) const {
    return static_cast<const Index*>(a_.height.from)[k * a_.height.pitch + o];
  }
  C row_weight(int64_t o, int64_t k) const { return static_cast<const C*>(a_.height.weights)[k * a_.height.pitch + o]; }

  void width_first(int64_t plane, int64_t o, T* y) {
    const int64_t count = a_.height.counts[o];
    for (int64_t k = 0; k < count; ++k) {
      const int64_t row = plane * a_.height.in + row_from(o, k), place = row & ring_mask_;
      Wide* const wide = wides_ + place * wide_pitch_;
      if (held_[place] != row) along_width(row_of(plane, o, k), wide);
      held_[place] = row;
      rows_[k] = wide;
    }
    if constexpr (!weighted && is_narrow<T>) {
      std::copy_n(rows_[0], wide_, y);
    } else {
      sum(count, [&](int64_t k) { return rows_[k]; }, [&](int64_t k) { return row_weight(o, k); }, wide_, y, a_.stream);
    }
  }

  // A pixel of the result from all of its taps.
  void at_once(int64_t plane, int64_t o, T* y) const {
    const int64_t n = a_.channels, down = a_.height.counts[o];
    const T *rows[at_once_], *taps[at_once_];
    C down_weights[at_once_], weights[at_once_];
    for (int64_t i = 0; i < down; ++i) rows[i] = row_of(plane, o, i), down_weights[i] = row_weight(o, i);
    for (int64_t c = 0; c < a_.width.out; ++c, y += n) {
      const int64_t across = a_.width.counts[c];
      int64_t count = 0;
      for (int64_t i = 0; i < down; ++i) {
        for (int64_t k = 0; k < across; ++k, ++count) {
          taps[count] = rows[i] + from_[k * pitch_ + c] * n;
          weights[count] = down_weights[i] * weights_[k * pitch_ + c];
        }
      }
      if constexpr (!weighted && is_narrow<T>) {
        copy(taps[0], n, y);
      } else {
        sum(count, [&](int64_t k) { return taps[k]; }, [&](int64_t k) { return weights[k]; }, n, y, a_.stream);
      }
    }
  }

  void height_first(int64_t plane, int64_t o, T* y) {
    if constexpr (weighted) {
      // Of rows this short the CPU asks too late for the next ones.
      const char* const ahead = reinterpret_cast<const char*>(row_of(plane, o, 0) + 4 * narrow_);
      const int64_t bytes = a_.channels == 1 ? a_.height.in / a_.height.out * narrow_ * int64_t(sizeof(T)) : 0;
      for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(ahead + i);
      sum(
          a_.height.counts[o], [&](int64_t k) { return row_of(plane, o, k); },
          [&](int64_t k) { return row_weight(o, k); }, narrow_, line_);
      a_.channels > 1 ? pixels(line_, y) : columns(line_, y);
    }
  }

  template <class D>
  void along_width(const T* x, D* y) {
    if (a_.channels > 1) return pixels(x, y);
    if constexpr (std::is_same_v<T, C>) {
      // Vectors are read where a row ends. Another may follow.
      if (x + narrow_ + 2 * lanes<V> <= end_) return columns(x, y);
    }
    along_row<V>(0, narrow_, [&](int64_t i, auto vectors) { store(line_ + i, vectors.get(x + i)); });
    columns(line_, y);
  }

  // A pixel, which is too short for a call of memcpy.
  static void copy(const T* x, int64_t n, T* y) {
    using B = Vector<uint16_t>;
    constexpr int64_t each = sizeof(B) / sizeof(T);
    int64_t i = 0;
    for (; i + each <= n; i += each) std::memcpy(y + i, x + i, sizeof(B));
    for (; i < n; ++i) y[i] = x[i];
  }

  // y[0..n) = row(0) * weight(0) + row(1) * weight(1) + ...
  template <class Row, class Weight, class D>
  void sum(int64_t count, Row row, Weight weight, int64_t n, D* y, bool stream = false) const {
    switch (count) {
      case 0: std::fill_n(y, n, D{}); return;
      case 1: return sum_of<1>(count, row, weight, n, y, stream);
      case 2: return sum_of<2>(count, row, weight, n, y, stream);
      case 3: return sum_of<3>(count, row, weight, n, y, stream);
      case 4: return sum_of<4>(count, row, weight, n, y, stream);
      default: return sum_of<0>(count, row, weight, n, y, stream);
    }
  }
  template <int known, class Row, class Weight, class D>
  RT_INLINE void sum_of(int64_t count, Row row, Weight weight, int64_t n, D* y, bool stream) const {
    using S = decltype(row(0));
    S rows[known ? known : 1];
    C weights[known ? known : 1];
    for (int64_t k = 0; k < known; ++k) rows[k] = row(k), weights[k] = weight(k);
    const auto at = [&](int64_t i, auto vectors) {
      const auto part = [&](int64_t k) {
        const V v = vectors.get((known ? rows[k] : row(k)) + i);
        return weighted ? V(v * (known ? weights[k] : weight(k))) : v;
      };
      V total = weighted ? splat<V>(start_) + part(0) : part(0);
      for (int64_t k = 1; k < (known ? known : count); ++k) total += part(k);
      return total;
    };
    const auto put = [&](int64_t i, auto vectors) { vectors.put(y + i, at(i, vectors)); };
    int64_t i = 0;
    if constexpr (std::is_same_v<D, T> && !is_narrow<D>) {
      // Where it is whole lines of the cache: parts of lines are slow to write beside those that go around it.
      if (stream && (reinterpret_cast<uintptr_t>(y) | size_t(n) * sizeof(D)) % 64 == 0) {
        for (; i < n; i += lanes<V>) stream_out(y + i, at(i, Whole<V>()));
      }
    }
    along_row<V>(i, n, put);
  }

  // Elements of several channels.
  template <class S, class D>
  void pixels(const S* x, D* y) const {
    const int64_t n = a_.channels;
    for (int64_t o = 0; o < a_.width.out; ++o, y += n) {
      if constexpr (weighted) {
        sum(
            a_.width.counts[o], [&](int64_t k) { return x + from_[k * pitch_ + o] * n; },
            [&](int64_t k) { return weights_[k * pitch_ + o]; }, n, y);
      } else {
        copy(x + from_[o] * n, n, y);
      }
    }
  }

  // And of one, of a row that may be read some vectors beyond its end.
  template <class D>
  void columns(const C* x, D* y) const {
    const auto of_taps = [&]<int windows>() {
      switch (a_.width.taps) {
        case 1: return shuffled<windows, 1>(x, y);
        case 2: return shuffled<windows, 2>(x, y);
        case 4: return shuffled<windows, 4>(x, y);
        default: return shuffled<windows, 0>(x, y);
      }
    };
    switch (windows_) {
      case 0: one_by_one(x, y); break;
      case 1: of_taps.template operator()<1>(); break;
      default: of_taps.template operator()<2>();
    }
  }

  template <class D>
  void one_by_one(const C* x, D* y) const {
    for (int64_t o = 0; o < wide_; ++o) {
      C total = x[from_[o]];
      if constexpr (weighted) {
        total = start_ + total * weights_[o];
        for (int64_t k = 1; k < a_.width.taps; ++k) total += x[from_[k * pitch_ + o]] * weights_[k * pitch_ + o];
        if (a_.width.counts[o] == 0) total = 0;
      }
      store_one(y + o, total);
    }
  }

  // A vector of the result, of which each tap lies within one vector of the row, or two.
  template <int windows, int known, class D>
  void shuffled(const C* x, D* y) const {
    const int64_t taps = known ? known : a_.width.taps;
    const auto put = [&](int64_t o, auto vectors, auto one_for_all) {
      const C* first = x + window_[o];
      V low = load<V>(first), high = windows == 2 ? load<V>(first + lanes<V>) : low;
      V total{};
      Indices within{};
      for (int64_t k = 0; k < taps; ++k) {
        const int64_t at = k * pitch_ + o;
        if (!one_for_all && k > 0) {
          first = x + window_[at];
          low = load<V>(first);
          if (windows == 2) high = load<V>(first + lanes<V>);
        }
        within = load<Indices>(within_ + at);
        V v = windows == 2 ? __builtin_shuffle(low, high, within) : __builtin_shuffle(low, within);
        if constexpr (weighted) v *= load<V>(weights_ + at);
        total = !weighted ? v : k == 0 ? splat<V>(start_) + v : total + v;
      }
      if constexpr (weighted) total = select(within < 0, V{}, total);
      vectors.put(y + o, total);
    };
    if (one_for_all_) {
      along_row<V>(0, wide_, [&](int64_t o, auto vectors) { put(o, vectors, std::true_type()); });
    } else {
      along_row<V>(0, wide_, [&](int64_t o, auto vectors) { put(o, vectors, std::false_type()); });
    }
  }
};

template <bool weighted>
void run(const ResizeArgs& a) {
  with_type<floats>(a.dtype, [&](auto t) { Resize<decltype(t), weighted>(a).run(); });
}

}  // namespace
}  // namespace rusttorch

RUSTTORCH_DEFINE_TABLE(resize, ResizeArgs, {&run<false>, floats}, {&run<true>, floats})
