#include "derivative.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/library.h>

#include <unordered_map>

#include "../form.h"
#include "../schemas.h"

namespace rusttorch::autograd {
namespace {

namespace ag = torch::autograd;
using c10::IValue;
using torch::jit::Stack;

// Node was counted by a shared_ptr until torch 2.12.
using NodePtr = std::remove_cvref_t<decltype(std::declval<ag::Edge>().function)>;

class FormulaNode final : public ag::Node {
 public:
  const Formula* formula = nullptr;
  std::vector<IValue> arguments;          // the tensors among them taken out
  std::vector<size_t> tensor_positions;   // of the schema's tensors among the arguments
  std::vector<ag::SavedVariable> inputs;  // those tensors
  std::vector<ag::SavedVariable> results;

  std::string name() const override { return std::string("Rusttorch") + formula->op + "Backward"; }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (auto& input : inputs) input.reset_data();
    for (auto& result : results) result.reset_data();
  }

  ag::variable_list apply(ag::variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    const size_t n = tensor_positions.size();
    if (std::none_of(grads.begin(), grads.end(), [](const Tensor& g) { return g.defined(); })) {
      return ag::variable_list(n);
    }
    std::vector<IValue> unpacked = arguments;
    for (size_t i = 0; i < inputs.size(); ++i) {
      const Tensor t = inputs[i].unpack();
      if (t.defined()) unpacked[tensor_positions[i]] = t;
    }
    std::vector<bool> needed(n);
    for (size_t i = 0; i < n; ++i) needed[i] = task_should_compute_output(i);
    Grads y;
    for (const auto& result : results) y.push_back(result.unpack(getptr()));
    const Tensor g = grads[0];
    auto result = formula->grads(Call(std::move(unpacked), std::move(y), std::move(grads), std::move(needed)), g);
    result.resize(n);  // the last tensors may have no derivative
    return result;
  }
};

template <class Pointer>
Pointer make_node() {
  if constexpr (std::is_same_v<Pointer, std::shared_ptr<ag::Node>>) {
    return std::make_shared<FormulaNode>();
  } else {
    return c10::make_intrusive<FormulaNode>();
  }
}

// The op's next kernel: the one that marks a change, or the backend's.
void below(const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack) {
  const at::AutoDispatchBelowAutograd guard;
  op.redispatchBoxed(keys & c10::after_autograd_keyset, stack);
}

// The autograd kernel of a functional or in-place op.
class Differentiable final : public c10::OperatorKernel {
 public:
  explicit Differentiable(const Formula* formula) : formula_(formula) {}

  void operator()(const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack) {
    const size_t count = op.schema().arguments().size();
    const size_t begin = stack->size() - count;
    if (!is_differentiated(op, *stack, begin)) return below(op, keys, stack);

    std::vector<size_t> positions;
    ag::variable_list tensors;
    for (size_t i = 0; i < count; ++i) {
      const auto& type = *op.schema().arguments()[i].type();
      if (!type.isSubtypeOf(*c10::OptionalType::ofTensor())) continue;
      const IValue& value = (*stack)[begin + i];
      positions.push_back(i);
      tensors.push_back(value.isTensor() ? value.toTensor() : Tensor());
    }
    for (size_t i = formula_->inputs; i < tensors.size(); ++i) {
      TORCH_CHECK(!tensors[i].defined() || !tensors[i].requires_grad(), "The function '", formula_->op,
                  "' is not differentiable with respect to argument '", op.schema().arguments()[positions[i]].name(),
                  "'. This input cannot have requires_grad True.");
    }
    const bool inplace = is_inplace(op.schema());
    if (inplace) ag::check_inplace(tensors[0], true);

    const auto pointer = make_node<NodePtr>();
    auto& node = static_cast<FormulaNode&>(*pointer);
    node.formula = formula_;
    node.tensor_positions = positions;
    node.arguments.assign(stack->begin() + begin, stack->end());
    for (const size_t i : positions) node.arguments[i] = IValue();
    node.set_next_edges(ag::collect_next_edges(tensors));
    if (formula_->save == Save::inputs || formula_->save == Save::both) {
      for (size_t i = 0; i < tensors.size(); ++i) {
        node.inputs.emplace_back(inplace && i == 0 ? tensors[0].clone() : tensors[i], false);
      }
    }

    below(op, keys, stack);

    const size_t outputs = op.schema().returns().size();
    for (size_t k = 0; k < outputs; ++k) {
      const Tensor y = (*stack)[stack->size() - outputs + k].toTensor();
      if (k < formula_->outputs) inplace ? ag::rebase_history(tensors[0], pointer) : ag::set_history(y, pointer);
      if (formula_->save == Save::results || formula_->save == Save::both) {
        const bool ours = k < formula_->outputs;
        node.results.emplace_back(inplace ? tensors[0] : y, ours, inplace && tensors[0].is_view());
      }
    }
  }

