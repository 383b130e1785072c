#include "../kernels/resize.h"

#include <limits>
#include <vector>

#include "run.h"
#include "stock.h"

namespace rusttorch {
namespace {

using Scale = std::optional<double>;

class ResizePlan;

struct ResizeRequest {
  using Plan = ResizePlan;

  Interpolation how;
  const Tensor& input;  // or backward the output's gradient
  at::IntArrayRef output_size;
  bool align_corners;
  std::array<Scale, 2> scales;
  at::IntArrayRef input_size = {};  // backward

  bool is_backward() const { return !input_size.empty(); }
  Device device() const { return device_type(input); }
};

// What each element of a dim is made of, which becomes the tables that the kernels read.
template <class C>
class Taps {
 public:
  explicit Taps(int64_t size) : begin_(size_t(size) + 1) {}

  template <class R>
  static Taps of(const ResizeRule<R>& rule) {
    Taps taps(rule.out);
    for (int64_t o = 0; o < rule.out; ++o) {
      rule.each_tap(o, [&](int64_t i, R weight) { taps.all_.push_back({i, C(weight)}); });
      taps.begin_[size_t(o) + 1] = taps.all_.size();
    }
    return taps;
  }

  // Of a gradient: which outputs an element of the input was a tap of.
  Taps transposed(int64_t in) const {
    Taps taps(in);
    each([&](int64_t, const Tap& tap) { ++taps.begin_[size_t(tap.from) + 1]; });
    for (size_t i = 0; i < size_t(in); ++i) taps.begin_[i + 1] += taps.begin_[i];
    taps.all_.resize(taps.begin_.back());
    std::vector<size_t> next = taps.begin_;
    each([&](int64_t o, const Tap& tap) { taps.all_[next[size_t(tap.from)]++] = {o, tap.weight}; });
    return taps;
  }

  int64_t most() const {
    size_t most = 1;
    for (size_t o = 0; o + 1 < begin_.size(); ++o) most = std::max(most, begin_[o + 1] - begin_[o]);
    return int64_t(most);
  }

  // As `dim` has them, in memory from `table` on. filled: every element has as many.
  void write(const Tensor& table, ResizeDim& dim, bool filled) const {
    using Index = ResizeIndex<C>;
    int64_t* const counts = table.mutable_data_ptr<int64_t>();
    Index* const from = reinterpret_cast<Index*>(counts + dim.pitch);
    C* const weights = reinterpret_cast<C*>(from + dim.taps * dim.pitch);
    dim.from = from;
    dim.weights = weights;
    dim.counts = counts;
    Tap last{0, 0};
    for (int64_t o = 0; o < dim.pitch; ++o) {
      const size_t begin = begin_[size_t(std::min(o, dim.out))], end = begin_[size_t(std::min(o + 1, dim.out))];
      counts[o] = int64_t(end - begin);
      last.weight = 0;
      for (int64_t k = 0; k < dim.taps; ++k) {
        C* const weight = weights + k * dim.pitch + o;
        if (begin + size_t(k) < end) {
          last = all_[begin + size_t(k)];
        } else if (filled && k > 0) {
          weight[-dim.pitch] = last.weight /= 2;
        }
        from[k * dim.pitch + o] = Index(last.from);
        *weight = last.weight;
      }
    }
  }

 private:
  struct Tap {
    int64_t from;
    C weight;
  };

  // f(o, tap), where one element is one tap of o.
  template <class F>
  void each(F f) const {
    for (size_t o = 0; o + 1 < begin_.size(); ++o) {
      for (size_t k = begin_[o]; k < begin_[o + 1]; ++k) {
        Tap tap = all_[k];
        while (k + 1 < begin_[o + 1] && all_[k + 1].from == tap.from) tap.weight += all_[++k].weight;
        f(int64_t(o), tap);
      }
    }
  }

  std::vector<size_t> begin_;
  std::vector<Tap> all_;
};

class ResizePlan {
 public:
  explicit ResizePlan(const ResizeRequest& request) : request_(request), reason_(fit()) {}

  Handed reason() const { return reason_; }

  template <class R>
  R compute() {
    const Tensor out = empty_beside(input_, sizes(), input_.scalar_type(), format_);
    run(out);
    return out;
  }

  bool accepts(const Tensor& out) {
    if (is_contiguous_output(out, input_.scalar_type(), sizes(), input_, format_) && input_.is_contiguous(format_)) {
      return true;
    }
    reason_ = Handed::layout;
    return false;
  }

