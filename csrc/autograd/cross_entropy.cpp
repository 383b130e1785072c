#include <ATen/OpMathType.h>
#include <ATen/TensorOperators.h>
#include <ATen/TensorSubclassLikeUtils.h>
#include <ATen/core/Reduction.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/tanh.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/GradMode.h>

#include "derivative.h"

namespace rusttorch::autograd {
namespace {

// q of kernels/cross_entropy.h for all rows of x. (An absent class may have an infinite weight, which is not read.)
Tensor targets(const Tensor& x, const Tensor& target, const Tensor& weight, int64_t ignored, double smoothing) {
  const auto weighted = [&](const Tensor& q) { return weight.defined() ? q * weight : q; };
  const Tensor spread = weighted(at::full_like(x, smoothing / double(x.size(-1))));
  if (target.scalar_type() != at::kLong) return weighted(target * (1 - smoothing)) + spread;
  const Tensor class_of = target.unsqueeze(-1), is_ignored = class_of == ignored;
  const Tensor valid = class_of.masked_fill(is_ignored, 0);
  const Tensor own = weight.defined() ? weight.take(valid) : at::ones_like(valid, x.options());
  const Tensor q = at::zeros_like(x).scatter(-1, valid, own * (1 - smoothing));
  return (smoothing == 0 ? q : q + spread).masked_fill(is_ignored, 0);
}

// What linear_cross_entropy's mean divides by; if all are ignored the gradients are 0 whatever it is, but not by 0.
Tensor count_targets(const Tensor& target, int64_t ignored) { return target.ne(ignored).sum().clamp_min(1); }

// The gradients of linear_cross_entropy by differentiable ops, for a second derivative: with all the logits.
Grads of_linear(const Call& c, const Tensor& g) {
  const Tensor &x = c.tensor(0), &w = c.tensor(1), &target = c.tensor(2);
  Tensor logits = x.mm(w.t());
  if (c.given(3)) logits = logits + c.tensor(3);
  const bool capped = c.given(9);
  if (capped) logits = at::tanh(logits / c.number(9)) * c.number(9);
  const Tensor q = targets(logits, target, Tensor(), c.integer(5), c.number(6));
  Tensor Q = q.sum(-1, true);
  if (const double z_loss = c.number(8); z_loss != 0) {
    const Tensor lse = at::logsumexp(logits, -1, true);
    Q = Q + (2 * z_loss * lse).masked_fill(target.unsqueeze(-1) == c.integer(5), 0);
  }
  Tensor d = g * (Q * at::softmax(logits, -1) - q);
  if (capped) d = d * (1 - (logits / c.number(9)).square());
  if (c.integer(4) == at::Reduction::Mean) d = d / count_targets(target, c.integer(5));
  return {c.want(0, [&] { return d.mm(w); }), c.want(1, [&] { return d.t().mm(x); }), Tensor(),
          c.want(3, [&] { return d.sum(0); })};
}

Tensor per_row(const Tensor& g, int64_t reduction) { return reduction == at::Reduction::None ? g.unsqueeze(-1) : g; }

// What a mean divides by: the weights of the targets that are not ignored.
Tensor weight_of_targets(const Tensor& slope, const Tensor& target, const Tensor& weight, int64_t ignored) {
  if (target.scalar_type() != at::kLong) {
    const Scalar rows(slope.sym_numel() / slope.sym_size(-1));
    return at::scalar_tensor(rows, slope.options().dtype(at::kDouble));
  }
  const Tensor kept = target != ignored;
  if (!weight.defined()) return kept.sum();
  return weight.take(target.masked_fill(kept.logical_not(), 0)).masked_fill(kept.logical_not(), 0).sum();
}

// Positions among the arguments of cross_entropy_loss_forward (0 and 1 are the input and the target).
constexpr size_t weight = 2, reduction = 3, ignore_index = 4, smoothing = 5, differentiate = 6;

// Where none was made, from the input, as a result that is differentiable in turn.
Tensor slope_of(const Call& c) {
  if (c.flag(differentiate)) return c.result(1);
  return call_all("cross_entropy_loss_forward",
                  {c.argument(0), c.argument(1), c.argument(weight), c.argument(reduction), c.argument(ignore_index),
                   c.argument(smoothing), true})[1];
}

// Whether g is 1, as the gradient of the last loss is. Only the CPU may be asked.
bool is_one(const Tensor& g) {
  return g.is_cpu() && !at::isTensorSubclassLike(g) && g.numel() == 1 && g.item<double>() == 1;
}

// With q as the kernels have it, Q its sum and p = softmax(x), the slope is (Q p - q) / n. Its own gradient, of v, is
// Q / n (diag(p) - p p^T) v = u (v - (u v) n / Q) with u = slope + q / n.
Grads of_slope(const Call& c, const Tensor& v) {
  const Tensor &slope = c.result(1), &target = c.tensor(1);
  const int64_t ignored = c.integer(ignore_index);
  const auto wide = at::toOpMathType(slope.scalar_type());
  const Tensor w = c.given(weight) ? c.tensor(weight).to(wide) : Tensor();
  Tensor q = targets(slope.to(wide), target, w, ignored, c.number(smoothing));
  const Tensor none = q.sum(-1, true) == 0;  // of a row that is ignored
  if (c.integer(reduction) == at::Reduction::Mean) q = q / weight_of_targets(slope, target, w, ignored);
  const Tensor u = slope + q, Q = q.sum(-1, true).masked_fill(none, 1);
  return {(u * (v - (u * v).sum(-1, true) / Q)).masked_fill(none, 0)};
}

}  // namespace

const std::vector<Formula>& cross_entropy_formulas() {
  static const std::vector<Formula> formulas = {
      {.op = "cross_entropy_loss_forward",
       .saves = {argument(0).made_by([](at::ArrayRef<c10::IValue> arguments) {
                   return arguments[differentiate].toBool() ? Tensor() : arguments[0].toTensor();
                 }),
                 argument(1), argument(weight), result(1)},
       .grads = [](const Call& c, const Tensor& g) -> Grads {
         const Tensor slope = slope_of(c);
         // (Under a tracer this is never the last, and is_one() is not asked.)
         if (c.last_to_read_results() && c.integer(reduction) != at::Reduction::None && is_one(g)) {
           return {slope.variable_data()};  // without its history
         }
         return {call("cross_entropy_loss_backward",
                      {g, slope, c.tensor(1), c.argument(reduction), c.argument(ignore_index)})};
       },
       .inputs = 1,
       .next = std::make_shared<const Formula>(Formula{.op = "cross_entropy_loss_slope",
                                                       .saves = {argument(1), argument(weight), result(1)},
                                                       .grads = of_slope,
                                                       .inputs = 1})},
      {.op = "cross_entropy_loss_backward",
       .saves = {argument(0).for_gradient_of(1), argument(1).for_gradient_of(0)},
       .grads = [](const Call& c, const Tensor& gg) -> Grads {
         const int64_t reduction = c.integer(3);
         const auto by_grad = [&] {
           const Tensor each = (gg * c.tensor(1)).sum(-1);
           return reduction == at::Reduction::None ? each : each.sum();
         };
         return {c.want(0, by_grad), c.want(1, [&] { return gg * per_row(c.tensor(0), reduction); })};
       },
       .inputs = 2},
      {"linear_cross_entropy_forward",
       {argument(0), argument(1), argument(2), argument(3), result(1).for_gradient_of(0), result(2).for_gradient_of(1),
        result(3).for_gradient_of(3)},
       [](const Call& c, const Tensor& g) -> Grads {
         if (c10::GradMode::is_enabled() || !c.flag(7)) return of_linear(c, g);
         const bool of_sum = c.integer(4) == at::Reduction::Mean && c.tensor(0).scalar_type() == at::kHalf;
         const Tensor up = of_sum ? g / count_targets(c.tensor(2), c.integer(5)) : g;
         const bool as_it_is = !of_sum && c.last_to_read_results() && is_one(g);
         const auto times = [&](const Tensor& grad) { return as_it_is ? grad.variable_data() : up * grad; };
         return {c.want(0, [&] { return times(c.result(1)); }), c.want(1, [&] { return times(c.result(2)); }), Tensor(),
                 c.want(3, [&] { return times(c.result(3)); })};
       }},
  };
  return formulas;
}

}  // namespace rusttorch::autograd
