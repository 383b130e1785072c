#pragma once

#include <cstdint>

namespace rusttorch {

// How a device's threads share [outer][n][inner]: a block of 256 stands in front of `runs` runs and `width` columns,
// and `height` threads walk each.
struct DeviceTiles {
  static constexpr int threads = 256, warp = 32;
  static constexpr int64_t enough = 1 << 18;  // threads, for all multiprocessors of a large device

  // A thread takes `most` elements of a run, where there are enough runs for that.
  DeviceTiles(int64_t outer, int64_t n, int64_t inner, int64_t most = 32) {
    while (width < inner && width < warp) width *= 2;
    column_blocks = (inner + width - 1) / width;
    height = threads / width;
    const auto fewer_will_do = [&] {
      const int64_t half = height / 2, runs_then = threads / (width * half);
      const bool enough_runs = runs_then <= outer && outer * column_blocks * width * half >= enough;
      return height * 4 > n || (half * most >= n && enough_runs);
    };
    while (width * height > warp && fewer_will_do()) height /= 2;
    runs = threads / (width * height);
    blocks = (outer + runs - 1) / runs * column_blocks;
  }

  int width = 1, height, runs;
  int64_t column_blocks, blocks;
};

// Rows that 256 threads would have to read twice, from memory: a block of 1,024 walks each, so that all that are walked
// at a time stay in the cache.
struct LongRows : DeviceTiles {
  static constexpr int threads = 1024;

  LongRows(int64_t outer, int64_t n) : DeviceTiles(outer, n, 1) {
    height = threads;
    runs = 1;
    blocks = outer;
  }
  // most: the elements that each of the 256 can keep.
  static bool are(int64_t n, int64_t inner, int64_t most) { return inner == 1 && n > DeviceTiles::threads * most; }
};

}  // namespace rusttorch
