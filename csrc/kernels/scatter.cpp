#include "scatter.h"

#include "runs.h"

namespace rusttorch {
namespace {

constexpr int64_t cached = 1 << 14;  // bytes

// Rounded to T after each, as in stock.
template <class T>
RT_INLINE void add_one(T* to, T x) {
  store_one(to, widen(*to) + widen(x));
}

template <class T>
class Scatter {
  using V = Vector<Compute<T>>;

 public:
  explicit Scatter(const ScatterArgs& a) : a_(a) {}

  void by_element() const {
    for (int64_t o = a_.begin; o < a_.end; ++o) {
      const int64_t* const index = a_.index + o * a_.n * a_.inner;
      for (int64_t i = 0; i < a_.n * a_.inner; i += a_.inner) {
        for (int64_t c = a_.first; c < a_.last; ++c) add_one(out(o) + index[i + c] * a_.inner + c, in(o)[i + c]);
      }
    }
  }

  void by_slice() const {
    if (a_.inner == 1) return by_number();
    for (int64_t o = a_.begin; o < a_.end; ++o) {
      for (int64_t i = 0; i < a_.n; ++i) {
        T* const y = out(o) + a_.index[i] * a_.inner;
        const T* const x = in(o) + i * a_.inner;
        int64_t c = a_.first;
        for (; c + lanes<V> <= a_.last; c += lanes<V>) store(y + c, load<V>(y + c) + load<V>(x + c));
        for (; c < a_.last; ++c) add_one(y + c, x[c]);
      }
    }
  }

 private:
  const ScatterArgs& a_;

  const T* in(int64_t o) const { return static_cast<const T*>(a_.in) + o * a_.n * a_.inner; }
  T* out(int64_t o) const { return static_cast<T*>(a_.out) + o * a_.rows * a_.inner; }

  // Of several outer ones at a time, where they fit the cache: what is added to one place waits for the sum before.
  void by_number() const {
    constexpr int64_t several = 4;
    const bool fit = several * a_.rows * int64_t(sizeof(T)) <= cached;
    int64_t o = a_.begin;
    for (; fit && o + several <= a_.end; o += several) numbers_of<several>(o);
    for (; o < a_.end; ++o) numbers_of<1>(o);
  }
  template <int64_t several>
  RT_INLINE void numbers_of(int64_t o) const {
    const T* x[several];
    T* y[several];
    for (int64_t k = 0; k < several; ++k) x[k] = in(o + k), y[k] = out(o + k);
    for (int64_t i = 0; i < a_.n; ++i) {
      const int64_t place = a_.index[i];
      for (int64_t k = 0; k < several; ++k) add_one(y[k] + place, x[k][i]);
    }
  }
};

void scatter_add(const ScatterArgs& a) {
  with_type<numbers>(a.dtype, [&](auto t) { Scatter<decltype(t)>(a).by_element(); });
}
void index_add(const ScatterArgs& a) {
  with_type<numbers>(a.dtype, [&](auto t) { Scatter<decltype(t)>(a).by_slice(); });
}

}  // namespace
}  // namespace rusttorch

RUSTTORCH_DEFINE_TABLE(scatter, ScatterArgs, {&scatter_add}, {&index_add})
