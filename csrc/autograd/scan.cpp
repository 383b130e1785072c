#include <ATen/TensorOperators.h>
#include <ATen/ops/zeros_like.h>

#include "derivative.h"

namespace rusttorch::autograd {

const std::vector<Formula>& scan_formulas() {
  const auto extreme = [](const Call& c, const Tensor& g) -> Grads {
    return {at::zeros_like(c.tensor(0)).scatter_add(c.integer(1), c.result(1), g)};
  };
  static const std::vector<Formula> formulas = {
      {"cumsum", Save::nothing,
       [](const Call& c, const Tensor& g) -> Grads {
         const int64_t dim = c.integer(1);
         return {g.flip(dim).cumsum(dim).flip(dim)};
       }},
      {"cummax", Save::both, extreme},
      {"cummin", Save::both, extreme},
      {"clone", Save::nothing, [](const Call&, const Tensor& g) -> Grads { return {g}; }},
  };
  return formulas;
}

}  // namespace rusttorch::autograd
