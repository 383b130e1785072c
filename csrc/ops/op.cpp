#include "op.h"

#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>
#include <ATen/TensorIterator.h>
#include <ATen/ops/empty_strided.h>
#include <c10/core/DeviceGuard.h>

namespace rusttorch {
namespace {

// Streaming stores win once what a call touches does not fit the last cache level, and lose below. With a 32 MB cache,
// bench/ops.py gives add 1.27x of stock at 4.3M f32 elements (52 MB, streamed) and 0.99x at 3M (36 MB, not streamed).
constexpr int64_t stream_bytes = int64_t(48) << 20;

std::optional<Dtype> dtype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case at::kFloat: return Dtype::f32;
    case at::kDouble: return Dtype::f64;
    case at::kBFloat16: return Dtype::bf16;
    case at::kHalf: return Dtype::f16;
    case at::kInt: return Dtype::i32;
    case at::kLong: return Dtype::i64;
    default: return std::nullopt;
  }
}

bool is_integer(Dtype dtype) { return dtype == Dtype::i32 || dtype == Dtype::i64; }

// A number in place of a tensor: stock gives it the dtype of the other operand, unless it is of a higher category.
bool is_single(const Tensor& t) { return t.dim() == 0; }

// Named tensors went from torch after 2.12.
template <class T>
bool has_names([[maybe_unused]] const T& t) {
  if constexpr (requires { t.has_names(); }) {
    return t.has_names();
  } else {
    return false;
  }
}

template <class T>
void store(std::byte* to, T value) {
  std::memcpy(to, &value, sizeof value);
}

// Runs f with a value of the type that dtype's kernels compute in.
template <class F>
auto with_compute_type(Dtype dtype, F f) {
  switch (dtype) {
    case Dtype::f64: return f(double());
    case Dtype::i32: return f(int32_t());
    case Dtype::i64: return f(int64_t());
    default: return f(float());
  }
}

bool same_layout(const Tensor& a, const Tensor& b) {
  if (!a.sizes().equals(b.sizes())) return false;
  if (a.is_contiguous() && b.is_contiguous()) return true;
  return a.strides().equals(b.strides()) && a.is_non_overlapping_and_dense();
}

// Whether writing out would change an element of in before it is read. Both are dense.
bool partly_overlap(const Tensor& in, const Tensor& out) {
  const auto* i = static_cast<const char*>(in.const_data_ptr());
  const auto* o = static_cast<const char*>(out.const_data_ptr());
  if (i == o && in.numel() == out.numel()) return false;
  return i < o + out.nbytes() && o < i + in.nbytes();
}

}  // namespace

Handed Plan::fit() {
  if (!request_.kernel) return Handed::option;
  for (size_t k = 0; k < request_.tensors && !like_; ++k) {
    if (!is_single(*request_.in[k])) like_ = request_.in[k];
  }
  if (!like_) like_ = request_.in[0];
  const auto dtype = dtype_of(*like_);
  if (!dtype) return Handed::dtype;
  args_.dtype = *dtype;
  args_.n = like_->numel();
  kernel_ = request_.kernel(like_->device().type());
  if (is_integer(args_.dtype) && !kernel_.integers) return Handed::dtype;
  if (element_size(args_.dtype) == 2 && args_.n >= request_.limit_16_bit) return Handed::size;
  if (request_.contiguous && !like_->is_contiguous()) return Handed::layout;
  if (!fill_scalars()) return Handed::dtype;
  const bool cpu = like_->is_cpu();
  for (size_t k = 0; k < request_.tensors; ++k) {
    const Tensor& t = *request_.in[k];
    if (has_names(t)) return Handed::option;
    if (&t != like_ && is_single(t) && !is_single(*like_)) {
      if (!cpu || !t.is_cpu()) return Handed::layout;
      if (!fill_single(t, k)) return Handed::dtype;
      continue;
    }
    if (t.scalar_type() != like_->scalar_type()) return Handed::dtype;
    if (t.device() != like_->device()) return Handed::option;
    if (&t == like_ ? !t.is_contiguous() && !t.is_non_overlapping_and_dense() : !same_layout(t, *like_)) {
      return Handed::layout;
    }
    args_.in[k] = t.const_data_ptr();
  }
  return Handed::no;
}

