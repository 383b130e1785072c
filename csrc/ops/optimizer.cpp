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
  optimizer kernel;
  TensorList parameters, grads;
  std::vector<TensorList> state;
  TensorList steps;
};

// Stock's CPU kernels read beyond the end of what is smaller than its parameter: refused before anything is handed on.
void check_shape(const Tensor& a, const Tensor& b) {
  TORCH_CHECK(a.sizes().equals(b.sizes()), "expected a gradient and a state of the parameter's shape ", a.sizes(),
              ", but got ", b.sizes());
}
bool same_place(const Tensor& a, const Tensor& b) {
  return b.layout() == at::kStrided && a.strides().equals(b.strides()) && a.device() == b.device() && is_plain(b);
}

// A number that a device's kernel can read.
bool is_there(const Tensor& number, const Tensor& p) {
  return number.scalar_type() == at::kFloat && number.numel() == 1 && number.device() == p.device();
}
bool is_there(MaybeTensor number, const Tensor& p) { return !given(number) || is_there(*number, p); }
bool is_there(double, const Tensor&) { return true; }

template <class Lr>
Handed fit(const Lists& lists, const Lr& lr, MaybeTensor grad_scale, MaybeTensor found_inf) {
  const size_t count = lists.parameters.size();
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
  if (count == 0) return Handed::no;
  if (on_cpu(lists.parameters[0])) {
    if (threads() == 1) return Handed::no;  // in stock's order
    std::vector<TensorList> all = lists.state;
    all.insert(all.end(), {lists.parameters, lists.grads});
    return order_matters(all) ? Handed::option : Handed::no;
  }
  const auto there = [&](const auto& number) { return is_there(number, lists.parameters[0]); };
  return there(lr) && there(grad_scale) && there(found_inf) ? Handed::no : Handed::option;
}

double number(double x) { return x; }
// (item() goes through the dispatcher, which a step of a thousand parameters would notice.)
double number(const Tensor& x) {
  const bool here = x.is_cpu() && x.scalar_type() == at::kFloat && x.numel() == 1;
  return here ? double(*x.const_data_ptr<float>()) : x.item<double>();
}
const float* pointer(double) { return nullptr; }
const float* pointer(const Tensor& x) { return x.const_data_ptr<float>(); }
const float* pointer(MaybeTensor x) { return given(x) ? pointer(*x) : nullptr; }

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
    e.step_there = pointer(lists.steps[i]);
  } else {
    e.step = number(lists.steps[i]);
  }
  return e;
}

template <class Lr>
void step_on_device(const Lists& lists, OptimizerArgs a, const Lr& lr, MaybeTensor grad_scale, MaybeTensor found_inf) {
  std::vector<OptimizerEntry> entries;
  for (size_t i = 0; i < lists.parameters.size(); ++i) {
    if (lists.parameters[i].numel() > 0) entries.push_back(entry_of(lists, i));
  }
  a.entries = entries.data();
  a.count = int64_t(entries.size());
  if constexpr (std::is_same_v<Lr, double>) a.lr = lr;
  a.lr_there = pointer(lr);
  a.grad_scale = pointer(grad_scale);
  a.found_inf = pointer(found_inf);
  const Tensor& p = lists.parameters[0];
  run_on_device(p, kernel(lists.kernel).on(device_type(p)), a);
}

// All parameters in one parallel region, in parts that threads share.
template <class Lr>
void step_on_cpu(const Lists& lists, OptimizerArgs a, const Lr& lr, MaybeTensor grad_scale, MaybeTensor found_inf) {
  if (given(found_inf) && found_inf->item<double>() == 1) return;
  if (given(grad_scale)) {
    for (const Tensor& g : lists.grads) g.div_(*grad_scale);
  }
  a.lr = number(lr);
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
  const auto run = kernel(lists.kernel).on(Device::cpu).run;
  const int64_t count = int64_t(parts.size());
  parallel_list(count, total, [&](int64_t begin, int64_t end) {
    OptimizerArgs some = a;
    some.entries = &parts[begin];
    some.count = end - begin;
    run(some);
  });
}

// For stock's kernels, which read the steps where the parameters are, and do not look whether they are there.
std::vector<Tensor> steps_beside(TensorList steps, TensorList parameters) {
  std::vector<Tensor> beside;
  for (size_t i = 0; i < steps.size(); ++i) {
    beside.push_back(i < parameters.size() ? steps[i].to(parameters[i].device()) : steps[i]);
  }
  return beside;
}

