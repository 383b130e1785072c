#pragma once

// Which ops there are, which of them can take aten's place, and which do.

#include <map>
#include <string>
#include <vector>

#include "ops/op.h"

namespace rusttorch {

struct Entry {
  std::string family;
  std::string name;  // with its overload
  bool swappable;    // aten has the op, and ours can stand in its place
  const Stats* stats;
};

std::vector<Entry> entries();

// Puts exactly these kernels in aten's place, and takes out all others. (Threads that call meanwhile: README, Limits.)
void set_swapped(const std::vector<std::string>& names);
void reset_stats();

}  // namespace rusttorch
