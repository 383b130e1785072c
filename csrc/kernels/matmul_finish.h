#pragma once

// Of a product: what becomes of its sums, a few rows of which lie in the first cache.

#include "activation_formulas.h"
#include "load_store.h"
#include "matmul.h"
#include "types.h"

namespace rusttorch {
namespace {

// f(column, load, store) for vectors of n columns; of the last one load and store take what is there.
template <class V, class F>
RT_INLINE void along_columns(int64_t n, F f) {
  int64_t c = 0;
  for (; c + lanes<V> <= n; c += lanes<V>) {
    f(c, [](const auto* p) { return load<V>(p); }, [](auto* p, V x) { store(p, x); });
  }
  if (const int64_t rest = n - c) {
    f(c, [&](const auto* p) { return load_part<V>(p, rest, 0); }, [&](auto* p, V x) { store_part(p, x, rest); });
  }
}

// What a product's factors are made of, an item: a number as it is computed with, or two of bfloat16 that follow each
// other along k, whose products one operation adds (AVX512-BF16, AMX). Of an odd k the last one's second is 0.
struct Pair {
  bf16 first, second;
};

struct Same {
  template <class V>
  V operator()(V x) const {
    return x;
  }
};

// body(f) with the activation as a function of a vector.
template <class V, class Body>
void with_activation(MatmulActivation activation, Body body) {
  switch (activation) {
    case MatmulActivation::none: return body(Same());
    case MatmulActivation::relu: return body([](V x) { return formula::relu(x); });
    case MatmulActivation::gelu: return body([](V x) { return formula::gelu(x); });
    case MatmulActivation::gelu_tanh: return body([](V x) { return formula::gelu_tanh(x); });
    case MatmulActivation::silu: return body([](V x) { return formula::silu(x); });
  }
}

// alpha * sums + beta * added, in place: n columns from j on of row i.
template <class T, class C>
RT_INLINE void scale_and_add(const MatmulArgs& g, int64_t i, int64_t j, int64_t n, C* sums) {
  using V = Vector<C>;
  // In a loop of its own: in one with the sum below, the compiler might join this product with it in one copy of the
  // code and the other one in another.
  if (g.alpha != 1) {
    for (int64_t c = 0; c < n; c += lanes<V>) store(sums + c, V(load<V>(sums + c) * C(g.alpha)));
  }
  if (!g.added) return;
  const T* added = static_cast<const T*>(g.added) + i * g.added_row + j * g.added_column;
  const C beta = C(g.beta);
  if (g.added_column == 0) {
    const V number = splat<V>(widen(*added));
    for (int64_t c = 0; c < n; c += lanes<V>) store(sums + c, V(load<V>(sums + c) + number * beta));
  } else {
    along_columns<V>(
        n, [&](int64_t c, auto from, auto) { store(sums + c, V(load<V>(sums + c) + from(added + c) * beta)); });
  }
}

// Of pairs' sums by what CPUs have that multiply those, which makes what is less than a normal number 0, as they do.
template <class Item, class T, class C>
RT_INLINE void write_row(T* to, int64_t n, const C* from) {
  using V = Vector<C>;
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<Item, Pair>) {
    constexpr int64_t together = 2 * lanes<V>;
    for (; n >= together; n -= together, from += together, to += together) {
      __m512i words;
      asm("vcvtne2ps2bf16 %2, %1, %0" : "=v"(words) : "v"(load<V>(from + lanes<V>)), "v"(load<V>(from)));
      _mm512_storeu_si512(to, words);
    }
  }
#endif
  along_columns<V>(n, [&](int64_t c, auto, auto into) { into(to + c, load<V>(from + c)); });
}

// Sums of m rows from i on and n columns from j on, at sums[r * row + c], to out, row by row. Whole vectors of them are
// read and written: rows are padded, with anything that is a number.
template <class T, class Item = Compute<T>, class C>
void finish(const MatmulArgs& g, int64_t i, int64_t j, int64_t m, int64_t n, C* sums, int64_t row) {
  using V = Vector<C>;
  with_activation<V>(g.activation, [&]<class F>(F f) {
    for (int64_t r = 0; r < m; ++r, sums += row) {
      const int64_t begin = (i + r) * g.out_row + j;
      scale_and_add<T>(g, i + r, j, n, sums);
      if (g.sums) write_row<Item>(static_cast<T*>(g.sums) + begin, n, sums);
      if (g.gate) {
        const T* gate = static_cast<const T*>(g.gate) + begin;
        along_columns<V>(
            n, [&](int64_t c, auto from, auto) { store(sums + c, V(load<V>(sums + c) * f(from(gate + c)))); });
      } else if constexpr (!std::is_same_v<F, Same>) {
        for (int64_t c = 0; c < n; c += lanes<V>) store(sums + c, f(load<V>(sums + c)));
      }
      write_row<Item>(static_cast<T*>(g.out) + begin, n, sums);
    }
  });
}

}  // namespace
}  // namespace rusttorch
