#pragma once

#include "family.h"

namespace rusttorch {

// A row of the result, and one that goes into it.
struct RowPair {
  int32_t to, from;
};

// Rows of `width` elements. The pairs are in the order of `to`, and those of one row are taken in their order:
//   add_rows      out[to] = the sum of scale in[from]
//   largest_rows  out[to] = in each column the first of the largest in[from], or the first if that is NaN; which[to] =
//                 that `from`
//   dot_rows      out[k] = the k-th pair's product of in[from] and other[to]
struct RowsArgs {
  Dtype dtype = {};
  int64_t width = 0;
  int64_t begin = 0, end = 0;  // rows of the result, or of dot_rows pairs
  const RowPair* pairs = nullptr;
  int64_t n = 0;                 // of them
  int64_t rows = 0;              // of in
  const void* scales = nullptr;  // of each pair, in what dtype is computed in; none: 1
  const void* in = nullptr;
  const void* other = nullptr;
  void* out = nullptr;
  void* which = nullptr;  // none: not asked for
  Dtype integer = {};     // its dtype
  bool adds = false;      // to what is there; else rows with no pair are zeros
  bool averages = false;  // the sum over how many there are
  bool stream = false;    // the result is too large for the cache: write its zeros around that

  RowsArgs part(int64_t from, int64_t to) const {
    RowsArgs part = *this;
    part.begin = from;
    part.end = to;
    return part;
  }
};

#define RUSTTORCH_EMBEDDING(X) X(add_rows) X(largest_rows) X(dot_rows)

}  // namespace rusttorch

RUSTTORCH_DECLARE_FAMILY(embedding, RowsArgs, RUSTTORCH_EMBEDDING)
