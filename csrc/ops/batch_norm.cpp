#include "batch_norm.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/batch_norm.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/hardtanh.h>
#include <ATen/ops/relu.h>

#include <cmath>

#include "decomposed.h"
#include "stock.h"

namespace rusttorch {
namespace {

using Three = std::tuple<Tensor, Tensor, Tensor>;
using Four = std::tuple<Tensor, Tensor, Tensor, Tensor>;

class BatchNormPlan;

struct BatchNormRequest {
  using Plan = BatchNormPlan;

  const Tensor& input;
  MaybeTensor weight, bias, running_mean, running_var;
  bool training;
  double momentum, eps;
  // Backward:
  const Tensor* grad = nullptr;
  const std::optional<Tensor>*mean = nullptr, *invstd = nullptr;
  std::array<bool, 3> wanted{};  // the gradients of input, weight and bias
  bool relu = false;
  std::optional<double> most{};  // of relu

  Device device() const { return device_type(input); }
};

class BatchNormPlan {
 public:
  explicit BatchNormPlan(const BatchNormRequest& request) : request_(request), reason_(fit()) {}

  Handed reason() const { return reason_; }

  template <class R>
  R compute() {
    if (!on_cpu(input_)) return compute_on_device<R>();
    read();
    if constexpr (std::is_same_v<R, Four>) {
      return forward_with_variance();
    } else {
      return request_.grad ? backward() : forward();
    }
  }

 private:
  Handed fit();
  void check() const;
  Handed fit_parameters();
  void read();
  Tensor output();
  Three forward();
  Four forward_with_variance();
  Three backward();
  template <class R>
  R compute_on_device();
  BatchNormArgs device_args() const;
  void finish(int64_t begin, int64_t end);
  void find_slopes(int64_t begin, int64_t end);

  int64_t count() const { return args_.outer * args_.inner; }
  double unbiased(int64_t c) const { return second_[c] / double(count() - 1); }
  // With relu behind, what the derivative regains relu's input from has no rounding but that input's own.
  // Stock's CUDA kernels have them in what is computed in, too.
  at::ScalarType statistics_type() const {
    return (request_.relu || input_.is_cuda()) && input_.element_size() == 2 ? at::kFloat : parameter_type_;
  }
  Tensor no_channels() const { return empty_beside(input_, {0}, statistics_type()); }
  Tensor channels_of(const Numbers& numbers, at::ScalarType type) const;