// A list of tensors that are contiguous: copies of those that are not.
std::vector<Tensor> contiguous(TensorList list) {
  std::vector<Tensor> all;
  for (const Tensor& t : list) all.push_back(t.contiguous());
  return all;
}

// A step of tensors that lie otherwise than their parameters, which stock's kernels do not look at: on copies, of which
// what the step writes is copied back (with a scale the gradients too, which it unscales). Says whether the kernels
// take those.
template <class Lr>
bool step_on_copies(const Lists& lists, const OptimizerArgs& a, const Lr& lr, MaybeTensor grad_scale,
                    MaybeTensor found_inf) {
  const auto parameters = contiguous(lists.parameters), grads = contiguous(lists.grads);
  std::vector<std::vector<Tensor>> state;
  for (const auto& list : lists.state) state.push_back(contiguous(list));
  const Lists copies{lists.kernel, parameters, grads, {state.begin(), state.end()}, lists.steps};
  if (fit(copies, lr, grad_scale, found_inf) != Handed::no) return false;
  if (given(grad_scale)) {
    for (const Tensor& grad : lists.grads) at::assert_no_internal_overlap(grad);  // before anything is written
  }
  on_cpu(parameters[0]) ? step_on_cpu(copies, a, lr, grad_scale, found_inf)
                        : step_on_device(copies, a, lr, grad_scale, found_inf);
  for (size_t i = 0; i < parameters.size(); ++i) {
    lists.parameters[i].copy_(parameters[i]);
    if (given(grad_scale)) lists.grads[i].copy_(grads[i]);
    for (size_t k = 0; k < state.size(); ++k) lists.state[k][i].copy_(state[k][i]);
  }
  return true;
}

// Runs the step here, or says that it is stock's to do.
template <class Lr>
bool runs_here(Stats& stats, const Lists& lists, const OptimizerArgs& a, const Lr& lr, MaybeTensor grad_scale,
               MaybeTensor found_inf) {
  const Handed reason = fit(lists, lr, grad_scale, found_inf);
  if (reason == Handed::layout && step_on_copies(lists, a, lr, grad_scale, found_inf)) {
    stats.count(Handed::no);
    return true;
  }
  stats.count(reason);
  if (lists.parameters.empty()) return true;
  if (reason != Handed::no) return false;
  on_cpu(lists.parameters[0]) ? step_on_cpu(lists, a, lr, grad_scale, found_inf)
                              : step_on_device(lists, a, lr, grad_scale, found_inf);
  return true;
}

// Adam, D. P. Kingma and J. Ba, 2015; its decay apart from the gradient, I. Loshchilov and F. Hutter, 2019; amsgrad,
// S. J. Reddi et al., 2018.
template <Name name, bool decoupled, class Stock, class Lr>
struct Adam {
  static void call(TensorList self, TensorList grads, TensorList exp_avgs, TensorList exp_avg_sqs,
                   TensorList max_exp_avg_sqs, TensorList steps, Lr lr, double beta1, double beta2, double weight_decay,
                   double eps, bool amsgrad, bool maximize, MaybeTensor grad_scale, MaybeTensor found_inf) {
    Lists lists{amsgrad ? optimizer::adam_amsgrad : optimizer::adam, self, grads, {exp_avgs, exp_avg_sqs}, steps};
    if (amsgrad) lists.state.push_back(max_exp_avg_sqs);
    OptimizerArgs a{};
    a.maximize = maximize;
    a.decoupled = decoupled;
    a.weight_decay = weight_decay;
    a.beta1 = beta1;
    a.beta2 = beta2;
    a.eps = eps;
    if (runs_here(stats<name>, lists, a, lr, grad_scale, found_inf)) return;
    Stock::call(device_type(self[0]), self, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, steps_beside(steps, self), lr,
                beta1, beta2, weight_decay, eps, amsgrad, maximize, grad_scale, found_inf);
  }
};

template <Name name, class Stock, class Lr>
struct Sgd {
  static void call(TensorList self, TensorList grads, TensorList buffers, double weight_decay, double momentum, Lr lr,
                   double dampening, bool nesterov, bool maximize, bool is_first_step, MaybeTensor grad_scale,
                   MaybeTensor found_inf) {
    Lists lists{optimizer::sgd, self, grads, {}, {}};
    if (momentum != 0) {
      lists.kernel = nesterov ? optimizer::sgd_nesterov : optimizer::sgd_momentum;
      lists.state.push_back(buffers);
    }
    OptimizerArgs a{};
    a.maximize = maximize;
    a.begins = is_first_step;
    a.weight_decay = weight_decay;
    a.beta1 = momentum;
    a.taken = 1 - dampening;
    if (runs_here(stats<name>, lists, a, lr, grad_scale, found_inf)) return;
    Stock::call(device_type(self[0]), self, grads, buffers, weight_decay, momentum, lr, dampening, nesterov, maximize,
                is_first_step, grad_scale, found_inf);
  }
};