  // As stock does, a copy is made of what lies in neither of the two memory formats.
  void run(const Tensor& out) {
    const Tensor from = input_.contiguous(format_);
    ResizeArgs a{};
    a.dtype = *dtype_of(input_);
    a.channels = format_ == at::MemoryFormat::ChannelsLast ? input_.size(1) : 1;
    a.planes = input_.size(0) * input_.size(1) / a.channels;
    a.is_gradient = request_.is_backward();
    a.in = from.const_data_ptr();
    a.out = out.mutable_data_ptr();
    a.height = dim(0);
    a.width = dim(1);
    const auto& kernel = rusttorch::kernel(picks() ? resize::pick : resize::interpolate).on(request_.device());
    if (!on_cpu(input_)) return run_on_device(input_, kernel, a);
    const Tensor height = fill(a.height, false), width = fill(a.width, a.channels == 1);
    const int64_t row = out.size(3) * a.channels, rows = out.numel() / row;
    const int64_t bytes = element_size(a.dtype);
    a.stream = (out.numel() + from.numel()) * bytes >= int64_t(16) << 20;
    parallel(rows, (out.numel() + from.numel()) / rows, [&](int64_t begin, int64_t end) {
      ResizeArgs part = a.part(begin, end);
      const Tensor own = empty_beside(input_, {resize_scratch(a)}, at::kDouble);
      part.scratch = own.mutable_data_ptr();
      kernel.run(part);
    });
  }

 private:
  Handed fit() {
    if (input_.layout() != at::kStrided || !is_plain(input_)) return Handed::option;
    const at::ScalarType dtype = input_.scalar_type();
    if (!at::isFloatingType(dtype) || !dtype_of(input_)) return Handed::dtype;
    if (!has_sizes()) return Handed::option;
    if (input_.numel() == 0) return Handed::size;
    for (size_t d = 0; d < 2; ++d) {
      constexpr int64_t most = std::numeric_limits<int32_t>::max();
      // Of a tiny scale an index is beyond what integers hold.
      const bool fits = in(d) <= most && out(d) <= most && step<double>(d) * double(out(d)) <= double(most);
      if (!fits) return Handed::option;
    }
    // aten's gradients of the cubic are always contiguous.
    const bool is_cubic = request_.how == Interpolation::cubic || request_.how == Interpolation::cubic_aa;
    if (!is_cubic || !request_.is_backward()) format_ = input_.suggest_memory_format();
    return on_cpu(input_) ? fit_cpu() : fit_device();
  }

  Handed fit_cpu() const {
    if (has_filter(request_.how) && at::isReducedFloatingType(input_.scalar_type()))
      return Handed::dtype;  // stock raises
    // Stock's filters give every row of a single column the first row's weights.
    if (has_filter(request_.how) && !request_.is_backward() && out(1) == 1) return Handed::option;
    return stock_is_faster() ? Handed::size : Handed::no;
  }

  // A device computes where things are in 32 bits, and has room for so many taps.
  Handed fit_device() const {
    constexpr int64_t most = std::numeric_limits<int32_t>::max();
    if (input_.numel() > most || c10::multiply_integers(sizes()) > most) return Handed::size;
    for (size_t d = 0; d < 2; ++d) {
      const ResizeRule<double> rule = dim(d).rule;
      // Scales that the sizes do not follow: outputs beyond the input, or sizes that are the same, which stock's
      // kernels for a device resize and the rule does not.
      const bool beyond = rule.step * double(out(d)) > double(in(d)) * (1 + 1e-6);
      if (beyond || (in(d) == out(d) && in(d) > 1 && rule.step != 1)) return Handed::option;
      if ((request_.is_backward() ? rule.taps_of_gradient() : rule.taps()) > resize_device_taps) return Handed::size;
    }
    return Handed::no;
  }

  // By measurement: doubles that are only copied or added, small images, pixels of few channels, and some sizes of
  // them.
  bool stock_is_faster() const {
    if (request_.how > Interpolation::linear) return false;
    const at::ScalarType dtype = input_.scalar_type();
    if (is_nearest(request_.how) && dtype == at::kDouble) return true;
    const bool has_pixels = format_ == at::MemoryFormat::ChannelsLast;
    const int64_t elements = c10::multiply_integers(sizes()) + input_.numel();
    if (elements < 8192 && (has_pixels || request_.is_backward())) return true;
    if (!has_pixels || picks()) return false;
    const bool shrinks = !request_.is_backward() && in(0) > out(0) && !at::isReducedFloatingType(dtype);
    const bool has_large_windows = is_nearest(request_.how) && out(0) > 2 * in(0);
    return shrinks || has_large_windows || input_.size(1) < 16;
  }

  bool picks() const { return is_nearest(request_.how) && !request_.is_backward(); }

  // What is resized has these sizes, forward, and so has the gradient of it. Else stock raises.
  at::IntArrayRef input_size() const { return request_.is_backward() ? request_.input_size : input_.sizes(); }
  bool has_sizes() const {
    const auto ends_with = [&](at::IntArrayRef sizes) { return input_.sizes().slice(2).equals(sizes); };
    if (input_.dim() != 4 || input_size().size() != 4 || request_.output_size.size() != 2) return false;
    if (out(0) <= 0 || out(1) <= 0 || in(0) <= 0 || in(1) <= 0) return false;
    return !request_.is_backward() ||
           (ends_with(request_.output_size) && input_.sizes().slice(0, 2).equals(input_size().slice(0, 2)));
  }
  int64_t in(size_t d) const { return input_size()[2 + d]; }
  int64_t out(size_t d) const { return request_.output_size[d]; }
  at::DimVector sizes() const {
    if (request_.is_backward()) return at::DimVector(input_size());
    return {input_.size(0), input_.size(1), out(0), out(1)};
  }

