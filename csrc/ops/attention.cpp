#include "../kernels/attention.h"

#include <ATen/Context.h>
#include <ATen/OpMathType.h>
#include <ATen/ops/empty_like.h>

#include <cmath>

#include "decomposed.h"
#include "matmul.h"
#include "random.h"
#include "run.h"
#include "stock.h"

namespace rusttorch {
namespace {

// How F.scaled_dot_product_attention comes here under use():
//   autograd's key   Decomposed<Attention>: if AttentionPlan says that the kernels take it, ByForward; or stock's
//                    decomposition, which may pick _scaled_dot_product_flash_attention_for_cpu: ours too
//   by name          rusttorch::attention_forward, whose derivative is in autograd/attention.cpp
//   a backend's key  forward(); from the derivative, backward()

using Two = std::tuple<Tensor, Tensor>;
using Three = std::tuple<Tensor, Tensor, Tensor>;

class AttentionPlan;

struct AttentionRequest {
  using Plan = AttentionPlan;

  Tensor query, key, value;
  MaybeTensor mask;
  double dropout_p;
  bool causal;
  std::optional<double> scale;
  bool grouped = false;     // several queries' heads may share a key's
  bool as_flash = false;    // only what stock's flash attention takes
  bool decomposed = false;  // above the backends
  // Backward, of what was given and returned:
  const Tensor *grad = nullptr, *out = nullptr, *logsumexp = nullptr, *random = nullptr;

  Device device() const { return device_type(query); }
};

// Whether stock's flash attention would take it: then its result lies as the queries do, and is kept.
bool is_as_flash(const Tensor& q, const Tensor& k, const Tensor& v, double dropout_p) {
  return dropout_p == 0 && q.size(1) == k.size(1) && q.size(3) == v.size(3);
}

class AttentionPlan {
 public:
  explicit AttentionPlan(const AttentionRequest& request) : r(request), reason_(fit()) {}

  Handed reason() const { return reason_; }

  template <class R>
  R compute() {
    read();
    if constexpr (std::is_same_v<R, Two>) {
      const Three results = forward();
      return {std::get<0>(results), std::get<1>(results)};
    } else {
      return r.grad ? backward() : forward();
    }
  }

 private:
  Handed fit();
  Handed fit_mask() const;
  bool stock_is_faster() const;
  bool is_empty() const { return r.query.numel() == 0 || r.key.numel() == 0 || r.value.numel() == 0; }
  void read();
  Three forward();
  Three backward();
  Tensor draw_states() const;
  AttentionArgs of_group(int64_t batch, int64_t head) const;
  Tensor empty_turned(int64_t heads, int64_t rows, int64_t size) const;
  const Kernel<AttentionArgs>& which(attention numbers, attention pairs, attention squares) const {
    const Dtype dtype = args_.dtype;
    return kernel(has_squares(dtype) ? squares : has_pairs(dtype) ? pairs : numbers).on(Device::cpu);
  }

