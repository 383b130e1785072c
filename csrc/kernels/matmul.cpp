// Products of matrices, in blocks: what a tile of the result reads lies packed in the caches, and the tile's sums stay
// in registers (K. Goto and R. van de Geijn, Anatomy of High-Performance Matrix Multiplication, 2008; F. Van Zee and R.
// van de Geijn, BLIS, 2015).

#include "matmul.h"

#include "matmul_amx.h"
#include "matmul_few.h"
#include "matmul_tile.h"

namespace rusttorch {
namespace {

// Of k, m and n at a time (BLIS' KC, MC and NC): a panel of b (depth x tile_columns) for the first cache, a block of a
// (ByVectors' and BySquares' block_rows) for the second, one of b for the third.
constexpr int64_t depth = vector_bytes == 64 ? 512 : 384, block_columns = 1024;
// Sums that are not what is stored are kept, of so much of the result at a time. (Of a deeper k, a and b are packed
// again for each such part.)
constexpr int64_t kept_rows = 512, kept_columns = 384;

// m rows from i on, n columns from j on, k from p on.
struct Part {
  int64_t i, m, j, n, p, k;
};

// Factors are packed as items, numbers or pairs of them.
template <class T, class Item, class Micro = ByVectors<Vector<Compute<T>>>>
class Product {
  using C = Compute<T>;
  using V = Vector<C>;
  static constexpr int64_t width = Micro::columns, in_item = numbers_in<Item>;

 public:
  explicit Product(const MatmulArgs& args)
      : args_(args), is_turned_(is_better_turned(args)), g(is_turned_ ? turned(args) : args) {}

