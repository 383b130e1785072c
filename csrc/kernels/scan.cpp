#include "scan.h"

#include <algorithm>

#include "runs.h"

namespace rusttorch {
namespace {

constexpr int64_t columns_of_a_scan = 256;

// Running sums as doubles (integers as int64), as in stock.
template <class T>
struct Sum {
  using C = Compute<T>;
  using S = std::conditional_t<is_float_type<T>, double, int64_t>;
  using Out = std::conditional_t<is_float_type<T>, T, int64_t>;

  // Sums within a vector by doubling the distance, then the sum of all before it.
  static void row(const T* x, Out* out, int64_t n) {
    S total = 0;
    int64_t i = 0;
    if constexpr (is_float_type<T>) {
      using V = Vector<C>;
      using D = DoublesOf<V>;
      constexpr int64_t L = lanes<D>;
      for (; i + lanes<V> <= n; i += lanes<V>) {
        auto doubles = to_doubles(load<V>(x + i));
        for (auto& d : doubles.half) {
          for (int64_t apart = 1; apart < L; apart *= 2) d += shifted(d, apart);
          d += total;
          total = d[L - 1];
        }
        store(out + i, from_doubles<V>(doubles));
      }
    }
    for (; i < n; ++i) {
      total += S(widen(x[i]));
      store_one(out + i, total);
    }
  }

  static void columns(const T* x, Out* out, int64_t*, int64_t n, int64_t row, int64_t width) {
    S total[columns_of_a_scan] = {};
    for (int64_t r = 0; r < n; ++r) {
      for (int64_t c = 0; c < width; ++c) {
        total[c] += S(widen(x[r * row + c]));
        store_one(out + r * row + c, total[c]);
      }
    }
  }

 private:
  // The lanes moved up, zeros from below.
  template <class D>
  RT_INLINE static D shifted(D d, int64_t by) {
    constexpr int64_t L = lanes<D>;
    bits_t<D> from;
    for (int64_t k = 0; k < L; ++k) from[k] = uint64_t(k >= by ? k - by : L + k);
    return __builtin_shuffle(d, D{}, from);
  }
};

template <bool largest, class T>
struct Extreme {
  using C = Compute<T>;
  using Out = T;
  // The last of equals, and the last NaN, as in stock. (A row is stock's to scan: ops/scan.cpp.)
  RT_INLINE static bool takes(C x, C best) { return (x != x) | ((best == best) & (largest ? x >= best : x <= best)); }

  static void columns(const T* x, T* out, int64_t* index, int64_t n, int64_t row, int64_t width) {
    C best[columns_of_a_scan];
    int64_t at[columns_of_a_scan] = {};
    for (int64_t c = 0; c < width; ++c) best[c] = widen(x[c]);
    for (int64_t r = 0; r < n; ++r) {
      for (int64_t c = 0; c < width; ++c) {
        const C v = widen(x[r * row + c]);
        const bool take = takes(v, best[c]);
        best[c] = take ? v : best[c];
        at[c] = take ? r : at[c];
      }
      for (int64_t c = 0; c < width; ++c) store_one(out + r * row + c, best[c]);
      std::copy_n(at, width, index + r * row);
    }
  }
};
template <class T>
using Largest = Extreme<true, T>;
template <class T>
using Smallest = Extreme<false, T>;

template <class Scan, class T>
void run_type(const ScanArgs& a) {
  using Out = typename Scan::Out;
  for (int64_t o = 0; o < a.outer; ++o) {
    const int64_t at = o * a.n * a.row;
    const T* x = static_cast<const T*>(a.in) + at;
    Out* out = static_cast<Out*>(a.out) + at;
    int64_t* index = a.index ? a.index + at : nullptr;
    if constexpr (requires { Scan::row(x, out, a.n); }) {
      if (a.row == 1) {
        Scan::row(x, out, a.n);
        continue;
      }
    }
    for (int64_t c = 0; c < a.inner; c += columns_of_a_scan) {
      Scan::columns(x + c, out + c, index ? index + c : nullptr, a.n, a.row, std::min(columns_of_a_scan, a.inner - c));
    }
  }
}

template <template <class> class Scan>
void run(const ScanArgs& a) {
  with_type<numbers>(a.dtype, [&](auto t) { run_type<Scan<decltype(t)>, decltype(t)>(a); });
}

}  // namespace
}  // namespace rusttorch

RUSTTORCH_DEFINE_TABLE(scan, ScanArgs, {&run<Sum>}, {&run<Largest>}, {&run<Smallest>})
