#pragma once

// Of a product of bfloat16: a tile of the result by AMX, whose registers are tiles themselves, of 16 rows of 64 bytes:
// four have sums, two a's pairs and two b's.

#include <cstring>

#include "matmul_tile.h"

namespace rusttorch {
namespace {

template <int to>
RT_INLINE void load_square(const void* from, int64_t bytes) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(bytes), "i"(to) : "memory");
}
template <int from>
RT_INLINE void store_square(void* to, int64_t bytes) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(bytes), "i"(from) : "memory");
}
template <int sums, int a, int b>
RT_INLINE void add_square() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(sums), "i"(a), "i"(b));
}
template <int sums>
RT_INLINE void clear_square() {
  asm volatile("tilezero %%tmm%c0" ::"i"(sums));
}

// What multiplies a tile of up to 2 x 2 squares.
class BySquares {
 public:
  static constexpr int64_t side = 16, rows = 2 * side, columns = 2 * side;
  static constexpr int64_t step = side, block_rows = 2 * rows;
  static constexpr bool takes_groups = false;

  BySquares() = default;
  BySquares(const BySquares&) = delete;
  BySquares& operator=(const BySquares&) = delete;
  ~BySquares() {
    if (rows_) asm volatile("tilerelease");
  }

  static int64_t next_rows(int64_t left) { return std::min(left, rows); }

  template <bool group>
  void multiply(int64_t rows, int64_t columns, int64_t k, const Tile<float, Pair, Pair>& tile) {
    if (rows != rows_) configure(rows);
    const bool is_low = rows <= side, is_thin = columns <= side;
    if (is_low) {
      is_thin ? sums<1, 1>(k, tile) : sums<1, 2>(k, tile);
    } else {
      is_thin ? sums<2, 1>(k, tile) : sums<2, 2>(k, tile);
    }
  }

 private:
  // Registers 0 and 1 have the sums of the first 16 rows, 2 and 3 of those below; 4 and 5 have a's; 6 and 7 b's.
  void configure(int64_t rows) {
    struct {
      uint8_t palette = 1, first = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } shape;
    for (int k = 0; k < 8; ++k) {
      const bool has_rows = k < 6, is_second = k == 2 || k == 3 || k == 5;
      const int64_t here = is_second ? std::max<int64_t>(1, rows - side) : std::min(rows, side);
      shape.row_bytes[k] = cache_line;
      shape.rows[k] = uint8_t(has_rows ? here : side);
    }
    asm volatile("ldtilecfg %0" ::"m"(shape));
    rows_ = rows;
  }

  template <int down, int across>
  static void sums(int64_t k, const Tile<float, Pair, Pair>& tile) {
    for_each<down, across>([&]<int i, int j>() {
      if (tile.more) {
        load_square<2 * i + j>(tile.more + i * side * tile.more_row + j * side, tile.more_row * 4);
      } else {
        clear_square<2 * i + j>();
      }
    });
    const Pair *a = tile.a, *b = tile.b;
    const int64_t a_row = tile.a_next * 4, b_row = tile.b_row * 4;
#pragma GCC unroll 1
    for (int64_t p = 0; p < k; p += step, a += step, b += step * tile.b_row) {
      load_square<6>(b, b_row);
      if constexpr (across == 2) load_square<7>(b + side, b_row);
      load_square<4>(a, a_row);
      add_square<0, 4, 6>();
      if constexpr (across == 2) add_square<1, 4, 7>();
      if constexpr (down == 2) {
        load_square<5>(a + side * tile.a_next, a_row);
        add_square<2, 5, 6>();
        if constexpr (across == 2) add_square<3, 5, 7>();
      }
    }
    for_each<down, across>(
        [&]<int i, int j>() { store_square<2 * i + j>(tile.to + i * side * tile.to_row + j * side, tile.to_row * 4); });
  }

  template <int down, int across, class F>
  RT_INLINE static void for_each(F f) {
    f.template operator()<0, 0>();
    if constexpr (across == 2) f.template operator()<0, 1>();
    if constexpr (down == 2) f.template operator()<1, 0>();
    if constexpr (down == 2 && across == 2) f.template operator()<1, 1>();
  }

  int64_t rows_ = 0;  // that the registers are configured for; 0: they are not
};

}  // namespace
}  // namespace rusttorch
