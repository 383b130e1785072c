// rusttorch._C: the swap's controls through pybind11, and every op as a function as thin as torch's own.

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/csrc/utils/python_arg_parser.h>

#include "data/python.h"
#include "form.h"
#include "memory.h"
#include "ops/decomposed.h"
#include "swap.h"

namespace rusttorch {

namespace py = pybind11;

// By an attribute that their classes have: the mode that they belong to.
bool is_tracers(const Tensor& t) {
  const py::gil_scoped_acquire gil;
  const auto object = py::reinterpret_steal<py::object>(THPVariable_Wrap(t));
  return py::hasattr(py::type::of(object), "_mode_key");
}

namespace {

using c10::IValue;

// An argument's type as torch's argument parser writes it.
std::string parser_type(const c10::Argument& argument) {
  std::string text = argument.real_type()->str();
  const bool optional = text.ends_with("?");
  if (optional) text.pop_back();
  if (text == "str") text = "c10::string_view";
  if (text == "int" || text == "SymInt") text = "int64_t";
  if (text == "float") text = "double";
  if (text == "Tensor[]") text = "TensorList";
  if (text == "SymInt[]") text = "int[]";
  if (text == "int[]") text = argument.N() ? "IntArrayRef[" + std::to_string(*argument.N()) + "]" : "IntArrayRef";
  return text + (optional ? "?" : "");
}

// And as a reader of Python, and a type checker, writes it. A number may be a 0-dim tensor.
std::string python_type(const c10::Argument& argument) {
  std::string text = argument.real_type()->str();
  bool optional = text.ends_with("?");
  if (optional) text.pop_back();
  if (text == "Scalar") text = "Number | Tensor";
  if (text == "SymInt") text = "int";
  if (text == "SymInt[]" || text == "int[]") text = argument.N() ? "int | Sequence[int]" : "Sequence[int]";
  if (text == "Tensor[]") text = "Sequence[Tensor]";
  if (text == "ScalarType") text = "torch.dtype";
  if (text == "MemoryFormat") text = "torch.memory_format";
  const auto& value = argument.default_value();
  optional |= value && value->isIntList() && value->toIntList().empty();  // which None says as well
  return text + (optional ? " | None" : "");
}

// A loss takes its reduction as torch.nn.functional does, by name, and as aten does, by number.
bool is_reduction(const c10::Argument& argument) {
  return argument.name() == "reduction" && argument.default_value().has_value();
}
int64_t reduction_of(std::string_view name) {
  constexpr std::array<std::string_view, 3> names = {"none", "mean", "sum"};
  const auto found = std::find(names.begin(), names.end(), name);
  TORCH_CHECK_VALUE(found != names.end(), name, " is not a valid value for reduction");
  return found - names.begin();
}

// As torch's argument parser writes it, or as Python does.
std::string default_text(const c10::Argument& argument, bool python) {
  const IValue& value = *argument.default_value();
  if (python && value.isBool()) return value.toBool() ? "True" : "False";
  if (value.isNone()) return "None";
  if (value.isIntList()) return value.toIntList().empty() ? "None" : std::to_string(value.toIntList()[0]);  // all equal
  if (value.isString()) return "\"" + value.toStringRef() + "\"";
  return c10::str(value);
}

// Several numbers; or one, for each of the places that there are. (r.intlist needs fmt, which torch does not export.)
std::vector<int64_t> integers(PyObject* object, const c10::Argument& argument) {
  const auto& value = argument.default_value();
  if (!object) return value && value->isIntList() ? value->toIntVector() : std::vector<int64_t>();
  const py::handle handle(object);
  if (py::isinstance<py::sequence>(handle)) return handle.cast<std::vector<int64_t>>();
  return std::vector<int64_t>(size_t(argument.N().value_or(1)), handle.cast<int64_t>());
}

IValue list(torch::PythonArgs& r, int i, const c10::Argument& argument, const c10::Type& type) {
  if (type.isSubtypeOf(*c10::ListType::ofTensors())) return r.tensorlist(i);
  return integers(r.args[i], argument);
}

// A functional (or in-place) overload, and the overload that takes out=.
struct Overload {
  c10::OperatorHandle op;
  std::optional<c10::OperatorHandle> out;
};

// One Python function: all overloads of a name, told apart by torch's own argument parser.
class Function {
 public:
  Function(const std::string& name, std::vector<Overload> overloads)
      : name_(name),
        overloads_(std::move(overloads)),
        signatures_(all_signatures()),
        parser_(texts()),
        pair_(py::getattr(py::module_::import("torch.return_types"), name.c_str(), py::none())) {
    // The one that inspect.signature() reads, where there is one only; then all, with types.
    if (overloads_.size() == 1) doc_ += signature(overloads_[0], Words::names, true) + "\n--\n\n";
    for (const auto& overload : overloads_) {
      doc_ += signature(overload, Words::python, true) + " -> " + returned(overload.op.schema()) + "\n";
    }
    const auto sentence = py::module_::import("rusttorch.sentences").attr("sentence")(name);
    doc_ += "\n" + sentence.cast<std::string>() + "\n\ntorch.ops.rusttorch." + name_ + ", as a function of Python.";
    method_ = {name_.c_str(), reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&Function::call)),
               METH_VARARGS | METH_KEYWORDS, doc_.c_str()};
  }
  Function(const Function&) = delete;

