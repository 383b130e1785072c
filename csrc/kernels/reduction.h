#pragma once

#include "along.h"
#include "family.h"
#include "tiles.h"

namespace rusttorch {

// out[o][i] = the reduction of in[o][0..n)[i]: every reduction of a dense tensor over neighbouring dims.
struct ReductionArgs : Along {
  int64_t first;  // the index of in[o][0], where in is a part of a longer run
  double scalar;  // the correction of a variance
  const void* in;
  void* out[2];
  int64_t out_size[2];  // bytes of an element of each
  void* workspace;      // on a device: room for the states of DeviceReduction

  ReductionArgs part(int64_t outer_begin, int64_t outer_end, int64_t inner_begin, int64_t inner_end) const {
    ReductionArgs part = *this;
    part.outer = outer_end - outer_begin;
    part.inner = inner_end - inner_begin;
    advance(part.in, (outer_begin * n * row + inner_begin) * element_size(dtype));
    for (int k = 0; k < 2; ++k) advance(part.out[k], (outer_begin * row + inner_begin) * out_size[k]);
    return part;
  }
};

// What a part of a run comes to, until the parts are put together.
struct alignas(8) ReductionState {
  char bytes[24];
};

// On a device: where there are few blocks of threads, each run is cut into parts, whose states are joined. Of columns
// of 2 bytes a thread takes two, so that a warp's load is 128 bytes.
struct DeviceReduction : DeviceTiles {
  static constexpr int most_columns = 2;

  explicit DeviceReduction(const ReductionArgs& a)
      : DeviceTiles(a.outer, a.n, a.inner / columns_of(a)), columns(columns_of(a)), outputs(a.outer * a.inner) {
    constexpr int64_t few_blocks = 1024;
    constexpr int64_t steps = 32;  // elements of a thread that are worth a part
    per_part = a.n;
    if (blocks < few_blocks && a.n >= 2 * height * steps) {
      const int64_t wanted = blocks == 1 ? few_blocks : 2 * few_blocks / blocks, most = a.n / (height * steps);
      per_part = (a.n / (wanted < most ? wanted : most) + 64) / 64 * 64;
    }
    parts = (a.n + per_part - 1) / per_part;
  }
  int64_t states() const { return parts > 1 ? outputs * parts : 0; }

  int columns;
  int64_t outputs, per_part, parts;

 private:
  static int columns_of(const ReductionArgs& a) {
    const bool pairs = element_size(a.dtype) == 2 && a.inner % 2 == 0 && reinterpret_cast<uintptr_t>(a.in) % 4 == 0;
    return pairs ? most_columns : 1;
  }
};

template <>
struct Kernel<ReductionArgs> {
  void (*run)(const ReductionArgs&);
  // On the CPU, one run (outer and inner are 1) in parts: each part's state, then the result of all, in order.
  void (*part)(const ReductionArgs&, ReductionState*);
  void (*join)(const ReductionArgs&, const ReductionState*, int64_t count);
  Dtypes dtypes;

  bool takes(Dtype dtype) const { return dtypes >> int(dtype) & 1; }
};

// X(name, types): floats, numbers (floats and integers) or everything (those and bool).
#define RUSTTORCH_REDUCTION(X) \
  X(sum, everything)           \
  X(mean, floats)              \
  X(prod, numbers)             \
  X(amax, numbers)             \
  X(amin, numbers)             \
  X(max_index, numbers)        \
  X(min_index, numbers)        \
  X(argmax, numbers)           \
  X(argmin, numbers)           \
  X(any, everything)           \
  X(all, everything)           \
  X(norm1, floats)             \
  X(norm2, floats)             \
  X(norm_inf, floats)          \
  X(var, floats)               \
  X(std, floats)               \
  X(var_mean, floats)          \
  X(logsumexp, floats)

}  // namespace rusttorch

RUSTTORCH_DECLARE_FAMILY(reduction, ReductionArgs, RUSTTORCH_REDUCTION)
