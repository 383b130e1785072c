#include "../kernels/norm.h"

#include <ATen/OpMathType.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/layer_norm.h>

#include "decomposed.h"
#include "run.h"
#include "stock.h"

namespace rusttorch {
namespace {

using Two = std::tuple<Tensor, Tensor>;
using Three = std::tuple<Tensor, Tensor, Tensor>;
using Four = std::tuple<Tensor, Tensor, Tensor, Tensor>;

class NormPlan;

const std::optional<Tensor> nothing;

// One call: which kernel, on what.
struct NormRequest {
  using Plan = NormPlan;

  norm kernel;
  const Tensor& input;
  at::IntArrayRef normalized;
  MaybeTensor weight, bias;
  double eps = 0;
  // Backward:
  const Tensor* grad = nullptr;
  const Tensor* mean = nullptr;
  const Tensor* rstd = nullptr;
  std::array<bool, 3> wanted{};  // the gradients of input, weight and bias
  // Of our own ops, what is added to the input first, to the weight, and to the gradient of the input:
  bool fused = false;
  const Tensor* residual = nullptr;
  double offset = 0;
  MaybeTensor grad_sum = nothing;

  Device device() const { return device_type(input); }
};

class NormPlan {
 public:
  explicit NormPlan(const NormRequest& request) : request_(request), reason_(fit()) {}

  Handed reason() const { return reason_; }

  struct Results {
    Tensor y, sum, mean, rstd;  // no sum without a residual; of an RMS norm no mean
  };
  Results forward() const;
  // Of input, weight and bias, those that are wanted.
  Three backward() const;

  // Of an RMS norm two results, of a layer norm three.
  template <class R>
  R compute() const {
    if (request_.grad) {
      const auto [grad_x, grad_weight, grad_bias] = backward();
      if constexpr (std::is_same_v<R, Three>) {
        return {grad_x, grad_weight, grad_bias};
      } else {
        return {grad_x, grad_weight};
      }
    }
    const auto [y, sum, mean, rstd] = forward();
    if constexpr (std::is_same_v<R, Three>) {
      return {y, mean, rstd};
    } else {
      return {y, rstd};
    }
  }

 private:
  Handed fit() const;
  Handed fit_fused() const;
  bool fits(MaybeTensor parameter) const;
  bool belong_to_input() const;
  NormArgs arguments() const;
  Tensor statistics() const;
  Two sums_over_rows(const NormArgs& a) const;

  at::ScalarType compute_type() const { return input_.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }
  const Kernel<NormArgs>& kernel() const { return rusttorch::kernel(request_.kernel).on(request_.device()); }

  bool is_layer_norm() const {
    return request_.kernel == norm::layer_norm || request_.kernel == norm::layer_norm_backward;
  }

