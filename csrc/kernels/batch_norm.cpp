#include "batch_norm.h"

#include "runs.h"

namespace rusttorch {
namespace {

constexpr int64_t channels_at_once = 64;

// A vector of a row that is written around the cache, to an address that is aligned.
template <class V>
struct Streamed : Whole<V> {
  template <class T>
  RT_INLINE void put(T* p, V v) const {
    stream_out(p, v);
  }
};

// What there is one of for each channel, as vectors: of planes the same number in all lanes.
template <class V>
struct Coefficients {
  V mean, scale, shift, slope, offset;
};

// bounds: 0, that of relu, or the two of relu6.
template <class V, int bounds>
RT_INLINE V normalized(V x, const Coefficients<V>& of, lane_t<V> most) {
  const V y = (x - of.mean) * of.scale + of.shift;
  return bounds == 0 ? y : bounds == 1 ? at_least(y, 0) : at_most(at_least(y, 0), most);
}
// The gradient of what is bounded. (Of NaN it stays behind one bound and is 0 behind two, as in stock.)
template <class V, int bounds>
RT_INLINE V behind(V grad, V x, const Coefficients<V>& of, lane_t<V> most) {
  if constexpr (bounds == 0) return grad;
  const V y = normalized<V, 0>(x, of, most);
  return bounds == 1 ? select(y <= 0, V{}, grad) : select((y > 0) & (y < most), grad, V{});
}

template <class T, int bounds>
struct BatchNorm {
  using C = Compute<T>;
  using V = Vector<C>;
  // As many are still in the first cache when they are looked at again, and a lane's sum of them errs by little: the
  // fewer lanes there are, the shorter it is.
  static constexpr int64_t elements_at_once = vector_bytes * vector_bytes / 16 * lanes<V>;
  static constexpr bool can_stream = !is_narrow<T>;

  const BatchNormArgs& a;
  const T *x = static_cast<const T*>(a.x), *grad = static_cast<const T*>(a.grad);
  T* y = static_cast<T*>(a.y);
  const C most = C(a.most);

  // The coefficients of some channels.
  struct Block {
    int64_t begin, count;
    Columns<C> mean, scale, shift, slope, offset;

    Block(const BatchNormArgs& a, int64_t first) : begin(first), count(std::min(columns_at_once, a.channels - first)) {
      const auto copy = [&](C* to, const double* from) {
        if (from) std::copy_n(from + begin, count, to);
      };
      copy(mean, a.mean);
      copy(scale, a.scale);
      copy(shift, a.shift);
      copy(slope, a.slope);
      copy(offset, a.offset);
    }
    // Of the c-th alone, and of as many as there are lanes. (Those that a kernel does not read are not loaded.)
    RT_INLINE Coefficients<V> one(int64_t c) const {
      return {splat<V>(mean[c]), splat<V>(scale[c]), splat<V>(shift[c]), splat<V>(slope[c]), splat<V>(offset[c])};
    }
    RT_INLINE Coefficients<V> some(int64_t c) const {
      return {load<V>(mean + c), load<V>(scale + c), load<V>(shift + c), load<V>(slope + c), load<V>(offset + c)};
    }
  };
  template <class F>
  void each_block(F f) const {
    for (int64_t c = 0; c < a.channels; c += columns_at_once) f(Block(a, c));
  }

  // f(c, end, before, count, walk) for the channels from c to end, of each of which `before` elements came before and
  // there are `count` now: walk(g) calls g(k, at, n) for each run of n of channel c + k. Some thousand in all, and of
  // several channels where one has fewer.
  template <class F>
  void each_chunk(F f) const {
    const int64_t channels = std::clamp<int64_t>(elements_at_once / (a.outer * a.inner), 1, channels_at_once);
    const int64_t outer = std::clamp<int64_t>(elements_at_once / a.inner, 1, a.outer);
    for (int64_t c = 0; c < a.channels; c += channels) {
      const int64_t end = std::min(a.channels, c + channels);
      for (int64_t o = 0; o < a.outer; o += outer) {
        const int64_t last = std::min(a.outer, o + outer);
        for (int64_t i = 0; i < a.inner; i += elements_at_once) {
          const int64_t n = std::min(elements_at_once, a.inner - i);
          f(c, end, o * a.inner + i, (last - o) * n, [&](auto g) {
            for (int64_t r = o; r < last; ++r) {
              for (int64_t k = 0; k < end - c; ++k) g(k, r * a.stride + (c + k) * a.inner + i, n);
            }
          });
        }
      }
    }
  }

