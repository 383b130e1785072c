#pragma once

// The gradients of attention. With p the weights, d = grad_out v^T and s = p (d - sum(p d)):
//   grad_v = p^T grad_out, grad_k = scale s^T q, grad_q = scale s k
// where sum(p d) = sum(grad_out out) of each query (T. Dao et al., FlashAttention, 2022).

#include "attention_tile.h"

namespace rusttorch {
namespace {

// Where the gradients of keys and values are summed, for all queries of the heads that share them.
template <class C>
struct KeySums {
  C *k, *v;
  int64_t k_row, v_row;
};

template <class T, class Item, class Micro>
class BackwardPart : QueryPart<T, Item, Micro> {
  using Base = QueryPart<T, Item, Micro>;
  using Base::a, Base::factor_, Base::in_item, Base::is_first_, Base::j_, Base::kept_, Base::lowest_score, Base::n_,
      Base::row;
  using Base::in_steps, Base::width;
  using typename Base::C, typename Base::Use, typename Base::V;

 public:
  using Base::Base;

  void run(const KeySums<C>& sums) {
    const int64_t keys_row = Base::row_of(a.size), values_row = Base::row_of(a.value_size);
    const T *q = static_cast<const T*>(a.q.data), *k = static_cast<const T*>(a.k.data);
    const T *v = static_cast<const T*>(a.v.data), *grad = static_cast<const T*>(a.grad_out.data);
    const Item* const turned_queries =
        Base::turned(q, a.q.row, a.queries, a.size, scratch<Item, Use::turned_queries>(Base::turned_size(a.size)));
    const Item* const turned_grads = Base::turned(grad, a.grad_out.row, a.queries, a.value_size,
                                                  scratch<Item, Use::turned_grads>(Base::turned_size(a.value_size)));
    const Item* const queries =
        in_panels(q, a.q.row, a.size, scratch<Item, Use::queries>(queries_together * sums.k_row));
    const Item* const grads =
        in_panels(grad, a.grad_out.row, a.value_size, scratch<Item, Use::grads>(queries_together * sums.v_row));
    Item* const keys = scratch<Item, Use::keys>(keys_together * keys_row);
    Item* const key_columns = scratch<Item, Use::key_columns>(Base::columns_size(a.size));
    Item* const values = scratch<Item, Use::values>(keys_together * values_row);
    C* const result = scratch<C, Use::result>(queries_together * Base::size_of(a.size));
    weights_ = scratch<C, Use::scores>(keys_together * row);
    slopes_ = scratch<C, Use::slopes>(keys_together * row);
    if constexpr (in_item > 1) {
      slope_columns_ = scratch<Item, Use::weights>(keys_together * row);
      narrow_weights_ = scratch<T, Use::narrow_scores>(keys_together * narrow_row);
      narrow_slopes_ = scratch<T, Use::narrow_slopes>(keys_together * narrow_row);
    }
    read_queries();
    Base::each_keys([&] {
      const T* const part_of_k = k + j_ * a.k.row;
      pack_steps<Micro>(Block<T>{part_of_k, a.k.row, 1, n_, a.size}, keys_row, keys);
      Base::pack_key_columns(part_of_k, a.k.row, a.size, key_columns);
      pack_steps<Micro>(Block<T>{v + j_ * a.v.row, a.v.row, 1, n_, a.value_size}, values_row, values);
      Base::each_panel([&](int64_t panel) {
        Base::fetch(panel);
        Base::multiply_rows(keys, keys_row, turned_queries, a.size, panel, weights_);
        Base::multiply_rows(values, values_row, turned_grads, a.value_size, panel, slopes_);
        Base::each_vector(panel, [&](int64_t at) { differentiate(at); });
        Base::multiply_columns(key_columns, slope_columns(), a.size, panel, result, !is_first_);
      });
      add_rows(weights(), grads, a.value_size, sums.v + j_ * sums.v_row, sums.v_row);
      add_rows(slopes(), queries, a.size, sums.k + j_ * sums.k_row, sums.k_row);
    });
    if (is_first_) std::fill_n(result, queries_together * Base::size_of(a.size), C(0));  // nothing was seen
    C scales[queries_together];
    std::fill_n(scales, queries_together, C(a.scale));
    Base::turn_back(result, a.size, scales, static_cast<T*>(a.grad_q.data), a.grad_q.row);
  }

