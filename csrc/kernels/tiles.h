#pragma once

#include <cstdint>

namespace rusttorch {

// How a device's threads share [outer][n][inner]: a block of 256 stands in front of `runs` runs and `width` columns,
// and `height` threads walk each.
struct DeviceTiles {
  static constexpr int threads = 256;

  DeviceTiles(int64_t outer, int64_t n, int64_t inner) {
    while (width < inner && width < 32) width *= 2;
    height = threads / width;
    while (width * height > 32 && height * 4 > n) height /= 2;
    runs = threads / (width * height);
    column_blocks = (inner + width - 1) / width;
    blocks = (outer + runs - 1) / runs * column_blocks;
  }

  int width = 1, height, runs;
  int64_t column_blocks, blocks;
};

}  // namespace rusttorch
