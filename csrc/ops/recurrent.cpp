#include "../kernels/recurrent.h"

#include <ATen/Context.h>
#include <ATen/autocast_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/dropout.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>

#include <memory>

#include "../kernels/recurrent_steps.h"
#include "decomposed.h"
#include "matmul.h"

namespace rusttorch {
namespace {

// GRUs (K. Cho et al., 2014), LSTMs (S. Hochreiter and J. Schmidhuber, 1997; with projections H. Sak et al., 2014) and
// Elman's RNNs. aten makes some ten ops of each step, but for oneDNN's LSTMs; here
//   gru, lstm, ...       if RecurrentPlan says that the kernels take it, layer by layer (by_layers); or stock's
//                        decomposition
//   rnn_layer_forward    one layer in one direction: its input's products for all steps at once, then in each step one
//                        product and one kernel. Its derivative is in autograd/recurrent.cpp, and from there
//   rnn_layer_backward   the steps back, and then one product for each gradient.

using TwoTensors = std::tuple<Tensor, Tensor>;
using ThreeTensors = std::tuple<Tensor, Tensor, Tensor>;
using FourTensors = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using EightTensors = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

struct Mode {
  c10::string_view name;
  int64_t gates;
  recurrent forward, backward;

  constexpr bool is_gated() const { return gates > 1; }
  constexpr bool is_gru() const { return forward == recurrent::gru; }
  constexpr bool is_lstm() const { return forward == recurrent::lstm; }
};
constexpr Mode gru{"gru", 3, recurrent::gru, recurrent::gru_backward};
constexpr Mode lstm{"lstm", 4, recurrent::lstm, recurrent::lstm_backward};
constexpr Mode rnn_tanh{"rnn_tanh", 1, recurrent::rnn_tanh, recurrent::rnn_tanh_backward};
constexpr Mode rnn_relu{"rnn_relu", 1, recurrent::rnn_relu, recurrent::rnn_relu_backward};

const Mode& mode_of(c10::string_view name) {
  for (const Mode* mode : {&gru, &lstm, &rnn_tanh, &rnn_relu}) {
    if (mode->name == name) return *mode;
  }
  TORCH_CHECK_VALUE(false, "unknown mode '", name, "': gru, lstm, rnn_tanh or rnn_relu");
}

// Whether a kernel takes it, among others of that type.
Handed reason_of(const Tensor& t, at::ScalarType type) {
  if (!on_cpu(t) || t.layout() != at::kStrided || !is_plain(t)) return Handed::option;
  return t.scalar_type() == type && dtype_of(t) && at::isFloatingType(type) ? Handed::no : Handed::dtype;
}

Handed reason_of(std::initializer_list<const Tensor*> tensors, at::ScalarType type) {
  for (const Tensor* t : tensors) {
    if (!t) continue;
    if (const Handed reason = reason_of(*t, type); reason != Handed::no) return reason;
  }
  return Handed::no;
}

// Of one layer in one direction: [gates H, I] and [gates H, P], biases or none, and of an LSTM whose states are
// projected from H units to P [P, H], else none.
struct Weights {
  const Tensor &ih, &hh;
  const Tensor *bias_ih, *bias_hh, *hr;

  Handed reason(at::ScalarType type, int64_t gates, int64_t inputs, int64_t hidden, int64_t projected) const {
    if (const Handed reason = reason_of({&ih, &hh, bias_ih, bias_hh, hr}, type); reason != Handed::no) return reason;
    const int64_t width = gates * hidden;
    const auto fits = [&](const Tensor* bias) { return !bias || bias->sizes().equals({width}); };
    const bool fit = ih.sizes().equals({width, inputs}) && hh.sizes().equals({width, projected}) && fits(bias_ih) &&
                     fits(bias_hh) && !bias_ih == !bias_hh &&
                     (hr ? hr->sizes().equals({projected, hidden}) : projected == hidden);
    return fit ? Handed::no : Handed::option;
  }
};

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

const Tensor* maybe(MaybeTensor t) { return given(t) ? &*t : nullptr; }

// What goes through a layer, or through several: the input [T, B, I] (or turned, or packed [N, I] with its batch_sizes,
// or of a cell [B, I]), the states [..., B, P], and of an LSTM its cells [..., B, H].
struct Sequences {
  const Tensor &input, *hx, *cx;
  const Tensor* batch_sizes;
  const Mode& mode;

