#pragma once

// One DispatchStub per family. What it picks for a device and an instruction set is a table of kernels, indexed by
// the family's enum. DispatchStub wants its registrations in at::native.

#include <cstddef>

#include "kernel.h"

// Device code knows no torch, only the enum.
#if defined(__CUDACC__) || defined(RUSTTORCH_ASSERT)
#define RUSTTORCH_DECLARE_STUB(Kernel, family)
#else
#include <ATen/native/DispatchStub.h>
namespace rusttorch {
template <class K>
using table_fn = const K* (*)();
}
#define RUSTTORCH_DECLARE_STUB(Kernel, family)                                        \
  namespace at::native {                                                              \
  DECLARE_DISPATCH(rusttorch::table_fn<rusttorch::Kernel>, rusttorch_##family##_stub) \
  }                                                                                   \
  namespace rusttorch {                                                               \
  inline Kernel kernel(family which, c10::DeviceType device) {                        \
    return at::native::rusttorch_##family##_stub(device)[int(which)];                 \
  }                                                                                   \
  }
#endif

#define RUSTTORCH_ENUMERATOR(name, ...) name,
#define RUSTTORCH_ONE(...) +1
#define RUSTTORCH_DECLARE_FAMILY(family, LIST) RUSTTORCH_DECLARE_FAMILY_OF(Kernel, family, LIST)
// Of kernels of another type.
#define RUSTTORCH_DECLARE_FAMILY_OF(Kernel, family, LIST)  \
  namespace rusttorch {                                    \
  enum class family : int { LIST(RUSTTORCH_ENUMERATOR) };  \
  constexpr size_t family##_count = 0 LIST(RUSTTORCH_ONE); \
  }                                                        \
  RUSTTORCH_DECLARE_STUB(Kernel, family)

// In the family's file in csrc/ops: the one definition.
#define RUSTTORCH_DEFINE_FAMILY(family)       \
  }                                           \
  namespace at::native {                      \
  DEFINE_DISPATCH(rusttorch_##family##_stub); \
  }                                           \
  namespace rusttorch {
