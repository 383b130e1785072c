#pragma once

// One step of an optimizer for the parameter p and the gradient d, in place: the same text makes the CPU loops and the
// CUDA kernels. The algorithms are those of torch.optim's documentation, the numbers those of OptimizerArgs.

#include "lanes.h"
#include "optimizer.h"

namespace rusttorch::formula {

template <class C>
struct Step {
  C lr, beta1, beta2, taken, correction, eps, rest1, rest2;
  bool begins;

  explicit Step(const OptimizerArgs& a)
      : lr(C(a.lr)),
        beta1(C(a.beta1)),
        beta2(C(a.beta2)),
        taken(C(a.taken)),
        correction(C(a.correction)),
        eps(C(a.eps)),
        rest1(C(1 - a.beta1)),
        rest2(C(1 - a.beta2)),
        begins(a.begins) {}
};

template <class V, class C>
RT_INLINE void sgd(V& p, V d, V*, const Step<C>& s) {
  p = p - s.lr * d;
}
template <class V, class C>
RT_INLINE void sgd_momentum(V& p, V d, V* state, const Step<C>& s) {
  state[0] = s.begins ? d : V(s.beta1 * state[0] + s.taken * d);
  p = p - s.lr * state[0];
}
template <class V, class C>
RT_INLINE void sgd_nesterov(V& p, V d, V* state, const Step<C>& s) {
  state[0] = s.begins ? d : V(s.beta1 * state[0] + s.taken * d);
  p = p - s.lr * (d + s.beta1 * state[0]);
}

template <class V, class C>
RT_INLINE void adam(V& p, V d, V* state, const Step<C>& s) {
  state[0] = state[0] + s.rest1 * (d - state[0]);
  state[1] = s.beta2 * state[1] + s.rest2 * d * d;
  p = p - s.lr * (state[0] / (sqrt(state[1]) * s.correction + s.eps));
}
template <class V, class C>
RT_INLINE void adam_amsgrad(V& p, V d, V* state, const Step<C>& s) {
  state[0] = state[0] + s.rest1 * (d - state[0]);
  state[1] = s.beta2 * state[1] + s.rest2 * d * d;
  state[2] = largest(state[2], state[1]);
  p = p - s.lr * (state[0] / (sqrt(state[2]) * s.correction + s.eps));
}

template <class V, class C>
RT_INLINE void adagrad(V& p, V d, V* state, const Step<C>& s) {
  state[0] = state[0] + d * d;
  p = p - s.lr * (d / (sqrt(state[0]) + s.eps));
}

}  // namespace rusttorch::formula