  // Whether a kernel takes them: the input has so many dims, of which one is B; the states so many.
  Handed reason(int64_t input_dim, int64_t batch_dim, int64_t states_dim) const {
    if (!hx || !cx == mode.is_lstm()) return Handed::option;
    if (const Handed reason = reason_of({&input, hx, cx}, input.scalar_type()); reason != Handed::no) return reason;
    if (input.dim() != (batch_sizes ? 2 : input_dim) || hx->dim() != states_dim) return Handed::option;
    if (cx &&
        (cx->dim() != states_dim || !cx->sizes().slice(0, states_dim - 1).equals(hx->sizes().slice(0, states_dim - 1))))
      return Handed::option;
    if (input.numel() == 0 || hx->numel() == 0 || hidden() == 0) return Handed::size;
    const bool fits =
        batch_sizes ? fits_packed(*batch_sizes, input.size(0), hx->size(-2)) : input.size(batch_dim) == hx->size(-2);
    return fits ? Handed::no : Handed::option;
  }

  int64_t projected() const { return hx->size(-1); }
  int64_t hidden() const { return (cx ? cx : hx)->size(-1); }
};

// One layer in one direction: input [T, B, I], or packed [N, I]; hx [B, P], cx [B, H].
struct Layer : Sequences {
  Weights weights;

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

