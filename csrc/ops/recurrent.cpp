#include <ATen/Context.h>
#include <ATen/autocast_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/dropout.h>
#include <ATen/ops/stack.h>

#include "decomposed.h"
#include "matmul.h"
#include "recurrent_layer.h"

namespace rusttorch {
namespace {

// GRUs (K. Cho et al., 2014), LSTMs (S. Hochreiter and J. Schmidhuber, 1997; with projections H. Sak et al., 2014) and
// Elman's RNNs. aten makes some ten ops of each step, but for oneDNN's LSTMs; here
//   gru, lstm, ...       if RecurrentPlan says that the kernels take it, layer by layer (by_layers); or stock's
//                        decomposition
//   rnn_layer_forward    of each layer and direction (recurrent_layer.h).

using TwoTensors = std::tuple<Tensor, Tensor>;
using ThreeTensors = std::tuple<Tensor, Tensor, Tensor>;
using FourTensors = std::tuple<Tensor, Tensor, Tensor, Tensor>;

class RecurrentPlan;

// Layers in one or both directions, as aten has them.
struct RecurrentRequest {
  using Plan = RecurrentPlan;
  RecurrentSequences sequences;
  at::TensorList params;
  bool has_biases;
  int64_t layers;
  double dropout;
  bool train, bidirectional, batch_first;

  Device device() const { return device_type(sequences.input); }
  int64_t directions() const { return bidirectional ? 2 : 1; }
  // How many layers there are, in each direction one.
  int64_t count() const { return layers * directions(); }
  bool is_differentiated() const {
    const auto requires_grad = [](const Tensor& t) { return t.requires_grad(); };
    return rusttorch::is_differentiated({&sequences.input, sequences.hx, sequences.cx}) ||
           (c10::GradMode::is_enabled() && std::any_of(params.begin(), params.end(), requires_grad));
  }
  bool has_projections() const { return sequences.projected() != sequences.hidden(); }
  int64_t params_each() const { return 2 + (has_biases ? 2 : 0) + (has_projections() ? 1 : 0); }
  RecurrentWeights weights(int64_t k) const {
    const at::TensorList p = params.slice(k * params_each(), params_each());
    return {p[0], p[1], has_biases ? &p[2] : nullptr, has_biases ? &p[3] : nullptr,
            has_projections() ? &p.back() : nullptr};
  }
};

// Whether stock has an LSTM of oneDNN's for it, of that type.
bool is_onednn_s(const RecurrentRequest& r, at::ScalarType type) {
  const RecurrentSequences& s = r.sequences;
  if (!s.mode.is_lstm() || r.has_projections() || !at::globalContext().userEnabledMkldnn()) return false;
  if (s.batch_sizes) {
    const int64_t* const sizes = s.batch_sizes->const_data_ptr<int64_t>();
    if (sizes[s.batch_sizes->size(0) - 1] != sizes[0]) return false;
  }
  switch (type) {
    case at::kFloat: return true;
    case at::kBFloat16: return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
    case at::kHalf: return !c10::GradMode::is_enabled() && __builtin_cpu_supports("avx512fp16");
    default: return false;
  }
}

// And it is faster: ours is at 1.07 to 3.7 in training and of few rows, at 0.85 to 1.1 of many, by measurement (Zen 4,
// one core). With AMX ours is at 1.3 to 5.6 in training, and in inference at 1 to 1.9 of many units, at 0.83 to 0.98 of
// few.
bool onednn_is_faster(const RecurrentRequest& r, at::ScalarType type) {
  if (take_all || !is_onednn_s(r, type)) return false;
  const Dtype dtype = *dtype_of(type);
  if (!PackedMatrix::is_taken(dtype)) return true;
  if (r.is_differentiated()) return false;
  if (has_squares(dtype)) return r.sequences.hidden() < 512;
  return r.sequences.hx->size(1) >= (type == at::kFloat ? 32 : 16);
}

// What autocast makes of a tensor, if it is on: another type, but float64 stays.
struct Cast {
  std::optional<at::ScalarType> to;

