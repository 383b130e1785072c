#include <ATen/ops/empty_like.h>

#include "decomposed.h"
#include "random.h"
#include "run.h"
#include "stock.h"

namespace rusttorch {
namespace {

using Two = std::tuple<Tensor, Tensor>;

DropoutArgs arguments(const Tensor& in, const Tensor& mask, const Tensor& out, double scale) {
  DropoutArgs a{};
  a.dtype = *dtype_of(in);
  a.n = in.numel();
  a.in = in.const_data_ptr();
  a.mask = static_cast<uint8_t*>(const_cast<void*>(mask.const_data_ptr()));
  a.out = out.mutable_data_ptr();
  a.scale = scale;
  return a;
}

// Keeps exactly the elements that stock's bernoulli_ would with the same state of the generator (where it does not use
// MKL's, as it does on Intel's CPUs), and leaves the generator in the state that it would.
Two drop(const Tensor& input, double p) {
  const Two result(at::empty_like(input), at::empty_like(input, input.options().dtype(at::kBool)));
  const auto& [out, mask] = result;
  DropoutArgs a = arguments(input, mask, out, 1 / (1 - p));
  a.kept = kept_below(p);
  with_default_generator([&](Twister& random) {
    a.random = &random;
    kernel(dropout::forward).on(Device::cpu).run(a);
  });
  return result;
}

class DropoutPlan;

struct DropoutRequest {
  using Plan = DropoutPlan;
  const Tensor& input;           // or the gradient
  const Tensor* mask = nullptr;  // of a backward
  double p_or_scale;
  bool train = true;

  Device device() const { return device_type(input); }
};

class DropoutPlan {
 public:
  explicit DropoutPlan(const DropoutRequest& request) : request_(request), reason_(fit()) {}

  Handed reason() const { return reason_; }

  template <class R>
  R compute() {
    const Tensor& input = request_.input;
    if constexpr (std::is_same_v<R, Two>) {
      return drop(input, request_.p_or_scale);
    } else {
      const Tensor out = at::empty_like(input);
      const DropoutArgs a = arguments(input, *request_.mask, out, request_.p_or_scale);
      run_items(input, kernel(dropout::backward).on(Device::cpu), a, a.n, 1);
      return out;
    }
  }

 private:
  Handed fit() const {
    const Tensor& input = request_.input;
    if (!on_cpu(input)) return Handed::option;
    if (!request_.mask && !(request_.train && request_.p_or_scale > 0 && request_.p_or_scale < 1)) {
      return Handed::option;
    }
    if (input.numel() == 0) return Handed::size;
    const bool dense = input.layout() == at::kStrided && input.is_non_overlapping_and_dense() && is_plain(input);
    if (!dense) return Handed::layout;
    if (!dtype_of(input) || !at::isFloatingType(input.scalar_type())) return Handed::dtype;
    if (!request_.mask) return Handed::no;
    const Tensor& mask = *request_.mask;
    if (mask.scalar_type() != at::kBool) return Handed::dtype;
    if (!mask.is_cpu() || !is_plain(mask)) return Handed::option;
    return mask.sizes().equals(input.sizes()) && mask.strides().equals(input.strides()) ? Handed::no : Handed::layout;
  }

  const DropoutRequest& request_;
  Handed reason_;
};

struct Forward {
  static DropoutRequest request(const Tensor& input, double p, std::optional<bool> train) {
    return {input, nullptr, p, train.value_or(true)};
  }
};
struct Backward {
  static DropoutRequest request(const Tensor& grad, const Tensor& mask, double scale) { return {grad, &mask, scale}; }
};

// aten's decomposition draws a tensor of the input's dtype, which is kept for the backward. Here that is a mask of one
// byte an element.
struct ByNativeDropout {
  static Tensor call(const Tensor& input, double p, bool train) {
    using Native = OwnOp<"native_dropout", Two (*)(const Tensor&, double, std::optional<bool>)>;
    return std::get<0>(Native::call(input, p, train));
  }
};

}  // namespace

const Rows& dropout_rows() {
  static const Rows rows = {
      ROW("native_dropout", Forward, STOCK(native_dropout)),
      ROW("native_dropout_backward", Backward, STOCK(native_dropout_backward)),
      RUSTTORCH_COMPOSITE_ROW("dropout", Forward, COMPOSITE_IMPLICIT(dropout), ByNativeDropout),
  };
  return rows;
}

}  // namespace rusttorch
