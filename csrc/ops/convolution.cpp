#include "../kernels/convolution.h"

#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/baddbmm.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/mm.h>

#include "../instruction_set.h"
#include "matmul.h"
#include "run.h"
#include "stock.h"

namespace rusttorch {
namespace {

using Three = std::tuple<Tensor, Tensor, Tensor>;

class ConvolutionPlan;

const std::optional<Tensor> nothing;

// One call. Of a backward there is a gradient, and which gradients are asked for: of input, weight and bias.
struct ConvolutionRequest {
  using Plan = ConvolutionPlan;

  const Tensor &input, &weight;
  MaybeTensor bias;
  at::IntArrayRef stride, padding, dilation, output_padding;
  bool transposed;
  int64_t groups;
  const Tensor* grad = nullptr;
  std::array<bool, 3> wanted{};

  Device device() const { return device_type(input); }
};

// What is computed of a convolution: its output, or the gradient of input or weight (and bias).
enum class Part : uint8_t { output, input, weight };

// Four kinds of convolutions are ours: those that have a filter for each channel; those of 1x1, which are products of
// the weight and all pixels; those of few channels, which are products with what each place of a filter reads; and any
// of 16 bits on a CPU without instructions for such: oneDNN's in float32.
enum class Kind : uint8_t { depthwise, product, patches, widened };
constexpr int64_t few_channels = 4;

class ConvolutionPlan {
 public:
  explicit ConvolutionPlan(const ConvolutionRequest& request) : request_(request), reason_(fit()) {}

  Handed reason() const { return reason_; }

  template <class R>
  R compute() const {
    if constexpr (std::is_same_v<R, Tensor>) {
      return forward();
    } else {
      return backward();
    }
  }

 private:
  Handed fit();
  bool takes(Part part) const;
  bool takes_depthwise(Part part) const;
  bool takes_product(Part part) const;
  bool takes_patches(Part part) const;
  bool is_product() const { return kind_ == Kind::product; }
  Kind kind() const;
  // Of the weight, in stock.
  bool is_gradient_channels_last() const;
  Tensor in_stocks_format(const Tensor& t) const {
    return is_gradient_channels_last() ? t.contiguous(at::MemoryFormat::ChannelsLast) : t.contiguous();
  }
  bool fits(const Tensor& t) const;
  bool set_sides();
  Tensor forward() const;
  Three backward() const;
  Tensor grad_input(const Tensor& grad) const;
  Tensor grad_weight(const Tensor& grad, Tensor* grad_bias) const;
  Tensor pixels(const Tensor& t) const;
  void run(convolution which, ConvolutionArgs a, int64_t items, int64_t size) const;

  // In the format that is computed in; of one dim [N, C, L] it lies as [N, C, 1, L].
  Tensor laid_out(const Tensor& t) const { return t.contiguous(format(args_.channels_last)); }
  static at::MemoryFormat format(bool channels_last) {
    return channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
  }
  Tensor empty(at::IntArrayRef sizes, bool channels_last) const {
    return empty_beside(input_, sizes, input_.scalar_type(), format(channels_last));
  }

