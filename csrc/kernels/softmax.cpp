#include "softmax.h"

#include <algorithm>

#include "math.h"
#include "runs.h"

// Each kernel has two texts: along a row, and along the columns of a tile that stays in the cache while it is walked
// several times. A NaN need not be the largest: its exponential is NaN, and so is their sum.

namespace rusttorch {
namespace {

// out[i] = f(x[i], y[i]) for a row, by vectors.
template <class V, class T, class F>
RT_INLINE void map_row(const T* x, const T* y, T* out, int64_t n, F f) {
  int64_t i = 0;
  for (; i + lanes<V> <= n; i += lanes<V>) store(out + i, f(load<V>(x + i), load<V>(y + i)));
  if (i < n) store_part(out + i, f(load_part<V>(x + i, n - i, 0), load_part<V>(y + i, n - i, 0)), n - i);
}

// The sum over a row of f(x[i], y[i]), as a double after a few dozen floats; each is kept in out, if that is wanted.
template <bool keeps, class V, class T, class F>
RT_INLINE double sum_row(const T* x, const T* y, T* out, int64_t n, F f) {
  const auto at = [&](int64_t i) {
    const V v = f(load<V>(x + i), load<V>(y + i));
    if constexpr (keeps) store(out + i, v);
    return v;
  };
  double total = 0;
  for (int64_t i = 0; i < n; i += block<V>) {
    const int64_t end = std::min(n, i + block<V>);
    V sums[vectors<V>] = {};
    int64_t j = i;
    for (; j + vectors<V> * lanes<V> <= end; j += vectors<V> * lanes<V>) {
      for (int64_t k = 0; k < vectors<V>; ++k) sums[k] += at(j + k * lanes<V>);
    }
    for (; j + lanes<V> <= end; j += lanes<V>) sums[0] += at(j);
    if (j < end) {
      const V v = f(load_part<V>(x + j, end - j, 0), load_part<V>(y + j, end - j, 0));
      if constexpr (keeps) store_part(out + j, v, end - j);
      sums[1] += keep_part(v, end - j, 0);
    }
    total += sum_vectors(sums);
  }
  return total;
}

template <bool log, class T>
struct Forward {
  using C = Compute<T>;
  using V = Vector<C>;
  // The exponentials are kept in the output while they are summed, where it can hold them exactly.
  static constexpr bool keeps = !log && std::is_same_v<T, C>;

  static V last(V x, V m, V by) { return log ? V((x - m) - by) : keeps ? V(x * by) : V(math::exp(V(x - m)) * by); }
  static C by(double sum) { return log ? math::log(splat<V>(C(sum)))[0] : C(1 / sum); }

  static void row(const T* x, const T*, T* out, int64_t n) {
    const V m = splat<V>(largest_of_row<V>(x, n));
    const auto exps = [&](V v, V) { return V(math::exp(V(v - m))); };
    const V scale = splat<V>(by(sum_row<keeps, V>(x, x, out, n, exps)));
    const T* const from = keeps ? out : x;
    map_row<V>(from, from, out, n, [&](V v, V) { return last(v, m, scale); });
  }

  static void columns(const T* x, const T*, T* out, int64_t n, int64_t row, int64_t width) {
    Columns<C> m, scale;
    Columns<double> sum = {};
    std::fill_n(m, width + lanes<V>, lowest<C>);
    each_group<V>(x, n, row, width, [&](auto group, int64_t c, int64_t r, int64_t end, auto get) {
      V part[group];
      std::memcpy(part, m + c, sizeof part);
      for (int64_t i = r; i < end; ++i) {
        for (int64_t k = 0; k < group; ++k) part[k] = larger(part[k], get(i, k));
      }
      std::memcpy(m + c, part, sizeof part);
    });
    each_group<V>(x, n, row, width, [&](auto group, int64_t c, int64_t r, int64_t end, auto get) {
      V part[group] = {};
      for (int64_t i = r; i < end; ++i) {
        for (int64_t k = 0; k < group; ++k) {
          const V e = math::exp(V(get(i, k) - load<V>(m + c + k * lanes<V>)));
          if constexpr (keeps) store_at(out + i * row, c + k * lanes<V>, width, e);
          part[k] += e;
        }
      }
      C each[group * lanes<V>];
      std::memcpy(each, part, sizeof each);
      for (int64_t k = 0; k < group * lanes<V>; ++k) sum[c + k] += double(each[k]);
    });
    for (int64_t c = 0; c < width; ++c) scale[c] = by(sum[c]);
    each_group<V>(keeps ? out : x, n, row, width, [&](auto group, int64_t c, int64_t r, int64_t end, auto get) {
      for (int64_t i = r; i < end; ++i) {
        for (int64_t k = 0; k < group; ++k) {
          const int64_t at = c + k * lanes<V>;
          store_at(out + i * row, at, width, last(get(i, k), load<V>(m + at), load<V>(scale + at)));
        }
      }
    });
  }
};

// x is the gradient g, y the output: (g - sum(g y)) y, and g - exp(y) sum(g).
template <bool log, class T>
struct Backward {
  using C = Compute<T>;
  using V = Vector<C>;

