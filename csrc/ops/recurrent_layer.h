#pragma once

// One layer of a recurrent network in one direction, as its two ops have it:
//   rnn_layer_forward    its input's products for all steps at once, then in each step one product and one kernel. Its
//                        derivative is in autograd/recurrent.cpp, and from there
//   rnn_layer_backward   the steps back, and then one product for each gradient.

#include "../kernels/recurrent.h"

#include "op.h"

namespace rusttorch {

struct RecurrentMode {
  c10::string_view name;
  int64_t gates;
  recurrent forward, backward;

  constexpr bool is_gated() const { return gates > 1; }
  constexpr bool is_gru() const { return forward == recurrent::gru; }
  constexpr bool is_lstm() const { return forward == recurrent::lstm; }
};
inline constexpr RecurrentMode gru{"gru", 3, recurrent::gru, recurrent::gru_backward};
inline constexpr RecurrentMode lstm{"lstm", 4, recurrent::lstm, recurrent::lstm_backward};
inline constexpr RecurrentMode rnn_tanh{"rnn_tanh", 1, recurrent::rnn_tanh, recurrent::rnn_tanh_backward};
inline constexpr RecurrentMode rnn_relu{"rnn_relu", 1, recurrent::rnn_relu, recurrent::rnn_relu_backward};

inline const Tensor* maybe(MaybeTensor t) { return given(t) ? &*t : nullptr; }

// Whether kernels can read them. (Where there is none, it is not asked for.)
template <size_t n>
bool are_readable(const std::array<const Tensor*, n>& tensors) {
  return std::all_of(tensors.begin(), tensors.end(),
                     [](const Tensor* t) { return !t || (on_cpu(*t) && t->layout() == at::kStrided && is_plain(*t)); });
}

inline at::ScalarType own_type(const Tensor& t) { return t.scalar_type(); }

// Whether all are of that type, and kernels have it.
template <size_t n, class TypeOf>
bool are_of(at::ScalarType type, const std::array<const Tensor*, n>& tensors, const TypeOf& type_of) {
  if (!at::isFloatingType(type) || !dtype_of(type)) return false;
  return std::all_of(tensors.begin(), tensors.end(), [&](const Tensor* t) { return !t || type_of(*t) == type; });
}

// Of one layer in one direction: [gates H, I] and [gates H, P], biases or none, and of an LSTM whose states are
// projected from H units to P [P, H], else none.
struct RecurrentWeights {
  const Tensor &ih, &hh;
  const Tensor *bias_ih, *bias_hh, *hr;

  std::array<const Tensor*, 5> all() const { return {&ih, &hh, bias_ih, bias_hh, hr}; }
  bool fit(int64_t gates, int64_t inputs, int64_t hidden, int64_t projected) const {
    const int64_t width = gates * hidden;
    const auto fits = [&](const Tensor* bias) { return !bias || bias->sizes().equals({width}); };
    return ih.sizes().equals({width, inputs}) && hh.sizes().equals({width, projected}) && fits(bias_ih) &&
           fits(bias_hh) && !bias_ih == !bias_hh &&
           (hr ? hr->sizes().equals({projected, hidden}) : projected == hidden);
  }
};

// What goes through a layer, or through several: the input [T, B, I] (or turned, or packed [N, I] with its batch_sizes,
// or of a cell [B, I]), the states [..., B, P], and of an LSTM its cells [..., B, H].
struct RecurrentSequences {
  const Tensor &input, *hx, *cx;
  const Tensor* batch_sizes;
  const RecurrentMode& mode;

  std::array<const Tensor*, 3> all() const { return {&input, hx, cx}; }
  // Whether kernels take them, whatever their type: the input has so many dims, of which one is B; the states so many.
  Handed reason(int64_t input_dim, int64_t batch_dim, int64_t states_dim) const;

  int64_t projected() const { return hx->size(-1); }
  int64_t hidden() const { return (cx ? cx : hx)->size(-1); }
};

// -> the output, the last states, of an LSTM the last cells, and the reserve, which the derivative reads: empty if that
// is not wanted.
std::tuple<Tensor, Tensor, Tensor, Tensor> rnn_layer_forward(const Tensor& input, const Tensor& hx, MaybeTensor cx,
                                                             const Tensor& weight_ih, const Tensor& weight_hh,
                                                             MaybeTensor bias_ih, MaybeTensor bias_hh,
                                                             MaybeTensor weight_hr, MaybeTensor batch_sizes,
                                                             c10::string_view mode, bool reverse, bool differentiate);

// The gradients of input, hx, cx, weight_ih, weight_hh, bias_ih, bias_hh and weight_hr, as wanted; those that are not
// are undefined.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> rnn_layer_backward(
    MaybeTensor grad_output, MaybeTensor grad_hn, MaybeTensor grad_cn, const Tensor& input, const Tensor& hx,
    MaybeTensor cx, const Tensor& weight_ih, const Tensor& weight_hh, MaybeTensor weight_hr, MaybeTensor batch_sizes,
    const Tensor& reserve, c10::string_view mode, bool reverse, std::array<bool, 8> wanted);

}  // namespace rusttorch
