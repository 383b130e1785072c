#pragma once

#include "family.h"
#include "random.h"

namespace rusttorch {

// out[i] = mask[i] ? in[i] * scale : in[i] * 0
struct DropoutArgs {
  Dtype dtype;
  int64_t n;
  const void* in;
  void* out;
  uint8_t* mask;  // 0 or 1
  double scale;
  // Forward, which writes the mask: an element is kept where a random number of 53 bits is below kept. (draw does
  // nothing else; skip only moves on by n numbers.)
  Twister* random;
  uint64_t kept;

  DropoutArgs part(int64_t begin, int64_t end) const {
    DropoutArgs part = *this;
    part.n = end - begin;
    advance(part.in, begin * element_size(dtype));
    advance(part.out, begin * element_size(dtype));
    part.mask += begin;
    return part;
  }
};

// X(name)
#define RUSTTORCH_DROPOUT(X) \
  X(forward)                 \
  X(backward)                \
  X(draw)                    \
  X(skip)

}  // namespace rusttorch

RUSTTORCH_DECLARE_FAMILY(dropout, DropoutArgs, RUSTTORCH_DROPOUT)
