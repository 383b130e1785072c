#include <ATen/OpMathType.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/native_layer_norm_backward.h>
#include <ATen/ops/rsqrt.h>
#include <c10/core/GradMode.h>

#include "../kernels/norm.h"
#include "derivative.h"

namespace rusttorch::autograd {
namespace {

std::optional<Tensor> maybe(const Call& c, size_t i) {
  return c.given(i) ? std::optional<Tensor>(c.tensor(i)) : std::nullopt;
}

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
               at::native_layer_norm_backward(g, x, c.argument(1).toIntVector(), c.result(1), c.result(2), maybe(c, 2),
                                              maybe(c, 3), {true, has_weight, has_bias});
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
           at::DimVector dims;
           for (size_t k = c.argument(1).toIntVector().size(); k > 0; --k) dims.push_back(-int64_t(k));
           const double eps = c.given(3) ? c.number(3) : rms_norm_eps(x.scalar_type() == at::kDouble);
           return of_rms_norm(g, x, maybe(c, 2), dims, eps);
         }
         return call_all("_fused_rms_norm_backward",
                         {g, x, c.argument(1), c.result(1), c.argument(2), c10::List<bool>({true, c.given(2)})});
       }},
  };
  return formulas;
}

}  // namespace rusttorch::autograd
