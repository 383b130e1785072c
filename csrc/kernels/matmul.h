#pragma once

#include "family.h"

namespace rusttorch {

// out = alpha * (a @ b) + beta * added, for a [m, k], b [k, n] and out [m, n]; of 16 bits the sums are in float.
struct MatmulArgs {
  Dtype dtype;
  int64_t m, n, k;
  const void *a, *b;
  int64_t a_row, a_column, b_row, b_column;  // strides, in elements
  void* out;
  int64_t out_row;                  // its columns are neighbours
  const void* added;                // or nothing: then beta is not read. May be out.
  int64_t added_row, added_column;  // the latter 0 or 1
  double alpha, beta;

  // Of out's rows and columns from the first to the last.
  MatmulArgs part(int64_t row, int64_t last_row, int64_t column, int64_t last_column) const {
    const int64_t size = element_size(dtype);
    MatmulArgs part = *this;
    part.m = last_row - row;
    part.n = last_column - column;
    advance(part.a, row * a_row * size);
    advance(part.b, column * b_column * size);
    advance(part.out, (row * out_row + column) * size);
    advance(part.added, (row * added_row + column * added_column) * size);
    return part;
  }
};

// blocks: any strides. dots: of rows of a and columns of b that are runs. combinations: of b's rows, which are runs.
#define RUSTTORCH_MATMUL(X) \
  X(blocks)                 \
  X(dots)                   \
  X(combinations)

}  // namespace rusttorch

RUSTTORCH_DECLARE_FAMILY(matmul, MatmulArgs, RUSTTORCH_MATMUL)
