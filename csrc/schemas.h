#pragma once

#include <vector>

namespace rusttorch {

struct Family {
  const char* name;
  std::vector<const char*> schemas;
};

const std::vector<Family>& families();

}  // namespace rusttorch
