#include "instruction_set.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <string_view>

namespace rusttorch {
namespace {

// (The compiler's own question looks at what the operating system keeps of the registers, too.)
InstructionSet of_machine() {
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("f16c")) {
    return InstructionSet::base;
  }
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return avx512 ? InstructionSet::avx512 : InstructionSet::avx2;
}

InstructionSet wanted() {
  const char* value = std::getenv("ATEN_CPU_CAPABILITY");
  const std::string_view name = value ? value : "";
  return name == "default" ? InstructionSet::base : name == "avx2" ? InstructionSet::avx2 : InstructionSet::avx512;
}

}  // namespace

InstructionSet instruction_set() {
  static const InstructionSet best = std::min(of_machine(), wanted());
  return best;
}

bool has_amx() {
  static const bool permitted = [] {
    constexpr int ask_for_state = 0x1023, of_tiles = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return instruction_set() == InstructionSet::avx512 && __builtin_cpu_supports("amx-tile") &&
           __builtin_cpu_supports("amx-bf16") && syscall(SYS_arch_prctl, ask_for_state, of_tiles) == 0;
  }();
  return permitted;
}

}  // namespace rusttorch
