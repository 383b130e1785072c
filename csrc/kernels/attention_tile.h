#pragma once

// Of attention: a part of the queries and some of the keys. Their scores lie turned, [key][query]: what is done to a
// score is done to those of neighbouring queries at once, with no sum over lanes, and every product reads them as they
// lie.

#include <optional>

#include "attention.h"
#include "math.h"
#include "matmul_amx.h"
#include "runs.h"
#include "twister.h"

namespace rusttorch {
namespace {

constexpr int64_t keys_together = 128;

// Exponentials of base 2, whose exponents have this factor, where math.h has them.
template <class V>
constexpr lane_t<V> exponent = math::is_float<V> ? 1.44269504088896340736f : 1;
template <class V>
RT_INLINE V exponential(V x) {  // of x <= 0
  if constexpr (math::is_float<V>) {
    return math::exp2_normal(x);
  } else {
    return math::exp_below(x);
  }
}

// Rows [items of rows][step] in which neighbours along the rows are an item.
template <class T, class Item>
void pack_columns(Block<T> x, int64_t step, Item* to) {
  using V = Vector<Compute<T>>;
  constexpr int64_t in_item = numbers_in<Item>;
  for (int64_t i = 0; i < x.m; i += in_item, to += step) {
    const T *row = x.from + i * x.row, *next = i + 1 < x.m ? row + x.row : nullptr;
    int64_t p = 0;
    if (x.column == 1 && next) {
      for (; p + lanes<V> <= x.k; p += lanes<V>) store(to + p, make_items<V, Item>(row + p, next + p));
    }
    for (; p < x.k; ++p) to[p] = make_item<Item>(row + p * x.column, next ? next + p * x.column : zeros<T>);
  }
}

// [column][row] of some rows as numbers; f is what becomes of them. In squares of words: of one number, or of several
// bytes.
template <class V, class M, class F>
void turn(Block<M> x, lane_t<V>* to, int64_t to_row, F f) {
  using C = lane_t<V>;
  constexpr bool is_bytes = std::is_same_v<M, uint8_t>;
  constexpr int64_t side = lanes<V>, in_word = is_bytes ? sizeof(C) : 1;
  if (x.row == 0) {  // all rows are one
    for (int64_t p = 0; p < x.k; ++p) {
      const V v = f(splat<V>(C(widen(x.from[p * x.column]))));
      for (int64_t i = 0; i < x.m; i += side) store(to + p * to_row + i, v);
    }
    return;
  }
  for (int64_t i = 0; i < x.m; i += side) {
    const auto row = [&](int64_t r) { return x.from + std::min(i + r, x.m - 1) * x.row; };
    int64_t p = 0;
    for (; x.column == 1 && p + in_word * side <= x.k; p += in_word * side) {
      bits_t<V> square[side];
#pragma GCC unroll 16
      for (int64_t r = 0; r < side; ++r) {
        const M* const from = row(r) + p;
        __builtin_prefetch(from + 4 * side);
        if constexpr (is_bytes) {
          square[r] = load<bits_t<V>>(from);
        } else {
          square[r] = bits(V(load<V>(from)));
        }
      }
      transpose<word_t<V>>(square);
#pragma GCC unroll 16
      for (int64_t c = 0; c < side; ++c) {
        for (int64_t b = 0; b < in_word; ++b) {
          V v;
          if constexpr (is_bytes) {
            v = __builtin_convertvector((square[c] >> 8 * b) & 255, V);
          } else {
            v = from_bits<V>(square[c]);
          }
          store(to + (p + c * in_word + b) * to_row + i, V(f(v)));
        }
      }
    }
    for (; p < x.k; ++p) {
      C each[side];
      for (int64_t r = 0; r < side; ++r) each[r] = C(widen(row(r)[p * x.column]));
      store(to + p * to_row + i, V(f(load<V>(each))));
    }
  }
}

// to = a b, or it is added: m rows of a, as they lie or as columns (matmul_tile.h), and a panel of b's columns.
template <bool columns_of_a, class Micro, class C, class Item>
void multiply_panel(Micro& micro, const Item* a, int64_t a_next, int64_t m, const Item* b, int64_t b_row,
                    int64_t columns, int64_t items, C* to, int64_t to_row, bool adds) {
  if (items == 0) return;
  for (int64_t r = 0, rows; r < m; r += rows) {
    rows = Micro::next_rows(m - r);
    C* const at = to + r * to_row;
    micro.template multiply<columns_of_a>(rows, columns, items,
                                          Tile<C, Item, Item>{a + r * (columns_of_a ? 1 : a_next), a_next, b, b_row,
                                                              16 * b_row, adds ? at : nullptr, to_row, at, to_row});
  }
}

#if defined(__AVX512F__)
// Pairs of bfloat16, of the nearest ones.
template <class V>
RT_INLINE Words<V> to_bf16(V v) {
  Words<V> words;
  asm("vcvtneps2bf16 %1, %0" : "=v"(words) : "v"(v));
  return words;
}
template <class V>
RT_INLINE bits_t<V> pairs_of(V first, V second) {
  return __builtin_convertvector(to_bf16(first), bits_t<V>) | __builtin_convertvector(to_bf16(second), bits_t<V>) << 16;
}
#endif

// A part of the queries of a head, at most queries_together.
template <class T, class Item, class Micro>
class QueryPart {
 protected:
  using C = Compute<T>;
  using V = Vector<C>;
  static constexpr int64_t in_item = numbers_in<Item>, width = Micro::columns;
  // Whether what is multiplied comes in steps of several items (BySquares): then what has keys as columns lies in rows
  // of them, and what a step or a vector of a panel has too much is 0.
  static constexpr bool in_steps = Micro::step > 1;
  // Of scores: an odd number of cache lines.
  static constexpr int64_t row = queries_together + cache_line / int64_t(sizeof(C));
  static constexpr C lowest_score = -std::numeric_limits<C>::infinity();

