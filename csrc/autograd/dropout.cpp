#include "derivative.h"

namespace rusttorch::autograd {

const std::vector<Formula>& dropout_formulas() {
  static const std::vector<Formula> formulas = {
      {"native_dropout",
       {result(1)},
       [](const Call& c, const Tensor& g) -> Grads {
         const double p = c.number(1);
         // Without train, stock scales the output but not the gradient.
         const double scale = c.given(2) && c.flag(2) ? (p == 1 ? 0 : 1 / (1 - p)) : 1;
         return {call("native_dropout_backward", {g, c.result(1), scale})};
       }},
      {"native_dropout_backward",
       {argument(1)},
       [](const Call& c, const Tensor& g) -> Grads {
         return {c.want(0, [&] { return call("native_dropout_backward", {g, c.tensor(1), c.number(2)}); }), Tensor()};
       }},
  };
  return formulas;
}

}  // namespace rusttorch::autograd
