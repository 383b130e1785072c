// Autocast over torch.ops.rusttorch.*: what aten casts (losses, prod; on CUDA sums and softmax too) is cast here as
// well: to float32, but for products of matrices, linear layers, addcmul, addcdiv and linear_cross_entropy. (A swapped
// aten op keeps PyTorch's own rules.)

#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include "form.h"

namespace rusttorch {
namespace {

using torch::jit::Stack;

// Calls the op with its floating-point tensors, but those of float64, cast to a dtype.
void call_as(const c10::OperatorHandle& op, Stack* stack, at::ScalarType dtype, c10::DeviceType device) {
  const c10::impl::ExcludeDispatchKeyGuard guard(at::autocast::get_autocast_dispatch_key_from_device_type(device));
  for (size_t i = stack->size() - op.schema().arguments().size(); i < stack->size(); ++i) {
    c10::IValue& value = (*stack)[i];
    if (value.isTensor()) value = at::autocast::cached_cast(dtype, value.toTensor(), device);
  }
  op.callBoxed(stack);
}

template <c10::DeviceType device>
void in_float32(const c10::OperatorHandle& op, Stack* stack) {
  call_as(op, stack, at::kFloat, device);
}

// addcmul and addcdiv, in the widest dtype among their tensors.
template <c10::DeviceType device>
void in_widest(const c10::OperatorHandle& op, Stack* stack) {
  at::ScalarType widest = at::autocast::get_lower_precision_fp_from_device_type(device);
  for (size_t i = stack->size() - op.schema().arguments().size(); i < stack->size(); ++i) {
    if ((*stack)[i].isTensor()) widest = at::autocast::prioritize(widest, (*stack)[i].toTensor(), device);
  }
  call_as(op, stack, widest, device);
}

template <c10::DeviceType device>
void in_lower_precision(const c10::OperatorHandle& op, Stack* stack) {
  call_as(op, stack, at::autocast::get_lower_precision_fp_from_device_type(device), device);
}

// Where aten refuses, so do we, in its words.
void refuse(const c10::OperatorHandle& op, Stack* stack) {
  find_op("aten", op.schema().name().substr(sizeof("rusttorch::") - 1))->callBoxed(stack);
}

// Where aten casts, so do we.
template <c10::DeviceType device>
std::optional<torch::CppFunction> cast_of(const std::string& family, const std::string& name) {
  using torch::CppFunction;
  if (device == c10::DeviceType::CUDA && name == "binary_cross_entropy") {
    return CppFunction::makeFromBoxedFunction<&refuse>();
  }
  if (name == "linear_act" || name == "linear_glu" || name == "linear_cross_entropy") {
    return CppFunction::makeFromBoxedFunction<&in_lower_precision<device>>();
  }
  // On CUDA aten casts what a cross entropy is made of.
  const auto twin = find_op("aten", name == "cross_entropy_loss" ? "nll_loss" : name);
  const auto key = at::autocast::get_autocast_dispatch_key_from_device_type(device);
  if (!twin || !twin->hasKernelForDispatchKey(key)) return std::nullopt;
  if (family == "matmul" || family == "attention")
    return CppFunction::makeFromBoxedFunction<&in_lower_precision<device>>();
  if (name == "addcmul" || name == "addcdiv") return CppFunction::makeFromBoxedFunction<&in_widest<device>>();
  return CppFunction::makeFromBoxedFunction<&in_float32<device>>();
}

template <c10::DeviceType device>
void register_casts(torch::Library& m) {
  for_each_schema([&](const c10::FunctionSchema&, const std::string& family, const std::string& name) {
    if (auto cast = cast_of<device>(family, name)) m.impl(name.c_str(), std::move(*cast));
  });
}

}  // namespace
}  // namespace rusttorch

TORCH_LIBRARY_IMPL(rusttorch, AutocastCPU, m) { rusttorch::register_casts<c10::DeviceType::CPU>(m); }
TORCH_LIBRARY_IMPL(rusttorch, AutocastCUDA, m) { rusttorch::register_casts<c10::DeviceType::CUDA>(m); }
