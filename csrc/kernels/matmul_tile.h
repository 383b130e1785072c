#pragma once

// Of a product: a tile of the result, whose sums stay in registers.

#include <utility>

#include "matmul_pack.h"

namespace rusttorch {
namespace {

// A tile of the result (BLIS' MR x NR): as many sums as there are registers, but for two vectors of b and a number of
// a.
template <class V>
constexpr int tile_rows = sizeof(V) == 64 ? 14 : 6;
template <class V>
constexpr int64_t tile_columns = 2 * lanes<V>;

// What is multiplied to a tile: rows of a, and b's rows of as many columns as a tile has.
template <class C, class T>
struct Tile {
  const C* a;
  int64_t a_row;  // a(i, p) is at a[i * a_row + p]; of a group at a[p * rows + i]
  const T* b;
  int64_t b_row, ahead;  // of where b is read: what is read soon
  const C* more;         // or nothing: what is added
  int64_t more_row;
  C* to;
  int64_t to_row;
};

// The micro-kernel.
template <class V, int rows, bool group, class T>
__attribute__((noinline)) void multiply(int64_t k, const Tile<lane_t<V>, T>& tile) {
  V sums[rows][2] = {};
  const lane_t<V>* a = tile.a;
  const T* b = tile.b;
  const int64_t a_row = tile.a_row, b_row = tile.b_row, ahead = tile.ahead;
  // Where it goes to is on its way meanwhile.
#pragma GCC unroll 16
  for (int i = 0; i < rows; ++i) __builtin_prefetch(tile.to + i * tile.to_row, 1);
#pragma GCC unroll 1
  for (int64_t p = 0; p < k; ++p, b += b_row) {
    const V b0 = load<V>(b), b1 = load<V>(b + lanes<V>);
    __builtin_prefetch(b + ahead);
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {
      const V x = splat<V>(group ? a[p * rows + i] : a[i * a_row + p]);
      sums[i][0] += x * b0;
      sums[i][1] += x * b1;
    }
  }
  if (tile.more) {
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {
      sums[i][0] += load<V>(tile.more + i * tile.more_row);
      sums[i][1] += load<V>(tile.more + i * tile.more_row + lanes<V>);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < rows; ++i) {
    store(tile.to + i * tile.to_row, sums[i][0]);
    store(tile.to + i * tile.to_row + lanes<V>, sums[i][1]);
  }
}

// By how many rows there are, which the compiler must know.
template <class V, bool group, class T>
void multiply_rows(int64_t rows, int64_t k, const Tile<lane_t<V>, T>& tile) {
  [&]<int... r>(std::integer_sequence<int, r...>) {
    static constexpr decltype(&multiply<V, 1, group, T>) all[] = {&multiply<V, r + 1, group, T>...};
    all[rows - 1](k, tile);
  }(std::make_integer_sequence<int, tile_rows<V>>());
}

// How many rows the next tile has of those that are left: all there may be, but two equal ones at the end.
template <class V>
int64_t next_rows(int64_t left) {
  constexpr int64_t most = tile_rows<V>;
  return left <= most ? left : left < 2 * most ? divide_up(left, 2) : most;
}

// Rows of a (strides row and column) as numbers that are computed with, in groups where they are neighbours: as they
// lie, or packed. The distance of a group's rows is k.
template <class T, class C>
const C* rows_of_a(const Block<T>& x, bool groups, int64_t& row) {
  if constexpr (!is_narrow<T>) {
    if (x.column == 1) return row = x.row, x.from;
  }
  C* const to = scratch<C, Use::a>(x.m * x.k + lanes<Vector<C>>);
  groups ? pack_groups(x, &next_rows<Vector<C>>, to) : widen_rows(x, to);
  return row = x.k, to;
}

}  // namespace
}  // namespace rusttorch
