// Products of matrices, in blocks: what a tile of the result reads lies packed in the caches, and the tile's sums stay
// in registers (K. Goto and R. van de Geijn, Anatomy of High-Performance Matrix Multiplication, 2008; F. Van Zee and R.
// van de Geijn, BLIS, 2015).

#include "matmul.h"

#include <utility>

#include "matmul_few.h"
#include "matmul_pack.h"

namespace rusttorch {
namespace {

// A tile of the result (BLIS' MR x NR): as many sums as there are registers, but for two vectors of b and a number of
// a.
template <class V>
constexpr int tile_rows = sizeof(V) == 64 ? 14 : 6;
template <class V>
constexpr int64_t tile_columns = 2 * lanes<V>;

// Of k, m and n at a time (BLIS' KC, MC and NC): a panel of b (depth x tile_columns) for the first cache, a block of a
// for the second, one of b for the third.
constexpr int64_t depth = 384, block_rows = 192, block_columns = 1024;
// Sums that are not what is stored are kept, of so much of the result at a time. (Of a deeper k, a and b are packed
// again for each such part.)
constexpr int64_t kept_rows = 512, kept_columns = 512;

template <class C>
struct Tile {
  const C* a;
  int64_t a_row;  // a(i, p) is at a[i * a_row + p]; of a group at a[p * rows + i]
  const C* b;     // a panel
  const C* more;  // or nothing: what is added
  int64_t more_row;
  C* to;
  int64_t to_row;
};

// The micro-kernel: the products of `rows` rows of a and a packed panel of b.
template <class V, int rows, bool group>
__attribute__((noinline)) void multiply(int64_t k, const Tile<lane_t<V>>& tile) {
  using C = lane_t<V>;
  V sums[rows][2] = {};
  const C *a = tile.a, *b = tile.b;
  const int64_t a_row = tile.a_row;
  // Where it goes to is on its way meanwhile.
#pragma GCC unroll 16
  for (int i = 0; i < rows; ++i) __builtin_prefetch(tile.to + i * tile.to_row, 1);
#pragma GCC unroll 1
  for (int64_t p = 0; p < k; ++p, b += tile_columns<V>) {
    const V b0 = load<V>(b), b1 = load<V>(b + lanes<V>);
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
template <class V, bool group>
void multiply_rows(int64_t rows, int64_t k, const Tile<lane_t<V>>& tile) {
  [&]<int... r>(std::integer_sequence<int, r...>) {
    static constexpr decltype(&multiply<V, 1, group>) all[] = {&multiply<V, r + 1, group>...};
    all[rows - 1](k, tile);
  }(std::make_integer_sequence<int, tile_rows<V>>());
}

// How many rows the next tile has of those that are left: all there may be, but two equal ones at the end.
template <class V>
int64_t next_rows(int64_t left) {
  constexpr int64_t most = tile_rows<V>;
  return left <= most ? left : left < 2 * most ? divide_up(left, 2) : most;
}

// m rows from i on, n columns from j on, k from p on.
struct Part {
  int64_t i, m, j, n, p, k;
};

template <class T>
class Product {
  using C = Compute<T>;
  using V = Vector<C>;
  static constexpr int64_t width = tile_columns<V>;

 public:
  explicit Product(const MatmulArgs& args) : g(args) {}

  void run() const {
    const bool is_deep = g.k > depth;
    const int64_t high = is_deep ? kept_rows : g.m, deep = even_part(g.k, depth);
    const int64_t wide = even_part(g.n, is_deep || !is_plain() ? kept_columns : block_columns);
    for (int64_t i = 0; i < g.m; i += high) {
      for (int64_t j = 0; j < g.n; j += wide) {
        for (int64_t p = 0; p < g.k || p == 0; p += deep) {
          columns({i, std::min(high, g.m - i), j, std::min(wide, g.n - j), p, std::min(deep, g.k - p)});
        }
      }
    }
  }

 private:
  // A block of b, with all of the part's rows.
  void columns(const Part& part) const {
    const int64_t padded = round_up(part.n, width), high = round_up(even_part(part.m, block_rows), tile_rows<V>);
    C* const b = scratch<C, Use::b>(padded * part.k);
    const T* from = static_cast<const T*>(g.b) + part.p * g.b_row + part.j * g.b_column;
    const Block<T> block{from, g.b_row, g.b_column, part.k, part.n};
    g.b_column == 1 ? pack_neighbours<width>(block, b) : pack_others<width>(block, b);
    const bool is_deep = part.k < g.k;  // then all rows' sums are kept
    C* const kept = scratch<C, Use::sums>((is_deep ? part.m : std::min(part.m, high)) * padded);
    for (int64_t i = 0; i < part.m; i += high) {
      Part rows = part;
      rows.i += i;
      rows.m = std::min(high, part.m - i);
      tiles(rows, b, is_deep ? kept + i * padded : kept);
    }
  }

  // A block of a times one of b. Its sums are kept, to be finished in long rows; or stored as they are.
  void tiles(const Part& part, const C* b, C* kept) const {
    const auto [i, m, j, n, p, k] = part;
    const bool groups = g.a_row == 1 && g.a_column != 1;
    int64_t a_row;
    const C* const a = rows_of_a(part, groups, a_row);
    const bool first = p == 0, last = p + k == g.k;
    const int64_t padded = round_up(n, width), stored = last && is_plain() ? n / width * width : 0;
    for (int64_t c = 0; c < n; c += width, b += k * width) {
      for (int64_t r = 0, rows; r < m; r += rows) {
        rows = next_rows<V>(m - r);
        C* const before = kept + r * padded + c;
        Tile<C> tile{a + r * a_row, a_row, b, first ? nullptr : before, padded, before, padded};
        if (c < stored) tile.to = static_cast<C*>(g.out) + (i + r) * g.out_row + j + c, tile.to_row = g.out_row;
        groups ? multiply_rows<V, true>(rows, k, tile) : multiply_rows<V, false>(rows, k, tile);
      }
    }
    if (last && stored < n) finish<T>(g, i, j + stored, m, n - stored, kept + stored, padded);
  }

  // The part's rows of a as numbers that are computed with, in groups where they are neighbours: as they lie, or
  // packed.
  const C* rows_of_a(const Part& part, bool groups, int64_t& row) const {
    const T* from = static_cast<const T*>(g.a) + part.i * g.a_row + part.p * g.a_column;
    if constexpr (!is_narrow<T>) {
      if (g.a_column == 1) return row = g.a_row, from;
    }
    const Block<T> block{from, g.a_row, g.a_column, part.m, part.k};
    C* const to = scratch<C, Use::a>(part.m * part.k + lanes<V>);
    groups ? pack_groups(block, &next_rows<V>, to) : widen_rows(block, to);
    return row = part.k, to;
  }

  // Whether the sums are what is stored.
  bool is_plain() const {
    return !is_narrow<T> && g.alpha == 1 && !g.added && !g.gate && !g.sums && g.activation == MatmulActivation::none;
  }

  const MatmulArgs& g;
};

void blocks(const MatmulArgs& g) {
  with_type<floats>(g.dtype, [&]<class T>(T) { Product<T>(g).run(); });
}

}  // namespace
}  // namespace rusttorch

RUSTTORCH_DEFINE_TABLE(matmul, MatmulArgs, {&blocks, floats}, {&dots, floats}, {&combinations, floats})
