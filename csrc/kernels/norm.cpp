#include "norm.h"

#include <array>
#include <cmath>

#include "runs.h"

namespace rusttorch {
namespace {

// Sums of f(sums, i, at) along a row, as doubles after every so many vectors.
template <int count, class V, class F>
RT_INLINE std::array<double, count> sums_of_row(int64_t n, F f) {
  constexpr int64_t at_once = 256 * lanes<V>;
  std::array<double, count> total{};
  for (int64_t begin = 0; begin < n; begin += at_once) {
    V sums[count] = {};
    along_row<V>(begin, std::min(n, begin + at_once), [&](int64_t i, auto at) { f(sums, i, at); });
    for (int k = 0; k < count; ++k) total[k] += double(sum_lanes(sums[k]));
  }
  return total;
}

template <bool centered, bool weighted, bool biased, class Type>
struct Norm {
  using T = Type;
  using C = Compute<T>;
  using V = Vector<C>;

  // R: of the residual, or void where there is none.
  template <class R>
  static void forward(const NormArgs& a) {
    constexpr bool adds = !std::is_void_v<R>;
    const T *weight = static_cast<const T*>(a.weight), *bias = static_cast<const T*>(a.bias);
    const C offset = C(a.offset);
    for (int64_t r = 0; r < a.rows; ++r) {
      const T *input = static_cast<const T*>(a.x) + r * a.n, *x = adds ? static_cast<T*>(a.sum) + r * a.n : input;
      // The first pass writes the sum, if there is one; what is normalized is x, rounded.
      const auto first = [&](int64_t i, auto at) -> V {
        if constexpr (adds) {
          const R* residual = static_cast<const R*>(a.residual) + r * a.n;
          at.put(static_cast<T*>(a.sum) + r * a.n + i, V(at.get(input + i) + at.get(residual + i)));
        }
        return at.get(x + i);
      };
      T* y = static_cast<T*>(a.y) + r * a.n;
      C mean = 0;
      if constexpr (centered) {
        const auto add = [&](V* sum, int64_t i, auto at) { *sum += first(i, at); };
        mean = C(sums_of_row<1, V>(a.n, add)[0] / double(a.n));
        static_cast<C*>(a.mean)[r] = mean;
      }
      const auto add_square = [&](V* sum, int64_t i, auto at) {
        const V d = at.keep((centered ? V(at.get(x + i)) : first(i, at)) - mean);
        *sum += d * d;
      };
      const C rstd = C(1 / std::sqrt(sums_of_row<1, V>(a.n, add_square)[0] / double(a.n) + a.eps));
      static_cast<C*>(a.rstd)[r] = rstd;
      along_row<V>(0, a.n, [&](int64_t i, auto at) {
        V v = (at.get(x + i) - mean) * rstd;
        if constexpr (weighted) v *= at.get(weight + i) + offset;
        if constexpr (biased) v += at.get(bias + i);
        at.put(y + i, v);
      });
    }
  }

  // With h = (x - mean) rstd and d = grad weight: grad_x = rstd (d - mean(d) - h mean(d h)), and without mean(d) where
  // x was not centered.
  static void backward(const NormArgs& a) {
    const T* weight = static_cast<const T*>(a.weight);
    const T* grad_sum = static_cast<const T*>(a.grad_sum);
    C *grad_weight = static_cast<C*>(a.grad_weight), *grad_bias = static_cast<C*>(a.grad_bias);
    const C offset = C(a.offset);
    for (int64_t r = 0; r < a.rows; ++r) {
      const T *x = static_cast<const T*>(a.x) + r * a.n, *grad = static_cast<const T*>(a.grad) + r * a.n;
      T* grad_x = static_cast<T*>(a.y) + r * a.n;
      const C rstd = static_cast<const C*>(a.rstd)[r];
      C mean = 0;
      if constexpr (centered) mean = static_cast<const C*>(a.mean)[r];
      const auto [sum, product] = sums_of_row<2, V>(a.n, [&](V* sums, int64_t i, auto at) {
        const V g = at.get(grad + i), h = (at.get(x + i) - mean) * rstd;
        V d = g;
        if constexpr (weighted) {
          d *= at.get(weight + i) + offset;
          at.put(grad_weight + i, V(at.get(grad_weight + i) + g * h));
        }
        if constexpr (biased) at.put(grad_bias + i, V(at.get(grad_bias + i) + g));
        if constexpr (centered) sums[0] += d;
        sums[1] += d * h;
      });
      const C mean_d = C(sum / double(a.n)), mean_dh = C(product / double(a.n));
      along_row<V>(0, a.n, [&](int64_t i, auto at) {
        V d = at.get(grad + i);
        if constexpr (weighted) d *= at.get(weight + i) + offset;
        const V h = (at.get(x + i) - mean) * rstd;
        V v = rstd * (d - mean_d - h * mean_dh);
        if (grad_sum) v += at.get(grad_sum + r * a.n + i);
        at.put(grad_x + i, v);
      });
    }
  }
};

// f of the Norm that the arguments are for. A bias comes with a weight.
template <bool centered, Dtypes dtypes, class F>
void with_options(const NormArgs& a, bool weighted, bool biased, F f) {
  with_type<dtypes>(a.dtype, [&](auto t) {
    using T = decltype(t);
    if (!weighted) return f(Norm<centered, false, false, T>());
    if constexpr (centered) {
      if (biased) return f(Norm<centered, true, true, T>());
    }
    f(Norm<centered, true, false, T>());
  });
}

template <bool centered, Dtypes dtypes>
void forward(const NormArgs& a) {
  with_options<centered, dtypes>(a, a.weight, a.bias, [&]<class N>(N) {
    using T = typename N::T;
    if (!a.residual) return N::template forward<void>(a);
    if constexpr (std::is_same_v<T, float>) {
      constexpr Dtypes narrow = floats & ~wide_floats;
      if (a.residual_dtype != a.dtype) {
        return with_type<narrow>(a.residual_dtype, [&](auto r) { N::template forward<decltype(r)>(a); });
      }
    }
    N::template forward<T>(a);
  });
}
template <bool centered, Dtypes dtypes>
void backward(const NormArgs& a) {
  with_options<centered, dtypes>(a, a.weight, a.grad_bias, [&](auto norm) { norm.backward(a); });
}

}  // namespace
}  // namespace rusttorch

RUSTTORCH_DEFINE_TABLE(norm, NormArgs, {&forward<true, floats>}, {&backward<true, floats>}, {&forward<false, floats>},
                       {&backward<false, floats>})
