#pragma once

#include "stub.h"

namespace rusttorch {

// out[b][c][r] = in[b][r][c], of elements of 2, 4 or 8 bytes.
struct TransposeArgs {
  int64_t batch, rows, columns, element_size;
  const void* in;
  void* out;
};

struct TransposeKernel {
  void (*run)(const TransposeArgs&);
};

#define RUSTTORCH_COPY(X) X(transpose)

}  // namespace rusttorch

RUSTTORCH_DECLARE_FAMILY_OF(TransposeKernel, copy, RUSTTORCH_COPY)
