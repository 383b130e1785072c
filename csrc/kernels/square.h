#pragma once

// A square of words in registers.

#include <type_traits>

#include "lanes.h"

namespace rusttorch {
namespace {

template <class Word>
constexpr int square_side = vector_bytes / sizeof(Word);

// Row k becomes column k: squares of 2 change their corners, then of 4, ...
template <class Word>
RT_INLINE void transpose(Vector<Word> (&rows)[square_side<Word>]) {
  using Row = Vector<Word>;
  constexpr int side = square_side<Word>;
  const auto exchange = [&]<int apart>(std::integral_constant<int, apart>) {
    if constexpr (apart < side) {
      Row low, high;  // of a pair of rows: the lanes whose bit `apart` is 0, and those whose is 1
      for (int k = 0; k < side; ++k) {
        low[k] = Word(k & apart ? side + k - apart : k);
        high[k] = Word(k & apart ? side + k : k + apart);
      }
#pragma GCC unroll 32
      for (int k = 0; k < side; ++k) {
        if (k & apart) continue;
        const Row a = rows[k], b = rows[k + apart];
        rows[k] = __builtin_shuffle(a, b, low);
        rows[k + apart] = __builtin_shuffle(a, b, high);
      }
    }
  };
  exchange(std::integral_constant<int, 1>());
  exchange(std::integral_constant<int, 2>());
  exchange(std::integral_constant<int, 4>());
  exchange(std::integral_constant<int, 8>());
  exchange(std::integral_constant<int, 16>());
}

}  // namespace
}  // namespace rusttorch
