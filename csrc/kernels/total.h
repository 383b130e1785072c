#pragma once

// The sum of a formula over all elements, as a double, and nothing written in between. Compiled once per instruction
// set. A float is the sum of at most a few dozen others before it is added to a double (block below): on long inputs
// that errs less than any tree of float sums.

#include <algorithm>

#include "formula.h"
#include "load_store.h"
#include "types.h"

namespace rusttorch {
namespace {

template <class Op, class T, class Inputs = std::make_index_sequence<Op::tensors>,
          class Scalars = std::make_index_sequence<Op::scalars>>
struct Total;

template <class Op, class T, size_t... I, size_t... S>
struct Total<Op, T, std::index_sequence<I...>, std::index_sequence<S...>> {
  using C = Compute<T>;
  using V = Vector<C>;
  static constexpr int64_t lanes = sizeof(V) / sizeof(C), chains = 4, block = chains * lanes * 32;

  static double of_block(int64_t n, const T* const* in, const C* scalars) {
    [[maybe_unused]] const C s[] = {scalars[S]..., C()};
    const T* const x[] = {in[I]...};
    const auto at = [&](int64_t i) { return Op::apply(load<V>(x[I] + i)..., s[S]...); };
    V sums[chains] = {};
    int64_t i = 0;
    for (; i + chains * lanes <= n; i += chains * lanes) {
      for (int64_t k = 0; k < chains; ++k) sums[k] += at(i + k * lanes);
    }
    for (; i + lanes <= n; i += lanes) sums[0] += at(i);
    if (i < n) {
      sums[1] += keep_part(V(Op::apply(load_part<V>(x[I] + i, n - i, C(0))..., s[S]...)), n - i, C(0));
    }
    return double(sum_lanes(V((sums[0] + sums[1]) + (sums[2] + sums[3]))));
  }

  static void run(const ElementwiseArgs& a) {
    const T* x[] = {static_cast<const T*>(a.in[I])...};
    T full[Op::tensors][block];  // of an input that is one element for all
    for (int k = 0; a.broadcast && k < Op::tensors; ++k) {
      if (a.broadcast >> k & 1) x[k] = std::fill_n(full[k], std::min(a.n, block), *x[k]) - std::min(a.n, block);
    }
    double total = 0;
    for (int64_t i = 0; i < a.n; i += block) {
      total += of_block(std::min(block, a.n - i), x, static_cast<const C*>(a.scalars));
      for (int k = 0; k < Op::tensors; ++k) x[k] += a.broadcast >> k & 1 ? 0 : block;
    }
    *static_cast<double*>(a.out[0]) = total;
  }
};

template <class Op>
void run_total(const ElementwiseArgs& a) {
  with_type<Op::types>(a.dtype, [&](auto t) { Total<Op, decltype(t)>::run(a); });
}

}  // namespace
}  // namespace rusttorch