  // A builtin of the package. The Function lives as long as the process, as the builtins of a module do. It is found
  // through a module of its own, in whose place a builtin with another self would not be pickled by its name.
  py::object object() {
    static PyModuleDef definition = {PyModuleDef_HEAD_INIT,
                                     "rusttorch._C.function",
                                     nullptr,
                                     sizeof(Function*),
                                     nullptr,
                                     nullptr,
                                     nullptr,
                                     nullptr,
                                     nullptr};
    self_ = py::reinterpret_steal<py::object>(PyModule_Create(&definition));
    *static_cast<Function**>(PyModule_GetState(self_.ptr())) = this;
    const py::str package("rusttorch");
    callable_ = py::reinterpret_steal<py::object>(PyCFunction_NewEx(&method_, self_.ptr(), package.ptr()));
    return callable_;
  }

 private:
  static constexpr int max_arguments = 15;

  struct Signature {
    size_t overload;
    bool by_name;  // the reduction
  };
  // One for each overload, and one more where there is a reduction.
  std::vector<Signature> all_signatures() const {
    std::vector<Signature> all;
    for (size_t k = 0; k < overloads_.size(); ++k) {
      const auto& arguments = overloads_[k].op.schema().arguments();
      if (std::any_of(arguments.begin(), arguments.end(), is_reduction)) all.push_back({k, true});
      all.push_back({k, false});
    }
    return all;
  }
  std::vector<std::string> texts() const {
    std::vector<std::string> all;
    for (const auto& s : signatures_) all.push_back(signature(overloads_[s.overload], Words::parser, s.by_name));
    return all;
  }

  // In the words of torch's argument parser, in Python's, or in Python's without types.
  enum class Words { parser, python, names };

  static std::string declared(const c10::Argument& argument, Words words, bool by_name) {
    const std::string name = argument.name() == "self" ? "input" : argument.name();
    std::string text = name, equals = "=";
    if (words == Words::parser) text = (by_name ? "c10::string_view" : parser_type(argument)) + " " + name;
    if (words == Words::python) {
      text += ": " + (by_name ? R"(Literal["none", "mean", "sum"] | int)" : python_type(argument));
      equals = " = ";
    }
    if (!argument.default_value()) return text;
    return text + equals + (by_name ? "\"mean\"" : default_text(argument, words != Words::parser));
  }

