#include "../kernels/softmax.h"

#include "decomposed.h"
#include "run.h"
#include "stock.h"

namespace rusttorch {
namespace {

class SoftmaxPlan;

struct SoftmaxRequest {
  using Plan = SoftmaxPlan;
  softmax kernel;
  const Tensor* in[2] = {};  // the input; or, of a backward, the gradient and the output
  int64_t dim;
  bool other_dtype = false;  // of the result

  Device device() const { return device_type(*in[0]); }
};

class SoftmaxPlan {
 public:
  explicit SoftmaxPlan(const SoftmaxRequest& request) : request_(request), reason_(fit()) {}

  Handed reason() const { return reason_; }

  template <class R>
  R compute() {
    const Tensor& x = *request_.in[0];
    Tensor out = empty_beside(x, x.sizes(), x.scalar_type());
    run(out);
    return out;
  }

  bool accepts(const Tensor& out) {
    const Tensor& x = *request_.in[0];
    const bool fits =
        is_contiguous_output(out, x.scalar_type(), x.sizes(), x) && !(request_.in[1] && overlap(*request_.in[1], out));
    if (!fits) reason_ = Handed::layout;
    return fits;
  }

  void run(const Tensor& out) {
    for (int k = 0; k < 2; ++k) args_.in[k] = request_.in[k] ? request_.in[k]->const_data_ptr() : nullptr;
    args_.out = out.mutable_data_ptr();
    run_along(out, kernel(request_.kernel).on(request_.device()), args_);
  }

 private:
  Handed fit() {
    const Tensor& x = *request_.in[0];
    // Stock's kernels read beyond the end of the smaller one, or divide by its zero.
    TORCH_CHECK(!request_.in[1] || request_.in[1]->sizes().equals(x.sizes()),
                "expected a gradient of the output's shape ", request_.in[1]->sizes(), ", but got ", x.sizes());
    if (request_.other_dtype) return Handed::option;
    const auto dtype = dtype_of(x);
    if (!dtype || !at::isFloatingType(x.scalar_type())) return Handed::dtype;
    if (x.dim() == 0 || x.numel() == 0) return Handed::size;
    if (!around(x, request_.dim, args_)) return Handed::option;  // stock raises
    for (const Tensor* t : request_.in) {
      if (!t) continue;
      if (!is_plain(*t)) return Handed::option;
      if (t->scalar_type() != x.scalar_type()) return Handed::dtype;
      if (!t->sizes().equals(x.sizes()) || !t->is_contiguous() || t->device() != x.device()) return Handed::layout;
    }
    args_.dtype = *dtype;
    return on_cpu(x) && stock_is_faster() ? Handed::size : Handed::no;
  }

  // By measurement: where a row is a few vectors, setting up costs more than it saves.
  bool stock_is_faster() const {
    const bool along_rows = args_.inner == 1, narrow = element_size(args_.dtype) == 2;
    const int64_t few = narrow ? 512 : 64;
    switch (request_.kernel) {
      case softmax::softmax: return narrow && (args_.n < few || (along_rows && args_.dtype == Dtype::bf16));
      case softmax::log_softmax: return along_rows ? args_.n > 16 && args_.n < 128 : args_.n < few;
      case softmax::softmax_backward: return along_rows ? args_.n > 16 && args_.n < 1024 : args_.n < 64;
      default: return false;
    }
  }

  const SoftmaxRequest& request_;
  SoftmaxArgs args_{};
  Handed reason_;
};

template <softmax K>
struct Forward {
  static SoftmaxRequest request(const Tensor& self, int64_t dim, bool half_to_float) {
    return {K, {&self, nullptr}, dim, half_to_float};
  }
};
template <softmax K>
struct Backward {
  static SoftmaxRequest request(const Tensor& grad, const Tensor& output, int64_t dim, at::ScalarType input_dtype) {
    return {K, {&grad, &output}, dim, input_dtype != grad.scalar_type()};
  }
};

// softmax and log_softmax with their optional dtype, as in aten.
template <bool log>
struct OfDtype {
  static Tensor call(const Tensor& self, int64_t dim, std::optional<at::ScalarType> dtype) {
    static const auto op = own_op<Tensor(const Tensor&, int64_t, bool)>(log ? "_log_softmax" : "_softmax");
    return op.call(dtype                                          ? self.to(*dtype)
                   : at::isIntegralType(self.scalar_type(), true) ? self.to(at::kFloat)
                                                                  : self,
                   dim, false);
  }
};

#define SOFTMAX(name)                                                                                      \
  ROW("_" #name, Forward<softmax::name>, STOCK(_##name)),                                                  \
      ROW("_" #name ".out", Forward<softmax::name>, STOCK(_##name##_outf)),                                \
      ROW("_" #name "_backward_data", Backward<softmax::name##_backward>, STOCK(_##name##_backward_data)), \
      ROW("_" #name "_backward_data.out", Backward<softmax::name##_backward>, STOCK(_##name##_backward_data_outf))

}  // namespace

const Rows& softmax_rows() {
  static const Rows rows = {
      SOFTMAX(softmax),
      SOFTMAX(log_softmax),
      {.name = "softmax.int", .impl = impl<&OfDtype<false>::call>(), .composite = true},
      {.name = "log_softmax.int", .impl = impl<&OfDtype<true>::call>(), .composite = true},
  };
  return rows;
}

}  // namespace rusttorch
