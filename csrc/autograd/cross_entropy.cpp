#include <ATen/TensorOperators.h>
#include <ATen/core/Reduction.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/GradMode.h>

#include <cmath>

#include "../kernels/cross_entropy.h"
#include "derivative.h"

namespace rusttorch::autograd {
namespace {

// q of kernels/cross_entropy.h for all rows of x.
Tensor targets(const Tensor& x, const Tensor& target, int64_t ignored, double smoothing) {
  const bool by_class = target.scalar_type() == at::kLong;
  Tensor q = target;
  if (by_class) {
    const Tensor class_of = target.unsqueeze(-1), valid = class_of.masked_fill(class_of == ignored, 0);
    q = at::zeros_like(x).scatter(-1, valid, 1);
  }
  q = q * (1 - smoothing) + smoothing / double(x.size(-1));
  return by_class ? q.masked_fill(target.unsqueeze(-1) == ignored, 0) : q;
}

// The gradients of linear_cross_entropy by differentiable ops, for a second derivative: with all the logits.
Grads of_linear(const Call& c, const Tensor& g) {
  const Tensor &x = c.tensor(0), &w = c.tensor(1), &target = c.tensor(2);
  Tensor logits = x.mm(w.t());
  if (c.given(3)) logits = logits + c.tensor(3);
  const Tensor q = targets(logits, target, c.integer(5), c.number(6));
  Tensor d = g * (q.sum(-1, true) * at::softmax(logits, -1) - q);
  if (c.integer(4) == at::Reduction::Mean) d = d / target.ne(c.integer(5)).sum();
  return {c.want(0, [&] { return d.mm(w); }), c.want(1, [&] { return d.t().mm(x); }), Tensor(),
          c.want(3, [&] { return d.sum(0); })};
}

Tensor per_row(const Tensor& g, int64_t reduction) { return reduction == at::Reduction::None ? g.unsqueeze(-1) : g; }

at::ScalarType wide(const Tensor& x) { return x.element_size() == 2 ? at::kFloat : x.scalar_type(); }

bool is_divided(const Tensor& slope, int64_t reduction) {
  return divides_slope(reduction == at::Reduction::Mean, slope.scalar_type() == at::kHalf);
}

// The gradient of x: the slope times g. In its own memory where that is to be had, which most often leaves nothing to
// do, because the last loss has a gradient of 1. (What is not finite is the kernel's: rows that are ignored stay 0.)
Tensor scaled_slope(const Call& c, const Tensor& g) {
  const Tensor& slope = c.result(1);
  const int64_t reduction = c.integer(3);
  const bool late = reduction == at::Reduction::Mean && !is_divided(slope, reduction);
  if (reduction != at::Reduction::None && !late && slope.is_cpu() && !at::isTensorSubclassLike(g) && c.owns_result(1)) {
    const double factor = g.item<double>();
    const Tensor grad = slope.variable_data();  // without the history of a result
    if (factor == 1) return grad;
    if (std::isfinite(factor)) return grad.mul_(factor);
  }
  return call("cross_entropy_loss_backward", {g, slope, c.tensor(1), c.result(2), c.argument(3), c.argument(4)});
}

}  // namespace

const std::vector<Formula>& cross_entropy_formulas() {
  static const std::vector<Formula> formulas = {
      // The slope is a result that is differentiated in turn: with u = slope + q = Q softmax(x), of a gradient v of it,
      // u (v - sum(u v) / Q). A row that is ignored has no Q.
      {"cross_entropy_loss_forward",
       {argument(1), argument(2), result(1), result(2)},
       [](const Call& c, const Tensor& g) -> Grads {
         const Tensor& v = c.grad(1);
         const Tensor by_loss = g.defined() ? scaled_slope(c, g) : Tensor();
         if (!v.defined()) return {by_loss};
         const Tensor& slope = c.result(1);
         Tensor q = targets(slope.to(wide(slope)), c.tensor(1), c.integer(4), c.number(5));
         if (c.given(2)) q = q * c.tensor(2);
         if (is_divided(slope, c.integer(3))) q = q / c.result(2);
         const Tensor u = slope + q, Q = q.sum(-1, true), nothing = Q == 0;
         const Tensor mean = (u * v).sum(-1, true) / Q.masked_fill(nothing, 1);
         const Tensor by_slope = (u * (v - mean)).masked_fill(nothing, 0);
         return {by_loss.defined() ? by_loss + by_slope : by_slope};
       },
       2,
       1},
      {"cross_entropy_loss_backward",
       {argument(0).for_gradient_of(1), argument(1).for_gradient_of(0), argument(3)},
       [](const Call& c, const Tensor& gg) -> Grads {
         const int64_t reduction = c.integer(4);
         const bool late = reduction == at::Reduction::Mean && !is_divided(gg, reduction);
         const Tensor up = late ? gg / c.tensor(3).to(gg.scalar_type()) : gg;
         const auto by_grad = [&] {
           const Tensor each = (up * c.tensor(1)).sum(-1);
           return reduction == at::Reduction::None ? each : each.sum();
         };
         return {c.want(0, by_grad), c.want(1, [&] { return up * per_row(c.tensor(0), reduction); })};
       },
       1,
       2},
      {"linear_cross_entropy_forward",
       {argument(0), argument(1), argument(2), argument(3), result(1).for_gradient_of(0), result(2).for_gradient_of(1),
        result(3).for_gradient_of(3)},
       [](const Call& c, const Tensor& g) -> Grads {
         if (c10::GradMode::is_enabled()) return of_linear(c, g);
         return {c.want(0, [&] { return g * c.result(1); }), c.want(1, [&] { return g * c.result(2); }), Tensor(),
                 c.want(3, [&] { return g * c.result(3); })};
       }},
  };
  return formulas;
}

}  // namespace rusttorch::autograd