// Adagrad, J. Duchi et al., 2011.
template <Name name, class Stock, class Lr>
struct Adagrad {
  static void call(TensorList self, TensorList grads, TensorList sums, TensorList steps, Lr lr, double lr_decay,
                   double weight_decay, double eps, bool maximize, MaybeTensor grad_scale, MaybeTensor found_inf) {
    const Lists lists{optimizer::adagrad, self, grads, {sums}, steps};
    OptimizerArgs a{};
    a.maximize = maximize;
    a.lr_decay = lr_decay;
    a.weight_decay = weight_decay;
    a.eps = eps;
    if (runs_here(stats<name>, lists, a, lr, grad_scale, found_inf)) return;
    Stock::call(device_type(self[0]), self, grads, sums, steps_beside(steps, self), lr, lr_decay, weight_decay, eps,
                maximize, grad_scale, found_inf);
  }
};

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
    Adam<name, decoupled, Stock, double>::call(self, grad, exp_avg, exp_avg_sq, largest, steps, lr, beta1, beta2,
                                               weight_decay, eps, amsgrad, maximize, std::nullopt, std::nullopt);
  }
};
template <Name name, class Stock>
struct SgdUpdate {
  static void call(const Tensor& self, const Tensor& grad, double lr, double weight_decay, bool maximize) {
    Sgd<name, Stock, double>::call(self, grad, {}, weight_decay, 0, lr, 0, false, maximize, false, std::nullopt,
                                   std::nullopt);
  }
};
template <Name name, class Stock>
struct SgdMomentumUpdate {
  static void call(const Tensor& self, const Tensor& grad, const Tensor& momentum_buffer, double lr, double momentum,
                   double dampening, double weight_decay, bool nesterov, bool maximize, bool is_first_step) {
    Sgd<name, Stock, double>::call(self, grad, momentum_buffer, weight_decay, momentum, lr, dampening, nesterov,
                                   maximize, is_first_step, std::nullopt, std::nullopt);
  }
};

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
using StockAdam = STOCK_AS(AdamSignature<double>, _fused_adam_);
using StockAdamw = STOCK_AS(AdamSignature<double>, _fused_adamw_);
using StockSgd = STOCK_AS(SgdSignature<double>, _fused_sgd_);

}  // namespace

#define FUSED(name, ...) \
  Row { name, &impl<__VA_ARGS__>, &stats<name> }

const Rows& optimizer_rows() {
  static const Rows rows = {
      FUSED("_fused_adam_", Adam<"_fused_adam_", false, StockAdam, double>),
      FUSED("_fused_adam_.tensor_lr",
            Adam<"_fused_adam_.tensor_lr", false, STOCK_AS(AdamSignature<const Tensor&>, _fused_adam_), const Tensor&>),
      FUSED("_fused_adamw_", Adam<"_fused_adamw_", true, StockAdamw, double>),
      FUSED(
          "_fused_adamw_.tensor_lr",
          Adam<"_fused_adamw_.tensor_lr", true, STOCK_AS(AdamSignature<const Tensor&>, _fused_adamw_), const Tensor&>),
      FUSED("_fused_sgd_", Sgd<"_fused_sgd_", StockSgd, double>),
      FUSED("_fused_sgd_.tensor_lr",
            Sgd<"_fused_sgd_.tensor_lr", STOCK_AS(SgdSignature<const Tensor&>, _fused_sgd_), const Tensor&>),
      FUSED("_fused_adagrad_", Adagrad<"_fused_adagrad_", STOCK_AS(AdagradSignature<double>, _fused_adagrad_), double>),
      FUSED("_fused_adagrad_.tensor_lr",
            Adagrad<"_fused_adagrad_.tensor_lr", STOCK_AS(AdagradSignature<const Tensor&>, _fused_adagrad_),
                    const Tensor&>),
      FUSED("sgd_update", SgdUpdate<"sgd_update", StockSgd>),
      FUSED("sgd_momentum_update", SgdMomentumUpdate<"sgd_momentum_update", StockSgd>),
      FUSED("adam_update", AdamUpdate<"adam_update", false, StockAdam>),
      FUSED("adamw_update", AdamUpdate<"adamw_update", true, StockAdamw>),
  };
  return rows;
}

}  // namespace rusttorch
