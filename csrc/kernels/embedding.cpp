#include "embedding.h"

#include "runs.h"

namespace rusttorch {
namespace {

// Rows to come are fetched meanwhile: where they are, only the pairs say.
constexpr int64_t pairs_ahead = 12;

// Not by memset, which on pages that are new from the kernel is slower than stock's loop.
void write_zeros(char* to, char* end, bool stream) {
  using V = Vector<float>;
  constexpr int64_t size = sizeof(V);
  if (stream && end - to > 2 * size) {
    const int64_t head = -reinterpret_cast<intptr_t>(to) & (size - 1);
    std::memset(to, 0, size_t(head));
    for (to += head; to + size <= end; to += size) stream_out(reinterpret_cast<float*>(to), V{});
  }
  for (; to + size <= end; to += size) store(to, V{});
  std::memset(to, 0, size_t(end - to));
}

// f of n, which is from 1 to most, as a constant.
template <int64_t most, class F>
RT_INLINE void with_number(int64_t n, F f) {
  if constexpr (most > 1) {
    if (n < most) return with_number<most - 1>(n, f);
  }
  f(std::integral_constant<int64_t, most>());
}

template <class T>
class Rows {
  using C = Compute<T>;
  using V = Vector<C>;

 public:
  explicit Rows(const RowsArgs& a) : a_(a) {}

  // f(the pairs of a row), for those that have some; the others are zeros.
  template <class F>
  void each_row(F f) const {
    const RowPair* pair = std::lower_bound(a_.pairs, all_, a_.begin, [](RowPair p, int64_t row) { return p.to < row; });
    int64_t done = a_.begin;
    while (pair != all_ && pair->to < a_.end) {
      const RowPair* next = pair + 1;
      while (next != all_ && next->to == pair->to) ++next;
      zeros(done, pair->to);
      f(pair, next);
      done = pair->to + 1;
      pair = next;
    }
    zeros(done, a_.end);
    if (a_.stream) _mm_sfence();
  }

  // All of one row, several vectors side by side; less than a vector is one that reaches back, into those beside it.
  template <bool scaled>
  void add(const RowPair* begin, const RowPair* end) const {
    T* const y = out_ + int64_t(begin->to) * a_.width;
    if (a_.width < lanes<V>) {
      V s[1];
      sum<scaled, 1>(begin, end, 0, Part<V>{a_.width}, s);
      return store_part(y, s[0], a_.width);
    }
    int64_t c = 0;
    const auto sum_to = [&](auto n) {
      V s[n()];
      sum<scaled, n()>(begin, end, c, Whole<V>(), s);
      for (int64_t k = 0; k < n(); ++k) store(y + column(c, k), s[k]);
      c += n() * lanes<V>;
    };
    constexpr int64_t most = 8;
    while (a_.width - c >= 2 * most * lanes<V>) sum_to(std::integral_constant<int64_t, most>());
    while (a_.width - c > most * lanes<V>) sum_to(std::integral_constant<int64_t, most / 2>());
    with_number<most>((a_.width - c + lanes<V> - 1) / lanes<V>, sum_to);
  }

  template <class Integer>
  void largest(const RowPair* begin, const RowPair* end) const {
    const int64_t at = int64_t(begin->to) * a_.width;
    along_row<V>(0, a_.width, [&](int64_t c, auto count) {
      V m = get(row(begin) + c, count);
      bits_t<V> from = bits_t<V>{} + word_t<V>(begin->from);
      for (const RowPair* p = begin + 1; p != end; ++p) {
        fetch<1>(p, c);
        const V x = get(row(p) + c, count);
        from = x > m ? bits_t<V>{} + word_t<V>(p->from) : from;
        m = select(x > m, x, m);
      }
      count.put(out_ + at + c, m);
      if (!a_.which) return;
      word_t<V> words[lanes<V>];
      store(words, from);
      const int64_t columns = std::min(lanes<V>, a_.width - c);
      std::copy_n(words, columns, static_cast<Integer*>(a_.which) + at + c);
    });
  }

  void dot(const RowPair* pair) const {
    const T* const x = row(pair);
    const T* const y = static_cast<const T*>(a_.other) + int64_t(pair->to) * a_.width;
    V s[vectors<V>] = {};
    int64_t i = 0;
    for (; i + vectors<V> * lanes<V> <= a_.width; i += vectors<V> * lanes<V>) {
      fetch<vectors<V>>(pair, i);
      for (int64_t k = 0; k < vectors<V>; ++k) s[k] += load<V>(x + i + k * lanes<V>) * load<V>(y + i + k * lanes<V>);
    }
    along_row<V>(i, a_.width, [&](int64_t c, auto count) { s[0] += count.get(x + c) * count.get(y + c); });
    store_one(out_ + (pair - a_.pairs), sum_lanes(fold_vectors(s, [](V a, V b) { return a + b; })));
  }