  void run() {
    const bool is_deep = g.k > depth * in_item;
    const int64_t high = is_deep ? kept_rows : g.m,
                  deep = round_up(even_part(g.k, depth * in_item), in_item * Micro::step);
    const int64_t wide = round_up(even_part(g.n, is_deep || !is_plain() ? kept_columns : block_columns), width);
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
  void columns(const Part& part) {
    const int64_t padded = round_up(part.n, width), high = round_up(even_part(part.m, Micro::block_rows), Micro::rows);
    const Item* const b = block_of_b(part, padded);
    const bool is_deep = part.k < g.k;  // then all rows' sums are kept
    C* const kept = scratch<C, Use::sums>(((is_deep ? part.m : std::min(part.m, high)) + lanes<V>)*padded);
    for (int64_t i = 0; i < part.m; i += high) {
      Part rows = part;
      rows.i += i;
      rows.m = std::min(high, part.m - i);
      tiles(rows, b, is_deep ? kept + i * padded : kept);
    }
  }

  const Item* block_of_b(const Part& part, int64_t padded) const {
    const T* const from = static_cast<const T*>(g.b) + part.j * g.b_column;
    if (g.b_is_packed) return reinterpret_cast<const Item*>(from) + part.p / in_item * width;
    Item* const to = scratch<Item, Use::b>(padded * items_of<Item, Micro>(part.k));
    pack_columns<Micro>(Block<T>{from + part.p * g.b_row, g.b_row, g.b_column, part.k, part.n}, to);
    return to;
  }

  // A block of a times one of b. Its sums are kept, to be finished in long rows; or, if they are what is stored, whole
  // tiles of them go where they belong, and the rest is kept.
  void tiles(const Part& part, const Item* b, C* kept) {
    const auto [i, m, j, n, p, k] = part;
    const int64_t items = items_of<Item, Micro>(k);
    const bool groups = Micro::takes_groups && g.a_row == 1 && g.a_column != 1;
    const Block<T> rows_of_part{static_cast<const T*>(g.a) + i * g.a_row + p * g.a_column, g.a_row, g.a_column, m, k};
    int64_t a_row;
    const Item* const a = rows_of_a<Micro, T, Item>(rows_of_part, n, groups, a_row);
    const bool first = p == 0, last = p + k == g.k;
    const int64_t padded = round_up(n, width), whole = is_plain() ? n / width * width : 0, stored = last ? whole : 0;
    const int64_t panel = (g.b_is_packed ? items_of<Item, Micro>(g.k) : items) * width;
    for (int64_t c = 0; c < n; c += width, b += panel) {
      for (int64_t r = 0, rows; r < m; r += rows) {
        rows = Micro::next_rows(m - r);
        C* const before = kept + r * padded + c;
        const C* const more = first ? nullptr : before;
        Tile<C, Item, Item> tile{a + r * a_row, groups ? rows : a_row, b, width, 16 * width, more, padded, before,
                                 padded};
        if (first && g.added && c < whole) {
          tile.more = static_cast<const C*>(g.added) + (i + r) * g.added_row + j + c, tile.more_row = g.added_row;
        }
        if (c < stored) tile.to = static_cast<C*>(g.out) + (i + r) * g.out_row + j + c, tile.to_row = g.out_row;
        groups ? micro_.template multiply<true>(rows, n - c, items, tile)
               : micro_.template multiply<false>(rows, n - c, items, tile);
      }
    }
    if (last && is_turned_) {
      finish_turned(part, kept, padded);
    } else if (last && stored < n) {
      finish<T, Item>(g, i, j + stored, m, n - stored, kept + stored, padded);
    }
  }

  // A factor whose columns are runs (a linear layer's weight) times some rows, or of few columns: turned, it is read as
  // it lies, where packing it would not be repaid, and whole tiles are filled. (Of 16 bits that are
  // widened some rows were no faster; in squares more of them are, where a longer k repays turning the result.)
  // (This is asked of a thread's part; either way the terms of a sum come in the same order.)
  static bool is_better_turned(const MatmulArgs& g) {
    if (g.b_is_packed || g.b_row != 1 || g.b_column == 1) return false;
    if constexpr (Micro::step > 1) return g.m <= (g.k < 512 ? 48 : 96);
    const bool some =
        sizeof(Item) == in_item * sizeof(T) && g.m <= (g.k < 256 ? 32 : 128) && 8 * g.m >= 7 * round_up(g.m, lanes<V>);
    return some || (g.n <= tile_rows<V> && g.n < g.m);
  }

  // The transposed of a product is that of its factors transposed.
  static MatmulArgs turned(MatmulArgs g) {
    std::swap(g.m, g.n);
    std::swap(g.a, g.b);
    std::swap(g.a_row, g.b_column);
    std::swap(g.a_column, g.b_row);
    return g;
  }

  // Sums that are those of the transposed result, turned in squares.
  void finish_turned(const Part& part, const C* kept, int64_t padded) const {
    constexpr int64_t side = lanes<V>;
    const int64_t row = round_up(part.m, side);
    C* const sums = scratch<C, Use::turned>(padded * row);
    for (int64_t i = 0; i < part.m; i += side) {
      for (int64_t j = 0; j < part.n; j += side) {
        bits_t<V> square[side];
#pragma GCC unroll 16
        for (int64_t r = 0; r < side; ++r) square[r] = bits(load<V>(kept + (i + r) * padded + j));
        transpose<word_t<V>>(square);
#pragma GCC unroll 16
        for (int64_t c = 0; c < side; ++c) store(sums + (j + c) * row + i, from_bits<V>(square[c]));
      }
    }
    finish<T, Item>(args_, part.j, part.i, part.n, part.m, sums, row);
  }

  // Whether the sums are what is stored, with what is added among them from the first part of k on.
  bool is_plain() const {
    const bool adds = !g.added || (g.beta == 1 && g.added_column == 1);
    return !is_turned_ && !is_narrow<T> && g.alpha == 1 && adds && !g.gate && !g.sums &&
           g.activation == MatmulActivation::none;
  }

  const MatmulArgs& args_;
  const bool is_turned_;
  const MatmulArgs g;  // of what is multiplied
  [[no_unique_address]] Micro micro_;
};

void blocks(const MatmulArgs& g) {
  with_type<floats>(g.dtype, [&]<class T>(T) { Product<T, Compute<T>>(g).run(); });
}

template <class T, class Item, class Micro = ByVectors<Vector<Compute<T>>>>
void pack_b(const MatmulArgs& g) {
  const Block<T> b{static_cast<const T*>(g.b), g.b_row, g.b_column, g.k, g.n};
  pack_columns<Micro>(b, static_cast<Item*>(g.out));
}
void pack(const MatmulArgs& g) {
  with_type<floats>(g.dtype, [&]<class T>(T) { pack_b<T, Compute<T>>(g); });
}

constexpr Dtypes bfloat16 = 1 << int(Dtype::bf16);

#if defined(__AVX512F__)
void pairs(const MatmulArgs& g) { Product<bf16, Pair>(g).run(); }
void dots_of_pairs(const MatmulArgs& g) { dots_in<bf16, Pair>(g); }
void pack_pairs(const MatmulArgs& g) { pack_b<bf16, Pair>(g); }
void squares(const MatmulArgs& g) { Product<bf16, Pair, BySquares>(g).run(); }
void pack_squares(const MatmulArgs& g) { pack_b<bf16, Pair, BySquares>(g); }
#else  // they are not asked for
void pairs(const MatmulArgs&) { __builtin_trap(); }
void dots_of_pairs(const MatmulArgs&) { __builtin_trap(); }
void pack_pairs(const MatmulArgs&) { __builtin_trap(); }
void squares(const MatmulArgs&) { __builtin_trap(); }
void pack_squares(const MatmulArgs&) { __builtin_trap(); }
#endif

}  // namespace
}  // namespace rusttorch

RUSTTORCH_DEFINE_TABLE(matmul, MatmulArgs, {&blocks, floats}, {&dots, floats}, {&combinations, floats},
                       {&strips, floats}, {&pairs, bfloat16}, {&dots_of_pairs, bfloat16}, {&pack, floats},
                       {&pack_pairs, bfloat16}, {&squares, bfloat16}, {&pack_squares, bfloat16})
