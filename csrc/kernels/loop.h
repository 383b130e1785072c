#pragma once

// The loop around a formula, for every dtype. Compiled once per instruction set.

#include <algorithm>
#include <type_traits>
#include <utility>

#include "formula.h"
#include "load_store.h"
#include "types.h"

namespace rusttorch {
namespace {  // one copy per instruction set, invisible to the others

template <class Op, class T, class Inputs = std::make_index_sequence<Op::tensors>,
          class Scalars = std::make_index_sequence<Op::scalars>>
struct Loop;

template <class Op, class T, size_t... I, size_t... S>
struct Loop<Op, T, std::index_sequence<I...>, std::index_sequence<S...>> {
  using C = Compute<T>;
  static constexpr bool converts = is_narrow<T>;
  using V = Vector<C, Op::bandwidth_bound && !converts ? narrow_bytes : vector_bytes>;
  using Result = decltype(Op::apply((static_cast<void>(I), V())..., (static_cast<void>(S), C())...));
  static constexpr int64_t lanes = sizeof(V) / sizeof(C);
  static constexpr int outputs = std::is_same_v<Result, V> ? 1 : 2;
  static constexpr bool can_stream = !converts && outputs == 1;

  template <bool stream>
  static void write(T* const* to, int64_t i, const Result& result) {
    if constexpr (stream) {
      stream_out(to[0] + i, result);
    } else if constexpr (outputs == 1) {
      store(to[0] + i, result);
    } else {
      store(to[0] + i, result.first);
      store(to[1] + i, result.second);
    }
  }

  template <bool stream = false>
  static void elements(int64_t n, T* const* out, const T* const* in, const C* scalars) {
    [[maybe_unused]] const C s[] = {scalars[S]..., C()};
    const T* const x[] = {in[I]...};
    T* y[outputs];
    std::copy_n(out, outputs, y);
    int64_t i = 0;
    for (; i + lanes <= n; i += lanes) write<stream>(y, i, Op::apply(load<V>(x[I] + i)..., s[S]...));
    if (i == n) return;
    // What is left, through padded copies: a vector's worth may not be read or written beyond the end. (By itself, so
    // that the formula is compiled once.)
    T rest_in[Op::tensors][lanes] = {}, rest_out[outputs][lanes];
    T* const to[] = {rest_out[0], rest_out[outputs - 1]};
    const T* const from[] = {rest_in[I]...};
    for (int k = 0; k < Op::tensors; ++k) std::memcpy(rest_in[k], x[k] + i, (n - i) * sizeof(T));
    elements(lanes, to, from, scalars);
    for (int k = 0; k < outputs; ++k) std::memcpy(y[k] + i, to[k], (n - i) * sizeof(T));
  }

  // Where an input is one element for all: a block at a time, against a block full of it.
  template <bool stream = false>
  static void broadcast(int64_t n, T* const* out, const T* const* in, const C* scalars, uint8_t which) {
    if (which == 0) return elements<stream>(n, out, in, scalars);
    constexpr int64_t block = 512;
    T full[Op::tensors][block];
    for (int k = 0; k < Op::tensors; ++k) {
      if (which >> k & 1) std::fill_n(full[k], std::min(n, block), in[k][0]);
    }
    for (int64_t i = 0; i < n; i += block) {
      const T* x[Op::tensors];
      T* y[outputs];
      for (int k = 0; k < Op::tensors; ++k) x[k] = which >> k & 1 ? full[k] : in[k] + i;
      for (int k = 0; k < outputs; ++k) y[k] = out[k] + i;
      elements<stream>(std::min(block, n - i), y, x, scalars);
    }
  }

  static void around_cache(int64_t n, T** out, const T** in, const C* scalars, uint8_t which) {
    // The elements before the first aligned one, then the rest.
    const int64_t past = reinterpret_cast<uintptr_t>(out[0]) % sizeof(V);
    const int64_t head = std::min<int64_t>(n, past ? (sizeof(V) - past) / sizeof(T) : 0);
    broadcast(head, out, in, scalars, which);
    for (int k = 0; k < Op::tensors; ++k) in[k] += (which >> k & 1) ? 0 : head;
    out[0] += head;
    broadcast<true>(n - head, out, in, scalars, which);
    _mm_sfence();
  }

  static void run(const ElementwiseArgs& a) {
    const T* in[] = {static_cast<const T*>(a.in[I])...};
    T* out[outputs];
    for (int k = 0; k < outputs; ++k) out[k] = static_cast<T*>(a.out[k]);
    const C* scalars = static_cast<const C*>(a.scalars);
    if constexpr (can_stream) {
      if (a.stream) return around_cache(a.n, out, in, scalars, a.broadcast);
    }
    broadcast(a.n, out, in, scalars, a.broadcast);
  }
};

template <class Op>
void run(const ElementwiseArgs& a) {
  with_type<Op::types>(a.dtype, [&](auto t) { Loop<Op, decltype(t)>::run(a); });
}

}  // namespace
}  // namespace rusttorch

// A family of formulas: its table.
#define RUSTTORCH_KERNEL(NAME, ...) {&run<NAME##_formula>, NAME##_formula::types},
#define RUSTTORCH_KERNELS(family, LIST) \
  namespace rusttorch {                 \
  namespace {                           \
  LIST(RUSTTORCH_FORMULA)               \
  }                                     \
  }                                     \
  RUSTTORCH_DEFINE_TABLE(family, ElementwiseArgs, LIST(RUSTTORCH_KERNEL))
