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
#include <optional>
#include <tuple>
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

inline c10::DeviceType device_type(const Tensor& t) { return t.device().type(); }

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

// p moved on by so many bytes; nothing stays nothing.
template <class P>
void advance(P*& p, int64_t bytes) {
  using Byte = std::conditional_t<std::is_const_v<P>, const char, char>;
  if (p) p = reinterpret_cast<P*>(reinterpret_cast<Byte*>(p) + bytes);
}

// All of a call at once, on t's device.
template <class Run, class Args>
void run_on_device(const Tensor& t, Run run, Args& args) {
  const c10::DeviceGuard guard(t.device());
  run(args);
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

// The op itself. Which form it is (functional, in-place, out=) follows from stock's signature. Pick makes a request of
// the arguments, and the request's Plan decides, allocates and runs:
//   Plan(request), reason()   whether a kernel takes it; if not, why
//   compute<R>()              allocates the result R, one tensor or a tuple, and runs
//   accepts(outputs...)       whether these can be written as they are; if not, reason() says why
//   run(outputs...)
template <Name name, class Pick, class Stock, class Signature = typename Stock::Signature>
struct Op;

// How many tensors a result that is written to has; none for a functional op's.
template <class R>
constexpr size_t written = 0;
template <>
inline constexpr size_t written<Tensor&> = 1;
template <class... T>
inline constexpr size_t written<std::tuple<T&...>> = sizeof...(T);

// f of count elements of a tuple, from the one at begin.
template <size_t begin, size_t count, class F, class Tuple>
decltype(auto) apply_part(F&& f, const Tuple& all) {
  return [&]<size_t... i>(std::index_sequence<i...>) -> decltype(auto) {
    return f(std::get<begin + i>(all)...);
  }(std::make_index_sequence<count>());
}

template <Name name, class Pick, class Stock, class R, class... A>
struct Op<name, Pick, Stock, R (*)(A...)> {
  static R call(A... args) {
    const auto all = std::tie(args...);
    constexpr size_t count = sizeof...(A), outs = written<R>;
    constexpr bool in_place = std::is_same_v<std::tuple_element_t<0, std::tuple<A...>>, Tensor&>;
    constexpr size_t inputs = in_place ? count : count - outs, first_out = in_place ? 0 : inputs;
    const auto pick = [](const auto&... input) { return Pick::request(input...); };
    const auto request = apply_part<0, inputs>(pick, all);
    typename decltype(request)::Plan plan(request);
    if constexpr (outs == 0) {
      stats<name>.count(plan.reason());
      if (plan.reason() == Handed::no) return plan.template compute<R>();
    } else {
      const auto accepted = [&](const auto&... out) { return plan.accepts(out...); };
      const bool ours = plan.reason() == Handed::no && apply_part<first_out, outs>(accepted, all);
      stats<name>.count(plan.reason());
      if (ours) {
        apply_part<first_out, outs>([&](const auto&... out) { plan.run(out...); }, all);
        return apply_part<first_out, outs>([](auto&... out) -> R { return R(out...); }, all);
      }
    }
    return Stock::call(request.device(), args...);
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
  } else {
    return false;
  }
}

// Above the backend keys: whether rusttorch's op, which has a derivative of its own, would run a kernel of ours for
// these arguments, and has an answer.
template <class Pick, class... A>
Handed reason_above_backends(const A&... args) {
  if ((is_special(args) || ...)) return Handed::option;
  const auto request = Pick::request(args...);
  return typename decltype(request)::Plan(request).reason();
}

// The aten op that is decomposed above the backend keys, when swapped, at the autograd key: rusttorch's op, or stock's
// decomposition, whose parts are differentiated.
template <Name name, class Pick, class Stock, class Signature = typename Stock::Signature>
struct Decomposed;

template <Name name, class Pick, class Stock, class R, class... A>
struct Decomposed<name, Pick, Stock, R (*)(A...)> {
  static R call(A... args) {
    static const auto op = own_op<R(A...)>(name.text);
    const Handed reason = reason_above_backends<Pick>(args...);
    if (reason == Handed::no) return op.call(args...);
    stats<name>.count(reason);
    return Stock::call(device_type(std::get<0>(std::tie(args...))), args...);
  }
};

// The aten op whose autograd kernel is swapped too: rusttorch's op, or stock's autograd kernel, which is still at the
// key of the backends that nothing is swapped for.
template <Name name, class Pick, class Signature>
struct Differentiated;

template <Name name, class Pick, class R, class... A>
struct Differentiated<name, Pick, R (*)(A...)> {
  static R call(c10::DispatchKeySet keys, A... args) {
    static const auto op = own_op<R(A...)>(name.text), stock = typed_op<R(A...)>(std::string("aten::") + name.text);
    if (reason_above_backends<Pick>(args...) == Handed::no) return op.call(args...);
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

}  // namespace rusttorch