  static Cast now() {
    const bool is_on = at::autocast::is_autocast_enabled(at::kCPU);
    return {is_on ? std::optional(at::autocast::get_autocast_dtype(at::kCPU)) : std::nullopt};
  }
  at::ScalarType type_of(const Tensor& t) const {
    return to && t.is_floating_point() && t.scalar_type() != at::kDouble ? *to : t.scalar_type();
  }
  Tensor operator()(const Tensor& t) const { return to ? at::autocast::cached_cast(*to, t, c10::DeviceType::CPU) : t; }
};

// Whether stock casts all of a call: of RNNs, of oneDNN's LSTMs (which it picks by what is not yet cast) and of what
// has states of autocast's type. Of others it casts the products alone.
bool casts_all(const RecurrentRequest& r, at::ScalarType to) {
  const RecurrentSequences& s = r.sequences;
  if (!s.mode.is_gated() || (s.hx->scalar_type() == to && (!s.cx || s.cx->scalar_type() == to))) return true;
  return is_onednn_s(r, s.input.scalar_type()) && is_onednn_s(r, to);
}

// Decides only: what runs is rnn_layer_forward.
class RecurrentPlan {
 public:
  explicit RecurrentPlan(const RecurrentRequest& request) : reason_(fit(request)) {}

  Handed reason() const { return reason_; }

 private:
  static Handed fit(const RecurrentRequest& r) {
    const RecurrentSequences& s = r.sequences;
    const Handed reason = s.reason(/*input_dim=*/3, /*batch_dim=*/r.batch_first ? 0 : 1, /*states_dim=*/3);
    if (reason != Handed::no) return reason;
    if (r.layers < 1 || r.layers > int64_t(r.params.size()) || s.hx->size(0) != r.count() ||
        int64_t(r.params.size()) != r.count() * r.params_each()) {
      return Handed::option;
    }
    const Cast cast = Cast::now();
    if (cast.to && !casts_all(r, *cast.to)) return Handed::option;
    const auto type_of = [&](const Tensor& t) { return cast.type_of(t); };
    const at::ScalarType type = type_of(s.input);
    if (!are_of(type, s.all(), type_of)) return Handed::dtype;
    for (int64_t k = 0; k < r.count(); ++k) {
      const RecurrentWeights weights = r.weights(k);
      if (!are_readable(weights.all())) return Handed::option;
      if (!are_of(type, weights.all(), type_of)) return Handed::dtype;
      const int64_t inputs = k < r.directions() ? s.input.size(-1) : r.directions() * s.projected();
      if (!weights.fit(s.mode.gates, inputs, s.hidden(), s.projected())) return Handed::option;
    }
    return onednn_is_faster(r, type) ? Handed::size : Handed::no;
  }

