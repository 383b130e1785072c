#include "../kernels/norm.h"

#include <ATen/ops/empty.h>

#include "decomposed.h"
#include "run.h"
#include "stock.h"

namespace rusttorch {
namespace {

using Two = std::tuple<Tensor, Tensor>;
using Three = std::tuple<Tensor, Tensor, Tensor>;

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

  Device device() const { return device_type(input); }
};

class NormPlan {
 public:
  explicit NormPlan(const NormRequest& request) : request_(request), reason_(fit()) {}

  Handed reason() const { return reason_; }

  // Of an RMS norm two results, of a layer norm three.
  template <class R>
  R compute() {
    return request_.grad ? backward<R>() : forward<R>();
  }

 private:
  Handed fit() const;
  bool fits(MaybeTensor parameter) const;
  bool belong_to_input() const;
  NormArgs arguments() const;
  Tensor statistics() const;
  Two sums_over_rows(const NormArgs& a) const;

  at::ScalarType compute_type() const { return input_.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }
  const Kernel<NormArgs>& kernel() const { return rusttorch::kernel(request_.kernel).on(request_.device()); }

  template <class R>
  R forward() const {
    NormArgs a = arguments();
    const Tensor y = empty_beside(input_, input_.sizes(), input_.scalar_type()), rstd = statistics();
    a.y = y.mutable_data_ptr();
    a.rstd = rstd.mutable_data_ptr();
    if constexpr (std::is_same_v<R, Three>) {
      const Tensor mean = statistics();
      a.mean = mean.mutable_data_ptr();
      run_items(input_, kernel(), a, a.rows, a.n);
      return {y, mean, rstd};
    } else {
      run_items(input_, kernel(), a, a.rows, a.n);
      return {y, rstd};
    }
  }

  template <class R>
  R backward() const {
    const Tensor grad = request_.grad->contiguous();
    const Tensor grad_x = empty_beside(input_, input_.sizes(), input_.scalar_type());
    NormArgs a = arguments();
    a.grad = grad.const_data_ptr();
    a.mean = request_.mean ? const_cast<void*>(request_.mean->const_data_ptr()) : nullptr;
    a.rstd = const_cast<void*>(request_.rstd->const_data_ptr());
    a.y = grad_x.mutable_data_ptr();
    const auto [grad_weight, grad_bias] = sums_over_rows(a);
    const auto if_wanted = [&](size_t k, const Tensor& t) { return request_.wanted[k] ? t : Tensor(); };
    if constexpr (std::is_same_v<R, Three>) {
      return {if_wanted(0, grad_x), if_wanted(1, grad_weight), grad_bias};
    } else {
      return {if_wanted(0, grad_x), if_wanted(1, grad_weight)};
    }
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
  // On a CPU, stock's layer norms of 16 bits have statistics of 16 bits.
  const bool is_layer_norm = request_.kernel == norm::layer_norm || request_.kernel == norm::layer_norm_backward;
  return is_layer_norm && on_cpu(input_) && input_.element_size() == 2 ? Handed::dtype : Handed::no;
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
  return a;
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

}  // namespace

const Rows& norm_rows() {
  static const Rows rows = {
      ROW("native_layer_norm", LayerNorm, STOCK(native_layer_norm_symint)),
      ROW("native_layer_norm_backward", LayerNormBackward, STOCK(native_layer_norm_backward_symint)),
      ROW("_fused_rms_norm", RmsNorm, StockRmsNorm),
      ROW("_fused_rms_norm_backward", RmsNormBackward, StockRmsNormBackward),
      RUSTTORCH_COMPOSITE_ROW("rms_norm", RmsNorm, COMPOSITE_IMPLICIT(rms_norm_symint), ByFusedRmsNorm),
  };
  return rows;
}

}  // namespace rusttorch
