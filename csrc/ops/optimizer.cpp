#include "../kernels/optimizer.h"

#include <ATen/TensorIterator.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/full.h>

#include <cmath>

#include "families.h"
#include "lists.h"
#include "stock.h"

namespace rusttorch {
RUSTTORCH_DEFINE_FAMILY(optimizer)

namespace {

using at::TensorList;

// The lists of one call, each as long as the parameters'.
struct Lists {
  optimizer kernel;
  TensorList parameters, grads;
  std::vector<TensorList> state;
};

// Stock's CPU kernels read beyond the end of what is smaller than its parameter.
bool same_place(const Tensor& a, const Tensor& b) {
  TORCH_CHECK(a.sizes().equals(b.sizes()), "expected a gradient and a state of the parameter's shape ", a.sizes(),
              ", but got ", b.sizes());
  return b.layout() == at::kStrided && a.strides().equals(b.strides()) && a.device() == b.device();
}

Handed fit(const Lists& lists) {
  const size_t count = lists.parameters.size();
  if (lists.grads.size() != count) return Handed::option;  // stock raises
  for (const auto& list : lists.state) {
    if (list.size() != count) return Handed::option;
  }
  for (size_t i = 0; i < count; ++i) {
    const Tensor& p = lists.parameters[i];
    if (p.layout() != at::kStrided || !p.is_non_overlapping_and_dense()) return Handed::layout;
    if (!on_cpu(p)) return Handed::option;  // no device has kernels yet
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
  }
  return Handed::no;
}

// All parameters in one parallel region. `numbers` completes the arguments of the i-th.
template <class Numbers>
void step_all(const Lists& lists, const OptimizerArgs& common, Numbers numbers) {
  std::vector<OptimizerArgs> all(lists.parameters.size(), common);
  Parts parts;
  for (size_t i = 0; i < all.size(); ++i) {
    const Tensor& p = lists.parameters[i];
    OptimizerArgs& a = all[i];
    a.dtype = a.state_dtype = *dtype_of(p);
    a.p = p.mutable_data_ptr();
    a.g = lists.grads[i].const_data_ptr();
    for (size_t k = 0; k < lists.state.size(); ++k) {
      a.state_dtype = *dtype_of(lists.state[k][i]);
      a.state[k] = lists.state[k][i].mutable_data_ptr();
    }
    numbers(a, i);
    parts.add(p.numel());
  }
  const auto run = kernel(lists.kernel, c10::DeviceType::CPU).run;
  parts.run([&](int64_t, size_t i, int64_t first, int64_t n) {
    OptimizerArgs part = all[i];
    part.n = n;
    advance(part.p, first * element_size(part.dtype));
    advance(part.g, first * element_size(part.dtype));
    for (auto*& s : part.state) advance(s, first * element_size(part.state_dtype));
    run(part);
  });
}

// What all fused optimizers do first: nothing where a gradient was not finite; and the gradients divided by their
// scale.
bool skips(MaybeTensor found_inf) { return given(found_inf) && found_inf->item<double>() == 1; }
void unscale(TensorList grads, MaybeTensor grad_scale) {
  if (!given(grad_scale)) return;
  for (const Tensor& g : grads) g.div_(*grad_scale);
}

double number(double x) { return x; }
// (item() goes through the dispatcher, which a step of a thousand parameters would notice.)
double number(const Tensor& x) {
  const bool here = x.is_cpu() && x.scalar_type() == at::kFloat && x.numel() == 1;
  return here ? double(*x.const_data_ptr<float>()) : x.item<double>();
}

// Adam, D. P. Kingma and J. Ba, 2015; its decay apart from the gradient, I. Loshchilov and F. Hutter, 2019; amsgrad,
// S. J. Reddi et al., 2018.
template <Name name, bool decoupled, class Stock, class Lr>
struct Adam {
  static void call(TensorList self, TensorList grads, TensorList exp_avgs, TensorList exp_avg_sqs,
                   TensorList max_exp_avg_sqs, TensorList steps, Lr lr, double beta1, double beta2, double weight_decay,
                   double eps, bool amsgrad, bool maximize, MaybeTensor grad_scale, MaybeTensor found_inf) {
    Lists lists{amsgrad ? optimizer::adam_amsgrad : optimizer::adam, self, grads, {exp_avgs, exp_avg_sqs}};
    if (amsgrad) lists.state.push_back(max_exp_avg_sqs);
    const Handed reason = steps.size() == self.size() ? fit(lists) : Handed::option;
    stats<name>.count(reason);
    if (reason != Handed::no) {
      if (self.empty()) return;
      return Stock::call(device_type(self[0]), self, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, steps, lr, beta1,
                         beta2, weight_decay, eps, amsgrad, maximize, grad_scale, found_inf);
    }
    if (skips(found_inf)) return;
    unscale(grads, grad_scale);
    const double rate = number(lr);
    OptimizerArgs common{};
    common.maximize = maximize;
    common.weight_decay = decoupled ? 0 : weight_decay;
    common.kept = decoupled ? 1 - rate * weight_decay : 1;
    common.beta1 = beta1;
    common.beta2 = beta2;
    common.eps = eps;
    double last = 0;  // most parameters are as many steps old as the one before
    step_all(lists, common, [&](OptimizerArgs& a, size_t i) {
      const double step = number(steps[i]);
      if (step != last) {
        common.lr = rate / (1 - std::pow(beta1, step));
        common.correction = 1 / std::sqrt(1 - std::pow(beta2, step));
        last = step;
      }
      a.lr = common.lr;
      a.correction = common.correction;
    });
  }
};

template <Name name, class Stock, class Lr>
struct Sgd {
  static void call(TensorList self, TensorList grads, TensorList buffers, double weight_decay, double momentum, Lr lr,
                   double dampening, bool nesterov, bool maximize, bool is_first_step, MaybeTensor grad_scale,
                   MaybeTensor found_inf) {
    Lists lists{optimizer::sgd, self, grads, {}};
    if (momentum != 0) {
      lists.kernel = nesterov ? optimizer::sgd_nesterov : optimizer::sgd_momentum;
      lists.state.push_back(buffers);
    }
    const Handed reason = fit(lists);
    stats<name>.count(reason);
    if (reason != Handed::no) {
      if (self.empty()) return;
      return Stock::call(device_type(self[0]), self, grads, buffers, weight_decay, momentum, lr, dampening, nesterov,
                         maximize, is_first_step, grad_scale, found_inf);
    }
    if (skips(found_inf)) return;
    unscale(grads, grad_scale);
    OptimizerArgs common{};
    common.maximize = maximize;
    common.begins = is_first_step;
    common.lr = number(lr);
    common.weight_decay = weight_decay;
    common.kept = 1;
    common.beta1 = momentum;
    common.taken = 1 - dampening;
    step_all(lists, common, [](OptimizerArgs&, size_t) {});
  }
};

// Adagrad, J. Duchi et al., 2011.
template <Name name, class Stock, class Lr>
struct Adagrad {
  static void call(TensorList self, TensorList grads, TensorList sums, TensorList steps, Lr lr, double lr_decay,
                   double weight_decay, double eps, bool maximize, MaybeTensor grad_scale, MaybeTensor found_inf) {
    const Lists lists{optimizer::adagrad, self, grads, {sums}};
    const Handed reason = steps.size() == self.size() ? fit(lists) : Handed::option;
    stats<name>.count(reason);
    if (reason != Handed::no) {
      if (self.empty()) return;
      return Stock::call(device_type(self[0]), self, grads, sums, steps, lr, lr_decay, weight_decay, eps, maximize,
                         grad_scale, found_inf);
    }
    if (skips(found_inf)) return;
    unscale(grads, grad_scale);
    const double rate = number(lr);
    OptimizerArgs common{};
    common.maximize = maximize;
    common.weight_decay = weight_decay;
    common.kept = 1;
    common.eps = eps;
    step_all(lists, common, [&](OptimizerArgs& a, size_t i) { a.lr = rate / (1 + (number(steps[i]) - 1) * lr_decay); });
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
