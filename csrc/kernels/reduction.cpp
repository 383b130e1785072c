#include "reduction.h"

#include <algorithm>
#include <cmath>

#include "math.h"
#include "reduction_formulas.h"
#include "runs.h"

// A reducer R<T> is what a formula is for inputs of type T:
//   State                     what some of the elements come to; add(State, State) puts two together, the later second
//   row(x, n)                 the state of x[0..n)
//   columns(x, n, row, width, states)   of x[0..n)[c], for each c of at most columns_at_once
//   write(args, state, k)     the k-th result
// What differs in write() only inherits the rest, which is then compiled once.
// Floats are summed a few dozen at a time, and those sums as doubles: on long inputs that errs less than a tree of
// float sums.

namespace rusttorch {
namespace {

// ---- What is folded into one number: sum, mean, prod, norms, largest and smallest (reduction_formulas.h).

// The rows from r to end, as each_group gives them, joined to part; four at a time, which errs less than one by one.
template <class F, class V, class Group, class Load>
RT_INLINE void fold_rows(V* part, Group group, int64_t r, int64_t end, Load load) {
  for (; r + 4 <= end; r += 4) {
    for (int64_t k = 0; k < group; ++k) {
      const V first = F::join(F::term(load(r, k)), F::term(load(r + 1, k)));
      const V second = F::join(F::term(load(r + 2, k)), F::term(load(r + 3, k)));
      part[k] = F::join(part[k], F::join(first, second));
    }
  }
  for (; r < end; ++r) {
    for (int64_t k = 0; k < group; ++k) part[k] = F::join(part[k], F::term(load(r, k)));
  }
}

template <class F, class T>
struct Fold {
  using C = Compute<T>;
  static constexpr int bytes = is_narrow<T> ? vector_bytes : narrow_bytes;  // memory is the bound
  using V = Vector<std::conditional_t<is_float_type<T>, C, float>, bytes>;
  // Sums and products of integers are int64, as in aten.
  static constexpr bool widens = !is_float_type<T> && !std::is_base_of_v<amax, F> && !std::is_base_of_v<amin, F>;
  using State = std::conditional_t<widens, int64_t, std::conditional_t<F::rounds, double, C>>;
  using Out = std::conditional_t<widens, int64_t, T>;

  static void add(State& a, const State& b) { a = F::join(a, b); }

  static State row(const T* x, int64_t n) {
    State total = F::template identity<State>;
    if constexpr (is_float_type<T> && F::orders) {
      constexpr int64_t at_once = 4096;
      for (int64_t i = 0; i < n; i += at_once) add(total, best_of(x + i, std::min(at_once, n - i)));
    } else if constexpr (is_float_type<T>) {
      const auto join = [](auto a, auto b) { return F::join(a, b); };
      for (int64_t i = 0; i < n; i += block<V>) {
        V part[vectors<V>];
        for (V& p : part) p = splat<V>(neutral);
        each_vector<V>(x + i, std::min(block<V>, n - i), neutral,
                       [&](int64_t k, V v) { part[k] = F::join(part[k], F::term(v)); });
        add(total, fold_lanes_to<State>(fold_vectors(part, join), join));
      }
    } else {
      for (int64_t i = 0; i < n; ++i) total = F::join(total, F::term(State(x[i])));
    }
    return total;
  }

  static void columns(const T* x, int64_t n, int64_t row, int64_t width, State* totals) {
    if constexpr (is_float_type<T>) {
      Columns<State> sums;
      std::fill_n(sums, width + lanes<V>, F::template identity<State>);
      each_group<V>(x, n, row, width, [&](auto group, int64_t c, int64_t r, int64_t end, auto load) {
        V part[group];
        for (V& p : part) p = splat<V>(neutral);
        fold_rows<F>(part, group, r, end, load);
        C each[group * lanes<V>];
        std::memcpy(each, part, sizeof each);
        for (int64_t k = 0; k < group * lanes<V>; ++k) sums[c + k] = F::join(sums[c + k], State(each[k]));
      });
      std::copy_n(sums, width, totals);
    } else {
      std::fill_n(totals, width, F::template identity<State>);
      for (int64_t r = 0; r < n; ++r) {
        for (int64_t c = 0; c < width; ++c) totals[c] = F::join(totals[c], F::term(State(x[r * row + c])));
      }
    }
  }

