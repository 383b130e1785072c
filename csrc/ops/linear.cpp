#include <ATen/TensorOperators.h>
#include <ATen/ops/celu.h>
#include <ATen/ops/elu.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mish.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/selu.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/softplus.h>
#include <ATen/ops/tanh.h>

#include "decomposed.h"
#include "matmul.h"

namespace rusttorch {
namespace {

// Linear layers with what follows them in the product's last pass, on the CPU:
//   linear_act, linear_glu   what the kernels do not have (other activations, bias of more dims, sparse tensors, no
//                            elements, dual numbers, ...): aten's ops one after the other; else
//   ..._forward              has the derivative (autograd/linear.cpp). Where its product is handed to stock, and on a
//                            device, it is aten's ops as well (there cuBLAS's product).

using TwoTensors = std::tuple<Tensor, Tensor>;
using ThreeTensors = std::tuple<Tensor, Tensor, Tensor>;

// As a name, as aten's op with its default options, and for the kernels, which have those that transformers use.
struct Activation {
  c10::string_view name;
  Tensor (*op)(const Tensor&);
  MatmulActivation kernel = MatmulActivation::none;
};
constexpr Activation activations[] = {
    {"relu", [](const Tensor& x) { return at::relu(x); }, MatmulActivation::relu},
    {"gelu", [](const Tensor& x) { return at::gelu(x); }, MatmulActivation::gelu},
    {"gelu_tanh", [](const Tensor& x) { return at::gelu(x, "tanh"); }, MatmulActivation::gelu_tanh},
    {"silu", [](const Tensor& x) { return at::silu(x); }, MatmulActivation::silu},
    {"sigmoid", [](const Tensor& x) { return at::sigmoid(x); }},
    {"tanh", [](const Tensor& x) { return at::tanh(x); }},
    {"elu", [](const Tensor& x) { return at::elu(x); }},
    {"selu", [](const Tensor& x) { return at::selu(x); }},
    {"celu", [](const Tensor& x) { return at::celu(x); }},
    {"mish", [](const Tensor& x) { return at::mish(x); }},
    {"softplus", [](const Tensor& x) { return at::softplus(x); }},
    {"softsign", [](const Tensor& x) { return OwnOp<"softsign", Tensor (*)(const Tensor&)>::call(x); }},
};

const Activation& activation_of(c10::string_view name) {
  for (const Activation& activation : activations) {
    if (activation.name == name) return activation;
  }
  std::string all;
  for (const Activation& activation : activations) all.append(all.empty() ? "" : ", ").append(activation.name);
  TORCH_CHECK_VALUE(false, "unknown activation '", name, "': one of ", all);
}

// Of a sum that stock made: our own op.
Tensor activated(MatmulActivation activation, const Tensor& x) {
  using OfOne = Tensor (*)(const Tensor&);
  using Gelu = OwnOp<"gelu", Tensor (*)(const Tensor&, c10::string_view)>;
  switch (activation) {
    case MatmulActivation::relu: return OwnOp<"relu", OfOne>::call(x);
    case MatmulActivation::silu: return OwnOp<"silu", OfOne>::call(x);
    default: return Gelu::call(x, activation == MatmulActivation::gelu ? "none" : "tanh");
  }
}

// activation(gate) * up, of two that stock made: our own op.
Tensor gated(MatmulActivation activation, const Tensor& gate, const Tensor& up) {
  using Swiglu = OwnOp<"swiglu", Tensor (*)(const Tensor&, const Tensor&)>;
  using Geglu = OwnOp<"geglu", Tensor (*)(const Tensor&, const Tensor&, c10::string_view)>;
  switch (activation) {
    case MatmulActivation::relu: return activated(activation, gate) * up;
    case MatmulActivation::silu: return Swiglu::call(gate, up);
    default: return Geglu::call(gate, up, activation == MatmulActivation::gelu ? "none" : "tanh");
  }
}

// A layer's input as a matrix, and its weight turned: what a product is made of.
struct Layer {
  Tensor rows, turned;

  Layer(const Tensor& input, const Tensor& weight)
      : rows(input.dim() == 1 ? input.unsqueeze(0) : input.flatten(0, -2)), turned(weight.t()) {}

  // Whether it is one that the kernels' ops take.
  static bool fits(const Tensor& input, const Tensor& weight, MaybeTensor bias, MatmulActivation activation) {
    if (activation == MatmulActivation::none) return false;
    for (const Tensor* t : {&input, &weight, given(bias) ? &*bias : &input}) {
      if (is_special(*t) || t->layout() != at::kStrided || t->is_nested()) return false;
    }
    return input.dim() > 0 && input.numel() > 0 && weight.dim() == 2 && weight.size(1) == input.size(-1) &&
           weight.size(0) > 0 && (!given(bias) || (bias->dim() == 1 && bias->size(0) == weight.size(0)));
  }

