// Products of matrices, in blocks: what a tile of the result reads lies packed in the caches, and the tile's sums stay
// in registers (K. Goto and R. van de Geijn, Anatomy of High-Performance Matrix Multiplication, 2008; F. Van Zee and R.
// van de Geijn, BLIS, 2015).

#include "matmul.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>

#include "load_store.h"
#include "square.h"
#include "types.h"

namespace rusttorch {
namespace {

constexpr int64_t cache_line = 64;

// A tile of the result (BLIS' MR x NR): as many sums as there are registers, but for two vectors of b and a number of
// a.
template <class V>
constexpr int tile_rows = sizeof(V) == 64 ? 14 : 6;
template <class V>
constexpr int64_t lanes = sizeof(V) / sizeof(lane_t<V>);
template <class V>
constexpr int64_t tile_columns = 2 * lanes<V>;

// Of k, m and n at a time (BLIS' KC, MC and NC): a panel of b (depth x tile_columns) for the first cache, a block of a
// for the second, one of b for the third.
constexpr int64_t depth = 384, block_rows = 192, block_columns = 1024;
// Of 16 bits, sums of several depths are kept apart, in float: of so many rows, for each of which b is packed again.
constexpr int64_t kept_rows = 512;

constexpr int64_t divide_up(int64_t n, int64_t by) { return (n + by - 1) / by; }

// n in parts of at most `most` that are nearly equal: how many one has.
constexpr int64_t even_part(int64_t n, int64_t most) { return n > 0 ? divide_up(n, divide_up(n, most)) : most; }

// A thread's own memory for each of its uses, which grows to what was ever needed.
enum class Use { a, b, sums };
template <class T, Use use>
T* scratch(int64_t count) {
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  thread_local std::unique_ptr<void, Free> memory;
  thread_local int64_t held = 0;
  const int64_t bytes = divide_up(count * int64_t(sizeof(T)), cache_line) * cache_line;
  if (bytes > held) {
    memory.reset();
    held = 0;
    memory.reset(std::aligned_alloc(cache_line, size_t(bytes)));
    if (!memory) throw std::bad_alloc();
    held = bytes;
  }
  return static_cast<T*>(memory.get());
}

// The micro-kernel: the products of `rows` rows of a and a packed panel of b, to tile[row][column]. a(i, p) is at a[i *
// a_row + p], or of a panel at a[p * rows + i].
template <class V, int rows, bool panel>
__attribute__((noinline)) void multiply(int64_t k, const lane_t<V>* a, int64_t a_row, const lane_t<V>* b,
                                        lane_t<V>* tile) {
  V sums[rows][2] = {};
#pragma GCC unroll 1
  for (int64_t p = 0; p < k; ++p, b += tile_columns<V>) {
    const V b0 = load<V>(b), b1 = load<V>(b + lanes<V>);
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {
      const V x = splat<V>(panel ? a[p * rows + i] : a[i * a_row + p]);
      sums[i][0] += x * b0;
      sums[i][1] += x * b1;
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < rows; ++i) {
    store(tile + i * tile_columns<V>, sums[i][0]);
    store(tile + i * tile_columns<V> + lanes<V>, sums[i][1]);
  }
}

// By how many rows there are, which the compiler must know.
template <class V>
using Multiply = void (*)(int64_t, const lane_t<V>*, int64_t, const lane_t<V>*, lane_t<V>*);
template <class V, bool panel>
Multiply<V> multiply_of(int64_t rows) {
  return [&]<int... r>(std::integer_sequence<int, r...>) {
    static constexpr Multiply<V> all[] = {&multiply<V, r + 1, panel>...};
    return all[rows - 1];
  }(std::make_integer_sequence<int, tile_rows<V>>());
}

// From b's rows p0.. (count of them) and columns j0.. (n): panels of tile_columns, [panel][row][column], zeros beyond
// n.
template <class V, class T>
void pack_b(const MatmulArgs& g, int64_t p0, int64_t count, int64_t j0, int64_t n, lane_t<V>* to) {
  const T* from = static_cast<const T*>(g.b) + p0 * g.b_row + j0 * g.b_column;
  constexpr int64_t width = tile_columns<V>, side = lanes<V>;
  int64_t j = 0;
  if (g.b_column == 1) {
    // A few rows at a time, along which memory is read as it lies.
    constexpr int64_t together = 8;
    for (int64_t p = 0; p < count; p += together) {
      const int64_t last = std::min(p + together, count);
      for (j = 0; j + width <= n; j += width) {
        for (int64_t q = p; q < last; ++q) {
          for (int v = 0; v < 2; ++v)
            store(to + j * count + q * width + v * side, load<V>(from + q * g.b_row + j + v * side));
        }
      }
    }
    to += j * count;
    from += j;
  }
  for (; j < n; j += width, to += count * width, from += width * g.b_column) {
    const int64_t here = std::min(width, n - j);
    int64_t p = 0;
    if (here == width && g.b_row == 1) {
      for (; p + side <= count; p += side) {
        for (int v = 0; v < 2; ++v) {
          bits_t<V> square[side];
#pragma GCC unroll 16
          for (int64_t c = 0; c < side; ++c) square[c] = bits(load<V>(from + p + (v * side + c) * g.b_column));
          transpose<word_t<V>>(square);
#pragma GCC unroll 16
          for (int64_t r = 0; r < side; ++r) store(to + (p + r) * width + v * side, from_bits<V>(square[r]));
        }
      }
    }
    for (; p < count; ++p) {
      for (int64_t c = 0; c < width; ++c) {
        to[p * width + c] = c < here ? widen(from[p * g.b_row + c * g.b_column]) : lane_t<V>(0);
      }
    }
  }
}

// Rows of a, from one of its elements on, as numbers that are computed with: one behind the other.
template <class T>
void widen_rows(const MatmulArgs& g, const T* from, int64_t m, int64_t k, Compute<T>* to) {
  using V = Vector<Compute<T>>;
  for (int64_t i = 0; i < m; ++i, from += g.a_row, to += k) {
    int64_t p = 0;
    if (g.a_column == 1) {
      for (; p + lanes<V> <= k; p += lanes<V>) store(to + p, load<V>(from + p));
    }
    for (; p < k; ++p) to[p] = widen(from[p * g.a_column]);
  }
}

template <class T>
class Product {
  using C = Compute<T>;
  using V = Vector<C>;

 public:
  explicit Product(const MatmulArgs& args) : g(args) {}

  void run() {
    const int64_t deep = even_part(g.k, depth), wide = even_part(g.n, block_columns);
    // Sums of several depths are kept in out, if it is of their type.
    const int64_t high = !is_narrow<T> || g.k <= depth ? g.m : kept_rows;
    for (int64_t i = 0; i < g.m; i += high) {
      for (int64_t j = 0; j < g.n; j += wide) {
        for (int64_t p = 0; p < g.k || p == 0; p += deep) {
          of_b(i, std::min(high, g.m - i), j, std::min(wide, g.n - j), p, std::min(deep, g.k - p));
        }
      }
    }
  }

 private:
  // A block of b, with the rows from i0 on.
  void of_b(int64_t i0, int64_t m, int64_t j0, int64_t n, int64_t p0, int64_t k) {
    first_ = p0 == 0;
    last_ = p0 + k == g.k;
    if constexpr (is_narrow<T>) {
      kept_ = first_ && last_ ? nullptr : scratch<C, Use::sums>(m * n);
      kept_row_ = n;
    } else {
      kept_ = static_cast<C*>(g.out) + i0 * g.out_row + j0;
      kept_row_ = g.out_row;
    }
    C* const b = scratch<C, Use::b>(divide_up(n, tile_columns<V>) * tile_columns<V> * k);
    pack_b<V, T>(g, p0, k, j0, n, b);
    const int64_t high = even_part(m, block_rows);
    for (int64_t i = 0; i < m; i += high) of_a(i0, i, std::min(high, m - i), j0, n, p0, k, b);
  }

  // A block of a, of m rows from i0 + i on, times one of b.
  void of_a(int64_t i0, int64_t i, int64_t m, int64_t j0, int64_t n, int64_t p0, int64_t k, const C* b) {
    const T* from = static_cast<const T*>(g.a) + (i0 + i) * g.a_row + p0 * g.a_column;
    const int64_t high = even_part(m, tile_rows<V>);
    const bool panels = g.a_row == 1 && g.a_column != 1;
    const C* a;
    int64_t a_row;
    if constexpr (!is_narrow<T>) {
      a = from;
      a_row = g.a_row;
    }
    if (panels || g.a_column != 1 || is_narrow<T>) {
      C* const packed = scratch<C, Use::a>(m * k + 2 * lanes<V>);
      panels ? pack_panels(from, m, k, high, packed) : widen_rows(g, from, m, k, packed);
      a = packed;
      a_row = k;
    }
    // Sums that go to where they are kept as they are.
    const bool is_plain = (!is_narrow<T> || !last_) && g.alpha == 1 && !(first_ && g.added);
    for (int64_t j = 0; j < n; j += tile_columns<V>, b += k * tile_columns<V>) {
      for (int64_t r = 0; r < m; r += high) {
        const int64_t rows = std::min(high, m - r);
        // Where it goes to is on its way meanwhile.
        for (int64_t row = 0; kept_ && row < rows; ++row) __builtin_prefetch(kept_ + (i + r + row) * kept_row_ + j, 1);
        alignas(cache_line) C tile[tile_rows<V> * tile_columns<V>];
        (panels ? multiply_of<V, true>(rows) : multiply_of<V, false>(rows))(k, a + r * (panels ? k : a_row), a_row, b,
                                                                            tile);
        if (is_plain && n - j >= tile_columns<V>) {
          keep(rows, kept_ + (i + r) * kept_row_ + j, tile);
        } else {
          for (int64_t row = 0; row < rows; ++row) finish(i0, i + r + row, j0, j, n, tile + row * tile_columns<V>);
        }
      }
    }
  }

  // Of a whose rows are neighbours: [panel][column][row]. What a whole vector writes too much, the next one overwrites.
  void pack_panels(const T* from, int64_t m, int64_t k, int64_t high, C* to) const {
    for (int64_t i = 0; i < m; i += high) {
      const int64_t rows = std::min(high, m - i);
      for (int64_t p = 0; p < k; ++p, to += rows) {
        const T* column = from + i + p * g.a_column;
        if (i + divide_up(rows, lanes<V>) * lanes<V> <= m) {
          for (int64_t r = 0; r < rows; r += lanes<V>) store(to + r, load<V>(column + r));
        } else {
          for (int64_t r = 0; r < rows; ++r) to[r] = widen(column[r]);
        }
      }
    }
  }

  // A whole tile, as it is.
  RT_INLINE void keep(int64_t rows, C* kept, const C* tile) const {
    for (int64_t row = 0; row < rows; ++row, kept += kept_row_, tile += tile_columns<V>) {
      V low = load<V>(tile), high = load<V>(tile + lanes<V>);
      if (!first_) {
        low += load<V>(kept);
        high += load<V>(kept + lanes<V>);
      }
      store(kept, low);
      store(kept + lanes<V>, high);
    }
  }

  // A row of a tile: to where sums are kept, or to out.
  RT_INLINE void finish(int64_t i0, int64_t i, int64_t j0, int64_t j, int64_t n, const C* sums) const {
    for (int64_t c = 0; c < tile_columns<V> && j + c < n; c += lanes<V>) {
      if (n - j - c >= lanes<V>) {
        finish(i0, i, j0, j + c, sums + c, [](const auto* p) { return load<V>(p); }, [](auto* p, V x) { store(p, x); });
      } else {
        const int64_t count = n - j - c;
        finish(
            i0, i, j0, j + c, sums + c, [&](const auto* p) { return load_part<V>(p, count, 0); },
            [&](auto* p, V x) { store_part(p, x, count); });
      }
    }
  }

  template <class Load, class Store>
  RT_INLINE void finish(int64_t i0, int64_t i, int64_t j0, int64_t j, const C* sums, Load from, Store to) const {
    V sum = load<V>(sums) * C(g.alpha);
    C* const kept = kept_ + i * kept_row_ + j;
    if (!first_) {
      sum += from(kept);
    } else if (g.added) {
      const T* added = static_cast<const T*>(g.added) + (i0 + i) * g.added_row + (j0 + j) * g.added_column;
      sum += C(g.beta) * (g.added_column ? from(added) : splat<V>(widen(*added)));
    }
    if (last_) {
      to(static_cast<T*>(g.out) + (i0 + i) * g.out_row + j0 + j, sum);
    } else {
      to(kept, sum);
    }
  }

  const MatmulArgs& g;
  bool first_ = true, last_ = true;  // of the depths
  C* kept_ = nullptr;
  int64_t kept_row_ = 0;
};

void blocks(const MatmulArgs& g) {
  with_type<floats>(g.dtype, [&]<class T>(T) { Product<T>(g).run(); });
}

// x * y + z with the rounding that the instruction set has. Left to the compiler, it would be another one in another
// copy of an inline function, and which copy an element meets depends on the threads.
RT_INLINE float multiply_add(float x, float y, float z) { return fused ? __builtin_fmaf(x, y, z) : x * y + z; }
RT_INLINE double multiply_add(double x, double y, double z) { return fused ? __builtin_fma(x, y, z) : x * y + z; }

// alpha * sum + beta * added, of one element.
template <class T, class C>
RT_INLINE void finish_one(const MatmulArgs& g, int64_t i, int64_t j, C sum) {
  sum *= C(g.alpha);
  if (g.added) {
    const T added = static_cast<const T*>(g.added)[i * g.added_row + j * g.added_column];
    sum = multiply_add(C(g.beta), widen(added), sum);
  }
  store_one(static_cast<T*>(g.out) + i * g.out_row + j, sum);
}

// Rows of a in C: a itself, or a copy.
template <class T>
const Compute<T>* rows_of_a(const MatmulArgs& g, int64_t& row) {
  using C = Compute<T>;
  const T* from = static_cast<const T*>(g.a);
  if constexpr (!is_narrow<T>) {
    if (g.a_column == 1) return row = g.a_row, from;
  }
  C* const to = scratch<C, Use::a>(g.m * g.k);
  widen_rows(g, from, g.m, g.k, to);
  row = g.k;
  return to;
}

// How many columns of b are read at a time beside so many rows of a: as the registers allow.
template <class V, class T>
constexpr int dot_columns(int rows) {
  if (rows == 1) return is_narrow<T> ? 4 : 8;
  return sizeof(V) == 64 ? (rows == 2 ? 8 : 6) : rows == 2 ? 5 : 3;
}
constexpr int dot_rows = 4;

template <class V, class T, int rows, int columns>
RT_INLINE void dot(const MatmulArgs& g, const lane_t<V>* a, int64_t a_row, int64_t i, int64_t j) {
  const T* b = static_cast<const T*>(g.b) + j * g.b_column;
  a += i * a_row;
  V sums[rows][columns] = {};
  int64_t p = 0;
  const auto add = [&](auto from_a, auto from_b) {
    V y[columns];
#pragma GCC unroll 8
    for (int c = 0; c < columns; ++c) {
      // The next columns are on their way meanwhile: the hardware begins anew with each. (Of float it was slower.)
      if constexpr (rows == 1 && is_narrow<T>) __builtin_prefetch(b + (c + columns) * g.b_column + p);
      y[c] = from_b(b + c * g.b_column);
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) {
      const V x = from_a(a + r * a_row);
#pragma GCC unroll 8
      for (int c = 0; c < columns; ++c) sums[r][c] += x * y[c];
    }
  };
#pragma GCC unroll 1
  for (; p + lanes<V> <= g.k; p += lanes<V>) {
    add([&](const lane_t<V>* x) { return load<V>(x + p); }, [&](const T* y) { return load<V>(y + p); });
  }
  if (const int64_t rest = g.k - p) {
    add([&](const lane_t<V>* x) { return load_part<V>(x + p, rest, 0); },
        [&](const T* y) { return load_part<V>(y + p, rest, 0); });
  }
#pragma GCC unroll 4
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < columns; ++c) finish_one<T>(g, i + r, j + c, sum_lanes(sums[r][c]));
  }
}

template <class V, class T, int rows>
__attribute__((noinline)) void dots_of(const MatmulArgs& g, const lane_t<V>* a, int64_t a_row, int64_t i, int64_t j,
                                       int64_t last_j) {
  constexpr int columns = dot_columns<V, T>(rows);
  for (; j + columns <= last_j; j += columns) dot<V, T, rows, columns>(g, a, a_row, i, j);
  for (; j < last_j; ++j) dot<V, T, rows, 1>(g, a, a_row, i, j);
}

void dots(const MatmulArgs& g) {
  with_type<floats>(g.dtype, [&]<class T>(T) {
    using V = Vector<Compute<T>>;
    int64_t a_row;
    const auto* a = rows_of_a<T>(g, a_row);
    // Columns of b that the first cache holds, for all rows of a.
    const int64_t each = std::max<int64_t>(1, 8192 / std::max<int64_t>(1, g.k * int64_t(sizeof(T)))) * 24;
    for (int64_t j = 0; j < g.n; j += each) {
      const int64_t last_j = std::min(j + each, g.n);
      const int64_t high = even_part(g.m, dot_rows);
      for (int64_t i = 0; i < g.m; i += high) {
        switch (std::min(high, g.m - i)) {
          case 1: dots_of<V, T, 1>(g, a, a_row, i, j, last_j); break;
          case 2: dots_of<V, T, 2>(g, a, a_row, i, j, last_j); break;
          case 3: dots_of<V, T, 3>(g, a, a_row, i, j, last_j); break;
          default: dots_of<V, T, 4>(g, a, a_row, i, j, last_j);
        }
      }
    }
  });
}

// sums[0..n) += a[0] * b[0] + ... of so many rows of b.
template <class V, class T, int count>
RT_INLINE void add_rows(const T* b, int64_t b_row, const lane_t<V>* a, int64_t n, lane_t<V>* sums) {
  V x[count];
#pragma GCC unroll 8
  for (int r = 0; r < count; ++r) x[r] = splat<V>(a[r]);
  int64_t j = 0;
  for (; j + lanes<V> <= n; j += lanes<V>) {
    V sum = load<V>(sums + j);
#pragma GCC unroll 8
    for (int r = 0; r < count; ++r) sum += x[r] * load<V>(b + r * b_row + j);
    store(sums + j, sum);
  }
  for (; j < n; ++j) {
    for (int r = 0; r < count; ++r) sums[j] += a[r] * widen(b[r * b_row + j]);
  }
}

void combinations(const MatmulArgs& g) {
  with_type<floats>(g.dtype, [&]<class T>(T) {
    using C = Compute<T>;
    using V = Vector<C>;
    constexpr int64_t together = 8;   // rows of b, each a stream from memory
    constexpr int64_t across = 4096;  // columns, whose sums stay in the cache
    int64_t a_row;
    const C* a = rows_of_a<T>(g, a_row);
    for (int64_t j = 0; j < g.n; j += across) {
      const int64_t n = std::min(across, g.n - j);
      const T* b = static_cast<const T*>(g.b) + j;
      C* const sums = scratch<C, Use::sums>(g.m * n);
      std::fill_n(sums, g.m * n, C(0));
      int64_t p = 0;
      for (; p + together <= g.k; p += together) {
        for (int64_t i = 0; i < g.m; ++i) {
          add_rows<V, T, together>(b + p * g.b_row, g.b_row, a + i * a_row + p, n, sums + i * n);
        }
      }
      for (; p < g.k; ++p) {
        for (int64_t i = 0; i < g.m; ++i)
          add_rows<V, T, 1>(b + p * g.b_row, g.b_row, a + i * a_row + p, n, sums + i * n);
      }
      for (int64_t i = 0; i < g.m; ++i) {
        for (int64_t c = 0; c < n; ++c) finish_one<T>(g, i, j + c, sums[i * n + c]);
      }
    }
  });
}

}  // namespace
}  // namespace rusttorch

RUSTTORCH_DEFINE_TABLE(matmul, MatmulArgs, {&blocks, floats}, {&dots, floats}, {&combinations, floats})
