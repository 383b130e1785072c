// The tables that kernels are taken from: the CPU's best, chosen when the library is loaded, and the device's.

#include "families.h"
#include "instruction_set.h"
#include "kernels/kernels.h"

#if defined(RUSTTORCH_CUDA) || defined(RUSTTORCH_EMULATION)
#define RUSTTORCH_DECLARE_DEVICE_TABLE(family, Args) const Kernel<Args>* family##_kernels();
namespace rusttorch::device {
RUSTTORCH_DEVICE_TABLES(RUSTTORCH_DECLARE_DEVICE_TABLE)  // csrc_cuda/register.cpp
}
#endif

namespace rusttorch {
namespace {

template <class A>
[[maybe_unused]] const Kernel<A>* best(const Kernel<A>* base, const Kernel<A>* avx2, const Kernel<A>* avx512) {
  switch (instruction_set()) {
    case InstructionSet::base: return base;
    case InstructionSet::avx2: return avx2;
    default: return avx512;
  }
}

}  // namespace

#define RUSTTORCH_BEST(family) best(base::family##_kernels, avx2::family##_kernels, avx512::family##_kernels)

// By Device.
#define RUSTTORCH_DEFINE_TABLES(family, Args, ...) const Kernel<Args>* const family##_tables[] = {__VA_ARGS__};
extern const bool has_cpu_kernels;
#ifdef RUSTTORCH_EMULATION  // the device's stand in the CPU's place
const bool has_cpu_kernels = false;
#define RUSTTORCH_ON_BOTH(family, Args) RUSTTORCH_DEFINE_TABLES(family, Args, device::family##_kernels(), nullptr)
#define RUSTTORCH_ON_CPU(family, Args) RUSTTORCH_DEFINE_TABLES(family, Args, nullptr, nullptr)
#else
const bool has_cpu_kernels = true;
#ifdef RUSTTORCH_CUDA
#define RUSTTORCH_DEVICE(family) device::family##_kernels()
#else
#define RUSTTORCH_DEVICE(family) nullptr
#endif
#define RUSTTORCH_ON_BOTH(family, Args) \
  RUSTTORCH_DEFINE_TABLES(family, Args, RUSTTORCH_BEST(family), RUSTTORCH_DEVICE(family))
#define RUSTTORCH_ON_CPU(family, Args) RUSTTORCH_DEFINE_TABLES(family, Args, RUSTTORCH_BEST(family), nullptr)
#endif

RUSTTORCH_DEVICE_TABLES(RUSTTORCH_ON_BOTH)
RUSTTORCH_CPU_TABLES(RUSTTORCH_ON_CPU)

}  // namespace rusttorch
