#pragma once

#include "family.h"
#include "random.h"

namespace rusttorch {

// As many queries as a kernel looks at together.
constexpr int64_t queries_together = 128;
constexpr int64_t parts_of(int64_t queries) { return (queries + queries_together - 1) / queries_together; }

// Rows of numbers that are neighbours, of each of some heads; strides in elements. Or nothing.
template <class P>
struct HeadRows {
  P data;
  int64_t row, head;

  void to_head(int64_t k, int64_t size) { advance(data, k * head * size); }
};

// out = softmax(scale q k^T + mask) v for the queries of heads that share their keys and values.
// There is at least one query and one key, and numbers in each.
struct AttentionArgs {
  Dtype dtype;
  int64_t heads, queries, keys;
  int64_t size, value_size;  // of a query and a key, and of a value
  HeadRows<const void*> q, k, v;
  double scale;
  // Query i sees the keys j <= first_query + i.
  bool causal;
  int64_t first_query;
  // What is added to a score, or where there is one (b8); element (i, j) at data[i * row + j * mask_column].
  HeadRows<const void*> mask;
  Dtype mask_dtype;
  int64_t mask_column;
  // Dropout: of all queries' keys, in order, those with a random number below kept are kept, times kept_scale. Of each
  // head and each queries_together of its queries there is the generator's state (saved_words).
  const uint32_t* random;
  uint64_t kept;
  double kept_scale;
  HeadRows<void*> out;
  // Of each query the logarithm of its exponentials' sum, in what is computed in (an element is a row).
  HeadRows<void*> logsumexp;
  // Backward:
  HeadRows<const void*> grad_out;
  HeadRows<void*> grad_q, grad_k, grad_v;
  // What this thread computes next, or nothing: its rows are fetched meanwhile.
  const AttentionArgs* next = nullptr;

  // Of a logarithm.
  int64_t wide_size() const { return dtype == Dtype::f64 ? 8 : 4; }

  // One of the heads. Then of its queries those from the first to the last; the first one begins a part.
  AttentionArgs of_head(int64_t head) const {
    AttentionArgs a = *this;
    const int64_t size = element_size(dtype);
    a.q.to_head(head, size);
    a.out.to_head(head, size);
    a.grad_out.to_head(head, size);
    a.grad_q.to_head(head, size);
    a.mask.to_head(head, element_size(mask_dtype));
    a.logsumexp.to_head(head, wide_size());
    if (a.random) a.random += head * parts_of(queries) * saved_words;
    a.heads = 1;
    return a;
  }
  AttentionArgs of_queries(int64_t first, int64_t last) const {
    AttentionArgs a = *this;
    const int64_t size = element_size(dtype);
    a.queries = last - first;
    a.first_query += first;
    advance(a.q.data, first * q.row * size);
    advance(a.out.data, first * out.row * size);
    advance(a.grad_out.data, first * grad_out.row * size);
    advance(a.grad_q.data, first * grad_q.row * size);
    advance(a.mask.data, first * mask.row * element_size(mask_dtype));
    advance(a.logsumexp.data, first * logsumexp.row * wide_size());
    if (a.random) a.random += first / queries_together * saved_words;
    return a;
  }
};

// forward: one head, at most queries_together. backward: heads that share their keys and values, all of the queries.
// ..._of_pairs: of bfloat16 on a CPU with AVX512-BF16, ..._of_squares: with AMX.
#define RUSTTORCH_ATTENTION(X) \
  X(forward)                   \
  X(backward)                  \
  X(forward_of_pairs)          \
  X(backward_of_pairs)         \
  X(forward_of_squares)        \
  X(backward_of_squares)

}  // namespace rusttorch

RUSTTORCH_DECLARE_FAMILY(attention, AttentionArgs, RUSTTORCH_ATTENTION)