  static void write(const ReductionArgs& a, const State& total, int64_t k) {
    store_one(static_cast<Out*>(a.out[0]) + k, F::finish(total, a.n));
  }

 private:
  static constexpr C neutral = F::template identity<C>;  // an element that changes nothing

  // A comparison that respects NaN takes three instructions, and would be what a row waits for. So one that does not,
  // and zero times each number summed beside it, which is zero unless one was NaN or infinite: then once more, with
  // care.
  static C best_of(const T* x, int64_t n) {
    const auto quick = [](auto a, auto b) { return F::quick(a, b); };
    const C first = widen(x[0]);
    V best[vectors<V>], zero[vectors<V>] = {};
    for (V& b : best) b = F::term(splat<V>(first));
    each_vector<V>(x, n, first, [&](int64_t k, V v) {
      best[k] = F::quick(best[k], F::term(v));
      zero[k] += v * C(0);
    });
    if (sum_vectors(zero) == 0) return fold_lanes(fold_vectors(best, quick), quick);
    const auto join = [](auto a, auto b) { return F::join(a, b); };
    each_vector<V>(x, n, first, [&](int64_t k, V v) { best[k] = F::join(best[k], F::term(v)); });
    return fold_lanes(fold_vectors(best, join), join);
  }
};

template <class T>
struct Fold<mean, T> : Fold<sum, T> {
  static void write(const ReductionArgs& a, double total, int64_t k) {
    store_one(static_cast<T*>(a.out[0]) + k, mean::finish(total, a.n));
  }
};

// ---- The largest or smallest, and where it is first.

template <class Side, class T>
struct Best {
  using C = Compute<T>;
  struct State {
    C value = Side::fold::template identity<C>;
    int64_t index = 0;
  };

  static void add(State& a, const State& b) {
    if (Side::better(b.value, a.value)) a = b;
  }

  // The best of each block, then where it is in the first block that has it.
  static State row(const T* x, int64_t n) {
    constexpr int64_t at_once = 4096;
    State best;
    for (int64_t i = 0; i < n; i += at_once) {
      add(best, {C(Fold<typename Side::fold, T>::row(x + i, std::min(at_once, n - i))), i});
    }
    best.index += find(x + best.index, std::min(at_once, n - best.index), best.value);
    best.value = widen(x[best.index]);  // of two zeros, the one that is there
    return best;
  }

  // Likewise, with blocks of rows.
  static void columns(const T* x, int64_t n, int64_t row, int64_t width, State* states) {
    if constexpr (is_float_type<T>) {
      using V = typename Fold<typename Side::fold, T>::V;
      Columns<C> best;
      Columns<int64_t> start = {};
      std::fill_n(best, width + lanes<V>, State().value);
      each_group<V>(x, n, row, width, [&](auto group, int64_t c, int64_t r, int64_t end, auto get) {
        V part[group];
        for (V& p : part) p = splat<V>(State().value);
        fold_rows<typename Side::fold>(part, group, r, end, get);
        C each[group * lanes<V>];
        std::memcpy(each, part, sizeof each);
        for (int64_t k = 0; k < group * lanes<V>; ++k) {
          if (!Side::better(each[k], best[c + k])) continue;
          best[c + k] = each[k];
          start[c + k] = r;
        }
      });
      for (int64_t c = 0; c < width; ++c) {
        int64_t i = start[c];  // it is there, unless another thread writes to x
        while (i + 1 < n && !is(widen(x[i * row + c]), best[c])) ++i;
        states[c] = {widen(x[i * row + c]), i};
      }
    } else {
      for (int64_t c = 0; c < width; ++c) states[c] = {x[c], 0};
      for (int64_t r = 1; r < n; ++r) {
        for (int64_t c = 0; c < width; ++c) {
          if (Side::better(x[r * row + c], states[c].value)) states[c] = {x[r * row + c], r};
        }
      }
    }
  }

