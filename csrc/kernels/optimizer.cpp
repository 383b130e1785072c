#include "optimizer.h"

#include "load_store.h"
#include "optimizer_formulas.h"
#include "types.h"

namespace rusttorch {
namespace {

// One pass over the parameters, the gradients and the state.
template <class F, bool decays, class T, class S>
void update_all(const OptimizerEntry& e, const formula::Step<Compute<T>>& step) {
  using C = Compute<T>;
  using V = Vector<C, is_narrow<T> ? vector_bytes : narrow_bytes>;
  constexpr int64_t lanes = sizeof(V) / sizeof(C);
  T* const p = static_cast<T*>(e.p);
  const T* const g = static_cast<const T*>(e.g);
  S* state[F::states + 1] = {};
  for (int k = 0; k < F::states; ++k) state[k] = static_cast<S*>(e.state[k]);
  V s[F::states + 1];
  const int64_t n = e.n;
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    V x = load<V>(p + i);
    for (int k = 0; k < F::states; ++k) s[k] = load<V>(state[k] + i);
    formula::update<F, decays>(x, load<V>(g + i), s, step);
    store(p + i, x);
    for (int k = 0; k < F::states; ++k) store(state[k] + i, s[k]);
  }
  if (i == n) return;
  const int64_t left = n - i;
  V x = load_part<V>(p + i, left, 0);
  for (int k = 0; k < F::states; ++k) s[k] = load_part<V>(state[k] + i, left, 0);
  formula::update<F, decays>(x, load_part<V>(g + i, left, 0), s, step);
  store_part(p + i, x, left);
  for (int k = 0; k < F::states; ++k) store_part(state[k] + i, s[k], left);
}

template <class F, class T, class S>
void update_types(const OptimizerEntry& e, const formula::Step<Compute<T>>& step) {
  step.decay == 0 ? update_all<F, false, T, S>(e, step) : update_all<F, true, T, S>(e, step);
}

template <class F>
void run(const OptimizerArgs& a) {
  formula::Rates rates{};
  for (int64_t k = 0; k < a.count; ++k) {
    const OptimizerEntry& e = a.entries[k];
    // Most are as many steps old as the one before.
    if (k == 0 || e.step != a.entries[k - 1].step) rates = F::rates(a, a.lr, e.step);
    with_type<floats>(e.dtype, [&](auto t) {
      using T = decltype(t);
      const formula::Step<Compute<T>> step(a, a.lr, rates);
      if constexpr (is_narrow<T> && F::states > 0) {
        if (e.state_dtype == Dtype::f32) return update_types<F, T, float>(e, step);
      }
      update_types<F, T, T>(e, step);
    });
  }
}

#define RUSTTORCH_OPTIMIZER_KERNEL(NAME, ...) {&run<formula::NAME##_formula>},

}  // namespace
}  // namespace rusttorch

RUSTTORCH_DEFINE_TABLE(optimizer, OptimizerArgs, RUSTTORCH_OPTIMIZER(RUSTTORCH_OPTIMIZER_KERNEL))
