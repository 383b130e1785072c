#include <ATen/TensorOperators.h>

#include "derivative.h"

namespace rusttorch::autograd {

const std::vector<Formula>& softmax_formulas() {
  // (name, input, result) -> the gradient of the input
  const auto backward = [](const char* op) {
    return [op](const Call& c, const Tensor& g) -> Grads {
      return {call(op, {g, c.result(), c.integer(1), int64_t(c.dtype(0))})};
    };
  };
  static const std::vector<Formula> formulas = {
      {"_softmax", {result()}, backward("_softmax_backward_data")},
      {"_log_softmax", {result()}, backward("_log_softmax_backward_data")},
      // (g - sum(g y)) y, with gg the gradient of that
      {"_softmax_backward_data",
       {argument(0).for_gradient_of(1), argument(1)},
       [](const Call& c, const Tensor& gg) -> Grads {
         const Tensor &g = c.tensor(0), &y = c.tensor(1);
         const int64_t dim = c.integer(2);
         return {c.want(0, [&] { return (gg - (gg * y).sum(dim, true)) * y; }),
                 c.want(1, [&] { return gg * (g - (g * y).sum(dim, true)) - g * (gg * y).sum(dim, true); })};
       }},
      // g - exp(y) sum(g)
      {"_log_softmax_backward_data",
       {argument(0).for_gradient_of(1), argument(1)},
       [](const Call& c, const Tensor& gg) -> Grads {
         const Tensor &g = c.tensor(0), p = c.tensor(1).exp();
         const int64_t dim = c.integer(2);
         return {c.want(0, [&] { return gg - (gg * p).sum(dim, true); }),
                 c.want(1, [&] { return -gg * p * g.sum(dim, true); })};
       }},
  };
  return formulas;
}

}  // namespace rusttorch::autograd
