#include <ATen/TensorOperators.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/log_sigmoid.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/softplus.h>
#include <ATen/ops/tanh.h>
#include <ATen/ops/threshold_backward.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>

#include <cmath>

#include "derivative.h"

namespace rusttorch::autograd {
namespace {

// The gradients of f_backward(grad, x) = grad f'(x), given f_backward(g, x) and f''(x), which is only made if used.
template <class F>
Grads of_backward(const Call& c, const Tensor& g, size_t x_position, const Tensor& by_grad, F second) {
  return {c.want(0, [&] { return by_grad; }),
          c.want(x_position, [&] { return g * c.tensor(0) * second(c.tensor(x_position)); })};
}

Tensor inside(const Tensor& x, double low, double high) { return (x > low).logical_and(x < high).to(x.scalar_type()); }

Tensor gelu_second(const Tensor& x, bool tanh) {
  if (!tanh) return (x * x * -0.5).exp() * (0.5 * M_2_SQRTPI * M_SQRT1_2) * (2 - x * x);
  // y = x s, s = sigmoid(2 u), u = k (x + 0.044715 x^3); p = s (1 - s)
  const double k = M_2_SQRTPI * M_SQRT1_2;
  const Tensor s = at::sigmoid(2 * k * (x + 0.044715 * x * x * x)), p = s * (1 - s);
  const Tensor du = k * (1 + 3 * 0.044715 * x * x), ddu = 6 * 0.044715 * k * x;
  return 4 * p * du + 4 * x * p * (1 - 2 * s) * du * du + 2 * x * p * ddu;
}

Tensor mish_second(const Tensor& x) {
  const Tensor s = at::sigmoid(x), t = at::tanh(at::softplus(x)), w = 1 - t * t;
  return w * s * (2 + x * ((1 - s) - 2 * t * s));
}

Tensor silu_second(const Tensor& x) {
  const Tensor s = at::sigmoid(x);
  return s * (1 - s) * (2 + x * (1 - 2 * s));
}

// What swiglu and geglu take of the gate: with geglu's argument `approximate`, at that position, or silu.
struct Activation {
  std::optional<c10::IValue> approximate;

