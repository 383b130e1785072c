#pragma once

// csrc/kernels/math.h on a device: for floats CUDA's own functions, which are as exact (within 2 ulp, by the table in
// the CUDA C++ Programming Guide) and take a third of the instructions, since the hardware has 2^x.

#include "../../csrc/kernels/math.h"

#if defined(__CUDACC__)
namespace rusttorch::math {

#define RUSTTORCH_CUDA_S(name, cuda_s) \
  template <>                          \
  RT_INLINE float name(float x) {      \
    return ::cuda_s(x);                \
  }
RUSTTORCH_CUDA_S(exp_below, expf)
RUSTTORCH_CUDA_S(exp, expf)
RUSTTORCH_CUDA_S(exp2, exp2f)
RUSTTORCH_CUDA_S(expm1, expm1f)
RUSTTORCH_CUDA_S(log, logf)
RUSTTORCH_CUDA_S(log1p, log1pf)
RUSTTORCH_CUDA_S(tanh, tanhf)
RUSTTORCH_CUDA_S(erf, erff)
#undef RUSTTORCH_CUDA_S

}  // namespace rusttorch::math
#endif
