#pragma once

// Stock's kernels as the rows of an ops file name them, and the rows.

#include <ATen/CPUFunctions.h>
#include <ATen/CompositeExplicitAutogradFunctions.h>
#include <ATen/CompositeImplicitAutogradFunctions.h>
#ifdef RUSTTORCH_CUDA
#include <ATen/CUDAFunctions.h>
#endif

#include "op.h"

#define COMPOSITE_EXPLICIT(fn) AnyDevice<&at::compositeexplicitautograd::fn>
#define COMPOSITE_IMPLICIT(fn) AnyDevice<&at::compositeimplicitautograd::fn>
#define COMPOSITE_IMPLICIT_AS(type, fn) AnyDevice<static_cast<type*>(&at::compositeimplicitautograd::fn)>
#define STOCK RUSTTORCH_STOCK
#define STOCK_AS RUSTTORCH_STOCK_AS
#define ROW RUSTTORCH_ROW