 private:
  const Item* in_panels(const T* from, int64_t from_row, int64_t size, Item* to) const {
    pack_columns<Micro>(Block<T>{from, from_row, 1, a.queries, size}, to);
    return to;
  }

  // The weights as rows of items along the queries, and the slopes, which are also columns.
  const Item* weights() const { return rows(weights_, narrow_weights_); }
  const Item* slopes() const { return rows(slopes_, narrow_slopes_); }
  const Item* slope_columns() const {
    if constexpr (in_item > 1) {
      return slope_columns_;
    } else {
      return slopes_;
    }
  }
  static const Item* rows(const C* wide, const T* narrow) {
    if constexpr (in_item > 1) {
      return reinterpret_cast<const Item*>(narrow);
    } else {
      return wide;
    }
  }

  // Of each query what its scores' exponents are less by, and sum(grad_out out).
  void read_queries() {
    const C* const logsumexp = static_cast<const C*>(a.logsumexp.data);
    const T *out = static_cast<const T*>(a.out.data), *grad = static_cast<const T*>(a.grad_out.data);
    // Beyond the queries there are no weights.
    std::fill_n(bases_, queries_together, std::numeric_limits<C>::infinity());
    std::fill_n(deltas_, queries_together, C(0));
    for (int64_t i = 0; i < a.queries; ++i, out += a.out.row, grad += a.grad_out.row) {
      bases_[i] = logsumexp[i * a.logsumexp.row] * exponent<V>;
      V sum = {};
      along_row<V>(0, a.value_size, [&](int64_t d, auto v) { sum += v.get(out + d) * v.get(grad + d); });
      deltas_[i] = sum_lanes(sum);
    }
  }

  // A vector of queries: scores become weights, and the gradients of the weights those of the scores.
  void differentiate(int64_t at) {
    const int64_t all = Base::seen(at + lanes<V>), plain = std::min(all, Base::plain(at));
    const V base = load<V>(bases_ + at), delta = load<V>(deltas_ + at);
    struct Two {
      V weight, slope;
    };
    const auto two = [&](int64_t r) -> Two {
      const int64_t i = r * row + at;
      const V score = load<V>(weights_ + i);
      V x = score * factor_ - base;
      if (r >= plain) x = Base::masked(score, at, r) - base;
      V weight = exponential(x), d = load<V>(slopes_ + i);
      if (kept_) d *= load<V>(kept_ + i);
      V slope = weight * (d - delta);
      if (r >= plain) slope = select(x == lowest_score, V{}, slope);
      if (kept_) weight *= load<V>(kept_ + i);
      return {weight, slope};
    };
    for (int64_t r = 0; r < all; r += in_item) {
      const Two first = two(r);
      put(r, at, first.weight, first.slope);
      if constexpr (in_item > 1) {
        const Two second = r + 1 < all ? two(r + 1) : Two{};
        if (r + 1 < n_) put(r + 1, at, second.weight, second.slope);
        store(slope_columns_ + r / 2 * row + at, pairs_of(first.slope, second.slope));
      }
    }
    Base::clear_unseen(slope_columns_, at);
    // A tile of keys may have some that these queries do not see, and a step begins with queries that see none of it.
    const int64_t more = Micro::rows + (in_steps ? lanes<V> : 0);
    for (int64_t r = all; r < std::min(n_, all + more); ++r) put(r, at, V{}, V{});
    // A step has two vectors of queries, also where one of them is beyond the last query.
    if (in_steps && at % width == 0 && at + lanes<V> >= a.queries) {
      for (int64_t r = 0; r < n_; ++r) put(r, at + lanes<V>, V{}, V{});
    }
  }
  void put(int64_t r, int64_t at, V weight, V slope) {
    if constexpr (in_item > 1) {
      store(&narrow_weights_[r * narrow_row + at].bits, to_bf16(weight));
      store(&narrow_slopes_[r * narrow_row + at].bits, to_bf16(slope));
    } else {
      store(weights_ + r * row + at, weight);
      store(slopes_ + r * row + at, slope);
    }
  }