  void moments_of_planes() const {
    each_chunk([&](int64_t c, int64_t end, int64_t before, int64_t count, auto walk) {
      V sum[channels_at_once], square[channels_at_once];
      C mean[channels_at_once];
      for (int64_t k = 0; k < end - c; ++k) sum[k] = square[k] = V{};
      walk([&](int64_t k, int64_t at, int64_t n) {
        V s{};
        along_row<V>(at, at + n, [&](int64_t i, auto part) { s += part.get(x + i); });
        sum[k] += s;
      });
      for (int64_t k = 0; k < end - c; ++k) mean[k] = C(double(sum_lanes(sum[k])) / double(count));
      walk([&](int64_t k, int64_t at, int64_t n) {
        V s{};
        along_row<V>(at, at + n, [&, m = mean[k]](int64_t i, auto part) {
          const V d = part.get(x + i, m) - m;
          s += d * d;
        });
        square[k] += s;
      });
      for (int64_t k = 0; k < end - c; ++k) {
        join_moments(a.sums[0][c + k], a.sums[1][c + k], sum_lanes(sum[k]), sum_lanes(square[k]), before, count);
      }
    });
  }

  void moments_of_rows() const {
    each_group<V>(x, a.outer, a.stride, a.channels, [&](auto group, int64_t c, int64_t r, int64_t end, auto load) {
      V sum[group.value] = {}, square[group.value] = {}, mean[group.value];
      for (int64_t i = r; i < end; ++i) {
        for (int64_t k = 0; k < group.value; ++k) sum[k] += load(i, k);
      }
      for (int64_t k = 0; k < group.value; ++k) mean[k] = sum[k] * (C(1) / C(end - r));
      for (int64_t i = r; i < end; ++i) {
        for (int64_t k = 0; k < group.value; ++k) {
          const V d = load(i, k) - mean[k];
          square[k] += d * d;
        }
      }
      C sums[group.value * lanes<V>], squares[group.value * lanes<V>];
      std::memcpy(sums, sum, sizeof sums);
      std::memcpy(squares, square, sizeof squares);
      const int64_t width = std::min<int64_t>(group.value * lanes<V>, a.channels - c);
      for (int64_t k = 0; k < width; ++k) {
        join_moments(a.sums[0][c + k], a.sums[1][c + k], sums[k], squares[k], r, end - r);
      }
    });
  }

  void products_of_planes() const {
    each_chunk([&](int64_t c, int64_t end, int64_t, int64_t, auto walk) {
      V sum[channels_at_once], product[channels_at_once];
      for (int64_t k = 0; k < end - c; ++k) sum[k] = product[k] = V{};
      const Block block(a, c);
      walk([&](int64_t k, int64_t at, int64_t n) {
        const auto of = block.one(k);
        V s{}, p{};
        along_row<V>(at, at + n, [&](int64_t i, auto part) {
          const V v = part.get(x + i), g = behind<V, bounds>(part.get(grad + i), v, of, most);
          s += g;
          p += g * (v - of.mean);
        });
        sum[k] += s;
        product[k] += p;
      });
      for (int64_t k = 0; k < end - c; ++k) {
        a.sums[0][c + k] += sum_lanes(sum[k]);
        a.sums[1][c + k] += sum_lanes(product[k]);
      }
    });
  }

  void products_of_rows() const {
    each_block([&](const Block& block) {
      const T* g_rows = grad + block.begin;
      each_group<V>(x + block.begin, a.outer, a.stride, block.count,
                    [&](auto group, int64_t c, int64_t r, int64_t end, auto get) {
                      V sum[group.value] = {}, product[group.value] = {};
                      for (int64_t i = r; i < end; ++i) {
                        for (int64_t k = 0; k < group.value; ++k) {
                          const int64_t at = c + k * lanes<V>;
                          const auto of = block.some(at);
                          const V v = get(i, k), g = behind<V, bounds>(
                                                     load_at<V>(g_rows + i * a.stride, at, block.count), v, of, most);
                          sum[k] += g;
                          product[k] += g * (v - of.mean);
                        }
                      }
                      add_columns(a.sums[0] + block.begin + c, sum, block.count - c);
                      add_columns(a.sums[1] + block.begin + c, product, block.count - c);
                    });
    });
  }
  template <size_t n>
  static void add_columns(double* to, const V (&v)[n], int64_t count) {
    C each[n * lanes<V>];
    std::memcpy(each, v, sizeof each);
    for (int64_t k = 0; k < std::min(int64_t(std::size(each)), count); ++k) to[k] += double(each[k]);
  }

