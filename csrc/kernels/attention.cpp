// Attention without the matrix of scores: of some queries and some keys at a time, with sums that are scaled when a
// larger score is found (T. Dao et al., FlashAttention, 2022; M. Milakov and N. Gimelshein, Online normalizer
// calculation for softmax, 2018). Backward the scores are made again, from the logarithms of those sums.

#include "attention.h"

#include "attention_backward.h"

namespace rusttorch {
namespace {

template <class T, class Item, class Micro>
class Forward : QueryPart<T, Item, Micro> {
  using Base = QueryPart<T, Item, Micro>;
  using Base::a, Base::factor_, Base::in_item, Base::is_first_, Base::j_, Base::kept_, Base::lowest_score, Base::n_,
      Base::row;
  using typename Base::C, typename Base::Use, typename Base::V;

 public:
  using Base::Base;

  void run() {
    const int64_t keys_row = Base::row_of(a.size);
    const T *k = static_cast<const T*>(a.k.data), *v = static_cast<const T*>(a.v.data);
    const Item* const queries = Base::turned(static_cast<const T*>(a.q.data), a.q.row, a.queries, a.size,
                                             scratch<Item, Use::turned_queries>(Base::turned_size(a.size)));
    Item* const keys = scratch<Item, Use::keys>(keys_together * keys_row);
    Item* const columns = scratch<Item, Use::value_columns>(Base::columns_size(a.value_size));
    result_ = scratch<C, Use::result>(queries_together * Base::size_of(a.value_size));
    scores_ = scratch<C, Use::scores>(keys_together * row);
    weights_ = reinterpret_cast<Item*>(scores_);
    if (in_item > 1) weights_ = scratch<Item, Use::weights>(keys_together * row);
    std::fill_n(largest_, queries_together, lowest_score);
    Base::each_keys([&] {
      pack_steps<Micro>(Block<T>{k + j_ * a.k.row, a.k.row, 1, n_, a.size}, keys_row, keys);
      Base::pack_key_columns(v + j_ * a.v.row, a.v.row, a.value_size, columns);
      Base::each_panel([&](int64_t panel) {
        Base::fetch(panel);
        Base::multiply_rows(keys, keys_row, queries, a.size, panel, scores_);
        Base::each_vector(panel, [&](int64_t at) { weigh(at); });
        Base::multiply_columns(columns, weights_, a.value_size, panel, result_, !is_first_);
      });
    });
    finish();
  }

 private:
  // A vector of queries: their scores become the exponentials of what they are less than the largest one.
  void weigh(int64_t at) {
    const int64_t all = Base::seen(at + lanes<V>), plain = std::min(all, Base::plain(at));
    C* const scores = scores_ + at;
    const V before = load<V>(largest_ + at);
    V most[4] = {before, before, before, before};
    const auto look = [&](int64_t begin, int64_t end, auto score) {
      int64_t r = begin;
      for (; r + 4 <= end; r += 4) {
#pragma GCC unroll 4
        for (int64_t k = 0; k < 4; ++k) most[k] = larger(score(r + k), most[k]);
      }
      for (; r < end; ++r) most[0] = larger(score(r), most[0]);
    };
    look(0, plain, [&](int64_t r) { return V(load<V>(scores + r * row) * factor_); });
    look(plain, all, [&](int64_t r) {
      const V x = Base::masked(load<V>(scores + r * row), at, r);
      store(scores + r * row, x);
      return x;
    });
    const V largest = larger(larger(most[0], most[1]), larger(most[2], most[3]));
    // Of a query that has seen nothing yet, all exponentials are 0.
    const V base = select(largest == lowest_score, V{}, largest);
    store(largest_ + at, largest);
    const V scale = exponential(V(before - base));
    if (!is_first_) rescale(at, scale);
    V sum = load<V>(sums_ + at) * scale;
    const auto weight = [&](int64_t r) {
      const V score = load<V>(scores + r * row);
      const V e = exponential(r < plain ? V(score * factor_ - base) : V(score - base));
      sum += e;
      return kept_ ? V(e * load<V>(kept_ + r * row + at)) : e;
    };
    for (int64_t r = 0; r < all; r += in_item) {
      if constexpr (in_item > 1) {
        const V first = weight(r), second = r + 1 < all ? weight(r + 1) : V{};
        store(weights_ + r / 2 * row + at, pairs_of(first, second));
      } else {
        store(weights_ + r * row + at, weight(r));
      }
    }
    Base::clear_unseen(weights_, at);
    store(sums_ + at, sum);
  }

  void rescale(int64_t at, V scale) {
    C* const result = Base::of_query(result_, a.value_size, at);
    for (int64_t d = 0; d < a.value_size; ++d) {
      store(result + d * Base::width, V(load<V>(result + d * Base::width) * scale));
    }
  }

  void finish() {
    if (is_first_) std::fill_n(result_, queries_together * Base::size_of(a.value_size), C(0));  // nothing was seen
    C scales[queries_together];
    C* const logsumexp = static_cast<C*>(a.logsumexp.data);
    for (int64_t at = 0; at < a.queries; at += lanes<V>) {
      V sum = load<V>(sums_ + at), largest = load<V>(largest_ + at);
      const auto none = sum == 0;
      sum = select(none, splat<V>(1), sum);
      store(scales + at, V(1 / sum));
      const V log = select(none, V{}, V(largest / exponent<V> + math::log(sum)));
      for (int64_t i = 0; i < std::min(lanes<V>, a.queries - at); ++i) logsumexp[(at + i) * a.logsumexp.row] = log[i];
    }
    Base::turn_back(result_, a.value_size, scales, static_cast<T*>(a.out.data), a.out.row);
  }

  C *scores_ = nullptr, *result_ = nullptr;
  Item* weights_ = nullptr;
  alignas(cache_line) C largest_[queries_together], sums_[queries_together] = {};
};

void forward(const AttentionArgs& a) {
  with_type<floats>(a.dtype, [&]<class T>(T) { Forward<T, Compute<T>, ByVectors<Vector<Compute<T>>>>(a).run(); });
}
void backward(const AttentionArgs& a) {
  with_type<floats>(a.dtype, [&]<class T>(T) { Backward<T, Compute<T>, ByVectors<Vector<Compute<T>>>>(a).run(); });
}

constexpr Dtypes bfloat16 = 1 << int(Dtype::bf16);

#if defined(__AVX512F__)
using PairsByVectors = ByVectors<Vector<float>>;
void forward_of_pairs(const AttentionArgs& a) { Forward<bf16, Pair, PairsByVectors>(a).run(); }
void backward_of_pairs(const AttentionArgs& a) { Backward<bf16, Pair, PairsByVectors>(a).run(); }
void forward_of_squares(const AttentionArgs& a) { Forward<bf16, Pair, BySquares>(a).run(); }
void backward_of_squares(const AttentionArgs& a) { Backward<bf16, Pair, BySquares>(a).run(); }
#else  // they are not asked for
void forward_of_pairs(const AttentionArgs&) { __builtin_trap(); }
void backward_of_pairs(const AttentionArgs&) { __builtin_trap(); }
void forward_of_squares(const AttentionArgs&) { __builtin_trap(); }
void backward_of_squares(const AttentionArgs&) { __builtin_trap(); }
#endif

}  // namespace
}  // namespace rusttorch

RUSTTORCH_DEFINE_TABLE(attention, AttentionArgs, {&forward, floats}, {&backward, floats}, {&forward_of_pairs, bfloat16},
                       {&backward_of_pairs, bfloat16}, {&forward_of_squares, bfloat16},
                       {&backward_of_squares, bfloat16})
