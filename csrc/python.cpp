// rusttorch._C: the swap's controls through pybind11, and every op as a function as thin as torch's own.

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/csrc/utils/python_arg_parser.h>

#include "form.h"
#include "swap.h"

namespace rusttorch {
namespace {

namespace py = pybind11;
using c10::IValue;

// A schema's type as torch's argument parser writes it.
std::string parser_type(const c10::Type& type) {
  std::string text = type.str();
  return text.starts_with("str") ? "c10::string_view" + text.substr(3) : text;
}

std::string default_text(const c10::Argument& argument) {
  const IValue& value = *argument.default_value();
  if (value.isNone()) return "None";
  if (value.isString()) return "\"" + value.toStringRef() + "\"";
  return c10::str(value);
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
      : name_(name), overloads_(std::move(overloads)), parser_(signatures()) {
    for (const auto& signature : signatures()) doc_ += signature + "\n";
    doc_ += "\ntorch.ops.rusttorch." + name_ + ", without the cost of torch.ops.";
    method_ = {name_.c_str(), reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&Function::call)),
               METH_VARARGS | METH_KEYWORDS, doc_.c_str()};
  }
  Function(const Function&) = delete;

  // A builtin. The Function lives as long as the process, as the builtins of a module do.
  py::object object() {
    self_ = py::capsule(this);
    callable_ = py::reinterpret_steal<py::object>(PyCFunction_New(&method_, self_.ptr()));
    return callable_;
  }

 private:
  static constexpr int max_arguments = 8;

  std::vector<std::string> signatures() const {
    std::vector<std::string> all;
    for (const auto& overload : overloads_) {
      std::string text = name_ + "(";
      bool keywords = false;
      for (const auto& argument : overload.op.schema().arguments()) {
        if (text.back() != '(') text += ", ";
        if (argument.kwarg_only() && !keywords) text += "*, ";
        keywords |= argument.kwarg_only();
        text += parser_type(*argument.type()) + " " + (argument.name() == "self" ? "input" : argument.name());
        if (argument.default_value()) text += "=" + default_text(argument);
      }
      if (overload.out) text += std::string(keywords ? ", " : ", *, ") + "Tensor out=None";
      all.push_back(text + ")");
    }
    return all;
  }

  static IValue argument(torch::PythonArgs& r, int i, const c10::Type& type) {
    switch (type.kind()) {
      case c10::TypeKind::TensorType: return r.tensor(i);
      case c10::TypeKind::NumberType: return r.scalar(i);
      case c10::TypeKind::BoolType: return r.toBool(i);
      case c10::TypeKind::StringType: return std::string(r.stringView(i));
      default: break;
    }
    if (r.isNone(i)) return IValue();
    return argument(r, i, *type.castRaw<c10::OptionalType>()->getElementType());
  }

  static PyObject* call(PyObject* capsule, PyObject* args, PyObject* kwargs) {
    HANDLE_TH_ERRORS
    auto& self = *static_cast<Function*>(PyCapsule_GetPointer(capsule, nullptr));
    torch::ParsedArgs<max_arguments> parsed;
    auto r = self.parser_.parse(args, kwargs, parsed);
    if (r.has_torch_function()) {
      return torch::handle_torch_function_no_python_arg_parser(r.overloaded_args, args, kwargs, self.name_.c_str(),
                                                               self.callable_.ptr(), "rusttorch");
    }
    const Overload& overload = self.overloads_[r.idx];
    const auto& formal = overload.op.schema().arguments();
    std::vector<IValue> stack;
    stack.reserve(max_arguments);
    for (size_t i = 0; i < formal.size(); ++i) stack.push_back(argument(r, int(i), *formal[i].type()));
    const bool out = overload.out && !r.isNone(int(formal.size()));
    if (out) stack.emplace_back(r.tensor(int(formal.size())));
    {
      const py::gil_scoped_release no_gil;
      (out ? *overload.out : overload.op).callBoxed(stack);
    }
    if (stack.size() == 1) return THPVariable_Wrap(stack[0].toTensor());
    py::tuple results(stack.size());
    for (size_t i = 0; i < stack.size(); ++i) {
      results[i] = py::reinterpret_steal<py::object>(THPVariable_Wrap(stack[i].toTensor()));
    }
    return results.release().ptr();
    END_HANDLE_TH_ERRORS
  }

  std::string name_;
  std::vector<Overload> overloads_;
  torch::PythonArgParser parser_;
  std::string doc_;
  PyMethodDef method_;
  py::object self_, callable_;
};

// Every name of the table, as a builtin of module m.
void add_functions(py::module_& m) {
  std::vector<std::string> order;
  std::map<std::string, std::vector<Overload>> by_name;
  for_each_schema([&](const c10::FunctionSchema& schema, const std::string&, const std::string& name) {
    if (is_out(schema)) return;
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
  for (const auto& name : order) m.attr(name.c_str()) = (new Function(name, by_name[name]))->object();
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
  auto functions = m.def_submodule("functions");
  add_functions(functions);
}
