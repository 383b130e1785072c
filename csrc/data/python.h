#pragma once

// rusttorch._C.data: what rusttorch.data is made of.

#include <torch/csrc/utils/pybind.h>

namespace rusttorch {

void add_data(pybind11::module_& m);

}  // namespace rusttorch