 private:
  static bool is(C x, C value) { return value != value ? x != x : x == value; }
  // The index of the first that is value. There is one, unless another thread writes to x: then the last.
  static int64_t find(const T* x, int64_t n, C value) {
    int64_t i = 0;
    if constexpr (is_float_type<T>) {
      using V = Vector<C>;
      for (; i + lanes<V> <= n; i += lanes<V>) {
        const V v = load<V>(x + i);
        if (any_lane(value != value ? v != v : v == value)) break;
      }
    }
    while (i + 1 < n && !is(widen(x[i]), value)) ++i;
    return i;
  }
};

template <class Side, bool values, class T>
struct Extreme : Best<Side, T> {
  static void write(const ReductionArgs& a, const typename Best<Side, T>::State& state, int64_t k) {
    if constexpr (values) store_one(static_cast<T*>(a.out[0]) + k, state.value);
    static_cast<int64_t*>(a.out[values])[k] = state.index;
  }
};

// ---- Whether any, or all, are not zero.

template <bool wanted, class T>
struct Truth {
  using State = bool;  // whether an element of the wanted truth was seen
  // The element's bits without the sign of zero. Words of one width, which the compiler makes vectors of.
  using Word = std::conditional_t<
      sizeof(T) == 1, uint8_t,
      std::conditional_t<sizeof(T) == 2, uint16_t, std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>>>;
  static Word seen(T x) {
    const Word word = __builtin_bit_cast(Word, x);
    const Word magnitude = is_float_type<T> ? Word(word << 1) : word;
    return wanted ? magnitude : Word(magnitude == 0);
  }
  static void add(State& a, State b) { a |= b; }

  static State row(const T* x, int64_t n) {
    constexpr int64_t step = 4096;  // between looks at the result
    for (int64_t i = 0; i < n; i += step) {
      Word any = 0;
      for (int64_t k = i; k < std::min(n, i + step); ++k) any |= seen(x[k]);
      if (any) return true;
    }
    return false;
  }
  static void columns(const T* x, int64_t n, int64_t row, int64_t width, State* states) {
    Columns<Word> any = {};
    for (int64_t r = 0; r < n; ++r) {
      for (int64_t c = 0; c < width; ++c) any[c] |= seen(x[r * row + c]);
    }
    for (int64_t c = 0; c < width; ++c) states[c] = any[c] != 0;
  }
  static void write(const ReductionArgs& a, State seen, int64_t k) { static_cast<bool*>(a.out[0])[k] = seen == wanted; }
};

// ---- Variance: of a block by its own mean, in doubles, as in stock; then blocks put together (T. F. Chan, G. H.
// Golub, R. J. LeVeque, 1979).

template <class T>
struct MomentsOf {
  using C = Compute<T>;
  using V = Vector<C>;
  using State = MomentsState;

  static State of_floats(const T* x) {
    constexpr int64_t count = block<V>, part = vectors<V> * lanes<V> * 8;
    const C mean = C(Fold<sum, T>::row(x, count) / double(count));
    Sums squares[vectors<V>];
    V rest = {};  // what the rounding of the mean left
    for (int64_t i = 0; i < count; i += part) {
      V some[vectors<V>] = {};
      each_vector<V>(x + i, part, 0, [&](int64_t k, V v) {
        const V d = v - mean;
        some[k] += d * d;
        rest += d;
      });
      for (int64_t k = 0; k < vectors<V>; ++k) squares[k].add(some[k]);
    }
    const double left = sum_lanes(rest) / double(count);
    return {double(count), double(mean) + left, total(squares) - left * left * double(count)};
  }

  static State of_doubles(const T* x, int64_t count) {
    Sums sums[vectors<V>], squares[vectors<V>];
    each_vector<V>(x, count, 0, [&](int64_t k, V v) { sums[k].add(v); });
    const double mean = total(sums) / double(count);
    each_vector<V>(x, count, C(mean), [&](int64_t k, V v) { squares[k].add_square(v, mean); });
    // The last vector's lanes beyond the end held the mean, rounded.
    const double rest = double((lanes<V> - count % lanes<V>) % lanes<V>), rounding = double(C(mean)) - mean;
    return {double(count), mean, total(squares) - rest * rounding * rounding};
  }

