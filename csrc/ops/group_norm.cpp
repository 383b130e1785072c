#include <ATen/ops/empty_like.h>

#include <cmath>

#include "batch_norm.h"
#include "stock.h"

namespace rusttorch {
namespace {

// Group norm (Y. Wu and K. He, 2018) by batch norm's kernels, with numbers for each channel of each image. By planes,
// a group's elements are one run, which has moments as a channel has. With the channels last, each channel of an image
// has its moments, and a group's are joined from theirs.

using Three = std::tuple<Tensor, Tensor, Tensor>;

class GroupNormPlan;

const std::optional<Tensor> nothing;

struct GroupNormRequest {
  using Plan = GroupNormPlan;

  const Tensor& input;
  MaybeTensor weight, bias;
  int64_t images, channels, inner, groups;
  double eps = 0;
  // Backward:
  const Tensor* grad = nullptr;
  const Tensor *mean = nullptr, *rstd = nullptr;
  std::array<bool, 3> wanted{};  // the gradients of input, weight and bias

  Device device() const { return device_type(input); }
};

class GroupNormPlan {
 public:
  explicit GroupNormPlan(const GroupNormRequest& request) : request_(request), reason_(fit()) {}

  Handed reason() const { return reason_; }

  template <class R>
  R compute() {
    if (!on_cpu(input_)) return compute_on_device();
    read();
    return request_.grad ? backward() : forward();
  }

 private:
  Handed fit();
  bool stock_is_faster() const;
  void read();
  Three forward();
  Three backward();
  Three compute_on_device() const;
  void find_scales(int64_t begin, int64_t end);
  void find_slopes(int64_t begin, int64_t end);
  template <class First, class Last>
  void each_part(First first, Last last) const;

  bool has_planes() const { return input_.is_contiguous(); }  // of one element, too
  int64_t channels_of_group() const { return request_.channels / request_.groups; }
  double count() const { return double(channels_of_group() * request_.inner); }
  Tensor tensor_of(const Numbers& numbers, at::IntArrayRef sizes) const {
    const Tensor t = empty_beside(input_, sizes, parameter_type_);
    write_numbers(t, numbers);
    return t;
  }

  const GroupNormRequest& request_;
  const Tensor& input_ = request_.input;
  at::MemoryFormat format_ = at::MemoryFormat::Contiguous;
  at::ScalarType parameter_type_ = at::kFloat;
  BatchNormArgs args_{};                             // all channels of all images
  Numbers group_mean_, group_rstd_, weight_, bias_;  // of a group of an image; of a channel
  Numbers mean_, scale_, shift_, slope_, offset_;    // of a channel of an image
  Numbers first_, second_;
  Handed reason_;
};

Handed GroupNormPlan::fit() {
  const auto& [images, channels, inner, groups] =
      std::tie(request_.images, request_.channels, request_.inner, request_.groups);
  if (const Handed reason = lay_out(input_, format_, args_); reason != Handed::no) return reason;
  const bool fits = input_.size(0) == images && input_.size(1) == channels &&
                    input_.numel() == images * channels * inner && groups > 0 && channels % groups == 0;
  if (!fits) return Handed::option;  // stock raises
  std::optional<at::ScalarType> type;
  const auto belongs = [&](const Tensor& t, int64_t numel) {
    if (!type) type = t.scalar_type();
    return t.scalar_type() == *type && t.numel() == numel && t.is_contiguous() && t.device() == input_.device() &&
           is_plain(t);
  };
  for (MaybeTensor t : {request_.weight, request_.bias}) {
    if (given(t) && !belongs(*t, channels)) return Handed::option;
  }
  if (request_.grad && !(belongs(*request_.mean, images * groups) && belongs(*request_.rstd, images * groups))) {
    return Handed::option;
  }
  parameter_type_ = type.value_or(input_.scalar_type());
  if (!takes_parameters(input_, parameter_type_)) return Handed::dtype;
  args_.outer = has_planes() ? 1 : inner;
  args_.channels = images * channels;
  args_.inner = has_planes() ? inner : 1;
  args_.stride = has_planes() ? input_.numel() : channels;
  // Stock's CUDA kernels give what is contiguous, and take no parameters but x's.
  if (!on_cpu(input_) && !has_planes()) return Handed::layout;
  if (input_.is_cuda() && parameter_type_ != input_.scalar_type()) return Handed::dtype;
  if (stock_is_faster()) return Handed::size;
  return !request_.grad || is_gradient_of(input_, *request_.grad) ? Handed::no : Handed::layout;
}

// By measurement (Zen 4, one core): where planes are small, numbers for each channel of each image cost more than they
// save; where channels are last, and it has several vectors of them in a group, unless an image is looked at again in
// the cache.
//
// On a device, each plane's threads look at all channels of its group.
bool GroupNormPlan::stock_is_faster() const {
  if (!on_cpu(input_)) {
    return request_.inner == 1 || channels_of_group() > 2 * request_.inner || count() > double(max_count_on_device);
  }
  if (has_planes()) return request_.inner < 512;
  return channels_of_group() >= 8 && (request_.inner < 128 || request_.channels * request_.inner > 1 << 17);
}

void GroupNormPlan::read() {
  const int64_t of_groups = request_.images * request_.groups;
  weight_ = read_numbers(request_.weight, request_.channels, 1);
  bias_ = read_numbers(request_.bias, request_.channels, 0);
  group_mean_ = request_.mean ? read_numbers(*request_.mean) : Numbers(of_groups);
  group_rstd_ = request_.rstd ? read_numbers(*request_.rstd) : Numbers(of_groups);
  mean_ = scale_ = shift_ = slope_ = offset_ = first_ = second_ = Numbers(args_.channels);
  args_.x = input_.const_data_ptr();
  args_.stream = streams(args_, request_.grad ? 3 : 2);
  args_.mean = mean_.data();
  args_.scale = scale_.data();
  args_.shift = shift_.data();
  args_.sums[0] = first_.data();
  args_.sums[1] = second_.data();
}

// first(args, begin, end) and then last(args) for parts of the groups, which threads share: of an image with its
// channels last all of them.
template <class First, class Last>
void GroupNormPlan::each_part(First first, Last last) const {
  const int64_t d = channels_of_group(), of_image = request_.groups;
  if (!has_planes()) {
    return parallel(request_.images, request_.channels * request_.inner, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        BatchNormArgs image =
            args_.outer_part(n * request_.inner, (n + 1) * request_.inner).with_numbers_from(n * request_.channels);
        image.channels = request_.channels;
        first(image, n * of_image, (n + 1) * of_image);
        parallel(image.outer, image.channels, [&](int64_t from, int64_t to) { last(image.outer_part(from, to)); });
      }
    });
  }
  BatchNormArgs groups = args_;
  groups.channels = request_.images * request_.groups;
  groups.inner = d * request_.inner;
  constexpr bool twice = true;
  each_channels(groups, twice, [&](const BatchNormArgs& part, int64_t begin, int64_t end) {
    BatchNormArgs channels = args_.channels_part(begin * d, end * d);
    channels.ahead = part.ahead;
    first(channels, begin, end);
    last(channels);
  });
}

