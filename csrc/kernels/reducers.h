#pragma once

// The names of RUSTTORCH_REDUCTION as templates of the input's type: of Fold, Extreme, Truth, Moments and logsumexp as
// the including file has them, on the CPU or on a device.

#include "reduction_formulas.h"

namespace rusttorch {
namespace {
namespace reducer {

#define RUSTTORCH_REDUCER(name, ...) \
  template <class T>                 \
  using name = __VA_ARGS__;
RUSTTORCH_REDUCER(sum, Fold<rusttorch::sum, T>)
RUSTTORCH_REDUCER(mean, Fold<rusttorch::mean, T>)
RUSTTORCH_REDUCER(prod, Fold<rusttorch::prod, T>)
RUSTTORCH_REDUCER(amax, Fold<rusttorch::amax, T>)
RUSTTORCH_REDUCER(amin, Fold<rusttorch::amin, T>)
RUSTTORCH_REDUCER(norm1, Fold<rusttorch::norm1, T>)
RUSTTORCH_REDUCER(norm2, Fold<rusttorch::norm2, T>)
RUSTTORCH_REDUCER(norm_inf, Fold<rusttorch::norm_inf, T>)
RUSTTORCH_REDUCER(max_index, Extreme<Largest, true, T>)
RUSTTORCH_REDUCER(min_index, Extreme<Smallest, true, T>)
RUSTTORCH_REDUCER(argmax, Extreme<Largest, false, T>)
RUSTTORCH_REDUCER(argmin, Extreme<Smallest, false, T>)
RUSTTORCH_REDUCER(any, Truth<true, T>)
RUSTTORCH_REDUCER(all, Truth<false, T>)
RUSTTORCH_REDUCER(var, Moments<Moment::var, T>)
RUSTTORCH_REDUCER(std, Moments<Moment::std, T>)
RUSTTORCH_REDUCER(var_mean, Moments<Moment::var_mean, T>)
RUSTTORCH_REDUCER(logsumexp, rusttorch::logsumexp<T>)
#undef RUSTTORCH_REDUCER

}  // namespace reducer
}  // namespace
}  // namespace rusttorch