  const BatchNormRequest& request_;
  const Tensor& input_ = request_.input;
  at::MemoryFormat format_ = at::MemoryFormat::Contiguous;
  at::ScalarType parameter_type_ = at::kFloat;
  BatchNormArgs args_{};
  Numbers mean_, invstd_, weight_, scale_, shift_, slope_, offset_, first_, second_;
  Handed reason_;
};

// What torch.nn.functional.batch_norm looks at, above the op. Stock's kernels read beyond the end, or at nothing.
void BatchNormPlan::check() const {
  if (input_.dim() < 2) return;  // stock raises
  const auto check_size = [&](MaybeTensor t, const char* name) {
    TORCH_CHECK(!given(t) || t->numel() == input_.size(1), name, " should contain ", input_.size(1), " elements not ",
                t->numel());
  };
  check_size(request_.weight, "weight");
  check_size(request_.bias, "bias");
  check_size(request_.running_mean, "running_mean");
  check_size(request_.running_var, "running_var");
  TORCH_CHECK(request_.training || given(request_.running_mean), "running_mean must be defined in evaluation mode");
  TORCH_CHECK(request_.training || given(request_.running_var), "running_var must be defined in evaluation mode");
  if (!request_.grad) return;
  TORCH_CHECK(request_.grad->sizes().equals(input_.sizes()), "expected a gradient of the input's shape ",
              input_.sizes(), ", but got ", request_.grad->sizes());
  if (!request_.training) return;
  for (MaybeTensor t : {*request_.mean, *request_.invstd}) {
    TORCH_CHECK(given(t) && t->numel() == input_.size(1), "expected the mean and deviation of ", input_.size(1),
                " channels, as a forward in training gives them");
  }
}

// Whether a kernel takes it: channels as they lie in memory, and parameters that stock would take.
Handed BatchNormPlan::fit() {
  check();
  const Handed reason = lay_out(input_, format_, args_);
  if (reason != Handed::no) return reason;
  args_.relu = request_.relu;
  args_.most = request_.most.value_or(NAN);
  if (args_.channels == 1) std::tie(args_.outer, args_.inner) = std::pair(int64_t(1), count());
  if (!on_cpu(input_)) {
    if (count() > max_count_on_device) return Handed::size;
    // Of a channel without variance stock's CUDA kernels have an infinite deviation, or 0, by what else is asked for.
    if (request_.training && request_.eps == 0) return Handed::option;
    // And gradients of parameters that are not there are refused, or not, by the layout.
    const bool want_parameters = request_.wanted[1] || request_.wanted[2];
    if (input_.is_cuda() && want_parameters && !given(request_.weight)) return Handed::option;
  }
  return fit_parameters();
}

Handed BatchNormPlan::fit_parameters() {
  const bool has_statistics = given(request_.running_mean);
  if (has_statistics != given(request_.running_var)) return Handed::option;  // stock raises
  if (!request_.training && !has_statistics) return Handed::option;
  std::optional<at::ScalarType> type;
  const auto belongs = [&](MaybeTensor t) {
    if (!given(t)) return true;
    if (!type) type = t->scalar_type();
    return t->scalar_type() == *type && t->dim() == 1 && t->size(0) == args_.channels && t->is_contiguous() &&
           t->device() == input_.device() && is_plain(*t);
  };
  for (MaybeTensor t : {request_.weight, request_.bias, request_.running_mean, request_.running_var}) {
    if (!belongs(t)) return Handed::option;
  }
  parameter_type_ = type.value_or(input_.scalar_type());
  if (!takes_parameters(input_, parameter_type_)) return Handed::dtype;
  if (!request_.grad) return Handed::no;
  for (MaybeTensor t : {*request_.mean, *request_.invstd}) {
    if (request_.training && !(t->scalar_type() == statistics_type() && t->dim() == 1 && t->is_contiguous() &&
                               t->device() == input_.device() && is_plain(*t))) {
      return Handed::option;
    }
  }
  return is_gradient_of(input_, *request_.grad) ? Handed::no : Handed::layout;
}

void BatchNormPlan::read() {
  const int64_t n = args_.channels;
  args_.x = input_.const_data_ptr();
  args_.stream = streams(args_, request_.grad ? 3 : 2);
  weight_ = read_numbers(request_.weight, n, 1);
  scale_ = slope_ = offset_ = first_ = second_ = mean_ = invstd_ = Numbers(n);
  shift_ = read_numbers(request_.bias, n, 0);
  if (!request_.training) {
    mean_ = read_numbers(*request_.running_mean);
    const Numbers var = read_numbers(*request_.running_var);
    for (int64_t c = 0; c < n; ++c) invstd_[c] = 1 / std::sqrt(var[c] + request_.eps);
  } else if (request_.grad) {
    mean_ = read_numbers(**request_.mean);
    invstd_ = read_numbers(**request_.invstd);
  }
  for (int64_t c = 0; c < n; ++c) scale_[c] = invstd_[c] * weight_[c];
  args_.mean = mean_.data();
  args_.scale = scale_.data();
  args_.shift = shift_.data();
  args_.sums[0] = first_.data();
  args_.sums[1] = second_.data();
}

// Mean and deviation of the channels whose moments stand there.
void BatchNormPlan::finish(int64_t begin, int64_t end) {
  const double n = double(count());
  for (int64_t c = begin; c < end; ++c) {
    const double var = second_[c] / n;
    mean_[c] = first_[c] / n;
    invstd_[c] = var == 0 && request_.eps == 0 ? 0 : 1 / std::sqrt(var + request_.eps);  // as in stock
    scale_[c] = invstd_[c] * weight_[c];
  }
}

Tensor BatchNormPlan::output() {
  const Tensor y = at::empty_like(input_, input_.options(), format_);
  args_.y = y.mutable_data_ptr();
  const auto &moments = cpu_kernel(batch_norm::moments), &normalize = cpu_kernel(batch_norm::normalize);
  if (args_.has_planes()) {
    each_channels(args_, request_.training, [&](const BatchNormArgs& part, int64_t begin, int64_t end) {
      if (request_.training) {
        moments.run(part);
        finish(begin, end);
      }
      normalize.run(part);
    });
  } else {
    if (request_.training) {
      sums_of_rows(moments, args_, join_moments);
      finish(0, args_.channels);
    }
    parallel(args_.outer, args_.channels,
             [&](int64_t begin, int64_t end) { normalize.run(args_.outer_part(begin, end)); });
  }
  return y;
}

Tensor BatchNormPlan::channels_of(const Numbers& numbers, at::ScalarType type) const {
  const Tensor t = empty_beside(input_, {args_.channels}, type);
  write_numbers(t, numbers);
  return t;
}

Three BatchNormPlan::forward() {
  const Tensor y = output();
  if (!request_.training) return {y, no_channels(), no_channels()};
  if (given(request_.running_mean)) {
    Numbers running_mean = read_numbers(*request_.running_mean), running_var = read_numbers(*request_.running_var);
    for (int64_t c = 0; c < args_.channels; ++c) {
      running_mean[c] += request_.momentum * (mean_[c] - running_mean[c]);
      running_var[c] += request_.momentum * (unbiased(c) - running_var[c]);
    }
    write_numbers(*request_.running_mean, running_mean);
    write_numbers(*request_.running_var, running_var);
  }
  return {y, channels_of(mean_, statistics_type()), channels_of(invstd_, statistics_type())};
}

Four BatchNormPlan::forward_with_variance() {
  const Tensor y = output();
  if (!request_.training) return {y, no_channels(), no_channels(), no_channels()};
  Numbers var(args_.channels);
  for (int64_t c = 0; c < args_.channels; ++c) var[c] = unbiased(c);
  const auto type = statistics_type();
  return {y, channels_of(mean_, type), channels_of(invstd_, type), channels_of(var, type)};
}

// With h = (x - mean) invstd: grad_x = weight invstd (g - mean(g) - h mean(g h)).
void BatchNormPlan::find_slopes(int64_t begin, int64_t end) {
  const double n = double(count());
  for (int64_t c = begin; c < end; ++c) {
    slope_[c] = -scale_[c] * invstd_[c] * invstd_[c] * second_[c] / n;
    offset_[c] = -scale_[c] * first_[c] / n;
  }
}

Three BatchNormPlan::backward() {
  const auto [want_x, want_weight, want_bias] = request_.wanted;
  const Tensor grad = request_.grad->contiguous(format_);
  const Tensor grad_x = want_x ? at::empty_like(input_, input_.options(), format_) : Tensor();
  args_.grad = grad.const_data_ptr();
  if (want_x) args_.y = grad_x.mutable_data_ptr();
  if (request_.training) {
    args_.slope = slope_.data();
    args_.offset = offset_.data();
  }
  const bool want_sums = request_.training || want_weight || want_bias;
  const auto &products = cpu_kernel(batch_norm::products), &gradient = cpu_kernel(batch_norm::gradient);
  if (args_.has_planes()) {
    each_channels(args_, want_sums && want_x, [&](const BatchNormArgs& part, int64_t begin, int64_t end) {
      if (want_sums) products.run(part);
      find_slopes(begin, end);
      if (want_x) gradient.run(part);
    });
  } else {
    if (want_sums) {
      sums_of_rows(products, args_, join_sums);
    }
    find_slopes(0, args_.channels);
    if (want_x) {
      parallel(args_.outer, args_.channels,
               [&](int64_t begin, int64_t end) { gradient.run(args_.outer_part(begin, end)); });
    }
  }
  const auto parameter = [&](bool wanted, const Numbers& sums) {
    return wanted ? channels_of(sums, parameter_type_) : Tensor();
  };
  for (int64_t c = 0; c < args_.channels; ++c) second_[c] *= invstd_[c];
  return {grad_x, parameter(want_weight, second_), parameter(want_bias, first_)};
}

BatchNormArgs BatchNormPlan::device_args() const {
  // The running statistics: in training, of batch_norm_relu it is that which writes them.
  const bool reads = !request_.training, writes = !reads && !request_.grad && !request_.relu;
  const auto running = [&](MaybeTensor t) {
    return writes ? mutable_data_of(t) : reads ? const_cast<void*>(data_of(t)) : nullptr;
  };
  BatchNormArgs a = args_;
  a.x = input_.const_data_ptr();
  a.of = {.of_group = 1,
          .parameters = a.channels,
          .wide_parameters = is_wide(parameter_type_),
          .wide_statistics = is_wide(statistics_type()),
          .training = request_.training,
          .momentum = request_.momentum,
          .eps = request_.eps,
          .per_element = 1 / double(count()),
          .weight = data_of(request_.weight),
          .bias = data_of(request_.bias),
          .running_mean = running(request_.running_mean),
          .running_var = running(request_.running_var)};
  return a;
}

template <class R>
R BatchNormPlan::compute_on_device() {
  BatchNormArgs a = device_args();
  if (request_.grad) {
    if constexpr (std::is_same_v<R, Three>) {
      const auto [want_x, want_weight, want_bias] = request_.wanted;
      const auto parameter = [&](bool wanted) {
        return wanted ? empty_beside(input_, {a.channels}, parameter_type_) : Tensor();
      };
      const Tensor grad = request_.grad->contiguous(format_);
      const Three grads(want_x ? at::empty_like(input_, input_.options(), format_) : Tensor(), parameter(want_weight),
                        parameter(want_bias));
      const auto& [grad_x, grad_weight, grad_bias] = grads;
      a.grad = grad.const_data_ptr();
      a.y = mutable_data_of(grad_x);
      if (request_.training) {
        a.of.mean = const_cast<void*>(data_of(*request_.mean));
        a.of.invstd = const_cast<void*>(data_of(*request_.invstd));
      }
      a.of.grad_weight = mutable_data_of(grad_weight);
      a.of.grad_bias = mutable_data_of(grad_bias);
      differentiate_on_device(input_, a, request_.training || want_weight || want_bias);
      return grads;
    }
  }
  const Tensor y = at::empty_like(input_, input_.options(), format_);
  a.y = y.mutable_data_ptr();
  // Stock's CUDA kernels give them in evaluation, too.
  const bool gives = request_.training || (input_.is_cuda() && !request_.relu);
  const auto statistic = [&] { return gives ? empty_beside(input_, {a.channels}, statistics_type()) : no_channels(); };
  const Tensor mean = statistic(), invstd = statistic();
  a.of.mean = gives ? mean.mutable_data_ptr() : nullptr;
  a.of.invstd = gives ? invstd.mutable_data_ptr() : nullptr;
  if constexpr (std::is_same_v<R, Four>) {
    const Tensor var = statistic();
    a.of.var = gives ? var.mutable_data_ptr() : nullptr;
    normalize_on_device(input_, a);
    return {y, mean, invstd, var};
  } else {
    normalize_on_device(input_, a);
    return {y, mean, invstd};
  }
}

const std::optional<Tensor> nothing;

struct Forward {
  static BatchNormRequest request(const Tensor& input, MaybeTensor weight, MaybeTensor bias, MaybeTensor running_mean,
                                  MaybeTensor running_var, bool training, double momentum, double eps) {
    return {input, weight, bias, running_mean, running_var, training, momentum, eps};
  }
};
struct Backward {
  static BatchNormRequest request(const Tensor& grad, const Tensor& input, MaybeTensor weight, MaybeTensor running_mean,
                                  MaybeTensor running_var, MaybeTensor mean, MaybeTensor invstd, bool training,
                                  double eps, std::array<bool, 3> wanted) {
    return {input, weight, nothing, running_mean, running_var, training, 0, eps, &grad, &mean, &invstd, wanted};
  }
};

// What they become with relu behind, and its parts:
//   batch_norm_relu           what the kernels do not have: aten's ops one after the other; else
//   batch_norm_relu_forward   has the derivative (autograd/batch_norm.cpp), and the variance with which
//                             batch_norm_relu updates the running statistics
struct ReluForward {
  static BatchNormRequest request(const Tensor& input, MaybeTensor weight, MaybeTensor bias, MaybeTensor running_mean,
                                  MaybeTensor running_var, bool training, double eps, std::optional<double> maximum) {
    return {.input = input,
            .weight = weight,
            .bias = bias,
            .running_mean = running_mean,
            .running_var = running_var,
            .training = training,
            .momentum = 0,
            .eps = eps,
            .relu = true,
            .most = maximum};
  }
};
struct ReluBackward {
  static BatchNormRequest request(const Tensor& grad, const Tensor& input, MaybeTensor weight, MaybeTensor bias,
                                  MaybeTensor running_mean, MaybeTensor running_var, MaybeTensor mean,
                                  MaybeTensor invstd, bool training, double eps, std::array<bool, 3> wanted,
                                  std::optional<double> maximum) {
    BatchNormRequest request =
        ReluForward::request(input, weight, bias, running_mean, running_var, training, eps, maximum);
    request.grad = &grad;
    request.mean = &mean;
    request.invstd = &invstd;
    request.wanted = wanted;
    return request;
  }
};

Four relu_forward_of_stock(const Tensor&, MaybeTensor, MaybeTensor, MaybeTensor, MaybeTensor, bool, double,
                           std::optional<double>) {
  TORCH_CHECK(false, "batch_norm_relu_forward takes a tensor of floats that is contiguous, or has its channels ",
              "last, and parameters of one dtype, [channels]; batch_norm_relu takes all");
}
Three relu_backward_of_stock(const Tensor&, const Tensor&, MaybeTensor, MaybeTensor, MaybeTensor, MaybeTensor,
                             MaybeTensor, MaybeTensor, bool, double, std::array<bool, 3>, std::optional<double>) {
  TORCH_CHECK(false, "batch_norm_relu_backward: expected the input and statistics of a batch_norm_relu_forward, and a ",
              "gradient of its output's shape");
}

Tensor batch_norm_relu(const Tensor& input, MaybeTensor weight, MaybeTensor bias, MaybeTensor running_mean,
                       MaybeTensor running_var, bool training, double momentum, double eps,
                       std::optional<double> maximum) {
  // As torch.nn.functional.batch_norm, which looks in Python.
  TORCH_CHECK_VALUE(!training || input.dim() < 2 || input.sym_numel() != input.sym_size(1),
                    "Expected more than 1 value per channel when training, got input size torch.Size(",
                    input.sym_sizes(), ")");
  TORCH_CHECK_VALUE(!maximum || *maximum > 0, "maximum must be positive, but is ", *maximum);
  const Handed reason =
      reason_above_backends<ReluForward>(input, weight, bias, running_mean, running_var, training, eps, maximum);
  if (reason != Handed::no) {
    stats<"batch_norm_relu_forward">.count(reason);
    const Tensor y = at::batch_norm(input, weight, bias, running_mean, running_var, training, momentum, eps, true);
    return maximum ? at::hardtanh(y, 0, *maximum) : at::relu(y);
  }
  static const auto forward = own_op<Four(const Tensor&, MaybeTensor, MaybeTensor, MaybeTensor, MaybeTensor, bool,
                                          double, std::optional<double>)>("batch_norm_relu_forward");
  const auto [y, mean, invstd, var] =
      forward.call(input, weight, bias, running_mean, running_var, training, eps, maximum);
  if (training && given(running_mean)) {
    const at::NoGradGuard guard;
    running_mean->lerp_(mean.to(running_mean->scalar_type()), momentum);
    running_var->lerp_(var.to(running_var->scalar_type()), momentum);
  }
  return y;
}

template <class F>
void with_numbers_of(const Tensor& t, F f) {
  switch (t.scalar_type()) {
    case at::kDouble: return f(static_cast<double*>(t.data_ptr()));
    case at::kBFloat16: return f(static_cast<at::BFloat16*>(t.data_ptr()));
    case at::kHalf: return f(static_cast<at::Half*>(t.data_ptr()));
    default: return f(static_cast<float*>(t.data_ptr()));
  }
}

}  // namespace

Handed lay_out(const Tensor& x, at::MemoryFormat& format, BatchNormArgs& a) {
  if (!(x.is_cpu() || x.is_cuda()) || !is_plain(x)) return Handed::option;
  if (x.dim() < 2) return Handed::option;  // stock raises
  if (x.numel() == 0) return Handed::size;
  const auto dtype = dtype_of(x);
  if (!dtype || !at::isFloatingType(x.scalar_type())) return Handed::dtype;
  if (x.layout() != at::kStrided) return Handed::layout;
  format = x.suggest_memory_format();
  if (!x.is_contiguous(format)) return Handed::layout;
  a.dtype = *dtype;
  a.outer = x.size(0);
  a.channels = x.size(1);
  a.inner = x.numel() / (a.outer * a.channels);
  if (!x.is_contiguous()) std::tie(a.outer, a.inner) = std::pair(a.outer * a.inner, int64_t(1));
  a.stride = a.channels * a.inner;
  return Handed::no;
}

bool streams(const BatchNormArgs& a, int64_t tensors) {
  const int64_t size = element_size(a.dtype), run = (a.has_planes() ? a.inner : a.channels) * size;
  const bool is_large = a.outer * a.channels * a.inner * size * tensors >= int64_t(16) << 20;
  return is_large && (a.has_planes() ? run >= 512 : run % 64 == 0);
}

Numbers read_numbers(const Tensor& t) {
  Numbers numbers(t.numel());
  with_numbers_of(t, [&](const auto* p) { std::copy_n(p, t.numel(), numbers.begin()); });
  return numbers;
}
void write_numbers(const Tensor& t, const Numbers& numbers) {
  with_numbers_of(t, [&](auto* p) {
    for (size_t c = 0; c < numbers.size(); ++c) p[c] = numbers[c];
  });
}

const Rows& batch_norm_rows() {
  static const Rows rows = {
      ROW("native_batch_norm", Forward, STOCK(native_batch_norm)),
      ROW("native_batch_norm_backward", Backward, STOCK(native_batch_norm_backward)),
      {.name = "batch_norm_relu", .impl = impl<&batch_norm_relu>(), .composite = true},
      ROW("batch_norm_relu_forward", ReluForward, AnyDevice<&relu_forward_of_stock>),
      ROW("batch_norm_relu_backward", ReluBackward, AnyDevice<&relu_backward_of_stock>),
  };
  return rows;
}

}  // namespace rusttorch
