#pragma once

// What ops ask of tensors.

#include <ATen/EmptyTensor.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <initializer_list>
#include <optional>

#include "../kernels/kernel.h"

namespace rusttorch {

using at::Scalar;
using at::Tensor;

inline Device device_type(const Tensor& t) { return t.is_cuda() ? Device::cuda : Device::cpu; }

// Whether csrc/kernels is there (csrc/tables.cpp): in the tests' emulation of a GPU (tests/emulation) it is not, and
// CPU tensors get the kernels of csrc_cuda.
extern const bool has_cpu_kernels;

// Whether t's kernels are those of csrc/kernels.
inline bool on_cpu(const Tensor& t) { return has_cpu_kernels && t.is_cpu(); }

// A tensor on t's device, contiguous in a memory format.
inline Tensor empty_beside(const Tensor& t, at::IntArrayRef sizes, at::ScalarType dtype,
                           at::MemoryFormat format = at::MemoryFormat::Contiguous) {
  if (t.is_cpu()) return Tensor(at::detail::empty_cpu(sizes, dtype, /*pin_memory=*/false, format));
  return at::empty(sizes, t.options().dtype(dtype), format);
}

// To a CPU tensor of one floating-point element.
inline void write_number(const Tensor& out, double value) {
  switch (out.scalar_type()) {
    case at::kDouble: *out.mutable_data_ptr<double>() = value; break;
    case at::kBFloat16: *out.mutable_data_ptr<at::BFloat16>() = float(value); break;
    case at::kHalf: *out.mutable_data_ptr<at::Half>() = float(value); break;
    default: *out.mutable_data_ptr<float>() = float(value);
  }
}

inline std::optional<Dtype> dtype_of(at::ScalarType type) {
  switch (type) {
    case at::kFloat: return Dtype::f32;
    case at::kDouble: return Dtype::f64;
    case at::kBFloat16: return Dtype::bf16;
    case at::kHalf: return Dtype::f16;
    case at::kInt: return Dtype::i32;
    case at::kLong: return Dtype::i64;
    case at::kBool: return Dtype::b8;
    default: return std::nullopt;
  }
}
inline std::optional<Dtype> dtype_of(const Tensor& t) { return dtype_of(t.scalar_type()); }

// Named tensors went from torch after 2.12.
template <class T>
bool has_names([[maybe_unused]] const T& t) {
  if constexpr (requires { t.has_names(); }) {
    return t.has_names();
  } else {
    return false;
  }
}

// What sums of it are, where nothing else is asked for.
inline at::ScalarType sum_dtype(const Tensor& t) {
  return at::isIntegralType(t.scalar_type(), /*includeBool=*/true) ? at::kLong : t.scalar_type();
}

// Whether t is what its memory holds. Zeros without memory (the tangents of forward-mode AD) and values that are
// negated when they are read reach the kernels that aten lets them through to: those of add.Scalar, mul.Scalar, clone.
inline bool is_plain(const Tensor& t) {
  constexpr c10::DispatchKeySet lazy(
      {c10::DispatchKey::ZeroTensor, c10::DispatchKey::Negative, c10::DispatchKey::Conjugate});
  return !t.key_set().has_any(lazy) && !has_names(t);
}

using MaybeTensor = const std::optional<Tensor>&;
// aten's autograd passes an absent tensor as an undefined one.
inline bool given(MaybeTensor t) { return t && t->defined(); }

// Stock's error where tensors are on several devices.
inline void check_one_device(std::initializer_list<const Tensor*> tensors) {
  const Tensor& first = **tensors.begin();
  for (const Tensor* t : tensors) {
    TORCH_CHECK(t->device() == first.device(), "Expected all tensors to be on the same device, but found at least two ",
                "devices, ", first.device(), " and ", t->device(), "!");
  }
}

// Whether at::empty_like(t) has its last dim's numbers side by side, as t has: not where t's windows (of unfold) are
// apart by 1 as well.
inline bool like_has_rows(const Tensor& t) {
  if (t.size(-1) == 1) return true;
  for (int64_t d = 0; d < t.dim() - 1; ++d) {
    if (t.stride(d) == 1 && t.size(d) > 1) return false;
  }
  return true;
}

// Whether two dense tensors share memory.
inline bool overlap(const Tensor& a, const Tensor& b) {
  const auto *p = static_cast<const char*>(a.const_data_ptr()), *q = static_cast<const char*>(b.const_data_ptr());
  return p < q + b.nbytes() && q < p + a.nbytes();
}

// Whether out is what a kernel that writes a contiguous tensor may write to, for an input in, which is dense.
inline bool is_contiguous_output(const Tensor& out, at::ScalarType dtype, at::IntArrayRef sizes, const Tensor& in,
                                 at::MemoryFormat format = at::MemoryFormat::Contiguous) {
  return out.defined() && out.scalar_type() == dtype && out.device() == in.device() && out.sizes().equals(sizes) &&
         out.is_contiguous(format) && is_plain(out) && !overlap(in, out);
}

}  // namespace rusttorch
