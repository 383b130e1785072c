#pragma once

// What every op is made of, whatever its family and form. What a kernel does not take goes to the stock kernel, which
// also raises the errors: nothing is written before that is decided.

#include <ATen/EmptyTensor.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/library.h>

#include <array>
#include <atomic>
#include <concepts>
#include <optional>
#include <tuple>
#include <vector>

#include "../families.h"
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
    if (device == Device::cuda) return cuda(std::forward<A>(args)...);
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

inline Device device_type(const Tensor& t) { return t.is_cuda() ? Device::cuda : Device::cpu; }

// Whether t's kernels are those of csrc/kernels. All others are those of csrc_cuda, which in the tests' emulation of a
// GPU (tests/emulation) get CPU tensors.
inline bool on_cpu([[maybe_unused]] const Tensor& t) {
#ifdef RUSTTORCH_EMULATION
  return false;
#else
  return t.is_cpu();
#endif
}

// A contiguous tensor on t's device.
inline Tensor empty_beside(const Tensor& t, at::IntArrayRef sizes, at::ScalarType dtype) {
  if (t.is_cpu()) return Tensor(at::detail::empty_cpu(sizes, dtype));
  return at::empty(sizes, t.options().dtype(dtype));
}

inline std::optional<Dtype> dtype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case at::kFloat: return Dtype::f32;
    case at::kDouble: return Dtype::f64;
    case at::kBFloat16: return Dtype::bf16;
    case at::kHalf: return Dtype::f16;
    case at::kInt: return Dtype::i32;
    case at::kLong: return Dtype::i64;
    case at::kBool: return Dtype::b8;
    default: return std::nullopt;
  }
}

// Named tensors went from torch after 2.12.
template <class T>
bool has_names([[maybe_unused]] const T& t) {
  if constexpr (requires { t.has_names(); }) {
    return t.has_names();
  } else {
    return false;
  }
}

// Whether t is what its memory holds. Zeros without memory (the tangents of forward-mode AD) and values that are
// negated when they are read reach the kernels that aten lets them through to: those of add.Scalar, mul.Scalar, clone.
inline bool is_plain(const Tensor& t) {
  constexpr c10::DispatchKeySet lazy(
      {c10::DispatchKey::ZeroTensor, c10::DispatchKey::Negative, c10::DispatchKey::Conjugate});
  return !t.key_set().has_any(lazy) && !has_names(t);
}

// How a call is taken or handed over, in every family. A Pick makes a request of the arguments, which says what is
// asked for and of which device; the request's Plan decides whether a kernel takes that, before anything is written. A
// plan then runs by what the form of the op asks of it:
//   functional     compute<R>() allocates the result R, a tensor or a tuple, and writes it
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

using MaybeTensor = const std::optional<Tensor>&;
// aten's autograd passes an absent tensor as an undefined one.
inline bool given(MaybeTensor t) { return t && t->defined(); }

// Stock's error where tensors are on several devices.
inline void check_one_device(std::initializer_list<const Tensor*> tensors) {
  const Tensor& first = **tensors.begin();
  for (const Tensor* t : tensors) {
    TORCH_CHECK(t->device() == first.device(), "Expected all tensors to be on the same device, but found at least two ",
                "devices, ", first.device(), " and ", t->device(), "!");
  }
}

// Whether two dense tensors share memory.
inline bool overlap(const Tensor& a, const Tensor& b) {
  const auto *p = static_cast<const char*>(a.const_data_ptr()), *q = static_cast<const char*>(b.const_data_ptr());
  return p < q + b.nbytes() && q < p + a.nbytes();
}

// Whether out is what a kernel that writes a contiguous tensor may write to, for an input in, which is dense.
inline bool is_contiguous_output(const Tensor& out, at::ScalarType dtype, at::IntArrayRef sizes, const Tensor& in) {
  return out.defined() && out.scalar_type() == dtype && out.device() == in.device() && out.sizes().equals(sizes) &&
         out.is_contiguous() && is_plain(out) && !overlap(in, out);
}

// An op that has no overload's name, through the dispatcher.
template <class Signature>
c10::TypedOperatorHandle<Signature> typed_op(const std::string& name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name.c_str(), "").template typed<Signature>();
}
template <class Signature>
c10::TypedOperatorHandle<Signature> own_op(const char* name) {
  return typed_op<Signature>(std::string("rusttorch::") + name);
}

// Whether a tensor of a class with a __torch_dispatch__ is one of those that torch traces with (python.cpp).
bool is_tracers(const Tensor& t);

// Whether an argument is a dual number, has a size that is a symbol, belongs to another level of torch.func, or is of a
// class with a __torch_dispatch__ of its own, which knows aten's ops only. So do modes; torch's own tracers know ours.
template <class T>
bool is_special(const T& argument) {
  if constexpr (std::is_same_v<T, Tensor>) {
    constexpr bool without_tracers = true;
    constexpr c10::DispatchKeySet wrapped({c10::DispatchKey::FuncTorchGradWrapper, c10::DispatchKey::FuncTorchBatched});
    return argument.defined() &&
           (argument._fw_grad(0).defined() || argument.unsafeGetTensorImpl()->has_symbolic_sizes_strides() ||
            argument.key_set().has_any(wrapped) || c10::impl::TorchDispatchModeTLS::any_modes_set(without_tracers) ||
            (argument.key_set().has(c10::DispatchKey::Python) && !is_tracers(argument)));
  } else if constexpr (std::is_same_v<T, std::optional<Tensor>>) {
    return argument && is_special(*argument);
  } else if constexpr (std::is_same_v<T, c10::SymIntArrayRef>) {
    return !c10::asIntArrayRefSlowOpt(argument);
  } else {
    return false;
  }
}

