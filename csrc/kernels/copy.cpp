#include "copy.h"

#include <algorithm>

#include "load_store.h"
#include "square.h"

namespace rusttorch {
namespace {

// A square of words. Whole vectors are read and written, with 64 bytes whole cache lines: rows whose length is a power
// of two all want the same place in the cache, and would push each other out half used.
template <class Word>
RT_INLINE void transpose_square(const Word* in, int64_t in_row, Word* out, int64_t out_row) {
  constexpr int side = square_side<Word>;
  Vector<Word> rows[side];
#pragma GCC unroll 32
  for (int k = 0; k < side; ++k) std::memcpy(&rows[k], in + k * in_row, sizeof rows[k]);
  transpose<Word>(rows);
#pragma GCC unroll 32
  for (int k = 0; k < side; ++k) std::memcpy(out + k * out_row, &rows[k], sizeof rows[k]);
}

template <class Word>
void transpose_words(const TransposeArgs& a) {
  constexpr int64_t side = square_side<Word>;
  const Word* in = static_cast<const Word*>(a.in);
  Word* out = static_cast<Word*>(a.out);
  for (int64_t b = 0; b < a.batch; ++b, in += a.rows * a.columns, out += a.rows * a.columns) {
    const auto one_by_one = [&](int64_t r0, int64_t r1, int64_t c0, int64_t c1) {
      for (int64_t c = c0; c < c1; ++c) {
        for (int64_t r = r0; r < r1; ++r) out[c * a.rows + r] = in[r * a.columns + c];
      }
    };
    for (int64_t r0 = 0; r0 < a.rows; r0 += side) {
      const int64_t r1 = std::min(a.rows, r0 + side);
      int64_t c = 0;
      for (; r1 - r0 == side && c + side <= a.columns; c += side) {
        transpose_square(in + r0 * a.columns + c, a.columns, out + c * a.rows + r0, a.rows);
      }
      one_by_one(r0, r1, c, a.columns);
    }
  }
}

void transpose(const TransposeArgs& a) {
  switch (a.element_size) {
    case 2: return transpose_words<uint16_t>(a);
    case 4: return transpose_words<uint32_t>(a);
    default: return transpose_words<uint64_t>(a);
  }
}

}  // namespace
}  // namespace rusttorch

RUSTTORCH_DEFINE_TABLE(copy, TransposeArgs, {&transpose})