  Tensor of(const Tensor& x) const { return approximate ? call("gelu", {x, *approximate}) : call("silu", {x}); }
  Tensor backward(const Tensor& g, const Tensor& x) const {
    return approximate ? call("gelu_backward", {g, x, *approximate}) : call("silu_backward", {g, x});
  }
  Tensor second(const Tensor& x) const {
    return approximate ? gelu_second(x, approximate->toStringRef() == "tanh") : silu_second(x);
  }
};

// The gradients of what grad_gate = g up f'(gate) and grad_up = g f(gate) are made of, from theirs, v and w, of which
// one may be undefined: of g, gate and up.
Grads of_gated_backward(const Activation& f, const Tensor& g, const Tensor& gate, const Tensor& up, const Tensor& v,
                        const Tensor& w) {
  Grads grads(3);
  if (v.defined()) grads = {f.backward(v * up, gate), v * g * up * f.second(gate), f.backward(v * g, gate)};
  if (w.defined()) {
    grads[0] = sum(grads[0], w * f.of(gate));
    grads[1] = sum(grads[1], f.backward(w * g, gate));
  }
  return grads;
}

// The same of packed halves.
Grads of_packed_backward(const Activation& f, const Call& c, const Tensor& g) {
  const auto halves = c.tensor(1).chunk(2, -1), grads = g.chunk(2, -1);
  const Grads by = of_gated_backward(f, c.tensor(0), halves[0], halves[1], grads[0], grads[1]);
  return {by[0], at::cat({by[1], by[2]}, -1)};
}

Grads of_log_sigmoid_backward(const Call& c, const Tensor& g) {
  const Tensor s = at::sigmoid(c.tensor(1));
  return {c.want(0, [&] { return g * (1 - s); }), c.want(1, [&] { return -g * c.tensor(0) * s * (1 - s); }), Tensor()};
}

}  // namespace

const std::vector<Formula>& activation_formulas() {
  static const std::vector<Formula> formulas = {
      {"relu",
       {result()},
       [](const Call& c, const Tensor& g) -> Grads { return {at::threshold_backward(g, c.result(), 0)}; }},
      {"leaky_relu",
       {argument(0)},
       [](const Call& c, const Tensor& g) -> Grads {
         return {call("leaky_relu_backward", {g, c.tensor(0), c.scalar(1), false})};
       }},
      {"leaky_relu_backward",
       {argument(1)},
       [](const Call& c, const Tensor& g) -> Grads {
         return {c.want(0, [&] { return call("leaky_relu_backward", {g, c.tensor(1), c.scalar(2), c.flag(3)}); }),
                 c.want(1, [&] { return at::zeros_like(g); })};
       }},
      {"sigmoid",
       {result()},
       [](const Call& c, const Tensor& g) -> Grads { return {call("sigmoid_backward", {g, c.result()})}; }},
      {"sigmoid_backward",
       {argument(0).for_gradient_of(1), argument(1)},
       [](const Call& c, const Tensor& g) {
         return of_backward(c, g, 1, call("sigmoid_backward", {g, c.tensor(1)}),
                            [](const Tensor& y) { return 1 - 2 * y; });
       }},
      {"tanh",
       {result()},
       [](const Call& c, const Tensor& g) -> Grads { return {call("tanh_backward", {g, c.result()})}; }},
      {"tanh_backward",
       {argument(0).for_gradient_of(1), argument(1)},
       [](const Call& c, const Tensor& g) {
         return of_backward(c, g, 1, call("tanh_backward", {g, c.tensor(1)}), [](const Tensor& y) { return -2 * y; });
       }},
      {"gelu",
       {argument(0)},
       [](const Call& c, const Tensor& g) -> Grads {
         return {call("gelu_backward", {g, c.tensor(0), c.argument(1)})};
       }},
      {"gelu_backward",
       {argument(0).for_gradient_of(1), argument(1)},
       [](const Call& c, const Tensor& g) {
         return of_backward(c, g, 1, call("gelu_backward", {g, c.tensor(1), c.argument(2)}),
                            [&](const Tensor& x) { return gelu_second(x, c.argument(2).toStringRef() == "tanh"); });
       }},
      {"elu",
       {argument(0)},
       [](const Call& c, const Tensor& g) -> Grads {
         return {call("elu_backward", {g, c.scalar(1), c.scalar(2), c.scalar(3), false, c.tensor(0)})};
       }},
      {"elu_backward",
       {argument(0).for_gradient_of(5), argument(5)},
       [](const Call& c, const Tensor& g) {
         const double alpha = c.scalar(1).toDouble(), scale = c.scalar(2).toDouble(), in = c.scalar(3).toDouble();
         const Tensor by_grad =
             call("elu_backward", {g, c.scalar(1), c.scalar(2), c.scalar(3), c.flag(4), c.tensor(5)});
         return of_backward(c, g, 5, by_grad, [&](const Tensor& x) {
           const Tensor curved = c.flag(4) ? at::zeros_like(x) + in : (x * in).exp() * (in * in * alpha * scale);
           return at::where(x <= 0, curved, at::zeros_like(x));
         });
       }},
      {"silu",
       {argument(0)},
       [](const Call& c, const Tensor& g) -> Grads { return {call("silu_backward", {g, c.tensor(0)})}; }},
      {"silu_backward",
       {argument(0).for_gradient_of(1), argument(1)},
       [](const Call& c, const Tensor& g) {
         return of_backward(c, g, 1, call("silu_backward", {g, c.tensor(1)}), silu_second);
       }},
      {"mish",
       {argument(0)},
       [](const Call& c, const Tensor& g) -> Grads { return {call("mish_backward", {g, c.tensor(0)})}; }},
      {"mish_backward",
       {argument(0).for_gradient_of(1), argument(1)},
       [](const Call& c, const Tensor& g) {
         return of_backward(c, g, 1, call("mish_backward", {g, c.tensor(1)}), mish_second);
       }},
      {"softplus",
       {argument(0)},
       [](const Call& c, const Tensor& g) -> Grads {
         return {call("softplus_backward", {g, c.tensor(0), c.scalar(1), c.scalar(2)})};
       }},
      {"softplus_backward",
       {argument(0).for_gradient_of(1), argument(1)},
       [](const Call& c, const Tensor& g) {
         const Tensor by_grad = call("softplus_backward", {g, c.tensor(1), c.scalar(2), c.scalar(3)});
         return of_backward(c, g, 1, by_grad, [&](const Tensor& x) {
           const Tensor z = x * c.scalar(2), s = at::sigmoid(z);
           return (s * (1 - s) * c.scalar(2)).masked_fill(z > c.scalar(3), 0);
         });
       }},
      {"softsign",
       {argument(0)},
       [](const Call& c, const Tensor& g) -> Grads {
         const Tensor d = 1 + c.tensor(0).abs();
         return {g / (d * d)};
       }},
      {"squareplus",
       {argument(0)},
       [](const Call& c, const Tensor& g) -> Grads {
         // y / sqrt(x^2 + b), whose root is 2 y - x.
         const Tensor &x = c.tensor(0), y = call("squareplus", {x, c.scalar(1)});
         return {g * y / (y + (y - x))};
       }},
      {"hardswish",
       {argument(0)},
       [](const Call& c, const Tensor& g) -> Grads { return {call("hardswish_backward", {g, c.tensor(0)})}; }},
      {"hardswish_backward",
       {argument(0).for_gradient_of(1), argument(1)},
       [](const Call& c, const Tensor& g) {
         return of_backward(c, g, 1, call("hardswish_backward", {g, c.tensor(1)}),
                            [](const Tensor& x) { return inside(x, -3, 3) / 3; });
       }},
      {"hardsigmoid",
       {argument(0)},
       [](const Call& c, const Tensor& g) -> Grads { return {call("hardsigmoid_backward", {g, c.tensor(0)})}; }},
      {"hardsigmoid_backward",
       {argument(1)},
       [](const Call& c, const Tensor& g) -> Grads {
         return {c.want(0, [&] { return call("hardsigmoid_backward", {g, c.tensor(1)}); }),
                 c.want(1, [&] { return at::zeros_like(g); })};
       }},
      {"log_sigmoid",
       {argument(0)},
       [](const Call& c, const Tensor& g) -> Grads {
         return {call("log_sigmoid_backward", {g, c.tensor(0), at::empty({0}, g.options())})};
       }},
      {"log_sigmoid_forward",
       {argument(0)},
       [](const Call& c, const Tensor& g) -> Grads {
         return {call("log_sigmoid_backward", {g, c.tensor(0), at::empty({0}, g.options())})};
       }},
      {"log_sigmoid_backward", {argument(0).for_gradient_of(1), argument(1)}, of_log_sigmoid_backward},
      {"swiglu",
       {argument(0), argument(1)},
       [](const Call& c, const Tensor& g) { return call_all("swiglu_backward", {g, c.tensor(0), c.tensor(1)}); }},
      {.op = "swiglu_backward",
       .saves = {argument(0), argument(1), argument(2)},
       .grads =
           [](const Call& c, const Tensor&) {
             return of_gated_backward({}, c.tensor(0), c.tensor(1), c.tensor(2), c.grad(0), c.grad(1));
           },
       .outputs = 2},
      {"swiglu.packed",
       {argument(0)},
       [](const Call& c, const Tensor& g) { return call_all("swiglu_backward.packed", {g, c.tensor(0)}); }},
      {"swiglu_backward.packed",
       {argument(0), argument(1)},
       [](const Call& c, const Tensor& g) { return of_packed_backward({}, c, g); }},
      {"geglu",
       {argument(0), argument(1)},
       [](const Call& c, const Tensor& g) {
         return call_all("geglu_backward", {g, c.tensor(0), c.tensor(1), c.argument(2)});
       }},
      {.op = "geglu_backward",
       .saves = {argument(0), argument(1), argument(2)},
       .grads =
           [](const Call& c, const Tensor&) {
             return of_gated_backward({c.argument(3)}, c.tensor(0), c.tensor(1), c.tensor(2), c.grad(0), c.grad(1));
           },
       .outputs = 2},
      {"geglu.packed",
       {argument(0)},
       [](const Call& c, const Tensor& g) {
         return call_all("geglu_backward.packed", {g, c.tensor(0), c.argument(1)});
       }},
      {"geglu_backward.packed",
       {argument(0), argument(1)},
       [](const Call& c, const Tensor& g) { return of_packed_backward({c.argument(2)}, c, g); }},
  };
  return formulas;
}

}  // namespace rusttorch::autograd
