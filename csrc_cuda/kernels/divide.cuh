#pragma once

#include <cstdint>

namespace rusttorch {

// Divides numbers from 0 to 2^31 - 1 by one that the launch knows: multiplies by its inverse (T. Granlund and
// P. Montgomery, 1994). A device's own division of 32 bits takes some twenty instructions.
class Divisor {
 public:
  explicit Divisor(int64_t by) : by_(int(by)) {
    while (int64_t(1) << shift_ < by) ++shift_;
    inverse_ = uint32_t(((int64_t(1) << (31 + shift_)) + by - 1) / by);
  }

  // Returns n / by, and leaves n % by.
  __device__ int split(int& n) const {
    const int quotient = int(uint32_t(uint64_t(2 * uint32_t(n)) * inverse_ >> 32) >> shift_);
    n -= quotient * by_;
    return quotient;
  }

 private:
  int by_, shift_ = 0;
  uint32_t inverse_;
};

}  // namespace rusttorch
