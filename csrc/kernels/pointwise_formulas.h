#pragma once

// The pointwise family, one element at a time: the same text makes the CPU loops and the CUDA kernels.
// Semantics (NaN, signed zero, order of operations) are those of the aten op of the same name.

#include <cmath>

#include "math.h"
#include "pow.h"

namespace rusttorch::formula {

// X(name, tensors, scalars, types, bound): what the kernels of the family are made from.
// types: floats, of which some have those of 16 and 32 bits or of 32 and 64, or numbers, which has i32 and i64 too.
// bound: whether memory is what a loop over it waits for, or arithmetic. Loops that wait for memory use vectors of 32
// bytes at most: with 64 bytes, add at 1M elements is 6 % slower (Zen 4, outputs in the last cache level).
#define RUSTTORCH_POINTWISE(X)                      \
  X(add, 2, 0, numbers, bandwidth)                  \
  X(add_scaled, 2, 1, numbers, bandwidth)           \
  X(add_scalar, 1, 2, numbers, bandwidth)           \
  X(sub, 2, 0, numbers, bandwidth)                  \
  X(sub_scaled, 2, 1, numbers, bandwidth)           \
  X(sub_scalar, 1, 2, numbers, bandwidth)           \
  X(mul, 2, 0, numbers, bandwidth)                  \
  X(mul_scalar, 1, 1, numbers, bandwidth)           \
  X(div, 2, 0, floats, bandwidth)                   \
  X(div_scalar, 1, 1, floats, bandwidth)            \
  X(div_trunc, 2, 0, wide_floats, bandwidth)        \
  X(div_trunc_scalar, 1, 1, wide_floats, bandwidth) \
  X(neg, 1, 0, numbers, bandwidth)                  \
  X(abs, 1, 0, numbers, bandwidth)                  \
  X(exp, 1, 0, floats, arithmetic)                  \
  X(log, 1, 0, floats, arithmetic)                  \
  X(sqrt, 1, 0, floats, arithmetic)                 \
  X(square, 1, 0, floats, bandwidth)                \
  X(cube, 1, 0, floats, bandwidth)                  \
  X(pow, 1, 3, short_floats, arithmetic)            \
  X(reciprocal, 1, 0, floats, arithmetic)           \
  X(maximum, 2, 0, numbers, bandwidth)              \
  X(minimum, 2, 0, numbers, bandwidth)              \
  X(clamp, 1, 2, numbers, bandwidth)                \
  X(clamp_tensor, 3, 0, numbers, bandwidth)         \
  X(addcmul, 3, 1, numbers, bandwidth)              \
  X(addcdiv, 3, 1, floats, bandwidth)               \
  X(lerp_scalar, 2, 1, floats, bandwidth)           \
  X(lerp_tensor, 3, 0, floats, bandwidth)           \
  X(fused_multiply_add, 3, 0, numbers, bandwidth)

template <class V>
RT_INLINE V add(V a, V b) {
  return a + b;
}
template <class V>
RT_INLINE V add_scaled(V a, V b, lane_t<V> alpha) {
  return a + alpha * b;
}
template <class V>
RT_INLINE V add_scalar(V a, lane_t<V> s, lane_t<V> alpha) {
  return a + alpha * s;
}
template <class V>
RT_INLINE V sub(V a, V b) {
  return a - b;
}
template <class V>
RT_INLINE V sub_scaled(V a, V b, lane_t<V> alpha) {
  return a - alpha * b;
}
template <class V>
RT_INLINE V sub_scalar(V a, lane_t<V> s, lane_t<V> alpha) {
  return a - alpha * s;
}
template <class V>
RT_INLINE V mul(V a, V b) {
  return a * b;
}
template <class V>
RT_INLINE V mul_scalar(V a, lane_t<V> s) {
  return a * s;
}
template <class V>
RT_INLINE V div(V a, V b) {
  return a / b;
}
template <class V>
RT_INLINE V div_scalar(V a, lane_t<V> s) {
  return a / s;
}
template <class V>
RT_INLINE V div_trunc(V a, V b) {
  return trunc(V(a / b));
}
template <class V>
RT_INLINE V div_trunc_scalar(V a, lane_t<V> s) {
  return trunc(V(a / s));
}
template <class V>
RT_INLINE V neg(V a) {
  return -a;
}
template <class V>
RT_INLINE V abs(V a) {
  if constexpr (std::is_integral_v<lane_t<V>>) {
    return select(a < 0, V(-a), a);
  } else {
    return rusttorch::abs(a);
  }
}
template <class V>
RT_INLINE V exp(V a) {
  return math::exp(a);
}
template <class V>
RT_INLINE V log(V a) {
  return math::log(a);
}
template <class V>
RT_INLINE V sqrt(V a) {
  return rusttorch::sqrt(a);
}
template <class V>
RT_INLINE V square(V a) {
  return a * a;
}
template <class V>
RT_INLINE V cube(V a) {
  return a * a * a;
}
// sign, below: of the exponent (csrc/kernels/pow.h).
template <class V>
RT_INLINE V pow(V a, lane_t<V> exponent, lane_t<V> sign, lane_t<V> below) {
  return math::pow(a, exponent, sign, below);
}
template <class V>
RT_INLINE V reciprocal(V a) {
  return lane_t<V>(1) / a;
}
template <class V>
RT_INLINE V maximum(V a, V b) {
  return select(a != a, a, greater(a, b));
}
template <class V>
RT_INLINE V minimum(V a, V b) {
  return select(a != a, a, lesser(a, b));
}
template <class V>
RT_INLINE V clamp(V a, lane_t<V> low, lane_t<V> high) {
  return at_most(at_least(a, low), high);
}
template <class V>
RT_INLINE V clamp_tensor(V a, V low, V high) {
  return minimum(maximum(a, low), high);
}
template <class V>
RT_INLINE V addcmul(V a, V b, V c, lane_t<V> value) {
  return a + value * b * c;
}
template <class V>
RT_INLINE V addcdiv(V a, V b, V c, lane_t<V> value) {
  return on_device ? V(a + value * (b / c)) : V(a + value * b / c);  // a factor may make 0 of a denormal b
}
// Exact at both ends: from whichever end is nearer.
template <class V>
RT_INLINE V lerp_tensor(V a, V end, V weight) {
  using T = lane_t<V>;
  const V d = end - a;
  return select(rusttorch::abs(weight) < T(0.5), V(a + weight * d), V(end - d * (T(1) - weight)));
}
template <class V>
RT_INLINE V lerp_scalar(V a, V end, lane_t<V> weight) {
  return lerp_tensor(a, end, splat<V>(weight));
}
template <class V>
RT_INLINE V fused_multiply_add(V a, V b, V c) {
#if defined(__CUDACC__) || defined(RUSTTORCH_EMULATION)
  constexpr bool by_name = std::is_floating_point_v<V>;
#else
  constexpr bool by_name = false;
#endif
  // Of a and b that are one number each, a device's compiler would take the product out of the loop, and round it.
  if constexpr (by_name) {
    return std::fma(a, b, c);
  } else {
    return a * b + c;
  }
}

}  // namespace rusttorch::formula
