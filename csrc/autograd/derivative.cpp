#include "derivative.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/dynamo/compiled_autograd.h>
#include <torch/library.h>

#include <algorithm>
#include <string_view>
#include <unordered_map>

#include "../form.h"
#include "../schemas.h"

namespace rusttorch::autograd {
namespace {

namespace ag = torch::autograd;
using c10::IValue;
using torch::jit::Stack;

// Node is counted by a shared_ptr up to torch 2.12, and by itself since.
using NodePtr = std::remove_cvref_t<decltype(std::declval<ag::Edge>().function)>;

// f(tensor) for a tensor, or for each of a list.
template <class F>
void each_tensor(const IValue& value, F f) {
  if (value.isTensor() && value.toTensor().defined()) {
    f(value.toTensor());
  } else if (value.isTensorList()) {
    for (const Tensor& t : value.toTensorVector()) f(t);
  }
}

// f(tensor, whether the op writes it) for every tensor of a call, in lists too.
template <class F>
void for_each_tensor(const c10::OperatorHandle& op, const Stack& stack, F f) {
  const auto& arguments = op.schema().arguments();
  const size_t begin = stack.size() - arguments.size();
  for (size_t i = 0; i < arguments.size(); ++i) {
    const bool written = arguments[i].alias_info() && arguments[i].alias_info()->isWrite();
    each_tensor(stack[begin + i], [&](const Tensor& t) { f(t, written); });
  }
}

bool is_list(const c10::Argument& argument) { return argument.type()->isSubtypeOf(*c10::ListType::ofTensors()); }
bool is_list_of_optional(const c10::Argument& argument) {
  return argument.type()->isSubtypeOf(*c10::ListType::ofOptionalTensors());
}
bool is_tensor(const c10::Argument& argument) { return argument.type()->isSubtypeOf(*c10::OptionalType::ofTensor()); }

// A call whose derivative is wanted, without the tensors that are saved of it.
struct Frame {
  const Formula* formula;
  std::vector<IValue> arguments;                // without the tensors among them; of a list there is an empty one
  std::vector<std::optional<Call::Like>> like;  // by position of the argument, as in Call
  std::vector<size_t> inputs;                   // as in Call
  size_t first = 0;                             // of the call's results, which are this formula's
  std::vector<Saved> kept;                      // of the formula's, what is saved: of lists, each tensor by itself

  bool is_next() const { return first > 0; }
  // Whether that is a result of this formula, and not the next one's.
  bool is_own(const Saved& save) const {
    return save.of == Saved::Of::result && first <= save.index && save.index - first < formula->outputs;
  }

  ag::variable_list gradients(ag::variable_list grads, const ag::variable_list& saved, std::vector<bool> needed,
                              bool last = false) const {
    std::vector<IValue> all = arguments;
    for (IValue& value : all) {
      if (value.isTensorList()) value = c10::List<Tensor>();  // one of this call's own
    }
    Grads results;
    for (size_t k = 0; k < kept.size(); ++k) {
      const size_t i = kept[k].index;
      if (kept[k].of == Saved::Of::result) {
        results.resize(std::max(results.size(), i + 1));
        results[i] = saved[k];
      } else if (all[i].isTensorList()) {
        all[i].toTensorList().push_back(saved[k]);
      } else {
        all[i] = saved[k];
      }
    }
    const Tensor g = grads[0];
    const Call call(std::move(all), like, std::move(results), std::move(grads), inputs, std::move(needed), last);
    auto found = formula->grads(call, g);
    found.resize(inputs.size());  // the last tensors may have no derivative
    return found;
  }
};

class FormulaNode final : public ag::Node {
 public:
  Frame frame;
  std::vector<ag::SavedVariable> saved;  // frame.kept

  std::string name() const override { return std::string("Rusttorch") + frame.formula->op + "Backward"; }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (auto& variable : saved) variable.reset_data();
  }

  ag::variable_list apply(ag::variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (std::none_of(grads.begin(), grads.end(), [](const Tensor& g) { return g.defined(); })) {
      return ag::variable_list(frame.inputs.size());
    }
    const ag::variable_list tensors = unpacked();
    return frame.gradients(std::move(grads), tensors, needed(), last_to_read(tensors));
  }

  // Compiled autograd: what the trace depends on. Numbers and sizes are constants of it, tensors are its inputs.
  void compiled_args(ag::CompiledNodeArgs& args) const override {
    args.collect(name());
    // As text: an IValue would be collected by its hash, which None, 0 and false share.
    for (const auto& value : frame.arguments) args.collect(c10::str(value));
    args.collect(needed());
    for (const auto& like : frame.like) {
      if (!like) continue;
      args.collect(like->dtype);
      for (const auto& size : like->sizes) args.collect(size.guard_int(__FILE__, __LINE__));
    }
    for (size_t k = 0; k < saved.size(); ++k) {
      args.collect(frame.kept[k].index);
      args.collect(frame.kept[k].of == Saved::Of::result);
      args.collect(saved[k], frame.is_own(frame.kept[k]) && !frame.is_next());
    }
  }

