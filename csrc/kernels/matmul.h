#pragma once

#include "family.h"

namespace rusttorch {

// What becomes of a sum before it is stored.
enum class MatmulActivation : uint8_t { none, relu, gelu, gelu_tanh, silu };

// out = activation(alpha * (a @ b) + beta * added), for a [m, k], b [k, n] and out [m, n]; of 16 bits the sums are in
// float. Where there is a gate, out = activation(gate) * (alpha * (a @ b) + beta * added).
struct MatmulArgs {
  Dtype dtype;
  int64_t m, n, k;
  const void *a, *b;
  int64_t a_row, a_column, b_row, b_column;  // strides, in elements
  bool b_is_packed;                          // by `pack`: then b_column elements are a column's, and b_row is not read
  void* out;
  int64_t out_row;                  // its columns are neighbours
  const void* added;                // or nothing: then beta is not read. May be out.
  int64_t added_row, added_column;  // the latter 0 or 1
  double alpha, beta;
  MatmulActivation activation;
  const void* gate;  // or nothing; lies as out does
  void* sums;        // or nothing: where the sums go as they are before activation and gate; lies as out does

  // Of out's rows and columns from the first to the last.
  MatmulArgs part(int64_t row, int64_t last_row, int64_t column, int64_t last_column) const {
    const int64_t size = element_size(dtype), begin = (row * out_row + column) * size;
    MatmulArgs part = *this;
    part.m = last_row - row;
    part.n = last_column - column;
    advance(part.a, row * a_row * size);
    advance(part.b, column * b_column * size);
    advance(part.added, (row * added_row + column * added_column) * size);
    advance(part.out, begin);
    advance(part.gate, begin);
    advance(part.sums, begin);
    return part;
  }
};

// A few rows, more than 16, are of no more numbers than this.
constexpr int64_t few_numbers = 1 << 16;

// blocks: any strides. dots: a few rows of a, and columns of b that are runs. combinations, strips: b's rows that are
// runs, and a few rows of a, or some more. pairs, dots_of_pairs: as blocks and dots, of bfloat16 on a CPU with
// AVX512-BF16. squares: as blocks, of bfloat16 on a CPU with AMX. pack, pack_pairs, pack_squares: b to out as blocks,
// pairs and squares read it, which several products may then do.
#define RUSTTORCH_MATMUL(X) \
  X(blocks)                 \
  X(dots)                   \
  X(combinations)           \
  X(strips)                 \
  X(pairs)                  \
  X(dots_of_pairs)          \
  X(pack)                   \
  X(pack_pairs)             \
  X(squares)                \
  X(pack_squares)

}  // namespace rusttorch

RUSTTORCH_DECLARE_FAMILY(matmul, MatmulArgs, RUSTTORCH_MATMUL)
