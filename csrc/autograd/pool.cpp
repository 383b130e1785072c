#include <ATen/TensorOperators.h>

#include "derivative.h"

namespace rusttorch::autograd {
namespace {

// Backward, the gradient g goes to what the indices (the argument i) chose; its own gradient comes from there.
Formula chosen(const char* op, size_t i) {
  return {op, {argument(i)}, [i](const Call& c, const Tensor& g) -> Grads {
            const Tensor& index = c.tensor(i);
            return {g.flatten(-2).gather(-1, index.flatten(-2)).view_as(index)};
          }};
}

}  // namespace

const std::vector<Formula>& pool_formulas() {
  static const std::vector<Formula> formulas = {
      {"max_pool2d_with_indices",
       {argument(0), result(1)},
       [](const Call& c, const Tensor& g) -> Grads {
         return {call("max_pool2d_with_indices_backward", {g, c.tensor(0), c.argument(1), c.argument(2), c.argument(3),
                                                           c.argument(4), c.argument(5), c.result(1)})};
       }},
      chosen("max_pool2d_with_indices_backward", 7),
      {"avg_pool2d",
       {argument(0)},
       [](const Call& c, const Tensor& g) -> Grads {
         return {call("avg_pool2d_backward", {g, c.tensor(0), c.argument(1), c.argument(2), c.argument(3),
                                              c.argument(4), c.argument(5), c.argument(6)})};
       }},
      {"avg_pool2d_backward",
       {},
       [](const Call& c, const Tensor& g) -> Grads {
         return {call("avg_pool2d",
                      {g, c.argument(2), c.argument(3), c.argument(4), c.argument(5), c.argument(6), c.argument(7)})};
       }},
      {"_adaptive_avg_pool2d",
       {argument(0)},
       [](const Call& c, const Tensor& g) -> Grads {
         return {call("_adaptive_avg_pool2d_backward", {g, c.tensor(0)})};
       }},
      {"_adaptive_avg_pool2d_backward",
       {},
       [](const Call& c, const Tensor& g) -> Grads {
         const auto sizes = c.sizes(0);
         return {call("_adaptive_avg_pool2d", {g, sizes.slice(sizes.size() - 2)})};
       }},
      {"adaptive_max_pool2d",
       {argument(0), result(1)},
       [](const Call& c, const Tensor& g) -> Grads {
         return {call("adaptive_max_pool2d_backward", {g, c.tensor(0), c.result(1)})};
       }},
      chosen("adaptive_max_pool2d_backward", 2),
  };
  return formulas;
}

}  // namespace rusttorch::autograd
