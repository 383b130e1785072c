#include <ATen/ExpandUtils.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/Reduction.h>
#include <ATen/ops/_efficientzerotensor.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/log.h>
#include <ATen/ops/log1p.h>
#include <ATen/ops/log_sigmoid.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/result_type.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/GradMode.h>

#include "derivative.h"

namespace rusttorch::autograd {
namespace {

// A loss l(x, t) by element. dl/dx is its backward op; the rest is given here, for x at position i of the call, t
// behind it and the loss's further arguments behind that.
struct Loss {
  using Slope = std::function<Tensor(const Call&, size_t i)>;

  const char *op, *backward;
  size_t reduction;  // its position behind x
  Slope twice;       // d2l/dx2
  Slope by_target;   // dl/dt; none for a loss of x - t
  Slope by_both;     // d2l/dx dt, likewise
  Slope by_x{};      // dl/dx by ops that keep neither x nor t, as stock's do, which may be changed then
};

Tensor scaled(const Tensor& g, const Tensor& x, int64_t reduction) {
  return reduction == at::Reduction::Mean ? g / Scalar(x.sym_numel()) : g;
}

Tensor backward_of(const Loss& loss, const Call& c, const Tensor& g, size_t x, bool swap = false) {
  std::vector<c10::IValue> arguments{g};
  for (size_t i = x; i < c.size(); ++i) arguments.push_back(c.argument(i));
  if (swap) std::swap(arguments[1], arguments[2]);
  return call(loss.backward, std::move(arguments));
}

// All tensors: those before the reduction.
std::vector<Saved> tensors(size_t reduction) {
  std::vector<Saved> all;
  for (size_t i = 0; i < reduction; ++i) all.push_back(argument(i));
  return all;
}

// The call with all its tensors (those before the reduction) of one shape, whose elements a mean is of.
Call of_one_shape(const Call& c, size_t reduction) {
  const auto sizes = at::infer_size_symdimvector(c.sizes(0), c.sizes(1));
  Call whole = c;
  for (size_t i = 0; i < reduction; ++i) {
    if (c.argument(i).isTensor()) whole = whole.with(i, c.tensor(i).expand_symint(sizes));
  }
  return whole;
}

Formula forward_formula(const Loss& loss) {
  const auto gradients = [loss](const Call& c, const Tensor& g) -> Grads {
    const auto by_target = [&] {
      if (!loss.by_target) return backward_of(loss, c, g, 0, true);
      return scaled(g, c.tensor(0), c.integer(loss.reduction)) * loss.by_target(c, 0);
    };
    const auto by_x = [&] {
      if (!loss.by_x || !c10::GradMode::is_enabled()) return backward_of(loss, c, g, 0);
      return scaled(g, c.tensor(0), c.integer(loss.reduction)) * loss.by_x(c, 0);
    };
    return {c.want(0, by_x), c.want(1, by_target)};
  };
  return {loss.op, tensors(loss.reduction),
          [=](const Call& c, const Tensor& g) {
            return gradients(c.sizes(0).equals(c.sizes(1)) ? c : of_one_shape(c, loss.reduction), g);
          },
          1, 2};
}

Formula backward_formula(const Loss& loss) {
  return {loss.backward, tensors(loss.reduction + 1),
          [loss](const Call& c, const Tensor& gg) -> Grads {
            const Tensor g = scaled(c.tensor(0), c.tensor(1), c.integer(loss.reduction + 1));
            const auto by_target = [&] { return gg * g * (loss.by_both ? loss.by_both(c, 1) : -loss.twice(c, 1)); };
            return {c.want(0, [&] { return gg * backward_of(loss, c, at::ones_like(c.tensor(0)), 1); }),
                    c.want(1, [&] { return gg * g * loss.twice(c, 1); }), c.want(2, by_target)};
          },
          1, 3};
}

// 1 where the condition holds, else 0.
Tensor indicator(const Tensor& where, const Tensor& like) { return where.to(like.scalar_type()); }
// |x - t|
Tensor distance(const Call& c, size_t i) { return (c.tensor(i) - c.tensor(i + 1)).abs(); }
Tensor zero(const Call& c, size_t i) { return at::zeros_like(c.tensor(i)); }
// An optional tensor, or 1.
Tensor or_one(const Call& c, size_t i) { return c.given(i) ? c.tensor(i) : at::ones_like(c.tensor(0)); }

Tensor bce_twice(const Tensor& x, const Tensor& t) { return t / (x * x) + (1 - t) / ((1 - x) * (1 - x)); }
Tensor bce_by_target(const Tensor& x) { return at::log1p(-x).clamp_min(-100) - at::log(x).clamp_min(-100); }
Tensor bce_by_both(const Tensor& x) { return -1 / ((1 - x) * x); }

// RustTorch's bce holds x in [epsilon, 1 - epsilon].
Tensor held(const Call& c, size_t i) { return c.tensor(i).clamp(c.number(i + 2), 1 - c.number(i + 2)); }
Tensor is_held(const Call& c, size_t i) { return indicator(held(c, i) == c.tensor(i), c.tensor(i)); }

// 1 + (pos_weight - 1) t
Tensor log_weight(const Call& c, size_t i) { return 1 + (or_one(c, i + 3) - 1) * c.tensor(i + 1); }

const std::vector<Loss>& losses() {
  static const std::vector<Loss> all = {
      {"mse_loss", "mse_loss_backward", 2, [](const Call& c, size_t i) { return at::full_like(c.tensor(i), 2); },
       nullptr, nullptr},
      {"smooth_l1_loss", "smooth_l1_loss_backward", 2,
       [](const Call& c, size_t i) {
         const double beta = c.number(i + 3);
         return beta == 0 ? zero(c, i) : indicator(distance(c, i) < beta, c.tensor(i)) / beta;
       },
       nullptr, nullptr},
      {"huber_loss", "huber_loss_backward", 2,
       [](const Call& c, size_t i) { return indicator(distance(c, i) < c.number(i + 3), c.tensor(i)); }, nullptr,
       nullptr},
      {"binary_cross_entropy", "binary_cross_entropy_backward", 3,
       [](const Call& c, size_t i) { return bce_twice(c.tensor(i), c.tensor(i + 1)) * or_one(c, i + 2); },
       [](const Call& c, size_t i) { return bce_by_target(c.tensor(i)) * or_one(c, i + 2); },
       [](const Call& c, size_t i) { return bce_by_both(c.tensor(i)) * or_one(c, i + 2); }},
      {"bce_loss", "bce_loss_backward", 3,
       [](const Call& c, size_t i) { return bce_twice(held(c, i), c.tensor(i + 1)) * is_held(c, i); },
       [](const Call& c, size_t i) { return bce_by_target(held(c, i)); },
       [](const Call& c, size_t i) { return bce_by_both(held(c, i)) * is_held(c, i); }},
      {"binary_cross_entropy_with_logits", "binary_cross_entropy_with_logits_backward", 4,
       [](const Call& c, size_t i) {
         const Tensor s = at::sigmoid(c.tensor(i));
         return log_weight(c, i) * s * (1 - s) * or_one(c, i + 2);
       },
       [](const Call& c, size_t i) {
         const Tensor& x = c.tensor(i);
         return -(x + (or_one(c, i + 3) - 1) * at::log_sigmoid(x)) * or_one(c, i + 2);
       },
       [](const Call& c, size_t i) {
         return -(1 + (or_one(c, i + 3) - 1) * at::sigmoid(-c.tensor(i))) * or_one(c, i + 2);
       },
       [](const Call& c, size_t i) {
         const Tensor without = or_one(c, i + 3) * c.tensor(i + 1);
         return (log_weight(c, i) * at::sigmoid(c.tensor(i)) - without) * or_one(c, i + 2);
       }},
  };
  return all;
}

// Two losses keep what stock keeps of them, so that their inputs may be changed as much.

// A factor of the gradient, which is contiguous for a mean.
Tensor of_mean(const Tensor& t, int64_t reduction) { return reduction == at::Reduction::Mean ? t.contiguous() : t; }

// The sign of x - t, in x's place.
Formula l1_formula() {
  const auto sign = [](at::ArrayRef<c10::IValue> arguments) {
    const Tensor &x = arguments[0].toTensor(), &t = arguments[1].toTensor();
    const Tensor one = at::ones({}, x.options().dtype(at::result_type(x, t)));
    return call("l1_loss_backward", {one, x, t, int64_t(at::Reduction::Sum)});
  };
  return {"l1_loss",
          {argument(0).made_by(sign)},
          [](const Call& c, const Tensor& g) -> Grads {
            const Tensor sign = of_mean(c.tensor(0), c.integer(2)), by_x = sign * scaled(g, sign, c.integer(2));
            return {by_x, c.want(1, [&] { return -by_x; })};
          },
          1,
          2};
}

// Its second derivatives are zeros, that of x without memory, as stock's.
Formula l1_backward_formula() {
  return {"l1_loss_backward",
          {argument(1).for_gradient_of(0), argument(2).for_gradient_of(0)},
          [](const Call& c, const Tensor& gg) -> Grads {
            const auto by_grad = [&] {
              const Tensor one = at::ones({}, gg.options());
              return gg * call("l1_loss_backward", {one, c.tensor(1), c.tensor(2), c.argument(3)});
            };
            const auto zero = [&] { return at::_efficientzerotensor_symint(gg.sym_sizes(), gg.options()); };
            return {c.want(0, by_grad), c.want(1, zero), c.want(2, [&] { return -zero(); })};
          },
          1,
          3};
}

// t (log(t) - x) by a target t that is given; by its logarithm s, exp(s) (s - x): then exp(s) in t's place, s - x in
// x's.
Formula kl_div_formula() {
  constexpr size_t log_target = 3;
  const auto probability = [](at::ArrayRef<c10::IValue> arguments) {
    const Tensor& t = arguments[1].toTensor();
    return arguments[log_target].toBool() ? t.exp() : t;
  };
  const auto input = [](at::ArrayRef<c10::IValue> arguments) {
    const Tensor& x = arguments[0].toTensor();
    return arguments[log_target].toBool() ? arguments[1].toTensor() - x : x;
  };
  return {"kl_div",
          {argument(0).for_gradient_of(1).made_by(input), argument(1).made_by(probability)},
          [](const Call& c, const Tensor& g) -> Grads {
            const auto sizes = at::infer_size_symdimvector(c.sizes(0), c.sizes(1));
            const Tensor t = of_mean(c.tensor(1).expand_symint(sizes), c.integer(2));
            const auto by_target = [&] {
              const Tensor slope = c.flag(log_target) ? t * (c.tensor(0) + 1) : t.log() + 1 - c.tensor(0);
              return slope * scaled(g, t, c.integer(2));
            };
            return {c.want(0, [&] { return call("kl_div_backward", {g, t, t, c.argument(2), false}); }),
                    c.want(1, by_target)};
          },
          1,
          2};
}

}  // namespace

const std::vector<Formula>& loss_formulas() {
  static const auto formulas = [] {
    std::vector<Formula> all;
    for (const Loss& loss : losses()) {
      all.push_back(forward_formula(loss));
      all.push_back(backward_formula(loss));
    }
    all.push_back(l1_formula());
    all.push_back(l1_backward_formula());
    all.push_back(kl_div_formula());
    all.push_back(backward_formula({"kl_div", "kl_div_backward", 2, zero, nullptr, [](const Call& c, size_t i) {
                                      const Tensor& t = c.tensor(i + 1);
                                      return c.flag(i + 3) ? -t.exp() : -at::ones_like(t);
                                    }}));
    return all;
  }();
  return formulas;
}

}  // namespace rusttorch::autograd
