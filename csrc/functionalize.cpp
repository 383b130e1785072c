// torch.compile and torch.func.functionalize over torch.ops.rusttorch.*: in-place and out= ops in terms of the
// functional ones. One boxed kernel serves them all.

#include <ATen/FunctionalTensorWrapper.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include "form.h"

namespace rusttorch {
namespace {

using at::Tensor;
using c10::IValue;
using torch::jit::Stack;
namespace fz = at::functionalization::impl;

Stack pop_arguments(const c10::OperatorHandle& op, Stack* stack) {
  const size_t count = op.schema().arguments().size();
  Stack arguments(stack->end() - count, stack->end());
  torch::jit::drop(*stack, count);
  return arguments;
}

// x.op_(...) becomes x = op(x, ...), op.out(..., out=y) becomes y = op(...).
class Functionalize final : public c10::OperatorKernel {
 public:
  explicit Functionalize(const std::string& functional) : functional_(functional) {}

  void operator()(const c10::OperatorHandle& op, c10::DispatchKeySet, Stack* stack) {
    const Stack arguments = pop_arguments(op, stack);
    const auto& formal = op.schema().arguments();
    std::vector<Tensor> written;
    Stack inner;
    for (size_t i = 0; i < arguments.size(); ++i) {
      const bool writes = formal[i].alias_info() && formal[i].alias_info()->isWrite();
      if (writes) written.push_back(arguments[i].toTensor());
      if (writes && formal[i].kwarg_only()) continue;
      inner.push_back(arguments[i]);
      if (arguments[i].isTensor() && fz::isFunctionalTensor(arguments[i].toTensor())) {
        fz::sync(arguments[i].toTensor());
        inner.back() = fz::from_functional_tensor(arguments[i].toTensor());
      } else if (arguments[i].isTensorList()) {
        fz::sync(arguments[i].toTensorList());
        inner.back() = fz::from_functional_tensor(arguments[i].toTensorList());
      } else if (arguments[i].isOptionalTensorList()) {
        fz::sync(arguments[i].toOptionalTensorList());
        inner.back() = fz::from_functional_tensor(arguments[i].toOptionalTensorList());
      }
    }
    {
      const at::AutoDispatchSkipFunctionalize guard;
      find_op("rusttorch", functional_).value().callBoxed(&inner);
    }
    for (size_t k = 0; k < written.size(); ++k) {
      TORCH_CHECK(fz::isFunctionalTensor(written[k]), op.schema().name(),
                  ": mutating a non-functional tensor with a functional tensor is not allowed");
      const Tensor result = inner[k].toTensor().to(written[k].scalar_type());
      fz::replace_(written[k], result);
      fz::commit_update(written[k]);
      fz::sync(written[k]);
      stack->emplace_back(written[k]);
    }
  }

 private:
  std::string functional_;  // looked up when called: when this is made, its schema may not be there yet
};

}  // namespace
}  // namespace rusttorch

TORCH_LIBRARY_IMPL(rusttorch, Functionalize, m) {
  using namespace rusttorch;
  for_each_schema([&](const c10::FunctionSchema& schema, const std::string&, const std::string& name) {
    if (!is_out(schema) && !is_inplace(schema)) return;
    m.impl(name.c_str(),
           torch::CppFunction::makeFromBoxedFunctor(std::make_unique<Functionalize>(functional_name(schema))));
  });
}
