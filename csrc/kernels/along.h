#pragma once

#include "kernel.h"

namespace rusttorch {

// A contiguous tensor around one of its dims, or around several neighbours: [outer][n][inner].
struct Along {
  Dtype dtype;
  int64_t outer, n, inner;
  int64_t row;  // elements from [o][k] to [o][k + 1]: inner, or more where inner is a part of it
};

}  // namespace rusttorch
