#pragma once

// The path every elementwise op takes, whatever its family and form: collect the call's tensors and scalars, see
// whether they are what a kernel takes, allocate, run. What a kernel does not take goes to the stock kernel, which
// also raises the errors: nothing is written before that is decided.

#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <array>
#include <atomic>
#include <optional>
#include <string_view>
#include <vector>

#include "../kernels/kernel.h"

namespace rusttorch {

using at::Scalar;
using at::Tensor;

// Why a call was handed to stock.
enum class Handed : uint8_t { no, dtype, layout, size, option };
constexpr std::array<const char*, 5> handed_names = {"", "dtype", "layout", "size", "option"};

// How often an op ran here, and how often it was handed to stock, by reason.
struct Stats {
  std::array<std::atomic<int64_t>, handed_names.size()> calls{};
  void count(Handed reason) { calls[size_t(reason)].fetch_add(1, std::memory_order_relaxed); }
};

// One call: which kernel, on what.
struct Request {
  Kernel (*kernel)(c10::DeviceType) = nullptr;  // none: an option that no kernel has
  std::array<const Tensor*, 3> in{};
  size_t tensors = 0;
  std::array<Scalar, 3> scalars;
  size_t scalar_count = 0;
  int64_t limit_16_bit = INT64_MAX;  // from how many bf16 or f16 elements on stock is faster, by measurement
  bool contiguous = false;  // stock's output does not take the input's strides: only contiguous inputs are taken

  void add(const Tensor& t) { in[tensors++] = &t; }
  void add(const Scalar& s) { scalars[scalar_count++] = s; }
  void add(bool) {}  // flags and modes choose the kernel, they are not passed to it
  void add(std::string_view) {}
};

// A request that fits a kernel: everything but the outputs.
class Plan {
 public:
  explicit Plan(const Request& request) : request_(request), reason_(fit()) {}

  Handed reason() const { return reason_; }
  // The output to be: sizes, strides and dtype of the inputs.
  Tensor allocate() const;
  // Whether t can be written as it is; if not, reason() says why.
  bool accepts(const Tensor& t);
  void run(const Tensor& out, const Tensor* second_out = nullptr);

 private:
  Handed fit();
  bool fill_scalars();
  bool fill_single(const Tensor& t, size_t position);

