#pragma once

#include "family.h"

namespace rusttorch {

// out[b][c][r] = in[b][r][c], of elements of 2, 4 or 8 bytes.
struct TransposeArgs {
  int64_t batch, rows, columns, element_size;
  const void* in;
  void* out;

  TransposeArgs part(int64_t begin, int64_t end) const {
    TransposeArgs part = *this;
    part.batch = end - begin;
    advance(part.in, begin * rows * columns * element_size);
    advance(part.out, begin * rows * columns * element_size);
    return part;
  }
};

#define RUSTTORCH_COPY(X) X(transpose)

}  // namespace rusttorch

RUSTTORCH_DECLARE_FAMILY(copy, TransposeArgs, RUSTTORCH_COPY)
