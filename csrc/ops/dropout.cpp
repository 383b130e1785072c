#include "../kernels/dropout.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/ops/empty_like.h>

#include <cmath>

#include "run.h"
#include "stock.h"

namespace rusttorch {
namespace {

using Two = std::tuple<Tensor, Tensor>;

// Whether the kernels take the tensor.
Handed reason_of(const Tensor& input) {
  if (!on_cpu(input)) return Handed::option;
  if (input.numel() == 0) return Handed::size;
  const bool dense = input.layout() == at::kStrided && input.is_non_overlapping_and_dense() && is_plain(input);
  if (!dense) return Handed::layout;
  return dtype_of(input) && at::isFloatingType(input.scalar_type()) ? Handed::no : Handed::dtype;
}
Handed dropout_reason(const Tensor& input, double p) { return p > 0 && p < 1 ? reason_of(input) : Handed::option; }

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
Two dropout_forward(const Tensor& input, double p) {
  const Two result(at::empty_like(input), at::empty_like(input, input.options().dtype(at::kBool)));
  const auto& [out, mask] = result;
  DropoutArgs a = arguments(input, mask, out, 1 / (1 - p));
  a.kept = uint64_t(std::ceil((1 - p) * 0x1p53));
  auto* generator =
      at::get_generator_or_default<at::CPUGeneratorImpl>(std::nullopt, at::detail::getDefaultCPUGenerator());
  const std::lock_guard<std::mutex> lock(generator->mutex_);
  at::mt19937 engine = generator->engine();
  auto data = engine.data();
  Twister random{data.state_.data(), Twister::size + 1 - data.left_};
  a.random = &random;
  kernel(dropout::forward).on(Device::cpu).run(a);
  data.left_ = Twister::size + 1 - random.next;
  data.next_ = uint32_t(random.next);
  engine.set_data(data);
  generator->set_engine(engine);
  return result;
}

struct NativeDropout {
  static Two call(const Tensor& input, double p, std::optional<bool> train) {
    const Handed reason = train.value_or(true) ? dropout_reason(input, p) : Handed::option;
    stats<"native_dropout">.count(reason);
    if (reason == Handed::no) return dropout_forward(input, p);
    return STOCK(native_dropout)::call(device_type(input), input, p, train);
  }
};

struct NativeDropoutBackward {
  static Tensor call(const Tensor& grad, const Tensor& mask, double scale) {
    Handed reason = reason_of(grad);
    if (reason == Handed::no && mask.scalar_type() != at::kBool) reason = Handed::dtype;
    if (reason == Handed::no && !(mask.is_cpu() && is_plain(mask))) reason = Handed::option;
    if (reason == Handed::no && !(grad.sizes().equals(mask.sizes()) && grad.strides().equals(mask.strides()))) {
      reason = Handed::layout;
    }
    stats<"native_dropout_backward">.count(reason);
    if (reason != Handed::no) {
      return STOCK(native_dropout_backward)::call(device_type(grad), grad, mask, scale);
    }
    const Tensor out = at::empty_like(grad);
    const DropoutArgs whole = arguments(grad, mask, out, scale);
    run_items(grad, kernel(dropout::backward).on(Device::cpu), whole, whole.n, 1);
    return out;
  }
};

// aten's decomposition draws a tensor of the input's dtype, which is kept for the backward. Here that is a mask of one
// byte an element.
struct Dropout {
  static Tensor call(const Tensor& input, double p, bool train) {
    static const auto op = own_op<Two(const Tensor&, double, std::optional<bool>)>("native_dropout");
    const Handed reason = is_special(input) || !train ? Handed::option : dropout_reason(input, p);
    stats<"dropout">.count(reason);
    if (reason == Handed::no) return std::get<0>(op.call(input, p, true));
    return at::compositeimplicitautograd::dropout(input, p, train);
  }
};

}  // namespace

const Rows& dropout_rows() {
  static const Rows rows = {
      {"native_dropout", &impl<NativeDropout>, &stats<"native_dropout">},
      {"native_dropout_backward", &impl<NativeDropoutBackward>, &stats<"native_dropout_backward">},
      {"dropout", &impl<Dropout>, &stats<"dropout">, &impl<Dropout>, true},
  };
  return rows;
}

}  // namespace rusttorch