  MatmulRequest product(MaybeTensor bias = std::nullopt) const {
    return {rows, turned, 2, 2, given(bias) ? &*bias : nullptr};
  }
};

Tensor empty_result(const Tensor& input, const Tensor& weight) {
  at::DimVector sizes(input.sizes());
  sizes.back() = weight.size(0);
  return empty_beside(input, sizes, input.scalar_type());
}

// Where no derivative is asked for.
Tensor nothing(const Tensor& input) { return empty_beside(input, {0}, input.scalar_type()); }

// -> the output, and what the activation was taken of, which the derivative reads: empty if that is not wanted.
TwoTensors act_forward(const Tensor& input, const Tensor& weight, MaybeTensor bias, c10::string_view name,
                       bool differentiate) {
  const Activation& activation = activation_of(name);
  TORCH_CHECK(
      Layer::fits(input, weight, bias, activation.kernel),
      "linear_act_forward takes relu, gelu, gelu_tanh or silu, weight [N, K] and bias [N]; linear_act takes all");
  const Layer layer(input, weight);
  const MatmulRequest request = layer.product(bias);
  MatmulPlan plan(request);
  stats<"linear_act_forward">.count(plan.reason());
  if (plan.reason() != Handed::no) {
    const Tensor sums = at::linear(input, weight, bias);
    return {activated(activation.kernel, sums), differentiate ? sums : nothing(input)};
  }
  const Tensor out = empty_result(input, weight);
  const Tensor sums = differentiate ? empty_result(input, weight) : nothing(input);
  plan.run(out, {activation.kernel, nullptr, differentiate ? &sums : nullptr});
  return {out, sums};
}

// -> the output, and both products: empty if they are not wanted.
ThreeTensors glu_forward(const Tensor& input, const Tensor& gate_weight, const Tensor& up_weight, c10::string_view name,
                         bool differentiate) {
  const Activation& activation = activation_of(name);
  for (const Tensor* weight : {&gate_weight, &up_weight}) {
    TORCH_CHECK(Layer::fits(input, *weight, std::nullopt, activation.kernel),
                "linear_glu_forward takes relu, gelu, gelu_tanh or silu, and weights [N, K]; linear_glu takes all");
  }
  const Layer of_gate(input, gate_weight), of_up(input, up_weight);
  const MatmulRequest gate_request = of_gate.product(), up_request = of_up.product();
  MatmulPlan gate_plan(gate_request), up_plan(up_request);
  const Handed reason = gate_plan.reason() == Handed::no ? up_plan.reason() : gate_plan.reason();
  stats<"linear_glu_forward">.count(reason);
  if (reason != Handed::no) {
    const Tensor gate = at::linear(input, gate_weight), up = at::linear(input, up_weight);
    const Tensor out = gated(activation.kernel, gate, up);
    return {out, differentiate ? gate : nothing(input), differentiate ? up : nothing(input)};
  }
  const Tensor out = empty_result(input, gate_weight), gate = empty_result(input, gate_weight);
  const Tensor up = differentiate ? empty_result(input, gate_weight) : nothing(input);
  gate_plan.prepare(gate, {});
  up_plan.prepare(out, {activation.kernel, &gate, differentiate ? &up : nullptr});
  const Blocks blocks = up_plan.blocks();
  parallel(blocks.count(), 2 * blocks.work(), [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      gate_plan.run_block(blocks[k]);
      up_plan.run_block(blocks[k]);
    }
  });
  return {out, differentiate ? gate : nothing(input), up};
}

Tensor act(const Tensor& input, const Tensor& weight, MaybeTensor bias, c10::string_view name) {
  static const auto forward =
      own_op<TwoTensors(const Tensor&, const Tensor&, MaybeTensor, c10::string_view, bool)>("linear_act_forward");
  const Activation& activation = activation_of(name);
  if (!Layer::fits(input, weight, bias, activation.kernel)) return activation.op(at::linear(input, weight, bias));
  const bool differentiate = is_differentiated({&input, &weight, given(bias) ? &*bias : &weight});
  return std::get<0>(forward.call(input, weight, bias, name, differentiate));
}

Tensor glu(const Tensor& input, const Tensor& gate_weight, const Tensor& up_weight, c10::string_view name) {
  static const auto forward =
      own_op<ThreeTensors(const Tensor&, const Tensor&, const Tensor&, c10::string_view, bool)>("linear_glu_forward");
  const Activation& activation = activation_of(name);
  TORCH_CHECK(gate_weight.sym_sizes() == up_weight.sym_sizes(), "linear_glu: gate_weight and up_weight must be of one ",
              "shape, got ", gate_weight.sym_sizes(), " and ", up_weight.sym_sizes());
  if (!Layer::fits(input, gate_weight, std::nullopt, activation.kernel) ||
      !Layer::fits(input, up_weight, std::nullopt, activation.kernel)) {
    return activation.op(at::linear(input, gate_weight)) * at::linear(input, up_weight);
  }
  const bool differentiate = is_differentiated({&input, &gate_weight, &up_weight});
  return std::get<0>(forward.call(input, gate_weight, up_weight, name, differentiate));
}

}  // namespace

const Rows& linear_rows() {
  static const Rows rows = {
      {.name = "linear_act", .impl = impl<&act>(), .composite = true},
      {"linear_act_forward", impl<&act_forward>(), &stats<"linear_act_forward">},
      {.name = "linear_glu", .impl = impl<&glu>(), .composite = true},
      {"linear_glu_forward", impl<&glu_forward>(), &stats<"linear_glu_forward">},
  };
  return rows;
}

}  // namespace rusttorch
