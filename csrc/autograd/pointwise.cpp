#include <ATen/TensorOperators.h>
#include <ATen/ops/logical_or.h>
#include <ATen/ops/pow.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>

#include "derivative.h"

namespace rusttorch::autograd {
namespace {

// Half of the gradient to each side of a tie, as in aten.
Grads of_maximum(const Call& c, const Tensor& g, const Tensor& a, const Tensor& b) {
  const auto part = [&](const Tensor& mine, const Tensor& other) {
    return at::where(mine == other, g / 2, g).masked_fill(mine < other, 0);
  };
  return {c.want(0, [&] { return part(a, b); }), c.want(1, [&] { return part(b, a); })};
}

// self / other, rounding_mode at position 2: rounded, it has no slope.
Grads of_div(const Call& c, const Tensor& g, const Tensor& other, bool rounded) {
  if (rounded) return {c.want(0, [&] { return at::zeros_like(g); }), c.want(1, [&] { return at::zeros_like(g); })};
  return {c.want(0, [&] { return g / other; }), c.want(1, [&] { return -g * ((c.tensor(0) / other) / other); })};
}

Grads of_clamp_tensor(const Call& c, const Tensor& g) {
  const Tensor& x = c.tensor(0);
  const bool low = c.given(1), high = c.given(2);
  const Tensor none = at::zeros_like(g);
  return {c.want(0,
                 [&] {
                   Tensor d = g;
                   if (low) d = at::where(x >= c.tensor(1), d, none);
                   if (high) d = at::where(x <= c.tensor(2), d, none);
                   return d;
                 }),
          low ? c.want(1,
                       [&] {
                         const Tensor below = x < c.tensor(1);
                         return at::where(high ? below.logical_and(c.tensor(1) < c.tensor(2)) : below, g, none);
                       })
              : Tensor(),
          high ? c.want(2,
                        [&] {
                          const Tensor above = x > c.tensor(2);
                          return at::where(low ? above.logical_or(c.tensor(2) < c.tensor(1)) : above, g, none);
                        })
               : Tensor()};
}

}  // namespace

const std::vector<Formula>& pointwise_formulas() {
  static const std::vector<Formula> formulas = {
      {"add.Tensor", Save::nothing,
       [](const Call& c, const Tensor& g) -> Grads { return {g, c.want(1, [&] { return g * c.scalar(2); })}; }},
      {"sub.Tensor", Save::nothing,
       [](const Call& c, const Tensor& g) -> Grads { return {g, c.want(1, [&] { return -g * c.scalar(2); })}; }},
      {"mul.Tensor", Save::inputs,
       [](const Call& c, const Tensor& g) -> Grads {
         return {c.want(0, [&] { return g * c.tensor(1); }), c.want(1, [&] { return g * c.tensor(0); })};
       }},
      {"div.Tensor", Save::inputs, [](const Call& c, const Tensor& g) { return of_div(c, g, c.tensor(1), false); }},
      {"div.Tensor_mode", Save::inputs,
       [](const Call& c, const Tensor& g) { return of_div(c, g, c.tensor(1), c.given(2)); }},
      {"add.Scalar", Save::nothing, [](const Call&, const Tensor& g) -> Grads { return {g}; }},
      {"add_scalar", Save::nothing, [](const Call&, const Tensor& g) -> Grads { return {g}; }},
      {"sub.Scalar", Save::nothing, [](const Call&, const Tensor& g) -> Grads { return {g}; }},
      {"mul.Scalar", Save::nothing, [](const Call& c, const Tensor& g) -> Grads { return {g * c.scalar(1)}; }},
      {"mul_scalar", Save::nothing, [](const Call& c, const Tensor& g) -> Grads { return {g * c.scalar(1)}; }},
      {"div.Scalar", Save::nothing, [](const Call& c, const Tensor& g) -> Grads { return {g / c.scalar(1)}; }},
      {"div.Scalar_mode", Save::nothing,
       [](const Call& c, const Tensor& g) -> Grads { return {c.given(2) ? at::zeros_like(g) : g / c.scalar(1)}; }},
      {"neg", Save::nothing, [](const Call&, const Tensor& g) -> Grads { return {-g}; }},
      {"abs", Save::inputs, [](const Call& c, const Tensor& g) -> Grads { return {g * c.tensor(0).sgn()}; }},
      {"exp", Save::results, [](const Call& c, const Tensor& g) -> Grads { return {g * c.result()}; }},
      {"log", Save::inputs, [](const Call& c, const Tensor& g) -> Grads { return {g / c.tensor(0)}; }},
      {"sqrt", Save::results, [](const Call& c, const Tensor& g) -> Grads { return {g / (2 * c.result())}; }},
      {"pow.Tensor_Scalar", Save::inputs,
       [](const Call& c, const Tensor& g) -> Grads {
         const double e = c.scalar(1).toDouble();
         return {e == 0 ? at::zeros_like(g) : g * (e * c.tensor(0).pow(e - 1))};
       }},
      {"maximum", Save::inputs,
       [](const Call& c, const Tensor& g) { return of_maximum(c, g, c.tensor(0), c.tensor(1)); }},
      {"minimum", Save::inputs,
       [](const Call& c, const Tensor& g) { return of_maximum(c, g, -c.tensor(0), -c.tensor(1)); }},
      {"clamp", Save::inputs,
       [](const Call& c, const Tensor& g) -> Grads {
         const Tensor& x = c.tensor(0);
         Tensor outside = at::zeros_like(x, x.options().dtype(at::kBool));
         if (c.given(1)) outside = outside.logical_or(x < c.scalar(1));
         if (c.given(2)) outside = outside.logical_or(x > c.scalar(2));
         return {g.masked_fill(outside, 0)};
       }},
      {"clamp.Tensor", Save::inputs, of_clamp_tensor},
      {"addcmul", Save::inputs,
       [](const Call& c, const Tensor& g) -> Grads {
         return {g, c.want(1, [&] { return g * c.tensor(2) * c.scalar(3); }),
                 c.want(2, [&] { return g * c.tensor(1) * c.scalar(3); })};
       }},
      {"addcdiv", Save::inputs,
       [](const Call& c, const Tensor& g) -> Grads {
         return {g, c.want(1, [&] { return g * c.scalar(3) / c.tensor(2); }),
                 c.want(2, [&] { return -g * c.scalar(3) * c.tensor(1) / (c.tensor(2) * c.tensor(2)); })};
       }},
      {"lerp.Scalar", Save::nothing,
       [](const Call& c, const Tensor& g) -> Grads {
         const double w = c.scalar(2).toDouble();
         return {c.want(0, [&] { return g * (1 - w); }), c.want(1, [&] { return g * w; })};
       }},
      {"lerp.Tensor", Save::inputs,
       [](const Call& c, const Tensor& g) -> Grads {
         return {c.want(0, [&] { return g * (1 - c.tensor(2)); }), c.want(1, [&] { return g * c.tensor(2); }),
                 c.want(2, [&] { return g * (c.tensor(1) - c.tensor(0)); })};
       }},
      {"fused_multiply_add", Save::inputs,
       [](const Call& c, const Tensor& g) -> Grads {
         return {c.want(0, [&] { return g * c.tensor(1); }), c.want(1, [&] { return g * c.tensor(0); }), g};
       }},
  };
  return formulas;
}

}  // namespace rusttorch::autograd