// Of the groups whose moments are known: what their channels are normalized with.
void GroupNormPlan::find_scales(int64_t begin, int64_t end) {
  const int64_t d = channels_of_group();
  for (int64_t k = begin * d; k < end * d; ++k) {
    const int64_t c = k % request_.channels;
    mean_[k] = group_mean_[k / d];
    scale_[k] = group_rstd_[k / d] * weight_[c];
    shift_[k] = bias_[c];
  }
}

Three GroupNormPlan::forward() {
  const Tensor y = at::empty_like(input_, input_.options(), format_);
  args_.y = y.mutable_data_ptr();
  const auto &moments = cpu_kernel(batch_norm::moments), &normalize = cpu_kernel(batch_norm::normalize);
  const int64_t d = channels_of_group();
  each_part(
      [&](const BatchNormArgs& part, int64_t begin, int64_t end) {
        Numbers sums(end - begin), squares(end - begin);
        if (has_planes()) {
          BatchNormArgs groups = part;
          groups.channels = end - begin;
          groups.inner = d * request_.inner;
          groups.sums[0] = sums.data();
          groups.sums[1] = squares.data();
          moments.run(groups);
        } else {
          sums_of_rows(moments, part, join_moments);
          for (int64_t k = begin * d; k < end * d; ++k) {
            const int64_t g = k / d - begin;
            join_moments(sums[g], squares[g], first_[k], second_[k], k % d * request_.inner, request_.inner);
          }
        }
        for (int64_t g = begin; g < end; ++g) {
          group_mean_[g] = sums[g - begin] / count();
          group_rstd_[g] = 1 / std::sqrt(squares[g - begin] / count() + request_.eps);
        }
        find_scales(begin, end);
      },
      [&](const BatchNormArgs& part) { normalize.run(part); });
  const at::DimVector sizes{request_.images, request_.groups};
  return {y, tensor_of(group_mean_, sizes), tensor_of(group_rstd_, sizes)};
}

// With h = (x - mean) rstd and d = grad weight: grad_x = rstd (d - mean(d) - h mean(d h)), means being over a group.
void GroupNormPlan::find_slopes(int64_t begin, int64_t end) {
  const int64_t d = channels_of_group();
  for (int64_t g = begin; g < end; ++g) {
    const double rstd = group_rstd_[g];
    double sum = 0, product = 0;
    for (int64_t k = g * d; k < (g + 1) * d; ++k) {
      sum += first_[k] * weight_[k % request_.channels];
      product += second_[k] * weight_[k % request_.channels];
    }
    for (int64_t k = g * d; k < (g + 1) * d; ++k) {
      slope_[k] = -rstd * rstd * rstd * product / count();
      offset_[k] = -rstd * sum / count();
    }
  }
}