  Handed reason_of_weights() const {
    return weights.reason(input.scalar_type(), mode.gates, input.size(-1), hidden(), projected());
  }
  void check(const char* op) const {
    const bool fits =
        reason(/*input_dim=*/3, /*batch_dim=*/1, /*states_dim=*/2) == Handed::no && reason_of_weights() == Handed::no;
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

// -> the output, the last states, of an LSTM the last cells, and the reserve: empty if it is not wanted.
FourTensors forward(const Tensor& input, const Tensor& hx, MaybeTensor cx, const Tensor& weight_ih,
                    const Tensor& weight_hh, MaybeTensor bias_ih, MaybeTensor bias_hh, MaybeTensor weight_hr,
                    MaybeTensor batch_sizes, c10::string_view mode, bool reverse, bool differentiate) {
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

// The gradients of the eight tensors that may have one, as wanted; those that are not are undefined.
EightTensors backward(MaybeTensor grad_output, MaybeTensor grad_hn, MaybeTensor grad_cn, const Tensor& input,
                      const Tensor& hx, MaybeTensor cx, const Tensor& weight_ih, const Tensor& weight_hh,
                      MaybeTensor weight_hr, MaybeTensor batch_sizes, const Tensor& reserve, c10::string_view mode,
                      bool reverse, std::array<bool, 8> wanted) {
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

class RecurrentPlan;

// Tensors that a request is of.
struct RecurrentInputs {
  Tensor input, hx, cx;
  std::vector<Tensor> params;
};

// Layers in one or both directions, as aten has them.
struct RecurrentRequest {
  using Plan = RecurrentPlan;
  Sequences sequences;
  at::TensorList params;
  bool has_biases;
  int64_t layers;
  double dropout;
  bool train, bidirectional, batch_first;
  std::shared_ptr<const RecurrentInputs> cast = nullptr;  // what the tensors above are of, if they were cast

  Device device() const { return device_type(sequences.input); }
  int64_t directions() const { return bidirectional ? 2 : 1; }
  // How many layers there are, in each direction one.
  int64_t count() const { return layers * directions(); }
  bool is_differentiated() const {
    const auto requires_grad = [](const Tensor& t) { return t.requires_grad(); };
    return rusttorch::is_differentiated({&sequences.input, sequences.hx, sequences.cx}) ||
           (c10::GradMode::is_enabled() && std::any_of(params.begin(), params.end(), requires_grad));
  }
  bool has_projections() const { return sequences.projected() != sequences.hidden(); }
  int64_t params_each() const { return 2 + (has_biases ? 2 : 0) + (has_projections() ? 1 : 0); }
  Weights weights(int64_t k) const {
    const at::TensorList p = params.slice(k * params_each(), params_each());
    return {p[0], p[1], has_biases ? &p[2] : nullptr, has_biases ? &p[3] : nullptr,
            has_projections() ? &p.back() : nullptr};
  }
};

// Whether stock has an LSTM of oneDNN's for it, of that type.
bool is_onednn_s(const RecurrentRequest& r, at::ScalarType type) {
  const Sequences& s = r.sequences;
  if (!s.mode.is_lstm() || r.has_projections() || !at::globalContext().userEnabledMkldnn()) return false;
  if (s.batch_sizes) {
    const int64_t* const sizes = s.batch_sizes->const_data_ptr<int64_t>();
    if (sizes[s.batch_sizes->size(0) - 1] != sizes[0]) return false;
  }
  switch (type) {
    case at::kFloat: return true;
    case at::kBFloat16: return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
    case at::kHalf: return !c10::GradMode::is_enabled() && __builtin_cpu_supports("avx512fp16");
    default: return false;
  }
}

// And it is faster: ours is at 1.07 to 3.7 in training and of few rows, at 0.85 to 1.1 of many, by measurement (Zen 4,
// one core). With AMX ours is at 1.3 to 5.6 in training, and in inference at 1 to 1.9 of many units, at 0.83 to 0.98 of
// few.
bool onednn_is_faster(const RecurrentRequest& r) {
  const Tensor& input = r.sequences.input;
  if (!is_onednn_s(r, input.scalar_type())) return false;
  if (!PackedMatrix::is_taken(*dtype_of(input))) return true;
  if (r.is_differentiated()) return false;
  if (has_squares(*dtype_of(input))) return r.sequences.hidden() < 512;
  return r.sequences.hx->size(1) >= (input.scalar_type() == at::kFloat ? 32 : 16);
}

// Decides only: what runs is rnn_layer_forward.
class RecurrentPlan {
 public:
  explicit RecurrentPlan(const RecurrentRequest& request) : reason_(fit(request)) {}

  Handed reason() const { return reason_; }

 private:
  static Handed fit(const RecurrentRequest& r) {
    if (at::autocast::is_autocast_enabled(at::kCPU) && !r.cast) return Handed::option;
    const Sequences& s = r.sequences;
    const Handed reason = s.reason(/*input_dim=*/3, /*batch_dim=*/r.batch_first ? 0 : 1, /*states_dim=*/3);
    if (reason != Handed::no) return reason;
    if (r.layers < 1 || r.layers > int64_t(r.params.size()) || s.hx->size(0) != r.count() ||
        int64_t(r.params.size()) != r.count() * r.params_each()) {
      return Handed::option;
    }
    for (int64_t k = 0; k < r.count(); ++k) {
      const int64_t inputs = k < r.directions() ? s.input.size(-1) : r.directions() * s.projected();
      const Handed reason = r.weights(k).reason(s.input.scalar_type(), s.mode.gates, inputs, s.hidden(), s.projected());
      if (reason != Handed::no) return reason;
    }
    return onednn_is_faster(r) ? Handed::size : Handed::no;
  }

  Handed reason_;
};

// In training under autocast: cast as stock's, where all of that is of autocast's dtype: RNNs, oneDNN's LSTMs, and what
// has states of that dtype. (Of others stock casts the products alone. Without a gradient autocast would not keep the
// weights that it has cast, and they would be cast at each look at the call.) float64 is not cast.
RecurrentRequest as_autocast(RecurrentRequest r) {
  const Sequences& s = r.sequences;
  if (!at::autocast::is_autocast_enabled(at::kCPU) || !s.hx || !s.cx == s.mode.is_lstm()) return r;
  const at::ScalarType dtype = at::autocast::get_autocast_dtype(at::kCPU);
  const bool has_states = s.hx->scalar_type() == dtype && (!s.cx || s.cx->scalar_type() == dtype);
  const bool is_cast = has_states || !s.mode.is_gated() || is_onednn_s(r, dtype);
  if (!is_cast || !r.is_differentiated()) return r;
  const auto cast = [&](const Tensor& t) { return at::autocast::cached_cast(dtype, t, c10::DeviceType::CPU); };
  const auto inputs = std::make_shared<RecurrentInputs>();
  inputs->input = cast(s.input);
  inputs->hx = cast(*s.hx);
  if (s.cx) inputs->cx = cast(*s.cx);
  for (const Tensor& t : r.params) inputs->params.push_back(cast(t));
  return {{inputs->input, &inputs->hx, s.cx ? &inputs->cx : nullptr, s.batch_sizes, s.mode},
          inputs->params,
          r.has_biases,
          r.layers,
          r.dropout,
          r.train,
          r.bidirectional,
          r.batch_first,
          inputs};
}

// rnn_layer_forward, which has a derivative: the output, the last states and cells.
ThreeTensors run_layer(const Layer& l, bool reverse) {
  using LayerForward =
      OwnOp<"rnn_layer_forward",
            FourTensors (*)(const Tensor&, const Tensor&, MaybeTensor, const Tensor&, const Tensor&, MaybeTensor,
                            MaybeTensor, MaybeTensor, MaybeTensor, c10::string_view, bool, bool)>;
  const auto optional = [](const Tensor* t) { return t ? std::optional(*t) : std::nullopt; };
  const Weights& w = l.weights;
  const bool differentiate = is_differentiated({&l.input, l.hx, l.cx, &w.ih, &w.hh, w.bias_ih, w.bias_hh, w.hr});
  auto [output, hn, cn, reserve] =
      LayerForward::call(l.input, *l.hx, optional(l.cx), w.ih, w.hh, optional(w.bias_ih), optional(w.bias_hh),
                         optional(w.hr), optional(l.batch_sizes), l.mode.name, reverse, differentiate);
  return {std::move(output), std::move(hn), std::move(cn)};
}

ThreeTensors by_layers(const RecurrentRequest& r) {
  const Sequences& s = r.sequences;
  const std::vector<Tensor> states = s.hx->unbind(0), cells = s.cx ? s.cx->unbind(0) : std::vector<Tensor>();
  std::vector<Tensor> last_states, last_cells;
  Tensor x = r.batch_first ? s.input.transpose(0, 1) : s.input;
  for (int64_t layer = 0; layer < r.layers; ++layer) {
    if (layer > 0 && r.dropout != 0 && r.train) x = at::dropout(x, r.dropout, /*train=*/true);
    std::vector<Tensor> outputs;
    for (const bool reverse : {false, true}) {
      if (reverse && !r.bidirectional) break;
      const size_t k = last_states.size();
      auto [output, hn, cn] = run_layer(
          {{x, &states[k], s.cx ? &cells[k] : nullptr, s.batch_sizes, s.mode}, r.weights(int64_t(k))}, reverse);
      outputs.push_back(std::move(output));
      last_states.push_back(std::move(hn));
      last_cells.push_back(std::move(cn));
    }
    x = r.bidirectional ? at::cat(outputs, -1) : outputs[0];
  }
  return {r.batch_first ? x.transpose(0, 1) : x, at::stack(last_states, 0), s.cx ? at::stack(last_cells, 0) : Tensor()};
}

// aten's states, and of an LSTM its cells in a list with them; and what it returns.
template <const Mode& mode>
using States = std::conditional_t<mode.is_lstm(), at::TensorList, const Tensor&>;
template <const Mode& mode>
using Result = std::conditional_t<mode.is_lstm(), ThreeTensors, TwoTensors>;
template <const Mode& mode>
using State = std::conditional_t<mode.is_lstm(), TwoTensors, Tensor>;

template <const Mode& mode>
Sequences sequences(const Tensor& input, States<mode> hx, const Tensor* batch_sizes = nullptr) {
  if constexpr (mode.is_lstm()) {
    const bool has_both = hx.size() == 2;
    return {input, has_both ? &hx[0] : nullptr, has_both ? &hx[1] : nullptr, batch_sizes, mode};
  } else {
    return {input, &hx, nullptr, batch_sizes, mode};
  }
}

// Picks, and what they call.
template <const Mode& mode, class Request>
struct Layers {
  template <class... A>
  static Result<mode> call(const A&... args) {
    auto [output, hn, cn] = by_layers(Request::request(args...));
    if constexpr (mode.is_lstm()) {
      return {std::move(output), std::move(hn), std::move(cn)};
    } else {
      return {std::move(output), std::move(hn)};
    }
  }
};
template <const Mode& mode>
struct Padded : Layers<mode, Padded<mode>> {
  using Signature = Result<mode>(const Tensor&, States<mode>, at::TensorList, bool, int64_t, double, bool, bool, bool);

  static RecurrentRequest request(const Tensor& input, States<mode> hx, at::TensorList params, bool has_biases,
                                  int64_t num_layers, double dropout, bool train, bool bidirectional,
                                  bool batch_first) {
    return as_autocast(
        {sequences<mode>(input, hx), params, has_biases, num_layers, dropout, train, bidirectional, batch_first});
  }
};
template <const Mode& mode>
struct Packed : Layers<mode, Packed<mode>> {
  using Signature = Result<mode>(const Tensor&, const Tensor&, States<mode>, at::TensorList, bool, int64_t, double,
                                 bool, bool);

  static RecurrentRequest request(const Tensor& data, const Tensor& batch_sizes, States<mode> hx, at::TensorList params,
                                  bool has_biases, int64_t num_layers, double dropout, bool train, bool bidirectional) {
    constexpr bool batch_first = false;
    return as_autocast({sequences<mode>(data, hx, &batch_sizes), params, has_biases, num_layers, dropout, train,
                        bidirectional, batch_first});
  }
};

// One step of a layer: its input is [B, I].
class CellPlan;

struct CellRequest : Layer {
  using Plan = CellPlan;

  Device device() const { return device_type(input); }
};

class CellPlan {
 public:
  explicit CellPlan(const CellRequest& request) : reason_(fit(request)) {}

  Handed reason() const { return reason_; }

 private:
  static Handed fit(const CellRequest& r) {
    // Of what stock makes of it some parts are cast, and others are not.
    if (at::autocast::is_autocast_enabled(at::kCPU)) return Handed::option;
    const Handed reason = r.reason(/*input_dim=*/2, /*batch_dim=*/0, /*states_dim=*/2);
    if (reason != Handed::no) return reason;
    // An RNN's few sums: by measurement (Zen 4, one core).
    if (!r.mode.is_gated() && r.width() * (r.input.numel() + r.hx->numel()) < 4096) return Handed::size;
    return r.reason_of_weights();
  }

  Handed reason_;
};

template <const Mode& mode>
struct Cell {
  static CellRequest request(const Tensor& input, States<mode> hx, const Tensor& w_ih, const Tensor& w_hh,
                             MaybeTensor b_ih, MaybeTensor b_hh) {
    return {{sequences<mode>(input, hx), {w_ih, w_hh, maybe(b_ih), maybe(b_hh), nullptr}}};
  }
  static State<mode> call(const Tensor& input, States<mode> hx, const Tensor& w_ih, const Tensor& w_hh,
                          MaybeTensor b_ih, MaybeTensor b_hh) {
    const Tensor inputs = input.unsqueeze(0);
    constexpr bool reverse = false;
    auto [output, hn, cn] = run_layer(request(inputs, hx, w_ih, w_hh, b_ih, b_hh), reverse);
    if constexpr (mode.is_lstm()) {
      return {std::move(hn), std::move(cn)};
    } else {
      return hn;
    }
  }
};

}  // namespace

const Rows& recurrent_rows() {
#define ROWS(mode)                                                                                               \
  RUSTTORCH_COMPOSITE_ROW(#mode ".input", Padded<mode>, COMPOSITE_IMPLICIT_AS(Padded<mode>::Signature, mode),    \
                          Padded<mode>),                                                                         \
      RUSTTORCH_COMPOSITE_ROW(#mode ".data", Packed<mode>, COMPOSITE_IMPLICIT_AS(Packed<mode>::Signature, mode), \
                              Packed<mode>),                                                                     \
      RUSTTORCH_COMPOSITE_ROW(#mode "_cell", Cell<mode>, COMPOSITE_IMPLICIT(mode##_cell), Cell<mode>)
  static const Rows rows = {
      ROWS(gru),
      ROWS(lstm),
      ROWS(rnn_tanh),
      ROWS(rnn_relu),
      {"rnn_layer_forward", impl<&forward>(), &stats<"rnn_layer_forward">},
      {"rnn_layer_backward", impl<&backward>(), &stats<"rnn_layer_backward">},
  };
#undef ROWS
  return rows;
}

}  // namespace rusttorch
