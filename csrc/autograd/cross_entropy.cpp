#include <ATen/TensorOperators.h>
#include <ATen/core/Reduction.h>
#include <ATen/ops/log_softmax.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/GradMode.h>

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

}  // namespace

const std::vector<Formula>& cross_entropy_formulas() {
  static const std::vector<Formula> formulas = {
      {"cross_entropy_loss_forward",
       {argument(0), argument(1), argument(2), result(1), result(2)},
       [](const Call& c, const Tensor& g) -> Grads {
         return {c.want(0,
                        [&] {
                          return call("cross_entropy_loss_backward",
                                      {g, c.tensor(0), c.tensor(1), c.argument(2), c.result(1), c.result(2),
                                       c.argument(3), c.argument(4), c.argument(5)});
                        }),
                 // Of probabilities: w (1 - s) (lse - x).
                 c.want(1, [&] {
                   Tensor d = -at::log_softmax(c.tensor(0), -1) * (1 - c.number(5));
                   if (c.given(2)) d = d * c.tensor(2);
                   const int64_t reduction = c.integer(3);
                   if (reduction == at::Reduction::Mean) d = d / c.result(2).to(d.scalar_type());
                   return d * per_row(g, reduction);
                 })};
       }},
      // scale g (Q softmax(x) - q), with gg the gradient of that
      {"cross_entropy_loss_backward",
       {argument(0), argument(1), argument(2), argument(3), argument(5)},
       [](const Call& c, const Tensor& gg) -> Grads {
         const Tensor &x = c.tensor(1), p = at::softmax(x, -1);
         Tensor q = targets(x, c.tensor(2), c.integer(7), c.number(8));
         if (c.given(3)) q = q * c.tensor(3);
         const Tensor Q = q.sum(-1, true);
         const int64_t reduction = c.integer(6);
         Tensor up = gg;
         if (reduction == at::Reduction::Mean) up = up / c.tensor(5).to(x.scalar_type());
         const Tensor v = up * Q * per_row(c.tensor(0), reduction);
         return {c.want(0, [&] { return (up * (Q * p - q)).sum(-1); }),
                 c.want(1, [&] { return p * (v - (v * p).sum(-1, true)); }),
                 c.want(2, [&] {  // probabilities, of which q and Q are made
                   Tensor d = up * per_row(c.tensor(0), reduction) * (1 - c.number(8));
                   d = (d * p).sum(-1, true) - d;
                   return c.given(3) ? d * c.tensor(3) : d;
                 })};
       }},
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
