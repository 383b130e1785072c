// The CUDA kernels at their families' stubs: on the current stream, with a check of the launch. In the tests' emulation
// of a GPU they stand in the CPU kernels' place.

#include "../csrc/kernels/activation.h"
#include "../csrc/kernels/copy.h"
#include "../csrc/kernels/cross_entropy.h"
#include "../csrc/kernels/dropout.h"
#include "../csrc/kernels/loss.h"
#include "../csrc/kernels/norm.h"
#include "../csrc/kernels/optimizer.h"
#include "../csrc/kernels/pointwise.h"
#include "../csrc/kernels/reduction.h"
#include "../csrc/kernels/scan.h"
#include "../csrc/kernels/softmax.h"
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
void on_current_stream(A& a) {
#ifdef RUSTTORCH_EMULATION
  launchers()[k].run(a, nullptr);
  emulation::launched(name<launchers, k>());
#else
  launchers()[k].run(a, c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
#endif
}

template <class K, auto launchers, size_t k>
K kernel_of() {
  K kernel{};
  kernel.run = &on_current_stream<launchers, k>;
#ifdef RUSTTORCH_EMULATION
  if (launchers()[k].dtypes) emulation::exists(name<launchers, k>());
#endif
  if constexpr (requires { kernel.dtypes; }) kernel.dtypes = launchers()[k].dtypes;
  return kernel;
}

template <class K, auto launchers, size_t count>
const K* table() {
  static const auto kernels = []<size_t... k>(std::index_sequence<k...>) {
    return std::array<K, count>{kernel_of<K, launchers, k>()...};
  }(std::make_index_sequence<count>());
  return kernels.data();
}

}  // namespace
}  // namespace rusttorch

#ifdef RUSTTORCH_EMULATION
#define RUSTTORCH_REGISTER REGISTER_ALL_CPU_DISPATCH
#else
#define RUSTTORCH_REGISTER REGISTER_CUDA_DISPATCH
#endif
#define RUSTTORCH_TABLE(family, K)              \
  RUSTTORCH_REGISTER(rusttorch_##family##_stub, \
                     (&rusttorch::table<rusttorch::K, &rusttorch::family##_launchers, rusttorch::family##_count>))

namespace at::native {
RUSTTORCH_TABLE(pointwise, Kernel)
RUSTTORCH_TABLE(activation, Kernel)
RUSTTORCH_TABLE(loss, Kernel)
RUSTTORCH_TABLE(loss_total, Kernel)
RUSTTORCH_TABLE(reduction, ReductionKernel)
RUSTTORCH_TABLE(scan, ScanKernel)
RUSTTORCH_TABLE(softmax, SoftmaxKernel)
RUSTTORCH_TABLE(copy, TransposeKernel)
RUSTTORCH_TABLE(cross_entropy, CrossEntropyKernel)
RUSTTORCH_TABLE(norm, NormKernel)
RUSTTORCH_TABLE(optimizer, OptimizerKernel)
#ifdef RUSTTORCH_EMULATION
REGISTER_ALL_CPU_DISPATCH(rusttorch_dropout_stub, nullptr)  // stock's has its own random numbers
#endif
}  // namespace at::native
