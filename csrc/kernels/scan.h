#pragma once

#include "along.h"
#include "family.h"

namespace rusttorch {

// out[o][k][i] from in[o][0..k][i]: what has come together up to k, along the middle of three dims.
struct ScanArgs : Along {
  const void* in;
  void* out;
  int64_t out_size;  // bytes of an element of out
  int64_t* index;    // of the largest or smallest so far, the last of equals

  // From the element `at` on: so many outer ones, of so many columns.
  ScanArgs part(int64_t at, int64_t outer, int64_t inner) const {
    ScanArgs part = *this;
    part.outer = outer;
    part.inner = inner;
    advance(part.in, at * element_size(dtype));
    advance(part.out, at * out_size);
    advance(part.index, at * int64_t(sizeof(int64_t)));
    return part;
  }
};

#define RUSTTORCH_SCAN(X) \
  X(cumsum)               \
  X(cummax)               \
  X(cummin)

}  // namespace rusttorch

RUSTTORCH_DECLARE_FAMILY(scan, ScanArgs, RUSTTORCH_SCAN)
