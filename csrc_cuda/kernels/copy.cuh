#pragma once

#include "../../csrc/kernels/copy.h"
#include "device.cuh"

namespace rusttorch {

// A tile goes through shared memory, so that both its rows and its columns are neighbours for some warp. The odd width
// keeps a column out of one bank.
template <class T>
__global__ void __launch_bounds__(block_threads) transpose(TransposeArgs a, int64_t tiles_down, int64_t tiles_across) {
  constexpr int tile = 32, high = block_threads / tile;
  RUSTTORCH_SHARED(T, held, [tile][tile + 1]);
  const int x = int(threadIdx.x) % tile, y = int(threadIdx.x) / tile;
  const int64_t across = blockIdx.x % tiles_across, down = blockIdx.x / tiles_across % tiles_down;
  const int64_t matrix = blockIdx.x / (tiles_across * tiles_down) * a.rows * a.columns;
  const T* const in = static_cast<const T*>(a.in) + matrix;
  T* const out = static_cast<T*>(a.out) + matrix;
  for (int k = y; k < tile; k += high) {
    const int64_t row = down * tile + k, column = across * tile + x;
    if (row < a.rows && column < a.columns) held[k][x] = in[row * a.columns + column];
  }
  __syncthreads();
  for (int k = y; k < tile; k += high) {
    const int64_t column = across * tile + k, row = down * tile + x;
    if (row < a.rows && column < a.columns) out[column * a.rows + row] = held[x][k];
  }
}

inline void launch_transpose(const TransposeArgs& a, cudaStream_t stream) {
  const int64_t down = (a.rows + 31) / 32, across = (a.columns + 31) / 32;
  const dim3 blocks(unsigned(a.batch * down * across));
  switch (a.element_size) {
    case 2: return start(&transpose<uint16_t>, blocks, block_threads, stream, a, down, across);
    case 4: return start(&transpose<uint32_t>, blocks, block_threads, stream, a, down, across);
    default: return start(&transpose<uint64_t>, blocks, block_threads, stream, a, down, across);
  }
}

}  // namespace rusttorch
