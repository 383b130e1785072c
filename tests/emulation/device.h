#pragma once

// CUDA on the CPU, for tests: what a .cu needs to be compiled as C++ and run without a GPU. Each thread of a block is a
// fiber; the fibers of a block run one after the other, in an order that is random but the same in each run, each until
// the next barrier (of the block, or of a warp that exchanges numbers). So a missing barrier shows as a wrong result,
// and a barrier that only some threads reach as an error. Included before all else (g++ -include).

#include <cuda_runtime_api.h>

#include <cstring>
#include <functional>
#include <utility>

namespace emulation {

struct Index {
  unsigned x = 0, y = 0, z = 0;
};
extern Index thread, block;  // of the fiber that runs
extern dim3 grid, threads;   // of the launch

void barrier(int line);
// What the thread `lane` of the same warp gives; the pointer is good until the next barrier.
const void* exchange(const void* given, size_t bytes, int lane);
// Ends the fiber; the launch then throws.
void failed(const char* assertion, const char* file, int line);
// What the threads of a block share under a key: rubbish, when the block begins.
void* shared(const void* key, size_t bytes);
void run(dim3 blocks, int threads_of_block, const void* kernel, const std::function<void()>& body);

}  // namespace emulation

#define threadIdx ::emulation::thread
#define blockIdx ::emulation::block
#define gridDim ::emulation::grid
#define blockDim ::emulation::threads

// A reference to room that belongs to this place in the code.
#define RUSTTORCH_SHARED(type, name, size) \
  static char key_of_##name;               \
  auto& name = *static_cast<type(*) size>(::emulation::shared(&key_of_##name, sizeof(type size)))

#undef __launch_bounds__
#define __launch_bounds__(...)

#define __threadfence() ((void)0)  // the fibers run one after the other
#define __syncthreads() ::emulation::barrier(__LINE__)
#define RUSTTORCH_ASSERT(condition) ((condition) ? void() : ::emulation::failed(#condition, __FILE__, __LINE__))

namespace rusttorch {

template <class... P, class... A>
void start(void (*kernel)(P...), dim3 grid, int threads, cudaStream_t, A... args) {
  ::emulation::run(grid, threads, reinterpret_cast<const void*>(kernel), [&] { kernel(args...); });
}

inline unsigned atomicAdd(unsigned* to, unsigned more) { return std::exchange(*to, *to + more); }

template <class State>
State of_lane(State mine, int lane) {
  State other;
  std::memcpy(&other, ::emulation::exchange(&mine, sizeof mine, lane), sizeof other);
  return other;
}

}  // namespace rusttorch
