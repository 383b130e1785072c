#include "cross_entropy.h"

#include <cmath>

#include "math.h"
#include "runs.h"

namespace rusttorch {
namespace {

template <class T>
struct CrossEntropy {
  using C = Compute<T>;
  using V = Vector<C>;

  const CrossEntropyArgs& a;
  const T* weight = static_cast<const T*>(a.weight);
  const C even = C(a.smoothing / double(a.classes)), kept = C(1 - a.smoothing);
  double all_weights = weight ? 0 : double(a.classes);

  explicit CrossEntropy(const CrossEntropyArgs& args) : a(args) {
    for (int64_t c = 0; weight && c < a.classes; ++c) all_weights += double(widen(weight[c]));
  }

  double weight_of(int64_t c) const { return weight ? double(widen(weight[c])) : 1; }
  const T* row(int64_t r) const { return static_cast<const T*>(a.x) + r * a.classes; }
  const T* probabilities(int64_t r) const { return static_cast<const T*>(a.probabilities) + r * a.classes; }
  bool ignores(int64_t r) const { return a.target && a.target[r] == a.ignore_index; }

  // log(sum(exp(x))) as the largest and the sum of exp(x - largest), of which the logarithm is still to be taken.
  struct SumOfExp {
    double largest, sum;
  };
  // Block by block, so that the row is read from memory once.
  SumOfExp sum_of_exp(const T* x) const {
    const auto join = [](auto p, auto q) { return larger(p, q); };
    constexpr C lowest = rusttorch::lowest<C>;
    if (a.classes <= lanes<V>) {
      const V v = a.classes == lanes<V> ? load<V>(x) : load_part<V>(x, a.classes, lowest);
      const C m = fold_lanes(v, join);
      return {double(m), double(sum_lanes(math::exp_below(V(v - m))))};
    }
    C m = lowest;
    double sum = 0;
    for (int64_t i = 0; i < a.classes; i += block<V>) {
      const int64_t count = std::min(block<V>, a.classes - i);
      V sums[vectors<V>] = {};
      const C here = largest_of_row<V>(x + i, count);
      if (!(here <= m)) {  // larger, or NaN
        sum *= m == lowest ? 0 : std::exp(double(m) - double(here));
        m = here;
      }
      if (m == lowest) continue;  // nothing but -inf so far
      const V out = splat<V>(m);
      each_vector<V>(x + i, count, lowest, [&](int64_t k, V v) { sums[k] += math::exp_below(V(v - out)); });
      sum += sum_vectors(sums);
    }
    return {double(m), sum};
  }

  // q of a vector of classes, without the target class's own part.
  RT_INLINE V q(V p, V w) const { return (a.target ? splat<V>(even) : V(p * kept + even)) * w; }

  // f(x, q without the target class's part) over the classes of a row, and what f returns to out.
  template <class F>
  RT_INLINE void each_class(int64_t r, T* out, F f) const {
    const T *x = row(r), *p = a.target ? x : probabilities(r), *w = weight ? weight : x;
    const auto at = [&](V v, V probability, V w) { return f(v, q(probability, weight ? w : splat<V>(C(1)))); };
    int64_t i = 0;
    for (; i + lanes<V> <= a.classes; i += lanes<V>) {
      const V y = at(load<V>(x + i), load<V>(p + i), load<V>(w + i));
      if (out) store(out + i, y);
    }
    if (i < a.classes) {
      const int64_t n = a.classes - i;
      const V y = at(load_part<V>(x + i, n, 0), load_part<V>(p + i, n, 0), load_part<V>(w + i, n, 0));
      if (out) store_part(out + i, y, n);
    }
  }

  // lse - x of a class.
  double minus_log(int64_t r, int64_t c) const { return (a.largest[r] - double(widen(row(r)[c]))) + a.log_sum[r]; }

  double spread_loss(int64_t r) const {
    const C largest = C(a.largest[r]), log_sum = C(a.log_sum[r]);
    double total = 0;
    V sums = {};
    int64_t count = 0, left = a.classes;
    each_class(r, nullptr, [&](V x, V q) {
      V term = q * ((largest - x) + log_sum);
      if (left < lanes<V>) term = keep_part(term, left, 0);
      left -= lanes<V>;
      sums += term;
      if (++count % rows_at_once == 0) {
        total += sum_lanes(sums);
        sums = V{};
      }
      return x;
    });
    return total + sum_lanes(sums);
  }

  double loss(int64_t r) const {
    if (ignores(r)) return 0;
    double total = !a.target || a.smoothing != 0 ? spread_loss(r) : 0;
    if (a.target) total += (1 - a.smoothing) * weight_of(a.target[r]) * minus_log(r, a.target[r]);
    const double lse = a.largest[r] + a.log_sum[r];
    return a.z_loss != 0 ? total + a.z_loss * lse * lse : total;
  }

  T* grad_x(int64_t r) const { return static_cast<T*>(a.grad_x) + r * a.classes; }

  // The slope of softcap tanh, where that is x.
  template <class U>
  RT_INLINE U uncapped(U x) const {
    const U t = x * lane_t<U>(1 / a.softcap);
    return lane_t<U>(1) - t * t;
  }

