#pragma once

// The losses that compare element with element, and their gradients: the same text makes the CPU loops and the CUDA
// kernels. Semantics are those of the aten op of the same name before its reduction. x is the input, t the target, w
// the weight; g the gradient of the result, and scale what the reduction makes of it (1, or 1 / n for a mean).

#include "kernel.h"
#include "math.h"

namespace rusttorch {

// The types of what a device has no use for: there an assertion takes the place of a look beforehand.
#if defined(__CUDACC__) || defined(RUSTTORCH_ASSERT)
constexpr Dtypes floats_on_cpu = 0;
#else
constexpr Dtypes floats_on_cpu = floats;
#endif

}  // namespace rusttorch

namespace rusttorch::formula {

// X(name, tensors, scalars, types, bound), see pointwise_formulas.h.
#define RUSTTORCH_LOSS_FORWARD(X)                         \
  X(mse, 2, 0, floats, bandwidth)                         \
  X(l1, 2, 0, floats, bandwidth)                          \
  X(smooth_l1, 2, 1, floats, bandwidth)                   \
  X(huber, 2, 1, floats, bandwidth)                       \
  X(bce, 2, 0, floats, arithmetic)                        \
  X(bce_weight, 3, 0, floats, arithmetic)                 \
  X(bce_epsilon, 2, 2, floats, arithmetic)                \
  X(outside_unit, 2, 0, floats_on_cpu, bandwidth)         \
  X(bce_with_logits, 2, 0, floats, arithmetic)            \
  X(bce_with_logits_weight, 3, 0, floats, arithmetic)     \
  X(bce_with_logits_pos_weight, 3, 0, floats, arithmetic) \
  X(kl_div, 2, 0, floats, arithmetic)                     \
  X(kl_div_log_target, 2, 0, floats, arithmetic)
#define RUSTTORCH_LOSS(X)                                          \
  RUSTTORCH_LOSS_FORWARD(X)                                        \
  X(mse_backward, 3, 1, floats, bandwidth)                         \
  X(l1_backward, 3, 1, floats, bandwidth)                          \
  X(smooth_l1_backward, 3, 2, floats, bandwidth)                   \
  X(huber_backward, 3, 2, floats, bandwidth)                       \
  X(bce_backward, 3, 1, floats, bandwidth)                         \
  X(bce_weight_backward, 4, 1, floats, bandwidth)                  \
  X(bce_epsilon_backward, 3, 3, floats, bandwidth)                 \
  X(bce_with_logits_backward, 3, 1, floats, arithmetic)            \
  X(bce_with_logits_weight_backward, 4, 1, floats, arithmetic)     \
  X(bce_with_logits_pos_weight_backward, 4, 1, floats, arithmetic) \
  X(kl_div_backward, 3, 1, floats, bandwidth)                      \
  X(kl_div_log_target_backward, 3, 1, floats, arithmetic)

template <class V>
RT_INLINE V mse(V x, V t) {
  const V d = x - t;
  return d * d;
}
template <class V>
RT_INLINE V mse_backward(V g, V x, V t, lane_t<V> scale) {
  return g * (scale * 2) * (x - t);
}

template <class V>
RT_INLINE V l1(V x, V t) {
  return abs(V(x - t));
}
template <class V>
RT_INLINE V l1_backward(V g, V x, V t, lane_t<V> scale) {
  const V up = g * scale, d = x - t, zero = V{};
  return select(d > zero, up, select(d < zero, V(-up), V(up * lane_t<V>(0))));
}

// Quadratic up to beta, linear from there on.
template <class V>
RT_INLINE V smooth_l1(V x, V t, lane_t<V> beta) {
  const V z = abs(V(x - t));
  return select(z < beta, V(z * z * (lane_t<V>(0.5) / beta)), V(z - lane_t<V>(0.5) * beta));
}
template <class V>
RT_INLINE V smooth_l1_backward(V g, V x, V t, lane_t<V> scale, lane_t<V> beta) {
  const V up = g * scale, d = x - t;
  return select(d <= -beta, V(-up), select(d >= beta, up, V(up * d / beta)));
}

// The same, times its beta.
template <class V>
RT_INLINE V huber(V x, V t, lane_t<V> delta) {
  const V z = abs(V(x - t));
  return select(z <= delta, V(lane_t<V>(0.5) * z * z), V(delta * (z - lane_t<V>(0.5) * delta)));
}
template <class V>
RT_INLINE V huber_backward(V g, V x, V t, lane_t<V> scale, lane_t<V> delta) {
  const V up = g * scale, d = x - t;
  return select(d <= -delta, V(-up * delta), select(d >= delta, V(up * delta), V(up * d)));
}

// Whether both are probabilities. (-0 counts as none, and goes to stock: as bits, the numbers from 0 to 1 are the
// smallest, and one comparison tells.)
template <class V>
RT_INLINE auto both_in_unit(V x, V t) {
  const auto one = bits(splat<V>(lane_t<V>(1)));
  return (bits(x) <= one) & (bits(t) <= one);
}
// 1 where they are not: what bce refuses.
template <class V>
RT_INLINE V outside_unit(V x, V t) {
  return select(both_in_unit(x, t), V{}, splat<V>(lane_t<V>(1)));
}

// -t log(x) - (1 - t) log(1 - x), each log at least -100; NaN where one of them is no probability, which a device
// asserts.
template <class V>
RT_INLINE V bce(V x, V t) {
  using T = lane_t<V>;
  const V value = (t - T(1)) * math::log1m_unit(x) - t * math::log_unit(x);
#if defined(RUSTTORCH_ASSERT)
  RUSTTORCH_ASSERT(x >= 0 && x <= 1 && t >= 0 && t <= 1);
  return value;
#else
  return select(both_in_unit(x, t), value, splat<V>(std::numeric_limits<T>::quiet_NaN()));
#endif
}
template <class V>
RT_INLINE V bce_weight(V x, V t, V w) {
  return bce(x, t) * w;
}
template <class V>
RT_INLINE V bce_backward(V g, V x, V t, lane_t<V> scale) {
  using T = lane_t<V>;
  return g * scale * (x - t) / at_least(V((T(1) - x) * x), T(1e-12f));  // in double too, as in stock
}
template <class V>
RT_INLINE V bce_weight_backward(V g, V x, V t, V w, lane_t<V> scale) {
  return bce_backward(g, x, t, scale) * w;
}

// RustTorch's: x held in [low, high], outside of which it has no slope.
template <class V>
RT_INLINE V bce_epsilon(V x, V t, lane_t<V> low, lane_t<V> high) {
  using T = lane_t<V>;
  const V y = at_most(at_least(x, low), high);
  return (t - T(1)) * math::log1m_unit(y) - t * math::log_unit(y);
}
template <class V>
RT_INLINE V bce_epsilon_backward(V g, V x, V t, lane_t<V> scale, lane_t<V> low, lane_t<V> high) {
  using T = lane_t<V>;
  const V slope = g * scale * (x - t) / ((T(1) - x) * x);
  return select(x < low, V{}, select(x > high, V{}, slope));
}

// bce of sigmoid(x), without making it: (1 - t) x - log(sigmoid(x)).
template <class V>
RT_INLINE V minus_log_sigmoid(V x) {
  using T = lane_t<V>;
  return math::log1p_unit(math::exp_below(V(-abs(x)))) - at_most(x, T(0));
}
template <class V>
RT_INLINE V bce_with_logits(V x, V t) {
  return (lane_t<V>(1) - t) * x + minus_log_sigmoid(x);
}
template <class V>
RT_INLINE V bce_with_logits_weight(V x, V t, V w) {
  return bce_with_logits(x, t) * w;
}
template <class V>
RT_INLINE V bce_with_logits_pos_weight(V x, V t, V p) {
  using T = lane_t<V>;
  return (T(1) - t) * x + ((p - T(1)) * t + T(1)) * minus_log_sigmoid(x);
}
template <class V>
RT_INLINE V bce_with_logits_backward(V g, V x, V t, lane_t<V> scale) {
  return g * scale * (math::sigmoid(x) - t);
}
template <class V>
RT_INLINE V bce_with_logits_weight_backward(V g, V x, V t, V w, lane_t<V> scale) {
  return bce_with_logits_backward(g, x, t, scale) * w;
}
template <class V>
RT_INLINE V bce_with_logits_pos_weight_backward(V g, V x, V t, V p, lane_t<V> scale) {
  using T = lane_t<V>;
  // sigmoid(x) and sigmoid(-x), both: one from the other, near 1, would leave few digits of the sum.
  const V e = math::exp_below(V(-abs(x)));
  const V large = T(1) / (T(1) + e), small = e * large;
  const V up = select(x < T(0), small, large), down = select(x < T(0), large, small);
  return g * scale * ((T(1) - t) * up - p * t * down);
}

// x is a log of a probability, t a probability or the log of one.
template <class V>
RT_INLINE V kl_div(V x, V t) {
  const V own = select(t == lane_t<V>(0), V{}, V(t * math::log(t)));
  return own - t * x;
}
template <class V>
RT_INLINE V kl_div_log_target(V x, V t) {
  return math::exp(t) * (t - x);
}
template <class V>
RT_INLINE V kl_div_backward(V g, V, V t, lane_t<V> scale) {
  return -g * scale * t;
}
template <class V>
RT_INLINE V kl_div_log_target_backward(V g, V, V t, lane_t<V> scale) {
  return -g * scale * math::exp(t);
}

}  // namespace rusttorch::formula
