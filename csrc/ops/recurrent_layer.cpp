#include "recurrent_layer.h"

#include <ATen/ops/addmm.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>

#include "../kernels/recurrent_steps.h"
#include "matmul.h"
#include "stock.h"

namespace rusttorch {
namespace {

const RecurrentMode& mode_of(c10::string_view name) {
  for (const RecurrentMode* mode : {&gru, &lstm, &rnn_tanh, &rnn_relu}) {
    if (mode->name == name) return *mode;
  }
  TORCH_CHECK_VALUE(false, "unknown mode '", name, "': gru, lstm, rnn_tanh or rnn_relu");
}

// Whether they are sizes of a packed sequence of so many rows, of which the first step has as many as there are states.
bool fits_packed(const Tensor& batch_sizes, int64_t rows, int64_t states) {
  if (batch_sizes.scalar_type() != at::kLong || batch_sizes.dim() != 1 || !batch_sizes.is_contiguous()) return false;
  // Not in a trace, where there are no numbers yet.
  constexpr c10::DispatchKeySet traced({c10::DispatchKey::Python, c10::DispatchKey::Functionalize});
  if (!batch_sizes.is_cpu() || batch_sizes.key_set().has_any(traced) || batch_sizes.numel() == 0) return false;
  const int64_t* const sizes = batch_sizes.const_data_ptr<int64_t>();
  int64_t sum = 0, last = states;
  for (int64_t t = 0; t < batch_sizes.size(0); ++t) {
    if (sizes[t] < 1 || sizes[t] > last) return false;
    sum += last = sizes[t];
  }
  return sizes[0] == states && sum == rows;
}

}  // namespace

Handed RecurrentSequences::reason(int64_t input_dim, int64_t batch_dim, int64_t states_dim) const {
  if (!hx || !cx == mode.is_lstm() || !are_readable(all())) return Handed::option;
  if (input.dim() != (batch_sizes ? 2 : input_dim) || hx->dim() != states_dim) return Handed::option;
  const auto but_last = [&](const Tensor& t) { return t.sizes().slice(0, states_dim - 1); };
  if (cx && (cx->dim() != states_dim || !but_last(*cx).equals(but_last(*hx)))) return Handed::option;
  if (input.numel() == 0 || hx->numel() == 0 || hidden() == 0) return Handed::size;
  const bool fits =
      batch_sizes ? fits_packed(*batch_sizes, input.size(0), hx->size(-2)) : input.size(batch_dim) == hx->size(-2);
  return fits ? Handed::no : Handed::option;
}

namespace {

// Input [T, B, I], or packed [N, I]; hx [B, P], cx [B, H].
struct Layer : RecurrentSequences {
  RecurrentWeights weights;

  int64_t width() const { return mode.gates * hidden(); }
  at::DimVector output_sizes() const {
    at::DimVector sizes(input.sizes());
    sizes.back() = projected();
    return sizes;
  }
  Tensor rows() const { return input.contiguous().view({-1, input.size(-1)}); }
  std::vector<RecurrentStep> steps(bool reverse) const {
    if (!batch_sizes) return recurrent_steps(input.size(0), input.size(1), nullptr, reverse);
    return recurrent_steps(batch_sizes->size(0), 0, batch_sizes->const_data_ptr<int64_t>(), reverse);
  }

