#pragma once

// The activation family, one element at a time: the same text makes the CPU loops and the CUDA kernels.
// Semantics (NaN, infinities, signed zero) are those of the aten op of the same name. g is the gradient of the
// output, x the input, y the output. V is float, double or a vector of them.

#include "math.h"

namespace rusttorch::formula {

// X(name, tensors, scalars, types, bound), see pointwise_formulas.h.
#define RUSTTORCH_ACTIVATION(X)                           \
  X(relu, 1, 0, numbers, bandwidth)                       \
  X(leaky_relu, 1, 1, floats, bandwidth)                  \
  X(leaky_relu_backward, 2, 1, floats, bandwidth)         \
  X(sigmoid, 1, 0, floats, arithmetic)                    \
  X(sigmoid_backward, 2, 0, floats, bandwidth)            \
  X(tanh, 1, 0, floats, arithmetic)                       \
  X(tanh_backward, 2, 0, floats, bandwidth)               \
  X(gelu, 1, 0, floats, arithmetic)                       \
  X(gelu_backward, 2, 0, floats, arithmetic)              \
  X(gelu_tanh, 1, 0, floats, arithmetic)                  \
  X(gelu_tanh_backward, 2, 0, floats, arithmetic)         \
  X(elu, 1, 3, floats, arithmetic)                        \
  X(elu_backward, 2, 3, floats, arithmetic)               \
  X(elu_backward_result, 2, 3, floats, bandwidth)         \
  X(silu, 1, 0, floats, arithmetic)                       \
  X(silu_backward, 2, 0, floats, arithmetic)              \
  X(mish, 1, 0, floats, arithmetic)                       \
  X(mish_backward, 2, 0, floats, arithmetic)              \
  X(softplus, 1, 2, floats, arithmetic)                   \
  X(softplus_default, 1, 0, floats, arithmetic)           \
  X(softplus_backward, 2, 2, floats, arithmetic)          \
  X(softsign, 1, 0, floats, arithmetic)                   \
  X(squareplus, 1, 1, floats, arithmetic)                 \
  X(hardswish, 1, 0, floats, bandwidth)                   \
  X(hardswish_backward, 2, 0, floats, bandwidth)          \
  X(hardsigmoid, 1, 0, floats, bandwidth)                 \
  X(hardsigmoid_backward, 2, 0, floats, bandwidth)        \
  X(log_sigmoid, 1, 0, floats, arithmetic)                \
  X(log_sigmoid_forward, 1, 0, floats, arithmetic)        \
  X(log_sigmoid_backward, 3, 0, floats, arithmetic)       \
  X(log_sigmoid_backward_input, 2, 0, floats, arithmetic) \
  X(swiglu, 2, 0, floats, arithmetic)                     \
  X(swiglu_backward, 3, 0, floats, arithmetic)            \
  X(geglu, 2, 0, floats, arithmetic)                      \
  X(geglu_backward, 3, 0, floats, arithmetic)             \
  X(geglu_tanh, 2, 0, floats, arithmetic)                 \
  X(softcap, 1, 2, floats, arithmetic)                    \
  X(geglu_tanh_backward, 3, 0, floats, arithmetic)

// What a formula with two outputs returns.
template <class V>
struct Pair {
  V first, second;
};

template <class V>
RT_INLINE V relu(V x) {
  return at_least(x, lane_t<V>(0));
}
template <class V>
RT_INLINE V leaky_relu(V x, lane_t<V> slope) {
  return select(x > lane_t<V>(0), x, V(x * slope));
}
template <class V>
RT_INLINE V leaky_relu_backward(V g, V x, lane_t<V> slope) {
  return select(x > lane_t<V>(0), g, V(g * slope));
}
template <class V>
RT_INLINE V sigmoid(V x) {
  return math::sigmoid(x);
}
template <class V>
RT_INLINE V sigmoid_backward(V g, V y) {
  return g * (lane_t<V>(1) - y) * y;
}
template <class V>
RT_INLINE V tanh(V x) {
  return math::tanh(x);
}
template <class V>
RT_INLINE V tanh_backward(V g, V y) {
  return g * (lane_t<V>(1) - y * y);
}

// x cdf(x). In float as max(x, 0) - |x| cdf(-|x|): the second term is one polynomial and one power of two, and keeps
// its relative accuracy in the tail, where 1 + erf(x / sqrt(2)) cancels.
template <class V>
RT_INLINE V gelu(V x) {
  if constexpr (math::is_float<V>) {
    const V a = abs(x), t = select(a > 14.5f, V{}, a);  // from where on the second term is 0
    return at_least(x, 0.0f) - t * math::exp2(math::log2_normal_cdf(t));
  } else {
    return 0.5 * x * (1.0 + math::erf(V(x * 0.70710678118654752440)));
  }
}
// cdf(x) + x pdf(x). In float as (x > 0) - sign(x) (cdf(-t) - t pdf(t)), t = |x|: right to 5e-9.
template <class V>
RT_INLINE V gelu_backward(V g, V x) {
  if constexpr (math::is_float<V>) {
    constexpr float half_log2e = 0.72134752044448170368f;
    constexpr float end = 13.25f;  // from where on the power is a denormal number
    const V t = select(abs(x) > end, V{}, abs(x));
    const V slope = math::exp2(V(t * t * -half_log2e)) * math::normal_slope(t);
    const V d = select(abs(x) > end, V{}, slope);
    return g * select(x > 0.0f, V(1.0f - d), d);
  } else {
    const V cdf = 0.5 * (1.0 + math::erf(V(x * 0.70710678118654752440)));
    return g * (cdf + x * math::exp(V(-0.5 * x * x)) * 0.39894228040143267794);
  }
}

// 0.5 x (1 + tanh(u)) = x / (1 + exp(-2 u)), u = sqrt(2 / pi) (x + 0.044715 x^3).
template <class V>
RT_INLINE V gelu_tanh_exp(V x) {
  using T = lane_t<V>;
  constexpr double c = -2 * 0.79788456080286535588;
  if constexpr (math::is_float<V>) {
    constexpr double log2e = 1.4426950408889634074;
    const V w = x * (T(c * log2e) + T(c * log2e * 0.044715) * (x * x));
    return math::exp2_normal(at_most(w, 128.0f));
  } else {
    return math::exp(V(x * (c + c * 0.044715 * (x * x))));
  }
}
template <class V>
RT_INLINE V gelu_tanh(V x) {
  return x / (lane_t<V>(1) + gelu_tanh_exp(x));
}
template <class V>
RT_INLINE V gelu_tanh_backward(V g, V x) {
  using T = lane_t<V>;
  constexpr double c = 2 * 0.79788456080286535588;
  const V s = T(1) / (T(1) + gelu_tanh_exp(x));
  const V du = x * (T(c) + T(c * 3 * 0.044715) * (x * x));  // 2 x du/dx
  return g * (s + s * (T(1) - s) * du);
}

template <class V>
RT_INLINE V elu(V x, lane_t<V> alpha, lane_t<V> scale, lane_t<V> input_scale) {
  return select(x <= lane_t<V>(0), V(math::expm1(V(x * input_scale)) * (alpha * scale)), V(x * scale));
}
template <class V>
RT_INLINE V elu_backward(V g, V x, lane_t<V> alpha, lane_t<V> scale, lane_t<V> input_scale) {
  const V below = g * (input_scale * alpha * scale) * math::exp(V(x * input_scale));
  const V above = g * scale;
  // NaN goes below, on a device above, as in aten.
  return on_device ? select(x <= lane_t<V>(0), below, above) : select(x > lane_t<V>(0), above, below);
}
template <class V>
RT_INLINE V elu_backward_result(V g, V y, lane_t<V> alpha, lane_t<V> scale, lane_t<V> input_scale) {
  // elu's own bound, rounded as there: far below 0 y is its negative, and the sum 0.
  const V above = g * scale, below = g * input_scale * (y + rounded_product(alpha, scale));
  return on_device ? select(y <= lane_t<V>(0), below, above) : select(y > lane_t<V>(0), above, below);
}

template <class V>
RT_INLINE V silu(V x) {
  return x / (lane_t<V>(1) + math::exp(V(-x)));
}
template <class V>
RT_INLINE V silu_backward(V g, V x) {
  using T = lane_t<V>;
  const V s = math::sigmoid(x);
  return g * s * (T(1) + x * (T(1) - s));
}

// tanh(softplus(x)) = n / (n + 2), n = e (e + 2), e = exp(x). From here on it is 1:
template <class T>
constexpr T mish_end = sizeof(T) == 4 ? 20 : 40;

template <class V>
RT_INLINE V mish(V x) {
  using T = lane_t<V>;
  const V e = math::exp_below(at_most(x, mish_end<T>));
  const V n = e * (e + T(2));
  return x * (n / (n + T(2)));
}
// tanh(softplus(x)) + x sigmoid(x) (1 - tanh^2) over the common denominator (n + 2)^2.
template <class V>
RT_INLINE V mish_backward(V g, V x) {
  using T = lane_t<V>;
  const V held = at_most(x, mish_end<T>), e = math::exp_below(held);
  const V n = e * (e + T(2)), d = n + T(2);
  return g * ((n * d + (held * (T(4) * (e * e + e)) + (x - x))) / (d * d));  // x - x: NaN at infinity, as in aten
}

// log(1 + exp(z)) = max(z, 0) + log(1 + exp(-|z|)), z = beta x
template <class V>
RT_INLINE V softplus(V x, lane_t<V> beta, lane_t<V> threshold) {
  using T = lane_t<V>;
  const V z = x * beta;
  const V y = (at_least(z, T(0)) + math::log1p_unit(math::exp_below(V(-abs(z))))) * (T(1) / beta);
  return select(z > threshold, x, y);
}
// beta = 1, threshold = 20: in float the sum is x long before x is 20.
template <class V>
RT_INLINE V softplus_default(V x) {
  const V y = at_least(x, lane_t<V>(0)) + math::log1p_unit(math::exp_below(V(-abs(x))));
  if constexpr (math::is_float<V>) {
    return y;
  } else {
    return select(x > 20.0, x, y);
  }
}
template <class V>
RT_INLINE V softplus_backward(V g, V x, lane_t<V> beta, lane_t<V> threshold) {
  using T = lane_t<V>;
  const V z = x * beta;
  const V e = math::exp(z);
  return select(z > threshold, g, V(g * (e / (e + T(1)))));
}

template <class V>
RT_INLINE V softsign(V x) {
  return x / (lane_t<V>(1) + abs(x));
}
// (x + sqrt(x^2 + b)) / 2 (J. T. Barron, Squareplus, 2021), without the difference that cancels below 0, and with the
// root scaled where x^2 would overflow
template <class V>
RT_INLINE V squareplus(V x, lane_t<V> b) {
  using T = lane_t<V>;
  constexpr T large = sizeof(T) == 4 ? T(0x1p60) : T(0x1p500), far = sizeof(T) == 4 ? T(0x1p80) : T(0x1p600);
  const V a = abs(x), one = splat<V>(T(1));
  const V down = select(a > large, splat<V>(T(1) / far), one), up = select(a > large, splat<V>(far), one);
  const V z = a * down;
  const V half = sqrt(V(z * z + V(down * down) * b)) * (up * T(0.5)) + a * T(0.5);
  return select(x < T(0), V((b * T(0.25)) / half), half);
}

// min(max(x + 3, 0), 6) / 6: times a sixth, and then what that lacks, where the product's rounding can be known.
template <class V>
RT_INLINE V hardsigmoid(V x) {
  using T = lane_t<V>;
  constexpr T sixth = T(1.0 / 6);
  const V c = at_most(at_least(V(x + T(3)), T(0)), T(6)), y = c * sixth;
  return fused ? V(y + (c - y * T(6)) * sixth) : V(c / T(6));
}
template <class V>
RT_INLINE V hardswish(V x) {
  return x * hardsigmoid(x);
}
template <class V>
RT_INLINE V hardswish_backward(V g, V x) {
  using T = lane_t<V>;
  const V between = g * (x * T(1.0 / 3) + T(0.5));
  // NaN lies between, on a device above, as in aten.
  const V above = on_device ? select(x < T(3), between, g) : select(x >= T(3), g, between);
  return select(x <= T(-3), V{}, above);
}
template <class V>
RT_INLINE V hardsigmoid_backward(V g, V x) {
  using T = lane_t<V>;
  return select((x > T(-3)) & (x < T(3)), V(g * T(1.0 / 6)), V{});
}

// log(sigmoid(x)) = min(x, 0) - log(1 + z), z = exp(-|x|)
template <class V>
RT_INLINE V log_sigmoid(V x) {
  return at_most(x, lane_t<V>(0)) - math::log1p_unit(math::exp_below(V(-abs(x))));
}
// The second output is the z that aten's CPU backward takes as its buffer.
template <class V>
RT_INLINE Pair<V> log_sigmoid_forward(V x) {
  const V z = math::exp_below(V(-abs(x)));
  return {at_most(x, lane_t<V>(0)) - math::log1p_unit(z), z};
}
template <class V>
RT_INLINE V log_sigmoid_backward(V g, V x, V z) {
  using T = lane_t<V>;
  const V s = z / (T(1) + z);
  return g * select(x < T(0), V(T(1) - s), s);
}
template <class V>
RT_INLINE V log_sigmoid_backward_input(V g, V x) {
  return log_sigmoid_backward(g, x, math::exp_below(V(-abs(x))));
}

// cap tanh(x / cap) (Gemma 2: M. Riviere et al., 2024)
template <class V>
RT_INLINE V softcap(V x, lane_t<V> reciprocal, lane_t<V> cap) {
  return math::tanh(V(x * reciprocal)) * cap;
}

// activation(gate) * up (N. Shazeer, GLU Variants Improve Transformer, 2020), and the gradients of both.
template <class V>
RT_INLINE V swiglu(V gate, V up) {
  return silu(gate) * up;
}
template <class V>
RT_INLINE Pair<V> swiglu_backward(V g, V gate, V up) {
  using T = lane_t<V>;
  const V s = math::sigmoid(gate), y = gate * s;
  return {g * up * s * (T(1) + gate * (T(1) - s)), g * y};
}
template <class V>
RT_INLINE V geglu(V gate, V up) {
  return gelu(gate) * up;
}
template <class V>
RT_INLINE Pair<V> geglu_backward(V g, V gate, V up) {
  return {gelu_backward(V(g * up), gate), g * gelu(gate)};
}
template <class V>
RT_INLINE V geglu_tanh(V gate, V up) {
  return gelu_tanh(gate) * up;
}
template <class V>
RT_INLINE Pair<V> geglu_tanh_backward(V g, V gate, V up) {
  return {gelu_tanh_backward(V(g * up), gate), g * gelu_tanh(gate)};
}

}  // namespace rusttorch::formula
