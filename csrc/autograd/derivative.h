#pragma once

// Derivatives of torch.ops.rusttorch.*: one formula per functional op, in tables by family. derivative.cpp makes an
// autograd kernel of each, and of its in-place form. (A swapped aten op keeps PyTorch's own.)

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

#include <functional>
#include <string>
#include <vector>

namespace rusttorch::autograd {

using at::Scalar;
using at::Tensor;
using Grads = std::vector<Tensor>;

// The forward call, as a formula sees it: its arguments by position in the schema, and its (first) result.
class Call {
 public:
  Call(std::vector<c10::IValue> arguments, Tensor result, std::vector<bool> needed)
      : arguments_(std::move(arguments)), result_(std::move(result)), needed_(std::move(needed)) {}

  const Tensor& tensor(size_t i) const { return arguments_[i].toTensor(); }
  bool given(size_t i) const { return !arguments_[i].isNone(); }
  Scalar scalar(size_t i) const { return arguments_[i].toScalar(); }
  bool flag(size_t i) const { return arguments_[i].toBool(); }
  const c10::IValue& argument(size_t i) const { return arguments_[i]; }
  const Tensor& result() const { return result_; }
  // grad() where the i-th tensor of the schema needs one, else nothing.
  template <class F>
  Tensor want(size_t i, F grad) const {
    return needed_[i] ? Tensor(grad()) : Tensor();
  }

 private:
  std::vector<c10::IValue> arguments_;
  Tensor result_;
  std::vector<bool> needed_;  // by position among the tensors
};

enum class Save { nothing, inputs, result };

// The gradients of the schema's tensors, in order, from g, the gradient of the result. They may have the shape of
// the result and its dtype: the engine sums and casts them to the input's. Written in differentiable ops, so that
// a second derivative needs nothing more.
struct Formula {
  const char* op;  // functional overload, as in schemas.cpp
  Save save;
  std::function<Grads(const Call&, const Tensor& g)> grads;
};

const std::vector<Formula>& pointwise_formulas();
const std::vector<Formula>& activation_formulas();

}  // namespace rusttorch::autograd
