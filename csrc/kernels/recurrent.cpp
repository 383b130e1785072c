#include "recurrent.h"

#include "activation_formulas.h"
#include "runs.h"

namespace rusttorch {
namespace {

template <class T>
struct Step {
  using C = Compute<T>;
  using V = Vector<C>;

  const RecurrentArgs& a;

  // f(i, count) for the vectors of each row, its units from i on.
  template <class F>
  void each(F f) const {
    for (int64_t row = 0; row < a.rows; ++row) {
      along_row<V>(0, a.hidden, [&](int64_t i, auto count) { f(row, i, count); });
    }
  }
  // (A row is too short for the processor to see where the next one is: that is asked for.)
  T* at(const void* states, int64_t row, int64_t i) const {
    T* const p = static_cast<T*>(const_cast<void*>(states)) + row * a.hidden + i;
    __builtin_prefetch(p + a.hidden);
    return p;
  }
  T* gate(const void* gates, int64_t row, int64_t i, int64_t k) const {
    T* const p = static_cast<T*>(const_cast<void*>(gates)) + (row * a.gates + k) * a.hidden + i;
    __builtin_prefetch(p + a.gates * a.hidden);
    return p;
  }

  // The k-th gate's sums with its bias, if there is one.
  V biased(const void* sums, const void* bias, int64_t row, int64_t i, int64_t k, auto count) const {
    const V sum = count.get(gate(sums, row, i, k));
    return bias ? V(sum + count.get(static_cast<const T*>(bias) + k * a.hidden + i)) : sum;
  }
  V by_input(int64_t row, int64_t i, int64_t k, auto count) const { return biased(a.x, a.bias_x, row, i, k, count); }
  V by_state(int64_t row, int64_t i, int64_t k, auto count) const { return biased(a.h, a.bias_h, row, i, k, count); }
  V sum(int64_t row, int64_t i, int64_t k, auto count) const {
    return by_input(row, i, k, count) + by_state(row, i, k, count);
  }

  template <class... Vs>
  void put_gates(void* gates, int64_t row, int64_t i, auto count, const Vs&... values) const {
    int64_t k = 0;
    (count.put(gate(gates, row, i, k++), V(values)), ...);
  }
  void put_result(int64_t row, int64_t i, auto count, V result) const {
    count.put(at(a.state, row, i), result);
    count.put(at(a.output, row, i), result);
    if (a.kept) count.put(at(a.kept, row, i), result);
  }

  void gru() const {
    each([&](int64_t row, int64_t i, auto count) {
      const V reset = math::sigmoid(sum(row, i, 0, count)), update = math::sigmoid(sum(row, i, 1, count));
      const V inner = by_state(row, i, 2, count), state = count.get(at(a.state, row, i));
      const V fresh = math::tanh(V(by_input(row, i, 2, count) + reset * inner));
      put_result(row, i, count, fresh + update * (state - fresh));
      if (!a.inner) return;
      put_gates(a.x, row, i, count, reset, update, fresh);
      count.put(at(a.inner, row, i), inner);
    });
  }

  V gradient(int64_t row, int64_t i, auto count) const {
    const V grad = count.get(at(a.state, row, i));
    return a.grad ? V(grad + count.get(at(a.grad, row, i))) : grad;
  }

  void gru_backward() const {
    each([&](int64_t row, int64_t i, auto count) {
      const auto gate_of = [&](int64_t k) { return count.get(gate(a.x, row, i, k)); };
      const V reset = gate_of(0), update = gate_of(1), fresh = gate_of(2);
      const V grad = gradient(row, i, count);
      const V by_fresh = formula::tanh_backward(V(grad * (C(1) - update)), fresh);
      const V by_update = formula::sigmoid_backward(V(grad * (count.get(at(a.before, row, i)) - fresh)), update);
      const V by_reset = formula::sigmoid_backward(V(by_fresh * count.get(at(a.inner, row, i))), reset);
      put_gates(a.grad_x, row, i, count, by_reset, by_update, by_fresh);
      put_gates(a.grad_h, row, i, count, by_reset, by_update, by_fresh * reset);
      count.put(at(a.state, row, i), V(grad * update));
    });
  }

