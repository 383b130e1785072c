#include <ATen/TensorOperators.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/softmax.h>
#include <c10/core/GradMode.h>

#include <cmath>

#include "derivative.h"

namespace rusttorch::autograd {
namespace {

// attention_forward(query, key, value, attn_mask, dropout_p, is_causal, scale) -> output, logsumexp, random
// _scaled_dot_product_flash_attention_for_cpu(query, key, value, dropout_p, is_causal, attn_mask, scale)
struct Positions {
  size_t mask, dropout_p, is_causal;
};

// A sum over the heads that share a key's, `group` of them.
Tensor over_group(const Tensor& by_head, const c10::SymInt& group) {
  return by_head.unflatten_symint(1, {by_head.sym_size(1) / group, group}).sum(2);
}

// In differentiable ops, for a second derivative: with p the weights, d = g v^T and s = p (d - sum(p d)), and the
// weights that are kept times their scale,
//   grad_v = p^T g, grad_k = scale s^T q, grad_q = scale s k
Grads in_ops(const Call& c, const Tensor& g, const Positions& at) {
  const Tensor& q = c.tensor(0);
  const auto key_heads = c.tensor(1).sym_size(1);
  const auto group = key_heads == 0 ? c10::SymInt(1) : q.sym_size(1) / key_heads;
  const auto each = [&](const Tensor& t) { return t.repeat_interleave_symint(group, 1); };
  const Tensor k = each(c.tensor(1)), v = each(c.tensor(2));
  const double scale =
      c.argument(6).isNone() ? 1 / std::sqrt(double(q.sym_size(3).guard_int(__FILE__, __LINE__))) : c.number(6);
  Tensor scores = at::matmul(q, k.mT()) * scale;
  Tensor hidden = at::ones_symint({1, 1, q.sym_size(2), k.sym_size(2)}, q.options().dtype(at::kBool));
  hidden = c.flag(at.is_causal) ? hidden.triu(1) : hidden.logical_not();
  if (c.given(at.mask)) {
    const Tensor& mask = c.tensor(at.mask);
    if (mask.scalar_type() == at::kBool) {
      hidden = hidden | mask.logical_not();
    } else {
      scores = scores + mask;
      hidden = hidden | (mask == -INFINITY);
    }
  }
  scores = scores.masked_fill(hidden, -INFINITY);
  // Where a query sees nothing, there is no weight.
  const Tensor none = hidden.all(-1, true).expand_symint(scores.sym_sizes());
  const Tensor p = at::softmax(scores.masked_fill(none, 0), -1).masked_fill(none, 0).to(q.scalar_type());
  Tensor kept = p, d = at::matmul(g, v.mT());
  if (const double dropout_p = c.number(at.dropout_p); dropout_p > 0) {
    const Tensor factor =
        call("attention_kept", {c.result(2), scores.sym_sizes(), dropout_p}).to(q.scalar_type()) / (1 - dropout_p);
    kept = p * factor;
    d = d * factor;
  }
  const Tensor s = p * (d - (p * d).sum(-1, true)) * scale;
  return {c.want(0, [&] { return at::matmul(s, k); }),
          c.want(1, [&] { return over_group(at::matmul(s.mT(), q), group); }),
          c.want(2, [&] { return over_group(at::matmul(kept.mT(), g), group); })};
}

Grads of_attention(const Call& c, const Tensor& g) {
  if (c10::GradMode::is_enabled()) return in_ops(c, g, {3, 4, 5});
  return call_all("attention_backward", {g, c.tensor(0), c.tensor(1), c.tensor(2), c.result(0), c.result(1),
                                         c.result(2), c.argument(3), c.argument(4), c.argument(5), c.argument(6)});
}

Grads of_flash(const Call& c, const Tensor& g) {
  if (c10::GradMode::is_enabled()) return in_ops(c, g, {5, 3, 4});
  return call_all("_scaled_dot_product_flash_attention_for_cpu_backward",
                  {g, c.tensor(0), c.tensor(1), c.tensor(2), c.result(0), c.result(1), c.argument(3), c.argument(4),
                   c.argument(5), c.argument(6)});
}

}  // namespace

const std::vector<Formula>& attention_formulas() {
  static const std::vector<Formula> formulas = {
      {.op = "attention_forward",
       .saves = {argument(0), argument(1), argument(2), argument(3), results()},
       .grads = of_attention,
       .inputs = 3},
      {.op = "_scaled_dot_product_flash_attention_for_cpu",
       .saves = {argument(0), argument(1), argument(2), argument(5), results()},
       .grads = of_flash,
       .inputs = 3},
  };
  return formulas;
}

}  // namespace rusttorch::autograd