  Handed reason_;
};

// rnn_layer_forward, which has a derivative: the output, the last states and cells.
ThreeTensors run_layer(const RecurrentSequences& s, const RecurrentWeights& w, bool reverse) {
  using LayerForward =
      OwnOp<"rnn_layer_forward",
            FourTensors (*)(const Tensor&, const Tensor&, MaybeTensor, const Tensor&, const Tensor&, MaybeTensor,
                            MaybeTensor, MaybeTensor, MaybeTensor, c10::string_view, bool, bool)>;
  const auto optional = [](const Tensor* t) { return t ? std::optional(*t) : std::nullopt; };
  const bool differentiate = is_differentiated({&s.input, s.hx, s.cx, &w.ih, &w.hh, w.bias_ih, w.bias_hh, w.hr});
  auto [output, hn, cn, reserve] =
      LayerForward::call(s.input, *s.hx, optional(s.cx), w.ih, w.hh, optional(w.bias_ih), optional(w.bias_hh),
                         optional(w.hr), optional(s.batch_sizes), s.mode.name, reverse, differentiate);
  return {std::move(output), std::move(hn), std::move(cn)};
}

ThreeTensors by_layers(RecurrentRequest r) {
  const RecurrentSequences& s = r.sequences;
  const Cast cast = Cast::now();
  std::vector<Tensor> params;
  for (const Tensor& t : r.params) params.push_back(cast(t));
  r.params = params;
  const std::vector<Tensor> states = cast(*s.hx).unbind(0),
                            cells = s.cx ? cast(*s.cx).unbind(0) : std::vector<Tensor>();
  std::vector<Tensor> last_states, last_cells;
  Tensor x = cast(r.batch_first ? s.input.transpose(0, 1) : s.input);
  for (int64_t layer = 0; layer < r.layers; ++layer) {
    if (layer > 0 && r.dropout != 0 && r.train) x = at::dropout(x, r.dropout, /*train=*/true);
    std::vector<Tensor> outputs;
    for (const bool reverse : {false, true}) {
      if (reverse && !r.bidirectional) break;
      const size_t k = last_states.size();
      auto [output, hn, cn] =
          run_layer({x, &states[k], s.cx ? &cells[k] : nullptr, s.batch_sizes, s.mode}, r.weights(int64_t(k)), reverse);
      outputs.push_back(std::move(output));
      last_states.push_back(std::move(hn));
      last_cells.push_back(std::move(cn));
    }
    x = r.bidirectional ? at::cat(outputs, -1) : outputs[0];
  }
  return {r.batch_first ? x.transpose(0, 1) : x, at::stack(last_states, 0), s.cx ? at::stack(last_cells, 0) : Tensor()};
}

// aten's states, and of an LSTM its cells in a list with them; and what it returns.
template <const RecurrentMode& mode>
using States = std::conditional_t<mode.is_lstm(), at::TensorList, const Tensor&>;
template <const RecurrentMode& mode>
using Result = std::conditional_t<mode.is_lstm(), ThreeTensors, TwoTensors>;
template <const RecurrentMode& mode>
using State = std::conditional_t<mode.is_lstm(), TwoTensors, Tensor>;

template <const RecurrentMode& mode>
RecurrentSequences sequences(const Tensor& input, States<mode> hx, const Tensor* batch_sizes = nullptr) {
  if constexpr (mode.is_lstm()) {
    const bool has_both = hx.size() == 2;
    return {input, has_both ? &hx[0] : nullptr, has_both ? &hx[1] : nullptr, batch_sizes, mode};
  } else {
    return {input, &hx, nullptr, batch_sizes, mode};
  }
}

// Picks, and what they call.
template <const RecurrentMode& mode, class Request>
struct Layers {
  template <class... A>
  static Result<mode> call(const A&... args) {
    auto [output, hn, cn] = by_layers(Request::request(args...));
    if constexpr (mode.is_lstm()) {
      return {std::move(output), std::move(hn), std::move(cn)};
    } else {
      return {std::move(output), std::move(hn)};
    }
  }
};
template <const RecurrentMode& mode>
struct Padded : Layers<mode, Padded<mode>> {
  using Signature = Result<mode>(const Tensor&, States<mode>, at::TensorList, bool, int64_t, double, bool, bool, bool);

  static RecurrentRequest request(const Tensor& input, States<mode> hx, at::TensorList params, bool has_biases,
                                  int64_t num_layers, double dropout, bool train, bool bidirectional,
                                  bool batch_first) {
    return {sequences<mode>(input, hx), params, has_biases, num_layers, dropout, train, bidirectional, batch_first};
  }
};
template <const RecurrentMode& mode>
struct Packed : Layers<mode, Packed<mode>> {
  using Signature = Result<mode>(const Tensor&, const Tensor&, States<mode>, at::TensorList, bool, int64_t, double,
                                 bool, bool);

