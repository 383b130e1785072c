#include <ATen/TensorOperators.h>
#include <ATen/ops/zeros_like.h>

#include "derivative.h"

namespace rusttorch::autograd {

const std::vector<Formula>& scan_formulas() {
  const auto extreme = [](const Call& c, const Tensor& g) -> Grads {
    return {at::zeros_like(g).scatter_add(c.integer(1), c.result(1), g)};
  };
  static const std::vector<Formula> formulas = {
      {"cumsum",
       {},
       [](const Call& c, const Tensor& g) -> Grads {
         const int64_t dim = c.integer(1);
         return {g.flip(dim).cumsum(dim).flip(dim)};
       }},
      {"cummax", {result(1)}, extreme},
      {"cummin", {result(1)}, extreme},
  };
  return formulas;
}

}  // namespace rusttorch::autograd