  // to[key][of size] += rows[key][items of queries] times what the queries have in panels.
  void add_rows(const Item* rows, const Item* panels, int64_t size, C* to, int64_t to_row) {
    const int64_t items = Base::items(a.queries), next = in_item > 1 ? narrow_row / in_item : row;
    for (int64_t c = 0; c < size; c += width) {
      for (int64_t r = 0, count; r < n_; r += count) {
        count = Micro::next_rows(n_ - r);
        // The step with the first one that sees the tile's first key.
        const int64_t query = a.causal ? std::max<int64_t>(0, j_ + r - a.first_query) / in_item : 0;
        const int64_t first = query / Micro::step * Micro::step;
        C* const at = to + r * to_row + c;
        Base::micro_.template multiply<false>(
            count, size - c, items - first,
            Tile<C, Item, Item>{rows + r * next + first, next, panels + c * items + first * width, width, 16 * width,
                                at, to_row, at, to_row});
      }
    }
  }

  // Of weights and slopes in 16 bits: whole lines.
  static constexpr int64_t narrow_row = queries_together + cache_line / int64_t(sizeof(T));

  C *weights_ = nullptr, *slopes_ = nullptr;  // [key][query]
  Item* slope_columns_ = nullptr;
  T *narrow_weights_ = nullptr, *narrow_slopes_ = nullptr;
  alignas(cache_line) C bases_[queries_together], deltas_[queries_together];
};

template <class T, class Item, class Micro>
class Backward {
  using C = Compute<T>;
  using V = Vector<C>;
  enum class Use { grad_keys, grad_values };

 public:
  explicit Backward(const AttentionArgs& args) : a(args) {}

  void run() const {
    const int64_t k_row = round_up(a.size, tile_columns<V>), v_row = round_up(a.value_size, tile_columns<V>);
    const Workspace<C, Use::grad_keys> grad_keys(a.keys * k_row);
    const Workspace<C, Use::grad_values> grad_values(a.keys * v_row);
    const KeySums<C> sums{grad_keys.data(), grad_values.data(), k_row, v_row};
    std::fill_n(sums.k, a.keys * k_row, C(0));
    std::fill_n(sums.v, a.keys * v_row, C(0));
    const int64_t parts = parts_of(a.queries);
    AttentionArgs part = part_of(a, 0), next;
    for (int64_t k = 0; k < a.heads * parts; ++k, part = next) {
      const bool is_last = k + 1 == a.heads * parts;
      if (!is_last) next = part_of(a, k + 1);
      if (is_last && a.next) next = part_of(*a.next, 0);
      part.next = is_last && !a.next ? nullptr : &next;
      BackwardPart<T, Item, Micro>(part).run(sums);
    }
    put_rows(sums.k, k_row, a.size, C(a.scale), a.grad_k);
    put_rows(sums.v, v_row, a.value_size, 1, a.grad_v);
  }

 private:
  // The k-th of all heads' parts.
  static AttentionArgs part_of(const AttentionArgs& a, int64_t k) {
    const int64_t parts = parts_of(a.queries), begin = k % parts * queries_together;
    return a.of_head(k / parts).of_queries(begin, std::min(begin + queries_together, a.queries));
  }

  void put_rows(const C* from, int64_t from_row, int64_t size, C scale, const HeadRows<void*>& to) const {
    T* row = static_cast<T*>(to.data);
    for (int64_t j = 0; j < a.keys; ++j, from += from_row, row += to.row) {
      along_row<V>(0, size, [&](int64_t d, auto v) { v.put(row + d, V(v.get(from + d) * scale)); });
    }
  }

  const AttentionArgs& a;
};

}  // namespace
}  // namespace rusttorch
