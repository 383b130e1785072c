#pragma once

// Of a product: its factors as the kernels read them, widened and in the order in which they are read.

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>

#include "matmul_finish.h"
#include "square.h"

namespace rusttorch {
namespace {

constexpr int64_t cache_line = 64;

constexpr int64_t divide_up(int64_t n, int64_t by) { return (n + by - 1) / by; }
constexpr int64_t round_up(int64_t n, int64_t to) { return divide_up(n, to) * to; }

// n in parts of at most `most` that are nearly equal: how many one has.
constexpr int64_t even_part(int64_t n, int64_t most) { return n > 0 ? divide_up(n, divide_up(n, most)) : most; }

// A thread's own memory for each of its uses, which grows to what was ever needed.
enum class Use { a, b, sums, turned };
template <class T, Use use>
T* scratch(int64_t count) {
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  thread_local std::unique_ptr<void, Free> memory;
  thread_local int64_t held = 0;
  const int64_t bytes = round_up(count * int64_t(sizeof(T)), cache_line);
  if (bytes > held) {
    memory.reset();
    held = 0;
    memory.reset(std::aligned_alloc(cache_line, size_t(bytes)));
    if (!memory) throw std::bad_alloc();
    held = bytes;
  }
  return static_cast<T*>(memory.get());
}

// Rows m and columns k of something, element (i, p) at from[i * row + p * column].
template <class T>
struct Block {
  const T* from;
  int64_t row, column, m, k;
};

// One row behind the other.
template <class T, class C>
void widen_rows(Block<T> x, C* to) {
  using V = Vector<C>;
  for (int64_t i = 0; i < x.m; ++i, x.from += x.row, to += x.k) {
    int64_t p = 0;
    if (x.column == 1) {
      for (; p + lanes<V> <= x.k; p += lanes<V>) store(to + p, load<V>(x.from + p));
    }
    for (; p < x.k; ++p) to[p] = widen(x.from[p * x.column]);
  }
}

// Panels of so many columns, [panel][row][column], the last one filled up with zeros. Of columns that are neighbours: a
// few rows at a time, along which memory is read as it lies.
template <int64_t width, class T, class C>
void pack_neighbours(Block<T> x, C* to) {
  using V = Vector<C>;
  constexpr int64_t together = 8;
  const int64_t rest = x.k % width, whole = x.k - rest;
  for (int64_t i = 0; i < x.m; i += together) {
    const int64_t last = std::min(i + together, x.m);
    for (int64_t p = 0; p < whole; p += width) {
      for (int64_t q = i; q < last; ++q) {
#pragma GCC unroll 4
        for (int64_t v = 0; v < width; v += lanes<V>) {
          store(to + p * x.m + q * width + v, load<V>(x.from + q * x.row + p + v));
        }
      }
    }
    for (int64_t q = i; rest && q < last; ++q) {
      for (int64_t c = 0; c < width; ++c) {
        to[whole * x.m + q * width + c] = c < rest ? widen(x.from[q * x.row + whole + c]) : C(0);
      }
    }
  }
}

// Of any others; where rows are neighbours, in squares.
template <int64_t width, class T, class C>
void pack_others(Block<T> x, C* to) {
  using V = Vector<C>;
  constexpr int64_t side = lanes<V>;
  for (int64_t p = 0; p < x.k; p += width, to += x.m * width) {
    const T* from = x.from + p * x.column;
    const int64_t here = std::min(width, x.k - p);
    int64_t i = 0;
    for (; x.row == 1 && here == width && i + side <= x.m; i += side) {
#pragma GCC unroll 4
      for (int64_t v = 0; v < width; v += side) {
        bits_t<V> square[side];
#pragma GCC unroll 16
        for (int64_t c = 0; c < side; ++c) square[c] = bits(load<V>(from + i + (v + c) * x.column));
        transpose<word_t<V>>(square);
#pragma GCC unroll 16
        for (int64_t r = 0; r < side; ++r) store(to + (i + r) * width + v, from_bits<V>(square[r]));
      }
    }
    for (; i < x.m; ++i) {
      for (int64_t c = 0; c < width; ++c) {
        to[i * width + c] = c < here ? widen(from[i * x.row + c * x.column]) : C(0);
      }
    }
  }
}

// Groups of rows that are neighbours, [group][column][row], of next(rows left) rows each. Some columns at a time, along
// which memory is read as it lies. What a whole vector writes too much, the next one overwrites.
template <class T, class C, class Next>
void pack_groups(Block<T> x, Next next, C* to) {
  using V = Vector<C>;
  constexpr int64_t together = 16;
  for (int64_t p0 = 0; p0 < x.k; p0 += together) {
    const int64_t last = std::min(x.k, p0 + together);
    for (int64_t i = 0, rows; i < x.m; i += rows) {
      rows = next(x.m - i);
      const T* from = x.from + i + p0 * x.column;
      C* group = to + i * x.k + p0 * rows;
      int64_t p = p0;
      const int64_t written = round_up(rows, lanes<V>);
      if (i + written <= x.m && written <= 2 * rows) {
        for (; p < std::min(last, x.k - 1); ++p, from += x.column, group += rows) {
          for (int64_t r = 0; r < rows; r += lanes<V>) store(group + r, load<V>(from + r));
        }
      }
      for (; p < last; ++p, from += x.column, group += rows) {
        for (int64_t r = 0; r < rows; ++r) group[r] = widen(from[r]);
      }
    }
  }
}

}  // namespace
}  // namespace rusttorch