  // f(i, part) for the elements of y from begin to end, which are written around the cache if asked for: what is before
  // the first aligned one, then whole vectors.
  template <class F>
  void along_output(int64_t begin, int64_t end, F f) const {
    if constexpr (can_stream) {
      if (a.stream) {
        const int64_t past = reinterpret_cast<uintptr_t>(y + begin) % sizeof(V) / sizeof(T);
        if (past) {
          const int64_t head = std::min<int64_t>(lanes<V> - past, end - begin);
          f(begin, Part<V>{head});
          begin += head;
        }
        return along_row<V, Streamed<V>>(begin, end, f);
      }
    }
    along_row<V>(begin, end, f);
  }

  // y[i] = f(i, part, the coefficients) for all elements i.
  template <class F>
  void each_element(F f) const {
    each_block([&](const Block& block) {
      for (int64_t o = 0; o < a.outer; ++o) {
        const int64_t row = o * a.stride + block.begin * a.inner;
        if (!a.has_planes()) {
          along_output(row, row + block.count,
                       [&](int64_t i, auto part) { part.put(y + i, f(i, part, block.some(i - row))); });
          continue;
        }
        for (int64_t c = 0; c < block.count; ++c) {
          const int64_t begin = row + c * a.inner;
          const auto of = block.one(c);
          along_output(begin, begin + a.inner, [&](int64_t i, auto part) {
            __builtin_prefetch(x + i + a.ahead, 0, 2);
            if (a.grad) __builtin_prefetch(grad + i + a.ahead, 0, 2);
            part.put(y + i, f(i, part, of));
          });
        }
      }
    });
    if (a.stream) _mm_sfence();
  }

  void moments() const { a.has_planes() ? moments_of_planes() : moments_of_rows(); }
  void products() const { a.has_planes() ? products_of_planes() : products_of_rows(); }
  void normalize() const {
    each_element([&](int64_t i, auto part, const Coefficients<V>& of) {
      return normalized<V, bounds>(part.get(x + i), of, most);
    });
  }
  void gradient() const {
    if (!a.slope) {
      return each_element([&](int64_t i, auto part, const Coefficients<V>& of) {
        return behind<V, bounds>(part.get(grad + i), bounds > 0 ? part.get(x + i) : V{}, of, most) * of.scale;
      });
    }
    each_element([&](int64_t i, auto part, const Coefficients<V>& of) {
      const V v = part.get(x + i);
      return behind<V, bounds>(part.get(grad + i), v, of, most) * of.scale + ((v - of.mean) * of.slope + of.offset);
    });
  }
};

template <class F>
void with_norm(const BatchNormArgs& a, F f) {
  with_type<floats>(a.dtype, [&](auto t) {
    using T = decltype(t);
    if (!a.relu) return f(BatchNorm<T, 0>{a});
    std::isnan(a.most) ? f(BatchNorm<T, 1>{a}) : f(BatchNorm<T, 2>{a});
  });
}

void moments(const BatchNormArgs& a) {
  with_type<floats>(a.dtype, [&](auto t) { BatchNorm<decltype(t), 0>{a}.moments(); });
}
void normalize(const BatchNormArgs& a) {
  with_norm(a, [](auto norm) { norm.normalize(); });
}
void products(const BatchNormArgs& a) {
  with_norm(a, [](auto norm) { norm.products(); });
}
void gradient(const BatchNormArgs& a) {
  with_norm(a, [](auto norm) { norm.gradient(); });
}

}  // namespace
}  // namespace rusttorch

RUSTTORCH_DEFINE_TABLE(batch_norm, BatchNormArgs, {&moments, floats}, {&normalize, floats}, {&products, floats},
                       {&gradient, floats})
