#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>

#include "derivative.h"

namespace rusttorch::autograd {
namespace {

constexpr size_t cos = 2, sin = 3, interleaved = 4;  // among the arguments; before them q and k, or their gradients

// Each element's pair, negated in the first of both.
Tensor turned(const Tensor& x, bool interleaved) {
  if (!interleaved) {
    const auto halves = x.chunk(2, -1);
    return at::cat({-halves[1], halves[0]}, -1);
  }
  const auto pairs = x.unflatten_symint(-1, {x.sym_size(-1) / 2, 2}).unbind(-1);
  return at::stack({-pairs[1], pairs[0]}, -1).flatten(-2);
}

Tensor or_zeros(const Call& c, size_t k, const Tensor& g) {
  return g.defined() ? g : at::zeros_symint(c.sizes(k), c.tensor(cos).options().dtype(c.dtype(k)));
}

// The gradient of cos or sin, from products g f(x), for q and for k.
template <class F>
Tensor by_angles(const Call& c, size_t which, const Grads& g, const Grads& x, F f) {
  const auto each = [&](size_t k) {
    const c10::SymInt n = c.sizes(which).back();
    const Tensor product = g[k].narrow_symint(-1, 0, n) * f(x[k].narrow_symint(-1, 0, n));
    return product.sum(-3).sum_to_size_symint(c.sizes(which)).to(c.dtype(which));
  };
  return each(0) + each(1);
}

// Of rope and of its backward: `turn_back` is the other's name. The sum of g turn(x) is made of g x cos and of
// g turned(x) sin; of the backward g and x change places.
Grads of_rope(const Call& c, const char* turn_back, bool backward) {
  const Grads up = {or_zeros(c, 0, c.grad(0)), or_zeros(c, 1, c.grad(1))};
  Grads grads = call_all(turn_back, {up[0], up[1], c.tensor(cos), c.tensor(sin), c.flag(interleaved)});
  const auto arguments = [&] { return Grads{c.tensor(0), c.tensor(1)}; };
  const auto as_it_is = [](const Tensor& x) { return x; };
  const auto in_pairs = [&](const Tensor& x) { return turned(x, c.flag(interleaved)); };
  grads.push_back(c.want(cos, [&] { return by_angles(c, cos, up, arguments(), as_it_is); }));
  grads.push_back(c.want(sin, [&] {
    return backward ? by_angles(c, sin, arguments(), up, in_pairs) : by_angles(c, sin, up, arguments(), in_pairs);
  }));
  return grads;
}

std::vector<Saved> saved() {
  return {argument(0).for_gradient_of(cos),
          argument(0).for_gradient_of(sin),
          argument(1).for_gradient_of(cos),
          argument(1).for_gradient_of(sin),
          argument(cos),
          argument(sin)};
}

}  // namespace

const std::vector<Formula>& rope_formulas() {
  static const std::vector<Formula> formulas = {
      {.op = "rope",
       .saves = saved(),
       .grads = [](const Call& c, const Tensor&) { return of_rope(c, "rope_backward", false); },
       .outputs = 2},
      {.op = "rope_backward",
       .saves = saved(),
       .grads = [](const Call& c, const Tensor&) { return of_rope(c, "rope", true); },
       .outputs = 2},
  };
  return formulas;
}

}  // namespace rusttorch::autograd
