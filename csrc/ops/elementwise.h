#pragma once

// The path every elementwise op takes, whatever its family and form: collect the call's tensors and scalars, see
// whether they are what a kernel takes, allocate, run.

#include <string_view>

#include "../kernels/family.h"
#include "op.h"

namespace rusttorch {

class ElementwisePlan;

// One call: which kernel, on what.
struct ElementwiseRequest {
  using Plan = ElementwisePlan;

  ByDevice<ElementwiseArgs> kernel;  // none: an option that no kernel has
  std::array<const Tensor*, 4> in{};
  size_t tensors = 0;
  std::array<Scalar, 3> scalars;
  size_t scalar_count = 0;
  int64_t limit_16_bit = INT64_MAX;  // from how many bf16 or f16 elements on stock is faster on a CPU, by measurement
  bool contiguous = false;      // stock's output does not take the input's strides: only contiguous inputs are taken
  bool rows = false;            // on a CPU, rows may lie apart: only the last dim must be contiguous
  bool total = false;           // the result is one number: the sum of what the kernel gives, times scale
  bool mean = false;            // and divided by the number of elements
  bool grad_is_single = false;  // in[0] may be one number in the dtype of the rest, whatever that is

  void add(const Tensor& t) { in[tensors++] = &t; }
  void add(const Scalar& s) { scalars[scalar_count++] = s; }
  void add(bool) {}  // flags and modes choose the kernel, they are not passed to it
  void add(std::string_view) {}

  // The first that is no CPU: beside a device's tensors, a number may be on the CPU.
  Device device() const {
    for (size_t k = 0; k < tensors; ++k) {
      if (!in[k]->is_cpu()) return device_type(*in[k]);
    }
    return Device::cpu;
  }
};

// What a kernel is given, of a request that fits one; the outputs come last.
class ElementwisePlan {
 public:
  explicit ElementwisePlan(const ElementwiseRequest& request) : request_(request), reason_(fit()) {}

  Handed reason() const { return reason_; }

  template <class R>
  R compute() {
    if constexpr (std::is_same_v<R, Tensor>) {
      Tensor out = allocate();
      run(out);
      return out;
    } else {
      R pair{allocate(), allocate()};
      run(std::get<0>(pair), std::get<1>(pair));
      return pair;
    }
  }
  bool accepts(const Tensor& out);
  bool accepts(const Tensor& out, const Tensor& second) {
    return accepts(out) && accepts(second) && (!overlap(out, second) || refuse(Handed::layout));
  }
  // Outputs whose rows lie apart.
  bool accepts_rows() {
    reason_ = fit_rows();
    return reason_ == Handed::no;
  }
  void run(const Tensor& out) { run_on(out, nullptr); }
  void run(const Tensor& out, const Tensor& second) { run_on(out, &second); }
  // Of a request for one: what the output will be, before it is rounded to its dtype.
  double total();

 protected:
  bool refuse(Handed reason) {
    reason_ = reason;
    return false;
  }

 private:
  // What can be told from sizes, strides and dtypes, which fake tensors have too; bind() then takes the data.
  Handed fit();
  Handed fit_rows() const;
  bool fill_scalars();
  bool is_single(size_t position) const;
  bool single_fits(const Tensor& t) const;
  void bind();
  void bind_single(const Tensor& t, size_t position);
  Tensor allocate() const;  // sizes, strides and dtype of the inputs
  void run_on(const Tensor& out, const Tensor* second);
  void run_rows(const Tensor& out, const Tensor* second);

  const ElementwiseRequest& request_;
  const Tensor* like_ = nullptr;  // an input that has the output's sizes and strides
  bool by_rows_ = false;          // because an input's lie apart
  Kernel<ElementwiseArgs> kernel_{};
  ElementwiseArgs args_{};
  alignas(8) std::array<std::byte, 8 * 3> scalars_;  // in the type that is computed in
  alignas(8) std::array<std::byte, 8 * 4> singles_;  // the value of an input that has one element
  Handed reason_;
  std::optional<double> total_;
};

// How a call becomes a request: always kernel K, with the tensors and scalars in the order of the schema.
template <auto K>
struct Elementwise {
  template <class... A>
  static ElementwiseRequest request(const A&... args) {
    ElementwiseRequest r;
    r.kernel = kernel(K);
    (r.add(args), ...);
    return r;
  }
};

// The request of an op that promotes nothing: stock raises where its tensors are of several dtypes.
inline ElementwiseRequest of_one_dtype(ElementwiseRequest r) {
  for (size_t k = 1; k < r.tensors; ++k) {
    if (r.in[k]->scalar_type() != r.in[0]->scalar_type()) r.kernel = nullptr;
  }
  return r;
}

// Pick's request, with a limit_16_bit: stock's 16-bit kernels do no more than turn a bit, or round less often.
template <class Pick, int64_t limit = 2048>
struct Small16Bit {
  template <class... A>
  static ElementwiseRequest request(const A&... args) {
    ElementwiseRequest r = Pick::request(args...);
    r.limit_16_bit = limit;
    return r;
  }
};

}  // namespace rusttorch
