#include "../kernels/activation.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/gelu_backward.h>
#include <ATen/ops/hypot.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/silu_backward.h>
#include <ATen/ops/where.h>

#include <cmath>

#include "decomposed.h"
#include "elementwise.h"
#include "stock.h"

// The three forms of an activation, and the two of a backward.
#define FORWARD(name, pick) \
  ROW(#name, pick, STOCK(name)), ROW(#name "_", pick, STOCK(name##_)), ROW(#name ".out", pick, STOCK(name##_outf))
#define BACKWARD(name, pick) ROW(#name, pick, STOCK(name)), ROW(#name ".grad_input", pick, STOCK(name##_outf))

namespace rusttorch {
namespace {

// By approximate="none" or "tanh"; anything else has no kernel, and stock raises.
template <activation none, activation tanh>
struct Approximate {
  template <class... A>
  static ElementwiseRequest request(const A&... args) {
    ElementwiseRequest r = Elementwise<none>::request(args...);
    const std::string_view approximate = std::get<sizeof...(A) - 1>(std::tie(args...));
    if (approximate != "none") r.kernel = approximate == "tanh" ? kernel(tanh) : nullptr;
    return r;
  }
};
struct Gelu {
  static ElementwiseRequest request(const Tensor& self, std::string_view approximate) {
    ElementwiseRequest r = Approximate<activation::gelu, activation::gelu_tanh>::request(self, approximate);
    if (approximate == "none") r.limit_16_bit = int64_t(1) << 15;  // stock's is oneDNN's: slow to start
    return r;
  }
};
using GeluBackward = Approximate<activation::gelu_backward, activation::gelu_tanh_backward>;

// Stock's elu of 0 is 0, and infinity times 0 is NaN.
struct Elu {
  static ElementwiseRequest request(const Tensor& self, const Scalar& alpha, const Scalar& scale,
                                    const Scalar& input_scale) {
    ElementwiseRequest r = Elementwise<activation::elu>::request(self, alpha, scale, input_scale);
    for (const Scalar* s : {&alpha, &scale, &input_scale}) {
      if (!s->isComplex() && !std::isfinite(s->toDouble())) r.kernel = nullptr;
    }
    return r;
  }
};

struct Softplus {
  static ElementwiseRequest request(const Tensor& self, const Scalar& beta, const Scalar& threshold) {
    if (beta.equal(1) && threshold.equal(20)) return Elementwise<activation::softplus_default>::request(self);
    return Elementwise<activation::softplus>::request(self, beta, threshold);
  }
};

struct LeakyReluBackward {
  static ElementwiseRequest request(const Tensor& grad, const Tensor& self, const Scalar& slope, bool self_is_result) {
    ElementwiseRequest r = Elementwise<activation::leaky_relu_backward>::request(grad, self, slope);
    if (self_is_result && slope.toDouble() < 0) r.kernel = nullptr;  // the sign of the input is lost: stock raises
    return r;
  }
};

struct EluBackward {
  static ElementwiseRequest request(const Tensor& grad, const Scalar& alpha, const Scalar& scale,
                                    const Scalar& input_scale, bool is_result, const Tensor& self_or_result) {
    ElementwiseRequest r =
        Elementwise<activation::elu_backward>::request(grad, alpha, scale, input_scale, self_or_result);
    if (is_result) r.kernel = alpha.toDouble() < 0 ? nullptr : kernel(activation::elu_backward_result);
    return r;
  }
};

// log_sigmoid's outputs are contiguous whatever its input is.
template <activation kernel>
struct LogSigmoid {
  static ElementwiseRequest request(const Tensor& self) {
    ElementwiseRequest r = Elementwise<kernel>::request(self);
    r.contiguous = true;
    return r;
  }
};

// The buffer holds exp(-|x|) when a CPU forward made it, and nothing when a CUDA forward did, where it is not read.
struct LogSigmoidBackward {
  static ElementwiseRequest request(const Tensor& grad, const Tensor& self, const Tensor& buffer) {
    if (buffer.numel() == 0 || self.is_cuda()) {
      return Elementwise<activation::log_sigmoid_backward_input>::request(grad, self);
    }
    return Elementwise<activation::log_sigmoid_backward>::request(grad, self, buffer);
  }
};

// Stock's CPU kernel reads the buffer.
Tensor buffer_for_stock(const Tensor& self, const Tensor& buffer) {
  return self.is_cpu() && buffer.numel() == 0 ? self.abs().neg_().exp_() : buffer;
}
Tensor log_sigmoid_backward_stock(const Tensor& grad, const Tensor& self, const Tensor& buffer) {
  return STOCK(log_sigmoid_backward)::call(device_type(self), grad, self, buffer_for_stock(self, buffer));
}
Tensor& log_sigmoid_backward_stock_out(const Tensor& grad, const Tensor& self, const Tensor& buffer, Tensor& out) {
  return STOCK(log_sigmoid_backward_outf)::call(device_type(self), grad, self, buffer_for_stock(self, buffer), out);
}

Tensor softsign_stock(const Tensor& x) { return x.div(x.abs().add(1)); }
Tensor squareplus_stock(const Tensor& self, const Scalar& b) {
  const Tensor x = at::isFloatingType(self.scalar_type()) ? self : self.to(c10::get_default_dtype_as_scalartype());
  const Tensor root = at::hypot(x, at::full_like(x, std::sqrt(b.toDouble()))), half = (root * 0.5).add(x.abs(), 0.5);
  return at::where(x.lt(0), at::full_like(x, b.toDouble() / 4) / half, half);
}

// activation(gate) * up: of two tensors, or of the halves of one (packed), the gate first.
template <class Pick>
struct Gated {
  template <class... A>
  static ElementwiseRequest request(const A&... args) {
    ElementwiseRequest r = of_one_dtype(Pick::request(args...));
    r.rows = true;
    r.grad_is_single = r.tensors == 3;
    return r;
  }
};
using Swiglu = Gated<Elementwise<activation::swiglu>>;
using SwigluBackward = Gated<Elementwise<activation::swiglu_backward>>;
using Geglu = Gated<Approximate<activation::geglu, activation::geglu_tanh>>;
using GegluBackward = Gated<Approximate<activation::geglu_backward, activation::geglu_tanh_backward>>;

using Two = std::tuple<Tensor, Tensor>;

Tensor swiglu_stock(const Tensor& gate, const Tensor& up) { return at::silu(gate) * up; }
Two swiglu_backward_stock(const Tensor& grad, const Tensor& gate, const Tensor& up) {
  return {at::silu_backward(grad * up, gate), grad * at::silu(gate)};
}
Tensor geglu_stock(const Tensor& gate, const Tensor& up, c10::string_view approximate) {
  return at::gelu(gate, approximate) * up;
}
Two geglu_backward_stock(const Tensor& grad, const Tensor& gate, const Tensor& up, c10::string_view approximate) {
  return {at::gelu_backward(grad * up, gate, approximate), grad * at::gelu(gate, approximate)};
}

Two halves(const Tensor& packed) {
  const int64_t n = packed.size(-1);
  TORCH_CHECK(n % 2 == 0, "Halving dimension must be even, but dimension ", packed.dim() - 1, " is size ", n);
  return {packed.narrow(-1, 0, n / 2), packed.narrow(-1, n / 2, n / 2)};
}
// The op of two, of the halves.
template <class Op, class... A>
Tensor packed(const Tensor& input, A... options) {
  const auto [gate, up] = halves(input);
  return Op::call(gate, up, options...);
}
// The gradients of both, each written into its half.
template <Name name, class Pick, auto stock, class... A>
Tensor packed_backward(const Tensor& grad, const Tensor& input, A... options) {
  const auto [gate, up] = halves(input);
  const Tensor result = empty_beside(input, input.sizes(), input.scalar_type());
  const auto [grad_gate, grad_up] = halves(result);
  const ElementwiseRequest request = Pick::request(grad, gate, up, options...);
  ElementwisePlan plan(request);
  if (plan.reason() == Handed::no) plan.accepts_rows();
  if (on_cpu(input) && is_taken<name>(plan)) {
    plan.run(grad_gate, grad_up);
  } else {
    const auto [by_gate, by_up] = stock(grad, gate, up, options...);
    grad_gate.copy_(by_gate);
    grad_up.copy_(by_up);
  }
  return result;
}

// selu and celu are elu with other constants (G. Klambauer et al., Self-Normalizing Neural Networks, 2017;
// J. T. Barron, Continuously Differentiable Exponential Linear Units, 2017).
constexpr double selu_alpha = 1.6732632423543772848170429916717;
constexpr double selu_scale = 1.0507009873554804934193349852946;

const auto& elu_op() {
  static const auto op = own_op<Tensor(const Tensor&, const Scalar&, const Scalar&, const Scalar&)>("elu");
  return op;
}
const auto& elu_inplace_op() {
  static const auto op = own_op<Tensor&(Tensor&, const Scalar&, const Scalar&, const Scalar&)>("elu_");
  return op;
}

struct Selu {
  static Tensor call(const Tensor& self) { return elu_op().call(self, selu_alpha, selu_scale, 1); }
};
struct SeluInplace {
  static Tensor& call(Tensor& self) { return elu_inplace_op().call(self, selu_alpha, selu_scale, 1); }
};
struct Celu {
  static Tensor call(const Tensor& self, const Scalar& alpha) {
    if (alpha.toDouble() == 0) return at::compositeexplicitautograd::celu(self, alpha);  // raises
    return elu_op().call(self, alpha, 1, 1 / alpha.toDouble());
  }
};
struct CeluInplace {
  static Tensor& call(Tensor& self, const Scalar& alpha) {
    if (alpha.toDouble() == 0) return at::compositeexplicitautograd::celu_(self, alpha);
    return elu_inplace_op().call(self, alpha, 1, 1 / alpha.toDouble());
  }
};

}  // namespace

const Rows& activation_rows() {
  static const Rows rows = {
      ROW("relu", Elementwise<activation::relu>, STOCK(relu)),
      ROW("relu_", Elementwise<activation::relu>, STOCK(relu_)),
      ROW("relu.out", Elementwise<activation::relu>, COMPOSITE_EXPLICIT(relu_outf)),
      FORWARD(leaky_relu, Elementwise<activation::leaky_relu>),
      BACKWARD(leaky_relu_backward, LeakyReluBackward),
      FORWARD(sigmoid, Elementwise<activation::sigmoid>),
      BACKWARD(sigmoid_backward, Small16Bit<Elementwise<activation::sigmoid_backward>>),
      FORWARD(tanh, Elementwise<activation::tanh>),
      BACKWARD(tanh_backward, Small16Bit<Elementwise<activation::tanh_backward>>),
      FORWARD(gelu, Gelu),
      BACKWARD(gelu_backward, GeluBackward),
      FORWARD(elu, Elu),
      BACKWARD(elu_backward, EluBackward),
      FORWARD(silu, Elementwise<activation::silu>),
      BACKWARD(silu_backward, Elementwise<activation::silu_backward>),
      FORWARD(mish, Elementwise<activation::mish>),
      ROW("mish_backward", Elementwise<activation::mish_backward>, STOCK(mish_backward)),
      ROW("softplus", Softplus, STOCK(softplus)),
      ROW("softplus.out", Softplus, STOCK(softplus_outf)),
      BACKWARD(softplus_backward, Elementwise<activation::softplus_backward>),
      ROW("softsign", Elementwise<activation::softsign>, AnyDevice<&softsign_stock>),
      ROW("squareplus", Elementwise<activation::squareplus>, AnyDevice<&squareplus_stock>),
      FORWARD(hardswish, Elementwise<activation::hardswish>),
      ROW("hardswish_backward", Elementwise<activation::hardswish_backward>, STOCK(hardswish_backward)),
      ROW("hardswish_backward.out", Elementwise<activation::hardswish_backward>,
          COMPOSITE_EXPLICIT(hardswish_backward_outf)),
      FORWARD(hardsigmoid, Elementwise<activation::hardsigmoid>),
      BACKWARD(hardsigmoid_backward, Elementwise<activation::hardsigmoid_backward>),
      ROW("log_sigmoid", LogSigmoid<activation::log_sigmoid>, COMPOSITE_IMPLICIT(log_sigmoid)),
      ROW("log_sigmoid.out", LogSigmoid<activation::log_sigmoid>, COMPOSITE_IMPLICIT(log_sigmoid_outf)),
      ROW("log_sigmoid_forward", LogSigmoid<activation::log_sigmoid_forward>, STOCK(log_sigmoid_forward)),
      ROW("log_sigmoid_forward.output", LogSigmoid<activation::log_sigmoid_forward>, STOCK(log_sigmoid_forward_outf)),
      ROW("log_sigmoid_backward", LogSigmoidBackward, AnyDevice<&log_sigmoid_backward_stock>),
      ROW("log_sigmoid_backward.grad_input", LogSigmoidBackward, AnyDevice<&log_sigmoid_backward_stock_out>),
      ROW("swiglu", Swiglu, AnyDevice<&swiglu_stock>),
      {"swiglu.packed", impl<&packed<OwnOp<"swiglu", decltype(&swiglu_stock)>>>()},
      ROW("swiglu_backward", SwigluBackward, AnyDevice<&swiglu_backward_stock>),
      {"swiglu_backward.packed",
       impl<&packed_backward<"swiglu_backward.packed", SwigluBackward, &swiglu_backward_stock>>(),
       &stats<"swiglu_backward.packed">},
      ROW("geglu", Geglu, AnyDevice<&geglu_stock>),
      {"geglu.packed", impl<&packed<OwnOp<"geglu", decltype(&geglu_stock)>, c10::string_view>>()},
      ROW("geglu_backward", GegluBackward, AnyDevice<&geglu_backward_stock>),
      {"geglu_backward.packed",
       impl<&packed_backward<"geglu_backward.packed", GegluBackward, &geglu_backward_stock, c10::string_view>>(),
       &stats<"geglu_backward.packed">},
      {.name = "selu", .impl = impl<&Selu::call>(), .composite = true},
      {.name = "selu_", .impl = impl<&SeluInplace::call>(), .composite = true},
      {.name = "celu", .impl = impl<&Celu::call>(), .composite = true},
      {.name = "celu_", .impl = impl<&CeluInplace::call>(), .composite = true},
  };
  return rows;
}

}  // namespace rusttorch
