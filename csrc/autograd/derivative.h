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

// The forward call, as a formula sees it: its arguments by position in the schema, its results, and their gradients.
class Call {
 public:
  Call(std::vector<c10::IValue> arguments, Grads results, Grads grads, std::vector<bool> needed)
      : arguments_(std::move(arguments)),
        results_(std::move(results)),
        grads_(std::move(grads)),
        needed_(std::move(needed)) {}

  const Tensor& tensor(size_t i) const { return arguments_[i].toTensor(); }
  bool given(size_t i) const { return !arguments_[i].isNone(); }
  Scalar scalar(size_t i) const { return arguments_[i].toScalar(); }
  bool flag(size_t i) const { return arguments_[i].toBool(); }
  int64_t integer(size_t i) const { return arguments_[i].toInt(); }
  double number(size_t i) const { return arguments_[i].toDouble(); }
  const c10::IValue& argument(size_t i) const { return arguments_[i]; }
  size_t size() const { return arguments_.size(); }
  const Tensor& result(size_t k = 0) const { return results_[k]; }
  // The gradient of the k-th result; undefined where nothing came of that.
  const Tensor& grad(size_t k) const { return grads_[k]; }
  // grad() where the i-th tensor of the schema needs one, else nothing.
  template <class F>
  Tensor want(size_t i, F grad) const {
    return needed_[i] ? Tensor(grad()) : Tensor();
  }

 private:
  std::vector<c10::IValue> arguments_;
  Grads results_, grads_;
  std::vector<bool> needed_;  // by position among the tensors
};

enum class Save { nothing, inputs, results, both };

// The gradients of the schema's tensors, in order, from g, the gradient of the (first) result. They may have the shape
// of the result and its dtype: the engine sums and casts them to the input's. Written in differentiable ops, so that
// a second derivative needs nothing more.
struct Formula {
  const char* op;  // functional overload, as in schemas.cpp
  Save save;
  std::function<Grads(const Call&, const Tensor& g)> grads;
  size_t outputs = 1;        // that are differentiable, the first ones; of more than one, g may be undefined
  size_t inputs = SIZE_MAX;  // that may require a gradient, the first tensors of the schema
};

// A backward op of this package, through the dispatcher, so that it is differentiable in turn.
Tensor call(const char* op, std::vector<c10::IValue> arguments);
Grads call_all(const char* op, std::vector<c10::IValue> arguments);  // all its results

const std::vector<Formula>& pointwise_formulas();
const std::vector<Formula>& activation_formulas();
const std::vector<Formula>& reduction_formulas();
const std::vector<Formula>& scan_formulas();
const std::vector<Formula>& softmax_formulas();
const std::vector<Formula>& loss_formulas();
const std::vector<Formula>& cross_entropy_formulas();
const std::vector<Formula>& dropout_formulas();
const std::vector<Formula>& norm_formulas();

}  // namespace rusttorch::autograd