  void check(const char* op) const {
    const auto type = input.scalar_type();
    const bool fits = reason(/*input_dim=*/3, /*batch_dim=*/1, /*states_dim=*/2) == Handed::no &&
                      are_of(type, all(), own_type) && are_readable(weights.all()) &&
                      are_of(type, weights.all(), own_type) &&
                      weights.fit(mode.gates, input.size(-1), hidden(), projected());
    TORCH_CHECK(fits, op,
                ": expected input [T, B, I], or [N, I] with batch_sizes, hx [B, H] (of an LSTM with a "
                "projection [B, P]), of an LSTM cx [B, H], and weights and biases of [",
                mode.gates,
                " H, ...], on the "
                "CPU and of one floating-point type; ",
                mode.name, " takes all");
  }
};

// out = a @ b, plus what is added, by this package's kernel or stock's.
void multiply(Tensor out, const Tensor& a, const Tensor& b, const Tensor* added = nullptr) {
  const MatmulRequest request{a, b, 2, 2, added};
  if (MatmulPlan plan(request); plan.reason() == Handed::no) {
    plan.run(out);
  } else if (added) {
    at::cpu::addmm_out(out, *added, a, b);
  } else {
    at::cpu::mm_out(out, a, b);
  }
}

Tensor product(const Tensor& a, const Tensor& b) {
  const Tensor out = empty_beside(a, {a.size(0), b.size(1)}, a.scalar_type());
  multiply(out, a, b);
  return out;
}

// What all steps multiply with: packed, where rows and steps repay that, by measurement (Zen 4, one core).
class StepWeight {
 public:
  StepWeight(const Layer& layer, Tensor weight, size_t steps) : weight_(std::move(weight)) {
    if (layer.hx->size(0) >= 4 && steps >= 4 && PackedMatrix::is_taken(*dtype_of(weight_))) packed_.emplace(weight_);
  }
  // out = rows @ weight, plus what is added.
  void multiply(const Tensor& out, const Tensor& rows, const Tensor* added = nullptr) const {
    packed_ ? packed_->multiply(out, rows, added) : rusttorch::multiply(out, rows, weight_, added);
  }

 private:
  Tensor weight_;
  std::optional<PackedMatrix> packed_;
};

RecurrentArgs arguments(const Layer& layer) {
  RecurrentArgs args{};
  args.dtype = *dtype_of(layer.input);
  args.hidden = layer.hidden();
  args.gates = layer.mode.gates;
  return args;
}

void run_step(const Layer& layer, recurrent which, const RecurrentArgs& args) {
  run_items(layer.input, kernel(which).on(Device::cpu), args, args.rows, layer.width());
}

// What the derivative reads: the states, [N, P], which are the output, but nobody changes them; of a GRU or LSTM the
// gates, [N, gates H], and of each of its inner numbers, [N, H], of a GRU the part of the new state that the reset gate
// is multiplied with, of an LSTM the new cell; and what is projected, [N, H].
struct Reserve {
  Tensor states, gates, inner, unprojected;

