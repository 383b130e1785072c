#pragma once

// What each ops file has to register. A new family is one line here and one in families().

#include "op.h"

namespace rusttorch {

const Rows& pointwise_rows();
const Rows& activation_rows();
const Rows& reduction_rows();
const Rows& scan_rows();
const Rows& copy_rows();
const Rows& softmax_rows();
const Rows& loss_rows();
const Rows& cross_entropy_rows();
const Rows& optimizer_rows();
const Rows& foreach_rows();
const Rows& dropout_rows();
const Rows& norm_rows();

}  // namespace rusttorch
