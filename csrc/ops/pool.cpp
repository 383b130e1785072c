#include "../kernels/pool.h"

#include <ATen/native/Pool.h>

#include <limits>
#include <numeric>

#include "run.h"
#include "stock.h"

namespace rusttorch {
namespace {

using Two = std::tuple<Tensor, Tensor>;

class PoolPlan;

// One call: which kernel, on what, with which windows: of a size, or adaptive.
struct PoolRequest {
  using Plan = PoolPlan;

  pool kernel;
  const Tensor& input;
  bool is_adaptive = false;
  at::IntArrayRef output_size = {};  // of an adaptive one, forward
  at::IntArrayRef kernel_size = {}, stride = {}, padding = {}, dilation = {};
  bool ceil_mode = false, count_include_pad = false;
  std::optional<int64_t> divisor = std::nullopt;
  // Backward:
  const Tensor* grad = nullptr;
  const Tensor* index = nullptr;

  Device device() const { return device_type(input); }
  bool largest() const { return kernel == pool::max_pool || kernel == pool::max_pool_backward; }
};

class PoolPlan {
 public:
  explicit PoolPlan(const PoolRequest& request) : request_(request), reason_(fit()) {}

  Handed reason() const { return reason_; }

  template <class R>
  R compute() {
    const Tensor out = empty_beside(input_, sizes_of_result(), input_.scalar_type(), format_);
    if constexpr (std::is_same_v<R, Tensor>) {
      run(out);
      return out;
    } else {
      const Tensor index = empty_beside(input_, sizes_of_result(), at::kLong, format_);
      run(out, index);
      return {out, index};
    }
  }

  bool accepts(const Tensor& out) { return is_output(out, input_.scalar_type()) || refuse(); }
  bool accepts(const Tensor& out, const Tensor& index) {
    return (is_output(out, input_.scalar_type()) && is_output(index, at::kLong) && !overlap(out, index)) || refuse();
  }

  void run(const Tensor& out) {
    if (!request_.grad) return run_all(input_, out, Tensor());
    run_all(*request_.grad, out, request_.index ? request_.index->contiguous(format_) : Tensor());
  }
  void run(const Tensor& out, const Tensor& index) { run_all(input_, out, index); }

 private:
  Handed fit();
  bool fits_gradient() const;
  bool fits_cpu() const;
  bool fits_device() const;
  bool fit_windows();
  bool fit_window(size_t d, PoolDim& dim) const;
  bool fit_adaptive(size_t d, PoolDim& dim) const;

  int64_t size(int64_t dim) const { return input_.size(input_.dim() + dim); }

  at::DimVector sizes_of_output() const {
    at::DimVector sizes(input_.sizes());
    sizes[sizes.size() - 2] = args_.height.out;
    sizes[sizes.size() - 1] = args_.width.out;
    return sizes;
  }
  at::DimVector sizes_of_result() const { return request_.grad ? at::DimVector(input_.sizes()) : sizes_of_output(); }

  bool is_output(const Tensor& out, at::ScalarType dtype) const {
    const Tensor& in = request_.grad ? *request_.grad : input_;
    return is_contiguous_output(out, dtype, sizes_of_result(), in, format_) && in.is_contiguous(format_) &&
           (!request_.index || !overlap(*request_.index, out));
  }
  bool refuse() {
    reason_ = Handed::layout;
    return false;
  }

  // As stock does, a copy is made of what lies in neither of the two memory formats.
  void run_all(const Tensor& in, const Tensor& out, const Tensor& index) {
    const Tensor from = in.contiguous(format_);
    args_.in = from.const_data_ptr();
    args_.out = out.mutable_data_ptr();
    args_.index = index.defined() ? const_cast<int64_t*>(index.const_data_ptr<int64_t>()) : nullptr;
    const int64_t images = input_.numel() / (args_.height.in * args_.width.in * args_.channels);
    const auto& kernel = rusttorch::kernel(request_.kernel).on(request_.device());
    if (!on_cpu(input_)) return run_on_device(input_, kernel, args_.part(0, images));
    const bool rows = args_.channels > 1 && !request_.grad;
    const int64_t items = rows ? images * args_.height.out : images;
    parallel(items, input_.numel() / items, [&](int64_t begin, int64_t end) {
      PoolArgs part = args_.part(begin, end);
      const Tensor own = empty_beside(input_, {scratch()}, at::kDouble);
      part.scratch = own.mutable_data_ptr();
      kernel.run(part);
    });
  }