  // by_name: the reduction
  std::string signature(const Overload& overload, Words words, bool by_name) const {
    std::string text = name_ + "(";
    bool keywords = false;
    for (const auto& argument : overload.op.schema().arguments()) {
      if (text.back() != '(') text += ", ";
      if (argument.kwarg_only() && !keywords) text += "*, ";
      keywords |= argument.kwarg_only();
      text += declared(argument, words, by_name && is_reduction(argument));
    }
    if (overload.out) {
      text += keywords ? ", " : ", *, ";
      text += words == Words::parser   ? "Tensor out=None"
              : words == Words::python ? "out: Tensor | None = None"
                                       : "out=None";
    }
    return text + ")";
  }

  std::string returned(const c10::FunctionSchema& schema) const {
    const size_t results = schema.returns().size();
    if (results < 2) return results == 1 ? "Tensor" : "None";
    if (!pair_.is_none()) return "torch.return_types." + name_;
    std::string text = "tuple[Tensor";
    for (size_t k = 1; k < results; ++k) text += ", Tensor";
    return text + "]";
  }

  static IValue value(torch::PythonArgs& r, int i, const c10::Argument& argument, bool by_name) {
    if (by_name && is_reduction(argument)) return reduction_of(r.stringView(i));
    const c10::Type* type = argument.real_type().get();
    if (type->kind() == c10::TypeKind::OptionalType) {
      if (r.isNone(i)) return IValue();
      type = type->castRaw<c10::OptionalType>()->getElementType().get();
    }
    switch (type->kind()) {
      case c10::TypeKind::TensorType: return r.tensor(i);
      case c10::TypeKind::NumberType: return r.scalar(i);
      case c10::TypeKind::BoolType: return r.toBool(i);
      case c10::TypeKind::FloatType: return r.toDouble(i);
      case c10::TypeKind::StringType: return std::string(r.stringView(i));
      case c10::TypeKind::ListType: return list(r, i, argument, *type);
      case c10::TypeKind::MemoryFormatType: return int64_t(r.memoryformat(i));
      case c10::TypeKind::ScalarTypeType: return int64_t(r.scalartype(i));
      default: return r.toInt64(i);
    }
  }

  static PyObject* call(PyObject* module, PyObject* args, PyObject* kwargs) {
    HANDLE_TH_ERRORS
    auto& self = **static_cast<Function**>(PyModule_GetState(module));
    torch::ParsedArgs<max_arguments> parsed;
    auto r = self.parser_.parse(args, kwargs, parsed);
    if (r.has_torch_function()) {
      return torch::handle_torch_function_no_python_arg_parser(r.overloaded_args, args, kwargs, self.name_.c_str(),
                                                               self.callable_.ptr(), "rusttorch");
    }
    const auto [index, by_name] = self.signatures_[r.idx];
    const Overload& overload = self.overloads_[index];
    const auto& formal = overload.op.schema().arguments();
    std::vector<IValue> stack;
    stack.reserve(max_arguments);
    for (size_t i = 0; i < formal.size(); ++i) stack.push_back(value(r, int(i), formal[i], by_name));
    const bool out = overload.out && !r.isNone(int(formal.size()));
    if (out) stack.emplace_back(r.tensor(int(formal.size())));
    {
      const py::gil_scoped_release no_gil;
      (out ? *overload.out : overload.op).callBoxed(stack);
    }
    if (stack.empty()) Py_RETURN_NONE;
    if (stack.size() == 1) return THPVariable_Wrap(stack[0].toTensor());
    py::tuple results(stack.size());
    for (size_t i = 0; i < stack.size(); ++i) {
      results[i] = py::reinterpret_steal<py::object>(THPVariable_Wrap(stack[i].toTensor()));
    }
    return (self.pair_.is_none() ? py::object(results) : self.pair_(results)).release().ptr();
    END_HANDLE_TH_ERRORS
  }

