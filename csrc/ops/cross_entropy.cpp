#include "../kernels/cross_entropy.h"

#include "../kernels/activation.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/Reduction.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/cross_entropy_loss.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros_like.h>

#include "decomposed.h"
#include "run.h"
#include "stock.h"

namespace rusttorch {
namespace {

// How F.cross_entropy comes here under use():
//   autograd's key   Decomposed<CrossEntropyLoss>: if CrossEntropyPlan says that the kernels take it, ByForward; or
//                    stock's decomposition
//   by name          rusttorch::cross_entropy_loss_forward, whose derivative is in autograd/cross_entropy.cpp
//   a backend's key  forward(); from the derivative, backward()

using TwoTensors = std::tuple<Tensor, Tensor>;
using FourTensors = std::tuple<Tensor, Tensor, Tensor, Tensor>;

class CrossEntropyPlan;

struct CrossEntropyRequest {
  using Plan = CrossEntropyPlan;
  const Tensor &self, &target;
  MaybeTensor weight;
  int64_t reduction;
  std::optional<int64_t> ignore_index;  // none: a symbol
  double smoothing;
  bool differentiated = false;  // by autograd

  Device device() const { return device_type(self); }
};

// Decides only: what runs is cross_entropy_loss_forward.
class CrossEntropyPlan {
 public:
  explicit CrossEntropyPlan(const CrossEntropyRequest& request) : reason_(fit(request)) {}

  Handed reason() const { return reason_; }

 private:
  static Handed fit(const CrossEntropyRequest& request);