  // What it needs memory for: as it lies, turned, and as columns.
  enum class Use {
    queries,
    turned_queries,
    grads,
    turned_grads,
    keys,
    key_columns,
    values,
    value_columns,
    scores,
    slopes,
    weights,
    narrow_scores,
    narrow_slopes,
    mask,
    kept,
    drawn,
    result,
  };

 public:
  explicit QueryPart(const AttentionArgs& args)
      : a(args),
        factor_(C(args.scale) * exponent<V>),
        seen_keys_(a.causal ? std::min(a.keys, a.first_query + a.queries) : a.keys) {
    if (a.mask.data) mask_ = scratch<C, Use::mask>(keys_together * row);
    if (a.random) draw_all();
  }

 protected:
  static int64_t items(int64_t size) { return items_of<Item, Micro>(size); }
  // Items of so many numbers, in an odd number of cache lines.
  static int64_t row_of(int64_t size) {
    const int64_t bytes = items(size) * int64_t(sizeof(Item));
    return (divide_up(bytes, cache_line) | 1) * cache_line / int64_t(sizeof(Item));
  }

  // Queries, or what has one row for each of them, in panels [panel][items of size][width].
  static int64_t turned_size(int64_t size) { return items(size) * queries_together; }
  static const Item* turned(const T* from, int64_t from_row, int64_t count, int64_t size, Item* to) {
    pack_columns<Micro>(Block<T>{from, 1, from_row, size, count}, to);
    return to;
  }

  // What the keys have in columns, [items of keys][of size]; in steps [of size][items of keys].
  static int64_t columns_row(int64_t size) { return in_steps ? row_of(keys_together) : round_up(size, lanes<V>); }
  static int64_t columns_size(int64_t size) { return (in_steps ? size : keys_together) * columns_row(size); }
  void pack_key_columns(const T* from, int64_t from_row, int64_t size, Item* to) const {
    if constexpr (in_steps) {
      pack_steps<Micro>(Block<T>{from, 1, from_row, size, n_}, columns_row(size), to);
    } else {
      pack_columns(Block<T>{from, from_row, 1, n_, size}, columns_row(size), to);
    }
  }

  // Of the keys from j on, n of them, how many the queries before `end` see.
  int64_t seen(int64_t end) const {
    return a.causal ? std::clamp<int64_t>(a.first_query + std::min(end, a.queries) - j_, 0, n_) : n_;
  }
  // Those that all queries from `at` on see, and to whose scores nothing is added.
  int64_t plain(int64_t at) const { return adds_ ? 0 : seen(at + 1); }

  // keys_together of the keys, or what is left of them; not those that the mask hides from all of the queries.
  template <class F>
  void each_keys(F f) {
    for (j_ = 0; j_ < seen_keys_; j_ += keys_together) {
      n_ = std::min(keys_together, seen_keys_ - j_);
      const Mask mask = a.mask.data ? look_at_mask() : Mask::adds_nothing;
      if (mask == Mask::hides_all) continue;
      adds_ = mask == Mask::adds;
      if (adds_) turn_mask();
      if (a.random) {
        turn<V>(Block<uint8_t>{drawn_->data() + j_, a.keys, 1, a.queries, n_}, kept_, row,
                [&](V v) { return v * C(a.kept_scale); });
      }
      f();
      is_first_ = false;
    }
  }
  template <class F>
  void each_panel(F f) const {
    for (int64_t at = 0; at < a.queries; at += width) f(at);
  }
  // Vectors of the panel's queries.
  template <class F>
  void each_vector(int64_t panel, F f) const {
    for (int64_t at = panel; at < std::min(panel + width, a.queries); at += lanes<V>) f(at);
  }