  std::string name_;
  std::vector<Overload> overloads_;
  std::vector<Signature> signatures_;
  torch::PythonArgParser parser_;
  py::object pair_;  // torch.return_types', of the ops that have one
  std::string doc_;
  PyMethodDef method_;
  py::object self_, callable_;
};

// Optimizers and the like: what rusttorch.optim and rusttorch.foreach are made of.
bool takes_lists(const c10::FunctionSchema& schema) {
  return schema.arguments()[0].real_type()->isSubtypeOf(*c10::ListType::ofTensors());
}

// What torch's argument parser has no type for: lists of tensors that are returned, of flags, of indices, and of
// floats.
bool has_no_function(const c10::FunctionSchema& schema) {
  const auto is_list = [](const auto& value) { return value.type()->kind() == c10::TypeKind::ListType; };
  const auto is_untyped = [](const auto& argument) {
    const std::string type = argument.type()->str();
    return type == "bool[]" || type == "Tensor?[]" || type == "float[]?";
  };
  const auto &arguments = schema.arguments(), &returns = schema.returns();
  return std::any_of(returns.begin(), returns.end(), is_list) ||
         std::any_of(arguments.begin(), arguments.end(), is_untyped);
}

// Every name of the table, as a builtin: of one module where it takes lists of tensors, else of the other.
void add_functions(py::module_& functions, py::module_& lists) {
  std::vector<std::string> order;
  std::map<std::string, std::vector<Overload>> by_name;
  for_each_schema([&](const c10::FunctionSchema& schema, const std::string&, const std::string& name) {
    if (is_out(schema) || has_no_function(schema)) return;
    const std::string base = name.substr(0, name.find('.'));
    if (!by_name.contains(base)) order.push_back(base);
    by_name[base].push_back({find_op("rusttorch", name).value(), std::nullopt});
    for_each_schema([&](const c10::FunctionSchema& other, const std::string&, const std::string& other_name) {
      const bool one_output = other.returns().size() == 1 && other.arguments().size() == schema.arguments().size() + 1;
      if (is_out(other) && one_output && functional_name(other) == name) {
        by_name[base].back().out = find_op("rusttorch", other_name);
      }
    });
  });
  for (const auto& name : order) {
    auto& m = takes_lists(by_name[name][0].op.schema()) ? lists : functions;
    m.attr(name.c_str()) = (new Function(name, by_name[name]))->object();
  }
}

}  // namespace
}  // namespace rusttorch

PYBIND11_MODULE(_C, m) {
  using namespace rusttorch;
  m.def("entries", [] {
    py::list all;
    for (const auto& e : entries()) all.append(py::make_tuple(e.family, e.name, e.swappable));
    return all;
  });
  m.def("set_swapped", &set_swapped);
  m.def("take_all", [](bool all) { take_all = all; });
  m.def("enable_pool", &enable_pool);
  m.def("pool_is_available", &pool_is_available);
  m.def("pool_is_enabled", &pool_is_enabled);
  m.def("pool_empty_cache", [] { pool().empty_cache(); });
  m.def("pool_set_limit", [](size_t bytes) { pool().set_limit(bytes); });
  m.def("pool_stats", [] {
    const auto s = pool().stats();
    return py::make_tuple(s.allocated, s.peak_allocated, s.held, s.allocations);
  });
  m.def("reset_stats", &reset_stats);
  m.def("stats", [] {
    py::dict all;
    for (const auto& e : entries()) {
      if (!e.stats) continue;
      py::dict handed;
      for (size_t k = 1; k < handed_names.size(); ++k) {
        if (const auto n = e.stats->calls[k].load()) handed[handed_names[k]] = n;
      }
      const auto ran = e.stats->calls[0].load();
      if (ran || !handed.empty()) all[e.name.c_str()] = py::make_tuple(ran, handed);
    }
    return all;
  });
  auto functions = m.def_submodule("functions"), lists = m.def_submodule("lists");
  add_functions(functions, lists);
  add_data(m);
}
