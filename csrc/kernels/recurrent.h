#pragma once

#include "family.h"

namespace rusttorch {

// A step of a recurrent layer, between two products: rows of `hidden` units, each of which has `gates` sums.
//   GRU: r = sigmoid(x_r + h_r), z = sigmoid(x_z + h_z), n = tanh(x_n + r h_n), state' = n + z (state - n)
//   LSTM: i = sigmoid(x_i + h_i), f = sigmoid(x_f + h_f), g = tanh(x_g + h_g), o = sigmoid(x_o + h_o),
//         cell' = f cell + i g, state' = o tanh(cell')
//   RNN: state' = tanh(x + h), or relu
// x is the layer's input times its weights, h the state times its, each with its bias.
struct RecurrentArgs {
  Dtype dtype;
  int64_t rows, hidden, gates;

  void* x;        // [rows][gates * hidden]; of a GRU or LSTM that is differentiated the gates are put in its place
  const void* h;  // [rows][gates * hidden]
  const void *bias_x, *bias_h;  // [gates * hidden], or nothing: of x and h, which are without them
  void* state;   // [rows][hidden]; backward the gradient of the step's result, and then what of it reaches the state
                 // before by other ways than h (of an RNN or LSTM there are none)
  void* cell;    // [rows][hidden], of an LSTM; backward its gradient
  void* output;  // [rows][hidden]: the new state
  void* kept;    // [rows][hidden], or nothing: the same, for the derivative, which reads it here
  void* inner;   // [rows][hidden], of a GRU that is differentiated its h_n, of an LSTM its new cell; or nothing

  // Backward:
  const void* before;     // [rows][hidden], of a GRU the state before, of an LSTM the cell before
  const void* grad;       // [rows][hidden], or nothing: what is added to the gradient of the step's result
  void *grad_x, *grad_h;  // [rows][gates * hidden]; but of a GRU they are the same, grad_x

  RecurrentArgs part(int64_t begin, int64_t end) const {
    RecurrentArgs part = *this;
    part.rows = end - begin;
    const int64_t of_state = begin * hidden * element_size(dtype), of_gates = gates * of_state;
    for (auto* p : {&part.x, &part.grad_x, &part.grad_h}) advance(*p, of_gates);
    for (auto* p : {&part.state, &part.cell, &part.output, &part.kept, &part.inner}) advance(*p, of_state);
    for (auto* p : {&part.before, &part.grad}) advance(*p, of_state);
    advance(part.h, of_gates);
    return part;
  }
};

#define RUSTTORCH_RECURRENT(X) \
  X(gru)                       \
  X(gru_backward)              \
  X(lstm)                      \
  X(lstm_backward)             \
  X(rnn_tanh)                  \
  X(rnn_tanh_backward)         \
  X(rnn_relu)                  \
  X(rnn_relu_backward)

}  // namespace rusttorch

RUSTTORCH_DECLARE_FAMILY(recurrent, RecurrentArgs, RUSTTORCH_RECURRENT)