  // Of weights as items of keys: those of a step that a vector of queries does not see are 0.
  void clear_unseen(Item* weights, int64_t at) const {
    if constexpr (in_steps) {
      const int64_t read = items(seen(at / width * width + width));
      for (int64_t i = divide_up(seen(at + lanes<V>), in_item); i < read; ++i)
        store(weights + i * row + at, bits_t<V>{});
    }
  }

  // scores[key][query] = rows of keys times turned queries, of a panel, for the keys that its queries see.
  void multiply_rows(const Item* rows, int64_t next, const Item* turned, int64_t size, int64_t panel, C* to) {
    const int64_t items = this->items(size), all = seen(panel + width);
    const int64_t first = in_steps ? all : seen(panel + lanes<V>);
    const Item* const b = turned + panel * items;
    multiply_panel<false>(micro_, rows, next, first, b, width, a.queries - panel, items, to + panel, row, false);
    // The rest is seen by the second vector of queries alone.
    multiply_panel<false>(micro_, rows + first * next, next, all - first, b + lanes<V>, width, lanes<V>, items,
                          to + first * row + panel + lanes<V>, row, false);
  }
  // to[of size][query] = or += what keys have in columns times weights[items of keys][query], of a panel.
  void multiply_columns(const Item* columns, const Item* weights, int64_t size, int64_t panel, C* to, bool adds) {
    const int64_t all = items(seen(panel + width)), first = in_steps ? all : items(seen(panel + lanes<V>));
    const int64_t next = columns_row(size);
    C* const at = to + panel * size_of(size);
    multiply_panel<!in_steps>(micro_, columns, next, size, weights + panel, row, a.queries - panel, first, at, width,
                              adds);
    if (first == all) return;
    multiply_panel<!in_steps>(micro_, columns + first * next, next, size, weights + first * row + panel + lanes<V>, row,
                              lanes<V>, all - first, at + lanes<V>, width, true);
  }
  // Of what multiply_columns makes, [panel][size][width], so that whole squares can be turned.
  static int64_t size_of(int64_t size) { return round_up(size, lanes<V>); }
  static C* of_query(C* made, int64_t size, int64_t at) {
    return made + at / width * width * size_of(size) + at % width;
  }

  // What is read soon, the next keys or the next part, is fetched while products are made: with each panel a share.
  void fetch(int64_t panel) const {
    const auto rows = [&](const HeadRows<const void*>& x, int64_t first, int64_t last, int64_t size) {
      const int64_t share = divide_up(last - first, divide_up(a.queries, width)), begin = first + panel / width * share;
      for (int64_t i = begin; i < std::min(begin + share, last); ++i) {
        const T* const row = static_cast<const T*>(x.data) + i * x.row;
        for (int64_t d = 0; d < size; d += cache_line / int64_t(sizeof(T))) __builtin_prefetch(row + d, 0, 2);
      }
    };
    const auto keys = [&](const AttentionArgs& of, int64_t first) {
      const int64_t last = std::min(first + keys_together, of.keys);
      rows(of.k, first, last, of.size);
      rows(of.v, first, last, of.value_size);
    };
    if (j_ + n_ < seen_keys_) return keys(a, j_ + n_);
    if (!a.next) return;
    keys(*a.next, 0);
    rows(a.next->q, 0, a.next->queries, a.size);
    if (a.next->grad_out.data) rows(a.next->grad_out, 0, a.next->queries, a.value_size);
  }

  // A row of each query, of what lies turned as [panel][size][width], times the queries' scales.
  void turn_back(C* from, int64_t size, const C* scales, T* to, int64_t to_row) const {
    for (int64_t at = 0; at < a.queries; at += lanes<V>) {
      const C* const panel = of_query(from, size, at);
      const V scale = load<V>(scales + at);
      for (int64_t d = 0; d < size; d += lanes<V>) {
        bits_t<V> square[lanes<V>];
#pragma GCC unroll 16
        for (int64_t i = 0; i < lanes<V>; ++i) square[i] = bits(V(load<V>(panel + (d + i) * width) * scale));
        transpose<word_t<V>>(square);
        for (int64_t i = 0; i < std::min(lanes<V>, a.queries - at); ++i) {
          store_count(to + (at + i) * to_row + d, from_bits<V>(square[i]), std::min(lanes<V>, size - d));
        }
      }
    }
  }