  void lstm() const {
    each([&](int64_t row, int64_t i, auto count) {
      const V in = math::sigmoid(sum(row, i, 0, count)), forget = math::sigmoid(sum(row, i, 1, count)),
              fresh = math::tanh(sum(row, i, 2, count)), out = math::sigmoid(sum(row, i, 3, count));
      const V cell = forget * count.get(at(a.cell, row, i)) + in * fresh;
      count.put(at(a.cell, row, i), cell);
      put_result(row, i, count, out * math::tanh(cell));
      if (!a.inner) return;
      put_gates(a.x, row, i, count, in, forget, fresh, out);
      count.put(at(a.inner, row, i), cell);
    });
  }

  void lstm_backward() const {
    each([&](int64_t row, int64_t i, auto count) {
      const auto gate_of = [&](int64_t k) { return count.get(gate(a.x, row, i, k)); };
      const V in = gate_of(0), forget = gate_of(1), fresh = gate_of(2), out = gate_of(3);
      const V grad = gradient(row, i, count), bounded = math::tanh(count.get(at(a.inner, row, i)));
      const V by_cell = count.get(at(a.cell, row, i)) + formula::tanh_backward(V(grad * out), bounded);
      const V before = count.get(at(a.before, row, i));
      put_gates(a.grad_x, row, i, count, formula::sigmoid_backward(V(by_cell * fresh), in),
                formula::sigmoid_backward(V(by_cell * before), forget), formula::tanh_backward(V(by_cell * in), fresh),
                formula::sigmoid_backward(V(grad * bounded), out));
      count.put(at(a.cell, row, i), V(by_cell * forget));
    });
  }

  template <class F>
  void rnn(F activation) const {
    each([&](int64_t row, int64_t i, auto count) { put_result(row, i, count, activation(sum(row, i, 0, count))); });
  }

  template <class F>
  void rnn_backward(F slope) const {
    each([&](int64_t row, int64_t i, auto count) {
      count.put(at(a.grad_x, row, i), slope(gradient(row, i, count), count.get(at(a.kept, row, i))));
    });
  }
};

template <auto f>
void run(const RecurrentArgs& a) {
  with_type<floats>(a.dtype, [&](auto t) { f(Step<decltype(t)>{a}); });
}

constexpr auto gru = [](const auto& step) { step.gru(); };
constexpr auto gru_backward = [](const auto& step) { step.gru_backward(); };
constexpr auto lstm = [](const auto& step) { step.lstm(); };
constexpr auto lstm_backward = [](const auto& step) { step.lstm_backward(); };
constexpr auto rnn_tanh = [](const auto& step) { step.rnn([](auto x) { return formula::tanh(x); }); };
constexpr auto rnn_tanh_backward = [](const auto& step) {
  step.rnn_backward([](auto grad, auto y) { return formula::tanh_backward(grad, y); });
};
constexpr auto rnn_relu = [](const auto& step) { step.rnn([](auto x) { return formula::relu(x); }); };
// (A gradient of NaN's stays, as stock's threshold_backward has it.)
constexpr auto rnn_relu_backward = [](const auto& step) {
  step.rnn_backward([](auto grad, auto y) {
    using V = decltype(y);
    return select(y <= 0, V{}, grad);
  });
};

}  // namespace
}  // namespace rusttorch

RUSTTORCH_DEFINE_TABLE(recurrent, RecurrentArgs, {&run<gru>, floats}, {&run<gru_backward>, floats},
                       {&run<lstm>, floats}, {&run<lstm_backward>, floats}, {&run<rnn_tanh>, floats},
                       {&run<rnn_tanh_backward>, floats}, {&run<rnn_relu>, floats}, {&run<rnn_relu_backward>, floats})
