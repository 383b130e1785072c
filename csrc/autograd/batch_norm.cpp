#include <ATen/ops/hardtanh_backward.h>
#include <ATen/ops/native_batch_norm.h>
#include <ATen/ops/native_batch_norm_backward.h>
#include <ATen/ops/threshold_backward.h>
#include <c10/core/GradMode.h>

#include "derivative.h"

namespace rusttorch::autograd {
namespace {

// torch's backward, which has a derivative in turn. eps is the argument at that position.
Grads of_stock(const Call& c, const Tensor& g, size_t eps) {
  const auto [by_input, by_weight, by_bias] =
      at::native_batch_norm_backward(g, c.tensor(0), c.maybe(1), c.maybe(3), c.maybe(4), c.result(1), c.result(2),
                                     c.flag(5), c.number(eps), {true, c.given(1), c.given(2)});
  return {by_input, by_weight, by_bias};
}

// A running statistic, which a training step does not read, and writes after the call.
template <size_t i>
Tensor read_by(at::ArrayRef<c10::IValue> arguments) {
  const bool training = arguments[5].toBool();
  return training || arguments[i].isNone() ? Tensor() : arguments[i].toTensor();
}

c10::List<bool> wanted(const Call& c) { return c10::List<bool>({true, c.given(1), c.given(2)}); }

// native_batch_norm(input, weight, bias, running_mean, running_var, training, momentum, eps) -> output, mean, invstd
Grads of_batch_norm(const Call& c, const Tensor& g) {
  if (c10::GradMode::is_enabled()) return of_stock(c, g, 7);
  return call_all("native_batch_norm_backward", {g, c.tensor(0), c.argument(1), c.argument(3), c.argument(4),
                                                 c.result(1), c.result(2), c.flag(5), c.number(7), wanted(c)});
}

// batch_norm_relu_forward(input, weight, bias, running_mean, running_var, training, eps, maximum)
//   -> output, mean, invstd, var
Grads of_batch_norm_relu(const Call& c, const Tensor& g) {
  if (c10::GradMode::is_enabled()) {
    const Tensor& x = c.tensor(0);
    const auto before =
        c.flag(5) ? at::native_batch_norm(x, c.maybe(1), c.maybe(2), {}, {}, true, 0, c.number(6))
                  : at::native_batch_norm(x, c.maybe(1), c.maybe(2), c.maybe(3), c.maybe(4), false, 0, c.number(6));
    const Tensor& y = std::get<0>(before);
    return of_stock(
        c, c.argument(7).isNone() ? at::threshold_backward(g, y, 0) : at::hardtanh_backward(g, y, 0, c.number(7)), 6);
  }
  return call_all("batch_norm_relu_backward",
                  {g, c.tensor(0), c.argument(1), c.argument(2), c.argument(3), c.argument(4), c.result(1), c.result(2),
                   c.flag(5), c.number(6), wanted(c), c.argument(7)});
}

}  // namespace

const std::vector<Formula>& batch_norm_formulas() {
  static const std::vector<Formula> formulas = {
      {.op = "native_batch_norm",
       .saves = {argument(0), argument(1), argument(3), argument(4), result(1), result(2)},
       .grads = of_batch_norm,
       .inputs = 3},
      {.op = "batch_norm_relu_forward",
       .saves = {argument(0), argument(1), argument(2), argument(3).made_by(read_by<3>),
                 argument(4).made_by(read_by<4>), result(1), result(2)},
       .grads = of_batch_norm_relu,
       .inputs = 3},
  };
  return formulas;
}

}  // namespace rusttorch::autograd