  static int64_t size(const Layer& layer, int64_t rows) {
    const int64_t units = (layer.mode.is_gated() ? layer.mode.gates + 1 : 0) + (layer.weights.hr ? 1 : 0);
    return rows * (layer.projected() + units * layer.hidden());
  }
  Reserve() = default;
  Reserve(const Tensor& reserve, const Layer& layer, int64_t rows) {
    int64_t begin = 0;
    const auto next = [&](int64_t width) {
      const int64_t size = rows * width;
      return reserve.narrow(0, std::exchange(begin, begin + size), size).view({rows, width});
    };
    states = next(layer.projected());
    if (layer.mode.is_gated()) gates = next(layer.width()), inner = next(layer.hidden());
    if (layer.weights.hr) unprojected = next(layer.hidden());
  }
  void put_into(RecurrentArgs& args) const {
    args.kept = states.mutable_data_ptr();
    if (!gates.defined()) return;
    args.x = gates.mutable_data_ptr();
    args.inner = inner.mutable_data_ptr();
  }
};

// The states (or cells) before each step, [N, width], of which `first` are those before all.
Tensor before_steps(const std::vector<RecurrentStep>& steps, const Tensor& first, const Tensor& states) {
  const int64_t row = states.size(1) * states.element_size();
  const Tensor hx = first.contiguous();
  const Tensor before = empty_beside(states, states.sizes(), states.scalar_type());
  char* const to = static_cast<char*>(before.mutable_data_ptr());
  const char *from = static_cast<const char*>(states.const_data_ptr()),
             *begin = static_cast<const char*>(hx.const_data_ptr());
  RecurrentStep last{0, 0};
  for (const RecurrentStep& step : steps) {
    const int64_t had = std::min(step.rows, last.rows);  // a step before; the others begin here
    std::copy_n(from + last.begin * row, had * row, to + step.begin * row);
    std::copy_n(begin + had * row, (step.rows - had) * row, to + (step.begin + had) * row);
    last = step;
  }
  return before;
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> rnn_layer_forward(const Tensor& input, const Tensor& hx, MaybeTensor cx,
                                                             const Tensor& weight_ih, const Tensor& weight_hh,
                                                             MaybeTensor bias_ih, MaybeTensor bias_hh,
                                                             MaybeTensor weight_hr, MaybeTensor batch_sizes,
                                                             c10::string_view mode, bool reverse, bool differentiate) {
  stats<"rnn_layer_forward">.count(Handed::no);
  const Layer layer{{input, &hx, maybe(cx), maybe(batch_sizes), mode_of(mode)},
                    {weight_ih, weight_hh, maybe(bias_ih), maybe(bias_hh), maybe(weight_hr)}};
  layer.check("rnn_layer_forward");
  const Tensor x = layer.rows(), state = hx.clone(at::MemoryFormat::Contiguous);
  const int64_t n = x.size(0), hidden = layer.hidden(), width = layer.width();
  const auto type = input.scalar_type();
  const Tensor cell = layer.cx ? layer.cx->clone(at::MemoryFormat::Contiguous) : empty_beside(input, {0}, type);
  const Tensor output = empty_beside(input, layer.output_sizes(), type), outputs = output.view({n, layer.projected()});

  const Tensor reserve = empty_beside(input, {differentiate ? Reserve::size(layer, n) : 0}, type);
  const Reserve kept = differentiate ? Reserve(reserve, layer, n) : Reserve();
  const Tensor by_input = kept.gates.defined()    ? kept.gates
                          : layer.mode.is_gated() ? empty_beside(input, {n, width}, type)
                                                  : outputs;
  multiply(by_input, x, weight_ih.t());

  const Tensor by_state = empty_beside(input, {hx.size(0), width}, type);
  RecurrentArgs all = arguments(layer);
  all.x = by_input.mutable_data_ptr();
  const auto dense = [](const Tensor* bias) { return bias ? bias->contiguous() : Tensor(); };
  const Tensor bias_x = dense(layer.weights.bias_ih), bias_h = dense(layer.weights.bias_hh);
  if (bias_x.defined()) all.bias_x = bias_x.const_data_ptr(), all.bias_h = bias_h.const_data_ptr();
  all.output = output.mutable_data_ptr();
  if (differentiate) kept.put_into(all);
  Tensor unprojected;
  if (layer.weights.hr) {
    unprojected = differentiate ? kept.unprojected : empty_beside(input, {n, hidden}, type);
    all.output = unprojected.mutable_data_ptr();
    all.kept = nullptr;
  }
  const auto steps = layer.steps(reverse);
  const StepWeight weight(layer, weight_hh.t(), steps.size());
  Tensor before, sums;  // rows of the states and of their products
  int64_t rows = 0;
  for (const RecurrentStep& step : steps) {
    if (step.rows != rows) {
      rows = step.rows;
      before = state.narrow(0, 0, rows);
      sums = by_state.narrow(0, 0, rows);
    }
    weight.multiply(sums, before);
    RecurrentArgs args = all.part(step.begin, step.begin + step.rows);
    args.h = by_state.const_data_ptr();
    args.state = unprojected.defined() ? args.output : state.mutable_data_ptr();
    args.cell = cell.mutable_data_ptr();
    run_step(layer, layer.mode.forward, args);
    if (!unprojected.defined()) continue;
    const Tensor to = outputs.narrow(0, step.begin, rows);
    multiply(to, unprojected.narrow(0, step.begin, rows), layer.weights.hr->t());
    state.narrow(0, 0, rows).copy_(to);
  }
  if (kept.unprojected.defined()) kept.states.copy_(outputs);
  return {output, state, cell, reserve};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> rnn_layer_backward(
    MaybeTensor grad_output, MaybeTensor grad_hn, MaybeTensor grad_cn, const Tensor& input, const Tensor& hx,
    MaybeTensor cx, const Tensor& weight_ih, const Tensor& weight_hh, MaybeTensor weight_hr, MaybeTensor batch_sizes,
    const Tensor& reserve, c10::string_view mode, bool reverse, std::array<bool, 8> wanted) {
  stats<"rnn_layer_backward">.count(Handed::no);
  const Layer layer{{input, &hx, maybe(cx), maybe(batch_sizes), mode_of(mode)},
                    {weight_ih, weight_hh, nullptr, nullptr, maybe(weight_hr)}};
  layer.check("rnn_layer_backward");
  const Tensor x = layer.rows();
  const Tensor* const hr = layer.weights.hr;
  const int64_t n = x.size(0), hidden = layer.hidden(), width = layer.width();
  const auto type = input.scalar_type();
  const auto fits = [&](const Tensor& t, at::IntArrayRef sizes) {
    return t.scalar_type() == type && on_cpu(t) && t.sizes().equals(sizes);
  };
  TORCH_CHECK(
      fits(reserve, {Reserve::size(layer, n)}) && reserve.is_contiguous() &&
          (!given(grad_output) || fits(*grad_output, layer.output_sizes())) &&
          (!given(grad_hn) || fits(*grad_hn, hx.sizes())) &&
          (!given(grad_cn) || (layer.cx && fits(*grad_cn, cx->sizes()))),
      "rnn_layer_backward: expected the reserve of rnn_layer_forward with differentiate, and its results' gradients");

  const auto steps = layer.steps(reverse);
  const Reserve kept(reserve, layer, n);
  const Tensor states = before_steps(steps, hx, kept.states);
  const Tensor grad_x = empty_beside(input, {n, width}, type);
  const Tensor grad_h = layer.mode.is_gru() ? empty_beside(input, {n, width}, type) : grad_x;
  const auto gradient = [](MaybeTensor grad, const Tensor& of) {
    return given(grad) ? grad->clone(at::MemoryFormat::Contiguous) : at::zeros(of.sizes(), of.options());
  };
  const Tensor grad_state = gradient(grad_hn, hx), grad_cell = layer.cx ? gradient(grad_cn, *cx) : Tensor();
  const Tensor grad_y = given(grad_output) ? grad_output->contiguous().view(kept.states.sizes()) : Tensor();
  // Of a projection: the gradients of what it gives, and in a step of what it is of.
  const Tensor projected = hr ? at::empty_like(kept.states) : Tensor();
  const Tensor unprojected = hr ? empty_beside(input, {hx.size(0), hidden}, type) : Tensor();
  RecurrentArgs all = arguments(layer);
  kept.put_into(all);
  const Tensor before = layer.cx ? before_steps(steps, *cx, kept.inner) : states;
  all.before = before.const_data_ptr();
  all.grad = grad_y.defined() && !hr ? grad_y.const_data_ptr() : nullptr;
  all.grad_x = grad_x.mutable_data_ptr();
  all.grad_h = grad_h.mutable_data_ptr();
  const StepWeight weight(layer, weight_hh, steps.size());
  for (auto step = steps.rbegin(); step != steps.rend(); ++step) {
    const auto [begin, rows] = *step;
    const Tensor grad = grad_state.narrow(0, 0, rows);
    RecurrentArgs args = all.part(begin, begin + rows);
    args.state = grad_state.mutable_data_ptr();
    if (layer.cx) args.cell = grad_cell.mutable_data_ptr();
    if (hr) {
      const Tensor sum = projected.narrow(0, begin, rows);
      sum.copy_(grad);
      if (grad_y.defined()) sum.add_(grad_y.narrow(0, begin, rows));
      multiply(unprojected.narrow(0, 0, rows), sum, *hr);
      args.state = unprojected.mutable_data_ptr();
    }
    run_step(layer, layer.mode.backward, args);
    if (std::next(step) == steps.rend() && !wanted[1]) break;
    weight.multiply(grad, grad_h.narrow(0, begin, rows), layer.mode.is_gru() ? &grad : nullptr);
  }

  // It lies as stock's does.
  const auto by_weight = [](const Tensor& weight, const Tensor& grad, const Tensor& of) {
    const bool is_dense = weight.stride(1) == 1 && weight.stride(0) == weight.size(1);
    return is_dense ? product(grad.t(), of) : product(of.t(), grad).t();
  };
  const Tensor by_bias = wanted[5] || wanted[6] ? grad_x.sum(0) : Tensor();
  const auto want = [&](size_t k, auto f) { return wanted[k] ? Tensor(f()) : Tensor(); };
  return {want(0, [&] { return product(grad_x, weight_ih).view(input.sizes()); }),
          want(1, [&] { return grad_state; }),
          want(2, [&] { return grad_cell; }),
          want(3, [&] { return by_weight(weight_ih, grad_x, x); }),
          want(4, [&] { return by_weight(weight_hh, grad_h, states); }),
          want(5, [&] { return by_bias; }),
          want(6, [&] { return layer.mode.is_gru() ? grad_h.sum(0) : by_bias.clone(); }),
          want(7, [&] { return hr ? by_weight(*hr, projected, kept.unprojected) : Tensor(); })};
}

}  // namespace rusttorch
