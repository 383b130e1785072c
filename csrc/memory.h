#pragma once

// The CPU memory pool: an Arena behind c10::SetCPUAllocator.

#include <cstddef>

#include "arena.h"

namespace rusttorch {

// From the first of these two calls on, torch's CPU allocator is ours for good, and asks stock's for all that is not
// the pool's: torch frees some memory (oneDNN's) with the allocator that is in force then, whichever it was when it was
// allocated. It is not available where another library has put an allocator in force; enabling it is an error then.
bool pool_is_available();
void enable_pool(bool on);
bool pool_is_enabled();
// From now on what this thread allocates is the pool's, enabled or not, if the pool is available.
void use_pool_in_this_thread();
Arena& pool();

}  // namespace rusttorch
