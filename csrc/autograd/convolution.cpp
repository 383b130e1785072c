#include <ATen/ops/convolution_backward.h>
#include <c10/core/GradMode.h>

#include "derivative.h"

namespace rusttorch::autograd {
namespace {

c10::SymDimVector sizes_of(const Call& c, size_t i) {
  const auto list = c.argument(i).toDimVector();
  return {list.begin(), list.end()};
}

}  // namespace

const std::vector<Formula>& convolution_formulas() {
  static const std::vector<Formula> formulas = {
      // (input, weight, bias, stride, padding, dilation, transposed, output_padding, groups)
      {"convolution",
       {argument(0), argument(1)},
       [](const Call& c, const Tensor& g) -> Grads {
         const auto wanted = [&](size_t i) { return c.given(i) && c.want(i, [&] { return g; }).defined(); };
         const std::array<bool, 3> mask{wanted(0), wanted(1), wanted(2)};
         const Tensor &input = c.tensor(0), &weight = c.tensor(1);
         if (c10::GradMode::is_enabled()) {  // torch's, which has a derivative in turn
           const auto bias_sizes = c.given(2) ? at::OptionalSymIntArrayRef(c.sizes(2)) : std::nullopt;
           const auto [grad_input, grad_weight, grad_bias] =
               at::convolution_backward_symint(g, input, weight, bias_sizes, sizes_of(c, 3), sizes_of(c, 4),
                                               sizes_of(c, 5), c.flag(6), sizes_of(c, 7), c.integer(8), mask);
           return {grad_input, grad_weight, grad_bias};
         }
         const c10::IValue bias_sizes = c.given(2) ? c10::IValue(c.sizes(2)) : c10::IValue();
         return call_all("convolution_backward",
                         {g, input, weight, bias_sizes, c.argument(3), c.argument(4), c.argument(5), c.argument(6),
                          c.argument(7), c.argument(8), c10::List<bool>({mask[0], mask[1], mask[2]})});
       }},
  };
  return formulas;
}

}  // namespace rusttorch::autograd