  static RecurrentRequest request(const Tensor& data, const Tensor& batch_sizes, States<mode> hx, at::TensorList params,
                                  bool has_biases, int64_t num_layers, double dropout, bool train, bool bidirectional) {
    constexpr bool batch_first = false;
    return {sequences<mode>(data, hx, &batch_sizes),
            params,
            has_biases,
            num_layers,
            dropout,
            train,
            bidirectional,
            batch_first};
  }
};

// One step of a layer: its input is [B, I].
class CellPlan;

struct CellRequest {
  using Plan = CellPlan;
  RecurrentSequences sequences;
  RecurrentWeights weights;

  Device device() const { return device_type(sequences.input); }
};

class CellPlan {
 public:
  explicit CellPlan(const CellRequest& request) : reason_(fit(request)) {}

  Handed reason() const { return reason_; }

 private:
  static Handed fit(const CellRequest& r) {
    // Of what stock makes of it some parts are cast, and others are not.
    if (at::autocast::is_autocast_enabled(at::kCPU)) return Handed::option;
    const RecurrentSequences& s = r.sequences;
    const Handed reason = s.reason(/*input_dim=*/2, /*batch_dim=*/0, /*states_dim=*/2);
    if (reason != Handed::no) return reason;
    const auto type = s.input.scalar_type();
    if (!are_readable(r.weights.all())) return Handed::option;
    if (!are_of(type, s.all(), own_type) || !are_of(type, r.weights.all(), own_type)) return Handed::dtype;
    if (!r.weights.fit(s.mode.gates, s.input.size(-1), s.hidden(), s.projected())) return Handed::option;
    // An RNN's few sums: by measurement (Zen 4, one core).
    const bool is_small = !s.mode.is_gated() && s.mode.gates * s.hidden() * (s.input.numel() + s.hx->numel()) < 4096;
    return is_small && !take_all ? Handed::size : Handed::no;
  }

  Handed reason_;
};

template <const RecurrentMode& mode>
struct Cell {
  static CellRequest request(const Tensor& input, States<mode> hx, const Tensor& w_ih, const Tensor& w_hh,
                             MaybeTensor b_ih, MaybeTensor b_hh) {
    return {sequences<mode>(input, hx), {w_ih, w_hh, maybe(b_ih), maybe(b_hh), nullptr}};
  }
  static State<mode> call(const Tensor& input, States<mode> hx, const Tensor& w_ih, const Tensor& w_hh,
                          MaybeTensor b_ih, MaybeTensor b_hh) {
    const Tensor inputs = input.unsqueeze(0);
    constexpr bool reverse = false;
    const CellRequest step = request(inputs, hx, w_ih, w_hh, b_ih, b_hh);
    auto [output, hn, cn] = run_layer(step.sequences, step.weights, reverse);
    if constexpr (mode.is_lstm()) {
      return {std::move(hn), std::move(cn)};
    } else {
      return hn;
    }
  }
};

}  // namespace

const Rows& recurrent_rows() {
#define ROWS(mode)                                                                                               \
  RUSTTORCH_COMPOSITE_ROW(#mode ".input", Padded<mode>, COMPOSITE_IMPLICIT_AS(Padded<mode>::Signature, mode),    \
                          Padded<mode>),                                                                         \
      RUSTTORCH_COMPOSITE_ROW(#mode ".data", Packed<mode>, COMPOSITE_IMPLICIT_AS(Packed<mode>::Signature, mode), \
                              Packed<mode>),                                                                     \
      RUSTTORCH_COMPOSITE_ROW(#mode "_cell", Cell<mode>, COMPOSITE_IMPLICIT(mode##_cell), Cell<mode>)
  static const Rows rows = {
      ROWS(gru),
      ROWS(lstm),
      ROWS(rnn_tanh),
      ROWS(rnn_relu),
      {"rnn_layer_forward", impl<&rnn_layer_forward>(), &stats<"rnn_layer_forward">},
      {"rnn_layer_backward", impl<&rnn_layer_backward>(), &stats<"rnn_layer_backward">},
  };
#undef ROWS
  return rows;
}

}  // namespace rusttorch