 private:
  static bool is_differentiated(const c10::OperatorHandle& op, const Stack& stack, size_t begin) {
    bool requires_grad = false, complex = false;
    for (size_t i = begin; i < stack.size(); ++i) {
      if (!stack[i].isTensor() || !stack[i].toTensor().defined()) continue;
      const Tensor& t = stack[i].toTensor();
      TORCH_CHECK_NOT_IMPLEMENTED(!t._fw_grad(0).defined(), op.schema().name(), " has no forward-mode derivative");
      requires_grad |= t.requires_grad();
      complex |= t.is_complex();
    }
    if (!requires_grad || !c10::GradMode::is_enabled()) return false;
    TORCH_CHECK_NOT_IMPLEMENTED(!complex, op.schema().name(), " has no derivative for complex tensors");
    return true;
  }
  const Formula* formula_;
};

// The autograd kernel of an out= op: stock's refusal.
class NotDifferentiable final : public c10::OperatorKernel {
 public:
  void operator()(const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack) {
    const size_t begin = stack->size() - op.schema().arguments().size();
    for (size_t i = begin; c10::GradMode::is_enabled() && i < stack->size(); ++i) {
      const IValue& value = (*stack)[i];
      if (value.isTensor() && value.toTensor().requires_grad()) {
        ag::throw_error_out_requires_grad(op.schema().name().substr(sizeof("rusttorch::") - 1).c_str());
      }
    }
    below(op, keys, stack);
  }
};

// f(tensor, whether the op writes it) for every tensor of a call, in lists too.
template <class F>
void for_each_tensor(const c10::OperatorHandle& op, const Stack& stack, F f) {
  const auto& arguments = op.schema().arguments();
  const size_t begin = stack.size() - arguments.size();
  for (size_t i = 0; i < arguments.size(); ++i) {
    const IValue& value = stack[begin + i];
    const bool written = arguments[i].alias_info() && arguments[i].alias_info()->isWrite();
    if (value.isTensor() && value.toTensor().defined()) {
      f(value.toTensor(), written);
    } else if (value.isTensorList()) {
      for (const Tensor& t : value.toTensorVector()) f(t, written);
    }
  }
}

// The autograd kernel of an op over lists, which has no derivative: none of its tensors may need one.
class NeedsNoGrad final : public c10::OperatorKernel {
 public:
  void operator()(const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack) {
    if (c10::GradMode::is_enabled()) {
      for_each_tensor(op, *stack, [&](const Tensor& t, bool written) {
        if (written) ag::check_inplace(t, t.requires_grad());
        TORCH_CHECK_NOT_IMPLEMENTED(!t.requires_grad(), op.schema().name(), " has no derivative");
      });
    }
    below(op, keys, stack);
  }
};

// Below autograd: what it writes has changed.
class Updates final : public c10::OperatorKernel {
 public:
  void operator()(const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack) {
    for_each_tensor(op, *stack, [](const Tensor& t, bool written) {
      if (written) ag::increment_version(t);
    });
    const at::AutoDispatchBelowADInplaceOrView guard;
    op.redispatchBoxed(keys & c10::after_ADInplaceOrView_keyset, stack);
  }
};

const Formula* find_formula(const std::string& op) {
  static const auto by_op = [] {
    std::unordered_map<std::string, const Formula*> map;
    for (const auto* table :
         {&pointwise_formulas(), &activation_formulas(), &reduction_formulas(), &scan_formulas(), &softmax_formulas(),
          &loss_formulas(), &cross_entropy_formulas(), &dropout_formulas(), &norm_formulas()}) {
      for (const auto& formula : *table) map.emplace(formula.op, &formula);
    }
    return map;
  }();
  const auto found = by_op.find(op);
  return found == by_op.end() ? nullptr : found->second;
}

}  // namespace

Grads call_all(const char* op, std::vector<c10::IValue> arguments) {
  const auto handle = c10::Dispatcher::singleton().findSchemaOrThrow((std::string("rusttorch::") + op).c_str(), "");
  handle.callBoxed(arguments);
  Grads results;
  for (const auto& value : arguments) results.push_back(value.toTensor());
  return results;
}

Tensor call(const char* op, std::vector<c10::IValue> arguments) { return call_all(op, std::move(arguments))[0]; }

}  // namespace rusttorch::autograd

TORCH_LIBRARY_IMPL(rusttorch, Autograd, m) {
  using namespace rusttorch;
  for_each_schema([&](const c10::FunctionSchema& schema, const std::string& family, const std::string& name) {
    if (is_out(schema)) {
      m.impl(name.c_str(), torch::CppFunction::makeFromBoxedFunctor(std::make_unique<autograd::NotDifferentiable>()));
    } else if (family == "foreach") {
      m.impl(name.c_str(), torch::CppFunction::makeFromBoxedFunctor(std::make_unique<autograd::NeedsNoGrad>()));
    } else if (const auto* formula = autograd::find_formula(functional_name(schema))) {
      m.impl(name.c_str(),
             torch::CppFunction::makeFromBoxedFunctor(std::make_unique<autograd::Differentiable>(formula)));
    }
  });
}

// Ops that write to an argument tell autograd that it has changed.
TORCH_LIBRARY_IMPL(rusttorch, ADInplaceOrView, m) {
  using namespace rusttorch;
  for_each_schema([&](const c10::FunctionSchema& schema, const std::string&, const std::string& name) {
    if (only_updates(schema)) {
      m.impl(name.c_str(), torch::CppFunction::makeFromBoxedFunctor(std::make_unique<autograd::Updates>()));
    } else if (is_out(schema) || (is_inplace(schema) && autograd::find_formula(functional_name(schema)))) {
      m.impl(name.c_str(), torch::autograd::autogradNotImplementedInplaceOrViewFallback());
    }
  });
}
