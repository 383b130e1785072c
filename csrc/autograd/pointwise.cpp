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
      {"add.Tensor",
       {},
       [](const Call& c, const Tensor& g) -> Grads { return {g, c.want(1, [&] { return g * c.scalar(2); })}; }},
      {"sub.Tensor",
       {},
       [](const Call& c, const Tensor& g) -> Grads { return {g, c.want(1, [&] { return -g * c.scalar(2); })}; }},
      {"mul.Tensor",
       {argument(0).for_gradient_of(1), argument(1).for_gradient_of(0)},
       [](const Call& c, const Tensor& g) -> Grads {
         return {c.want(0, [&] { return g * c.tensor(1); }), c.want(1, [&] { return g * c.tensor(0); })};
       }},
      {"div.Tensor",
       {argument(0).for_gradient_of(1), argument(1)},
       [](const Call& c, const Tensor& g) { return of_div(c, g, c.tensor(1), false); }},
      {"div.Tensor_mode",
       {argument(0).for_gradient_of(1), argument(1)},
       [](const Call& c, const Tensor& g) { return of_div(c, g, c.tensor(1), c.given(2)); }},
      {"add.Scalar", {}, [](const Call&, const Tensor& g) -> Grads { return {g}; }},
      {"add_scalar", {}, [](const Call&, const Tensor& g) -> Grads { return {g}; }},
      {"sub.Scalar", {}, [](const Call&, const Tensor& g) -> Grads { return {g}; }},
      {"mul.Scalar", {}, [](const Call& c, const Tensor& g) -> Grads { return {g * c.scalar(1)}; }},
      {"mul_scalar", {}, [](const Call& c, const Tensor& g) -> Grads { return {g * c.scalar(1)}; }},
      {"div.Scalar", {}, [](const Call& c, const Tensor& g) -> Grads { return {g / c.scalar(1)}; }},
      {"div.Scalar_mode",
       {},
       [](const Call& c, const Tensor& g) -> Grads { return {c.given(2) ? at::zeros_like(g) : g / c.scalar(1)}; }},
      {"neg", {}, [](const Call&, const Tensor& g) -> Grads { return {-g}; }},
      {"abs", {argument(0)}, [](const Call& c, const Tensor& g) -> Grads { return {g * c.tensor(0).sgn()}; }},
      {"exp", {result()}, [](const Call& c, const Tensor& g) -> Grads { return {g * c.result()}; }},
      {"log", {argument(0)}, [](const Call& c, const Tensor& g) -> Grads { return {g / c.tensor(0)}; }},
      {"sqrt", {result()}, [](const Call& c, const Tensor& g) -> Grads { return {g / (2 * c.result())}; }},
      {"pow.Tensor_Scalar",
       {argument(0)},
       [](const Call& c, const Tensor& g) -> Grads {
         const double e = c.scalar(1).toDouble();
         return {e == 0 ? at::zeros_like(g) : g * (e * c.tensor(0).pow(e - 1))};
       }},
      {"maximum",
       {argument(0), argument(1)},
       [](const Call& c, const Tensor& g) { return of_maximum(c, g, c.tensor(0), c.tensor(1)); }},
      {"minimum",
       {argument(0), argument(1)},
       [](const Call& c, const Tensor& g) { return of_maximum(c, g, -c.tensor(0), -c.tensor(1)); }},
      {"clamp",
       {argument(0)},
       [](const Call& c, const Tensor& g) -> Grads {
         const Tensor& x = c.tensor(0);
         Tensor outside = at::zeros_like(x, x.options().dtype(at::kBool));
         if (c.given(1)) outside = outside.logical_or(x < c.scalar(1));
         if (c.given(2)) outside = outside.logical_or(x > c.scalar(2));
         return {g.masked_fill(outside, 0)};
       }},
      {"clamp.Tensor", {argument(0), argument(1), argument(2)}, of_clamp_tensor},
      {"addcmul",
       {argument(1).for_gradient_of(2), argument(2).for_gradient_of(1)},
       [](const Call& c, const Tensor& g) -> Grads {
         return {g, c.want(1, [&] { return g * c.tensor(2) * c.scalar(3); }),
                 c.want(2, [&] { return g * c.tensor(1) * c.scalar(3); })};
       }},
      {"addcdiv",
       {argument(1).for_gradient_of(2), argument(2)},
       [](const Call& c, const Tensor& g) -> Grads {
         return {g, c.want(1, [&] { return g * c.scalar(3) / c.tensor(2); }),
                 c.want(2, [&] { return -g * c.scalar(3) * c.tensor(1) / (c.tensor(2) * c.tensor(2)); })};
       }},
      {"lerp.Scalar",
       {},
       [](const Call& c, const Tensor& g) -> Grads {
         const double w = c.scalar(2).toDouble();
         return {c.want(0, [&] { return g * (1 - w); }), c.want(1, [&] { return g * w; })};
       }},
      {"lerp.Tensor",
       {argument(0).for_gradient_of(2), argument(1).for_gradient_of(2), argument(2)},
       [](const Call& c, const Tensor& g) -> Grads {
         return {c.want(0, [&] { return g * (1 - c.tensor(2)); }), c.want(1, [&] { return g * c.tensor(2); }),
                 c.want(2, [&] { return g * (c.tensor(1) - c.tensor(0)); })};
       }},
      {"fused_multiply_add",
       {argument(0).for_gradient_of(1), argument(1).for_gradient_of(0)},
       [](const Call& c, const Tensor& g) -> Grads {
         return {c.want(0, [&] { return g * c.tensor(1); }), c.want(1, [&] { return g * c.tensor(0); }), g};
       }},
  };
  return formulas;
}

}  // namespace rusttorch::autograd