  Handed reason_;
};

// Whether the kernels take it: rows of classes, with a class for each or a probability for each class. (By the
// probabilities they have no derivative, nor by the weight.)
Handed CrossEntropyPlan::fit(const CrossEntropyRequest& r) {
  const Tensor &self = r.self, &target = r.target;
  const bool weighted = given(r.weight);
  if (target.device() != self.device() || (weighted && r.weight->device() != self.device())) return Handed::option;
  if (r.reduction < at::Reduction::None || r.reduction >= at::Reduction::END) return Handed::option;
  if (!(r.smoothing >= 0 && r.smoothing <= 1)) return Handed::option;
  if (target.requires_grad() || (weighted && r.weight->requires_grad())) return Handed::option;
  if (!is_plain(self) || !is_plain(target) || (weighted && !is_plain(*r.weight))) return Handed::option;
  if (!dtype_of(self) || !at::isFloatingType(self.scalar_type())) return Handed::dtype;
  // A half has no room for the slopes of unlikely classes, whose gradient a scaled loss is there to save.
  if (self.scalar_type() == at::kHalf && r.differentiated) return Handed::dtype;
  if (self.dim() < 1 || self.dim() > 2 || !self.is_contiguous() || !target.is_contiguous()) return Handed::layout;
  if (self.numel() == 0) return Handed::size;
  const int64_t classes = self.size(-1);
  if (weighted) {
    if (r.weight->scalar_type() != self.scalar_type()) return Handed::dtype;
    if (r.weight->dim() != 1 || r.weight->size(0) != classes || !r.weight->is_contiguous()) return Handed::layout;
  }
  if (target.scalar_type() == at::kLong) {
    return target.sizes().equals(self.sizes().slice(0, self.dim() - 1)) ? Handed::no : Handed::layout;
  }
  if (r.ignore_index.value_or(0) >= 0) return Handed::option;  // probabilities have no such class: stock raises
  if (target.scalar_type() != self.scalar_type()) return Handed::dtype;
  return target.sizes().equals(self.sizes()) ? Handed::no : Handed::layout;
}

CrossEntropyArgs arguments(const Tensor& self, const Tensor& target, MaybeTensor weight, int64_t ignore_index,
                           double smoothing) {
  CrossEntropyArgs a{};
  a.dtype = *dtype_of(self);
  a.classes = self.size(-1);
  a.rows = self.numel() / a.classes;
  a.x = self.const_data_ptr();
  a.target = target.scalar_type() == at::kLong ? target.const_data_ptr<int64_t>() : nullptr;
  a.probabilities = a.target ? nullptr : target.const_data_ptr();
  a.weight = given(weight) ? weight->const_data_ptr() : nullptr;
  a.ignore_index = ignore_index;
  a.smoothing = smoothing;
  return a;
}

// What a mean divides by: the weights of the targets that are not ignored. Raises where a target is no class.
double weight_of_targets(const CrossEntropyArgs& a, MaybeTensor weight) {
  if (!a.target) return double(a.rows);
  const Tensor weights = given(weight) ? weight->to(at::kDouble) : Tensor();
  const double* w = weights.defined() ? weights.const_data_ptr<double>() : nullptr;
  double total = 0;
  for (int64_t r = 0; r < a.rows; ++r) {
    const int64_t t = a.target[r];
    if (t == a.ignore_index) continue;
    TORCH_CHECK_INDEX(t >= 0 && t < a.classes, "Target ", t, " is out of bounds.");
    total += w ? w[t] : 1;
  }
  return total;
}

// run(some of the rows) for all of x's on the CPU; the total is summed in their order, whatever the number of threads.
template <class Run>
double total_of_rows(const CrossEntropyArgs& a, Run run) {
  const int64_t each = divide_up(grain, a.classes);
  std::vector<double> totals(divide_up(a.rows, each));
  parallel_parts(a.rows, each, a.classes, [&](int64_t k, int64_t begin, int64_t end) {
    CrossEntropyArgs part = a.part(begin, end);
    part.total = &totals[k];
    run(part);
  });
  double total = 0;
  for (const double t : totals) total += t;
  return total;
}

// Runs softcap tanh(x / softcap) on all of x, in place: what the cross entropy is asked for.
void cap(const Kernel<ElementwiseArgs>& kernel, const CrossEntropyArgs& a) {
  const double wide[] = {1 / a.softcap, a.softcap};
  const float narrow[] = {float(wide[0]), float(wide[1])};
  ElementwiseArgs e{};
  e.dtype = a.dtype;
  e.n = a.rows * a.classes;
  e.in[0] = a.x;
  e.out[0] = const_cast<void*>(a.x);
  e.scalars = a.dtype == Dtype::f64 ? static_cast<const void*>(wide) : narrow;
  kernel.run(e);
}

// The losses of x's rows, and with grad_x their slopes, for which the rows are read again while they are in cache. What
// they come to is returned on the CPU only.
double losses(const Tensor& x, const CrossEntropyArgs& a) {
  const auto& forward = kernel(cross_entropy::forward).on(device_type(x));
  const auto& slope = kernel(cross_entropy::slope).on(device_type(x));
  const auto& softcap = kernel(activation::softcap).on(device_type(x));
  if (on_cpu(x)) {
    return total_of_rows(a, [&](const CrossEntropyArgs& rows) {
      if (a.softcap != 0) cap(softcap, rows);
      forward.run(rows);
      if (rows.grad_x) slope.run(rows);
    });
  }
  if (a.softcap != 0) {
    const c10::DeviceGuard guard(x.device());
    cap(softcap, a);
  }
  run_on_device(x, forward, a);
  if (a.grad_x) run_on_device(x, slope, a);
  return 0;
}

Tensor number(double value) {
  Tensor t(at::detail::empty_cpu({}, at::kDouble));
  write_number(t, value);
  return t;
}

// Forward on a device, where no number is read.
void forward_on_device(const Tensor& self, CrossEntropyArgs& a, const Tensor& loss) {
  const Tensor each = empty_beside(self, {2, a.rows}, at::kDouble);
  Tensor total_weight = empty_beside(self, {}, at::kDouble);
  a.row_losses = each.mutable_data_ptr<double>();
  a.row_weights = a.row_losses + a.rows;
  a.total_weight = total_weight.mutable_data_ptr<double>();
  if (a.mean) a.divisor = a.total_weight;
  a.result = a.loss ? nullptr : loss.mutable_data_ptr();
  losses(self, a);
}

// -> the loss, and the gradient of it, or of each row's, by x: the slope. It is made here because x may be changed
// until the backward, as in stock; it is empty if it is not wanted.
TwoTensors forward(const Tensor& self, const Tensor& target, MaybeTensor weight, int64_t reduction,
                   int64_t ignore_index, double smoothing, bool differentiate) {
  stats<"cross_entropy_loss_forward">.count(Handed::no);
  check_one_device({&self, &target, given(weight) ? &*weight : &self});
  TORCH_CHECK(CrossEntropyPlan({self, target, weight, reduction, ignore_index, smoothing}).reason() == Handed::no,
              "cross_entropy_loss_forward takes a contiguous input of [N, C] or [C]; cross_entropy_loss takes all");
  CrossEntropyArgs a = arguments(self, target, weight, ignore_index, smoothing);
  const auto per_row = self.sizes().slice(0, self.dim() - 1);
  const bool each = reduction == at::Reduction::None;
  Tensor loss = empty_beside(self, each ? per_row : at::IntArrayRef(), self.scalar_type());
  Tensor slope = empty_beside(self, differentiate ? self.sizes() : at::IntArrayRef({0}), self.scalar_type());
  const Tensor sums = empty_beside(self, {2, a.rows}, at::kDouble);
  a.largest = sums.mutable_data_ptr<double>();
  a.log_sum = a.largest + a.rows;
  a.loss = each ? loss.mutable_data_ptr() : nullptr;
  a.grad_x = differentiate ? slope.mutable_data_ptr() : nullptr;
  a.mean = reduction == at::Reduction::Mean;
  if (!on_cpu(self)) {
    forward_on_device(self, a, loss);
    return {loss, slope};
  }
  const double total_weight = weight_of_targets(a, weight);
  if (a.mean) a.divisor = &total_weight;
  const double total = losses(self, a);
  if (!each) write_number(loss, a.mean ? total / total_weight : total);
  return {loss, slope};
}

Tensor backward(const Tensor& grad, const Tensor& slope, const Tensor& target, int64_t reduction,
                int64_t ignore_index) {
  stats<"cross_entropy_loss_backward">.count(Handed::no);
  check_one_device({&grad, &slope, &target});
  const Tensor dense = slope.contiguous(), dense_grad = grad.contiguous();  // a hook may have brought others
  TORCH_CHECK(CrossEntropyPlan({dense, target, std::nullopt, reduction, ignore_index, 0}).reason() == Handed::no,
              "cross_entropy_loss_backward: expected the slope and the target of cross_entropy_loss_forward, but got ",
              slope.scalar_type(), " ", slope.sizes(), " and ", target.scalar_type(), " ", target.sizes());
  const bool each = reduction == at::Reduction::None;
  const auto sizes = each ? slope.sizes().slice(0, slope.dim() - 1) : at::IntArrayRef();
  TORCH_CHECK(grad.sizes().equals(sizes) && grad.scalar_type() == slope.scalar_type(),
              "cross_entropy_loss_backward: expected grad_output to be ", slope.scalar_type(), " ", sizes, ", but got ",
              grad.scalar_type(), " ", grad.sizes());
  CrossEntropyArgs a = arguments(dense, target, std::nullopt, ignore_index, 0);
  Tensor grad_x = empty_beside(slope, slope.sizes(), slope.scalar_type());
  a.grad_x = grad_x.mutable_data_ptr();
  a.grad = dense_grad.const_data_ptr();
  a.grad_of_rows = each;
  run_items(slope, kernel(cross_entropy::backward).on(device_type(slope)), a, a.rows, a.classes);
  return grad_x;
}

// The loss as aten has it.
struct CrossEntropyLoss {
  static CrossEntropyRequest request(const Tensor& self, const Tensor& target, MaybeTensor weight, int64_t reduction,
                                     const c10::SymInt& ignore_index, double smoothing) {
    return {self, target, weight, reduction, ignore_index.maybe_as_int(), smoothing, is_differentiated({&self})};
  }
};
struct ByForward {
  static Tensor call(const Tensor& self, const Tensor& target, MaybeTensor weight, int64_t reduction,
                     c10::SymInt ignore_index, double smoothing) {
    using Forward = OwnOp<"cross_entropy_loss_forward", TwoTensors (*)(const Tensor&, const Tensor&, MaybeTensor,
                                                                       int64_t, c10::SymInt, double, bool)>;
    const bool differentiate = is_differentiated({&self});
    // Probabilities are kept. Where they are smoothed, stock keeps what came of that, and they may be changed.
    const bool smoothed = differentiate && smoothing != 0 && at::isFloatingType(target.scalar_type());
    const Tensor kept = smoothed ? target.clone() : target;
    return std::get<0>(Forward::call(self, kept, weight, reduction, ignore_index, smoothing, differentiate));
  }
};

// As weight_of_targets, for unweighted classes on any device.
Tensor count_targets(const Tensor& target, int64_t classes, int64_t ignore_index) {
  if (!on_cpu(target)) return target.ne(ignore_index).sum().to(at::kDouble);
  CrossEntropyArgs a{};
  a.rows = target.numel();
  a.classes = classes;
  a.target = target.const_data_ptr<int64_t>();
  a.ignore_index = ignore_index;
  return number(weight_of_targets(a, std::nullopt));
}

struct LinearLoss {
  int64_t reduction, ignore_index;
  double smoothing, z_loss;
  std::optional<double> softcap;
  bool differentiate;
};

// The logits are made a few rows at a time, and their gradients in their place, so that all of them are never held:
// what is kept is the gradients of the loss by the input, the weight and the bias; of halves, those of the summed loss,
// and of weight and bias in 32 bits, because the scale of the loss that saves the small ones comes only in the
// backward. P.-L. Hsu et al., Liger Kernel, 2024, describe the scheme.
FourTensors of_rows(const Tensor& input, const Tensor& weight, const Tensor& target, MaybeTensor bias,
                    const LinearLoss& of) {
  constexpr int64_t logits_at_once = int64_t(1) << 23;
  const int64_t classes = weight.size(0), rows = input.size(0);
  const int64_t at_once = std::max<int64_t>(1, logits_at_once / classes);
  const Tensor total_weight = count_targets(target, classes, of.ignore_index);
  const bool mean = of.reduction == at::Reduction::Mean, half = input.scalar_type() == at::kHalf;

  // 16 bits would round the sum over all rows at each chunk.
  const bool narrow = input.element_size() == 2;
  const auto wide = input.options().dtype(narrow ? at::kFloat : input.scalar_type());
  const bool in_wide = half || (narrow && rows > at_once);
  Tensor grad_input, grad_weight, grad_bias, product;
  if (of.differentiate) {
    grad_input = at::empty_like(input);
    grad_weight = at::empty_like(weight, in_wide ? wide : input.options());
    if (in_wide) product = at::empty_like(weight);
    if (rows == 0) grad_weight.zero_();
    if (given(bias)) grad_bias = at::zeros_like(*bias, wide);
  }
  Tensor buffer = at::empty({std::min(at_once, rows), classes}, input.options());
  const Tensor sums = at::empty({2, std::min(at_once, rows)}, input.options().dtype(at::kDouble));
  const Tensor row_losses = on_cpu(input) ? Tensor() : empty_beside(input, {rows}, at::kDouble);
  double total = 0;
  for (int64_t r = 0; r < rows; r += at_once) {
    const int64_t count = std::min(at_once, rows - r);
    const Tensor x = input.narrow(0, r, count);
    Tensor logits = buffer.narrow(0, 0, count);
    given(bias) ? at::addmm_out(logits, *bias, x, weight.t()) : at::mm_out(logits, x, weight.t());
    CrossEntropyArgs a = arguments(logits, target.narrow(0, r, count), std::nullopt, of.ignore_index, of.smoothing);
    a.z_loss = of.z_loss;
    a.softcap = of.softcap.value_or(0);
    a.largest = sums.mutable_data_ptr<double>();
    a.log_sum = a.largest + sums.size(1);
    a.row_losses = on_cpu(input) ? nullptr : row_losses.mutable_data_ptr<double>() + r;
    a.grad_x = of.differentiate ? logits.mutable_data_ptr() : nullptr;
    a.divisor = mean && !half ? total_weight.const_data_ptr<double>() : nullptr;
    total += losses(logits, a);
    if (!of.differentiate) continue;
    Tensor grad_x = grad_input.narrow(0, r, count);
    at::mm_out(grad_x, logits, weight);
    if (in_wide) {
      at::mm_out(product, logits.t(), x);
      r == 0 ? grad_weight.copy_(product) : grad_weight.add_(product);
    } else {
      r == 0 ? at::mm_out(grad_weight, logits.t(), x) : grad_weight.addmm_(logits.t(), x);
    }
    if (given(bias)) grad_bias.add_(logits.sum(0, false, wide.dtype().toScalarType()));
  }
  if (of.differentiate && input.scalar_type() == at::kBFloat16) {
    grad_weight = grad_weight.to(input.scalar_type());
    if (given(bias)) grad_bias = grad_bias.to(input.scalar_type());
  }
  Tensor loss = on_cpu(input) ? number(total) : row_losses.sum();
  loss = (mean ? loss / total_weight : loss).to(wide.dtype());
  const auto or_nothing = [&](const Tensor& t) { return t.defined() ? t : at::empty({0}, input.options()); };
  return {loss, or_nothing(grad_input), or_nothing(grad_weight), or_nothing(grad_bias)};
}

FourTensors linear_forward(const Tensor& input, const Tensor& weight, const Tensor& target, MaybeTensor bias,
                           int64_t reduction, int64_t ignore_index, double smoothing, bool differentiate, double z_loss,
                           std::optional<double> softcap) {
  stats<"linear_cross_entropy_forward">.count(Handed::no);
  TORCH_CHECK(input.dim() == 2 && weight.dim() == 2 && input.size(1) == weight.size(1) && weight.size(0) > 0,
              "linear_cross_entropy: input must be [N, D] and linear_weight [C, D], C > 0, got ", input.sizes(),
              " and ", weight.sizes());
  TORCH_CHECK_NOT_IMPLEMENTED(dtype_of(input) && at::isFloatingType(input.scalar_type()),
                              "\"linear_cross_entropy\" not implemented for '", input.scalar_type(), "'");
  TORCH_CHECK(target.scalar_type() == at::kLong && target.dim() == 1 && target.size(0) == input.size(0),
              "linear_cross_entropy: target must be int64 classes [N], got ", target.scalar_type(), " ",
              target.sizes());
  TORCH_CHECK(!given(bias) || (bias->dim() == 1 && bias->size(0) == weight.size(0)),
              "linear_cross_entropy: linear_bias must be [C], got ", bias->sizes());
  check_one_device({&input, &weight, &target, given(bias) ? &*bias : &input});
  for (const Tensor* t : {&weight, given(bias) ? &*bias : &input}) {
    TORCH_CHECK(t->scalar_type() == input.scalar_type(), "linear_cross_entropy: expected tensors of ",
                input.scalar_type(), ", but one is of ", t->scalar_type());
  }
  TORCH_CHECK(reduction == at::Reduction::Mean || reduction == at::Reduction::Sum,
              "linear_cross_entropy: reduction must be mean or sum");
  TORCH_CHECK(smoothing >= 0 && smoothing <= 1, "label_smoothing must be between 0.0 and 1.0. Got: ", smoothing);
  TORCH_CHECK(!softcap || *softcap > 0, "linear_cross_entropy: softcap must be above 0, got ", softcap.value_or(0));
  const LinearLoss of{reduction, ignore_index, smoothing, z_loss, softcap, differentiate};
  const Tensor dense_target = target.contiguous();
  if (!on_cpu(input)) return of_rows(input, weight, dense_target, bias, of);  // where no number is read
  // Rows that are ignored need no logits: of a masked language model 85 %.
  const Tensor kept = dense_target.ne(ignore_index).nonzero().squeeze(1);
  if (kept.numel() > input.size(0) * 7 / 8) return of_rows(input, weight, dense_target, bias, of);
  FourTensors found = of_rows(input.index_select(0, kept), weight, dense_target.index_select(0, kept), bias, of);
  Tensor& grad_input = std::get<1>(found);
  if (differentiate) grad_input = at::zeros_like(input).index_copy_(0, kept, grad_input);
  return found;
}

struct LinearCrossEntropy {
  static Tensor call(const Tensor& input, const Tensor& weight, const Tensor& target, MaybeTensor bias,
                     int64_t reduction, c10::SymInt ignore_index, double smoothing, double z_loss,
                     std::optional<double> softcap) {
    using Forward = FourTensors(const Tensor&, const Tensor&, const Tensor&, MaybeTensor, int64_t, c10::SymInt, double,
                                bool, double, std::optional<double>);
    static const auto forward = own_op<Forward>("linear_cross_entropy_forward");
    // Under torch.func a tensor does not show here that it is differentiated.
    const bool wanted = input.requires_grad() || weight.requires_grad() || (given(bias) && bias->requires_grad()) ||
                        c10::impl::tls_is_dispatch_key_included(c10::DispatchKey::FuncTorchDynamicLayerFrontMode);
    return std::get<0>(forward.call(input, weight, target, bias, reduction, ignore_index, smoothing,
                                    wanted && c10::GradMode::is_enabled(), z_loss, softcap));
  }
};

}  // namespace

const Rows& cross_entropy_rows() {
  static const Rows rows = {
      RUSTTORCH_COMPOSITE_ROW("cross_entropy_loss", CrossEntropyLoss, COMPOSITE_IMPLICIT(cross_entropy_loss_symint),
                              ByForward),
      {"cross_entropy_loss_forward", impl<&forward>(), &stats<"cross_entropy_loss_forward">},
      {"cross_entropy_loss_backward", impl<&backward>(), &stats<"cross_entropy_loss_backward">},
      {.name = "linear_cross_entropy", .impl = impl<&LinearCrossEntropy::call>(), .composite = true},
      {"linear_cross_entropy_forward", impl<&linear_forward>(), &stats<"linear_cross_entropy_forward">},
  };
  return rows;
}

}  // namespace rusttorch