  static V term(V g, V y) { return log ? g : V(g * y); }
  static V last(V g, V y, V sum) { return log ? V(g - math::exp(y) * sum) : V((g - sum) * y); }

  static void row(const T* g, const T* y, T* out, int64_t n) {
    const V sum = splat<V>(C(sum_row<false, V>(g, log ? g : y, out, n, [](V v, V w) { return term(v, w); })));
    map_row<V>(g, y, out, n, [&](V v, V w) { return last(v, w, sum); });
  }

  static void columns(const T* g, const T* y, T* out, int64_t n, int64_t row, int64_t width) {
    Columns<C> sum;
    Columns<double> total = {};
    const auto walk = [&](auto f) {
      each_group<V>(g, n, row, width, [&](auto group, int64_t c, int64_t r, int64_t end, auto get) {
        f(group, c, [&](auto each) {
          for (int64_t i = r; i < end; ++i) {
            for (int64_t k = 0; k < group; ++k) {
              each(i, k, get(i, k), load_at<V>(y + i * row, c + k * lanes<V>, width));
            }
          }
        });
      });
    };
    walk([&](auto group, int64_t c, auto rows) {
      V part[group] = {};
      rows([&](int64_t, int64_t k, V v, V w) { part[k] += term(v, w); });
      C each[group * lanes<V>];
      std::memcpy(each, part, sizeof each);
      for (int64_t k = 0; k < group * lanes<V>; ++k) total[c + k] += double(each[k]);
    });
    for (int64_t c = 0; c < width; ++c) sum[c] = C(total[c]);
    walk([&](auto, int64_t c, auto rows) {
      rows([&](int64_t i, int64_t k, V v, V w) {
        const int64_t at = c + k * lanes<V>;
        store_at(out + i * row, at, width, last(v, w, load<V>(sum + at)));
      });
    });
  }
};

template <template <bool, class> class Op, bool log, class T>
void run_type(const SoftmaxArgs& a) {
  const T *x = static_cast<const T*>(a.in[0]), *y = static_cast<const T*>(a.in[1]);
  T* out = static_cast<T*>(a.out);
  // As many columns as leave a tile of three tensors in the second-level cache.
  const int64_t tile = std::clamp<int64_t>((int64_t(1) << 16) / a.n / 64 * 64, 64, columns_at_once);
  for (int64_t o = 0; o < a.outer; ++o) {
    const int64_t at = o * a.n * a.row;
    const T* const second = y ? y + at : nullptr;
    if (a.row == 1) {
      Op<log, T>::row(x + at, second, out + at, a.n);
      continue;
    }
    for (int64_t c = 0; c < a.inner; c += tile) {
      Op<log, T>::columns(x + at + c, second ? second + c : nullptr, out + at + c, a.n, a.row,
                          std::min(tile, a.inner - c));
    }
  }
}

template <template <bool, class> class Op, bool log>
void run(const SoftmaxArgs& a) {
  with_type<floats>(a.dtype, [&](auto t) { run_type<Op, log, decltype(t)>(a); });
}

}  // namespace
}  // namespace rusttorch

RUSTTORCH_DEFINE_TABLE(softmax, SoftmaxArgs, {&run<Forward, false>}, {&run<Forward, true>}, {&run<Backward, false>},
                       {&run<Backward, true>})
