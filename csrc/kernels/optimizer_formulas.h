#pragma once

// One step of an optimizer for the parameter p and the gradient d, in place: the same text makes the CPU loops and the
// CUDA kernels. The algorithms are those of torch.optim's documentation, the numbers those of OptimizerArgs.

#include "lanes.h"
#include "optimizer.h"

namespace rusttorch::formula {

// Of a step: what the parameter moves by, for 1 of the update, and what the root of the mean square is multiplied by.
struct Rates {
  double lr, correction;
};
RT_INLINE Rates constant(const OptimizerArgs&, double lr, double) { return {lr, 1}; }
RT_INLINE Rates bias_corrected(const OptimizerArgs& a, double lr, double step) {
  return {lr / (1 - ::pow(a.beta1, step)), 1 / ::sqrt(1 - ::pow(a.beta2, step))};
}
RT_INLINE Rates decaying(const OptimizerArgs& a, double lr, double step) {
  return {lr / (1 + (step - 1) * a.lr_decay), 1};
}

template <class C>
struct Step {
  C lr, correction, sign, decay, kept, beta1, beta2, taken, eps, rest1, rest2;
  bool begins;

  RT_INLINE Step(const OptimizerArgs& a, double base_lr, Rates rates)
      : lr(C(rates.lr)),
        correction(C(rates.correction)),
        sign(C(a.maximize ? -1 : 1)),
        decay(C(a.decoupled ? 0 : a.weight_decay)),
        kept(C(a.decoupled ? 1 - base_lr * a.weight_decay : 1)),
        beta1(C(a.beta1)),
        beta2(C(a.beta2)),
        taken(C(a.taken)),
        eps(C(a.eps)),
        rest1(C(1 - a.beta1)),
        rest2(C(1 - a.beta2)),
        begins(a.begins) {}
};

// A mean that has decayed to less than a normal number is 0. It would never be: 0.9 times four of the least numbers are
// four of them again; and Intel's CPUs take 150 cycles for a vector with one, at every step from then on.
template <class V>
RT_INLINE V decayed(V mean) {
  return select(abs(mean) < std::numeric_limits<lane_t<V>>::min(), V{}, mean);
}

template <class V, class C>
RT_INLINE void sgd(V& p, V d, V*, const Step<C>& s) {
  p = p - s.lr * d;
}
template <class V, class C>
RT_INLINE void sgd_momentum(V& p, V d, V* state, const Step<C>& s) {
  state[0] = s.begins ? d : decayed(V(s.beta1 * state[0] + s.taken * d));
  p = p - s.lr * state[0];
}
template <class V, class C>
RT_INLINE void sgd_nesterov(V& p, V d, V* state, const Step<C>& s) {
  state[0] = s.begins ? d : decayed(V(s.beta1 * state[0] + s.taken * d));
  p = p - s.lr * (d + s.beta1 * state[0]);
}

template <class V, class C>
RT_INLINE void adam(V& p, V d, V* state, const Step<C>& s) {
  state[0] = decayed(V(state[0] + s.rest1 * (d - state[0])));
  state[1] = decayed(V(s.beta2 * state[1] + s.rest2 * d * d));
  p = p - s.lr * (state[0] / (sqrt(state[1]) * s.correction + s.eps));
}
template <class V, class C>
RT_INLINE void adam_amsgrad(V& p, V d, V* state, const Step<C>& s) {
  state[0] = decayed(V(state[0] + s.rest1 * (d - state[0])));
  state[1] = decayed(V(s.beta2 * state[1] + s.rest2 * d * d));
  state[2] = largest(state[2], state[1]);
  p = p - s.lr * (state[0] / (sqrt(state[2]) * s.correction + s.eps));
}

template <class V, class C>
RT_INLINE void adagrad(V& p, V d, V* state, const Step<C>& s) {
  state[0] = state[0] + d * d;
  p = p - s.lr * (d / (sqrt(state[0]) + s.eps));
}

// A parameter and its state by the formula F. `decays`: decay is not 0. (0 times an infinite parameter is NaN, so it is
// not added then.)
template <class F, bool decays, class V, class C>
RT_INLINE void update(V& p, V g, V* state, const Step<C>& s) {
  p = p * s.kept;
  V d = g * s.sign;
  if constexpr (decays) d = d + s.decay * p;
  F::apply(p, d, state, s);
}

// The names of RUSTTORCH_OPTIMIZER as types.
#define RUSTTORCH_OPTIMIZER_FORMULA(NAME, STATES, RATES)                                                        \
  struct NAME##_formula {                                                                                       \
    static constexpr int states = STATES;                                                                       \
    RT_INLINE static Rates rates(const OptimizerArgs& a, double lr, double step) { return RATES(a, lr, step); } \
    template <class V, class C>                                                                                 \
    RT_INLINE static void apply(V& p, V d, V* state, const Step<C>& s) {                                        \
      NAME(p, d, state, s);                                                                                     \
    }                                                                                                           \
  };
RUSTTORCH_OPTIMIZER(RUSTTORCH_OPTIMIZER_FORMULA)

}  // namespace rusttorch::formula
