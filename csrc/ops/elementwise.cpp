#include "elementwise.h"

#include <ATen/ops/empty_strided.h>

#include "run.h"

namespace rusttorch {
namespace {

// Streaming stores win once what a call touches does not fit the last cache level, and lose below. With a 32 MB cache,
// the bench gives add 1.27x of stock at 4.3M f32 elements (52 MB, streamed) and 0.99x at 3M (36 MB, not streamed).
constexpr int64_t stream_bytes = int64_t(48) << 20;

bool is_integer(Dtype dtype) { return dtype == Dtype::i32 || dtype == Dtype::i64; }

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

// Whether a number is one of dtype's. Beyond its range some of stock's ops are infinite, and some raise.
bool is_in_range(const Scalar& s, Dtype dtype) {
  switch (dtype) {
    case Dtype::i32: return !c10::overflows<int32_t>(s.toLong());
    case Dtype::i64:
    case Dtype::f64: return true;
    case Dtype::f16: return !c10::overflows<at::Half>(s.toDouble());
    case Dtype::bf16: return !c10::overflows<at::BFloat16>(s.toDouble());
    default: return !c10::overflows<float>(s.toDouble());
  }
}

bool same_layout(const Tensor& a, const Tensor& b) {
  if (!a.sizes().equals(b.sizes())) return false;
  if (a.is_contiguous() && b.is_contiguous()) return true;
  return a.strides().equals(b.strides()) && a.is_non_overlapping_and_dense();
}

// How many elements apart the rows of t are, which are contiguous; none, if they are not, or not all equally far.
std::optional<int64_t> row_stride(const Tensor& t) {
  const int64_t last = t.dim() - 1;
  if (last < 0 || (t.size(last) != 1 && t.stride(last) != 1)) return std::nullopt;
  std::optional<int64_t> stride;
  int64_t next = 0;
  for (int64_t d = last - 1; d >= 0; --d) {
    if (t.size(d) == 1) continue;
    if (!stride) stride = next = t.stride(d);
    if (t.stride(d) != next) return std::nullopt;
    next *= t.size(d);
  }
  return stride.value_or(t.size(last));
}

// Whether writing out would change an element of in before it is read. Both are dense.
bool partly_overlap(const Tensor& in, const Tensor& out) {
  const bool the_same = in.const_data_ptr() == out.const_data_ptr() && in.numel() == out.numel();
  return !the_same && overlap(in, out);
}

}  // namespace

// A number in place of a tensor: stock gives it the dtype of the other operand, unless it is of a higher category.
// So is, for a gradient, one number expanded.
bool ElementwisePlan::is_single(size_t position) const {
  const Tensor& t = *request_.in[position];
  if (t.dim() == 0) return true;
  return position == 0 && request_.grad_is_single && t.numel() > 1 && t.sizes().equals(request_.in[1]->sizes()) &&
         std::all_of(t.strides().begin(), t.strides().end(), [](int64_t stride) { return stride == 0; });
}

Handed ElementwisePlan::fit() {
  if (!request_.kernel) return Handed::option;
  size_t like = 0;
  while (like < request_.tensors && is_single(like)) ++like;
  const bool all_are_single = like == request_.tensors;  // none takes its dtype from another
  if (all_are_single) like = 0;
  like_ = request_.in[like];
  const auto dtype = dtype_of(*like_);
  if (!dtype) return Handed::dtype;
  args_.dtype = *dtype;
  args_.n = like_->numel();
  kernel_ = request_.kernel.on(device_type(*like_));
  if (!kernel_.takes(args_.dtype)) return Handed::dtype;
  if (on_cpu(*like_) && element_size(args_.dtype) == 2 && args_.n >= request_.limit_16_bit) return Handed::size;
  if (request_.contiguous && !like_->is_contiguous()) return Handed::layout;
  if (!fill_scalars()) return Handed::dtype;
  for (size_t k = 0; k < request_.tensors; ++k) {
    const Tensor& t = *request_.in[k];
    if (!is_plain(t)) return Handed::option;
    const bool same_device = t.device() == like_->device(), same_dtype = t.scalar_type() == like_->scalar_type();
    if (k != like && is_single(k)) {
      const bool in_place = k == 0 && request_.grad_is_single && same_dtype;  // taken as it is, wherever it is
      if (in_place ? !same_device : !on_cpu(*like_) || !on_cpu(t)) return Handed::layout;
      if (all_are_single && !same_dtype) return Handed::dtype;
      if (!in_place && !single_fits(t)) return Handed::dtype;
      args_.broadcast |= uint8_t(1) << k;
      continue;
    }
    if (!same_dtype) return Handed::dtype;
    if (!same_device) return Handed::option;
    const bool is_dense = t.is_contiguous() || t.is_non_overlapping_and_dense();
    if (k == like ? is_dense : same_layout(t, *like_)) continue;
    if (!request_.rows || !on_cpu(t) || !t.sizes().equals(like_->sizes())) return Handed::layout;
    by_rows_ = true;
  }
  return by_rows_ ? fit_rows() : Handed::no;
}

// Whether the inputs are rows, each of which is worth a call: of 8 elements swiglu has 0.6x of stock, of 16 1.6x.
Handed ElementwisePlan::fit_rows() const {
  for (size_t k = 0; k < request_.tensors; ++k) {
    if (!(args_.broadcast >> k & 1) && !row_stride(*request_.in[k])) return Handed::layout;
  }
  return like_->size(-1) < 16 ? Handed::size : Handed::no;
}

bool ElementwisePlan::fill_scalars() {
  for (size_t k = 0; k < request_.scalar_count; ++k) {
    const Scalar& s = request_.scalars[k];
    if (s.isBoolean() || s.isComplex() || s.isSymbolic() || s.type() == at::kUInt64) return false;
    if (is_integer(args_.dtype) && !s.isIntegral(false)) return false;
    if (!is_in_range(s, args_.dtype)) return false;
    with_compute_type(args_.dtype, [&](auto zero) {
      using T = decltype(zero);
      store(scalars_.data() + k * sizeof(T), s.to<T>());
    });
  }
  return true;
}

bool ElementwisePlan::single_fits(const Tensor& t) const {
  // bf16 and f16 go to stock, which computes with the number unrounded in some ops and rounded in others.
  if (element_size(args_.dtype) == 2) return false;
  switch (t.scalar_type()) {
    case at::kFloat:
    case at::kDouble: return !is_integer(args_.dtype);
    case at::kInt:
    case at::kLong: return true;
    default: return false;
  }
}

void ElementwisePlan::bind() {
  args_.scalars = scalars_.data();  // not before: a plan may have been moved since it was made
  for (size_t k = 0; k < request_.tensors; ++k) {
    const Tensor& t = *request_.in[k];
    if ((args_.broadcast >> k & 1) && t.scalar_type() != like_->scalar_type()) {
      bind_single(t, k);
    } else {
      args_.in[k] = t.const_data_ptr();
    }
  }
}

void ElementwisePlan::bind_single(const Tensor& t, size_t position) {
  std::byte* to = singles_.data() + 8 * position;
  const auto convert = [&](auto value) {
    with_compute_type(args_.dtype, [&](auto zero) { store(to, static_cast<decltype(zero)>(value)); });
  };
  const void* data = t.const_data_ptr();
  switch (t.scalar_type()) {
    case at::kFloat: convert(*static_cast<const float*>(data)); break;
    case at::kDouble: convert(*static_cast<const double*>(data)); break;
    case at::kInt: convert(*static_cast<const int32_t*>(data)); break;
    default: convert(*static_cast<const int64_t*>(data));
  }
  args_.in[position] = to;
}

Tensor ElementwisePlan::allocate() const {
  if (request_.total) return at::empty({}, like_->options());
  // The strides that TensorIterator gives: those of the inputs, and the canonical ones where the input is both.
  if (!like_->is_cpu()) return at::empty_strided(like_->sizes(), like_->strides(), like_->options());
  if (like_->is_contiguous() || by_rows_) return Tensor(at::detail::empty_cpu(like_->sizes(), like_->scalar_type()));
  return Tensor(at::detail::empty_strided_cpu(like_->sizes(), like_->strides(), like_->scalar_type()));
}

bool ElementwisePlan::accepts(const Tensor& out) {
  if (!out.defined()) return refuse(Handed::layout);
  if (out.scalar_type() != like_->scalar_type()) return refuse(Handed::dtype);
  const bool fits = request_.total ? out.dim() == 0 : same_layout(out, *like_);
  if (!fits || out.device() != like_->device() || !is_plain(out)) return refuse(Handed::layout);
  for (size_t k = 0; k < request_.tensors; ++k) {
    if (partly_overlap(*request_.in[k], out)) return refuse(Handed::layout);
  }
  return true;
}

void ElementwisePlan::run_on(const Tensor& out, const Tensor* second) {
  if (request_.total && on_cpu(out)) return write_number(out, total());
  bind();
  args_.out[0] = out.mutable_data_ptr();
  if (second) args_.out[1] = second->mutable_data_ptr();
  if (request_.total) {
    const Tensor parts = empty_beside(out, {total_parts(args_.n)}, at::kDouble);
    args_.out[1] = parts.mutable_data_ptr();
    args_.scale = request_.mean ? 1 / double(args_.n) : 1;
    return run_on_device(out, kernel_, args_);
  }
  if (args_.n == 0) return;
  if (by_rows_ || !same_layout(out, *like_)) return run_rows(out, second);
  bool in_place = false;
  for (size_t k = 0; k < request_.tensors; ++k) in_place |= args_.in[k] == args_.out[0];
  const int64_t bytes = args_.n * element_size(args_.dtype) * int64_t(request_.tensors + 1);
  args_.stream = !in_place && bytes >= stream_bytes;
  run_items(out, kernel_, args_, args_.n, 1);
}

// Where rows of an input lie apart, or of what is written.
void ElementwisePlan::run_rows(const Tensor& out, const Tensor* second) {
  const int64_t n = like_->size(-1), size = element_size(args_.dtype);
  const auto step = [&](const Tensor& t) { return row_stride(t).value() * size; };
  const std::array<int64_t, 2> out_steps{step(out), second ? step(*second) : 0};
  std::array<int64_t, 4> in_steps{};
  for (size_t k = 0; k < request_.tensors; ++k) {
    if (!(args_.broadcast >> k & 1)) in_steps[k] = step(*request_.in[k]);
  }
  parallel(args_.n / n, n, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      ElementwiseArgs row = args_;
      row.n = n;
      for (size_t k = 0; k < out_steps.size(); ++k) advance(row.out[k], r * out_steps[k]);
      for (size_t k = 0; k < in_steps.size(); ++k) advance(row.in[k], r * in_steps[k]);
      kernel_.run(row);
    }
  });
}

// A total of each chunk, then theirs, in the order of the chunks: the same bits for any number of threads.
double ElementwisePlan::total() {
  if (total_) return *total_;
  bind();
  const double divisor = request_.mean ? double(args_.n) : 1;
  double total = 0;
  if (args_.n < grain) {
    args_.out[0] = &total;
    kernel_.run(args_);
  } else {
    std::vector<double> totals(divide_up(args_.n, grain));
    parallel_parts(args_.n, grain, 1, [&](int64_t k, int64_t begin, int64_t end) {
      ElementwiseArgs part = args_.part(begin, end);
      part.out[0] = &totals[k];
      kernel_.run(part);
    });
    for (const double t : totals) total += t;
  }
  total_ = total / divisor;
  return *total_;
}

}  // namespace rusttorch
