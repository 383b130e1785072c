#include "derivative.h"

namespace rusttorch::autograd {
namespace {

// Of the nearest aten has fake kernels for sizes that are symbols; others are compiled for those that there are.
c10::IValue sizes(c10::SymIntArrayRef sizes, bool may_be_symbols) {
  if (may_be_symbols) return sizes;
  std::vector<int64_t> numbers;
  for (const c10::SymInt& size : sizes) numbers.push_back(size.guard_int(__FILE__, __LINE__));
  return numbers;
}

// The two are each other's derivatives: op(x, output_size, options...), op_backward(g, output_size, input_size,
// options...).
Formula forward(const char* op, const char* backward) {
  const bool is_nearest = std::string_view(op).find("nearest") != std::string_view::npos;
  return {op, {}, [backward, is_nearest](const Call& c, const Tensor& g) -> Grads {
            std::vector<c10::IValue> arguments = {g, sizes(g.sym_sizes().slice(2), is_nearest),
                                                  sizes(c.sizes(0), is_nearest)};
            for (size_t i = 2; i < c.size(); ++i) arguments.push_back(c.argument(i));
            return {call(backward, std::move(arguments))};
          }};
}
Formula backward(const char* op, const char* forward) {
  return {op, {}, [forward](const Call& c, const Tensor& g) -> Grads {
            std::vector<c10::IValue> arguments = {g, c.argument(1)};
            for (size_t i = 3; i < c.size(); ++i) arguments.push_back(c.argument(i));
            return {call(forward, std::move(arguments))};
          }};
}

}  // namespace

const std::vector<Formula>& resize_formulas() {
#define BOTH(op) forward(#op, #op "_backward"), backward(#op "_backward", #op)
  static const std::vector<Formula> formulas = {
      BOTH(upsample_nearest2d), BOTH(_upsample_nearest_exact2d), BOTH(upsample_bilinear2d),
      BOTH(upsample_bicubic2d), BOTH(_upsample_bilinear2d_aa),   BOTH(_upsample_bicubic2d_aa),
  };
#undef BOTH
  return formulas;
}

}  // namespace rusttorch::autograd