  const Request& request_;
  const Tensor* like_ = nullptr;  // an input that has the output's sizes and strides
  Kernel kernel_{};
  Args args_{};
  alignas(8) std::array<std::byte, 8 * 3> scalars_;  // in the type that is computed in
  alignas(8) std::array<std::byte, 8 * 3> singles_;  // the value of an input that has one element
  Handed reason_;
};

// Stock's kernel for each device that rusttorch is built for, called without the dispatcher. Its signature says which
// form the op is. The second macro is for names that aten overloads.
#ifdef RUSTTORCH_CUDA
#define RUSTTORCH_STOCK(fn) ::rusttorch::Stock<&at::cpu::fn, &at::cuda::fn>
#define RUSTTORCH_STOCK_AS(type, fn) \
  ::rusttorch::Stock<static_cast<type*>(&at::cpu::fn), static_cast<type*>(&at::cuda::fn)>
template <auto cpu, auto cuda>
#else
#define RUSTTORCH_STOCK(fn) ::rusttorch::Stock<&at::cpu::fn>
#define RUSTTORCH_STOCK_AS(type, fn) ::rusttorch::Stock<static_cast<type*>(&at::cpu::fn)>
template <auto cpu>
#endif
struct Stock {
  using Signature = decltype(cpu);
  template <class... A>
  static decltype(auto) call([[maybe_unused]] c10::DeviceType device, A&&... args) {
#ifdef RUSTTORCH_CUDA
    if (device == c10::DeviceType::CUDA) return cuda(std::forward<A>(args)...);
#endif
    return cpu(std::forward<A>(args)...);
  }
};

// A stock kernel that picks the device itself.
template <auto fn>
struct AnyDevice {
  using Signature = decltype(fn);
  template <class... A>
  static decltype(auto) call(c10::DeviceType, A&&... args) {
    return fn(std::forward<A>(args)...);
  }
};

template <size_t n>
struct Name {
  char text[n];
  constexpr Name(const char (&s)[n]) { std::copy_n(s, n, text); }
};

template <Name name>
inline Stats stats;

// How a call becomes a request: always kernel K, with the tensors and scalars in the order of the schema.
template <auto K>
Kernel resolve(c10::DeviceType device) {
  return kernel(K, device);
}
template <auto K>
struct Always {
  template <class... A>
  static Request request(const A&... args) {
    Request r;
    r.kernel = &resolve<K>;
    (r.add(args), ...);
    return r;
  }
};

// Pick's request, with a limit_16_bit: stock's 16-bit kernels do no more than turn a bit, or round less often.
template <class Pick, int64_t limit = 2048>
struct Small16Bit {
  template <class... A>
  static Request request(const A&... args) {
    Request r = Pick::request(args...);
    r.limit_16_bit = limit;
    return r;
  }
};

inline c10::DeviceType device_type(const Tensor& t) { return t.device().type(); }

// The op itself. Which form it is (functional, in-place, out=) follows from stock's signature.
template <Name name, class Pick, class Stock, class Signature = typename Stock::Signature>
struct Op;

template <Name name, class Pick, class Stock, class... A>
struct Op<name, Pick, Stock, Tensor (*)(A...)> {
  static Tensor call(A... args) {
    const Request request = Pick::request(args...);
    Plan plan(request);
    stats<name>.count(plan.reason());
    if (plan.reason() != Handed::no) return Stock::call(device_type(*request.in[0]), args...);
    Tensor out = plan.allocate();
    plan.run(out);
    return out;
  }
};

template <class Stock, class Out, class... A>
Out& write(Stats& stats, const Request& request, Out& out, A&&... args) {
  Plan plan(request);
  const bool ours = plan.reason() == Handed::no && plan.accepts(out);
  stats.count(plan.reason());
  if (!ours) return Stock::call(device_type(*request.in[0]), std::forward<A>(args)...);
  plan.run(out);
  return out;
}

// In-place: the first argument is written.
template <Name name, class Pick, class Stock, class... A>
struct Op<name, Pick, Stock, Tensor& (*)(Tensor&, A...)> {
  static Tensor& call(Tensor& self, A... args) {
    return write<Stock>(stats<name>, Pick::request(self, args...), self, self, args...);
  }
};

// out=: the last argument is written. A parameter pack can only be taken apart at its end, hence one text per count.
template <Name name, class Pick, class Stock, class A>
struct Op<name, Pick, Stock, Tensor& (*)(const Tensor&, A, Tensor&)> {
  static Tensor& call(const Tensor& a, A b, Tensor& out) {
    return write<Stock>(stats<name>, Pick::request(a, b), out, a, b, out);
  }
};
template <Name name, class Pick, class Stock>
struct Op<name, Pick, Stock, Tensor& (*)(const Tensor&, Tensor&)> {
  static Tensor& call(const Tensor& a, Tensor& out) { return write<Stock>(stats<name>, Pick::request(a), out, a, out); }
};
template <Name name, class Pick, class Stock, class A, class B>
struct Op<name, Pick, Stock, Tensor& (*)(const Tensor&, A, B, Tensor&)> {
  static Tensor& call(const Tensor& a, A b, B c, Tensor& out) {
    return write<Stock>(stats<name>, Pick::request(a, b, c), out, a, b, c, out);
  }
};
template <Name name, class Pick, class Stock, class A, class B, class C>
struct Op<name, Pick, Stock, Tensor& (*)(const Tensor&, A, B, C, Tensor&)> {
  static Tensor& call(const Tensor& a, A b, B c, C d, Tensor& out) {
    return write<Stock>(stats<name>, Pick::request(a, b, c, d), out, a, b, c, d, out);
  }
};
template <Name name, class Pick, class Stock, class A, class B, class C, class D, class E>
struct Op<name, Pick, Stock, Tensor& (*)(const Tensor&, A, B, C, D, E, Tensor&)> {
  static Tensor& call(const Tensor& a, A b, B c, C d, D e, E f, Tensor& out) {
    return write<Stock>(stats<name>, Pick::request(a, b, c, d, e, f), out, a, b, c, d, e, f, out);
  }
};

// One line of what an ops file registers, in rusttorch's namespace and, when swapped, in aten's.
struct Row {
  const char* name;  // with its overload, as in schemas.cpp
  void (*impl)(torch::Library&, const char*);
  Stats* stats;
};
using Rows = std::vector<Row>;

template <class O>
void impl(torch::Library& m, const char* name) {
  m.impl(name, TORCH_FN(O::call));
}
#define RUSTTORCH_ROW(name, ...) \
  ::rusttorch::Row { name, &::rusttorch::impl<::rusttorch::Op<name, __VA_ARGS__>>, &::rusttorch::stats<name> }

}  // namespace rusttorch