  // The formula as a function of the traced tensors, which goes into the trace.
  ag::variable_list apply_with_saved(const ag::variable_list& grads, ag::SwapSavedVariables& swap) override {
    namespace compiled = torch::dynamo::autograd;
    swap.before(saved);
    const ag::variable_list tensors = unpacked();
    const auto gradients = [frame = frame, needed = needed()](const ag::variable_list& grads,
                                                              const std::vector<IValue>& values) {
      ag::variable_list tensors;
      for (const auto& value : values) tensors.push_back(value.toTensor());
      return frame.gradients(grads, tensors, needed);
    };
    const std::vector<c10::TypePtr> types(tensors.size(), c10::TensorType::get());
    using Metadata = compiled::IValuePacker<std::vector<std::optional<ag::InputMetadata>>>;
    const auto& python = compiled::getPyCompilerInterface();
    const auto bound = python->bind_function(swap.get_py_compiler(), name(), gradients, types,
                                             /*is_custom_function=*/true, /*is_traceable=*/true);
    auto result = python->call_function(swap.get_py_compiler(), "apply_functional", bound, grads,
                                        std::vector<IValue>(tensors.begin(), tensors.end()),
                                        Metadata::pack(compiled::get_input_metadata(next_edges())));
    swap.after(saved);
    return result;
  }

 private:
  ag::variable_list unpacked() {
    ag::variable_list all;
    for (size_t k = 0; k < saved.size(); ++k) {
      const bool own = frame.is_own(frame.kept[k]);
      all.push_back(own && !frame.is_next() ? saved[k].unpack(getptr()) : saved[k].unpack());
      if (!own || !frame.is_next()) continue;
      all.back() = all.back().tensor_data();
      ag::impl::set_gradient_edge(all.back(), {getptr(), uint32_t(frame.kept[k].index - frame.first)});
    }
    return all;
  }
  // Of the results among them: this graph is not kept; nobody holds the tensor but `saved` and `tensors`, its memory
  // but it and its own node, and that node but it, so that no other graph goes through there. (What a hook unpacks may
  // be in memory of anybody.)
  bool last_to_read(const ag::variable_list& tensors) const {
    bool last = !ag::get_current_graph_task_keep_graph() && !c10::GradMode::is_enabled();
    for (size_t k = 0; k < saved.size() && last; ++k) {
      if (frame.kept[k].of != Saved::Of::result) continue;
      const Tensor& t = tensors[k];
      last = !saved[k].has_hooks() && t.use_count() == 2 && t.has_storage() && t.storage().use_count() == 2 &&
             t.grad_fn() && t.grad_fn().use_count() == 1;
    }
    return last;
  }
  std::vector<bool> needed() const {
    std::vector<bool> all(frame.inputs.size());
    for (size_t i = 0; i < all.size(); ++i) all[i] = task_should_compute_output(i);
    return all;
  }
};

template <class Pointer>
Pointer make_node() {
  if constexpr (std::is_same_v<Pointer, std::shared_ptr<ag::Node>>) {
    // Torch's deleter, which frees a long graph without recursion. (Found by the argument's namespace.)
    return Pointer(new FormulaNode, [](auto* node) { deleteNode(node); });
  } else {
    return c10::make_intrusive<FormulaNode>();
  }
}

// Hangs the node on a result, and returns the node that hangs there then: where a view was changed in place, the
// CopySlices around it. (Only since torch 2.14 does rebase_history tell.)
template <class Pointer>
Pointer attach(const Tensor& y, const Pointer& node, bool inplace) {
  if (!inplace) {
    ag::set_history(y, node);
  } else if constexpr (std::is_void_v<decltype(ag::rebase_history(y, node))>) {
    ag::rebase_history(y, node);
  } else {
    return ag::rebase_history(y, node);
  }
  return node;
}

// Shows a complete node to torch.autograd.graph.node_creation_hook, which torch has since 2.14. (Found by the
// argument's namespace: a qualified name must be there.)
template <class Pointer>
void created(const Pointer& node) {
  if constexpr (requires { fire_node_creation_hooks(node); }) fire_node_creation_hooks(node);
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
    const size_t begin = stack->size() - op.schema().arguments().size();
    if (!is_differentiated(op, *stack)) return below(op, keys, stack);

    const bool inplace = is_inplace(op.schema());
    const Tensor self = inplace ? (*stack)[begin].toTensor() : Tensor();
    std::vector<NodePtr> nodes;
    for (const Formula* formula = formula_; formula; formula = formula->next.get()) {
      nodes.push_back(start(*formula, op.schema(), *stack, begin));
    }

    below(op, keys, stack);

    ag::variable_list results;
    if (inplace) {
      results = {self};
    } else {
      for (size_t i = stack->size() - op.schema().returns().size(); i < stack->size(); ++i) {
        const IValue& value = (*stack)[i];
        const Grads all = value.isTensorList() ? value.toTensorVector() : Grads{value.toTensor()};
        results.insert(results.end(), all.begin(), all.end());
      }
    }
    // All hang before any keeps the results: what the first node keeps of the next one's result leads there.
    std::vector<NodePtr> attached(nodes.size());
    size_t k = 0;
    for (size_t n = 0; n < nodes.size(); ++n) {
      FormulaNode& node = node_of(nodes[n]);
      node.frame.first = k;
      for (; k < results.size() && k - node.frame.first < node.frame.formula->outputs; ++k) {
        const bool made = n == 0 || results[k].sym_numel() != 0;  // a next result may not have been wanted
        if (made) attached[n] = attach(results[k], nodes[n], inplace);
      }
    }
    for (size_t n = 0; n < nodes.size(); ++n) {
      keep_results(node_of(nodes[n]), results, inplace);
      if (attached[n]) created(attached[n]);
    }
  }