  // The r-th score of a vector of queries with what is added to it, in exponents; those that are not seen are the
  // lowest.
  V masked(V score, int64_t at, int64_t r) const {
    V x = score * factor_;
    if (adds_) x += load<V>(mask_ + r * row + at);
    if (!a.causal) return x;
    const int64_t after = a.first_query + at - j_ - r;  // by how much the first query is after the key
    bits_t<V> hidden;
    for (int64_t i = 0; i < lanes<V>; ++i) hidden[i] = after + i < 0;
    return select(hidden != 0, splat<V>(lowest_score), x);
  }

  const AttentionArgs& a;
  [[no_unique_address]] Micro micro_;
  const C factor_;  // from a product to an exponent
  const int64_t seen_keys_;
  int64_t j_ = 0, n_ = 0;
  // Of these keys: whether none came before (in the end: whether none were seen), and whether the mask adds to scores.
  // (The first ones that are seen are seen by all panels: queries and keys begin at multiples of as many.)
  bool is_first_ = true, adds_ = false;
  C *mask_ = nullptr, *kept_ = nullptr;  // [key][query]

 private:
  // What the mask does to the scores of some keys and all of the queries.
  enum class Mask { hides_all, adds_nothing, adds };

  Mask look_at_mask() const {
    const auto look = [&](auto hidden, auto seen) {
      return mask_is(hidden) ? Mask::hides_all : mask_is(seen) ? Mask::adds_nothing : Mask::adds;
    };
    switch (a.mask_dtype) {  // minus infinity or 0, in bits
      case Dtype::b8: return look(uint8_t(0), uint8_t(1));
      case Dtype::bf16: return look(uint16_t(0xff80), uint16_t(0));
      case Dtype::f16: return look(uint16_t(0xfc00), uint16_t(0));
      case Dtype::f32: return look(uint32_t(0xff800000), uint32_t(0));
      default: return look(uint64_t(0xfff0000000000000), uint64_t(0));
    }
  }
  template <class Bits>
  bool mask_is(Bits what) const {
    const Bits* from = static_cast<const Bits*>(a.mask.data) + j_ * a.mask_column;
    const int64_t rows = a.mask.row == 0 ? 1 : a.queries;  // or all are one
    for (int64_t i = 0; i < rows; ++i, from += a.mask.row) {
      Bits differs = 0;
      if (a.mask_column == 1) {
        for (int64_t p = 0; p < n_; ++p) differs |= load<Bits>(from + p) ^ what;
      } else {
        for (int64_t p = 0; p < n_; ++p) differs |= load<Bits>(from + p * a.mask_column) ^ what;
      }
      if (differs) return false;
    }
    return true;
  }

  void draw_all() {
    kept_ = scratch<C, Use::kept>(keys_together * row);
    drawn_.emplace(a.queries * a.keys);
    uint32_t words[Twister::size];
    Twister twister = restore(a.random, words);
    draw_mask(twister, drawn_->data(), a.queries * a.keys, a.kept);
  }

  void turn_mask() {
    const auto as = [&]<class M>(M, auto f) {
      const Block<M> block{static_cast<const M*>(a.mask.data) + j_ * a.mask_column, a.mask.row, a.mask_column,
                           a.queries, n_};
      turn<V>(block, mask_, row, f);
    };
    // A mask of the lowest numbers hides too, but where it hides all keys they weigh alike: none of them may become an
    // infinity, which is not seen at all.
    constexpr C least = std::numeric_limits<C>::lowest() / 2;
    const auto add = [](V v) {
      const V x = v * exponent<V>;
      return select(v == lowest_score, x, at_least(x, least));
    };
    if (a.mask_dtype == Dtype::b8) {
      return as(uint8_t(), [](V v) { return select(v != 0, V{}, splat<V>(lowest_score)); });
    }
    if constexpr (std::is_same_v<C, double>) {
      as(double(), add);
    } else {
      with_type<floats & ~(1 << int(Dtype::f64))>(a.mask_dtype, [&](auto m) { as(m, add); });
    }
  }

  std::optional<Workspace<uint8_t, Use::drawn>> drawn_;  // [query][key]
};

}  // namespace
}  // namespace rusttorch
