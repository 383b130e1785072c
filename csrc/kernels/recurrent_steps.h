#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace rusttorch {

// A step of a recurrent layer: which of the sequences' rows it takes. Of a packed sequence they are fewer and fewer.
struct RecurrentStep {
  int64_t begin, rows;
};

// In the order in which they are taken. batch_sizes: how many rows each has; or nothing, where all have as many.
inline std::vector<RecurrentStep> recurrent_steps(int64_t count, int64_t rows, const int64_t* batch_sizes,
                                                  bool reverse) {
  std::vector<RecurrentStep> steps(count);
  int64_t begin = 0;
  for (int64_t t = 0; t < count; ++t) {
    steps[t] = {begin, batch_sizes ? batch_sizes[t] : rows};
    begin += steps[t].rows;
  }
  if (reverse) std::reverse(steps.begin(), steps.end());
  return steps;
}

}  // namespace rusttorch
