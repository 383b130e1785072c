#pragma once

// A family of kernels: an enum of their names, and tables of them in its order, one for each instruction set that
// csrc/kernels is compiled for (setup.py), and the device's.

#include <cstddef>
#include <iterator>

#include "kernel.h"

namespace rusttorch {

// A kernel whatever the device; or none.
template <class A>
class ByDevice {
 public:
  ByDevice(std::nullptr_t = nullptr) {}
  ByDevice(const Kernel<A>* const* tables, int which) : tables_(tables), which_(which) {}

  explicit operator bool() const { return tables_; }
  const Kernel<A>& on(Device device) const { return tables_[int(device)][which_]; }

 private:
  const Kernel<A>* const* tables_ = nullptr;
  int which_ = 0;
};

}  // namespace rusttorch

#define RUSTTORCH_ENUMERATOR(name, ...) name,
#define RUSTTORCH_ONE(...) +1
#define RUSTTORCH_DECLARE_TABLE(set, family, Args) \
  namespace set {                                  \
  extern const Kernel<Args> family##_kernels[];    \
  }

// In its header: LIST(X) calls X with each name.
#define RUSTTORCH_DECLARE_FAMILY(family, Args, LIST)                                   \
  namespace rusttorch {                                                                \
  enum class family : int { LIST(RUSTTORCH_ENUMERATOR) };                              \
  constexpr size_t family##_count = 0 LIST(RUSTTORCH_ONE);                             \
  RUSTTORCH_DECLARE_TABLE(base, family, Args)                                          \
  RUSTTORCH_DECLARE_TABLE(avx2, family, Args)                                          \
  RUSTTORCH_DECLARE_TABLE(avx512, family, Args)                                        \
  extern const Kernel<Args>* const family##_tables[];                                  \
  inline ByDevice<Args> kernel(family which) { return {family##_tables, int(which)}; } \
  }

// In its .cpp: the table for the instruction set that this is being compiled for.
#define RUSTTORCH_DEFINE_TABLE(family, Args, ...)                                             \
  namespace rusttorch {                                                                       \
  constinit const Kernel<Args> RUSTTORCH_INSTRUCTION_SET::family##_kernels[] = {__VA_ARGS__}; \
  static_assert(std::size(RUSTTORCH_INSTRUCTION_SET::family##_kernels) == family##_count);    \
  }
