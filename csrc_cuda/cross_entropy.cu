#include "kernels/cross_entropy.cuh"
#include "launchers.h"

namespace rusttorch {
const Launcher<CrossEntropyArgs>* cross_entropy_launchers() {
  static constexpr Launcher<CrossEntropyArgs> all[] = {{&launch_cross_entropy<true>}, {&launch_cross_entropy<false>}};
  return all;
}
}  // namespace rusttorch
