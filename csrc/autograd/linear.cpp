#include <ATen/TensorOperators.h>
#include <ATen/ops/threshold_backward.h>

#include "derivative.h"

namespace rusttorch::autograd {
namespace {

// Leading dims as one.
Tensor matrix(const Tensor& t) { return t.dim() == 1 ? t.unsqueeze(0) : t.flatten(0, -2); }

// The gradients of linear(input, weight, bias), from that of its result.
Tensor by_input(const Tensor& g, const Tensor& weight, c10::SymIntArrayRef sizes) {
  return call("mm", {matrix(g), weight}).view_symint(sizes);
}
Tensor by_weight(const Tensor& g, const Tensor& input) { return call("mm", {matrix(g).t(), matrix(input)}); }
Tensor by_bias(const Tensor& g) { return matrix(g).sum(0); }

// The gradient of the input x of an activation that the kernels have.
Tensor by_activated(const std::string& activation, const Tensor& g, const Tensor& x) {
  if (activation == "relu") return at::threshold_backward(g, x, 0);
  if (activation == "silu") return call("silu_backward", {g, x});
  return call("gelu_backward", {g, x, activation == "gelu" ? "none" : "tanh"});
}

// The gradients of gate and up, of activation(gate) * up.
Grads by_gated(const std::string& activation, const Tensor& g, const Tensor& gate, const Tensor& up) {
  if (activation == "relu") return {at::threshold_backward(g * up, gate, 0), g * call("relu", {gate})};
  if (activation == "silu") return call_all("swiglu_backward", {g, gate, up});
  return call_all("geglu_backward", {g, gate, up, activation == "gelu" ? "none" : "tanh"});
}

// linear_act_forward(input, weight, bias, activation, differentiate) -> output, sums
Grads of_act(const Call& c, const Tensor& g) {
  TORCH_CHECK(c.flag(4), "linear_act_forward: a gradient needs differentiate");
  const auto& activation = c.argument(3).toStringRef();
  const Tensor by_sums = sum(g.defined() ? by_activated(activation, g, c.result(1)) : Tensor(), c.grad(1));
  return {c.want(0, [&] { return by_input(by_sums, c.tensor(1), c.sizes(0)); }),
          c.want(1, [&] { return by_weight(by_sums, c.tensor(0)); }), c.want(2, [&] { return by_bias(by_sums); })};
}

// linear_glu_forward(input, gate_weight, up_weight, activation, differentiate) -> output, gate, up
Grads of_glu(const Call& c, const Tensor& g) {
  TORCH_CHECK(c.flag(4), "linear_glu_forward: a gradient needs differentiate");
  const auto& activation = c.argument(3).toStringRef();
  const Tensor &gate = c.result(1), &up = c.result(2);
  const Grads of_both = g.defined() ? by_gated(activation, g, gate, up) : Grads(2);
  const Tensor by_gate = sum(of_both[0], c.grad(1)), by_up = sum(of_both[1], c.grad(2));
  // One of them is undefined where a gradient came to the other product alone.
  const auto of_input = [&](const Tensor& g, size_t weight) {
    return g.defined() ? by_input(g, c.tensor(weight), c.sizes(0)) : g;
  };
  const auto of_weight = [&](const Tensor& g) { return g.defined() ? by_weight(g, c.tensor(0)) : g; };
  return {c.want(0, [&] { return sum(of_input(by_gate, 1), of_input(by_up, 2)); }),
          c.want(1, [&] { return of_weight(by_gate); }), c.want(2, [&] { return of_weight(by_up); })};
}

}  // namespace

const std::vector<Formula>& linear_formulas() {
  static const std::vector<Formula> formulas = {
      {.op = "linear_act_forward",
       .saves = {argument(0).for_gradient_of(1), argument(1).for_gradient_of(0), result(1)},
       .grads = of_act,
       .outputs = 2},
      {.op = "linear_glu_forward",
       .saves = {argument(0).for_gradient_of(1), argument(0).for_gradient_of(2), argument(1).for_gradient_of(0),
                 argument(2).for_gradient_of(0), result(1), result(2)},
       .grads = of_glu,
       .outputs = 3},
  };
  return formulas;
}

}  // namespace rusttorch::autograd
