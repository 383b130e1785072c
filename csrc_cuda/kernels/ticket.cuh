#pragma once

// Which of several blocks is the last to come, and may go on with what all of them have left in memory: each draws a
// ticket, and who draws the last one puts them back. (A second launch would cost some 2 us of the host's time and as
// many of the device's.)

#include "device.cuh"

#if !defined(RUSTTORCH_EMULATION)
#include <map>
#include <mutex>
#endif

namespace rusttorch {
namespace {

constexpr int slots = 64, tickets_of_slot = 1024, no_slot = -1;
__device__ unsigned tickets_drawn[slots][tickets_of_slot];

// The launches on a stream run one after the other, and may draw from the same tickets. Not those of a graph that is
// captured, which may run beside anything: they have none, nor do a 65th stream's.
inline int slot_of([[maybe_unused]] cudaStream_t stream) {
#if defined(RUSTTORCH_EMULATION)
  static int asked = 0;
  return asked++ % 2 ? 0 : no_slot;  // which both are to be tested
#else
  cudaStreamCaptureStatus capture;
  unsigned long long id;  // no stream had it before
  int device;
  if (cudaStreamIsCapturing(stream, &capture) != cudaSuccess || capture != cudaStreamCaptureStatusNone ||
      cudaStreamGetId(stream, &id) != cudaSuccess || cudaGetDevice(&device) != cudaSuccess) {
    (void)cudaGetLastError();  // which a launch would be asked for
    return no_slot;
  }
  static std::mutex mutex;
  static std::map<int, std::map<unsigned long long, int> > known;  // of each device, which has tickets of its own
  const std::lock_guard lock(mutex);
  auto& streams = known[device];
  if (streams.size() == slots && !streams.contains(id)) return no_slot;
  return streams.try_emplace(id, int(streams.size())).first->second;
#endif
}

// Whether this block is the last of so many that ask for the same ticket: then what they wrote before can be read. All
// threads of the block must call it.
__device__ __forceinline__ bool is_last_block(int slot, unsigned ticket, unsigned blocks) {
  RUSTTORCH_SHARED(bool, last, [1]);
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    unsigned& drawn = tickets_drawn[slot][ticket];
    last[0] = atomicAdd(&drawn, 1) == blocks - 1;
    if (last[0]) drawn = 0;
    __threadfence();
  }
  __syncthreads();
  return last[0];
}

}  // namespace
}  // namespace rusttorch
