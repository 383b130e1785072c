#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/tanh.h>
#include <ATen/ops/threshold_backward.h>
#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>

#include "../kernels/recurrent_steps.h"
#include "derivative.h"

namespace rusttorch::autograd {
namespace {

// Positions among the arguments of rnn_layer_forward.
constexpr size_t input = 0, hx = 1, cx = 2, weight_ih = 3, weight_hh = 4, bias_ih = 5, bias_hh = 6, weight_hr = 7,
                 batch_sizes = 8, mode = 9, reverse = 10, differentiate = 11;

std::vector<RecurrentStep> steps_of(const Call& c) {
  if (!c.given(batch_sizes)) {
    return recurrent_steps(c.tensor(input).size(0), c.tensor(input).size(1), nullptr, c.flag(reverse));
  }
  const Tensor& sizes = c.tensor(batch_sizes);
  return recurrent_steps(sizes.size(0), 0, sizes.const_data_ptr<int64_t>(), c.flag(reverse));
}

// The first rows of t are others.
Tensor with_first(const Tensor& t, const Tensor& rows) {
  const int64_t n = rows.size(0);
  return n == t.size(0) ? rows : at::cat({rows, t.narrow(0, n, t.size(0) - n)});
}

// A step as differentiable ops, forward and backward. (The letters are those of kernels/recurrent.h.)
class Step {
 public:
  Step(const Call& c, RecurrentStep of, const Tensor& x_sums, const Tensor& states, const Tensor& cells)
      : of(of), before(states.narrow(0, 0, of.rows)), weight_(c.tensor(weight_hh)) {
    const Tensor x = x_sums.narrow(0, of.begin, of.rows);
    const Tensor h = at::linear(before, weight_, c.maybe(bias_hh));
    const auto& name = c.argument(mode).toStringRef();
    if (name == "gru") {
      const Grads xs = x.chunk(3, 1), hs = h.chunk(3, 1);
      reset_ = at::sigmoid(xs[0] + hs[0]);
      update_ = at::sigmoid(xs[1] + hs[1]);
      inner_ = hs[2];
      fresh_ = at::tanh(xs[2] + reset_ * inner_);
      result = fresh_ + update_ * (before - fresh_);
    } else if (name == "lstm") {
      const Grads sums = (x + h).chunk(4, 1);
      in_ = at::sigmoid(sums[0]);
      forget_ = at::sigmoid(sums[1]);
      fresh_ = at::tanh(sums[2]);
      out_ = at::sigmoid(sums[3]);
      cell_before_ = cells.narrow(0, 0, of.rows);
      cell = forget_ * cell_before_ + in_ * fresh_;
      bounded_ = at::tanh(cell);
      unprojected = out_ * bounded_;
      if (c.given(weight_hr)) projection_ = c.tensor(weight_hr);
      result = projection_.defined() ? at::linear(unprojected, projection_) : unprojected;
    } else {
      is_relu_ = name == "rnn_relu";
      result = is_relu_ ? at::relu(x + h) : at::tanh(x + h);
    }
  }

  // From the gradients of the result and of the cell: those of x, of h, and of the state and the cell before.
  void differentiate(const Tensor& grad, const Tensor& grad_cell) {
    grad_result = grad;
    if (update_.defined()) {
      const Tensor by_fresh = grad * (1 - update_) * (1 - fresh_ * fresh_);
      const Tensor by_update = grad * (before - fresh_) * update_ * (1 - update_);
      const Tensor by_reset = by_fresh * inner_ * reset_ * (1 - reset_);
      grad_x = at::cat({by_reset, by_update, by_fresh}, 1);
      grad_h = at::cat({by_reset, by_update, by_fresh * reset_}, 1);
      grad_before = grad_h.mm(weight_) + grad * update_;
    } else if (cell.defined()) {
      const Tensor by_result = projection_.defined() ? grad.mm(projection_) : grad;
      const Tensor by_cell = grad_cell + by_result * out_ * (1 - bounded_ * bounded_);
      grad_x = grad_h = at::cat({by_cell * fresh_ * in_ * (1 - in_), by_cell * cell_before_ * forget_ * (1 - forget_),
                                 by_cell * in_ * (1 - fresh_ * fresh_), by_result * bounded_ * out_ * (1 - out_)},
                                1);
      grad_before = grad_h.mm(weight_);
      grad_cell_before = by_cell * forget_;
    } else {
      grad_x = grad_h = is_relu_ ? at::threshold_backward(grad, result, 0) : grad * (1 - result * result);
      grad_before = grad_h.mm(weight_);
    }
  }

