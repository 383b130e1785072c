#pragma once

// Ops that a swap replaces above the backend keys too, because aten makes several of each there: rows for op.h's
// tables.
//                      at a backend's key   at the autograd key: where a kernel will take the call; where not
//   DECOMPOSED_ROW     Op                   Decomposed: rusttorch's op of that name; stock's decomposition
//   COMPOSITE_ROW      Decomposed           Decomposed: another op of ours; stock's decomposition
//   Differentiated     Op                   Differentiated: rusttorch's op of that name; stock's autograd kernel

#include <c10/core/impl/TorchDispatchModeTLS.h>

#include "op.h"

namespace rusttorch {

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
  } else if constexpr (std::is_same_v<T, at::TensorList>) {
    return std::any_of(argument.begin(), argument.end(), [](const Tensor& t) { return is_special(t); });
  } else if constexpr (std::is_same_v<T, c10::SymIntArrayRef>) {
    return !c10::asIntArrayRefSlowOpt(argument);
  } else {
    return false;
  }
}

// Whether autograd will ask for a derivative by one of these; a pointer may be to nothing.
inline bool is_differentiated(std::initializer_list<const Tensor*> tensors) {
  return c10::GradMode::is_enabled() &&
         std::any_of(tensors.begin(), tensors.end(), [](const Tensor* t) { return t && t->requires_grad(); });
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
  // The op of the same name is an Op, which counts its call.
  static constexpr bool ours_counts = std::is_same_v<Ours, OwnOp<name, R (*)(A...)>>;

  static R call(A... args) {
    const Handed reason = reason_above_backends<Pick>(args...);
    if (reason != Handed::no || !ours_counts) stats<name>.count(reason);
    if (reason == Handed::no) return Ours::call(args...);
    return Stock::call(device_type(std::get<0>(std::tie(args...))), args...);
  }
};

// The aten op whose autograd kernel is swapped too: rusttorch's op, or stock's autograd kernel. Ours stands at
// AutogradCPU and hides stock's there, which is one for all backends: at AutogradOther, a backend that nothing is
// swapped for, it is still found. (It comes to our backend kernel, which counts.)
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

}  // namespace rusttorch

#define RUSTTORCH_DECOMPOSED_ROW(name, ...)                                                          \
  ::rusttorch::Row {                                                                                 \
    name, ::rusttorch::impl<&::rusttorch::Op<name, __VA_ARGS__>::call>(), &::rusttorch::stats<name>, \
        ::rusttorch::impl<&::rusttorch::Decomposed<name, __VA_ARGS__>::call>()                       \
  }
// Pick, Stock, and what is called where a kernel will take it: another op, which has the derivative.
#define RUSTTORCH_COMPOSITE_ROW(name, ...)                                                                   \
  ::rusttorch::Row {                                                                                         \
    name, ::rusttorch::impl<&::rusttorch::Decomposed<name, __VA_ARGS__>::call>(), &::rusttorch::stats<name>, \
        ::rusttorch::impl<&::rusttorch::Decomposed<name, __VA_ARGS__>::call>(), true                         \
  }
