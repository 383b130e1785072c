#include <ATen/TensorOperators.h>
#include <c10/core/GradMode.h>

#include "derivative.h"

namespace rusttorch::autograd {
namespace {

// native_group_norm(input, weight, bias, N, C, HxW, group, eps) -> output, mean, rstd
//
// With h = (x - mean) rstd and d = grad weight: grad_x = rstd (d - mean(d) - h mean(d h)), means being over a group; in
// differentiable ops, for a second derivative.
Grads in_ops(const Call& c, const Tensor& g) {
  const Tensor& x = c.tensor(0);
  const int64_t images = x.size(0), channels = x.size(1), groups = c.integer(6);
  const at::DimVector by_group{images, groups, -1}, by_channel{1, channels, 1}, all_but_channels{0, 2};
  const Tensor grouped = x.reshape(by_group), mean = grouped.mean(2, true), centered = grouped - mean;
  const Tensor rstd = (centered.square().mean(2, true) + c.number(7)).rsqrt(), h = centered * rstd;
  const at::DimVector flat{images, channels, -1};
  const Tensor grad = g.reshape(flat), product = grad * h.reshape(flat);
  const Tensor d = (c.given(1) ? grad * c.tensor(1).view(by_channel) : grad).reshape(by_group);
  const Tensor by_x = rstd * (d - d.mean(2, true) - h * (d * h).mean(2, true));
  return {by_x.reshape(x.sizes()), c.given(1) ? product.sum(all_but_channels) : Tensor(),
          c.given(2) ? grad.sum(all_but_channels) : Tensor()};
}

Grads of_group_norm(const Call& c, const Tensor& g) {
  if (c10::GradMode::is_enabled()) return in_ops(c, g);
  // Stock's kernel, which may run, does not look at the gradient's strides.
  return call_all(
      "native_group_norm_backward",
      {g.contiguous(c.tensor(0).suggest_memory_format()), c.tensor(0), c.result(1), c.result(2), c.argument(1),
       c.argument(3), c.argument(4), c.argument(5), c.argument(6), c10::List<bool>({true, c.given(1), c.given(2)})});
}

}  // namespace

const std::vector<Formula>& group_norm_formulas() {
  static const std::vector<Formula> formulas = {
      {.op = "native_group_norm",
       .saves = {argument(0), argument(1), result(1), result(2)},
       .grads = of_group_norm,
       .inputs = 3},
  };
  return formulas;
}

}  // namespace rusttorch::autograd