  const AttentionRequest& r;
  int64_t batches_ = 0, heads_ = 0, key_heads_ = 0;
  AttentionArgs args_{};  // but for where a head's numbers are
  Tensor mask_;           // of all scores
  Tensor out_, logsumexp_, random_, grad_out_, grad_q_, grad_k_, grad_v_;
  Handed reason_;
};

Handed AttentionPlan::fit_mask() const {
  const Tensor& mask = *r.mask;
  const at::ScalarType type = mask.scalar_type(), own = r.query.scalar_type();
  if (!is_plain(mask) || mask.device() != r.query.device() || mask.requires_grad()) return Handed::option;
  const bool wider = type == at::kFloat && r.query.element_size() == 2;
  if (type != own && !wider && (r.as_flash || type != at::kBool)) return Handed::dtype;
  if (r.as_flash ? mask.dim() != 2 && mask.dim() != 4 : mask.dim() < 2 || mask.dim() > 4) return Handed::layout;
  const std::array<int64_t, 4> sizes{r.query.size(0), r.query.size(1), r.query.size(2), r.key.size(2)};
  for (int64_t d = 1; d <= mask.dim(); ++d) {
    if (mask.size(-d) != 1 && mask.size(-d) != sizes[4 - d]) return Handed::layout;
  }
  return Handed::no;
}

Handed AttentionPlan::fit() {
  const Tensor &q = r.query, &k = r.key, &v = r.value;
  if (!on_cpu(q)) return Handed::option;
  for (const Tensor* t : {&q, &k, &v}) {
    if (t->device() != q.device() || !is_plain(*t)) return Handed::option;
    if (t->layout() != at::kStrided || t->is_nested()) return Handed::option;
    if (t->scalar_type() != q.scalar_type()) return Handed::dtype;
    if (t->dim() != 4) return Handed::layout;
  }
  if (!dtype_of(q) || !at::isFloatingType(q.scalar_type())) return Handed::dtype;
  if (!(r.dropout_p >= 0 && r.dropout_p < 1) || (r.as_flash && r.dropout_p > 0)) return Handed::option;
  const bool fits = k.size(0) == q.size(0) && v.size(0) == q.size(0) && k.size(1) == v.size(1) &&
                    k.size(2) == v.size(2) && k.size(3) == q.size(3) &&
                    (r.grouped ? k.size(1) > 0 && q.size(1) % k.size(1) == 0 : k.size(1) == q.size(1)) &&
                    (!r.as_flash || v.size(3) == q.size(3));
  if (!fits) return Handed::layout;
  batches_ = q.size(0), heads_ = q.size(1), key_heads_ = k.size(1);
  // Stock's flash attention divides by 0 there, which ends the process.
  if (is_empty()) return r.as_flash ? Handed::no : Handed::size;
  for (const Tensor* t : {&q, &k, &v}) {
    if (t->stride(-1) != 1 && t->size(-1) != 1) return Handed::layout;
  }
  if (given(r.mask)) {
    if (r.decomposed && r.causal) return Handed::option;  // stock raises
    if (const Handed reason = fit_mask(); reason != Handed::no) return reason;
  }
  if (r.decomposed && !at::globalContext().userEnabledFlashSDP()) return Handed::option;
  if (r.grad) {
    const bool belongs = r.grad->sizes().equals(r.out->sizes()) && r.out->dim() == 4 &&
                         r.out->sizes().slice(0, 3).equals(q.sizes().slice(0, 3)) && r.out->size(3) == v.size(3) &&
                         r.logsumexp->sizes().equals(q.sizes().slice(0, 3)) &&
                         r.grad->scalar_type() == q.scalar_type() && r.out->scalar_type() == q.scalar_type() &&
                         r.logsumexp->scalar_type() == at::toOpMathType(q.scalar_type()) && is_plain(*r.grad) &&
                         is_plain(*r.out) && is_plain(*r.logsumexp) && r.grad->is_cpu() && r.out->is_cpu() &&
                         r.logsumexp->is_cpu();
    const bool has_states = !r.random || r.dropout_p == 0 ||
                            (r.random->scalar_type() == at::kInt && r.random->is_contiguous() && r.random->is_cpu() &&
                             r.random->numel() == batches_ * heads_ * parts_of(q.size(2)) * saved_words);
    if (!belongs || !has_states) return Handed::option;
  }
  return stock_is_faster() ? Handed::size : Handed::no;
}

// Of 16 bits oneDNN uses products of Intel's CPUs that ours do not, but for AMX, which ours use of bfloat16.
bool AttentionPlan::stock_is_faster() const {
  return r.query.element_size() == 2 && is_intel() && !has_squares(*dtype_of(r.query));
}

void AttentionPlan::read() {
  const Tensor &q = r.query, &k = r.key;
  args_.dtype = *dtype_of(q);
  args_.heads = heads_ / std::max<int64_t>(1, key_heads_);
  args_.queries = q.size(2);
  args_.keys = k.size(2);
  args_.size = q.size(3);
  args_.value_size = r.value.size(3);
  args_.scale = r.scale.value_or(1 / std::sqrt(double(args_.size)));
  args_.causal = r.causal;
  args_.kept = kept_below(r.dropout_p);
  args_.kept_scale = 1 / (1 - r.dropout_p);
  if (!given(r.mask)) return;
  mask_ = r.mask->expand({batches_, heads_, args_.queries, args_.keys});
  args_.mask_dtype = *dtype_of(mask_);
  args_.mask_column = mask_.stride(3);
}

// Of a batch, the heads that share the keys of one.
AttentionArgs AttentionPlan::of_group(int64_t batch, int64_t head) const {
  AttentionArgs a = args_;
  const auto place = [&](auto& rows, const Tensor& t, int64_t head) {
    if (!t.defined()) return;
    rows = {const_cast<void*>(t.const_data_ptr()), t.stride(2), t.stride(1)};
    advance(rows.data, (batch * t.stride(0) + head * t.stride(1)) * t.element_size());
  };
  const int64_t first = head * args_.heads;
  place(a.q, r.query, first);
  place(a.k, r.key, head);
  place(a.v, r.value, head);
  place(a.mask, mask_, first);
  place(a.out, out_, first);
  place(a.logsumexp, logsumexp_, first);
  place(a.grad_out, grad_out_, first);
  place(a.grad_q, grad_q_, first);
  place(a.grad_k, grad_k_, head);
  place(a.grad_v, grad_v_, head);
  if (r.dropout_p > 0) {
    a.random = static_cast<const uint32_t*>(random_.const_data_ptr());
    a.random += (batch * heads_ + first) * parts_of(args_.queries) * saved_words;
  }
  return a;
}

// [batch, head, row, size], which lies as [batch, row, head, size]: a projection's layout.
Tensor AttentionPlan::empty_turned(int64_t heads, int64_t rows, int64_t size) const {
  return empty_beside(r.query, {batches_, rows, heads, size}, r.query.scalar_type()).transpose(1, 2);
}

// The generator's states of all parts. It is left as stock's bernoulli_ would leave it, for all scores in order (where
// that does not use MKL's, as it does on Intel's CPUs).
Tensor AttentionPlan::draw_states() const {
  const int64_t parts = parts_of(args_.queries), heads = batches_ * heads_;
  const Tensor states = empty_beside(r.query, {heads * parts, saved_words}, at::kInt);
  auto* to = static_cast<uint32_t*>(states.mutable_data_ptr());
  with_default_generator([&](Twister& random) {
    DropoutArgs skipped{};
    skipped.random = &random;
    for (int64_t k = 0; k < heads * parts; ++k) {
      to = save(random, to);
      const int64_t first = k % parts * queries_together;
      skipped.n = std::min(queries_together, args_.queries - first) * args_.keys;
      kernel(dropout::skip).on(Device::cpu).run(skipped);
    }
  });
  return states;
}

// The kernel for args(0) to args(n - 1), shared by threads, each of which knows what comes next.
template <class F>
void run_in_turn(const Kernel<AttentionArgs>& kernel, int64_t n, int64_t work, F args) {
  parallel(n, work, [&](int64_t begin, int64_t end) {
    AttentionArgs now = args(begin), next;
    for (int64_t k = begin; k < end; ++k, now = next) {
      if (k + 1 < end) next = args(k + 1);
      now.next = k + 1 < end ? &next : nullptr;
      kernel.run(now);
    }
  });
}

Three AttentionPlan::forward() {
  out_ = is_as_flash(r.query, r.key, r.value, r.dropout_p) && like_has_rows(r.query)
             ? at::empty_like(r.query)
             : empty_beside(r.query, {batches_, heads_, args_.queries, args_.value_size}, r.query.scalar_type());
  const at::ScalarType wide = at::toOpMathType(r.query.scalar_type());
  logsumexp_ = empty_beside(r.query, {batches_, args_.queries, heads_, 1}, wide).transpose(1, 2);
  random_ = r.dropout_p > 0 ? draw_states() : empty_beside(r.query, {0}, at::kInt);
  if (is_empty()) return {out_.zero_(), logsumexp_.squeeze(3).zero_(), random_};
  const auto& forward = which(attention::forward, attention::forward_of_pairs, attention::forward_of_squares);
  const int64_t parts = parts_of(args_.queries);
  const int64_t work = std::min(queries_together, args_.queries) * args_.keys * args_.size / 8;
  const auto part = [&](int64_t k) {
    const int64_t head = k / parts % heads_, first = k % parts * queries_together;
    return of_group(k / parts / heads_, head / args_.heads)
        .of_head(head % args_.heads)
        .of_queries(first, std::min(first + queries_together, args_.queries));
  };
  run_in_turn(forward, batches_ * heads_ * parts, work, part);
  return {out_, logsumexp_.squeeze(3), random_};
}

Three AttentionPlan::backward() {
  grad_out_ = r.grad->stride(-1) == 1 ? *r.grad : r.grad->contiguous();
  out_ = r.out->stride(-1) == 1 ? *r.out : r.out->contiguous();
  logsumexp_ = r.logsumexp->unsqueeze(3);
  if (r.random) random_ = *r.random;
  grad_q_ = empty_turned(heads_, args_.queries, args_.size);
  grad_k_ = empty_turned(key_heads_, args_.keys, args_.size);
  grad_v_ = empty_turned(key_heads_, args_.keys, args_.value_size);
  if (is_empty()) return {grad_q_.zero_(), grad_k_.zero_(), grad_v_.zero_()};
  const auto& backward = which(attention::backward, attention::backward_of_pairs, attention::backward_of_squares);
  const int64_t work = args_.heads * args_.queries * args_.keys * args_.size / 4;
  const auto group = [&](int64_t k) { return of_group(k / key_heads_, k % key_heads_); };
  run_in_turn(backward, batches_ * key_heads_, work, group);
  return {grad_q_, grad_k_, grad_v_};
}

// Stock's kernel where there is none for a device.
template <auto fn>
struct OfCpu {
  using Signature = decltype(fn);
  template <class... A>
  static decltype(auto) call(Device device, A&&... args) {
    TORCH_CHECK_NOT_IMPLEMENTED(device == Device::cpu, "flash attention for the CPU has no kernel for a device");
    return fn(std::forward<A>(args)...);
  }
};

// aten's, which its decomposition picks.
struct Flash {
  static AttentionRequest request(const Tensor& q, const Tensor& k, const Tensor& v, double dropout_p, bool is_causal,
                                  MaybeTensor mask, std::optional<double> scale) {
    AttentionRequest r{q, k, v, mask, dropout_p, is_causal, scale};
    r.as_flash = true;
    return r;
  }
};
struct FlashBackward {
  static AttentionRequest request(const Tensor& grad, const Tensor& q, const Tensor& k, const Tensor& v,
                                  const Tensor& out, const Tensor& logsumexp, double dropout_p, bool is_causal,
                                  MaybeTensor mask, std::optional<double> scale) {
    AttentionRequest r = Flash::request(q, k, v, dropout_p, is_causal, mask, scale);
    r.grad = &grad;
    r.out = &out;
    r.logsumexp = &logsumexp;
    return r;
  }
};

// [H, L, E] and so on. Stock's flash attention does not take that, so its result is contiguous and may be changed.
bool has_no_batch(const Tensor& q, const Tensor& k, const Tensor& v, MaybeTensor mask) {
  return q.dim() == 3 && k.dim() == 3 && v.dim() == 3 && (!given(mask) || mask->dim() <= 3);
}

// What is decomposed.
struct Attention {
  static AttentionRequest request(const Tensor& q, const Tensor& k, const Tensor& v, MaybeTensor mask, double dropout_p,
                                  bool is_causal, std::optional<double> scale, bool enable_gqa) {
    const bool without = has_no_batch(q, k, v, mask);
    const auto batch = [&](const Tensor& t) { return without ? t.unsqueeze(0) : t; };
    AttentionRequest r{batch(q), batch(k), batch(v), mask, dropout_p, is_causal, scale};
    r.grouped = enable_gqa;
    r.decomposed = true;
    return r;
  }
};
struct ByForward {
  static Tensor call(const Tensor& q, const Tensor& k, const Tensor& v, MaybeTensor mask, double dropout_p,
                     bool is_causal, std::optional<double> scale, bool) {
    using Forward = OwnOp<"attention_forward", Three (*)(const Tensor&, const Tensor&, const Tensor&, MaybeTensor,
                                                         double, bool, std::optional<double>)>;
    const bool without = has_no_batch(q, k, v, mask);
    const auto by_forward = [&](const Tensor& q, const Tensor& k, const Tensor& v) {
      return std::get<0>(Forward::call(q, k, v, mask, dropout_p, is_causal, scale));
    };
    const Tensor out = without ? by_forward(q.contiguous().unsqueeze(0), k.unsqueeze(0), v.unsqueeze(0)).squeeze(0)
                               : by_forward(q, k, v);
    // The derivative reads the output, which may be changed meanwhile, but where stock's flash attention is taken.
    const bool is_kept = !without && is_as_flash(q, k, v, dropout_p);
    return !out.requires_grad() || is_kept ? out : out.clone();
  }
};

// Our own, which take all that the kernels do and nothing else.
AttentionPlan checked(const char* op, const AttentionRequest& request) {
  AttentionPlan plan(request);
  TORCH_CHECK(
      plan.reason() == Handed::no || plan.reason() == Handed::size, op,
      ": query, key and value must be CPU tensors [N, H, L, E], [N, K, S, E] and [N, K, S, V] of one ",
      "floating-point dtype whose last dim is contiguous, K a divisor of H, with a mask of bool, of their dtype ",
      "or of float32 that has no gradient, and 0 <= dropout_p < 1; scaled_dot_product_attention takes all");
  return plan;
}

Three attention_forward(const Tensor& q, const Tensor& k, const Tensor& v, MaybeTensor mask, double dropout_p,
                        bool is_causal, std::optional<double> scale) {
  AttentionRequest request{q, k, v, mask, dropout_p, is_causal, scale};
  request.grouped = true;
  stats<"attention_forward">.count(Handed::no);
  return checked("attention_forward", request).compute<Three>();
}

Three attention_backward(const Tensor& grad, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
                         const Tensor& logsumexp, const Tensor& random, MaybeTensor mask, double dropout_p,
                         bool is_causal, std::optional<double> scale) {
  AttentionRequest request{q, k, v, mask, dropout_p, is_causal, scale};
  request.grouped = true;
  request.grad = &grad;
  request.out = &out;
  request.logsumexp = &logsumexp;
  request.random = &random;
  stats<"attention_backward">.count(Handed::no);
  return checked("attention_backward", request).compute<Three>();
}

// Of what attention_forward returned: which of the weights [N, H, L, S] were kept.
Tensor attention_kept(const Tensor& random, const c10::SymIntArrayRef sizes, double dropout_p) {
  stats<"attention_kept">.count(Handed::no);
  const auto shape = C10_AS_INTARRAYREF_SLOW(sizes);
  TORCH_CHECK(shape.size() == 4 && random.scalar_type() == at::kInt && random.is_contiguous() && on_cpu(random) &&
                  random.numel() == shape[0] * shape[1] * parts_of(shape[2]) * saved_words,
              "attention_kept: expected the states that attention_forward returned and its weights' sizes, got ",
              random.scalar_type(), " ", random.sizes(), " and ", shape);
  const Tensor kept = empty_beside(random, shape, at::kBool);
  const auto* states = static_cast<const uint32_t*>(random.const_data_ptr());
  DropoutArgs a{};
  a.mask = static_cast<uint8_t*>(kept.mutable_data_ptr());
  a.kept = kept_below(dropout_p);
  for (int64_t head = 0; head < shape[0] * shape[1]; ++head) {
    for (int64_t first = 0; first < shape[2]; first += queries_together, states += saved_words, a.mask += a.n) {
      uint32_t words[Twister::size];
      Twister twister = restore(states, words);
      a.random = &twister;
      a.n = std::min(queries_together, shape[2] - first) * shape[3];
      kernel(dropout::draw).on(Device::cpu).run(a);
    }
  }
  return kept;
}

}  // namespace

const Rows& attention_rows() {
  static const Rows rows = {
      ROW("_scaled_dot_product_flash_attention_for_cpu", Flash,
          OfCpu<&at::cpu::_scaled_dot_product_flash_attention_for_cpu>),
      ROW("_scaled_dot_product_flash_attention_for_cpu_backward", FlashBackward,
          OfCpu<&at::cpu::_scaled_dot_product_flash_attention_for_cpu_backward>),
      {"attention_forward", impl<&attention_forward>(), &stats<"attention_forward">},
      {"attention_backward", impl<&attention_backward>(), &stats<"attention_backward">},
      {"attention_kept", impl<&attention_kept>(), &stats<"attention_kept">},
      RUSTTORCH_COMPOSITE_ROW("scaled_dot_product_attention", Attention,
                              COMPOSITE_IMPLICIT(scaled_dot_product_attention), ByForward),
  };
  return rows;
}

}  // namespace rusttorch