  const NormRequest& request_;
  const Tensor& input_ = request_.input;
  Handed reason_;
};

// Whether a kernel takes it: contiguous rows, and parameters of the input's dtype.
Handed NormPlan::fit() const {
  const auto rank = request_.normalized.size();
  const bool fits_rows =
      rank > 0 && size_t(input_.dim()) >= rank && input_.sizes().slice(input_.dim() - rank).equals(request_.normalized);
  if (!fits_rows) return Handed::option;  // stock raises
  if (input_.numel() == 0) return Handed::size;
  if (input_.layout() != at::kStrided || !input_.is_contiguous()) return Handed::layout;
  if (!is_plain(input_)) return Handed::option;
  if (!dtype_of(input_) || !at::isFloatingType(input_.scalar_type())) return Handed::dtype;
  if (!fits(request_.weight) || !fits(request_.bias)) return Handed::dtype;
  if (given(request_.bias) && !given(request_.weight)) return Handed::option;
  if (request_.grad && !belong_to_input()) return Handed::layout;
  if (request_.fused) return on_cpu(input_) ? fit_fused() : Handed::option;
  // On a CPU, stock's layer norms of 16 bits have statistics of 16 bits.
  return is_layer_norm() && on_cpu(input_) && input_.element_size() == 2 ? Handed::dtype : Handed::no;
}

// Whether what only our own ops have does: on a device they are made of others.
Handed NormPlan::fit_fused() const {
  const auto is_like_input = [&](const Tensor& t) {
    return t.sizes().equals(input_.sizes()) && t.device() == input_.device();
  };
  if (const auto& grad = request_.grad_sum; given(grad)) {
    if (grad->scalar_type() != input_.scalar_type()) return Handed::dtype;
    if (!is_like_input(*grad)) return Handed::layout;
  }
  const Tensor* residual = request_.residual;
  if (!residual) return Handed::no;
  const bool narrow = input_.scalar_type() == at::kFloat &&
                      (residual->scalar_type() == at::kBFloat16 || residual->scalar_type() == at::kHalf);
  if (residual->scalar_type() != input_.scalar_type() && !narrow) return Handed::dtype;
  return is_like_input(*residual) && residual->is_contiguous() && is_plain(*residual) ? Handed::no : Handed::layout;
}

bool NormPlan::fits(MaybeTensor parameter) const {
  return !given(parameter) || (parameter->is_contiguous() && parameter->sizes().equals(request_.normalized) &&
                               parameter->scalar_type() == input_.scalar_type() &&
                               parameter->device() == input_.device() && is_plain(*parameter));
}

// Whether the gradient and the statistics do.
bool NormPlan::belong_to_input() const {
  const Tensor& grad = *request_.grad;
  if (!grad.sizes().equals(input_.sizes()) || grad.scalar_type() != input_.scalar_type()) return false;
  if (grad.device() != input_.device()) return false;
  const int64_t rows = input_.numel() / c10::multiply_integers(request_.normalized);
  const auto belongs = [&](const Tensor* t) {
    return !t || (t->is_contiguous() && t->numel() == rows && t->scalar_type() == compute_type() &&
                  t->device() == input_.device() && is_plain(*t));
  };
  return belongs(request_.mean) && belongs(request_.rstd);
}

NormArgs NormPlan::arguments() const {
  const auto data_of = [](MaybeTensor t) { return given(t) ? t->const_data_ptr() : nullptr; };
  NormArgs a{};
  a.dtype = *dtype_of(input_);
  a.n = c10::multiply_integers(request_.normalized);
  a.rows = input_.numel() / a.n;
  a.x = input_.const_data_ptr();
  a.weight = data_of(request_.weight);
  a.bias = data_of(request_.bias);
  a.eps = request_.eps;
  if (const Tensor* residual = request_.residual) {
    a.residual = residual->const_data_ptr();
    a.residual_dtype = *dtype_of(*residual);
  }
  a.offset = request_.offset == 0 ? -0.0 : request_.offset;
  return a;
}

NormPlan::Results NormPlan::forward() const {
  NormArgs a = arguments();
  const auto like_input = [&] { return empty_beside(input_, input_.sizes(), input_.scalar_type()); };
  const Results r{like_input(), request_.residual ? like_input() : Tensor(), is_layer_norm() ? statistics() : Tensor(),
                  statistics()};
  const auto data_of = [](const Tensor& t) { return t.defined() ? t.mutable_data_ptr() : nullptr; };
  a.y = data_of(r.y);
  a.sum = data_of(r.sum);
  a.mean = data_of(r.mean);
  a.rstd = data_of(r.rstd);
  run_items(input_, kernel(), a, a.rows, a.n);
  return r;
}

Three NormPlan::backward() const {
  const Tensor grad = request_.grad->contiguous();
  const Tensor grad_sum = given(request_.grad_sum) ? request_.grad_sum->contiguous() : Tensor();
  const Tensor grad_x = empty_beside(input_, input_.sizes(), input_.scalar_type());
  NormArgs a = arguments();
  a.grad = grad.const_data_ptr();
  a.grad_sum = grad_sum.defined() ? grad_sum.const_data_ptr() : nullptr;
  a.mean = request_.mean ? const_cast<void*>(request_.mean->const_data_ptr()) : nullptr;
  a.rstd = const_cast<void*>(request_.rstd->const_data_ptr());
  a.y = grad_x.mutable_data_ptr();
  const auto [grad_weight, grad_bias] = sums_over_rows(a);
  return {request_.wanted[0] ? grad_x : Tensor(), request_.wanted[1] ? grad_weight : Tensor(), grad_bias};
}

// A tensor for the statistics of each row: the input's sizes, those that are normalized 1.
Tensor NormPlan::statistics() const {
  at::DimVector sizes(input_.sizes());
  std::fill(sizes.end() - request_.normalized.size(), sizes.end(), 1);
  return empty_beside(input_, sizes, compute_type());
}

// Runs a backward. The gradients of weight and bias are sums over all rows: first over a few at a time, which errs less
// than one by one, and the same for any number of threads.
Two NormPlan::sums_over_rows(const NormArgs& a) const {
  const bool weight = given(request_.weight), bias = given(request_.bias) && request_.wanted[2];
  const at::IntArrayRef normalized = request_.normalized;
  if (!on_cpu(input_)) {
    NormArgs all = a;
    const auto parameter = [&](bool wanted) { return wanted ? at::empty(normalized, input_.options()) : Tensor(); };
    const Two result(parameter(weight), parameter(bias));
    if (weight) all.grad_weight = std::get<0>(result).mutable_data_ptr();
    if (bias) all.grad_bias = std::get<1>(result).mutable_data_ptr();
    const Tensor workspace = empty_beside(input_, {DeviceNorm(a.rows, a.n, a.dtype).parts, a.n, 2}, compute_type());
    all.workspace = workspace.mutable_data_ptr();
    run_on_device(input_, kernel(), all);
    return result;
  }
  const int64_t each = std::clamp<int64_t>(2 * grain / a.n, 16, 128);
  const int64_t parts = divide_up(a.rows, each);
  const auto zeros = [&](bool wanted) {
    if (!wanted) return Tensor();
    const Tensor sums = empty_beside(input_, {parts, a.n}, compute_type());
    std::memset(sums.mutable_data_ptr(), 0, sums.nbytes());
    return sums;
  };
  const Tensor weights = zeros(weight), biases = zeros(bias);
  const auto row_of = [&](const Tensor& sums, int64_t k) {
    return sums.defined() ? static_cast<char*>(sums.mutable_data_ptr()) + k * a.n * sums.element_size() : nullptr;
  };
  parallel_parts(a.rows, each, a.n, [&](int64_t k, int64_t begin, int64_t end) {
    NormArgs part = a.part(begin, end);
    part.grad_weight = row_of(weights, k);
    part.grad_bias = row_of(biases, k);
    kernel().run(part);
  });
  const auto total = [&](const Tensor& sums) {
    if (!sums.defined()) return sums;
    return (parts == 1 ? sums.view(normalized) : sums.sum(0).view(normalized)).to(input_.scalar_type());
  };
  return {total(weights), total(biases)};
}

struct LayerNorm {
  static NormRequest request(const Tensor& input, c10::SymIntArrayRef normalized, MaybeTensor weight, MaybeTensor bias,
                             double eps) {
    return {norm::layer_norm, input, C10_AS_INTARRAYREF_SLOW(normalized), weight, bias, eps};
  }
};
struct LayerNormBackward {
  static NormRequest request(const Tensor& grad, const Tensor& input, c10::SymIntArrayRef normalized,
                             const Tensor& mean, const Tensor& rstd, MaybeTensor weight, MaybeTensor bias,
                             std::array<bool, 3> wanted) {
    const auto sizes = C10_AS_INTARRAYREF_SLOW(normalized);
    return {norm::layer_norm_backward, input, sizes, weight, bias, 0, &grad, &mean, &rstd, wanted};
  }
};
struct RmsNorm {
  static NormRequest request(const Tensor& input, at::IntArrayRef normalized, MaybeTensor weight,
                             std::optional<double> eps) {
    const double own = rms_norm_eps(input.scalar_type() == at::kDouble);
    return {norm::rms_norm, input, normalized, weight, nothing, eps.value_or(own)};
  }
  static NormRequest request(const Tensor& input, c10::SymIntArrayRef normalized, MaybeTensor weight,
                             std::optional<double> eps) {
    return request(input, C10_AS_INTARRAYREF_SLOW(normalized), weight, eps);
  }
};
struct RmsNormBackward {
  static NormRequest request(const Tensor& grad, const Tensor& input, at::IntArrayRef normalized, const Tensor& rstd,
                             MaybeTensor weight, std::array<bool, 2> wanted) {
    check_one_device({&grad, &input, &rstd, given(weight) ? &*weight : &input});
    const std::array<bool, 3> three{wanted[0], wanted[1], false};
    return {norm::rms_norm_backward, input, normalized, weight, nothing, 0, &grad, nullptr, &rstd, three};
  }
};

// On a CPU aten makes _fused_rms_norm of six ops, and has no backward.
Two rms_norm_backward_of_cpu(const Tensor&, const Tensor&, at::IntArrayRef, const Tensor&, MaybeTensor,
                             std::array<bool, 2>) {
  TORCH_CHECK(false, "_fused_rms_norm_backward: expected the input, gradient and rstd of a forward that ran here");
}
#ifdef RUSTTORCH_CUDA
using StockRmsNorm = Stock<&at::compositeimplicitautograd::_fused_rms_norm, &at::cuda::_fused_rms_norm>;
using StockRmsNormBackward = Stock<&rms_norm_backward_of_cpu, &at::cuda::_fused_rms_norm_backward>;
#else
using StockRmsNorm = Stock<&at::compositeimplicitautograd::_fused_rms_norm>;
using StockRmsNormBackward = Stock<&rms_norm_backward_of_cpu>;
#endif

struct ByFusedRmsNorm {
  static Tensor call(const Tensor& input, c10::SymIntArrayRef normalized, MaybeTensor weight,
                     std::optional<double> eps) {
    using Fused = OwnOp<"_fused_rms_norm", Two (*)(const Tensor&, at::IntArrayRef, MaybeTensor, std::optional<double>)>;
    return std::get<0>(Fused::call(input, C10_AS_INTARRAYREF_SLOW(normalized), weight, eps));
  }
};

// Our own ops, which norm the sum of two tensors, and give the sum too, or have a weight with an offset:
//   add_rms_norm, add_layer_norm, rms_norm.offset   what no kernel takes: the sum and the norm; else
//   _fused_...                                      has the derivative (autograd/norm.cpp)

// What is added to what: a sum has the wider dtype, as of float32 and bf16 under autocast, and the other is the
// residual.
struct Summands {
  const Tensor& input;
  const Tensor* residual;

