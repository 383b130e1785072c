#pragma once

#include "stub.h"

namespace rusttorch {

// out[o][k][i] from in[o][0..k][i]: what has come together up to k, along the middle of three dims.
struct ScanArgs {
  Dtype dtype;
  int64_t outer, n, inner;
  int64_t row;  // elements from [o][k] to [o][k + 1]: inner, or more where inner is a part of it
  const void* in;
  void* out;
  int64_t* index;  // of the largest or smallest so far, the last of equals
};

struct ScanKernel {
  void (*run)(const ScanArgs&);
};

#define RUSTTORCH_SCAN(X) \
  X(cumsum)               \
  X(cummax)               \
  X(cummin)

}  // namespace rusttorch

RUSTTORCH_DECLARE_FAMILY_OF(ScanKernel, scan, RUSTTORCH_SCAN)
