#include "kernels/softmax.cuh"
#include "launchers.h"

namespace rusttorch {
const Launcher<SoftmaxArgs>* softmax_launchers() {
  static constexpr Launcher<SoftmaxArgs> all[] = {{&launch_softmax<true, false>},
                                                  {&launch_softmax<true, true>},
                                                  {&launch_softmax<false, false>},
                                                  {&launch_softmax<false, true>}};
  return all;
}
}  // namespace rusttorch