 private:
  static FormulaNode& node_of(const NodePtr& pointer) { return static_cast<FormulaNode&>(*pointer); }

  // A node with its edges, and with what it keeps of the arguments.
  static NodePtr start(const Formula& formula, const c10::FunctionSchema& schema, const Stack& stack, size_t begin) {
    NodePtr pointer = make_node<NodePtr>();
    FormulaNode& node = node_of(pointer);
    const at::ArrayRef<IValue> arguments(&stack[begin], stack.size() - begin);
    ag::variable_list tensors;
    node.frame = frame_of(formula, schema, arguments, tensors);
    check_inputs(formula, schema, node.frame.inputs, tensors);
    const bool inplace = is_inplace(schema);
    if (inplace) ag::check_inplace(tensors[0], true);
    if (tensors.size() > formula.inputs) {
      tensors.resize(formula.inputs);
      node.frame.inputs.resize(formula.inputs);
    }
    node.set_next_edges(ag::collect_next_edges(tensors));
    for (const Saved& save : formula.saves) {
      if (save.of == Saved::Of::result || !is_read(save, node)) continue;
      if (arguments[save.index].isOptionalTensorList()) {  // of which one is made
        keep(node, save, {save.make(arguments), false});
        continue;
      }
      const bool overwritten = inplace && save.index == 0;
      each_tensor(arguments[save.index], [&](const Tensor& t) {
        keep(node, save, {save.make ? save.make(arguments) : overwritten ? t.clone() : t, false});
      });
    }
    return pointer;
  }

  // Keeps what the node reads of the results. A next node keeps its own without the history, and unpacked() gives that
  // back: a hook on saved tensors may hold on to what it is given, and from there the history leads to this node, which
  // no backward may ever come to, and free.
  static void keep_results(FormulaNode& node, const ag::variable_list& results, bool inplace) {
    for (const Saved& save : node.frame.formula->saves) {
      if (save.of == Saved::Of::argument || !is_read(save, node)) continue;
      const bool all = save.index == Saved::any;
      for (size_t k = all ? 0 : save.index; k < (all ? results.size() : save.index + 1); ++k) {
        const Tensor& y = results[k];
        const Saved one = result(k);
        const bool own = node.frame.is_own(one);
        if (own && node.frame.is_next()) {
          keep(node, one, {y.tensor_data(), false});
        } else {
          keep(node, one, {y, own, inplace && y.is_view()});
        }
      }
    }
  }

  static void keep(FormulaNode& node, const Saved& save, ag::SavedVariable&& variable) {
    node.frame.kept.push_back(save);
    node.saved.push_back(std::move(variable));
  }

  // Whether a gradient by which it is read may be asked for.
  static bool is_read(const Saved& save, const FormulaNode& node) {
    if (save.reader == Saved::any) return true;
    for (size_t k = 0; k < node.frame.inputs.size(); ++k) {
      if (node.frame.inputs[k] == save.reader && node.next_edge(k).is_valid()) return true;
    }
    return false;
  }