  // Sums of doubles, one for each lane of V.
  struct Sums {
    static constexpr int halves = sizeof(double) / sizeof(C);
    DoublesOf<V> sum[halves] = {};

    RT_INLINE void add(V v) {
      const auto d = to_doubles(v);
      for (int h = 0; h < halves; ++h) sum[h] += d.half[h];
    }
    RT_INLINE void add_square(V v, double mean) {
      const auto d = to_doubles(v);
      for (int h = 0; h < halves; ++h) sum[h] += (d.half[h] - mean) * (d.half[h] - mean);
    }
    RT_INLINE void add_square(V v, const Sums& mean) {
      const auto d = to_doubles(v);
      for (int h = 0; h < halves; ++h) sum[h] += (d.half[h] - mean.sum[h]) * (d.half[h] - mean.sum[h]);
    }
    RT_INLINE void scale(double by) {
      for (auto& s : sum) s *= by;
    }
    double lane(int64_t k) const {
      double each[lanes<V>];
      std::memcpy(each, sum, sizeof each);
      return each[k];
    }
  };
  static double total(const Sums* sums) {
    auto all = DoublesOf<V>{};
    for (int64_t k = 0; k < vectors<V>; ++k) {
      for (const auto& s : sums[k].sum) all += s;
    }
    return sum_lanes(all);
  }

  static void add(State& a, const State& b) { a.add(b); }

  static State row(const T* x, int64_t n) {
    State all;
    int64_t i = 0;
    // So many floats that a few may be summed before they go to doubles.
    if constexpr (std::is_same_v<C, float>) {
      for (; i + block<V> <= n; i += block<V>) add(all, of_floats(x + i));
    }
    for (; i < n; i += block<V>) add(all, of_doubles(x + i, std::min(block<V>, n - i)));
    return all;
  }

  static void columns(const T* x, int64_t n, int64_t row, int64_t width, State* states) {
    Columns<State> all;
    std::fill_n(all, width + lanes<V>, State());
    each_group<V>(x, n, row, width, [&](auto group, int64_t c, int64_t r, int64_t end, auto get) {
      Sums means[group], squares[group];
      for (int64_t i = r; i < end; ++i) {
        for (int64_t k = 0; k < group; ++k) means[k].add(get(i, k));
      }
      const double m = double(end - r);
      for (Sums& mean : means) mean.scale(1 / m);
      for (int64_t i = r; i < end; ++i) {
        for (int64_t k = 0; k < group; ++k) squares[k].add_square(get(i, k), means[k]);
      }
      for (int64_t k = 0; k < group * lanes<V>; ++k) {
        const int64_t v = k / lanes<V>, l = k % lanes<V>;
        add(all[c + k], {m, means[v].lane(l), squares[v].lane(l)});
      }
    });
    std::copy_n(all, width, states);
  }
};

template <Moment moment, class T>
struct Moments : MomentsOf<T> {
  static void write(const ReductionArgs& a, const MomentsState& s, int64_t k) {
    store_one(static_cast<T*>(a.out[0]) + k, s.result(moment, a.scalar));
    if (moment == Moment::var_mean) store_one(static_cast<T*>(a.out[1]) + k, s.mean);
  }
};

// ---- log(sum(exp(x))), with the largest x taken out.

template <class T>
struct logsumexp {
  using C = Compute<T>;
  using V = Vector<C>;
  using State = ExpSumState;

  static void add(State& a, const State& b) { a.add(b); }
  // What to take out: an infinite largest is itself the result, and NaN stays.
  static V shift(V largest) { return select(abs(largest) == std::numeric_limits<C>::infinity(), V{}, largest); }

