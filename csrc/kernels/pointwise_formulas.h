#pragma once

// The pointwise family, one element at a time: the same text makes the CPU loops and the CUDA kernels.
// Semantics (NaN, signed zero, order of operations) are those of the aten op of the same name.

#include "math.h"

namespace rusttorch::formula {

// X(name, tensors, scalars, types): what the kernels of the family are made from.
// types: all = f32, f64, bf16, f16, i32, i64; floats = the first four.
#define RUSTTORCH_POINTWISE(X)       \
  X(add, 2, 0, all)                  \
  X(add_scaled, 2, 1, all)           \
  X(add_scalar, 1, 2, all)           \
  X(sub, 2, 0, all)                  \
  X(sub_scaled, 2, 1, all)           \
  X(sub_scalar, 1, 2, all)           \
  X(mul, 2, 0, all)                  \
  X(mul_scalar, 1, 1, all)           \
  X(div, 2, 0, floats)               \
  X(div_scalar, 1, 1, floats)        \
  X(div_trunc, 2, 0, floats)         \
  X(div_trunc_scalar, 1, 1, floats)  \
  X(neg, 1, 0, all)                  \
  X(abs, 1, 0, all)                  \
  X(exp, 1, 0, floats)               \
  X(log, 1, 0, floats)               \
  X(sqrt, 1, 0, floats)              \
  X(square, 1, 0, floats)            \
  X(cube, 1, 0, floats)              \
  X(reciprocal, 1, 0, floats)        \
  X(pow, 1, 3, floats)               \
  X(maximum, 2, 0, all)              \
  X(minimum, 2, 0, all)              \
  X(clamp, 1, 2, all)                \
  X(clamp_tensor, 3, 0, all)         \
  X(addcmul, 3, 1, all)              \
  X(addcdiv, 3, 1, floats)           \
  X(lerp_scalar, 2, 1, floats)       \
  X(lerp_tensor, 3, 0, floats)       \
  X(fused_multiply_add, 3, 0, all)

template <class T>
RT_INLINE T add(T a, T b) {
  return a + b;
}
template <class T>
RT_INLINE T add_scaled(T a, T b, T alpha) {
  return a + alpha * b;
}
template <class T>
RT_INLINE T add_scalar(T a, T s, T alpha) {
  return a + alpha * s;
}
template <class T>
RT_INLINE T sub(T a, T b) {
  return a - b;
}
template <class T>
RT_INLINE T sub_scaled(T a, T b, T alpha) {
  return a - alpha * b;
}
template <class T>
RT_INLINE T sub_scalar(T a, T s, T alpha) {
  return a - alpha * s;
}
template <class T>
RT_INLINE T mul(T a, T b) {
  return a * b;
}
template <class T>
RT_INLINE T mul_scalar(T a, T s) {
  return a * s;
}
template <class T>
RT_INLINE T div(T a, T b) {
  return a / b;
}
template <class T>
RT_INLINE T div_scalar(T a, T s) {
  return a / s;
}
RT_INLINE float div_trunc(float a, float b) { return __builtin_truncf(a / b); }
RT_INLINE double div_trunc(double a, double b) { return __builtin_trunc(a / b); }
template <class T>
RT_INLINE T div_trunc_scalar(T a, T s) {
  return div_trunc(a, s);
}
template <class T>
RT_INLINE T neg(T a) {
  return -a;
}
RT_INLINE float abs(float a) { return math::abs(a); }
RT_INLINE double abs(double a) { return math::abs(a); }
template <class T>
RT_INLINE T abs(T a) {
  return a < 0 ? -a : a;
}
template <class T>
RT_INLINE T exp(T a) {
  return math::exp(a);
}
template <class T>
RT_INLINE T log(T a) {
  return math::log(a);
}
RT_INLINE float sqrt(float a) { return __builtin_sqrtf(a); }
RT_INLINE double sqrt(double a) { return __builtin_sqrt(a); }
template <class T>
RT_INLINE T square(T a) {
  return a * a;
}
template <class T>
RT_INLINE T cube(T a) {
  return a * a * a;
}
template <class T>
RT_INLINE T reciprocal(T a) {
  return 1 / a;
}

// a^s through double, which leaves 29 spare bits for the error of log times s. For a < 0: odd_sign is -0 where s is
// an odd integer, else 0; outside is 1 where s is an integer, else NaN.
RT_INLINE double pow(double a, double s, double odd_sign, double outside) {
  const double magnitude = math::exp(s * math::log(math::abs(a)));
  return math::from_bits(math::bits(magnitude) | (math::bits(a) & math::bits(odd_sign))) * (a < 0 ? outside : 1);
}
RT_INLINE float pow(float a, float s, float odd_sign, float outside) {
  return static_cast<float>(pow(double(a), double(s), double(odd_sign), double(outside)));
}

template <class T>
RT_INLINE T maximum(T a, T b) {
  const T larger = a > b ? a : b;
  return a != a ? a : larger;
}
template <class T>
RT_INLINE T minimum(T a, T b) {
  const T smaller = a < b ? a : b;
  return a != a ? a : smaller;
}
template <class T>
RT_INLINE T clamp(T a, T low, T high) {
  return math::at_most(math::at_least(a, low), high);
}
template <class T>
RT_INLINE T clamp_tensor(T a, T low, T high) {
  return minimum(maximum(a, low), high);
}
template <class T>
RT_INLINE T addcmul(T a, T b, T c, T value) {
  return a + value * b * c;
}
template <class T>
RT_INLINE T addcdiv(T a, T b, T c, T value) {
  return a + value * b / c;
}
template <class T>
RT_INLINE T lerp_tensor(T a, T end, T weight) {
  // Exact at both ends: from whichever end is nearer.
  const T d = end - a;
  return math::abs(weight) < T(0.5) ? a + weight * d : end - d * (1 - weight);
}
template <class T>
RT_INLINE T lerp_scalar(T a, T end, T weight) {
  return lerp_tensor(a, end, weight);
}
template <class T>
RT_INLINE T fused_multiply_add(T a, T b, T c) {
  return a * b + c;
}

}  // namespace rusttorch::formula
