#pragma once

// What a kernel is given: pointers, a length, scalars. No Tensor.

#include <cstdint>

namespace rusttorch {

enum class Dtype : uint8_t { f32, f64, bf16, f16, i32, i64, b8 };

// out[j][i] = formula(in[0][i], in[1][i], ..., scalars...) for i in [0, n). An output may be one of the inputs,
// but may not overlap one in part.
struct Args {
  Dtype dtype;
  bool stream;        // the outputs are too large for the cache: write them around it
  uint8_t broadcast;  // bit k: in[k] is one element, taken for every i
  int64_t n;
  void* out[2];
  const void* in[4];
  const void* scalars;  // in the type that is computed in: float for bf16 and f16, else dtype's own
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

struct Kernel {
  void (*run)(const Args&);
  bool integers;  // whether it takes i32 and i64
};

}  // namespace rusttorch