  Summands(const Tensor& a, MaybeTensor b) : Summands(a, given(b) ? &*b : nullptr) {}
  Summands(const Tensor& a, const Tensor* b)
      : input(b && b->element_size() > a.element_size() ? *b : a), residual(&input == &a ? b : &a) {}
};

struct AddRmsNorm {
  static NormRequest request(const Tensor& input, MaybeTensor residual, at::IntArrayRef normalized, MaybeTensor weight,
                             std::optional<double> eps, double offset) {
    check_one_device({&input, given(residual) ? &*residual : &input, given(weight) ? &*weight : &input});
    const Summands of(input, residual);
    const double own = rms_norm_eps(of.input.scalar_type() == at::kDouble);
    return {.kernel = norm::rms_norm,
            .input = of.input,
            .normalized = normalized,
            .weight = weight,
            .bias = nothing,
            .eps = eps.value_or(own),
            .fused = true,
            .residual = of.residual,
            .offset = offset};
  }
};
struct AddLayerNorm {
  static NormRequest request(const Tensor& input, MaybeTensor residual, at::IntArrayRef normalized, MaybeTensor weight,
                             MaybeTensor bias, double eps) {
    const auto or_input = [&](MaybeTensor t) { return given(t) ? &*t : &input; };
    check_one_device({&input, or_input(residual), or_input(weight), or_input(bias)});
    const Summands of(input, residual);
    return {.kernel = norm::layer_norm,
            .input = of.input,
            .normalized = normalized,
            .weight = weight,
            .bias = bias,
            .eps = eps,
            .fused = true,
            .residual = of.residual};
  }
};

NormPlan::Results forward_fused(const NormRequest& request, Stats& counted) {
  const NormPlan plan(request);
  counted.count(Handed::no);
  TORCH_CHECK(plan.reason() == Handed::no, "expected contiguous tensors of one floating-point dtype; the op without ",
              "_fused takes all");
  return plan.forward();
}
Three backward_fused(const NormRequest& request, Stats& counted) {
  const NormPlan plan(request);
  counted.count(Handed::no);
  TORCH_CHECK(plan.reason() == Handed::no, "expected the sum, gradients and statistics of a forward that ran here");
  return plan.backward();
}

// -> the norm, the sum (empty without a residual), 1 / the root
Three fused_add_rms_norm(const Tensor& input, MaybeTensor residual, at::IntArrayRef normalized, MaybeTensor weight,
                         std::optional<double> eps, double offset) {
  const auto [y, sum, mean, rstd] = forward_fused(AddRmsNorm::request(input, residual, normalized, weight, eps, offset),
                                                  stats<"_fused_add_rms_norm">);
  return {y, sum.defined() ? sum : empty_beside(input, {0}, input.scalar_type()), rstd};
}
Two fused_add_rms_norm_backward(const Tensor& grad, MaybeTensor grad_sum, const Tensor& sum, at::IntArrayRef normalized,
                                const Tensor& rstd, MaybeTensor weight, double offset, std::array<bool, 2> wanted) {
  const NormRequest request{.kernel = norm::rms_norm_backward,
                            .input = sum,
                            .normalized = normalized,
                            .weight = weight,
                            .bias = nothing,
                            .grad = &grad,
                            .rstd = &rstd,
                            .wanted = {wanted[0], wanted[1], false},
                            .fused = true,
                            .offset = offset,
                            .grad_sum = grad_sum};
  const auto [by_input, by_weight, none] = backward_fused(request, stats<"_fused_add_rms_norm_backward">);
  return {by_input, by_weight};
}

// -> the norm, the sum, the mean, 1 / the deviation
Four fused_add_layer_norm(const Tensor& input, const Tensor& residual, at::IntArrayRef normalized, MaybeTensor weight,
                          MaybeTensor bias, double eps) {
  const std::optional<Tensor> other = residual;
  const auto [y, sum, mean, rstd] =
      forward_fused(AddLayerNorm::request(input, other, normalized, weight, bias, eps), stats<"_fused_add_layer_norm">);
  return {y, sum, mean, rstd};
}
Three fused_add_layer_norm_backward(const Tensor& grad, MaybeTensor grad_sum, const Tensor& sum,
                                    at::IntArrayRef normalized, const Tensor& mean, const Tensor& rstd,
                                    MaybeTensor weight, MaybeTensor bias, std::array<bool, 3> wanted) {
  const NormRequest request{.kernel = norm::layer_norm_backward,
                            .input = sum,
                            .normalized = normalized,
                            .weight = weight,
                            .bias = bias,
                            .grad = &grad,
                            .mean = &mean,
                            .rstd = &rstd,
                            .wanted = wanted,
                            .fused = true,
                            .grad_sum = grad_sum};
  return backward_fused(request, stats<"_fused_add_layer_norm_backward">);
}

using RmsNormOp = OwnOp<"rms_norm", Tensor (*)(const Tensor&, c10::SymIntArrayRef, MaybeTensor, std::optional<double>)>;
using FusedAddRmsNorm = OwnOp<"_fused_add_rms_norm", decltype(&fused_add_rms_norm)>;
using FusedAddLayerNorm = OwnOp<"_fused_add_layer_norm", decltype(&fused_add_layer_norm)>;

// Whether the kernels take it.
template <Name name, class Pick, class... A>
bool is_fused(const Tensor& input, MaybeTensor residual, c10::SymIntArrayRef normalized, const A&... options) {
  const bool special =
      is_special(input) || is_special(residual) || is_special(normalized) || (is_special(options) || ...);
  Handed reason = special ? Handed::option : Handed::no;
  if (reason == Handed::no) {
    reason = NormPlan(Pick::request(input, residual, C10_AS_INTARRAYREF_SLOW(normalized), options...)).reason();
  }
  stats<name>.count(reason);
  return reason == Handed::no;
}

// With an offset in what it is computed in: 16 bits would round their sum.
Tensor rms_norm_by_ops(const Tensor& input, c10::SymIntArrayRef normalized, MaybeTensor weight,
                       std::optional<double> eps, double offset) {
  if (offset == 0 || !given(weight)) return RmsNormOp::call(input, normalized, weight, eps);
  const auto wide = at::toOpMathType(input.scalar_type());
  return RmsNormOp::call(input.to(wide), normalized, weight->to(wide) + offset, eps).to(input.scalar_type());
}
Tensor rms_norm_offset(const Tensor& input, c10::SymIntArrayRef normalized, MaybeTensor weight,
                       std::optional<double> eps, double offset) {
  if (!is_fused<"rms_norm.offset", AddRmsNorm>(input, nothing, normalized, weight, eps, offset)) {
    return rms_norm_by_ops(input, normalized, weight, eps, offset);
  }
  return std::get<0>(FusedAddRmsNorm::call(input, nothing, C10_AS_INTARRAYREF_SLOW(normalized), weight, eps, offset));
}

Two add_rms_norm(const Tensor& input, const Tensor& residual, c10::SymIntArrayRef normalized, MaybeTensor weight,
                 std::optional<double> eps, double offset) {
  const std::optional<Tensor> other = residual;
  if (!is_fused<"add_rms_norm", AddRmsNorm>(input, other, normalized, weight, eps, offset)) {
    const Tensor sum = input + residual;
    return {rms_norm_by_ops(sum, normalized, weight, eps, offset), sum};
  }
  const auto [y, sum, rstd] =
      FusedAddRmsNorm::call(input, other, C10_AS_INTARRAYREF_SLOW(normalized), weight, eps, offset);
  return {y, sum};
}

Two add_layer_norm(const Tensor& input, const Tensor& residual, c10::SymIntArrayRef normalized, MaybeTensor weight,
                   MaybeTensor bias, double eps) {
  const std::optional<Tensor> other = residual;
  if (!is_fused<"add_layer_norm", AddLayerNorm>(input, other, normalized, weight, bias, eps)) {
    const Tensor sum = input + residual;
    return {at::layer_norm_symint(sum, normalized, weight, bias, eps), sum};
  }
  const auto [y, sum, mean, rstd] =
      FusedAddLayerNorm::call(input, residual, C10_AS_INTARRAYREF_SLOW(normalized), weight, bias, eps);
  return {y, sum};
}

}  // namespace

const Rows& norm_rows() {
  static const Rows rows = {
      ROW("native_layer_norm", LayerNorm, STOCK(native_layer_norm_symint)),
      ROW("native_layer_norm_backward", LayerNormBackward, STOCK(native_layer_norm_backward_symint)),
      ROW("_fused_rms_norm", RmsNorm, StockRmsNorm),
      ROW("_fused_rms_norm_backward", RmsNormBackward, StockRmsNormBackward),
      RUSTTORCH_COMPOSITE_ROW("rms_norm", RmsNorm, COMPOSITE_IMPLICIT(rms_norm_symint), ByFusedRmsNorm),
      {"_fused_add_rms_norm", impl<&fused_add_rms_norm>(), &stats<"_fused_add_rms_norm">},
      {"_fused_add_rms_norm_backward", impl<&fused_add_rms_norm_backward>(), &stats<"_fused_add_rms_norm_backward">},
      {"_fused_add_layer_norm", impl<&fused_add_layer_norm>(), &stats<"_fused_add_layer_norm">},
      {"_fused_add_layer_norm_backward", impl<&fused_add_layer_norm_backward>(),
       &stats<"_fused_add_layer_norm_backward">},
      {.name = "rms_norm.offset",
       .impl = impl<&rms_norm_offset>(),
       .stats = &stats<"rms_norm.offset">,
       .composite = true},
      {.name = "add_rms_norm", .impl = impl<&add_rms_norm>(), .stats = &stats<"add_rms_norm">, .composite = true},
      {.name = "add_layer_norm", .impl = impl<&add_layer_norm>(), .stats = &stats<"add_layer_norm">, .composite = true},
  };
  return rows;
}

}  // namespace rusttorch
