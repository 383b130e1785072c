#include <ATen/TensorOperators.h>

#include "derivative.h"

namespace rusttorch::autograd {
namespace {

Tensor turned(const Tensor& t) { return t.transpose(-2, -1); }

Tensor scaled(const Tensor& t, const Scalar& by) { return by.equal(1) ? t : t * by; }

// The gradients of a product's factors, each from that of the product and the other factor.
struct Gradients {
  std::function<Tensor(const Tensor& g, const Tensor& right)> of_left;
  std::function<Tensor(const Tensor& g, const Tensor& left)> of_right;
};

// mm or bmm
Gradients of_matrices(const char* product) {
  return {[product](const Tensor& g, const Tensor& right) { return call(product, {g, turned(right)}); },
          [product](const Tensor& g, const Tensor& left) { return call(product, {turned(left), g}); }};
}

Gradients of_mv() {
  return {[](const Tensor& g, const Tensor& vector) { return g.unsqueeze(1) * vector; },
          [](const Tensor& g, const Tensor& matrix) { return call("mv", {turned(matrix), g}); }};
}

Gradients of_dot() {
  return {[](const Tensor& g, const Tensor& right) { return g * right; },
          [](const Tensor& g, const Tensor& left) { return g * left; }};
}

Formula of_product(const char* op, const Gradients& gradients) {
  return {op,
          {argument(0).for_gradient_of(1), argument(1).for_gradient_of(0)},
          [gradients](const Call& c, const Tensor& g) -> Grads {
            return {c.want(0, [&] { return gradients.of_left(g, c.tensor(1)); }),
                    c.want(1, [&] { return gradients.of_right(g, c.tensor(0)); })};
          }};
}

// beta * self + alpha * left @ right, with those numbers at positions 3 and 4.
Formula of_sum_and_product(const char* op, const Gradients& gradients) {
  return {op,
          {argument(1).for_gradient_of(2), argument(2).for_gradient_of(1)},
          [gradients](const Call& c, const Tensor& g) -> Grads {
            return {c.want(0, [&] { return scaled(g, c.scalar(3)); }),
                    c.want(1, [&] { return scaled(gradients.of_left(g, c.tensor(2)), c.scalar(4)); }),
                    c.want(2, [&] { return scaled(gradients.of_right(g, c.tensor(1)), c.scalar(4)); })};
          }};
}

}  // namespace

const std::vector<Formula>& matmul_formulas() {
  static const std::vector<Formula> formulas = {
      of_product("mm", of_matrices("mm")),
      of_product("bmm", of_matrices("bmm")),
      of_product("mv", of_mv()),
      of_product("dot", of_dot()),
      of_sum_and_product("addmm", of_matrices("mm")),
      of_sum_and_product("baddbmm", of_matrices("bmm")),
      of_sum_and_product("addmv", of_mv()),
  };
  return formulas;
}

}  // namespace rusttorch::autograd
