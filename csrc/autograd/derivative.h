#pragma once

// Derivatives of torch.ops.rusttorch.*: one formula per functional op, in tables by family. derivative.cpp makes an
// autograd kernel of each, and of its in-place form. (A swapped aten op keeps PyTorch's own, where it has one: see
// ops/decomposed.h.)

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "../families.h"

namespace rusttorch::autograd {

using at::Scalar;
using at::Tensor;
using Grads = std::vector<Tensor>;

// What a derivative reads of the forward call, and so is kept until then: an argument, by its position in the schema
// (of a list all its tensors), or what is made of the arguments, which the formula finds in that one's place; or a
// result.
struct Saved {
  using Make = Tensor (*)(at::ArrayRef<c10::IValue> arguments);

  enum class Of : uint8_t { argument, result } of;
  size_t index;
  size_t reader = any;  // the argument whose gradient reads it: it is kept if that one requires a gradient
  // Made before the op, of differentiable ops, through which a second derivative goes; undefined: nothing is kept.
  Make make = nullptr;
  static constexpr size_t any = SIZE_MAX;

  constexpr Saved for_gradient_of(size_t argument) const { return {of, index, argument, make}; }
  constexpr Saved made_by(Make f) const { return {of, index, reader, f}; }
};
constexpr Saved argument(size_t i) { return {Saved::Of::argument, i}; }
constexpr Saved result(size_t k = 0) { return {Saved::Of::result, k}; }
constexpr Saved results() { return result(Saved::any); }  // all of them

// The forward call, as a formula sees it: its arguments by position in the schema, its results, and their gradients. A
// list that is returned is so many results. Of tensors there is what the formula saves; of others that are no list's,
// what they were like.
class Call {
 public:
  struct Like {
    c10::SymDimVector sizes;
    at::ScalarType dtype;
  };

  Call(std::vector<c10::IValue> arguments, std::vector<std::optional<Like>> like, Grads results, Grads grads,
       at::ArrayRef<size_t> inputs, std::vector<bool> needed, bool last)
      : arguments_(std::move(arguments)),
        like_(std::move(like)),
        results_(std::move(results)),
        grads_(std::move(grads)),
        inputs_(inputs),
        needed_(std::move(needed)),
        last_(last) {}

  const Tensor& tensor(size_t i) const { return arguments_[i].toTensor(); }
  Grads tensors(size_t i) const { return arguments_[i].toTensorVector(); }
  bool given(size_t i) const { return like_[i] || !arguments_[i].isNone(); }
  std::optional<Tensor> maybe(size_t i) const { return given(i) ? std::optional<Tensor>(tensor(i)) : std::nullopt; }
  // Of a tensor, whether it is saved or not.
  c10::SymIntArrayRef sizes(size_t i) const { return like_[i]->sizes; }
  int64_t dim(size_t i) const { return int64_t(like_[i]->sizes.size()); }
  at::ScalarType dtype(size_t i) const { return like_[i]->dtype; }
  Scalar scalar(size_t i) const { return arguments_[i].toScalar(); }
  bool flag(size_t i) const { return arguments_[i].toBool(); }
  int64_t integer(size_t i) const { return arguments_[i].toInt(); }
  double number(size_t i) const { return arguments_[i].toDouble(); }
  const c10::IValue& argument(size_t i) const { return arguments_[i]; }
  size_t size() const { return arguments_.size(); }
  // The call with another tensor at i.
  Call with(size_t i, const Tensor& t) const {
    Call other = *this;
    other.arguments_[i] = t;
    return other;
  }
  const Tensor& result(size_t k = 0) const { return results_[k]; }
  // The gradient of the k-th result; undefined where nothing came of that.
  const Tensor& grad(size_t k) const { return grads_[k]; }
  // Whether nobody will read the saved results again: neither this graph nor whoever called. A formula may then return
  // one of them as a gradient.
  bool last_to_read_results() const { return last_; }
  // Whether the argument i (of a list its k-th tensor) needs a gradient; and grad() where it does, else nothing.
  bool needs(size_t i, size_t k = 0) const {
    const size_t at = std::find(inputs_.begin(), inputs_.end(), i) - inputs_.begin() + k;
    return at < needed_.size() && needed_[at];
  }
  template <class F>
  Tensor want(size_t i, F grad, size_t k = 0) const {
    return needs(i, k) ? Tensor(grad()) : Tensor();
  }

 private:
  std::vector<c10::IValue> arguments_;
  std::vector<std::optional<Like>> like_;  // by position of the argument; none: no tensor, or none was given
  Grads results_, grads_;
  at::ArrayRef<size_t> inputs_;  // the argument of each tensor that may have a gradient, in order
  std::vector<bool> needed_;     // of each of them
  bool last_;
};

// The gradients of the schema's tensors, in order (a list's one by one), from g, the gradient of the (first) result.
// They may have the shape of the result and its dtype: the engine sums and casts them to the input's. Written in
// differentiable ops, so that a second derivative needs nothing more.
struct Formula {
  const char* op;  // functional overload, as in schemas.cpp
  std::vector<Saved> saves;
  std::function<Grads(const Call&, const Tensor& g)> grads;
  size_t outputs = 1;        // that are differentiable, the first ones; of more than one, any gradient may be undefined
  size_t inputs = SIZE_MAX;  // that may require a gradient, the first tensors of the schema
  static constexpr size_t all_of_list = SIZE_MAX;  // outputs of an op that returns a list
  // The derivative of the next result, which is saved and is differentiated a second time (cross_entropy's slope). Its
  // node is one of its own, so that nothing of it shows at the first one's; there op is a name.
  //   result 0, the loss    <- the node of this formula, which keeps result 1, and reads it in the first derivative
  //   result 1, the slope   <- the node of *next, where the second derivative comes to from there
  std::shared_ptr<const Formula> next = nullptr;
};

// A backward op of this package, through the dispatcher, so that it is differentiable in turn.
Tensor call(const char* op, std::vector<c10::IValue> arguments);
Grads call_all(const char* op, std::vector<c10::IValue> arguments);  // all its results

// Of two that may be undefined.
inline Tensor sum(const Tensor& a, const Tensor& b) { return !a.defined() ? b : b.defined() ? a + b : a; }

// The gradient of x, whose norm of order p over dims is y, from g; both with the dims kept.
Tensor vector_norm_grad(const Tensor& x, const Tensor& y, const Tensor& g, double p, at::IntArrayRef dims);

// Each family's table, in its file.
#define RUSTTORCH_DECLARE_FORMULAS(family) const std::vector<Formula>& family##_formulas();
RUSTTORCH_DIFFERENTIABLE_FAMILIES(RUSTTORCH_DECLARE_FORMULAS)

}  // namespace rusttorch::autograd
