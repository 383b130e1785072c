#pragma once

// What a kernel is, and what it is given: pointers, lengths, scalars. No Tensor: nothing here, and nothing that is
// included here, knows torch.

#include <cstdint>
#include <type_traits>

namespace rusttorch {

enum class Dtype : uint8_t { f32, f64, bf16, f16, i32, i64, b8 };

// A set of them: bit k is the k-th.
using Dtypes = uint16_t;
constexpr Dtypes wide_floats = 0b0000011, short_floats = 0b0001101, floats = 0b0001111, numbers = 0b0111111,
                 everything = 0b1111111;

// out[j][i] = formula(in[0][i], in[1][i], ..., scalars...) for i in [0, n). An output may be one of the inputs,
// but may not overlap one in part.
//
// A total is one number instead: on the CPU the sum, a double at out[0]; on a device the sum times scale, in dtype, and
// out[1] is room for total_parts(n) doubles.
struct ElementwiseArgs {
  Dtype dtype;
  bool stream;        // the outputs are too large for the cache: write them around it
  uint8_t broadcast;  // bit k: in[k] is one element, taken for every i
  int64_t n;
  void* out[2];
  const void* in[4];
  const void* scalars;  // in the type that is computed in: float for bf16 and f16, else dtype's own
  double scale;

  ElementwiseArgs part(int64_t begin, int64_t end) const;
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

enum class Device : uint8_t { cpu, cuda };

// A kernel by what it is given.
template <class A>
struct Kernel {
  void (*run)(const A&);
  Dtypes dtypes = everything;

  bool takes(Dtype dtype) const { return dtypes >> int(dtype) & 1; }
};

// p moved on by so many bytes; nothing stays nothing.
template <class P>
void advance(P*& p, int64_t bytes) {
  using Byte = std::conditional_t<std::is_const_v<P>, const char, char>;
  if (p) p = reinterpret_cast<P*>(reinterpret_cast<Byte*>(p) + bytes);
}

// The elements from begin to end. (Other families' Args have such a part too, for threads to share.)
inline ElementwiseArgs ElementwiseArgs::part(int64_t begin, int64_t end) const {
  ElementwiseArgs part = *this;
  part.n = end - begin;
  const int64_t bytes = begin * element_size(dtype);
  for (auto& p : part.out) advance(p, bytes);
  for (int k = 0; k < 4; ++k) {
    if (!(broadcast >> k & 1)) advance(part.in[k], bytes);
  }
  return part;
}

}  // namespace rusttorch
