#include <ATen/TensorOperators.h>
#include <ATen/ops/bincount.h>
#include <ATen/ops/index_select.h>

#include "derivative.h"

namespace rusttorch::autograd {

const std::vector<Formula>& embedding_formulas() {
  static const std::vector<Formula> formulas = {
      {"embedding_dense_backward",
       {argument(1)},
       [](const Call& c, const Tensor& g) -> Grads {
         const Tensor& indices = c.tensor(1);
         const Tensor flat = indices.flatten();
         const Tensor is_none = (flat < 0) | (flat >= g.sym_size(0)) | (flat == c.integer(3));
         const Tensor rows = flat.masked_fill(is_none, 0);
         Tensor grad = g.index_select(0, rows).masked_fill(is_none.unsqueeze(1), 0);
         if (c.flag(4)) {
           const Tensor counts = rows.bincount(is_none.logical_not().to(g.scalar_type()));
           grad = grad / counts.index_select(0, rows).clamp_min(1).unsqueeze(1);
         }
         return {grad.view_symint(c.sizes(0))};
       }},
  };
  return formulas;
}

}  // namespace rusttorch::autograd
