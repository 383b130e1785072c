#include <ATen/OpMathType.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/native_layer_norm_backward.h>
#include <ATen/ops/rsqrt.h>
#include <c10/core/GradMode.h>

#include "../kernels/norm.h"
#include "derivative.h"

namespace rusttorch::autograd {
namespace {

// With h = x rstd and d = g weight: rstd (d - h mean(d h)), and the sum of g h. In differentiable ops, for a second
// derivative.
Grads of_rms_norm(const Tensor& grad, const Tensor& input, const std::optional<Tensor>& weight,
                  const at::DimVector& dims, double eps) {
  const auto wide = at::toOpMathType(input.scalar_type());  // as in the kernels
  const Tensor g = grad.to(wide), x = input.to(wide);
  const Tensor rstd = at::rsqrt((x * x).mean(dims, true) + eps), h = x * rstd;
  const Tensor d = weight ? g * weight->to(wide) : g;
  const Tensor grad_x = rstd * (d - h * (d * h).mean(dims, true));
  return {grad_x, weight ? (g * h).sum_to_size(weight->sizes()) : Tensor()};
}

at::DimVector last_dims(size_t count) {
  at::DimVector dims;
  for (; count > 0; --count) dims.push_back(-int64_t(count));
  return dims;
}

// Of what is normalized: the sum, or the input where nothing was added.
Tensor input_if_alone(at::ArrayRef<c10::IValue> arguments) {
  return arguments[1].isNone() ? arguments[0].toTensor() : Tensor();
}

// _fused_add_rms_norm(input, residual, normalized_shape, weight, eps, offset) -> output, sum, rstd
Grads of_add_rms_norm(const Call& c, const Tensor& g) {
  const Tensor &x = c.given(1) ? c.result(1) : c.tensor(0), &by_sum = c.given(1) ? c.grad(1) : Tensor();
  const auto for_both = [&](const Tensor& by_x, const Tensor& by_weight) -> Grads { return {by_x, by_x, by_weight}; };
  if (!g.defined()) return for_both(by_sum, Tensor());
  if (c10::GradMode::is_enabled()) {
    const double eps = c.given(4) ? c.number(4) : rms_norm_eps(x.scalar_type() == at::kDouble);
    const auto wide = at::toOpMathType(x.scalar_type());
    const auto weight = c.given(3) ? std::optional(c.tensor(3).to(wide) + c.number(5)) : std::nullopt;
    const Grads grads = of_rms_norm(g, x, weight, last_dims(c.argument(2).toIntVector().size()), eps);
    return for_both(sum(grads[0], by_sum), grads[1]);
  }
  const Grads grads = call_all("_fused_add_rms_norm_backward",
                               {g, by_sum.defined() ? c10::IValue(by_sum) : c10::IValue(), x, c.argument(2),
                                c.result(2), c.argument(3), c.argument(5), c10::List<bool>({true, c.given(3)})});
  return for_both(grads[0], grads[1]);
}

// _fused_add_layer_norm(input, residual, normalized_shape, weight, bias, eps) -> output, sum, mean, rstd
Grads of_add_layer_norm(const Call& c, const Tensor& g) {
  const Tensor &x = c.result(1), &by_sum = c.grad(1);
  if (!g.defined()) return {by_sum, by_sum, Tensor(), Tensor()};
  const bool has_weight = c.given(3), has_bias = c.given(4);
  if (c10::GradMode::is_enabled()) {  // torch's, which has a derivative in turn, in what the statistics are
    const auto wide = c.result(2).scalar_type();
    const auto widened = [&](size_t i) { return c.given(i) ? std::optional(c.tensor(i).to(wide)) : std::nullopt; };
    const auto [by_x, by_weight, by_bias] =
        at::native_layer_norm_backward(g.to(wide), x.to(wide), c.argument(2).toIntVector(), c.result(2), c.result(3),
                                       widened(3), widened(4), {true, has_weight, has_bias});
    const Tensor both = sum(by_x, by_sum);
    return {both, both, by_weight, by_bias};
  }
  const Grads grads =
      call_all("_fused_add_layer_norm_backward",
               {g, by_sum.defined() ? c10::IValue(by_sum) : c10::IValue(), x, c.argument(2), c.result(2), c.result(3),
                c.argument(3), c.argument(4), c10::List<bool>({true, has_weight, has_bias})});
  return {grads[0], grads[0], grads[1], grads[2]};
}

// On the CPU stock keeps of 16 bits what it made of them in 32: the tensor itself may be changed until the backward.
// (Of layer norm it keeps the tensor.)
Tensor copied_if_narrow(at::ArrayRef<c10::IValue> arguments) {
  const Tensor& x = arguments[0].toTensor();
  return x.element_size() == 2 && x.is_cpu() ? x.clone() : x;
}

}  // namespace

const std::vector<Formula>& norm_formulas() {
  static const std::vector<Formula> formulas = {
      {"native_layer_norm",
       {argument(0), argument(2), argument(3), result(1), result(2)},
       [](const Call& c, const Tensor& g) -> Grads {
         const Tensor& x = c.tensor(0);
         const bool has_weight = c.given(2), has_bias = c.given(3);
         if (c10::GradMode::is_enabled()) {  // torch's, which has a derivative in turn
           const auto [grad_x, grad_weight, grad_bias] =
               at::native_layer_norm_backward(g, x, c.argument(1).toIntVector(), c.result(1), c.result(2), c.maybe(2),
                                              c.maybe(3), {true, has_weight, has_bias});
           return {grad_x, grad_weight, grad_bias};
         }
         return call_all("native_layer_norm_backward", {g, x, c.argument(1), c.result(1), c.result(2), c.argument(2),
                                                        c.argument(3), c10::List<bool>({true, has_weight, has_bias})});
       }},
      {"_fused_rms_norm",
       {argument(0).made_by(copied_if_narrow), argument(2), result(1)},
       [](const Call& c, const Tensor& g) -> Grads {
         const Tensor& x = c.tensor(0);
         if (c10::GradMode::is_enabled()) {
           const double eps = c.given(3) ? c.number(3) : rms_norm_eps(x.scalar_type() == at::kDouble);
           return of_rms_norm(g, x, c.maybe(2), last_dims(c.argument(1).toIntVector().size()), eps);
         }
         return call_all("_fused_rms_norm_backward",
                         {g, x, c.argument(1), c.result(1), c.argument(2), c10::List<bool>({true, c.given(2)})});
       }},
      {.op = "_fused_add_rms_norm",
       .saves = {argument(0).made_by(input_if_alone), argument(3), result(1), result(2)},
       .grads = of_add_rms_norm,
       .outputs = 2},
      {.op = "_fused_add_layer_norm",
       .saves = {argument(3), argument(4), result(1), result(2), result(3)},
       .grads = of_add_layer_norm,
       .outputs = 2},
  };
  return formulas;
}

}  // namespace rusttorch::autograd