// Above the backend keys: whether rusttorch's op, which has a derivative of its own, would run a kernel of ours for
// these arguments, and has an answer.
template <class Pick, class... A>
Handed reason_above_backends(const A&... args) {
  if ((is_special(args) || ...)) return Handed::option;
  const IsRequest auto request = Pick::request(args...);
  return typename decltype(request)::Plan(request).reason();
}

// The op of that name, through the dispatcher.
template <Name name, class Signature>
struct OwnOp;

template <Name name, class R, class... A>
struct OwnOp<name, R (*)(A...)> {
  static R call(A... args) {
    static const auto op = own_op<R(A...)>(name.text);
    return op.call(args...);
  }
};

// The aten op that is decomposed above the backend keys, when swapped, at the autograd key: Ours, which has a
// derivative of its own, or stock's decomposition, whose parts are differentiated.
template <Name name, class Pick, class Stock, class Ours = OwnOp<name, typename Stock::Signature>,
          class Signature = typename Stock::Signature>
struct Decomposed;

template <Name name, class Pick, class Stock, class Ours, class R, class... A>
struct Decomposed<name, Pick, Stock, Ours, R (*)(A...)> {
  static constexpr bool counts_itself = std::is_same_v<Ours, OwnOp<name, R (*)(A...)>>;

  static R call(A... args) {
    const Handed reason = reason_above_backends<Pick>(args...);
    if (reason != Handed::no || !counts_itself) stats<name>.count(reason);
    if (reason == Handed::no) return Ours::call(args...);
    return Stock::call(device_type(std::get<0>(std::tie(args...))), args...);
  }
};

// The aten op whose autograd kernel is swapped too: rusttorch's op, or stock's autograd kernel, which is still at the
// key of the backends that nothing is swapped for. (It comes to our backend kernel, which counts.)
template <Name name, class Pick, class Signature>
struct Differentiated;

template <Name name, class Pick, class R, class... A>
struct Differentiated<name, Pick, R (*)(A...)> {
  static R call(c10::DispatchKeySet keys, A... args) {
    static const auto stock = typed_op<R(A...)>(std::string("aten::") + name.text);
    if (reason_above_backends<Pick>(args...) == Handed::no) return OwnOp<name, R (*)(A...)>::call(args...);
    const c10::DispatchKeySet others(c10::DispatchKey::AutogradOther);
    return stock.redispatch((keys & c10::after_autograd_keyset) | others, args...);
  }
};

// One line of what an ops file registers, in rusttorch's namespace and, when swapped, in aten's.
struct Row {
  using Register = void (*)(torch::Library&, const char*);

  const char* name;  // with its overload, as in schemas.cpp
  Register impl;
  Stats* stats;
  Register autograd = nullptr;  // of an aten op that is decomposed above the backend keys, at the autograd key
  bool composite = false;       // made of other ops of the table, which have the kernels and the derivatives
};
using Rows = std::vector<Row>;

// Each family's, in its file.
#define RUSTTORCH_DECLARE_ROWS(family) const Rows& family##_rows();
RUSTTORCH_FAMILIES(RUSTTORCH_DECLARE_ROWS)

// A kernel has SymInts where stock's has: the dispatcher keeps kernels with them and kernels without in slots of their
// own, and a thread that calls while ops are exchanged must find neither of its slots emptied.
template <class O>
void impl(torch::Library& m, const char* name) {
  m.impl(name, TORCH_FN(O::call));
}
#define RUSTTORCH_ROW(name, ...) \
  ::rusttorch::Row { name, &::rusttorch::impl<::rusttorch::Op<name, __VA_ARGS__>>, &::rusttorch::stats<name> }
#define RUSTTORCH_DECOMPOSED_ROW(name, ...)                                                  \
  ::rusttorch::Row {                                                                         \
    name, &::rusttorch::impl<::rusttorch::Op<name, __VA_ARGS__>>, &::rusttorch::stats<name>, \
        &::rusttorch::impl<::rusttorch::Decomposed<name, __VA_ARGS__>>                       \
  }
// Pick, Stock, and what is called where a kernel will take it: another op, which has the derivative.
#define RUSTTORCH_COMPOSITE_ROW(name, ...)                                                           \
  ::rusttorch::Row {                                                                                 \
    name, &::rusttorch::impl<::rusttorch::Decomposed<name, __VA_ARGS__>>, &::rusttorch::stats<name>, \
        &::rusttorch::impl<::rusttorch::Decomposed<name, __VA_ARGS__>>, true                         \
  }

}  // namespace rusttorch