 private:
  const RowsArgs& a_;
  const T* const in_ = static_cast<const T*>(a_.in);
  T* const out_ = static_cast<T*>(a_.out);
  const RowPair* const all_ = a_.pairs + a_.n;
  const int64_t last_vector_ = a_.rows * a_.width - lanes<V>;

  const T* row(const RowPair* pair) const { return in_ + int64_t(pair->from) * a_.width; }

  // n vectors from the column c on.
  template <int64_t n>
  RT_INLINE void fetch(const RowPair* pair, int64_t c) const {
    if (all_ - pair <= pairs_ahead) return;
    const char* const p = reinterpret_cast<const char*>(row(pair + pairs_ahead) + c);
    for (int64_t i = 0; i < n * lanes<V> * int64_t(sizeof(T)); i += 64) __builtin_prefetch(p + i);
  }

  void zeros(int64_t from, int64_t to) const {
    if (a_.adds || from == to) return;
    zeros(a_.out, from * a_.width, to * a_.width, sizeof(T));
    if (a_.which) zeros(a_.which, from * a_.width, to * a_.width, element_size(a_.integer));
  }
  void zeros(void* p, int64_t from, int64_t to, int64_t size) const {
    write_zeros(static_cast<char*>(p) + from * size, static_cast<char*>(p) + to * size, a_.stream);
  }

  // A part of a vector is read as a whole one, which is many times as fast, where memory goes on.
  template <class Count>
  RT_INLINE V get(const T* x, Count count) const {
    return x - in_ <= last_vector_ ? load<V>(x) : count.get(x);
  }

  // Where the k-th vector from c on begins: the last one ends with the row.
  int64_t column(int64_t c, int64_t k) const { return std::min(c + k * lanes<V>, a_.width - lanes<V>); }

  // Of some vectors of a row, from the column c on.
  template <bool scaled, int64_t n, class Count>
  RT_INLINE void sum(const RowPair* begin, const RowPair* end, int64_t c, Count count, V* s) const {
    const bool is_part = !std::is_same_v<Count, Whole<V>>;
    int64_t at[n];
    for (int64_t k = 0; k < n; ++k) at[k] = is_part ? 0 : column(c, k);
    const T* const y = out_ + int64_t(begin->to) * a_.width;
    for (int64_t k = 0; k < n; ++k) s[k] = a_.adds ? count.get(y + at[k]) : V{};
    for (const RowPair* p = begin; p != end; ++p) {
      fetch<n>(p, c);
      const T* const x = row(p);
      const C scale = scaled ? static_cast<const C*>(a_.scales)[p - a_.pairs] : C(1);
      for (int64_t k = 0; k < n; ++k) {
        const V v = is_part ? get(x, count) : load<V>(x + at[k]);
        s[k] += scaled ? v * scale : v;
      }
    }
    if (a_.averages) {
      for (int64_t k = 0; k < n; ++k) s[k] /= C(end - begin);
    }
  }
};

void add_rows(const RowsArgs& a) {
  with_type<floats>(a.dtype, [&](auto t) {
    const Rows<decltype(t)> rows(a);
    const auto by = [&]<bool scaled>() {
      rows.each_row([&](const RowPair* begin, const RowPair* end) { rows.template add<scaled>(begin, end); });
    };
    a.scales ? by.template operator()<true>() : by.template operator()<false>();
  });
}

void largest_rows(const RowsArgs& a) {
  with_type<floats>(a.dtype, [&](auto t) {
    const Rows<decltype(t)> rows(a);
    const auto by = [&]<class Integer>() {
      rows.each_row([&](const RowPair* begin, const RowPair* end) { rows.template largest<Integer>(begin, end); });
    };
    a.integer == Dtype::i32 ? by.template operator()<int32_t>() : by.template operator()<int64_t>();
  });
}

void dot_rows(const RowsArgs& a) {
  with_type<floats>(a.dtype, [&](auto t) {
    const Rows<decltype(t)> rows(a);
    for (int64_t k = a.begin; k < a.end; ++k) rows.dot(a.pairs + k);
  });
}

}  // namespace
}  // namespace rusttorch

RUSTTORCH_DEFINE_TABLE(embedding, RowsArgs, {&add_rows}, {&largest_rows}, {&dot_rows})
