#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/gather.h>
#include <ATen/ops/index.h>
#include <ATen/ops/index_fill.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/take.h>

#include "derivative.h"

namespace rusttorch::autograd {

namespace {

// Where in a contiguous tensor of self's sizes the indices are.
Tensor places(at::ArrayRef<c10::IValue> arguments) {
  const Tensor& self = arguments[0].toTensor();
  const at::TensorOptions options = self.options().dtype(at::kLong);
  return at::arange(self.sym_numel(), options).view_symint(self.sym_sizes()).index(arguments[1].toOptionalTensorList());
}

}  // namespace

const std::vector<Formula>& scatter_formulas() {
  static const std::vector<Formula> formulas = {
      {"index_add",
       {argument(2).for_gradient_of(3)},
       [](const Call& c, const Tensor& g) -> Grads {
         return {g, Tensor(), c.want(3, [&] { return g.index_select(c.integer(1), c.tensor(2)) * c.scalar(4); })};
       }},
      {"scatter_add",
       {argument(2).for_gradient_of(3)},
       [](const Call& c, const Tensor& g) -> Grads {
         return {g, Tensor(), c.want(3, [&] { return g.gather(c.integer(1), c.tensor(2)); })};
       }},
      {"_index_put_impl",
       {argument(1).made_by(&places)},
       [](const Call& c, const Tensor& g) -> Grads {
         const Tensor& at = c.tensor(1);
         return {c.want(0, [&] { return c.flag(3) ? g : g.flatten().index_fill(0, at.flatten(), 0).view_as(g); }),
                 c.want(2, [&] { return g.take(at); })};
       }},
  };
  return formulas;
}

}  // namespace rusttorch::autograd