  // How far apart elements of the output are in the input, by aten's own rules: of the nearest the CPU has one for
  // sizes that are kept or doubled.
  template <class C>
  C step(size_t d) const {
    const Scale& scale = request_.scales[d];
    if (request_.align_corners) return out(d) > 1 ? C(in(d) - 1) / C(out(d) - 1) : C(0);
    if (request_.how == Interpolation::nearest && on_cpu(input_) && !forgets_two()) {
      if (in(d) == out(d)) return 1;
      if (2 * in(d) == out(d)) return C(0.5);
    }
    return scale && *scale > 0 ? C(1 / *scale) : C(in(d)) / C(out(d));
  }
  // Whether the scale that is given counts for the nearest where the size is kept or doubled, too: in one of aten's
  // three kernels.
  bool forgets_two() const {
    const bool has_pixels = input_.is_contiguous(at::MemoryFormat::ChannelsLast) && input_.size(1) > 3;
    return picks() && !has_pixels && out(0) + out(1) > 128;
  }
  // Sizes that are the same are not resized: by filters forward, dim by dim, and by the cubic's derivative.
  Interpolation how(size_t d) const {
    const bool forward = has_filter(request_.how) && !request_.is_backward() && in(d) == out(d);
    const bool backward =
        request_.how == Interpolation::cubic && request_.is_backward() && in(0) == out(0) && in(1) == out(1);
    return forward || backward ? Interpolation::same : request_.how;
  }

  // Doubles are weighted in double, but the nearest is found in float.
  bool is_double() const { return input_.scalar_type() == at::kDouble && !is_nearest(request_.how); }

  ResizeDim dim(size_t d) const {
    ResizeDim dim{};
    const double step = is_double() ? this->step<double>(d) : this->step<float>(d);
    dim.rule = {how(d), request_.align_corners, in(d), out(d), step};
    dim.in = request_.is_backward() ? out(d) : in(d);
    dim.out = request_.is_backward() ? in(d) : out(d);
    return dim;
  }

  // Writes the CPU's tables, and returns their memory.
  Tensor fill(ResizeDim& dim, bool filled) const {
    if (input_.scalar_type() != at::kDouble) return fill_by<float, float>(dim, filled);
    return is_nearest(request_.how) ? fill_by<double, float>(dim, filled) : fill_by<double, double>(dim, filled);
  }
  template <class C, class R>
  Tensor fill_by(ResizeDim& dim, bool filled) const {
    Taps<C> taps = Taps<C>::of(dim.rule.as<R>());
    if (request_.is_backward()) taps = taps.transposed(dim.out);
    dim.taps = taps.most();
    dim.pitch = dim.out + resize_slack;
    const Tensor table = empty_beside(input_, {(2 * dim.taps + 1) * dim.pitch}, at::kLong);
    taps.write(table, dim, filled);
    return table;
  }

  const ResizeRequest& request_;
  const Tensor& input_ = request_.input;
  at::MemoryFormat format_ = at::MemoryFormat::Contiguous;
  Handed reason_;
};

template <Interpolation how>
struct Nearest {
  static ResizeRequest request(const Tensor& self, at::IntArrayRef output_size, Scale height, Scale width) {
    return {how, self, output_size, false, {height, width}};
  }
};
template <Interpolation how>
struct NearestBackward {
  static ResizeRequest request(const Tensor& grad, at::IntArrayRef output_size, at::IntArrayRef input_size,
                               Scale height, Scale width) {
    return {how, grad, output_size, false, {height, width}, input_size};
  }
};
template <Interpolation how>
struct Weighted {
  static ResizeRequest request(const Tensor& self, at::IntArrayRef output_size, bool align_corners, Scale height,
                               Scale width) {
    return {how, self, output_size, align_corners, {height, width}};
  }
};
template <Interpolation how>
struct WeightedBackward {
  static ResizeRequest request(const Tensor& grad, at::IntArrayRef output_size, at::IntArrayRef input_size,
                               bool align_corners, Scale height, Scale width) {
    return {how, grad, output_size, align_corners, {height, width}, input_size};
  }
};

}  // namespace

const Rows& resize_rows() {
#define RESIZE(op, Pick, how)                                                                                 \
  ROW(#op, Pick<Interpolation::how>, STOCK(op)), ROW(#op ".out", Pick<Interpolation::how>, STOCK(op##_outf)), \
      ROW(#op "_backward", Pick##Backward<Interpolation::how>, STOCK(op##_backward)),                         \
      ROW(#op "_backward.grad_input", Pick##Backward<Interpolation::how>, STOCK(op##_backward_outf))
  static const Rows rows = {
      RESIZE(upsample_nearest2d, Nearest, nearest),         RESIZE(_upsample_nearest_exact2d, Nearest, nearest_exact),
      RESIZE(upsample_bilinear2d, Weighted, linear),        RESIZE(upsample_bicubic2d, Weighted, cubic),
      RESIZE(_upsample_bilinear2d_aa, Weighted, linear_aa), RESIZE(_upsample_bicubic2d_aa, Weighted, cubic_aa),
  };
#undef RESIZE
  return rows;
}

}  // namespace rusttorch
