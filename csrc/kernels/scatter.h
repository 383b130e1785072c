#pragma once

#include "family.h"

namespace rusttorch {

// out[outer][index][inner] += in[outer][n][inner], in the order of n:
//   scatter_add   index [outer][n][inner]
//   index_add     index [n]
struct ScatterArgs {
  Dtype dtype;
  int64_t n, inner;
  int64_t rows;                 // of out
  int64_t begin = 0, end = 1;   // of the outer ones
  int64_t first = 0, last = 0;  // of the inner ones
  const int64_t* index;
  const void* in;
  void* out;
};

#define RUSTTORCH_SCATTER(X) X(scatter_add) X(index_add)

}  // namespace rusttorch

RUSTTORCH_DECLARE_FAMILY(scatter, ScatterArgs, RUSTTORCH_SCATTER)
