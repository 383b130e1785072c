#pragma once

// The three forms of an op (functional, in-place, out=), told from its schema. An optimizer's step, which writes
// to its arguments and returns none of them, has none of these forms: it only updates.

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/function_schema.h>

#include <functional>
#include <optional>
#include <string>

namespace rusttorch {

// f(schema, family, "name.overload") for every op of the table.
using SchemaVisitor = std::function<void(const c10::FunctionSchema&, const std::string&, const std::string&)>;
void for_each_schema(const SchemaVisitor& f);

bool is_inplace(const c10::FunctionSchema& schema);
bool is_out(const c10::FunctionSchema& schema);
bool only_updates(const c10::FunctionSchema& schema);
// "name.overload" of the op that returns what this one writes: add_.Tensor, add.out -> add.Tensor.
std::string functional_name(const c10::FunctionSchema& schema);

// The op of "name.overload" in a namespace, if there is one.
std::optional<c10::OperatorHandle> find_op(const std::string& ns, const std::string& name);

}  // namespace rusttorch
