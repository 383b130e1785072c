#include "kernels/copy.cuh"
#include "launchers.h"

namespace rusttorch {
const Launcher<TransposeArgs>* copy_launchers() {
  static constexpr Launcher<TransposeArgs> all[] = {{&launch_transpose}};
  return all;
}
}  // namespace rusttorch