  RecurrentStep of;
  Tensor before, result, cell, unprojected, grad_result, grad_x, grad_h, grad_before, grad_cell_before;

 private:
  Tensor weight_, projection_, reset_, update_, inner_, in_, forget_, fresh_, out_, cell_before_, bounded_;
  bool is_relu_ = false;
};

// The gradients in differentiable ops, for a second derivative: with all gates once more.
Grads in_ops(const Call& c) {
  const Tensor x = c.tensor(input).reshape({-1, c.tensor(input).size(-1)});
  const Tensor sums = at::linear(x, c.tensor(weight_ih), c.maybe(bias_ih));
  std::vector<Step> steps;
  Tensor states = c.tensor(hx), cells = c.given(cx) ? c.tensor(cx) : Tensor();
  for (const RecurrentStep of : steps_of(c)) {
    steps.emplace_back(c, of, sums, states, cells);
    states = with_first(states, steps.back().result);
    if (cells.defined()) cells = with_first(cells, steps.back().cell);
  }
  const auto gradient = [&](size_t k, const Tensor& like) {
    return c.grad(k).defined() || !like.defined() ? c.grad(k) : at::zeros(like.sizes(), like.options());
  };
  Tensor up = gradient(1, states), up_cell = gradient(2, cells);
  const Tensor grad_y = c.grad(0).defined() ? c.grad(0).reshape({x.size(0), -1}) : Tensor();
  for (auto step = steps.rbegin(); step != steps.rend(); ++step) {
    const auto [begin, rows] = step->of;
    const Tensor grad = up.narrow(0, 0, rows);
    step->differentiate(grad_y.defined() ? grad + grad_y.narrow(0, begin, rows) : grad,
                        cells.defined() ? up_cell.narrow(0, 0, rows) : Tensor());
    up = with_first(up, step->grad_before);
    if (cells.defined()) up_cell = with_first(up_cell, step->grad_cell_before);
  }
  if (c.flag(reverse)) std::reverse(steps.begin(), steps.end());
  const auto all = [&](Tensor Step::* part) {
    Grads parts;
    for (const Step& step : steps) parts.push_back(step.*part);
    return at::cat(parts);
  };
  const Tensor grad_x = all(&Step::grad_x), grad_h = all(&Step::grad_h);
  return {c.want(input, [&] { return grad_x.mm(c.tensor(weight_ih)).view_symint(c.sizes(input)); }),
          up,
          up_cell,
          c.want(weight_ih, [&] { return grad_x.t().mm(x); }),
          c.want(weight_hh, [&] { return grad_h.t().mm(all(&Step::before)); }),
          c.want(bias_ih, [&] { return grad_x.sum(0); }),
          c.want(bias_hh, [&] { return grad_h.sum(0); }),
          c.want(weight_hr, [&] { return all(&Step::grad_result).t().mm(all(&Step::unprojected)); })};
}

std::optional<Tensor> optional(const Tensor& t) { return t.defined() ? std::optional(t) : std::nullopt; }

Grads of_layer(const Call& c, const Tensor&) {
  if (c10::GradMode::is_enabled() || !c.flag(differentiate)) return in_ops(c);
  c10::List<bool> wanted;
  for (size_t i = input; i <= weight_hr; ++i) wanted.push_back(c.needs(i));
  const std::optional<Tensor> grad_cn = c.given(cx) ? optional(c.grad(2)) : std::nullopt;
  return call_all("rnn_layer_backward",
                  {optional(c.grad(0)), optional(c.grad(1)), grad_cn, c.tensor(input), c.tensor(hx), c.maybe(cx),
                   c.tensor(weight_ih), c.tensor(weight_hh), c.maybe(weight_hr), c.maybe(batch_sizes), c.result(3),
                   c.argument(mode), c.argument(reverse), wanted});
}

// Of a bias, which stock's derivatives do not read, so that it may be changed until then.
template <size_t i>
Tensor copy(at::ArrayRef<c10::IValue> arguments) {
  return arguments[i].toTensor().clone();
}

}  // namespace

const std::vector<Formula>& recurrent_formulas() {
  static const std::vector<Formula> formulas = {
      {.op = "rnn_layer_forward",
       .saves = {argument(input), argument(hx), argument(cx), argument(weight_ih), argument(weight_hh),
                 argument(bias_ih).made_by(&copy<bias_ih>), argument(bias_hh).made_by(&copy<bias_hh>),
                 argument(weight_hr), argument(batch_sizes), result(3)},
       .grads = of_layer,
       .outputs = 3,
       .inputs = 8},
  };
  return formulas;
}

}  // namespace rusttorch::autograd
