#include "optimizer.h"

#include "memory.h"
#include "optimizer_formulas.h"
#include "types.h"

namespace rusttorch {
namespace {

// One pass over the parameters, the gradients and the state. `decays`: weight_decay is not 0. (0 times an infinite
// parameter is NaN, so it is not added then.)
template <class F, bool decays, class T, class S>
struct OptimizerLoop {
  using C = Compute<T>;
  using V = Vector<C, sizeof(T) == 2 ? vector_bytes : narrow_bytes>;
  static constexpr int64_t lanes = sizeof(V) / sizeof(C);

  const OptimizerArgs& a;
  const formula::Step<C> step{a};
  const C sign = C(a.maximize ? -1 : 1), decay = C(a.weight_decay), kept = C(a.kept);

  RT_INLINE void element(V& p, V g, V* state) const {
    p = p * kept;
    V d = g * sign;
    if constexpr (decays) d = d + decay * p;
    F::apply(p, d, state, step);
  }

  void run() const {
    T* const p = static_cast<T*>(a.p);
    const T* const g = static_cast<const T*>(a.g);
    S* state[F::states + 1] = {};
    for (int k = 0; k < F::states; ++k) state[k] = static_cast<S*>(a.state[k]);
    V s[F::states + 1];
    const int64_t n = a.n;  // the compiler cannot know that the stores leave it alone
    int64_t i = 0;
    for (; i + lanes <= n; i += lanes) {
      V x = load<V>(p + i);
      for (int k = 0; k < F::states; ++k) s[k] = load<V>(state[k] + i);
      element(x, load<V>(g + i), s);
      store(p + i, x);
      for (int k = 0; k < F::states; ++k) store(state[k] + i, s[k]);
    }
    if (i == n) return;
    const int64_t left = n - i;
    V x = load_part<V>(p + i, left, 0);
    for (int k = 0; k < F::states; ++k) s[k] = load_part<V>(state[k] + i, left, 0);
    element(x, load_part<V>(g + i, left, 0), s);
    store_part(p + i, x, left);
    for (int k = 0; k < F::states; ++k) store_part(state[k] + i, s[k], left);
  }
};

template <class F, class T, class S>
void run_types(const OptimizerArgs& a) {
  a.weight_decay == 0 ? OptimizerLoop<F, false, T, S>{a}.run() : OptimizerLoop<F, true, T, S>{a}.run();
}

template <class F>
void run(const OptimizerArgs& a) {
  with_type<floats>(a.dtype, [&](auto t) {
    using T = decltype(t);
    if constexpr (sizeof(T) == 2) {
      if (a.state_dtype == Dtype::f32) return run_types<F, T, float>(a);
    }
    run_types<F, T, T>(a);
  });
}

#define RUSTTORCH_OPTIMIZER_FORMULA(NAME, STATES)                  \
  struct NAME##_formula {                                          \
    static constexpr int states = STATES;                          \
    template <class V, class C>                                    \
    RT_INLINE static void apply(V& p, V d, V* state, const C& s) { \
      formula::NAME(p, d, state, s);                               \
    }                                                              \
  };
#define RUSTTORCH_OPTIMIZER_KERNEL(NAME, STATES) {&run<NAME##_formula>},

RUSTTORCH_OPTIMIZER(RUSTTORCH_OPTIMIZER_FORMULA)
constexpr OptimizerKernel optimizer_kernels[] = {RUSTTORCH_OPTIMIZER(RUSTTORCH_OPTIMIZER_KERNEL)};
const OptimizerKernel* optimizer_table() { return optimizer_kernels; }

}  // namespace
}  // namespace rusttorch

namespace at::native {
ALSO_REGISTER_AVX512_DISPATCH(rusttorch_optimizer_stub, &rusttorch::optimizer_table)
}
