#pragma once

#include <cstdint>

namespace rusttorch {

// How an element of a resized dim is made: of the nearest of the input, of the two or four around, or of all that are
// nearer than a filter reaches, which grows with the step (antialias).
enum class Interpolation : uint8_t { same, nearest, nearest_exact, linear, cubic, linear_aa, cubic_aa };

constexpr bool is_nearest(Interpolation how) {
  return how == Interpolation::nearest || how == Interpolation::nearest_exact;
}
constexpr bool has_filter(Interpolation how) {
  return how == Interpolation::linear_aa || how == Interpolation::cubic_aa;
}

// aten's rules, with its roundings, for one dim: which elements of the input, the taps, the element o of the output is
// made of, and their weights. C is what they are computed in. (constexpr: a device has them too.)
template <class C>
struct ResizeRule {
  Interpolation how;
  bool align_corners;
  int64_t in, out;
  C step;       // how far apart elements of the output are in the input
  C begin = 0;  // where they begin there: filters reach to what is before

  constexpr C reach() const {
    const C half = how == Interpolation::linear_aa ? C(1) : C(2);
    return step >= 1 ? half * step : half;
  }
  // The same rule in another type. (Of a step that was a float's, that float.)
  template <class R>
  constexpr ResizeRule<R> as() const {
    return {how, align_corners, in, out, R(step), R(begin)};
  }

  // The most taps of an element.
  constexpr int64_t taps() const {
    switch (how) {
      case Interpolation::linear: return 2;
      case Interpolation::cubic: return 4;
      case Interpolation::linear_aa:
      case Interpolation::cubic_aa: return -floor(-reach()) * 2 + 1;
      default: return 1;
    }
  }

  // The outputs that an element of the input is a tap of are so many at most, where all lie within the input.
  constexpr int64_t taps_of_gradient() const {
    const C across = 2 * (has_filter(how) ? reach() : how == Interpolation::cubic ? C(2) : C(1));
    return step * C(out) <= across ? out : at_most(int64_t(across / step) + 3, out);
  }

  // f(element, weight) for each tap of o, in ascending order. At a border an element may come twice.
  template <class F>
  constexpr void each_tap(int64_t o, F f) const {
    switch (how) {
      case Interpolation::same: return f(o, C(1));
      case Interpolation::nearest: return f(at_most(floor(C(o) * step), in - 1), C(1));
      case Interpolation::nearest_exact: return f(at_most(floor((C(o) + C(0.5)) * step), in - 1), C(1));
      case Interpolation::linear: return linear(o, f);
      case Interpolation::cubic: return cubic(o, f);
      default: return filtered(o, f);
    }
  }

 private:
  static constexpr int64_t floor(float x) {
    const int64_t whole = int64_t(x);
    return whole - (float(whole) > x);
  }
  static constexpr int64_t at_most(int64_t i, int64_t most) { return i < most ? i : most; }
  static constexpr int64_t at_least(int64_t i, int64_t least) { return i > least ? i : least; }

  // Where in the input o is: after the element i, by so much of the way to the next.
  struct Position {
    int64_t i;
    C beyond;
  };
  constexpr Position position(int64_t o, bool may_be_before) const {
    C at = align_corners ? step * C(o) : step * (C(o) + C(0.5)) - C(0.5);
    if (at < 0 && !may_be_before) at = 0;
    const int64_t i = at_most(floor(float(at)), in - 1);
    const C beyond = at - C(i);
    return {i, beyond < 0 ? C(0) : beyond > 1 ? C(1) : beyond};
  }

  template <class F>
  constexpr void linear(int64_t o, F f) const {
    const Position at = in == out ? Position{o, 0} : position(o, false);
    f(at.i, 1 - at.beyond);
    f(in == out ? o : at_most(at.i + 1, in - 1), at.beyond);
  }

  // The cubic convolution's weight of an element x away, with its slope a.
  static constexpr C near_weight(C x, C a) { return ((a + 2) * x - (a + 3)) * x * x + 1; }
  static constexpr C far_weight(C x, C a) { return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a; }

  template <class F>
  constexpr void cubic(int64_t o, F f) const {
    constexpr C a = C(-0.75);
    const Position at = position(o, true);
    const C rest = 1 - at.beyond;
    const C weights[4] = {far_weight(at.beyond + 1, a), near_weight(at.beyond, a), near_weight(rest, a),
                          far_weight(rest + 1, a)};
    for (int k = 0; k < 4; ++k) f(at_least(at_most(at.i + k - 1, in - 1), 0), weights[k]);
  }

  // Those within reach, by weights whose sum is 1.
  template <class F>
  constexpr void filtered(int64_t o, F f) const {
    const C center = begin + step * (C(o) + C(0.5)), reach = this->reach(), narrower = step >= 1 ? 1 / step : C(1);
    const int64_t first = at_least(int64_t(center - reach + 0.5), 0);
    const int64_t last = at_most(at_most(int64_t(center + reach + 0.5), in), first + taps());
    const auto weight = [&](int64_t i) {
      const C distance = C((C(i) - center + 0.5) * narrower), x = distance < 0 ? -distance : distance;
      if (how == Interpolation::linear_aa) return x < 1 ? 1 - x : C(0);
      return x < 1 ? near_weight(x, C(-0.5)) : x < 2 ? far_weight(x, C(-0.5)) : C(0);
    };
    C total = 0;
    for (int64_t i = first; i < last; ++i) total += weight(i);
    for (int64_t i = first; i < last; ++i) f(i, total == 0 ? C(0) : weight(i) / total);
  }
};

}  // namespace rusttorch
