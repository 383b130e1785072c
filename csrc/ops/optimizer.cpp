#include "../kernels/optimizer.h"

#include <ATen/MemoryOverlap.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/full.h>

#include "lists.h"
#include "run.h"
#include "stock.h"

namespace rusttorch {
namespace {

using at::TensorList;

// The tensors of one call. The lists are as long as the parameters', and steps may be none.
struct Lists {
  TensorList parameters, grads;
  std::vector<TensorList> state;
  TensorList steps;
};

class StepPlan;

// One step.
struct StepRequest {
  using Plan = StepPlan;
  optimizer kernel;
  Lists lists;
  OptimizerArgs args;  // without what the plan fills in
  double lr = 0;
  const Tensor* lr_tensor = nullptr;  // in lr's place
  MaybeTensor grad_scale, found_inf;

  Device device() const { return lists.parameters.empty() ? Device::cpu : device_type(lists.parameters[0]); }
};

// Stock's CPU kernels read beyond the end of what is smaller than its parameter: refused before anything is handed on.
void check_shape(const Tensor& a, const Tensor& b) {
  TORCH_CHECK(a.sizes().equals(b.sizes()), "expected a gradient and a state of the parameter's shape ", a.sizes(),
              ", but got ", b.sizes());
}
bool same_place(const Tensor& a, const Tensor& b) {
  return b.layout() == at::kStrided && a.strides().equals(b.strides()) && a.device() == b.device() && is_plain(b);
}

const Tensor* pointer(MaybeTensor t) { return given(t) ? &*t : nullptr; }

// A number that a device's kernel can read.
bool is_there(const Tensor& number, const Tensor& p) {
  return number.scalar_type() == at::kFloat && number.numel() == 1 && number.device() == p.device();
}

Handed fit(const Lists& lists, const StepRequest& request) {
  const size_t count = lists.parameters.size();
  if (count == 0) return Handed::no;
  if (lists.grads.size() != count) return Handed::option;  // stock raises
  if (!lists.steps.empty() && lists.steps.size() != count) return Handed::option;
  for (const auto& list : lists.state) {
    if (list.size() != count) return Handed::option;
  }
  for (size_t i = 0; i < count; ++i) {
    check_shape(lists.parameters[i], lists.grads[i]);
    for (const auto& list : lists.state) check_shape(lists.parameters[i], list[i]);
  }
  for (size_t i = 0; i < count; ++i) {
    const Tensor& p = lists.parameters[i];
    if (p.layout() != at::kStrided || !p.is_non_overlapping_and_dense() || !is_plain(p)) return Handed::layout;
    const auto type = p.scalar_type();
    if (!dtype_of(p) || !at::isFloatingType(type)) return Handed::dtype;
    if (!same_place(p, lists.grads[i])) return Handed::layout;
    if (lists.grads[i].scalar_type() != type) return Handed::dtype;
    for (const auto& list : lists.state) {
      if (!same_place(p, list[i])) return Handed::layout;
      const auto state_type = list[i].scalar_type();
      const bool fits = state_type == type || (p.element_size() == 2 && state_type == at::kFloat);
      if (!fits || state_type != lists.state[0][i].scalar_type()) return Handed::dtype;
    }
    if (on_cpu(p)) continue;
    // One launch for all, which is given the steps that are on the CPU, and reads the others where they are.
    const Tensor& first = lists.parameters[0];
    if (p.device() != first.device() || type != first.scalar_type()) return Handed::dtype;
    const bool has_state = !lists.state.empty();
    if (has_state && lists.state[0][i].scalar_type() != lists.state[0][0].scalar_type()) return Handed::dtype;
    if (!lists.steps.empty() && !is_there(lists.steps[i], p) && !lists.steps[i].is_cpu()) return Handed::option;
  }
  const Tensor& first = lists.parameters[0];
  if (on_cpu(first)) {
    if (threads() == 1) return Handed::no;  // in stock's order
    std::vector<TensorList> all = lists.state;
    all.insert(all.end(), {lists.parameters, lists.grads});
    return order_matters(all) ? Handed::option : Handed::no;
  }
  for (const Tensor* number : {request.lr_tensor, pointer(request.grad_scale), pointer(request.found_inf)}) {
    if (number && !is_there(*number, first)) return Handed::option;
  }
  return Handed::no;
}

// (item() goes through the dispatcher, which a step of a thousand parameters would notice.)
double number(const Tensor& x) {
  const bool here = x.is_cpu() && x.scalar_type() == at::kFloat && x.numel() == 1;
  return here ? double(*x.const_data_ptr<float>()) : x.item<double>();
}
const float* there(const Tensor* x) { return x ? x->const_data_ptr<float>() : nullptr; }

OptimizerEntry entry_of(const Lists& lists, size_t i) {
  const Tensor& p = lists.parameters[i];
  OptimizerEntry e{};
  e.dtype = e.state_dtype = *dtype_of(p);
  e.n = p.numel();
  e.p = p.mutable_data_ptr();
  e.g = on_cpu(p) ? const_cast<void*>(lists.grads[i].const_data_ptr()) : lists.grads[i].mutable_data_ptr();
  for (size_t k = 0; k < lists.state.size(); ++k) {
    e.state_dtype = *dtype_of(lists.state[k][i]);
    e.state[k] = lists.state[k][i].mutable_data_ptr();
  }
  if (lists.steps.empty()) return e;
  if (!on_cpu(p) && is_there(lists.steps[i], p)) {
    e.step_there = there(&lists.steps[i]);
  } else {
    e.step = number(lists.steps[i]);
  }
  return e;
}

void step_on_device(const Lists& lists, const StepRequest& request) {
  std::vector<OptimizerEntry> entries;
  for (size_t i = 0; i < lists.parameters.size(); ++i) {
    if (lists.parameters[i].numel() > 0) entries.push_back(entry_of(lists, i));
  }
  OptimizerArgs a = request.args;
  a.entries = entries.data();
  a.count = int64_t(entries.size());
  a.lr = request.lr;
  a.lr_there = there(request.lr_tensor);
  a.grad_scale = there(pointer(request.grad_scale));
  a.found_inf = there(pointer(request.found_inf));
  run_on_device(lists.parameters[0], kernel(request.kernel).on(request.device()), a);
}

// All parameters in one parallel region, in parts that threads share.
void step_on_cpu(const Lists& lists, const StepRequest& request) {
  if (given(request.found_inf) && request.found_inf->item<double>() == 1) return;
  if (given(request.grad_scale)) {
    for (const Tensor& g : lists.grads) g.div_(*request.grad_scale);
  }
  OptimizerArgs a = request.args;
  a.lr = request.lr_tensor ? number(*request.lr_tensor) : request.lr;
  std::vector<OptimizerEntry> parts;
  int64_t total = 0;
  for (size_t i = 0; i < lists.parameters.size(); ++i) {
    OptimizerEntry part = entry_of(lists, i);
    total += part.n;
    for (int64_t left = part.n; left > 0; left -= grain) {
      part.n = std::min(left, grain);
      parts.push_back(part);
      advance(part.p, grain * element_size(part.dtype));
      advance(part.g, grain * element_size(part.dtype));
      for (auto*& s : part.state) advance(s, grain * element_size(part.state_dtype));
    }
  }
  const auto run = kernel(request.kernel).on(Device::cpu).run;
  const int64_t count = int64_t(parts.size());
  parallel_list(count, total, [&](int64_t begin, int64_t end) {
    OptimizerArgs some = a;
    some.entries = &parts[begin];
    some.count = end - begin;
    run(some);
  });
}

void step(const Lists& lists, const StepRequest& request) {
  if (lists.parameters.empty()) return;
  on_cpu(lists.parameters[0]) ? step_on_cpu(lists, request) : step_on_device(lists, request);
}

// The tensors of a call, those that are not contiguous as copies.
class Copies {
 public:
  explicit Copies(const Lists& lists) : parameters_(contiguous(lists.parameters)), grads_(contiguous(lists.grads)) {
    for (const auto& list : lists.state) state_.push_back(contiguous(list));
    lists_ = {parameters_, grads_, {state_.begin(), state_.end()}, lists.steps};
  }
  Copies(const Copies&) = delete;  // lists_ leads to the others

