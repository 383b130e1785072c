#pragma once

// From a Dtype to a type. bf16 and f16 are those of load_store.h, or on a device CUDA's own; a bool is a byte.

#include <type_traits>

#include "kernel.h"

namespace rusttorch {
namespace {

// What a T is computed in.
template <class T>
constexpr bool is_narrow = std::is_same_v<T, bf16> || std::is_same_v<T, f16>;
template <class T>
using Compute = std::conditional_t<is_narrow<T>, float, T>;
template <class T>
constexpr bool is_float_type = std::is_floating_point_v<Compute<T>>;

// Calls f with a number of the dtype, which is one of the set: whoever takes a call has looked.
template <Dtypes dtypes, class F>
void with_type(Dtype dtype, F f) {
  const auto call = [&]<Dtype which, class T>() {
    if constexpr (dtypes >> int(which) & 1) {
      f(T());
    } else {
      __builtin_trap();
    }
  };
  switch (dtype) {
    case Dtype::f32: return call.template operator()<Dtype::f32, float>();
    case Dtype::f64: return call.template operator()<Dtype::f64, double>();
    case Dtype::bf16: return call.template operator()<Dtype::bf16, bf16>();
    case Dtype::f16: return call.template operator()<Dtype::f16, f16>();
    case Dtype::i32: return call.template operator()<Dtype::i32, int32_t>();
    case Dtype::i64: return call.template operator()<Dtype::i64, int64_t>();
    case Dtype::b8: return call.template operator()<Dtype::b8, uint8_t>();
  }
}

}  // namespace
}  // namespace rusttorch
