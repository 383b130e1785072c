#include "rows.h"
#include "stock.h"

namespace rusttorch {
namespace {

class EmbeddingPlan;

struct EmbeddingRequest {
  using Plan = EmbeddingPlan;
  const Tensor& grad;
  const Tensor& indices;
  int64_t rows;  // of the result
  int64_t padding_idx;
  bool scale_grad_by_freq;

  Device device() const { return device_type(grad); }
};

class EmbeddingPlan {
 public:
  explicit EmbeddingPlan(const EmbeddingRequest& request) : request_(request), reason_(fit()) {}

  Handed reason() const { return reason_; }

  template <class R>
  R compute() const {
    const Tensor grad = request_.grad.contiguous(), indices = request_.indices.contiguous();
    const Tensor out = empty_beside(grad, {request_.rows, grad.size(-1)}, grad.scalar_type());
    std::vector<RowPair> pairs = with_index(indices, [&](const auto* p) { return pairs_of(p); });
    sort_pairs(pairs, request_.rows);
    run_rows(embedding::add_rows, {.averages = request_.scale_grad_by_freq}, out, request_.rows, grad, pairs);
    return out;
  }

 private:
  const EmbeddingRequest& request_;
  Handed reason_;

  Handed fit() const {
    const Tensor &grad = request_.grad, &indices = request_.indices;
    if (!is_strided_on_cpu(grad) || !is_strided_on_cpu(indices)) return Handed::option;
    if (!at::isFloatingType(grad.scalar_type()) || !dtype_of(grad) || !is_index(indices)) return Handed::dtype;
    if (request_.rows < 0 || request_.rows > most_rows || indices.numel() > most_rows) return Handed::size;
    if (grad.dim() != indices.dim() + 1 || !grad.sizes().slice(0, size_t(indices.dim())).equals(indices.sizes()))
      return Handed::option;
    return Handed::no;
  }

  // No row is out of range, as in stock.
  template <class Index>
  std::vector<RowPair> pairs_of(const Index* p) const {
    const int64_t n = request_.indices.numel();
    std::vector<RowPair> pairs;
    pairs.reserve(size_t(n));
    for (int64_t k = 0; k < n; ++k) {
      const int64_t row = p[k];
      if (row >= 0 && row < request_.rows && row != request_.padding_idx) pairs.push_back({int32_t(row), int32_t(k)});
    }
    return pairs;
  }
};

struct EmbeddingDenseBackward {
  static EmbeddingRequest request(const Tensor& grad, const Tensor& indices, const c10::SymInt& num_weights,
                                  const c10::SymInt& padding_idx, bool scale_grad_by_freq) {
    return {grad, indices, num_weights.guard_int(__FILE__, __LINE__), padding_idx.guard_int(__FILE__, __LINE__),
            scale_grad_by_freq};
  }
};

}  // namespace

const Rows& embedding_rows() {
  static const Rows rows = {
      ROW("embedding_dense_backward", EmbeddingDenseBackward, STOCK(embedding_dense_backward_symint)),
  };
  return rows;
}

}  // namespace rusttorch