bool Plan::fill_scalars() {
  args_.scalars = scalars_.data();
  for (size_t k = 0; k < request_.scalar_count; ++k) {
    const Scalar& s = request_.scalars[k];
    if (s.isBoolean() || s.isComplex() || s.isSymbolic() || (is_integer(args_.dtype) && !s.isIntegral(false))) {
      return false;
    }
    with_compute_type(args_.dtype, [&](auto zero) {
      using T = decltype(zero);
      store(scalars_.data() + k * sizeof(T), s.to<T>());
    });
  }
  return true;
}

bool Plan::fill_single(const Tensor& t, size_t position) {
  // bf16 and f16 go to stock, which computes with the number unrounded in some ops and rounded in others.
  if (element_size(args_.dtype) == 2) return false;
  std::byte* to = singles_.data() + 8 * position;
  const auto convert = [&](auto value) {
    with_compute_type(args_.dtype, [&](auto zero) { store(to, static_cast<decltype(zero)>(value)); });
  };
  const void* data = t.const_data_ptr();
  switch (t.scalar_type()) {
    case at::kFloat:
    case at::kDouble:
      if (is_integer(args_.dtype)) return false;
      t.scalar_type() == at::kFloat ? convert(*static_cast<const float*>(data))
                                    : convert(*static_cast<const double*>(data));
      break;
    case at::kInt: convert(*static_cast<const int32_t*>(data)); break;
    case at::kLong: convert(*static_cast<const int64_t*>(data)); break;
    default: return false;
  }
  args_.in[position] = to;
  args_.broadcast |= uint8_t(1) << position;
  return true;
}

Tensor Plan::allocate() const {
  // The strides that TensorIterator gives: those of the inputs, and the canonical ones where the input is both.
  if (!like_->is_cpu()) return at::empty_strided(like_->sizes(), like_->strides(), like_->options());
  if (like_->is_contiguous()) return Tensor(at::detail::empty_cpu(like_->sizes(), like_->scalar_type()));
  return Tensor(at::detail::empty_strided_cpu(like_->sizes(), like_->strides(), like_->scalar_type()));
}

bool Plan::accepts(const Tensor& t) {
  const bool fits = t.defined() && t.scalar_type() == like_->scalar_type() && t.device() == like_->device() &&
                    !has_names(t) && same_layout(t, *like_);
  if (!fits) {
    reason_ = t.defined() && t.scalar_type() != like_->scalar_type() ? Handed::dtype : Handed::layout;
    return false;
  }
  for (size_t k = 0; k < request_.tensors; ++k) {
    if (partly_overlap(*request_.in[k], t)) {
      reason_ = Handed::layout;
      return false;
    }
  }
  return true;
}

void Plan::run(const Tensor& out, const Tensor* second_out) {
  args_.out[0] = out.mutable_data_ptr();
  if (second_out) args_.out[1] = second_out->mutable_data_ptr();
  if (args_.n == 0) return;
  if (!out.is_cpu()) {
    const c10::DeviceGuard guard(out.device());
    return kernel_.run(args_);
  }
  const int64_t size = element_size(args_.dtype);
  bool in_place = false;
  for (size_t k = 0; k < request_.tensors; ++k) in_place |= args_.in[k] == args_.out[0];
  args_.stream = !in_place && args_.n * size * int64_t(request_.tensors + 1) >= stream_bytes;
  if (args_.n < at::internal::GRAIN_SIZE) return kernel_.run(args_);
  at::parallel_for(0, args_.n, at::internal::GRAIN_SIZE, [&](int64_t begin, int64_t end) {
    Args part = args_;
    part.n = end - begin;
    for (auto& p : part.out) p = p ? static_cast<char*>(p) + begin * size : p;
    for (size_t k = 0; k < request_.tensors; ++k) {
      if (!(args_.broadcast >> k & 1)) part.in[k] = static_cast<const char*>(part.in[k]) + begin * size;
    }
    kernel_.run(part);
  });
}

}  // namespace rusttorch
