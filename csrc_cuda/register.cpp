// The CUDA kernels at their families' stubs: on the current stream, with a check of the launch.

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>

#include <array>
#include <utility>

#include "../csrc/kernels/activation.h"
#include "../csrc/kernels/pointwise.h"
#include "launchers.h"

namespace rusttorch {
namespace {

using Find = const Launcher& (*)(int);

template <Find find, int kernel>
void on_current_stream(const Args& a) {
  find(kernel).run(a, c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

template <Find find, size_t count>
const Kernel* table() {
  static const auto kernels = []<size_t... k>(std::index_sequence<k...>) {
    return std::array<Kernel, count>{Kernel{&on_current_stream<find, int(k)>, find(int(k)).integers}...};
  }(std::make_index_sequence<count>());
  return kernels.data();
}

}  // namespace
}  // namespace rusttorch

namespace at::native {
REGISTER_CUDA_DISPATCH(rusttorch_pointwise_stub,
                       (&rusttorch::table<&rusttorch::pointwise_launcher, rusttorch::pointwise_count>))
REGISTER_CUDA_DISPATCH(rusttorch_activation_stub,
                       (&rusttorch::table<&rusttorch::activation_launcher, rusttorch::activation_count>))
}  // namespace at::native