  const ConvolutionRequest& request_;
  const Tensor& input_ = request_.input;
  Kind kind_ = Kind::widened;
  ConvolutionArgs args_{};
  at::DimVector out_sizes_;
  Handed reason_;
};

bool is_channels_last(const Tensor& t) { return t.suggest_memory_format() == at::MemoryFormat::ChannelsLast; }

// Whether stock's kernel is oneDNN's.
bool is_onednns(const Tensor& input) {
  if (!at::globalContext().userEnabledMkldnn()) return false;
  static const bool bf16 = __builtin_cpu_supports("avx512bw"), f16 = __builtin_cpu_supports("avx512fp16");
  switch (input.scalar_type()) {
    case at::kDouble: return false;
    case at::kBFloat16: return bf16;
    case at::kHalf: return f16;
    default: return true;
  }
}

// Of 16 bits: whether oneDNN has kernels that are faster than its own in float32.
bool has_narrow_kernels(const Tensor& input) {
  return is_onednns(input) && instruction_set() == InstructionSet::avx512;
}

// Strides, paddings and dilations are one for each dim, or one for all.
bool ConvolutionPlan::set_sides() {
  const int64_t dims = input_.dim() - 2;
  const auto of = [&](at::IntArrayRef list, int64_t d) { return list.size() == 1 ? list[0] : list[d]; };
  for (const auto& list : {request_.stride, request_.padding, request_.dilation}) {
    if (list.size() != 1 && int64_t(list.size()) != dims) return false;
  }
  args_.rows = {1, 1, 1, 1, 0, 1};
  for (int64_t d = 0; d < dims; ++d) {
    ConvolutionSide& side = d + 1 < dims ? args_.rows : args_.columns;
    side = {input_.size(d + 2),      0, request_.weight.size(d + 2), of(request_.stride, d), of(request_.padding, d),
            of(request_.dilation, d)};
    if (side.stride <= 0 || side.padding < 0 || side.dilation <= 0 || side.kernel <= 0) return false;
    const int64_t room = side.in + 2 * side.padding - (side.kernel - 1) * side.dilation - 1;
    if (room < 0) return false;
    side.out = room / side.stride + 1;
    out_sizes_.push_back(side.out);
  }
  return true;
}

bool ConvolutionPlan::fits(const Tensor& t) const {
  return t.layout() == at::kStrided && is_plain(t) && t.device() == input_.device();
}

// Whether ours takes less time than stock's. By measurement on one core of a Zen 4, with the ratio of stock's time to
// ours at each line.
bool ConvolutionPlan::takes(Part part) const {
  // (With the channels last only the input's gradient has a kernel.)
  if (kind_ == Kind::patches && args_.channels_last && part != Part::input) return false;
  if (take_all) return true;
  switch (kind_) {
    case Kind::depthwise: return takes_depthwise(part);
    case Kind::product: return takes_product(part);
    case Kind::patches: return takes_patches(part);
    case Kind::widened: return true;
  }
  return false;
}

bool ConvolutionPlan::takes_depthwise(Part part) const {
  const bool is_narrow = element_size(args_.dtype) == 2;
  if (is_narrow ? !has_narrow_kernels(input_) : !is_onednns(input_)) return true;
  const int64_t width = args_.columns.out;
  const bool is_large = args_.rows.kernel * args_.columns.kernel >= 25, has_stride = args_.columns.stride > 1;
  if (part == Part::weight && is_large) return true;  // 6 to 15
  if (is_narrow) return false;                        // 0.3 to 1.2
  // The output 0.7 to 1.05; the input's gradient 1.25 to 1.5, or 0.8 to 1.2 of a small filter
  if (args_.channels_last) return part == Part::input && is_large && !has_stride;
  if (is_large) return part == Part::input ? !has_stride : width >= 14;  // 1.15 to 1.5
  return width >= (has_stride || part == Part::weight ? 28 : 7);         // 1.15 to 2.6; narrower planes 0.5 to 0.9
}

// (Products are handed to stock's product by their own plan.)
bool ConvolutionPlan::takes_product(Part part) const {
  if (element_size(args_.dtype) == 2) return !has_narrow_kernels(input_);              // 8 to 28
  if (args_.dtype == Dtype::f64) return !args_.channels_last || part != Part::output;  // 1.1 to 1.8; 0.93
  const int64_t plane = args_.rows.out * args_.columns.out, all = plane * args_.batch;
  if (!args_.channels_last) return part != Part::weight || plane >= 196;  // 1.0 to 1.5; 0.85 of smaller planes
  if (part == Part::weight) return all < 16384;                           // 1.1 to 1.3; 0.83 and more
  return all < 32768 || args_.channels < 64;                              // 1.15 to 1.5; 0.87 and more
}

bool ConvolutionPlan::takes_patches(Part part) const {
  if (part == Part::input || !is_onednns(input_)) return true;  // 1.8 to 10; 1.1 to 2.5 of doubles, 3 to 100 of f16
  if (element_size(args_.dtype) == 2) return false;             // 0.6 to 1.4
  const int64_t places = args_.channels * args_.rows.kernel * args_.columns.kernel, stride = args_.columns.stride;
  if (part == Part::output) return places <= 64 && stride <= 2;  // 1.05 to 2; 0.85 to 1
  return places <= 128 && stride == 1 && args_.filters >= 32;    // 1.05 to 2; 0.8 to 1
}

Kind ConvolutionPlan::kind() const {
  const Tensor &input = input_, &weight = request_.weight;
  const int64_t channels = input.size(1);
  const auto are_all = [](at::IntArrayRef list, int64_t value) {
    return std::all_of(list.begin(), list.end(), [&](int64_t k) { return k == value; });
  };
  if (request_.groups == channels && channels > 1 && weight.size(0) == channels && weight.size(1) == 1) {
    return Kind::depthwise;
  }
  if (request_.groups != 1 || weight.size(1) != channels) return Kind::widened;
  const bool is_product = input.dim() == 4 && weight.numel() == weight.size(0) * channels &&
                          are_all(request_.stride, 1) && are_all(request_.padding, 0);
  if (is_product) return Kind::product;
  const bool is_stocks = input.element_size() != 2 || has_narrow_kernels(input);
  return channels <= few_channels && (is_stocks || !args_.channels_last) ? Kind::patches : Kind::widened;
}

// Whether it is of one of our kinds. What is not in order is stock's, which raises.
Handed ConvolutionPlan::fit() {
  const Tensor &input = input_, &weight = request_.weight;
  const auto [bias, grad] = std::pair(given(request_.bias) ? &*request_.bias : nullptr, request_.grad);
  if (request_.transposed || !on_cpu(input)) return Handed::option;
  if ((input.dim() != 4 && input.dim() != 3) || weight.dim() != input.dim()) return Handed::option;
  args_.channels_last = is_channels_last(input) || is_channels_last(weight);  // as stock chooses it
  kind_ = kind();
  if (kind_ == Kind::widened && (input.element_size() != 2 || has_narrow_kernels(input))) return Handed::option;
  const int64_t channels = input.size(1), outputs = weight.size(0);
  if (std::any_of(request_.output_padding.begin(), request_.output_padding.end(), [](int64_t p) { return p != 0; })) {
    return Handed::option;
  }
  for (const Tensor* t : {&input, &weight, bias, grad}) {
    if (t && !fits(*t)) return Handed::option;
    if (t && t->scalar_type() != input.scalar_type()) return Handed::dtype;
  }
  const auto dtype = dtype_of(input);
  if (!dtype || !at::isFloatingType(input.scalar_type())) return Handed::dtype;
  if (bias && (bias->dim() != 1 || bias->size(0) != outputs)) return Handed::option;
  if (input.numel() == 0 || weight.numel() == 0) return Handed::size;
  out_sizes_ = {input.size(0), outputs};
  if (!set_sides()) return Handed::option;
  if ((kind_ == Kind::patches || kind_ == Kind::depthwise) && !has_room_for_copies(args_)) return Handed::size;
  if (grad && !grad->sizes().equals(out_sizes_)) return Handed::option;
  args_.dtype = *dtype;
  args_.batch = input.size(0);
  args_.channels = channels;
  args_.filters = outputs;
  const auto [of_input, of_weight, of_bias] = request_.wanted;
  const bool is_taken =
      !grad ? takes(Part::output) : (of_input && takes(Part::input)) || ((of_weight || of_bias) && takes(Part::weight));
  return is_taken ? Handed::no : Handed::size;
}

void ConvolutionPlan::run(convolution which, ConvolutionArgs a, int64_t items, int64_t size) const {
  a.begin = 0;
  a.end = items;
  // (Some multiply-adds take about as long as an element of the ops that `grain` is for.)
  run_items(input_, kernel(which).on(Device::cpu), a, items, std::max<int64_t>(1, size / 8));
}

// out = a @ b, + added if there is some, of matrices or batches of them: our product, or stock's where that is faster.
void multiply(const Tensor& out, const Tensor& a, const Tensor& b, const Tensor* added = nullptr) {
  const MatmulRequest request{a, b, a.dim(), b.dim(), added};
  MatmulPlan plan(request);
  if (plan.reason() == Handed::no) return plan.run(out);
  Tensor to = out;
  if (a.dim() == 3) {
    added ? at::baddbmm_out(to, *added, a, b) : at::bmm_out(to, a, b);
  } else {
    added ? at::addmm_out(to, *added, a, b) : at::mm_out(to, a, b);
  }
}

// All pixels' channels, of a tensor in the format that is computed in: of channels-last ones [pixels, channels], of
// contiguous ones a batch of [channels, pixels].
Tensor ConvolutionPlan::pixels(const Tensor& t) const {
  if (!args_.channels_last) return t.view({t.size(0), t.size(1), -1});
  return t.permute({0, 2, 3, 1}).view({-1, t.size(1)});
}

// A matrix for each of a batch.
Tensor for_each(const Tensor& matrix, const Tensor& batch) {
  return matrix.expand({batch.size(0), matrix.size(0), matrix.size(1)});
}

bool ConvolutionPlan::is_gradient_channels_last() const {
  const bool is_dilated = args_.rows.dilation > 1 || args_.columns.dilation > 1;
  const bool is_joined = !is_onednns(input_) && !is_dilated && kind_ == Kind::depthwise;  // of one for each group
  return is_joined ? is_channels_last(request_.weight) : args_.channels_last;
}

Tensor as_float(const Tensor& t) { return t.to(at::kFloat); }

Tensor ConvolutionPlan::forward() const {
  if (kind_ == Kind::widened) {
    const auto bias = given(request_.bias) ? std::optional<Tensor>(as_float(*request_.bias)) : std::nullopt;
    return at::compositeexplicitautograd::convolution(as_float(input_), as_float(request_.weight), bias,
                                                      request_.stride, request_.padding, request_.dilation, false,
                                                      request_.output_padding, request_.groups)
        .to(input_.scalar_type());
  }
  const Tensor input = laid_out(input_), weight = request_.weight.contiguous();
  const Tensor bias = given(request_.bias) ? request_.bias->contiguous() : Tensor();
  const Tensor out = empty(out_sizes_, args_.channels_last);
  if (is_product()) {
    const Tensor matrix = weight.view({weight.size(0), weight.size(1)}), x = pixels(input);
    const Tensor added = !bias.defined() || args_.channels_last ? bias : bias.view({1, -1, 1});
    const bool is_batch = !args_.channels_last;
    multiply(pixels(out), is_batch ? for_each(matrix, x) : x, is_batch ? x : matrix.t(),
             bias.defined() ? &added : nullptr);
    return out;
  }
  ConvolutionArgs a = args_;
  a.input = input.const_data_ptr();
  a.weight = weight.const_data_ptr();
  a.bias = bias.defined() ? bias.const_data_ptr() : nullptr;
  a.out = out.mutable_data_ptr();
  if (kind_ == Kind::patches) {
    const int64_t items = a.batch * bands_of_patches(a);
    run(convolution::patches, a, items, out.numel() / items * (weight.numel() / a.filters));
    return out;
  }
  const int64_t blocks = divide_up(a.channels, channels_of_item(a));
  run(convolution::depthwise, a, blocks * a.batch, out.numel() / blocks / a.batch * a.rows.kernel * a.columns.kernel);
  return out;
}

Tensor ConvolutionPlan::grad_input(const Tensor& grad) const {
  const Tensor weight = request_.weight.contiguous(), out = empty(input_.sizes(), args_.channels_last);
  if (is_product()) {
    const Tensor matrix = weight.view({weight.size(0), weight.size(1)}), g = pixels(grad);
    args_.channels_last ? multiply(pixels(out), g, matrix) : multiply(pixels(out), for_each(matrix.t(), g), g);
    return out;
  }
  ConvolutionArgs a = args_;
  a.grad = grad.const_data_ptr();
  a.weight = weight.const_data_ptr();
  a.out = out.mutable_data_ptr();
  if (kind_ == Kind::patches) {
    run(convolution::patches_backward_input, a, a.batch, grad.numel() / a.batch * (weight.numel() / a.filters));
    return out;
  }
  const int64_t items = divide_up(a.channels, channels_of_item(a)) * a.batch;
  run(convolution::depthwise_backward_input, a, items, grad.numel() / items * weight.numel() / a.channels);
  return out;
}

Tensor ConvolutionPlan::grad_weight(const Tensor& grad, Tensor* grad_bias) const {
  // (Of one input channel, or one tap, its elements are in one order in both formats.)
  const Tensor input = laid_out(input_), &weight = request_.weight;
  const Tensor out = empty(weight.sizes(), is_gradient_channels_last());
  if (is_product()) {
    const Tensor matrix = out.permute({0, 2, 3, 1}).view({weight.size(0), weight.size(1)});
    const Tensor x = pixels(input), g = pixels(grad);
    if (args_.channels_last) {
      multiply(matrix, g.t(), x);
    } else if (input.element_size() == 2) {  // in one sum, which is in float
      multiply(matrix, g.transpose(1, 2).reshape({-1, g.size(1)}).t(), x.transpose(1, 2).reshape({-1, x.size(1)}));
    } else {
      for (int64_t n = 0; n < args_.batch; ++n) multiply(matrix, g[n], x[n].t(), n > 0 ? &matrix : nullptr);
    }
    if (grad_bias) *grad_bias = grad.sum({0, 2, 3});
    return out;
  }
  if (grad_bias) *grad_bias = empty_beside(input, {args_.filters}, input.scalar_type());
  ConvolutionArgs a = args_;
  a.input = input.const_data_ptr();
  a.grad = grad.const_data_ptr();
  a.out = out.mutable_data_ptr();
  a.out_bias = grad_bias ? grad_bias->mutable_data_ptr() : nullptr;
  if (kind_ == Kind::patches) {
    run(convolution::patches_backward_weight, a, a.filters, grad.numel() / a.filters * (weight.numel() / a.filters));
    return out;
  }
  const int64_t blocks = divide_up(a.channels, channels_of_item(a));
  run(convolution::depthwise_backward_weight, a, blocks, grad.numel() / blocks * weight.numel() / a.channels);
  return out;
}

Three ConvolutionPlan::backward() const {
  const auto [wants_input, wants_weight, wants_bias] = request_.wanted;
  const int64_t outputs = out_sizes_[1];
  const auto stock = [&](const Tensor& grad, const Tensor& input, const Tensor& weight, std::array<bool, 3> wanted) {
    return at::compositeexplicitautograd::convolution_backward(grad, input, weight, at::IntArrayRef(outputs),
                                                               request_.stride, request_.padding, request_.dilation,
                                                               false, request_.output_padding, request_.groups, wanted);
  };
  if (kind_ == Kind::widened) {
    const auto found = stock(as_float(*request_.grad), as_float(input_), as_float(request_.weight), request_.wanted);
    const auto narrowed = [&](const Tensor& t) { return t.defined() ? t.to(input_.scalar_type()) : t; };
    const Tensor &by_input = std::get<0>(found), &by_weight = std::get<1>(found), &by_bias = std::get<2>(found);
    return {narrowed(by_input), by_weight.defined() ? in_stocks_format(narrowed(by_weight)) : by_weight,
            narrowed(by_bias)};
  }
  const bool of_input = wants_input && takes(Part::input);
  const bool of_weight = (wants_weight || wants_bias) && takes(Part::weight);
  const std::array<bool, 3> rest{wants_input && !of_input, wants_weight && !of_weight, wants_bias && !of_weight};
  Three result;
  // (Where that is faster.)
  if (rest[0] || rest[1] || rest[2]) result = stock(*request_.grad, input_, request_.weight, rest);
  const Tensor grad = laid_out(*request_.grad);
  if (of_input) std::get<0>(result) = grad_input(grad);
  if (of_weight) {
    Tensor by_weight = grad_weight(grad, wants_bias ? &std::get<2>(result) : nullptr);
    if (wants_weight) std::get<1>(result) = std::move(by_weight);
  }
  return result;
}

struct Convolution {
  static ConvolutionRequest request(const Tensor& input, const Tensor& weight, MaybeTensor bias,
                                    c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
                                    c10::SymIntArrayRef dilation, bool transposed, c10::SymIntArrayRef output_padding,
                                    const c10::SymInt& groups) {
    return {input,
            weight,
            bias,
            C10_AS_INTARRAYREF_SLOW(stride),
            C10_AS_INTARRAYREF_SLOW(padding),
            C10_AS_INTARRAYREF_SLOW(dilation),
            C10_AS_INTARRAYREF_SLOW(output_padding),
            transposed,
            groups.guard_int(__FILE__, __LINE__)};
  }
};
struct ConvolutionBackward {
  static ConvolutionRequest request(const Tensor& grad, const Tensor& input, const Tensor& weight,
                                    at::OptionalSymIntArrayRef, c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
                                    c10::SymIntArrayRef dilation, bool transposed, c10::SymIntArrayRef output_padding,
                                    const c10::SymInt& groups, std::array<bool, 3> wanted) {
    ConvolutionRequest request =
        Convolution::request(input, weight, nothing, stride, padding, dilation, transposed, output_padding, groups);
    request.grad = &grad;
    request.wanted = wanted;
    return request;
  }
};

}  // namespace

const Rows& convolution_rows() {
  static const Rows rows = {
      ROW("convolution", Convolution, COMPOSITE_EXPLICIT(convolution_symint)),
      ROW("convolution_backward", ConvolutionBackward, COMPOSITE_EXPLICIT(convolution_backward_symint)),
  };
  return rows;
}

}  // namespace rusttorch