  const Lists& lists() const { return lists_; }
  // Copies back what a step writes: with a scale the gradients too, which it unscales.
  void to(const Lists& lists, bool with_grads) const {
    for (size_t i = 0; i < parameters_.size(); ++i) {
      lists.parameters[i].copy_(parameters_[i]);
      if (with_grads) lists.grads[i].copy_(grads_[i]);
      for (size_t k = 0; k < state_.size(); ++k) lists.state[k][i].copy_(state_[k][i]);
    }
  }

 private:
  static std::vector<Tensor> contiguous(TensorList list) {
    std::vector<Tensor> all;
    for (const Tensor& t : list) all.push_back(t.contiguous());
    return all;
  }

  std::vector<Tensor> parameters_, grads_;
  std::vector<std::vector<Tensor>> state_;
  Lists lists_;
};

// Tensors that lie otherwise than their parameters, which stock's kernels do not look at, are copied.
class StepPlan {
 public:
  explicit StepPlan(const StepRequest& request) : request_(request), reason_(fit(request.lists, request)) {
    if (reason_ != Handed::layout) return;
    copies_.emplace(request.lists);
    if (fit(copies_->lists(), request) == Handed::no) reason_ = Handed::no;
  }

  Handed reason() const { return reason_; }

  void run() const {
    if (!copies_) return step(request_.lists, request_);
    const bool unscales = given(request_.grad_scale);
    if (unscales) {
      for (const Tensor& grad : request_.lists.grads) at::assert_no_internal_overlap(grad);  // before it is written
    }
    step(copies_->lists(), request_);
    copies_->to(request_.lists, unscales);
  }

