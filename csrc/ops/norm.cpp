#include "../kernels/norm.h"

#include <ATen/ops/empty.h>

#include "run.h"
#include "stock.h"

namespace rusttorch {
namespace {

using Two = std::tuple<Tensor, Tensor>;
using Three = std::tuple<Tensor, Tensor, Tensor>;

at::ScalarType compute_type(const Tensor& t) { return t.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }

int64_t row_length(at::IntArrayRef normalized) { return c10::multiply_integers(normalized); }

bool fits(MaybeTensor parameter, const Tensor& input, at::IntArrayRef normalized) {
  return !given(parameter) || (parameter->is_contiguous() && parameter->sizes().equals(normalized) &&
                               parameter->scalar_type() == input.scalar_type() &&
                               parameter->device() == input.device() && is_plain(*parameter));
}

// Whether a kernel takes it: contiguous rows, and parameters of the input's dtype.
Handed reason_of(const Tensor& input, at::IntArrayRef normalized, MaybeTensor weight, MaybeTensor bias) {
  const auto rank = normalized.size();
  if (rank == 0 || size_t(input.dim()) < rank || !input.sizes().slice(input.dim() - rank).equals(normalized)) {
    return Handed::option;  // stock raises
  }
  if (input.numel() == 0) return Handed::size;
  if (input.layout() != at::kStrided || !input.is_contiguous()) return Handed::layout;
  if (!is_plain(input)) return Handed::option;
  if (!dtype_of(input) || !at::isFloatingType(input.scalar_type())) return Handed::dtype;
  if (!fits(weight, input, normalized) || !fits(bias, input, normalized)) return Handed::dtype;
  return given(bias) && !given(weight) ? Handed::option : Handed::no;
}
// On a CPU, stock's layer norms of 16 bits have statistics of 16 bits.
Handed layer_reason(const Tensor& input, at::IntArrayRef normalized, MaybeTensor weight, MaybeTensor bias) {
  const Handed reason = reason_of(input, normalized, weight, bias);
  return reason == Handed::no && on_cpu(input) && input.element_size() == 2 ? Handed::dtype : reason;
}

const void* data_of(MaybeTensor t) { return given(t) ? t->const_data_ptr() : nullptr; }

NormArgs arguments(const Tensor& input, at::IntArrayRef normalized, MaybeTensor weight, MaybeTensor bias) {
  NormArgs a{};
  a.dtype = *dtype_of(input);
  a.n = row_length(normalized);
  a.rows = input.numel() / a.n;
  a.x = input.const_data_ptr();
  a.weight = data_of(weight);
  a.bias = data_of(bias);
  return a;
}

// A tensor for the statistics of each row: the input's sizes, those that are normalized 1.
Tensor statistics(const Tensor& input, at::IntArrayRef normalized) {
  at::DimVector sizes(input.sizes());
  std::fill(sizes.end() - normalized.size(), sizes.end(), 1);
  return empty_beside(input, sizes, compute_type(input));
}

void run_forward(norm which, const NormArgs& a, const Tensor& input) {
  run_items(input, kernel(which).on(device_type(input)), a, a.rows, a.n);
}

// The gradients of weight and bias are sums over all rows: first over a few at a time, which errs less than one by one,
// and the same for any number of threads.
Two run_backward(norm which, const NormArgs& a, const Tensor& input, at::IntArrayRef normalized, bool weight,
                 bool bias) {
  const auto& kernel = rusttorch::kernel(which).on(device_type(input));
  if (!on_cpu(input)) {
    NormArgs all = a;
    const auto parameter = [&](bool wanted) { return wanted ? at::empty(normalized, input.options()) : Tensor(); };
    const Two result(parameter(weight), parameter(bias));
    if (weight) all.grad_weight = std::get<0>(result).mutable_data_ptr();
    if (bias) all.grad_bias = std::get<1>(result).mutable_data_ptr();
    const Tensor workspace = empty_beside(input, {DeviceNorm(a.rows, a.n).parts, a.n, 2}, compute_type(input));
    all.workspace = workspace.mutable_data_ptr();
    run_on_device(input, kernel, all);
    return result;
  }
  const int64_t each = std::clamp<int64_t>(2 * grain / a.n, 16, 128);
  const int64_t parts = divide_up(a.rows, each);
  const auto zeros = [&](bool wanted) {
    if (!wanted) return Tensor();
    const Tensor sums = empty_beside(input, {parts, a.n}, compute_type(input));
    std::memset(sums.mutable_data_ptr(), 0, sums.nbytes());
    return sums;
  };
  const Tensor weights = zeros(weight), biases = zeros(bias);
  parallel_parts(a.rows, each, a.n, [&](int64_t k, int64_t begin, int64_t end) {
    NormArgs part = a.part(begin, end);
    if (weight) part.grad_weight = static_cast<char*>(weights.mutable_data_ptr()) + k * a.n * weights.element_size();
    if (bias) part.grad_bias = static_cast<char*>(biases.mutable_data_ptr()) + k * a.n * biases.element_size();
    kernel.run(part);
  });
  const auto total = [&](const Tensor& sums) {
    if (!sums.defined()) return sums;
    return (parts == 1 ? sums.view(normalized) : sums.sum(0).view(normalized)).to(input.scalar_type());
  };
  return {total(weights), total(biases)};
}

struct LayerNorm {
  static Three call(const Tensor& input, c10::SymIntArrayRef shape, MaybeTensor weight, MaybeTensor bias, double eps) {
    const at::IntArrayRef normalized = C10_AS_INTARRAYREF_SLOW(shape);
    const Handed reason = layer_reason(input, normalized, weight, bias);
    stats<"native_layer_norm">.count(reason);
    if (reason != Handed::no) {
      return STOCK(native_layer_norm)::call(device_type(input), input, normalized, weight, bias, eps);
    }
    const Three result(empty_beside(input, input.sizes(), input.scalar_type()), statistics(input, normalized),
                       statistics(input, normalized));
    NormArgs a = arguments(input, normalized, weight, bias);
    a.eps = eps;
    a.y = std::get<0>(result).mutable_data_ptr();
    a.mean = std::get<1>(result).mutable_data_ptr();
    a.rstd = std::get<2>(result).mutable_data_ptr();
    run_forward(norm::layer_norm, a, input);
    return result;
  }
};

// Whether these are the gradient and the statistics that belong to the input.
bool belong(const Tensor& grad, const Tensor& input, std::initializer_list<const Tensor*> each_row, int64_t rows) {
  if (!grad.sizes().equals(input.sizes()) || grad.scalar_type() != input.scalar_type()) return false;
  if (grad.device() != input.device()) return false;
  return std::all_of(each_row.begin(), each_row.end(), [&](const Tensor* t) {
    return t->is_contiguous() && t->numel() == rows && t->scalar_type() == compute_type(input) &&
           t->device() == input.device() && is_plain(*t);
  });
}

struct LayerNormBackward {
  static Three call(const Tensor& grad, const Tensor& input, c10::SymIntArrayRef shape, const Tensor& mean,
                    const Tensor& rstd, MaybeTensor weight, MaybeTensor bias, std::array<bool, 3> wanted) {
    const at::IntArrayRef normalized = C10_AS_INTARRAYREF_SLOW(shape);
    Handed reason = layer_reason(input, normalized, weight, bias);
    if (reason == Handed::no && !belong(grad, input, {&mean, &rstd}, input.numel() / row_length(normalized))) {
      reason = Handed::layout;
    }
    stats<"native_layer_norm_backward">.count(reason);
    if (reason != Handed::no) {
      return STOCK(native_layer_norm_backward)::call(device_type(input), grad, input, normalized, mean, rstd, weight,
                                                     bias, wanted);
    }
    const Tensor dense = grad.contiguous(), grad_x = empty_beside(input, input.sizes(), input.scalar_type());
    NormArgs a = arguments(input, normalized, weight, bias);
    a.grad = dense.const_data_ptr();
    a.mean = const_cast<void*>(mean.const_data_ptr());
    a.rstd = const_cast<void*>(rstd.const_data_ptr());
    a.y = grad_x.mutable_data_ptr();
    const auto [grad_weight, grad_bias] =
        run_backward(norm::layer_norm_backward, a, input, normalized, given(weight), given(bias) && wanted[2]);
    const auto or_nothing = [](bool want, const Tensor& t) { return want ? t : Tensor(); };
    return {or_nothing(wanted[0], grad_x), or_nothing(wanted[1], grad_weight), grad_bias};
  }
};

// aten makes it of six ops on a CPU, where it has no backward either.
#ifdef RUSTTORCH_CUDA
using StockRmsNorm = Stock<&at::compositeimplicitautograd::_fused_rms_norm, &at::cuda::_fused_rms_norm>;
#else
using StockRmsNorm = Stock<&at::compositeimplicitautograd::_fused_rms_norm>;
#endif

struct FusedRmsNorm {
  static Two call(const Tensor& input, at::IntArrayRef normalized, MaybeTensor weight, std::optional<double> eps) {
    const Handed reason = reason_of(input, normalized, weight, std::nullopt);
    stats<"_fused_rms_norm">.count(reason);
    if (reason != Handed::no) {
      return StockRmsNorm::call(device_type(input), input, normalized, weight, eps);
    }
    const Two result(empty_beside(input, input.sizes(), input.scalar_type()), statistics(input, normalized));
    NormArgs a = arguments(input, normalized, weight, std::nullopt);
    a.eps = eps.value_or(rms_norm_eps(input.scalar_type() == at::kDouble));
    a.y = std::get<0>(result).mutable_data_ptr();
    a.rstd = std::get<1>(result).mutable_data_ptr();
    run_forward(norm::rms_norm, a, input);
    return result;
  }
};

struct FusedRmsNormBackward {
  static Two call(const Tensor& grad, const Tensor& input, at::IntArrayRef normalized, const Tensor& rstd,
                  MaybeTensor weight, std::array<bool, 2> wanted) {
    check_one_device({&grad, &input, &rstd, given(weight) ? &*weight : &input});
    const Handed reason = reason_of(input, normalized, weight, std::nullopt);
    const bool ours = reason == Handed::no && belong(grad, input, {&rstd}, input.numel() / row_length(normalized));
    stats<"_fused_rms_norm_backward">.count(ours ? Handed::no : Handed::option);
#ifdef RUSTTORCH_CUDA
    if (!ours && input.is_cuda()) {
      return at::cuda::_fused_rms_norm_backward(grad, input, normalized, rstd, weight, wanted);
    }
#endif
    TORCH_CHECK(ours, "_fused_rms_norm_backward: expected the input, gradient and rstd of a forward that ran here");
    const Tensor dense = grad.contiguous(), grad_x = empty_beside(input, input.sizes(), input.scalar_type());
    NormArgs a = arguments(input, normalized, weight, std::nullopt);
    a.grad = dense.const_data_ptr();
    a.rstd = const_cast<void*>(rstd.const_data_ptr());
    a.y = grad_x.mutable_data_ptr();
    const auto sums = run_backward(norm::rms_norm_backward, a, input, normalized, given(weight), false);
    return {wanted[0] ? grad_x : Tensor(), wanted[1] ? std::get<0>(sums) : Tensor()};
  }
};

struct RmsNorm {
  static Tensor call(const Tensor& input, c10::SymIntArrayRef normalized, MaybeTensor weight,
                     std::optional<double> eps) {
    static const auto op =
        own_op<Two(const Tensor&, at::IntArrayRef, MaybeTensor, std::optional<double>)>("_fused_rms_norm");
    const auto sizes = c10::asIntArrayRefSlowOpt(normalized);
    Handed reason = !sizes || is_special(input) || is_special(weight) ? Handed::option : Handed::no;
    if (reason == Handed::no) reason = reason_of(input, *sizes, weight, std::nullopt);
    stats<"rms_norm">.count(reason);
    if (reason == Handed::no) return std::get<0>(op.call(input, *sizes, weight, eps));
    return at::compositeimplicitautograd::rms_norm_symint(input, normalized, weight, eps);
  }
};

}  // namespace

const Rows& norm_rows() {
  static const Rows rows = {
      {"native_layer_norm", &impl<LayerNorm>, &stats<"native_layer_norm">},
      {"native_layer_norm_backward", &impl<LayerNormBackward>, &stats<"native_layer_norm_backward">},
      {"_fused_rms_norm", &impl<FusedRmsNorm>, &stats<"_fused_rms_norm">},
      {"_fused_rms_norm_backward", &impl<FusedRmsNormBackward>, &stats<"_fused_rms_norm_backward">},
      {"rms_norm", &impl<RmsNorm>, &stats<"rms_norm">, &impl<RmsNorm>, true},
  };
  return rows;
}

}  // namespace rusttorch
