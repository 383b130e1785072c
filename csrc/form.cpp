#include "form.h"

#include <torch/csrc/jit/frontend/function_schema_parser.h>

#include <algorithm>

#include "schemas.h"

namespace rusttorch {
namespace {

struct Parsed {
  std::string family;
  c10::FunctionSchema schema;
};

const std::vector<Parsed>& parsed() {
  static const auto all = [] {
    std::vector<Parsed> schemas;
    for (const auto& family : families()) {
      for (const char* text : family.schemas) schemas.push_back({family.name, torch::jit::parseSchema(text)});
    }
    return schemas;
  }();
  return all;
}

std::string base_name(const c10::FunctionSchema& schema) {
  const std::string& name = schema.name();
  const auto colon = name.rfind(':');
  return colon == std::string::npos ? name : name.substr(colon + 1);
}

std::string full_name(const std::string& base, const std::string& overload) {
  return overload.empty() ? base : base + "." + overload;
}

// Whether this is the argument that an out= op writes.
bool is_out(const c10::Argument& argument) {
  return argument.kwarg_only() && argument.alias_info() && argument.alias_info()->isWrite();
}

// The arguments that both forms have: all but what is written.
std::vector<std::string> inputs(const c10::FunctionSchema& schema) {
  std::vector<std::string> types;
  for (const auto& argument : schema.arguments()) {
    if (!is_out(argument)) types.push_back(argument.type()->annotation_str());
  }
  return types;
}

}  // namespace

void for_each_schema(const SchemaVisitor& f) {
  for (const auto& [family, schema] : parsed()) f(schema, family, full_name(base_name(schema), schema.overload_name()));
}

bool is_inplace(const c10::FunctionSchema& schema) {
  return base_name(schema).back() == '_' && !schema.returns().empty() && schema.returns()[0].alias_info();
}

bool is_out(const c10::FunctionSchema& schema) {
  return std::any_of(schema.arguments().begin(), schema.arguments().end(),
                     [](const c10::Argument& argument) { return is_out(argument); });
}

bool only_updates(const c10::FunctionSchema& schema) {
  return schema.is_mutable() && !is_out(schema) && !is_inplace(schema);
}

std::string functional_name(const c10::FunctionSchema& schema) {
  std::string base = base_name(schema);
  if (is_inplace(schema)) base.pop_back();
  if (!is_inplace(schema) && !is_out(schema)) return full_name(base, schema.overload_name());
  for (const auto& [family, candidate] : parsed()) {
    if (base_name(candidate) == base && !is_out(candidate) && inputs(candidate) == inputs(schema)) {
      return full_name(base, candidate.overload_name());
    }
  }
  return "";
}

std::optional<c10::OperatorHandle> find_op(const std::string& ns, const std::string& name) {
  const auto dot = name.find('.');
  return c10::Dispatcher::singleton().findSchema(
      {ns + "::" + name.substr(0, dot), dot == std::string::npos ? "" : name.substr(dot + 1)});
}

}  // namespace rusttorch
