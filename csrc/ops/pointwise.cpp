#include "../kernels/pointwise.h"

#include <ATen/ops/addcmul.h>

#include <cmath>
#include <limits>

#include "../instruction_set.h"
#include "elementwise.h"
#include "stock.h"

#define COMPOSITE_EXPLICIT_AS(type, fn) AnyDevice<static_cast<type*>(&at::compositeexplicitautograd::fn)>

// The three forms of an op that has no options.
#define UNARY(name, ...)                                                             \
  ROW(#name, __VA_ARGS__, STOCK(name)), ROW(#name "_", __VA_ARGS__, STOCK(name##_)), \
      ROW(#name ".out", __VA_ARGS__, STOCK(name##_outf))

namespace rusttorch {
namespace {

using Mode = std::optional<std::string_view>;
using MaybeScalar = const std::optional<Scalar>&;

// What a Python number is by the time it is an operand. (A 0-dim tensor of the user's is not: it may be written to.)
std::optional<Scalar> number(const Tensor& t) {
  if (!t.unsafeGetTensorImpl()->is_wrapped_number()) return std::nullopt;
  if (t.scalar_type() == at::kDouble) return Scalar(*t.const_data_ptr<double>());
  if (t.scalar_type() == at::kLong) return Scalar(*t.const_data_ptr<int64_t>());
  return std::nullopt;
}

// add and sub: by a number where there is one, and without the product where alpha is 1.
template <pointwise plain, pointwise scaled, pointwise scalar>
struct Alpha {
  static ElementwiseRequest request(const Tensor& self, const Tensor& other, const Scalar& alpha) {
    if (const auto n = number(other)) return Elementwise<scalar>::request(self, *n, alpha);
    ElementwiseRequest r = Elementwise<plain>::request(self, other, alpha);
    if (!alpha.equal(1)) r.kernel = kernel(scaled);
    return r;
  }
};
using Add = Alpha<pointwise::add, pointwise::add_scaled, pointwise::add_scalar>;
using Sub = Alpha<pointwise::sub, pointwise::sub_scaled, pointwise::sub_scalar>;
using AddScalar = Elementwise<pointwise::add_scalar>;
using SubScalar = Elementwise<pointwise::sub_scalar>;

struct Mul {
  static ElementwiseRequest request(const Tensor& self, const Tensor& other) {
    if (const auto n = number(other)) return Elementwise<pointwise::mul_scalar>::request(self, *n);
    return Elementwise<pointwise::mul>::request(self, other);
  }
};
using Abs = Small16Bit<Elementwise<pointwise::abs>>;
using MulScalar = Elementwise<pointwise::mul_scalar>;
template <pointwise K>
struct Lerp {
  template <class Weight>
  static ElementwiseRequest request(const Tensor& self, const Tensor& end, const Weight& weight) {
    return of_one_dtype(Elementwise<K>::request(self, end, weight));
  }
};
using LerpScalar = Lerp<pointwise::lerp_scalar>;
using LerpTensor = Lerp<pointwise::lerp_tensor>;

// "floor" needs fmod, which does not vectorise: stock's.
template <pointwise plain, pointwise trunc>
struct Rounded {
  template <class Other>
  static ElementwiseRequest request(const Tensor& self, const Other& other, Mode mode) {
    ElementwiseRequest r = Elementwise<plain>::request(self, other);
    if (mode) r.kernel = *mode == "trunc" ? kernel(trunc) : nullptr;
    return r;
  }
};
struct DivScalar : Rounded<pointwise::div_scalar, pointwise::div_trunc_scalar> {
  using Rounded::request;
  static ElementwiseRequest request(const Tensor& self, const Scalar& other) {
    return request(self, other, std::nullopt);
  }
};
struct DivTensor {
  static ElementwiseRequest request(const Tensor& self, const Tensor& other, Mode mode = std::nullopt) {
    if (const auto n = number(other)) return DivScalar::request(self, *n, mode);
    return Rounded<pointwise::div, pointwise::div_trunc>::request(self, other, mode);
  }
};

// Some exponents are a product, a root or a quotient. Doubles' others are stock's, and so are 0, 1, and those that
// stock has a quotient or a root for.
struct Pow {
  static ElementwiseRequest request(const Tensor& self, const Scalar& exponent) {
    ElementwiseRequest r;
    r.add(self);
    if (!at::isFloatingType(self.scalar_type()) || exponent.isComplex() || exponent.isBoolean()) return r;
    const double e = exponent.toDouble();
    if (e == 0.5 && self.scalar_type() != at::kHalf) {  // in f16 stock's is pow, which differs from sqrt at -inf
      r.kernel = kernel(pointwise::sqrt);
    } else if (e == 2) {
      r.kernel = kernel(pointwise::square);
      r.limit_16_bit = 2048;
    } else if (e == 3) {
      r.kernel = kernel(pointwise::cube);
    } else if (e == -1) {
      r.kernel = kernel(pointwise::reciprocal);
    } else if (e != 1 && e != -0.5 && e != -2 && e != 0.5) {
      add_exponent(r, rounded(e, self.scalar_type()));
    }
    return r;
  }

 private:
  // As stock takes it.
  static double rounded(double e, at::ScalarType dtype) {
    switch (dtype) {
      case at::kBFloat16: return float(at::BFloat16(float(e)));
      case at::kHalf: return float(at::Half(float(e)));
      default: return float(e);
    }
  }
  static void add_exponent(ElementwiseRequest& r, double e) {
    // Without AVX2 stock's is faster: 0.64 to 0.73.
    const bool is_slow = has_cpu_kernels && r.device() == Device::cpu && instruction_set() == InstructionSet::base;
    if (!std::isfinite(e) || e == 0 || is_slow) return;
    const bool is_whole = std::trunc(e) == e, is_odd = is_whole && std::fmod(e, 2) != 0;
    r.kernel = kernel(pointwise::pow);
    r.add(Scalar(e));
    r.add(Scalar(is_odd ? -0.0 : 0.0));
    r.add(Scalar(is_whole ? 1.0 : std::numeric_limits<double>::quiet_NaN()));
  }
};

// clamp with one bound has the other at the end of the type's range. NaN bounds are stock's.
struct Clamp {
  static ElementwiseRequest request(const Tensor& self, MaybeScalar min, MaybeScalar max) {
    ElementwiseRequest r;
    r.add(self);
    const auto is_nan = [](MaybeScalar s) { return s && s->isFloatingPoint() && std::isnan(s->toDouble()); };
    if ((!min && !max) || is_nan(min) || is_nan(max)) return r;
    const bool is_float = at::isFloatingType(self.scalar_type());
    const bool is_int = self.scalar_type() == at::kInt;
    const double inf = std::numeric_limits<double>::infinity();
    const auto end = [&](auto limits32, auto limits64) {
      return is_int ? Scalar(int64_t(limits32)) : Scalar(limits64);
    };
    using Int = std::numeric_limits<int32_t>;
    using Long = std::numeric_limits<int64_t>;
    r.kernel = kernel(pointwise::clamp);
    r.add(min ? *min : is_float ? Scalar(-inf) : end(Int::min(), Long::min()));
    r.add(max ? *max : is_float ? Scalar(inf) : end(Int::max(), Long::max()));
    return r;
  }
};

struct ClampTensor {
  static ElementwiseRequest request(const Tensor& self, MaybeTensor min, MaybeTensor max) {
    ElementwiseRequest r;
    r.add(self);
    if (min) r.add(*min);
    if (max) r.add(*max);
    if (min && max) {
      r.kernel = kernel(pointwise::clamp_tensor);
    } else if (min) {
      r.kernel = kernel(pointwise::maximum);
    } else if (max) {
      r.kernel = kernel(pointwise::minimum);
    }
    return r;
  }
};

Tensor fused_multiply_add_stock(const Tensor& a, const Tensor& b, const Tensor& c) { return at::addcmul(c, a, b); }

// The signatures of names that aten overloads.
template <class... A>
using Fn = Tensor(const Tensor&, A...);
template <class... A>
using FnInplace = Tensor&(Tensor&, A...);
template <class X>
using FnOut = Tensor&(const Tensor&, X, Tensor&);
template <class X>
using WithMode = Fn<X, Mode>;
template <class X>
using WithModeInplace = FnInplace<X, Mode>;
template <class X>
using WithModeOut = Tensor&(const Tensor&, X, Mode, Tensor&);
template <class X>
using Bounds = Fn<X, X>;
template <class X>
using BoundsInplace = FnInplace<X, X>;
template <class X>
using BoundsOut = Tensor&(const Tensor&, X, X, Tensor&);
template <class X>
using Weight = Fn<const Tensor&, X>;
template <class X>
using WeightInplace = FnInplace<const Tensor&, X>;
template <class X>
using WeightOut = Tensor&(const Tensor&, const Tensor&, X, Tensor&);

}  // namespace

const Rows& pointwise_rows() {
  using T = const Tensor&;
  using S = const Scalar&;
  static const Rows rows = {
      ROW("add.Tensor", Add, STOCK(add)),
      ROW("add_.Tensor", Add, STOCK(add_)),
      ROW("add.out", Add, STOCK(add_outf)),
      ROW("add.Scalar", AddScalar, COMPOSITE_EXPLICIT(add)),
      ROW("add_.Scalar", AddScalar, COMPOSITE_EXPLICIT(add_)),
      ROW("add.Scalar_out", AddScalar, COMPOSITE_EXPLICIT(add_outf)),
      ROW("sub.Tensor", Sub, STOCK(sub)),
      ROW("sub_.Tensor", Sub, STOCK(sub_)),
      ROW("sub.out", Sub, STOCK(sub_outf)),
      ROW("sub.Scalar", SubScalar, COMPOSITE_EXPLICIT(sub)),
      ROW("sub_.Scalar", SubScalar, COMPOSITE_EXPLICIT(sub_)),
      ROW("sub.Scalar_out", SubScalar, COMPOSITE_EXPLICIT(sub_outf)),
      ROW("mul.Tensor", Mul, STOCK(mul)),
      ROW("mul_.Tensor", Mul, STOCK(mul_)),
      ROW("mul.out", Mul, STOCK(mul_outf)),
      ROW("mul.Scalar", MulScalar, COMPOSITE_EXPLICIT(mul)),
      ROW("mul_.Scalar", MulScalar, COMPOSITE_EXPLICIT(mul_)),
      ROW("mul.Scalar_out", MulScalar, COMPOSITE_EXPLICIT(mul_outf)),
      ROW("div.Tensor", DivTensor, STOCK_AS(Fn<T>, div)),
      ROW("div_.Tensor", DivTensor, STOCK_AS(FnInplace<T>, div_)),
      ROW("div.out", DivTensor, STOCK_AS(FnOut<T>, div_outf)),
      ROW("div.Tensor_mode", DivTensor, STOCK_AS(WithMode<T>, div)),
      ROW("div_.Tensor_mode", DivTensor, STOCK_AS(WithModeInplace<T>, div_)),
      ROW("div.out_mode", DivTensor, STOCK_AS(WithModeOut<T>, div_outf)),
      ROW("div.Scalar", DivScalar, COMPOSITE_EXPLICIT_AS(Fn<S>, div)),
      ROW("div_.Scalar", DivScalar, COMPOSITE_EXPLICIT_AS(FnInplace<S>, div_)),
      ROW("div.Scalar_out", DivScalar, COMPOSITE_EXPLICIT_AS(FnOut<S>, div_outf)),
      ROW("div.Scalar_mode", DivScalar, COMPOSITE_EXPLICIT_AS(WithMode<S>, div)),
      ROW("div_.Scalar_mode", DivScalar, COMPOSITE_EXPLICIT_AS(WithModeInplace<S>, div_)),
      ROW("div.Scalar_mode_out", DivScalar, COMPOSITE_EXPLICIT_AS(WithModeOut<S>, div_outf)),
      UNARY(neg, Small16Bit<Elementwise<pointwise::neg>>),
      ROW("abs", Abs, COMPOSITE_EXPLICIT(abs)),
      ROW("abs_", Abs, COMPOSITE_EXPLICIT(abs_)),
      ROW("abs.out", Abs, STOCK(abs_outf)),
      UNARY(exp, Elementwise<pointwise::exp>),
      UNARY(log, Elementwise<pointwise::log>),
      UNARY(sqrt, Elementwise<pointwise::sqrt>),
      ROW("pow.Tensor_Scalar", Pow, STOCK_AS(Fn<S>, pow)),
      ROW("pow_.Scalar", Pow, STOCK_AS(FnInplace<S>, pow_)),
      ROW("pow.Tensor_Scalar_out", Pow, STOCK_AS(FnOut<S>, pow_outf)),
      ROW("maximum", Elementwise<pointwise::maximum>, STOCK(maximum)),
      ROW("maximum.out", Elementwise<pointwise::maximum>, STOCK(maximum_outf)),
      ROW("minimum", Elementwise<pointwise::minimum>, STOCK(minimum)),
      ROW("minimum.out", Elementwise<pointwise::minimum>, STOCK(minimum_outf)),
      ROW("clamp", Clamp, STOCK_AS(Bounds<MaybeScalar>, clamp)),
      ROW("clamp_", Clamp, STOCK_AS(BoundsInplace<MaybeScalar>, clamp_)),
      ROW("clamp.out", Clamp, STOCK_AS(BoundsOut<MaybeScalar>, clamp_outf)),
      ROW("clamp.Tensor", ClampTensor, STOCK_AS(Bounds<MaybeTensor>, clamp)),
      ROW("clamp_.Tensor", ClampTensor, STOCK_AS(BoundsInplace<MaybeTensor>, clamp_)),
      ROW("clamp.Tensor_out", ClampTensor, STOCK_AS(BoundsOut<MaybeTensor>, clamp_outf)),
      ROW("addcmul", Elementwise<pointwise::addcmul>, STOCK(addcmul)),
      ROW("addcmul_", Elementwise<pointwise::addcmul>, STOCK(addcmul_)),
      ROW("addcmul.out", Elementwise<pointwise::addcmul>, STOCK(addcmul_outf)),
      ROW("addcdiv", Elementwise<pointwise::addcdiv>, STOCK(addcdiv)),
      ROW("addcdiv_", Elementwise<pointwise::addcdiv>, STOCK(addcdiv_)),
      ROW("addcdiv.out", Elementwise<pointwise::addcdiv>, STOCK(addcdiv_outf)),
      ROW("lerp.Scalar", LerpScalar, STOCK_AS(Weight<S>, lerp)),
      ROW("lerp_.Scalar", LerpScalar, STOCK_AS(WeightInplace<S>, lerp_)),
      ROW("lerp.Scalar_out", LerpScalar, STOCK_AS(WeightOut<S>, lerp_outf)),
      ROW("lerp.Tensor", LerpTensor, STOCK_AS(Weight<T>, lerp)),
      ROW("lerp_.Tensor", LerpTensor, STOCK_AS(WeightInplace<T>, lerp_)),
      ROW("lerp.Tensor_out", LerpTensor, STOCK_AS(WeightOut<T>, lerp_outf)),
      ROW("fused_multiply_add", Elementwise<pointwise::fused_multiply_add>, AnyDevice<&fused_multiply_add_stock>),
      ROW("add_scalar", AddScalar, COMPOSITE_EXPLICIT(add)),
      ROW("mul_scalar", MulScalar, COMPOSITE_EXPLICIT(mul)),
  };
  return rows;
}

}  // namespace rusttorch
