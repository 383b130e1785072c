#pragma once

// What each ops file has to register. A new family is one line here and one in families().

#include "op.h"

namespace rusttorch {

// Rows with a kernel, registered at CPU and CUDA.
const Rows& pointwise_rows();
const Rows& activation_rows();
const Rows& reduction_rows();
const Rows& softmax_rows();
const Rows& loss_rows();
// Rows made of other ops of the table, registered at CompositeImplicitAutograd.
const Rows& activation_composites();
const Rows& softmax_composites();

}  // namespace rusttorch
