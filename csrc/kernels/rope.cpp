#include "rope.h"

#include "runs.h"

namespace rusttorch {
namespace {

// Each lane's neighbour, of pairs.
template <class V>
RT_INLINE V swap_pairs(V v) {
  bits_t<V> other;
  for (int64_t i = 0; i < lanes<V>; ++i) other[i] = word_t<V>(i ^ 1);
  return __builtin_shuffle(v, other);
}
// -1 and 1, in turn.
template <class V>
RT_INLINE V signs() {
  V v;
  for (int64_t i = 0; i < lanes<V>; ++i) v[i] = i % 2 == 0 ? -1 : 1;
  return v;
}

// A single element, as Whole and Part are vectors.
struct One {
  template <class T>
  RT_INLINE Compute<T> get(const T* p) const {
    return widen(*p);
  }
  template <class T>
  RT_INLINE void put(T* p, Compute<T> v) const {
    store_one(p, v);
  }
};

template <bool interleaved, bool inverse, class T, class A>
struct Rope {
  using V = Vector<Compute<T>>;

  // f(i, at) for vectors, then for narrower ones (40 is half a head of 80), and for what is left.
  template <class F>
  RT_INLINE static void along(int64_t n, F f) {
    using N = Vector<Compute<T>, narrow_bytes>;
    int64_t i = 0;
    for (; i + lanes<V> <= n; i += lanes<V>) f(i, Whole<V>());
    for (; i + lanes<N> <= n; i += lanes<N>) f(i, Whole<N>());
    if constexpr (is_narrow<T> && !interleaved) {  // of which there are no masked loads
      for (; i < n; ++i) f(i, One());
    } else if (i < n) {
      f(i, Part<N>{n - i});
    }
  }

  RT_INLINE static void row(const RopeArgs& a, const T* x, const A* cos, const A* sin, T* y) {
    if constexpr (interleaved) {
      along(a.rotated, [&](int64_t i, auto at) {
        using U = decltype(at.get(x));
        const U v = at.get(x + i), c = at.get(cos + i), s = at.get(sin + i);
        at.put(y + i,
               inverse ? U(v * c - signs<U>() * swap_pairs(U(v * s))) : U(v * c + signs<U>() * (swap_pairs(v) * s)));
      });
    } else {
      const int64_t half = a.rotated / 2;
      along(half, [&](int64_t i, auto at) {
        using U = decltype(at.get(x));
        const int64_t j = i + half;
        const U v = at.get(x + i), w = at.get(x + j);
        const U cv = at.get(cos + i), cw = at.get(cos + j), sv = at.get(sin + i), sw = at.get(sin + j);
        at.put(y + i, inverse ? U(v * cv + w * sw) : U(v * cv - w * sv));
        at.put(y + j, inverse ? U(w * cw - v * sv) : U(w * cw + v * sw));
      });
    }
    if (x != y) std::copy(x + a.rotated, x + a.dim, y + a.rotated);
  }

  static void rows(const RopeArgs& a) {
    const auto* x = static_cast<const T*>(a.x);
    const auto *cos = static_cast<const A*>(a.cos), *sin = static_cast<const A*>(a.sin);
    auto* y = static_cast<T*>(a.y);
    int64_t k = a.begin % a.sizes[2], j = a.begin / a.sizes[2] % a.sizes[1], i = a.begin / a.sizes[2] / a.sizes[1];
    const auto at = [&](const int64_t (&steps)[3]) { return i * steps[0] + j * steps[1] + k * steps[2]; };
    for (int64_t r = a.begin; r < a.end; ++r) {
      const int64_t angle = at(a.angle_steps);
      row(a, x + at(a.x_steps), cos + angle, sin + angle, y + at(a.y_steps));
      if (++k < a.sizes[2]) continue;
      k = 0;
      if (++j < a.sizes[1]) continue;
      j = 0;
      ++i;
    }
  }
};

void turn(const RopeArgs& a) {
  with_type<floats>(a.dtype, [&](auto t) {
    using T = decltype(t);
    const auto run = [&]<class A>() {
      if (a.interleaved) return a.inverse ? Rope<true, true, T, A>::rows(a) : Rope<true, false, T, A>::rows(a);
      a.inverse ? Rope<false, true, T, A>::rows(a) : Rope<false, false, T, A>::rows(a);
    };
    is_narrow<T>&& a.float_angles ? run.template operator()<Compute<T>>() : run.template operator()<T>();
  });
}

}  // namespace
}  // namespace rusttorch

RUSTTORCH_DEFINE_TABLE(rope, RopeArgs, {&turn})
