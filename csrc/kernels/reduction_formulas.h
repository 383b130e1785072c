#pragma once

// What reductions are, on the CPU and on a device: how two elements, or what parts of the elements come to, are put
// together. Floats go to doubles after a few dozen.

#include <cmath>

#include "lanes.h"

namespace rusttorch {
namespace {

// ---- What is folded into one number: join(term(x), term(y)), and what finish makes of the n elements' total.

struct Summed {
  static constexpr bool orders = false;
  static constexpr bool rounds = true;  // floats are put together as doubles, integers as int64
  template <class C>
  static constexpr C identity = 0;
  template <class V>
  RT_INLINE static V join(V a, V b) {
    return a + b;
  }
  template <class State>
  RT_INLINE static State finish(State total, int64_t) {
    return total;
  }
};
struct sum : Summed {
  template <class V>
  RT_INLINE static V term(V x) {
    return x;
  }
};
struct mean : sum {
  RT_INLINE static double finish(double total, int64_t n) { return total / double(n); }
};
struct norm1 : Summed {
  template <class V>
  RT_INLINE static V term(V x) {
    return abs(x);
  }
};
struct norm2 : Summed {
  template <class V>
  RT_INLINE static V term(V x) {
    return x * x;
  }
  RT_INLINE static double finish(double total, int64_t) { return ::sqrt(total); }
};

struct Joined {
  static constexpr bool orders = false;  // takes one of two, by a comparison: quick(a, b), if neither is NaN
  static constexpr bool rounds = false;
  template <class V>
  RT_INLINE static V term(V x) {
    return x;
  }
  template <class C>
  RT_INLINE static C finish(C total, int64_t) {
    return total;
  }
};
struct prod : Joined {
  static constexpr bool rounds = true;
  template <class C>
  static constexpr C identity = 1;
  template <class V>
  RT_INLINE static V join(V a, V b) {
    return a * b;
  }
};
struct amax : Joined {
  template <class C>
  static constexpr C identity =
      std::is_floating_point_v<C> ? -std::numeric_limits<C>::infinity() : std::numeric_limits<C>::lowest();
  static constexpr bool orders = true;
  template <class V>
  RT_INLINE static V quick(V a, V b) {
    return a > b ? a : b;
  }
  template <class V>
  RT_INLINE static V join(V a, V b) {
    return largest(a, b);
  }
};
struct amin : Joined {
  template <class C>
  static constexpr C identity =
      std::is_floating_point_v<C> ? std::numeric_limits<C>::infinity() : std::numeric_limits<C>::max();
  static constexpr bool orders = true;
  template <class V>
  RT_INLINE static V quick(V a, V b) {
    return a < b ? a : b;
  }
  template <class V>
  RT_INLINE static V join(V a, V b) {
    return smallest(a, b);
  }
};
struct norm_inf : amax {
  template <class C>
  static constexpr C identity = 0;
  template <class V>
  RT_INLINE static V term(V x) {
    return abs(x);
  }
};

// ---- Which of two comes first.

struct Largest {
  using fold = amax;
  template <class V>
  RT_INLINE static auto better(V x, V than) {
    return exceeds(x, than);
  }
};
struct Smallest {
  using fold = amin;
  template <class V>
  RT_INLINE static auto better(V x, V than) {
    return precedes(x, than);
  }
};

// ---- Variance (T. F. Chan, G. H. Golub, R. J. LeVeque, 1979).

enum class Moment { var, std, var_mean };

struct MomentsState {
  double n = 0, mean = 0, squares = 0;  // squares of the distances to the mean, summed

  RT_INLINE void add(const MomentsState& b) {
    if (n == 0) {
      *this = b;
      return;
    }
    if (b.n == 0) return;
    const double all = n + b.n, apart = b.mean - mean;
    squares += b.squares + apart * apart * (n * b.n / all);
    mean += apart * (b.n / all);
    n = all;
  }
  RT_INLINE double result(Moment moment, double correction) const {
    const double var = squares / (n > correction ? n - correction : 0);
    return moment == Moment::std ? ::sqrt(var) : var;
  }
};

// ---- log(sum(exp(x))), with the largest x taken out.

struct ExpSumState {
  double largest = -std::numeric_limits<double>::infinity(), sum = 0;  // of exp(x - largest)

  RT_INLINE void add(const ExpSumState& b) {
    if (b.sum == 0) return;  // of nothing but -inf
    if (b.largest > largest) {
      *this = {b.largest, scaled(sum, largest - b.largest) + b.sum};
    } else {
      sum += b.largest == largest ? b.sum : scaled(b.sum, b.largest - largest);
    }
  }
  // sum exp(by), where an infinite sum stays so.
  RT_INLINE static double scaled(double sum, double by) {
    return sum > std::numeric_limits<double>::max() ? sum : sum * ::exp(by);
  }
  RT_INLINE double result() const { return ::log(sum) + (sum == 0 ? 0 : largest); }
};

}  // namespace
}  // namespace rusttorch
