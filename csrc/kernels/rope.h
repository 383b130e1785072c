#pragma once

#include "family.h"

namespace rusttorch {

// Rows of `dim` elements, of which the first `rotated` are turned in pairs by an angle of each pair (RoFormer: J. Su et
// al., 2021), and the rest copied. The pair of an element is `rotated / 2` away, or interleaved its neighbour. For a
// pair x, z and cosine and sine of each:
//   x cos_x - z sin_x    z cos_z + x sin_z
//   x cos_x + z sin_z    z cos_z - x sin_x    inverse: the transposed map, which is the gradient's
struct RopeArgs {
  Dtype dtype;
  bool float_angles;  // cos and sin are floats, and not of dtype
  bool interleaved, inverse;
  int64_t dim, rotated;
  // Rows [outer][middle][inner], and how many elements apart they are.
  int64_t sizes[3], x_steps[3], y_steps[3], angle_steps[3];
  int64_t begin, end;  // of the rows
  const void *x, *cos, *sin;
  void* y;  // may be x itself

  RopeArgs part(int64_t begin, int64_t end) const {
    RopeArgs part = *this;
    part.begin = begin;
    part.end = end;
    return part;
  }
};

#define RUSTTORCH_ROPE(X) X(turn)

}  // namespace rusttorch

RUSTTORCH_DECLARE_FAMILY(rope, RopeArgs, RUSTTORCH_ROPE)
