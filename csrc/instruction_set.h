#pragma once

#include <cstdint>

namespace rusttorch {

// What csrc/kernels is compiled for (setup.py says with which flags), in order.
enum class InstructionSet : uint8_t { base, avx2, avx512 };

// This machine's, or a lower one that the environment asks for as it does torch: ATEN_CPU_CAPABILITY=default, avx2 or
// avx512. Needs no torch.
InstructionSet instruction_set();

// Whether there is also AMX, for bfloat16, and the operating system lets this process use it.
bool has_amx();

}  // namespace rusttorch