  static State row(const T* x, int64_t n) {
    State all;
    for (int64_t i = 0; i < n; i += block<V>) {
      const int64_t count = std::min(block<V>, n - i);
      const V out = shift(splat<V>(C(Fold<amax, T>::row(x + i, count))));
      V sums[vectors<V>] = {};
      each_vector<V>(x + i, count, -std::numeric_limits<C>::infinity(),
                     [&](int64_t k, V v) { sums[k] += math::exp(V(v - out)); });
      add(all, {double(out[0]), double(sum_vectors(sums))});
    }
    return all;
  }

  static void columns(const T* x, int64_t n, int64_t row, int64_t width, State* states) {
    Columns<State> all;
    std::fill_n(all, width + lanes<V>, State());
    each_group<V>(x, n, row, width, [&](auto group, int64_t c, int64_t r, int64_t end, auto get) {
      V out[group], sums[group] = {};
      for (V& m : out) m = splat<V>(-std::numeric_limits<C>::infinity());
      fold_rows<amax>(out, group, r, end, get);
      for (V& m : out) m = shift(m);
      for (int64_t i = r; i < end; ++i) {
        for (int64_t k = 0; k < group; ++k) sums[k] += math::exp(V(get(i, k) - out[k]));
      }
      for (int64_t k = 0; k < group * lanes<V>; ++k) {
        add(all[c + k], {double(out[k / lanes<V>][k % lanes<V>]), double(sums[k / lanes<V>][k % lanes<V>])});
      }
    });
    std::copy_n(all, width, states);
  }

  static void write(const ReductionArgs& a, const State& s, int64_t k) {
    store_one(static_cast<T*>(a.out[0]) + k, s.result());
  }
};

// ---- The loops around a reducer, for every dtype.

template <class R, class T>
void run(const ReductionArgs& a) {
  const T* in = static_cast<const T*>(a.in);
  typename R::State states[columns_at_once];
  for (int64_t o = 0; o < a.outer; ++o, in += a.n * a.row) {
    if (a.inner == 1 && a.row == 1) {
      R::write(a, R::row(in, a.n), o);
      continue;
    }
    for (int64_t c = 0; c < a.inner; c += columns_at_once) {
      const int64_t width = std::min(columns_at_once, a.inner - c);
      R::columns(in + c, a.n, a.row, width, states);
      for (int64_t k = 0; k < width; ++k) R::write(a, states[k], o * a.row + c + k);
    }
  }
}

template <class R, class T>
void part(const ReductionArgs& a, ReductionState* to) {
  typename R::State state = R::row(static_cast<const T*>(a.in), a.n);
  if constexpr (requires { state.index; }) state.index += a.first;
  static_assert(sizeof state <= sizeof *to);
  std::memcpy(to->bytes, &state, sizeof state);
}

template <class R, class T>
void join(const ReductionArgs& a, const ReductionState* parts, int64_t count) {
  typename R::State all, next;
  std::memcpy(&all, parts[0].bytes, sizeof all);
  for (int64_t k = 1; k < count; ++k) {
    std::memcpy(&next, parts[k].bytes, sizeof next);
    R::add(all, next);
  }
  R::write(a, all, 0);
}

template <template <class> class R, Dtypes dtypes>
constexpr Kernel<ReductionArgs> reduction_kernel = {
    [](const ReductionArgs& a) { with_type<dtypes>(a.dtype, [&](auto t) { run<R<decltype(t)>, decltype(t)>(a); }); },
    [](const ReductionArgs& a, ReductionState* to) {
      with_type<dtypes>(a.dtype, [&](auto t) { part<R<decltype(t)>, decltype(t)>(a, to); });
    },
    [](const ReductionArgs& a, const ReductionState* parts, int64_t count) {
      with_type<dtypes>(a.dtype, [&](auto t) { join<R<decltype(t)>, decltype(t)>(a, parts, count); });
    },
    dtypes,
};

}  // namespace
}  // namespace rusttorch

#include "reducers.h"

namespace rusttorch {
namespace {

#define RUSTTORCH_REDUCTION_KERNEL(name, dtypes) reduction_kernel<reducer::name, dtypes>,
}  // namespace
}  // namespace rusttorch

RUSTTORCH_DEFINE_TABLE(reduction, ReductionArgs, RUSTTORCH_REDUCTION(RUSTTORCH_REDUCTION_KERNEL))
