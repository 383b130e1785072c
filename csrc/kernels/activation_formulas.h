#pragma once

// The activation family, one element at a time: the same text makes the CPU loops and the CUDA kernels.
// Semantics (NaN, infinities, signed zero) are those of the aten op of the same name. g is the gradient of the
// output, x the input, y the output. T is float or double.

#include "math.h"

namespace rusttorch::formula {

// X(name, tensors, scalars, types), see pointwise_formulas.h.
#define RUSTTORCH_ACTIVATION(X)               \
  X(relu, 1, 0, all)                          \
  X(leaky_relu, 1, 1, floats)                 \
  X(leaky_relu_backward, 2, 1, floats)        \
  X(sigmoid, 1, 0, floats)                    \
  X(sigmoid_backward, 2, 0, floats)           \
  X(tanh, 1, 0, floats)                       \
  X(tanh_backward, 2, 0, floats)              \
  X(gelu, 1, 0, floats)                       \
  X(gelu_backward, 2, 0, floats)              \
  X(gelu_tanh, 1, 0, floats)                  \
  X(gelu_tanh_backward, 2, 0, floats)         \
  X(elu, 1, 3, floats)                        \
  X(elu_backward, 2, 3, floats)               \
  X(elu_backward_result, 2, 3, floats)        \
  X(silu, 1, 0, floats)                       \
  X(silu_backward, 2, 0, floats)              \
  X(mish, 1, 0, floats)                       \
  X(mish_backward, 2, 0, floats)              \
  X(softplus, 1, 2, floats)                   \
  X(softplus_backward, 2, 2, floats)          \
  X(softsign, 1, 0, floats)                   \
  X(hardswish, 1, 0, floats)                  \
  X(hardswish_backward, 2, 0, floats)         \
  X(hardsigmoid, 1, 0, floats)                \
  X(hardsigmoid_backward, 2, 0, floats)       \
  X(log_sigmoid, 1, 0, floats)                \
  X(log_sigmoid_forward, 1, 0, floats)        \
  X(log_sigmoid_backward, 3, 0, floats)       \
  X(log_sigmoid_backward_input, 2, 0, floats)

// What a formula with two outputs returns.
template <class T>
struct Pair {
  T first, second;
};

template <class T>
RT_INLINE T relu(T x) {
  return math::at_least(x, T(0));
}
template <class T>
RT_INLINE T leaky_relu(T x, T slope) {
  return x > 0 ? x : x * slope;
}
template <class T>
RT_INLINE T leaky_relu_backward(T g, T x, T slope) {
  return x > 0 ? g : g * slope;
}
template <class T>
RT_INLINE T sigmoid(T x) {
  return math::sigmoid(x);
}
template <class T>
RT_INLINE T sigmoid_backward(T g, T y) {
  return g * (1 - y) * y;
}
template <class T>
RT_INLINE T tanh(T x) {
  return math::tanh(x);
}
template <class T>
RT_INLINE T tanh_backward(T g, T y) {
  return g * (1 - y * y);
}

// x cdf(x) = max(x, 0) - |x| cdf(-|x|): the second term is one polynomial and one power of two, and keeps its
// relative accuracy in the tail, where 1 + erf(x / sqrt(2)) cancels.
RT_INLINE float gelu(float x) {
  const float t = math::at_most(math::abs(x), 13.5f);
  return math::at_least(x, 0.0f) - t * math::exp2_normal(math::log2_normal_cdf(t));
}
RT_INLINE double gelu(double x) { return 0.5 * x * (1 + math::erf(x * 0.70710678118654752440)); }

// cdf(x) + x pdf(x), written as above: (x > 0) + sign(x) (t pdf(t) - cdf(-t)), t = |x|.
RT_INLINE float gelu_backward(float g, float x) {
  const float t = math::at_most(math::abs(x), 13.5f);
  const float d = math::exp2_normal(math::log2_normal_cdf(t)) * math::normal_mills(t);
  return g * (x > 0 ? 1 + d : -d);
}
RT_INLINE double gelu_backward(double g, double x) {
  const double cdf = 0.5 * (1 + math::erf(x * 0.70710678118654752440));
  return g * (cdf + x * math::exp(-0.5 * x * x) * 0.39894228040143267794);
}

// 0.5 x (1 + tanh(u)) = x sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3).
template <class T>
RT_INLINE T gelu_tanh_sigmoid(T x) {
  const T u = T(0.79788456080286535588) * x * (1 + T(0.044715) * x * x);
  return 1 / (1 + math::exp_normal(-2 * u));
}
template <class T>
RT_INLINE T gelu_tanh(T x) {
  return x * gelu_tanh_sigmoid(x);
}
template <class T>
RT_INLINE T gelu_tanh_backward(T g, T x) {
  const T s = gelu_tanh_sigmoid(x);
  const T du = T(0.79788456080286535588) * (1 + T(3 * 0.044715) * x * x);
  return g * (s + 2 * x * s * (1 - s) * du);
}

template <class T>
RT_INLINE T elu(T x, T alpha, T scale, T input_scale) {
  return x <= 0 ? math::expm1(x * input_scale) * (alpha * scale) : x * scale;
}
template <class T>
RT_INLINE T elu_backward(T g, T x, T alpha, T scale, T input_scale) {
  return x <= 0 ? g * (input_scale * alpha * scale) * math::exp(x * input_scale) : g * scale;
}
template <class T>
RT_INLINE T elu_backward_result(T g, T y, T alpha, T scale, T input_scale) {
  return y <= 0 ? g * input_scale * (y + alpha * scale) : g * scale;
}

template <class T>
RT_INLINE T silu(T x) {
  return x / (1 + math::exp(-x));
}
template <class T>
RT_INLINE T silu_backward(T g, T x) {
  const T s = math::sigmoid(x);
  return g * s * (1 + x * (1 - s));
}

// tanh(softplus(x)) = n / (n + 2), n = e (e + 2), e = exp(x); from x = 20 (40 in double) on it is 1.
template <class T>
RT_INLINE T mish(T x) {
  const T e = math::exp(math::at_most(x, T(10 * sizeof(T) / 2)));
  const T n = e * (e + 2);
  return x * (n / (n + 2));
}
// tanh(softplus(x)) + x sigmoid(x) (1 - tanh^2) over the common denominator (n + 2)^2.
template <class T>
RT_INLINE T mish_backward(T g, T x) {
  const T e = math::exp(math::at_most(x, T(10 * sizeof(T) / 2)));
  const T n = e * (e + 2), d = n + 2;
  return g * ((n * d + 4 * x * e * (1 + e)) / (d * d));
}

// log(1 + exp(z)) = max(z, 0) + log(1 + exp(-|z|)), z = beta x
template <class T>
RT_INLINE T softplus(T x, T beta, T threshold) {
  const T z = x * beta;
  const T y = (math::at_least(z, T(0)) + math::log1p_unit(math::exp(-math::abs(z)))) * (1 / beta);
  return z > threshold ? x : y;
}
template <class T>
RT_INLINE T softplus_backward(T g, T x, T beta, T threshold) {
  const T z = x * beta;
  const T e = math::exp(z);
  return z > threshold ? g : g * (e / (e + 1));
}

template <class T>
RT_INLINE T softsign(T x) {
  return x / (1 + math::abs(x));
}
template <class T>
RT_INLINE T hardswish(T x) {
  return x * math::at_most(math::at_least(x + 3, T(0)), T(6)) * T(1.0 / 6);
}
template <class T>
RT_INLINE T hardswish_backward(T g, T x) {
  const T inner = x <= 3 ? g * (x * T(1.0 / 3) + T(0.5)) : g;
  return x < -3 ? 0 : inner;
}
template <class T>
RT_INLINE T hardsigmoid(T x) {
  return math::at_most(math::at_least(x + 3, T(0)), T(6)) * T(1.0 / 6);
}
template <class T>
RT_INLINE T hardsigmoid_backward(T g, T x) {
  return (x > -3) & (x < 3) ? g * T(1.0 / 6) : 0;
}

// log(sigmoid(x)) = min(x, 0) - log(1 + z), z = exp(-|x|)
template <class T>
RT_INLINE T log_sigmoid(T x) {
  return math::at_most(x, T(0)) - math::log1p_unit(math::exp(-math::abs(x)));
}
// The second output is the z that aten's CPU backward takes as its buffer.
template <class T>
RT_INLINE Pair<T> log_sigmoid_forward(T x) {
  const T z = math::exp(-math::abs(x));
  return {math::at_most(x, T(0)) - math::log1p_unit(z), z};
}
template <class T>
RT_INLINE T log_sigmoid_backward(T g, T x, T z) {
  const T s = z / (1 + z);
  return g * (x < 0 ? 1 - s : s);
}
template <class T>
RT_INLINE T log_sigmoid_backward_input(T g, T x) {
  return log_sigmoid_backward(g, x, math::exp(-math::abs(x)));
}

}  // namespace rusttorch::formula
