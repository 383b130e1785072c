#include "derivative.h"

namespace rusttorch::autograd {

const std::vector<Formula>& foreach_formulas() {
  static const std::vector<Formula> formulas = {
      {"_foreach_norm.Scalar",
       {argument(0), results()},
       [](const Call& c, const Tensor&) -> Grads {
         const Grads tensors = c.tensors(0);
         Grads grads;
         for (size_t k = 0; k < tensors.size(); ++k) {
           const Tensor &x = tensors[k], &g = c.grad(k);
           grads.push_back(c.want(
               0, [&] { return g.defined() ? vector_norm_grad(x, c.result(k), g, c.scalar(1).toDouble(), {}) : g; },
               k));
         }
         return grads;
       },
       Formula::all_of_list},
  };
  return formulas;
}

}  // namespace rusttorch::autograd
