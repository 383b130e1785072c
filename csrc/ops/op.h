#pragma once

// What every op is made of, whatever its family and form. What a kernel does not take goes to the stock kernel, which
// also raises the errors: nothing is written before that is decided.

#include <torch/library.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <concepts>
#include <optional>
#include <tuple>
#include <vector>

#include "../families.h"
#include "tensor.h"

namespace rusttorch {

// Why a call was handed to stock.
enum class Handed : uint8_t { no, dtype, layout, size, option };
constexpr std::array<const char*, 5> handed_names = {"", "dtype", "layout", "size", "option"};

// While it is set, products, convolutions and recurrent layers are handed to stock only where no kernel takes them, not
// where stock is faster: for tests, and for measuring where that is.
inline std::atomic<bool> take_all = false;

// How often an op ran here, and how often it was handed to stock, by reason.
struct Stats {
  std::array<std::atomic<int64_t>, handed_names.size()> calls{};
  void count(Handed reason) { calls[size_t(reason)].fetch_add(1, std::memory_order_relaxed); }
};

#ifdef RUSTTORCH_CUDA
inline bool is_on_cuda(const Tensor& t) { return t.is_cuda(); }
inline bool is_on_cuda(MaybeTensor t) { return t && t->is_cuda(); }
inline bool is_on_cuda(at::TensorList list) {
  return std::any_of(list.begin(), list.end(), [](const Tensor& t) { return t.is_cuda(); });
}
template <class T>
bool is_on_cuda(const T&) {
  return false;
}
#endif

// Stock's kernel for each device that rusttorch is built for, called without the dispatcher. Its signature says which
// form the op is. The second macro is for names that aten overloads.
#ifdef RUSTTORCH_CUDA
#define RUSTTORCH_STOCK(fn) ::rusttorch::Stock<&at::cpu::fn, &at::cuda::fn>
#define RUSTTORCH_STOCK_AS(type, fn)                                         \
  ::rusttorch::Stock<static_cast<std::type_identity_t<type>*>(&at::cpu::fn), \
                     static_cast<std::type_identity_t<type>*>(&at::cuda::fn)>
template <auto cpu, auto cuda>
#else
#define RUSTTORCH_STOCK(fn) ::rusttorch::Stock<&at::cpu::fn>
#define RUSTTORCH_STOCK_AS(type, fn) ::rusttorch::Stock<static_cast<std::type_identity_t<type>*>(&at::cpu::fn)>
template <auto cpu>
#endif
struct Stock {
  using Signature = decltype(cpu);
  template <class... A>
  static decltype(auto) call([[maybe_unused]] Device device, A&&... args) {
#ifdef RUSTTORCH_CUDA
    // As the dispatcher picks it: stock's CPU kernels do not look where the tensors are that a device's refuse.
    if (device == Device::cuda || (is_on_cuda(args) || ...)) return cuda(std::forward<A>(args)...);
#endif
    return cpu(std::forward<A>(args)...);
  }
};

// A stock kernel that picks the device itself.
template <auto fn>
struct AnyDevice {
  using Signature = decltype(fn);
  template <class... A>
  static decltype(auto) call(Device, A&&... args) {
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

// How a call is taken or handed over, in every family. A Pick makes a request of the arguments, which says what is
// asked for and of which device; the request's Plan decides whether a kernel takes that, before anything is written. A
// plan then runs by what the form of the op asks of it:
//   functional     compute<R>() allocates the result R, a tensor, a tuple or a list, and writes it
//   in-place, out= accepts(outputs...), or reason() says why it does not; then run(outputs...)
//   an update      of what it was given, which returns nothing: run()
// Where the decision takes a look at the values themselves, that is look(), which is called where there are some.
template <class R>
concept IsRequest = requires(const R& request, typename R::Plan plan) {
  typename R::Plan;
  { request.device() } -> std::same_as<Device>;
  requires std::constructible_from<typename R::Plan, const R&>;
  { plan.reason() } -> std::same_as<Handed>;  // why no kernel takes it, or Handed::no
};

// The op itself, in the form that stock's signature has.
template <Name name, class Pick, class Stock, class Signature = typename Stock::Signature>
struct Op;

// How many tensors a result that is written to has; none for a functional op's.
template <class R>
constexpr size_t written = 0;
template <>
inline constexpr size_t written<Tensor&> = 1;
template <class... T>
inline constexpr size_t written<std::tuple<T&...>> = sizeof...(T);

template <Name name, class Plan, class... Out>
bool is_taken(Plan& plan, const Out&... out) {
  if constexpr (requires { plan.look(); }) plan.look();
  if constexpr (sizeof...(Out) > 0) {
    if (plan.reason() == Handed::no) plan.accepts(out...);
  }
  stats<name>.count(plan.reason());
  return plan.reason() == Handed::no;
}

// Functional.
template <Name name, class Pick, class Stock, class R, class... A>
struct Op<name, Pick, Stock, R (*)(A...)> {
  static R call(A... args) {
    const IsRequest auto request = Pick::request(args...);
    typename decltype(request)::Plan plan(request);
    if (is_taken<name>(plan)) return plan.template compute<R>();
    return Stock::call(request.device(), args...);
  }
};

// In-place: the first tensor is an input, and written.
template <Name name, class Pick, class Stock, class... A>
struct Op<name, Pick, Stock, Tensor& (*)(Tensor&, A...)> {
  static Tensor& call(Tensor& self, A... args) {
    const IsRequest auto request = Pick::request(self, args...);
    typename decltype(request)::Plan plan(request);
    if (!is_taken<name>(plan, self)) return Stock::call(request.device(), self, args...);
    plan.run(self);
    return self;
  }
};

// References to `count` of some, from the one at `begin`.
template <size_t begin, size_t count, class... T>
auto slice(const std::tuple<T&...>& all) {
  return [&]<size_t... i>(std::index_sequence<i...>) {
    return std::tie(std::get<begin + i>(all)...);
  }(std::make_index_sequence<count>());
}

// out=: the last tensors are written; all before them are inputs.
template <Name name, class Pick, class Stock, class R, class... A>
  requires(written<R> > 0)
struct Op<name, Pick, Stock, R (*)(A...)> {
  static R call(A... args) {
    constexpr size_t inputs = sizeof...(A) - written<R>;
    const auto all = std::tie(args...);
    const IsRequest auto request =
        std::apply([](auto&... input) { return Pick::request(input...); }, slice<0, inputs>(all));
    typename decltype(request)::Plan plan(request);
    return std::apply(
        [&](auto&... out) -> R {
          if (!is_taken<name>(plan, out...)) return Stock::call(request.device(), args...);
          plan.run(out...);
          return R(out...);
        },
        slice<inputs, written<R>>(all));
  }
};

// An update of what is given.
template <Name name, class Pick, class Stock, class... A>
struct Op<name, Pick, Stock, void (*)(A...)> {
  static void call(A... args) {
    const IsRequest auto request = Pick::request(args...);
    typename decltype(request)::Plan plan(request);
    is_taken<name>(plan) ? plan.run() : Stock::call(request.device(), args...);
  }
};

// A kernel as the dispatcher takes it. A kernel has SymInts where stock's has: the dispatcher keeps kernels with them
// and kernels without in slots of their own, and a thread that calls while ops are exchanged must find neither of its
// slots emptied.
struct Impl {
  void (*add)(torch::Library&, const char* name);  // which compares its types with the op's schema
  c10::KernelFunction function;
  c10::impl::CppSignature signature;
};
template <auto f>
Impl impl() {
  return {[](torch::Library& m, const char* name) { m.impl(name, TORCH_FN(f)); },
          c10::KernelFunction::makeFromUnboxedFunction(TORCH_FN(f)), c10::impl::CppSignature::make<decltype(f)>()};
}

// One line of what an ops file registers, in rusttorch's namespace and, when swapped, in aten's.
struct Row {
  const char* name;  // with its overload, as in schemas.cpp
  Impl impl;
  Stats* stats = nullptr;
  // At the autograd key, where aten decomposes the op or differentiates it in parts.
  std::optional<Impl> autograd = std::nullopt;
  bool composite = false;  // made of other ops of the table, which have the kernels and the derivatives
};
using Rows = std::vector<Row>;

// Each family's, in its file.
#define RUSTTORCH_DECLARE_ROWS(family) const Rows& family##_rows();
RUSTTORCH_FAMILIES(RUSTTORCH_DECLARE_ROWS)

#define RUSTTORCH_ROW(name, ...) \
  ::rusttorch::Row { name, ::rusttorch::impl<&::rusttorch::Op<name, __VA_ARGS__>::call>(), &::rusttorch::stats<name> }

}  // namespace rusttorch