  // And the call's tensors, which are the frame's inputs.
  static Frame frame_of(const Formula& formula, const c10::FunctionSchema& schema, at::ArrayRef<IValue> arguments,
                        ag::variable_list& tensors) {
    Frame frame;
    frame.formula = &formula;
    frame.arguments = arguments.vec();
    frame.like.resize(arguments.size());
    for (size_t i = 0; i < arguments.size(); ++i) {
      const c10::Argument& formal = schema.arguments()[i];
      IValue& value = frame.arguments[i];
      if (is_list(formal)) {
        value = c10::List<Tensor>();
        each_tensor(arguments[i], [&](const Tensor& t) {
          frame.inputs.push_back(i);
          tensors.push_back(t);
        });
      } else if (is_list_of_optional(formal)) {  // indices, which have no derivative
        value = IValue();
      } else if (is_tensor(formal)) {
        value = IValue();
        frame.inputs.push_back(i);
        tensors.emplace_back();
        each_tensor(arguments[i], [&](const Tensor& t) {
          frame.like[i] = Call::Like{c10::SymDimVector(t.sym_sizes()), t.scalar_type()};
          tensors.back() = t;
        });
      }
    }
    return frame;
  }

  static void check_inputs(const Formula& formula, const c10::FunctionSchema& schema,
                           const std::vector<size_t>& positions, const ag::variable_list& tensors) {
    for (size_t i = formula.inputs; i < tensors.size(); ++i) {
      TORCH_CHECK(!tensors[i].defined() || !tensors[i].requires_grad(), "The function '", formula.op,
                  "' is not differentiable with respect to argument '", schema.arguments()[positions[i]].name(),
                  "'. This input cannot have requires_grad True.");
    }
  }

  static bool is_differentiated(const c10::OperatorHandle& op, const Stack& stack) {
    bool requires_grad = false, complex = false;
    for_each_tensor(op, stack, [&](const Tensor& t, bool) {
      TORCH_CHECK_NOT_IMPLEMENTED(!t._fw_grad(0).defined(), op.schema().name(), " has no forward-mode derivative");
      requires_grad |= t.requires_grad();
      complex |= t.is_complex();
    });
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
    for_each_tensor(op, *stack, [&](const Tensor& t, bool) {
      if (!c10::GradMode::is_enabled() || !t.requires_grad()) return;
      ag::throw_error_out_requires_grad(op.schema().name().substr(sizeof("rusttorch::") - 1).c_str());
    });
    below(op, keys, stack);
  }
};

// The autograd kernel of an op that has no derivative, where torch would leave a gradient out with a warning: none of
// its tensors may need one.
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
#define RUSTTORCH_ADD_FORMULAS(family) \
  for (const auto& formula : family##_formulas()) map.emplace(formula.op, &formula);
    RUSTTORCH_DIFFERENTIABLE_FAMILIES(RUSTTORCH_ADD_FORMULAS)
    return map;
  }();
  const auto found = by_op.find(op);
  return found == by_op.end() ? nullptr : found->second;
}

// An op that updates what it is given, and is not aten's, whose own do not look.
bool is_own_update(const c10::FunctionSchema& schema, const std::string& name) {
  return (schema.returns().empty() || is_inplace(schema)) && !find_op("aten", name);
}

// An op of a family that families.h has not among those with a derivative, and not aten's (an optimizer's).
bool is_own_of_no_derivative(const std::string& family, const std::string& name) {
#define RUSTTORCH_NAME(family) #family,
  constexpr std::string_view differentiable[] = {RUSTTORCH_DIFFERENTIABLE_FAMILIES(RUSTTORCH_NAME)};
#undef RUSTTORCH_NAME
  return std::ranges::find(differentiable, family) == std::end(differentiable) && !find_op("aten", name);
}

}  // namespace

Grads call_all(const char* op, std::vector<c10::IValue> arguments) {
  find_op("rusttorch", op).value().callBoxed(arguments);
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
    } else if (const auto* formula = autograd::find_formula(functional_name(schema))) {
      m.impl(name.c_str(),
             torch::CppFunction::makeFromBoxedFunctor(std::make_unique<autograd::Differentiable>(formula)));
    } else if (family == "foreach" || autograd::is_own_of_no_derivative(family, name) ||
               autograd::is_own_update(schema, name)) {
      m.impl(name.c_str(), torch::CppFunction::makeFromBoxedFunctor(std::make_unique<autograd::NeedsNoGrad>()));
    }
  });
}

// Ops that write to an argument tell autograd that it has changed.
TORCH_LIBRARY_IMPL(rusttorch, ADInplaceOrView, m) {
  using namespace rusttorch;
  for_each_schema([&](const c10::FunctionSchema& schema, const std::string& family, const std::string& name) {
    if (family == "foreach") return;  // its kernels do, which aten's keys do not
    if (only_updates(schema) || autograd::is_own_update(schema, name)) {
      m.impl(name.c_str(), torch::CppFunction::makeFromBoxedFunctor(std::make_unique<autograd::Updates>()));
    } else if (is_out(schema) || (is_inplace(schema) && autograd::find_formula(functional_name(schema)))) {
      m.impl(name.c_str(), torch::autograd::autogradNotImplementedInplaceOrViewFallback());
    }
  });
}
