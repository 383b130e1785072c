#pragma once

// What a kernel is given: pointers, a length, scalars. No Tensor.

#include <cstdint>

namespace rusttorch {

enum class Dtype : uint8_t { f32, f64, bf16, f16, i32, i64, b8 };

// Sets of them: bit k is the k-th.
constexpr uint8_t wide_floats = 0b0000011, floats = 0b0001111, numbers = 0b0111111, everything = 0b1111111;

// out[j][i] = formula(in[0][i], in[1][i], ..., scalars...) for i in [0, n). An output may be one of the inputs,
// but may not overlap one in part.
//
// A total is one number instead: on the CPU the sum, a double at out[0]; on a device the sum times scale, in dtype, and
// out[1] is room for total_parts(n) doubles.
struct Args {
  Dtype dtype;
  bool stream;        // the outputs are too large for the cache: write them around it
  uint8_t broadcast;  // bit k: in[k] is one element, taken for every i
  int64_t n;
  void* out[2];
  const void* in[4];
  const void* scalars;  // in the type that is computed in: float for bf16 and f16, else dtype's own
  double scale;
};

constexpr int64_t element_size(Dtype dtype) {
  switch (dtype) {
    case Dtype::b8: return 1;
    case Dtype::bf16:
    case Dtype::f16: return 2;
    case Dtype::f32:
    case Dtype::i32: return 4;
    default: return 8;
  }
}

// The blocks of threads that sum a total on a device.
constexpr int64_t total_parts(int64_t n) {
  const int64_t parts = n >> 12;
  return parts < 1 ? 1 : parts > 1024 ? 1024 : parts;
}

struct Kernel {
  void (*run)(const Args&);
  uint8_t dtypes;

  bool takes(Dtype dtype) const { return dtypes >> int(dtype) & 1; }
};

}  // namespace rusttorch
