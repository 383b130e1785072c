#pragma once

// A row of a family's list as a type: what a loop needs to know about the formula, and the formula.

#include "kernel.h"
#include "lanes.h"

namespace rusttorch {

constexpr bool bandwidth = true, arithmetic = false;  // what a loop over it waits for

}  // namespace rusttorch

#define RUSTTORCH_FORMULA(NAME, TENSORS, SCALARS, TYPES, BOUND) \
  struct NAME##_formula {                                       \
    static constexpr int tensors = TENSORS, scalars = SCALARS;  \
    static constexpr Dtypes types = TYPES;                      \
    static constexpr bool bandwidth_bound = BOUND;              \
    template <class... A>                                       \
    RT_INLINE static auto apply(A... a) {                       \
      return formula::NAME(a...);                               \
    }                                                           \
  };
