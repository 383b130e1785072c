#pragma once

// Of a product: its factors as the kernels read them: in the order in which they are read, and widened or in pairs.

#include <algorithm>

#include "matmul_finish.h"
#include "scratch.h"
#include "square.h"

namespace rusttorch {
namespace {

// What a product needs memory for.
enum class Use { a, b, sums, turned };

// Rows m and columns k of something, element (i, p) at from[i * row + p * column].
template <class T>
struct Block {
  const T* from;
  int64_t row, column, m, k;
};

// In an item.
template <class Item>
constexpr int64_t numbers_in = std::is_same_v<Item, Pair> ? 2 : 1;
// In how many items k numbers are packed, of which those that multiply a tile take `step` at a time.
template <class Item, class Micro>
constexpr int64_t items_of(int64_t k) {
  return round_up(divide_up(k, numbers_in<Item>), Micro::step);
}
template <class V, class Item>
using Items = std::conditional_t<std::is_same_v<Item, Pair>, bits_t<V>, V>;

template <class T>
constexpr T zeros[4 * vector_bytes] = {};

// Items of neighbours, which next follow along k; one of them.
template <class V, class Item, class T>
RT_INLINE Items<V, Item> make_items(const T* x, const T* next) {
  if constexpr (std::is_same_v<Item, Pair>) {
    return bits(load<V>(next)) | bits(load<V>(x)) >> 16;  // each half of a word is a float's upper half
  } else {
    return load<V>(x);
  }
}
template <class Item, class T>
RT_INLINE Item make_item(const T* x, const T* next) {
  if constexpr (std::is_same_v<Item, Pair>) {
    return {*x, *next};
  } else {
    return widen(*x);
  }
}
// Of numbers that are neighbours along k.
template <class V, class Item, class T>
RT_INLINE Items<V, Item> load_items(const T* x) {
  if constexpr (std::is_same_v<Item, Pair>) {
    return load<bits_t<V>>(reinterpret_cast<const char*>(x));
  } else {
    return load<V>(x);
  }
}

// Row i from its p-th number on.
template <class T, class Item>
RT_INLINE void pack_row(const Block<T>& x, int64_t i, int64_t p, Item* to) {
  using V = Vector<Compute<T>>;
  constexpr int64_t in_item = numbers_in<Item>;
  const T* const from = x.from + i * x.row;
  if (x.column == 1) {
    for (; p + in_item * lanes<V> <= x.k; p += in_item * lanes<V>, to += lanes<V>) {
      store(to, load_items<V, Item>(from + p));
    }
  }
  for (; p < x.k; p += in_item, ++to) {
    const T* number = from + p * x.column;
    *to = make_item<Item>(number, p + 1 < x.k ? number + x.column : zeros<T>);
  }
}

// One row behind the other, along k; `row` is their distance. Rows that are neighbours in squares.
template <class T, class Item>
void pack_rows(Block<T> x, int64_t row, Item* rows) {
  using V = Vector<Compute<T>>;
  constexpr int64_t in_item = numbers_in<Item>, side = lanes<V>;
  int64_t i = 0;
  if (x.row == 1 && x.column != 1 && sizeof(Item) == sizeof(lane_t<V>)) {
    const int64_t whole = x.k / (in_item * side) * side;  // items
    for (; i + side <= x.m; i += side) {
      for (int64_t p = 0; p < whole; p += side) {
        const T* const from = x.from + i + p * in_item * x.column;
        bits_t<V> square[side];
#pragma GCC unroll 16
        for (int64_t q = 0; q < side; ++q) {
          const T* const number = from + q * in_item * x.column;
          square[q] = __builtin_bit_cast(bits_t<V>, make_items<V, Item>(number, number + x.column));
        }
        transpose<word_t<V>>(square);
#pragma GCC unroll 16
        for (int64_t r = 0; r < side; ++r) store(rows + (i + r) * row + p, square[r]);
      }
      for (int64_t r = i; r < i + side; ++r) pack_row(x, r, whole * in_item, rows + r * row + whole);
    }
  }
  for (; i < x.m; ++i) pack_row(x, i, 0, rows + i * row);
}

// In whole steps, what is beyond k being 0.
template <class Micro, class T, class Item>
void pack_steps(const Block<T>& x, int64_t row, Item* rows) {
  pack_rows(x, row, rows);
  const int64_t there = divide_up(x.k, numbers_in<Item>), items = items_of<Item, Micro>(x.k);
  for (int64_t i = 0; there < items && i < x.m; ++i) std::fill(rows + i * row + there, rows + i * row + items, Item{});
}

// Panels of so many columns, [panel][items][column], the last one filled up with zeros. Of columns that are
// neighbours: a few rows at a time, along which memory is read as it lies.
template <int64_t width, class T, class Item>
void pack_neighbours(Block<T> x, int64_t items, Item* to) {
  using V = Vector<Compute<T>>;
  constexpr int64_t in_item = numbers_in<Item>, together = 8 / in_item;
  const int64_t there = divide_up(x.m, in_item), rest = x.k % width, whole = x.k - rest;
  for (int64_t i = 0; i < there; i += together) {
    const int64_t last = std::min(i + together, there);
    const auto next = [&](int64_t q, const T* row) { return q * in_item + 1 < x.m ? row + x.row : zeros<T>; };
    for (int64_t p = 0; p < whole; p += width) {
      for (int64_t q = i; q < last; ++q) {
        const T *row = x.from + q * in_item * x.row + p, *second = next(q, row);
        __builtin_prefetch(row + 4 * width);
        __builtin_prefetch(second + 4 * width);
#pragma GCC unroll 4
        for (int64_t v = 0; v < width; v += lanes<V>) {
          store(to + p * items + q * width + v, make_items<V, Item>(row + v, second + v));
        }
      }
    }
    for (int64_t q = i; rest && q < last; ++q) {
      const T *row = x.from + q * in_item * x.row + whole, *second = next(q, row);
      T part[in_item][width] = {};
      std::copy_n(row, rest, part[0]);
      if constexpr (in_item > 1) std::copy_n(second, rest, part[1]);
#pragma GCC unroll 4
      for (int64_t v = 0; v < width; v += lanes<V>) {
        store(to + whole * items + q * width + v, make_items<V, Item>(part[0] + v, part[in_item - 1] + v));
      }
    }
  }
}

// Of any others; where rows are neighbours, in squares.
template <int64_t width, class T, class Item>
void pack_others(Block<T> x, int64_t items, Item* to) {
  using V = Vector<Compute<T>>;
  constexpr int64_t side = lanes<V>, in_item = numbers_in<Item>;
  const int64_t there = divide_up(x.m, in_item);
  for (int64_t p = 0; p < x.k; p += width, to += items * width) {
    const T* from = x.from + p * x.column;
    const int64_t here = std::min(width, x.k - p);
    int64_t i = 0;
    for (; x.row == 1 && (i + side) * in_item <= x.m; i += side) {
#pragma GCC unroll 4
      for (int64_t v = 0; v < width; v += side) {
        bits_t<V> square[side];
#pragma GCC unroll 16
        for (int64_t c = 0; c < side; ++c) {
          const T* const column = from + i * in_item + (v + c) * x.column;
          square[c] = v + c < here ? __builtin_bit_cast(bits_t<V>, load_items<V, Item>(column)) : bits_t<V>{};
        }
        transpose<word_t<V>>(square);
#pragma GCC unroll 16
        for (int64_t r = 0; r < side; ++r) store(to + (i + r) * width + v, square[r]);
      }
    }
    for (; i < there; ++i) {
      const bool two = i * in_item + 1 < x.m;
      for (int64_t c = 0; c < width; ++c) {
        const T* number = from + i * in_item * x.row + c * x.column;
        to[i * width + c] = c < here ? make_item<Item>(number, two ? number + x.row : zeros<T>) : Item{};
      }
    }
  }
}

template <class Micro, class T, class Item>
void pack_columns(Block<T> x, Item* to) {
  constexpr int64_t width = Micro::columns;
  const int64_t items = items_of<Item, Micro>(x.m), there = divide_up(x.m, numbers_in<Item>);
  x.column == 1 ? pack_neighbours<width>(x, items, to) : pack_others<width>(x, items, to);
  for (int64_t p = 0; there < items && p < x.k; p += width, to += items * width) {
    std::fill(to + there * width, to + items * width, Item{});
  }
}

// Groups of rows that are neighbours, [group][items of columns][row], of next(rows left) rows each. Some columns at a
// time, along which memory is read as it lies. What a whole vector writes too much, the next one overwrites.
template <class T, class Item, class Next>
void pack_groups(Block<T> x, Next next, Item* to) {
  using V = Vector<Compute<T>>;
  constexpr int64_t together = 16, in_item = numbers_in<Item>;
  const int64_t items = divide_up(x.k, in_item);
  for (int64_t p0 = 0; p0 < items; p0 += together) {
    const int64_t last = std::min(items, p0 + together);
    for (int64_t i = 0, rows; i < x.m; i += rows) {
      rows = next(x.m - i);
      const T* from = x.from + i + p0 * in_item * x.column;
      Item* group = to + i * items + p0 * rows;
      int64_t p = p0;
      const int64_t written = round_up(rows, lanes<V>);
      if (i + written <= x.m && written <= 2 * rows) {
        for (; p < std::min(last, items - 1); ++p, from += in_item * x.column, group += rows) {
          for (int64_t r = 0; r < rows; r += lanes<V>) {
            store(group + r, make_items<V, Item>(from + r, from + x.column + r));
          }
        }
      }
      for (; p < last; ++p, from += in_item * x.column, group += rows) {
        const T* second = p * in_item + 1 < x.k ? from + x.column : zeros<T>;
        for (int64_t r = 0; r < rows; ++r) group[r] = make_item<Item>(from + r, second + r);
      }
    }
  }
}

}  // namespace
}  // namespace rusttorch
