#include <ATen/TensorOperators.h>

#include "derivative.h"

namespace rusttorch::autograd {
namespace {

Tensor turned(const Tensor& t) { return t.transpose(-2, -1); }

// The gradients of a factor each, of mm or bmm.
Tensor of_left(const char* product, const Tensor& g, const Tensor& right) { return call(product, {g, turned(right)}); }
Tensor of_right(const char* product, const Tensor& g, const Tensor& left) { return call(product, {turned(left), g}); }

Tensor scaled(const Tensor& t, const Scalar& by) { return by.equal(1) ? t : t * by; }

Formula of_product(const char* product) {
  return {product,
          {argument(0).for_gradient_of(1), argument(1).for_gradient_of(0)},
          [product](const Call& c, const Tensor& g) -> Grads {
            return {c.want(0, [&] { return of_left(product, g, c.tensor(1)); }),
                    c.want(1, [&] { return of_right(product, g, c.tensor(0)); })};
          }};
}

// beta * self + alpha * left @ right, with those numbers at positions 3 and 4.
Formula of_sum_and_product(const char* op, const char* product) {
  return {op,
          {argument(1).for_gradient_of(2), argument(2).for_gradient_of(1)},
          [product](const Call& c, const Tensor& g) -> Grads {
            return {c.want(0, [&] { return scaled(g, c.scalar(3)); }),
                    c.want(1, [&] { return scaled(of_left(product, g, c.tensor(2)), c.scalar(4)); }),
                    c.want(2, [&] { return scaled(of_right(product, g, c.tensor(1)), c.scalar(4)); })};
          }};
}

}  // namespace

const std::vector<Formula>& matmul_formulas() {
  static const std::vector<Formula> formulas = {
      of_product("mm"),
      of_product("bmm"),
      of_sum_and_product("addmm", "mm"),
      of_sum_and_product("baddbmm", "bmm"),
      {"mv",
       {argument(0).for_gradient_of(1), argument(1).for_gradient_of(0)},
       [](const Call& c, const Tensor& g) -> Grads {
         return {c.want(0, [&] { return g.unsqueeze(1) * c.tensor(1); }),
                 c.want(1, [&] { return call("mv", {turned(c.tensor(0)), g}); })};
       }},
      {"addmv",
       {argument(1).for_gradient_of(2), argument(2).for_gradient_of(1)},
       [](const Call& c, const Tensor& g) -> Grads {
         return {c.want(0, [&] { return scaled(g, c.scalar(3)); }),
                 c.want(1, [&] { return scaled(g.unsqueeze(1) * c.tensor(2), c.scalar(4)); }),
                 c.want(2, [&] { return scaled(call("mv", {turned(c.tensor(1)), g}), c.scalar(4)); })};
       }},
  };
  return formulas;
}

}  // namespace rusttorch::autograd