Three GroupNormPlan::backward() {
  const auto [want_x, want_weight, want_bias] = request_.wanted;
  const Tensor grad = request_.grad->contiguous(format_);
  const Tensor grad_x = want_x ? at::empty_like(input_, input_.options(), format_) : Tensor();
  args_.grad = grad.const_data_ptr();
  if (want_x) args_.y = grad_x.mutable_data_ptr();
  args_.slope = slope_.data();
  args_.offset = offset_.data();
  const auto &products = cpu_kernel(batch_norm::products), &gradient = cpu_kernel(batch_norm::gradient);
  const bool with_x = want_x;
  each_part(
      [&](const BatchNormArgs& part, int64_t begin, int64_t end) {
        find_scales(begin, end);
        has_planes() ? products.run(part) : sums_of_rows(products, part, join_sums);
        find_slopes(begin, end);
      },
      [&](const BatchNormArgs& part) {
        if (with_x) gradient.run(part);
      });
  Numbers by_weight(request_.channels), by_bias(request_.channels);
  for (int64_t k = 0; k < args_.channels; ++k) {
    by_weight[k % request_.channels] += second_[k] * group_rstd_[k / channels_of_group()];
    by_bias[k % request_.channels] += first_[k];
  }
  const auto parameter = [&](bool wanted, const Numbers& sums) {
    return wanted ? tensor_of(sums, {request_.channels}) : Tensor();
  };
  return {grad_x, parameter(want_weight, by_weight), parameter(want_bias, by_bias)};
}

Three GroupNormPlan::compute_on_device() const {
  BatchNormArgs a = args_;
  a.x = input_.const_data_ptr();
  a.of = {.of_group = channels_of_group(),
          .parameters = request_.channels,
          .wide_parameters = is_wide(parameter_type_),
          .wide_statistics = is_wide(parameter_type_),
          .training = true,
          .eps = request_.eps,
          .per_element = 1 / count(),
          .weight = data_of(request_.weight),
          .bias = data_of(request_.bias)};
  if (request_.grad) {
    const auto [want_x, want_weight, want_bias] = request_.wanted;
    const auto parameter = [&](bool wanted) {
      return wanted ? empty_beside(input_, {request_.channels}, parameter_type_) : Tensor();
    };
    const Tensor grad = request_.grad->contiguous(format_);
    const Three grads(want_x ? at::empty_like(input_, input_.options(), format_) : Tensor(), parameter(want_weight),
                      parameter(want_bias));
    a.grad = grad.const_data_ptr();
    a.y = mutable_data_of(std::get<0>(grads));
    a.of.mean = const_cast<void*>(request_.mean->const_data_ptr());
    a.of.invstd = const_cast<void*>(request_.rstd->const_data_ptr());
    a.of.grad_weight = mutable_data_of(std::get<1>(grads));
    a.of.grad_bias = mutable_data_of(std::get<2>(grads));
    differentiate_on_device(input_, a, want_x || want_weight || want_bias);
    return grads;
  }
  const auto statistic = [&] { return empty_beside(input_, {request_.images, request_.groups}, parameter_type_); };
  const Three results(at::empty_like(input_, input_.options(), format_), statistic(), statistic());
  a.y = std::get<0>(results).mutable_data_ptr();
  a.of.mean = std::get<1>(results).mutable_data_ptr();
  a.of.invstd = std::get<2>(results).mutable_data_ptr();
  normalize_on_device(input_, a);
  return results;
}

int64_t size_of(const c10::SymInt& n) { return n.guard_int(__FILE__, __LINE__); }

struct Forward {
  static GroupNormRequest request(const Tensor& input, MaybeTensor weight, MaybeTensor bias, const c10::SymInt& images,
                                  const c10::SymInt& channels, const c10::SymInt& inner, int64_t groups, double eps) {
    return {input, weight, bias, size_of(images), size_of(channels), size_of(inner), groups, eps};
  }
};
struct Backward {
  static GroupNormRequest request(const Tensor& grad, const Tensor& input, const Tensor& mean, const Tensor& rstd,
                                  MaybeTensor weight, const c10::SymInt& images, const c10::SymInt& channels,
                                  const c10::SymInt& inner, int64_t groups, std::array<bool, 3> wanted) {
    return {input, weight, nothing, size_of(images), size_of(channels), size_of(inner), groups, 0,
            &grad, &mean,  &rstd,   wanted};
  }
};

}  // namespace

const Rows& group_norm_rows() {
  static const Rows rows = {
      ROW("native_group_norm", Forward, STOCK(native_group_norm_symint)),
      ROW("native_group_norm_backward", Backward, STOCK(native_group_norm_backward_symint)),
  };
  return rows;
}

}  // namespace rusttorch
