#include "dropout.h"

#include <algorithm>

#include "runs.h"
#include "twister.h"

namespace rusttorch {
namespace {

template <class T>
void apply(const T* in, const uint8_t* mask, T* out, int64_t n, Compute<T> scale) {
  using V = Vector<Compute<T>>;
  using Mask = Vector<uint8_t, lanes<V>>;
  int64_t i = 0;
  for (; i + lanes<V> <= n; i += lanes<V>) {
    const V factor = __builtin_convertvector(load<Mask>(mask + i), V) * scale;
    store(out + i, V(load<V>(in + i) * factor));
  }
  for (; i < n; ++i) store_one(out + i, widen(in[i]) * (Compute<T>(mask[i]) * scale));
}

void draw(const DropoutArgs& a) { draw_mask(*a.random, a.mask, a.n, a.kept); }
void skip(const DropoutArgs& a) { skip_words(*a.random, 2 * a.n); }

void forward(const DropoutArgs& a) {
  constexpr int64_t at_once = 1024;
  with_type<floats>(a.dtype, [&](auto t) {
    using T = decltype(t);
    for (int64_t i = 0; i < a.n; i += at_once) {
      const int64_t n = std::min(at_once, a.n - i);
      draw_mask(*a.random, a.mask + i, n, a.kept);
      apply(static_cast<const T*>(a.in) + i, a.mask + i, static_cast<T*>(a.out) + i, n, Compute<T>(a.scale));
    }
  });
}

void backward(const DropoutArgs& a) {
  with_type<floats>(a.dtype, [&](auto t) {
    using T = decltype(t);
    apply(static_cast<const T*>(a.in), a.mask, static_cast<T*>(a.out), a.n, Compute<T>(a.scale));
  });
}

#define RUSTTORCH_DROPOUT_KERNEL(name) {&name},
}  // namespace
}  // namespace rusttorch

RUSTTORCH_DEFINE_TABLE(dropout, DropoutArgs, RUSTTORCH_DROPOUT(RUSTTORCH_DROPOUT_KERNEL))