  // How many numbers a thread of the CPU needs for itself.
  int64_t scratch() const {
    if (request_.grad) return request_.largest() ? 0 : PoolBackwardRows(args_).numbers(args_);
    return args_.channels > 1 ? 0 : PoolForwardRows(args_, request_.largest()).numbers(args_);
  }

  const PoolRequest& request_;
  const Tensor& input_ = request_.input;
  PoolArgs args_{};
  at::MemoryFormat format_ = at::MemoryFormat::Contiguous;
  Handed reason_;
};

Handed PoolPlan::fit() {
  if (input_.layout() != at::kStrided || !is_plain(input_)) return Handed::option;
  if (!at::isFloatingType(input_.scalar_type()) || !dtype_of(input_)) return Handed::dtype;
  if (input_.dim() != 3 && input_.dim() != 4) return Handed::option;  // stock raises
  if (input_.numel() == 0) return Handed::size;
  if (!fit_windows()) return Handed::option;
  constexpr int64_t most = std::numeric_limits<int32_t>::max();
  const auto fits = [](const PoolDim& dim) { return dim.out > 0 && dim.out < most && dim.in < most; };
  if (!fits(args_.height) || !fits(args_.width)) return Handed::option;
  // Indices have 32 bits in the kernels.
  if (args_.height.in * args_.width.in > most) return Handed::size;
  format_ = input_.suggest_memory_format();
  if (format_ != at::MemoryFormat::ChannelsLast) format_ = at::MemoryFormat::Contiguous;
  args_.dtype = *dtype_of(input_);
  args_.channels = format_ == at::MemoryFormat::ChannelsLast ? size(-3) : 1;
  args_.count_include_pad = request_.count_include_pad;
  args_.divisor = request_.divisor.value_or(0);
  if (request_.grad && !fits_gradient()) return Handed::option;
  return (on_cpu(input_) ? fits_cpu() : fits_device()) ? Handed::no : Handed::size;
}

// Not where stock is faster, by measurement: windows of several sizes, few columns, few channels; half floats that are
// read or added to one by one. Nor where steps are so large that a thread would need too much memory.
bool PoolPlan::fits_cpu() const {
  const PoolDim &h = args_.height, &w = args_.width;
  constexpr int64_t most_steps = 1 << 15, most_numbers = 1 << 22;
  if (std::max({h.span(), h.stride, w.span(), w.stride}) > most_steps) return false;
  if (scratch() > std::max(most_numbers, 4 * input_.numel())) return false;
  const bool irregular = h.irregular || w.irregular;
  if (request_.grad) {
    if (request_.largest()) return args_.dtype != Dtype::f16;
    return !irregular && (args_.channels == 1 || args_.channels >= 16);
  }
  if (args_.channels > 1) return true;
  if (args_.has_narrow_planes()) return request_.largest() || args_.dtype != Dtype::f16;
  return request_.largest() ? !irregular && w.out >= 4 : w.out >= 8;
}

// A device computes where things are in 32 bits.
bool PoolPlan::fits_device() const {
  constexpr int64_t most = std::numeric_limits<int32_t>::max();
  return args_.height.is_small() && args_.width.is_small() && input_.numel() <= most &&
         c10::multiply_integers(sizes_of_output()) <= most;
}

// Whether the gradient and the indices are the output's.
bool PoolPlan::fits_gradient() const {
  const auto belongs = [&](const Tensor& t, at::ScalarType dtype) {
    return t.scalar_type() == dtype && t.sizes().equals(sizes_of_output()) && t.device() == input_.device() &&
           t.layout() == at::kStrided && is_plain(t);
  };
  return belongs(*request_.grad, input_.scalar_type()) && (!request_.index || belongs(*request_.index, at::kLong));
}

bool PoolPlan::fit_windows() {
  if (request_.divisor == 0) return false;
  args_.height.in = size(-2);
  args_.width.in = size(-1);
  if (request_.is_adaptive) return fit_adaptive(0, args_.height) && fit_adaptive(1, args_.width);
  return fit_window(0, args_.height) && fit_window(1, args_.width);
}

// What stock refuses is stock's to refuse, and so are windows that are all padding.
bool PoolPlan::fit_window(size_t d, PoolDim& dim) const {
  const auto given = [&](at::IntArrayRef list, int64_t& value) {
    if (list.empty() || list.size() > 2) return false;
    value = list[list.size() == 1 ? 0 : d];
    return value >= 0 && value < std::numeric_limits<int32_t>::max();
  };
  dim.dilation = 1;
  if (!given(request_.kernel_size, dim.kernel)) return false;
  if (!given(request_.stride.empty() ? request_.kernel_size : request_.stride, dim.stride)) return false;
  if (request_.padding.empty() || !given(request_.padding, dim.padding)) return false;
  if (!request_.dilation.empty() && !given(request_.dilation, dim.dilation)) return false;
  if (dim.kernel == 0 || dim.stride == 0 || dim.dilation == 0 || dim.padding > dim.kernel / 2) return false;
  if (dim.padding > 0 && dim.dilation > dim.in) return false;
  dim.out = at::native::pooling_output_shape<int64_t>(dim.in, dim.kernel, dim.padding, dim.stride, dim.dilation,
                                                      request_.ceil_mode);
  return true;
}

bool PoolPlan::fit_adaptive(size_t d, PoolDim& dim) const {
  // Backward, the gradient has the size.
  const at::IntArrayRef sizes = request_.grad ? request_.grad->sizes().slice(input_.dim() - 2) : request_.output_size;
  if (sizes.size() != 2) return false;
  dim.out = sizes[d];
  if (dim.out <= 0) return false;
  const int64_t rest = dim.in % dim.out;
  dim.irregular = rest != 0;
  dim.kernel = dim.stride = std::max<int64_t>(1, dim.in / dim.out);
  dim.padding = 0;
  dim.dilation = 1;
  // The largest window: o * in is at most out - gcd beyond a multiple of out, and the window begins at that multiple.
  if (dim.irregular) dim.kernel = dim.in / dim.out + (rest == std::gcd(dim.in, dim.out) ? 1 : 2);
  return true;
}

struct MaxPool {
  static PoolRequest request(const Tensor& self, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                             at::IntArrayRef padding, at::IntArrayRef dilation, bool ceil_mode) {
    return {.kernel = pool::max_pool,
            .input = self,
            .kernel_size = kernel_size,
            .stride = stride,
            .padding = padding,
            .dilation = dilation,
            .ceil_mode = ceil_mode};
  }
};
struct MaxPoolBackward {
  static PoolRequest request(const Tensor& grad, const Tensor& self, at::IntArrayRef kernel_size,
                             at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, bool ceil_mode,
                             const Tensor& indices) {
    PoolRequest request = MaxPool::request(self, kernel_size, stride, padding, dilation, ceil_mode);
    request.kernel = pool::max_pool_backward;
    request.grad = &grad;
    request.index = &indices;
    return request;
  }
};
struct AvgPool {
  static PoolRequest request(const Tensor& self, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                             at::IntArrayRef padding, bool ceil_mode, bool count_include_pad,
                             std::optional<int64_t> divisor) {
    return {.kernel = pool::avg_pool,
            .input = self,
            .kernel_size = kernel_size,
            .stride = stride,
            .padding = padding,
            .ceil_mode = ceil_mode,
            .count_include_pad = count_include_pad,
            .divisor = divisor};
  }
};
struct AvgPoolBackward {
  static PoolRequest request(const Tensor& grad, const Tensor& self, at::IntArrayRef kernel_size,
                             at::IntArrayRef stride, at::IntArrayRef padding, bool ceil_mode, bool count_include_pad,
                             std::optional<int64_t> divisor) {
    PoolRequest request = AvgPool::request(self, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor);
    request.kernel = pool::avg_pool_backward;
    request.grad = &grad;
    return request;
  }
};
struct AdaptiveMaxPool {
  static PoolRequest request(const Tensor& self, at::IntArrayRef output_size) {
    return {.kernel = pool::max_pool, .input = self, .is_adaptive = true, .output_size = output_size};
  }
};

// Stock does not look, and writes beyond its memory.
void check_images(const Tensor& grad, const Tensor& self) {
  const auto images = [](const Tensor& t) { return t.sizes().slice(0, size_t(std::max<int64_t>(t.dim() - 2, 0))); };
  TORCH_CHECK(images(grad).equals(images(self)), "expected a gradient of as many images as the input ", self.sizes(),
              ", got ", grad.sizes());
}

struct AdaptiveMaxPoolBackward {
  static PoolRequest request(const Tensor& grad, const Tensor& self, const Tensor& indices) {
    check_images(grad, self);
    return {.kernel = pool::max_pool_backward, .input = self, .is_adaptive = true, .grad = &grad, .index = &indices};
  }
};
struct AdaptiveAvgPool {
  static PoolRequest request(const Tensor& self, c10::SymIntArrayRef output_size) {
    return {.kernel = pool::avg_pool,
            .input = self,
            .is_adaptive = true,
            .output_size = C10_AS_INTARRAYREF_SLOW(output_size)};
  }
};
struct AdaptiveAvgPoolBackward {
  static PoolRequest request(const Tensor& grad, const Tensor& self) {
    check_images(grad, self);
    return {.kernel = pool::avg_pool_backward, .input = self, .is_adaptive = true, .grad = &grad};
  }
};

}  // namespace

const Rows& pool_rows() {
  static const Rows rows = {
      ROW("max_pool2d_with_indices", MaxPool, STOCK(max_pool2d_with_indices)),
      ROW("max_pool2d_with_indices.out", MaxPool, STOCK(max_pool2d_with_indices_outf)),
      ROW("max_pool2d_with_indices_backward", MaxPoolBackward, STOCK(max_pool2d_with_indices_backward)),
      ROW("max_pool2d_with_indices_backward.grad_input", MaxPoolBackward, STOCK(max_pool2d_with_indices_backward_outf)),
      ROW("avg_pool2d", AvgPool, STOCK(avg_pool2d)),
      ROW("avg_pool2d.out", AvgPool, STOCK(avg_pool2d_outf)),
      ROW("avg_pool2d_backward", AvgPoolBackward, STOCK(avg_pool2d_backward)),
      ROW("avg_pool2d_backward.grad_input", AvgPoolBackward, STOCK(avg_pool2d_backward_outf)),
      ROW("_adaptive_avg_pool2d", AdaptiveAvgPool, STOCK(_adaptive_avg_pool2d_symint)),
      ROW("_adaptive_avg_pool2d_backward", AdaptiveAvgPoolBackward, STOCK(_adaptive_avg_pool2d_backward)),
      ROW("adaptive_max_pool2d", AdaptiveMaxPool, STOCK(adaptive_max_pool2d)),
      ROW("adaptive_max_pool2d.out", AdaptiveMaxPool, STOCK(adaptive_max_pool2d_outf)),
      ROW("adaptive_max_pool2d_backward", AdaptiveMaxPoolBackward, STOCK(adaptive_max_pool2d_backward)),
      ROW("adaptive_max_pool2d_backward.grad_input", AdaptiveMaxPoolBackward, STOCK(adaptive_max_pool2d_backward_outf)),
  };
  return rows;
}

}  // namespace rusttorch