  // g (Q softmax(x) - q), where Q is the sum of q; with z_loss it is 2 z_loss lse more.
  void slope(int64_t r, double g) const {
    T* out = grad_x(r);
    if (ignores(r)) {
      std::fill_n(out, a.classes, T{});
      return;
    }
    const double own = a.target ? (1 - a.smoothing) * weight_of(a.target[r]) : 0;
    double Q = own;
    if (a.target && a.smoothing != 0) Q += double(even) * all_weights;
    if (!a.target) {
      Q = 0;
      V sums = {};
      int64_t left = a.classes;
      each_class(r, nullptr, [&](V x, V q) {
        sums += left < lanes<V> ? keep_part(q, left, 0) : q;
        left -= lanes<V>;
        return x;
      });
      Q = sum_lanes(sums);
    }
    const double at_target = a.target ? std::exp(-minus_log(r, a.target[r])) : 0;  // now, as grad_x may be x
    if (a.z_loss != 0) Q += 2 * a.z_loss * (a.largest[r] + a.log_sum[r]);
    const double of_cap = a.target && a.softcap != 0 ? uncapped(double(widen(row(r)[a.target[r]]))) : 1;  // now, too
    const V up = splat<V>(C(g * Q)), down = splat<V>(C(g));
    // lse in two parts, so that its rounding is not felt in the exponential.
    const C lse = C(a.largest[r] + a.log_sum[r]), rest = C((a.largest[r] - double(lse)) + a.log_sum[r]);
    const auto softmax = [&](V x) { return V(math::exp(V((x - lse) - rest)) * up); };
    if (a.softcap != 0) {
      each_class(r, out, [&](V x, V q) { return V((softmax(x) - down * q) * uncapped(x)); });
    } else if (a.target && a.smoothing == 0) {
      each_class(r, out, [&](V x, V) { return softmax(x); });
    } else {
      each_class(r, out, [&](V x, V q) { return V(softmax(x) - down * q); });
    }
    if (!a.target) return;
    const int64_t t = a.target[r];
    const double spread = a.smoothing != 0 ? double(even) * weight_of(t) : 0;
    store_one(out + t, g * (Q * at_target - spread - own) * of_cap);
  }

  // x times g.
  void scaled(int64_t r, double g) const {
    const T* x = row(r);
    T* out = grad_x(r);
    if (ignores(r)) {
      std::fill_n(out, a.classes, T{});
      return;
    }
    const V factor = splat<V>(C(g));
    int64_t i = 0;
    for (; i + lanes<V> <= a.classes; i += lanes<V>) store(out + i, V(load<V>(x + i) * factor));
    if (const int64_t n = a.classes - i) store_part(out + i, V(load_part<V>(x + i, n, 0) * factor), n);
  }
};

// A few rows at a time: their sums of exponentials, then all their logarithms, then their losses.
template <class T>
void forward_type(const CrossEntropyArgs& a) {
  using D = Vector<double>;
  constexpr int64_t at_once = 64;
  const CrossEntropy<T> rows(a);
  double total = 0;
  for (int64_t first = 0; first < a.rows; first += at_once) {
    const int64_t end = std::min(a.rows, first + at_once);
    double sum[at_once] = {};
    for (int64_t r = first; r < end; ++r) {
      a.largest[r] = 0;
      if (rows.ignores(r)) continue;
      const auto s = rows.sum_of_exp(rows.row(r));
      a.largest[r] = s.largest;
      sum[r - first] = s.sum;
    }
    for (int64_t k = 0; k < end - first; k += lanes<D>) store(sum + k, math::log(load<D>(sum + k)));
    for (int64_t r = first; r < end; ++r) {
      a.log_sum[r] = sum[r - first];
      const double loss = rows.loss(r);
      total += loss;
      if (a.loss) store_one(static_cast<T*>(a.loss) + r, loss);
    }
  }
  *a.total = total;
}

template <class T>
void slope_type(const CrossEntropyArgs& a) {
  const CrossEntropy<T> rows(a);
  const double scale = a.divisor ? 1 / *a.divisor : 1;
  for (int64_t r = 0; r < a.rows; ++r) rows.slope(r, scale);
}

template <class T>
void backward_type(const CrossEntropyArgs& a) {
  const CrossEntropy<T> rows(a);
  const T* g = static_cast<const T*>(a.grad);
  for (int64_t r = 0; r < a.rows; ++r) rows.scaled(r, double(widen(g[a.grad_of_rows ? r : 0])));
}

void forward(const CrossEntropyArgs& a) {
  with_type<floats>(a.dtype, [&](auto t) { forward_type<decltype(t)>(a); });
}
void slope(const CrossEntropyArgs& a) {
  with_type<floats>(a.dtype, [&](auto t) { slope_type<decltype(t)>(a); });
}
void backward(const CrossEntropyArgs& a) {
  with_type<floats>(a.dtype, [&](auto t) { backward_type<decltype(t)>(a); });
}

}  // namespace
}  // namespace rusttorch

RUSTTORCH_DEFINE_TABLE(cross_entropy, CrossEntropyArgs, {&forward}, {&slope}, {&backward})