 private:
  const StepRequest& request_;
  Handed reason_;
  std::optional<Copies> copies_;
};

// For stock's kernels, which read the steps where the parameters are, and do not look whether they are there.
std::vector<Tensor> steps_beside(TensorList steps, TensorList parameters) {
  std::vector<Tensor> beside;
  for (size_t i = 0; i < steps.size(); ++i) {
    beside.push_back(i < parameters.size() ? steps[i].to(parameters[i].device()) : steps[i]);
  }
  return beside;
}

double rate(double lr) { return lr; }
double rate(const Tensor&) { return 0; }
const Tensor* rate_tensor(double) { return nullptr; }
const Tensor* rate_tensor(const Tensor& lr) { return &lr; }

// Adam, D. P. Kingma and J. Ba, 2015; its decay apart from the gradient, I. Loshchilov and F. Hutter, 2019; amsgrad,
// S. J. Reddi et al., 2018.
template <bool decoupled>
struct Adam {
  template <class Lr>
  static StepRequest request(TensorList self, TensorList grads, TensorList exp_avgs, TensorList exp_avg_sqs,
                             TensorList max_exp_avg_sqs, TensorList steps, const Lr& lr, double beta1, double beta2,
                             double weight_decay, double eps, bool amsgrad, bool maximize, MaybeTensor grad_scale,
                             MaybeTensor found_inf) {
    Lists lists{self, grads, {exp_avgs, exp_avg_sqs}, steps};
    if (amsgrad) lists.state.push_back(max_exp_avg_sqs);
    OptimizerArgs a{};
    a.maximize = maximize;
    a.decoupled = decoupled;
    a.weight_decay = weight_decay;
    a.beta1 = beta1;
    a.beta2 = beta2;
    a.eps = eps;
    const auto kernel = amsgrad ? optimizer::adam_amsgrad : optimizer::adam;
    return {kernel, std::move(lists), a, rate(lr), rate_tensor(lr), grad_scale, found_inf};
  }
};
template <class Stock, class Lr>
void adam_stock(TensorList self, TensorList grads, TensorList exp_avgs, TensorList exp_avg_sqs,
                TensorList max_exp_avg_sqs, TensorList steps, Lr lr, double beta1, double beta2, double weight_decay,
                double eps, bool amsgrad, bool maximize, MaybeTensor grad_scale, MaybeTensor found_inf) {
  Stock::call(device_type(self[0]), self, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, steps_beside(steps, self), lr,
              beta1, beta2, weight_decay, eps, amsgrad, maximize, grad_scale, found_inf);
}

struct Sgd {
  template <class Lr>
  static StepRequest request(TensorList self, TensorList grads, TensorList buffers, double weight_decay,
                             double momentum, const Lr& lr, double dampening, bool nesterov, bool maximize,
                             bool is_first_step, MaybeTensor grad_scale, MaybeTensor found_inf) {
    Lists lists{self, grads, {}, {}};
    if (momentum != 0) lists.state.push_back(buffers);
    OptimizerArgs a{};
    a.maximize = maximize;
    a.begins = is_first_step;
    a.weight_decay = weight_decay;
    a.beta1 = momentum;
    a.taken = 1 - dampening;
    const auto kernel = momentum == 0 ? optimizer::sgd : nesterov ? optimizer::sgd_nesterov : optimizer::sgd_momentum;
    return {kernel, std::move(lists), a, rate(lr), rate_tensor(lr), grad_scale, found_inf};
  }
};

// Adagrad, J. Duchi et al., 2011.
struct Adagrad {
  template <class Lr>
  static StepRequest request(TensorList self, TensorList grads, TensorList sums, TensorList steps, const Lr& lr,
                             double lr_decay, double weight_decay, double eps, bool maximize, MaybeTensor grad_scale,
                             MaybeTensor found_inf) {
    OptimizerArgs a{};
    a.maximize = maximize;
    a.lr_decay = lr_decay;
    a.weight_decay = weight_decay;
    a.eps = eps;
    const Lists lists{self, grads, {sums}, steps};
    return {optimizer::adagrad, lists, a, rate(lr), rate_tensor(lr), grad_scale, found_inf};
  }
};
template <class Stock, class Lr>
void adagrad_stock(TensorList self, TensorList grads, TensorList sums, TensorList steps, Lr lr, double lr_decay,
                   double weight_decay, double eps, bool maximize, MaybeTensor grad_scale, MaybeTensor found_inf) {
  Stock::call(device_type(self[0]), self, grads, sums, steps_beside(steps, self), lr, lr_decay, weight_decay, eps,
              maximize, grad_scale, found_inf);
}

// aten's two overloads: lr as a number, and as a tensor.
template <class Lr>
using AdamSignature = void(TensorList, TensorList, TensorList, TensorList, TensorList, TensorList, Lr, double, double,
                           double, double, bool, bool, MaybeTensor, MaybeTensor);
template <class Lr>
using SgdSignature = void(TensorList, TensorList, TensorList, double, double, Lr, double, bool, bool, bool, MaybeTensor,
                          MaybeTensor);
template <class Lr>
using AdagradSignature = void(TensorList, TensorList, TensorList, TensorList, Lr, double, double, double, bool,
                              MaybeTensor, MaybeTensor);
template <class Lr>
using StockAdam = AnyDevice<&adam_stock<STOCK_AS(AdamSignature<Lr>, _fused_adam_), Lr>>;
template <class Lr>
using StockAdamw = AnyDevice<&adam_stock<STOCK_AS(AdamSignature<Lr>, _fused_adamw_), Lr>>;
template <class Lr>
using StockSgd = STOCK_AS(SgdSignature<Lr>, _fused_sgd_);
template <class Lr>
using StockAdagrad = AnyDevice<&adagrad_stock<STOCK_AS(AdagradSignature<Lr>, _fused_adagrad_), Lr>>;

// The same for one tensor, and a step that is a number.
template <Name name, bool decoupled, class Stock>
struct AdamUpdate {
  static void call(const Tensor& self, const Tensor& grad, const Tensor& exp_avg, const Tensor& exp_avg_sq,
                   int64_t step, MaybeTensor max_exp_avg_sq, double lr, double beta1, double beta2, double eps,
                   double weight_decay, bool maximize) {
    TORCH_CHECK_VALUE(step >= 1, name.text, ": step must be at least 1, got ", step);
    const Tensor steps = at::full({}, double(step), self.options().dtype(at::kFloat));
    const bool amsgrad = given(max_exp_avg_sq);
    const TensorList largest = amsgrad ? TensorList(*max_exp_avg_sq) : TensorList();
    Op<name, Adam<decoupled>, Stock>::call(self, grad, exp_avg, exp_avg_sq, largest, steps, lr, beta1, beta2,
                                           weight_decay, eps, amsgrad, maximize, std::nullopt, std::nullopt);
  }
};
struct SgdUpdate {
  static void call(const Tensor& self, const Tensor& grad, double lr, double weight_decay, bool maximize) {
    Op<"sgd_update", Sgd, StockSgd<double>>::call(self, grad, {}, weight_decay, 0, lr, 0, false, maximize, false,
                                                  std::nullopt, std::nullopt);
  }
};
struct SgdMomentumUpdate {
  static void call(const Tensor& self, const Tensor& grad, const Tensor& momentum_buffer, double lr, double momentum,
                   double dampening, double weight_decay, bool nesterov, bool maximize, bool is_first_step) {
    Op<"sgd_momentum_update", Sgd, StockSgd<double>>::call(self, grad, momentum_buffer, weight_decay, momentum, lr,
                                                           dampening, nesterov, maximize, is_first_step, std::nullopt,
                                                           std::nullopt);
  }
};

}  // namespace

// An op and its overload for a learning rate that is a tensor.
#define FUSED(name, pick, Stock) ROW(#name, pick, Stock<double>), ROW(#name ".tensor_lr", pick, Stock<const Tensor&>)
#define UPDATE(name, ...) \
  Row { name, impl<&__VA_ARGS__::call>(), &stats<name> }

const Rows& optimizer_rows() {
  static const Rows rows = {
      FUSED(_fused_adam_, Adam<false>, StockAdam),
      FUSED(_fused_adamw_, Adam<true>, StockAdamw),
      FUSED(_fused_sgd_, Sgd, StockSgd),
      FUSED(_fused_adagrad_, Adagrad, StockAdagrad),
      UPDATE("sgd_update", SgdUpdate),
      UPDATE("sgd_momentum_update", SgdMomentumUpdate),
      UPDATE("adam_update", AdamUpdate<"adam_update", false, StockAdam<double>>),
      UPDATE("adamw_update", AdamUpdate<"adamw_update", true, StockAdamw<double>>),
  };
  return rows;
}

}  // namespace rusttorch
