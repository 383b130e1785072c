#pragma once

// Of a product: a tile of the result, whose sums stay in registers.

#include <utility>

#include "matmul_pack.h"

namespace rusttorch {
namespace {

// A tile of the result (BLIS' MR x NR): as many sums as there are registers, but for two vectors of b and a number of
// a.
template <class V>
constexpr int64_t tile_rows = sizeof(V) == 64 ? 14 : 6;
template <class V>
constexpr int64_t tile_columns = 2 * lanes<V>;

// What is multiplied to a tile: rows of a, in items, and b's rows, of as many columns as a tile has, in the same items
// or in numbers as they lie.
template <class C, class A, class B>
struct Tile {
  const A* a;
  int64_t a_next;  // a(i, p) is at a[i * a_next + p]; of a group at a[p * a_next + i]
  const B* b;
  int64_t b_row, ahead;  // of where b is read: what is read soon
  const C* more;         // or nothing: what is added
  int64_t more_row;
  C* to;
  int64_t to_row;
};

template <class V>
RT_INLINE V everywhere(lane_t<V> item) {
  return splat<V>(item);
}
template <class V>
RT_INLINE bits_t<V> everywhere(Pair item) {
  return bits_t<V>{} + __builtin_bit_cast(word_t<V>, item);
}
template <class V>
RT_INLINE V add_products(V sums, V a, V b) {
  return sums + a * b;
}
#if defined(__AVX512F__)
// (What the compiler calls _mm512_dpbf16_ps it has only where all of the code may use AVX512-BF16.)
template <class V>
RT_INLINE V add_products(V sums, bits_t<V> a, bits_t<V> b) {
  asm("vdpbf16ps %2, %1, %0" : "+v"(sums) : "v"(a), "v"(b));
  return sums;
}
#endif

// The micro-kernel. A tile may have half of its columns, one vector of them.
template <class V, int rows, int vectors, bool group, class A, class B>
__attribute__((noinline)) void multiply(int64_t k, const Tile<lane_t<V>, A, B>& tile) {
  V sums[rows][vectors] = {};
  const B* b = tile.b;
  const int64_t a_next = tile.a_next, b_row = tile.b_row, ahead = tile.ahead, step = group ? a_next : 1;
  const A *a0 = tile.a, *a4 = a0 + 4 * a_next, *a8 = a0 + 8 * a_next, *a12 = a0 + 12 * a_next;
  int64_t three = 3 * a_next;
  // Where it goes to is on its way meanwhile.
#pragma GCC unroll 16
  for (int i = 0; i < rows; ++i) __builtin_prefetch(tile.to + i * tile.to_row, 1);
#pragma GCC unroll 1
  for (int64_t p = 0; p < k; ++p, b += b_row) {
    // Four rows share a pointer. The compiler would give each its own, for which there are not enough registers: not
    // knowing what these are, it does not. (An Intel Xeon: 4.5 % in the mean of eight shapes.)
    asm("" : "+r"(a0), "+r"(a4), "+r"(a8), "+r"(a12), "+r"(three));
    Items<V, B> y[vectors];
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) y[v] = load_items<V, B>(b + v * lanes<V>);
    __builtin_prefetch(b + ahead);
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {
      const A* const fourth = i < 4 ? a0 : i < 8 ? a4 : i < 12 ? a8 : a12;
      const Items<V, A> x = everywhere<V>(group ? a0[i] : fourth[i % 4 == 3 ? three : i % 4 * a_next]);
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) sums[i][v] = add_products(sums[i][v], x, y[v]);
    }
    a0 += step, a4 += step, a8 += step, a12 += step;
  }
  if (tile.more) {
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) sums[i][v] += load<V>(tile.more + i * tile.more_row + v * lanes<V>);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) store(tile.to + i * tile.to_row + v * lanes<V>, sums[i][v]);
  }
}

// By how many rows and columns there are, which the compiler must know.
template <class V, bool group, class A, class B>
void multiply_tile(int64_t rows, int64_t columns, int64_t k, const Tile<lane_t<V>, A, B>& tile) {
  [&]<int... r>(std::integer_sequence<int, r...>) {
    static constexpr decltype(&multiply<V, 1, 1, group, A, B>) half[] = {&multiply<V, r + 1, 1, group, A, B>...};
    static constexpr decltype(&multiply<V, 1, 2, group, A, B>) whole[] = {&multiply<V, r + 1, 2, group, A, B>...};
    (columns <= lanes<V> ? half : whole)[rows - 1](k, tile);
  }(std::make_integer_sequence<int, tile_rows<V>>());
}

// How many rows the next tile has of those that are left: all there may be, but two equal ones at the end.
template <class V>
int64_t next_rows(int64_t left) {
  constexpr int64_t most = tile_rows<V>;
  return left <= most ? left : left < 2 * most ? divide_up(left, 2) : most;
}

// What multiplies a tile; it takes `step` items of k at a time.
template <class V>
struct ByVectors {
  static constexpr int64_t rows = tile_rows<V>, columns = tile_columns<V>, step = 1, block_rows = 192;
  static constexpr bool takes_groups = true;

  static int64_t next_rows(int64_t left) { return rusttorch::next_rows<V>(left); }
  template <bool group, class A, class B>
  static void multiply(int64_t rows, int64_t columns, int64_t k, const Tile<lane_t<V>, A, B>& tile) {
    multiply_tile<V, group>(rows, columns, k, tile);
  }
};

// Whether a tile's rows evict each other from the first cache, or b's: of lines whose distance is a multiple of 4 KB
// eight find room there, of 2 KB sixteen. (A tile of 14 rows of 1,024 floats: 75 GFLOP/s as they lie, 95 packed, on a
// Zen 4.)
template <class Micro, class T>
bool evict_each_other(const Block<T>& x) {
  constexpr int64_t ways = 8;
  return std::min(x.m, Micro::rows) > ways && x.row * int64_t(sizeof(T)) % 2048 == 0;
}

// Rows of a (strides row and column) in items, in groups where they are neighbours: as they lie, or packed, if that is
// repaid by the columns of b. The distance of a group's rows is how many items one has.
template <class Micro, class T, class Item>
const Item* rows_of_a(const Block<T>& x, int64_t columns, bool groups, int64_t& row) {
  using V = Vector<Compute<T>>;
  constexpr int64_t in_item = numbers_in<Item>;
  if constexpr (sizeof(Item) == in_item * sizeof(T)) {  // of numbers that are not widened
    const bool are_items = x.column == 1 && x.row % in_item == 0 && x.k % (in_item * Micro::step) == 0;
    // A step's items are a line, or are read from two.
    const bool in_lines = (reinterpret_cast<uintptr_t>(x.from) | uintptr_t(x.row) * sizeof(T)) % cache_line == 0;
    const bool slow = evict_each_other<Micro>(x) || (Micro::step > 1 && !in_lines);
    if (are_items && !(slow && columns > 2 * Micro::columns)) {
      row = x.row / in_item;
      return reinterpret_cast<const Item*>(x.from);
    }
  }
  row = items_of<Item, Micro>(x.k);
  if (!groups)
    row = (divide_up(row * int64_t(sizeof(Item)), cache_line) | 1) * cache_line /
          int64_t(sizeof(Item));  // an odd number of lines
  Item* const to = scratch<Item, Use::a>(x.m * row + lanes<V>);
  groups ? pack_groups(x, &next_rows<V>, to) : pack_steps<Micro>(x, row, to);
  return to;
}

}  // namespace
}  // namespace rusttorch
