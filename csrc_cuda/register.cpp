// The tables of the CUDA kernels, each on the current stream and with a check of the launch.

#include "../csrc/kernels/kernels.h"
#include "launchers.h"

#ifdef RUSTTORCH_EMULATION
#include "../tests/emulation/launched.h"
#else
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>
#endif

#include <array>
#include <utility>

namespace rusttorch {
namespace {

#ifdef RUSTTORCH_EMULATION
template <auto launchers, size_t k>
const char* name() {
  return __PRETTY_FUNCTION__;
}
#endif

template <auto launchers, size_t k, class A>
void on_current_stream(const A& a) {
#ifdef RUSTTORCH_EMULATION
  launchers()[k].run(a, nullptr);
  emulation::launched(name<launchers, k>());
#else
  launchers()[k].run(a, c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
#endif
}

template <class A, auto launchers, size_t k>
Kernel<A> kernel_of() {
#ifdef RUSTTORCH_EMULATION
  if (launchers()[k].dtypes) emulation::exists(name<launchers, k>());
#endif
  Kernel<A> kernel{};
  kernel.run = &on_current_stream<launchers, k, A>;
  kernel.dtypes = launchers()[k].dtypes;
  return kernel;
}

template <class A, auto launchers, size_t count>
const Kernel<A>* table() {
  static const auto kernels = []<size_t... k>(std::index_sequence<k...>) {
    return std::array<Kernel<A>, count>{kernel_of<A, launchers, k>()...};
  }(std::make_index_sequence<count>());
  return kernels.data();
}

}  // namespace

namespace device {

#define RUSTTORCH_DEVICE_TABLE(family, A) \
  const Kernel<A>* family##_kernels() { return table<A, &family##_launchers, family##_count>(); }
RUSTTORCH_DEVICE_TABLES(RUSTTORCH_DEVICE_TABLE)

}  // namespace device

}  // namespace rusttorch
