#include "pool.h"

#include <cstring>
#include <utility>

#include "runs.h"

namespace rusttorch {
namespace {

// An index in a plane, as wide as what is computed with.
template <class V>
RT_INLINE bits_t<V> load_index(const int64_t* from) {
  using U = bits_t<V>;
  if constexpr (sizeof(lane_t<V>) == 8) {
    return load<U>(from);
  } else {
    using Half = Vector<uint32_t, sizeof(V) / 2>;
    const Half halves[2] = {
        __builtin_convertvector(load<Vector<int64_t, sizeof(V)>>(from), Half),
        __builtin_convertvector(load<Vector<int64_t, sizeof(V)>>(from + lanes<V> / 2), Half),
    };
    return load<U>(halves);
  }
}
template <class V>
RT_INLINE void store_index(int64_t* to, const bits_t<V>& index) {
  if constexpr (sizeof(lane_t<V>) == 8) {
    store(to, index);
  } else {
    using Half = Vector<uint32_t, sizeof(V) / 2>;
    Half halves[2];
    std::memcpy(halves, &index, sizeof halves);
    store(to, __builtin_convertvector(halves[0], Vector<int64_t, sizeof(V)>));
    store(to + lanes<V> / 2, __builtin_convertvector(halves[1], Vector<int64_t, sizeof(V)>));
  }
}
template <class V>
RT_INLINE void store_index_part(int64_t* to, const bits_t<V>& index, int64_t count) {
  int64_t whole[lanes<V>];
  store_index<V>(whole, index);
  std::copy_n(whole, count, to);
}

// Whether stock takes v for the largest so far: the last NaN, else the first of equals.
template <class V>
RT_INLINE auto takes_over(V v, V best) {
  return (v > best) | (v != v);
}

template <class V>
RT_INLINE V every_other(V a, V b, int64_t first) {
  bits_t<V> from;
  for (int64_t i = 0; i < lanes<V>; ++i) from[i] = word_t<V>(2 * i + first);
  return __builtin_shuffle(a, b, from);
}
// A half of a's lanes in turn with b's.
template <class V>
RT_INLINE V in_turn(V a, V b, int64_t first) {
  bits_t<V> from;
  for (int64_t i = 0; i < lanes<V>; ++i) from[i] = word_t<V>(first + i / 2 + i % 2 * lanes<V>);
  return __builtin_shuffle(a, b, from);
}

// Elements that are fetched before they are read, since rows of windows are no stream that a CPU would see.
template <class T>
constexpr int64_t ahead = 4096 / sizeof(T);

// A row of the input in lines: the element i is number (i + padding) / stride of line (i + padding) % stride.
template <class C>
struct Lines {
  C* data;
  int64_t pitch;
  const PoolDim& dim;

  // Where the row's elements first, first + stride, ... are.
  RT_INLINE C* from(int64_t first) const {
    const int64_t p = first + dim.padding;
    return data + p % dim.stride * pitch + p / dim.stride;
  }

  // With `fill` behind the last.
  template <class T>
  RT_INLINE void split(const T* x, C fill) const {
    using V = Vector<C>;
    constexpr int64_t L = lanes<V>;
    const int64_t n = dim.in, stride = dim.stride;
    const auto get = [&](int64_t i) {
      __builtin_prefetch(x + i + ahead<T>);
      return i + L <= n ? load<V>(x + i) : load_part<V>(x + i, std::max<int64_t>(0, n - i), fill);
    };
    if (stride == 1) {
      C* to = from(0);
      for (int64_t i = 0; i < n; i += L) store(to + i, get(i));
    } else if (stride == 2) {
      C *even = from(0), *odd = from(1);
      for (int64_t i = 0; i < n; i += 2 * L) {
        const V a = get(i), b = get(i + L);
        store(even + i / 2, every_other(a, b, 0));
        store(odd + i / 2, every_other(a, b, 1));
      }
    } else {
      for (int64_t first = 0; first < std::min(stride, n); ++first) {
        C* to = from(first);
        for (int64_t i = first; i < n; i += stride) *to++ = widen(x[i]);
      }
    }
  }
};

// A row of numbers, of which sum(first, j) makes those that are `stride` apart, from number first + j stride on.
template <class V, class T, class Sum>
RT_INLINE void make_row(T* y, int64_t n, int64_t stride, Sum sum) {
  constexpr int64_t L = lanes<V>;
  const auto put = [&](int64_t i, const V& v) {
    if (i + L <= n) {
      store(y + i, v);
    } else if (i < n) {
      store_part(y + i, v, n - i);
    }
  };
  if (stride == 1) {
    for (int64_t i = 0; i < n; i += L) put(i, sum(0, i));
  } else if (stride == 2) {
    for (int64_t i = 0; i < n; i += 2 * L) {
      const V even = sum(0, i / 2), odd = sum(1, i / 2);
      put(i, in_turn(even, odd, 0));
      put(i + L, in_turn(even, odd, L / 2));
    }
  } else {
    for (int64_t first = 0; first < std::min(stride, n); ++first) {
      for (int64_t i = first, j = 0; i < n; j += L) {
        lane_t<V> part[L];
        store(part, sum(first, j));
        for (int64_t l = 0; l < L && i < n; ++l, i += stride) store_one(y + i, part[l]);
      }
    }
  }
}

// A thread's scratch, handed out in pieces.
struct Scratch {
  char* next;

  template <class T>
  T* take(int64_t count) {
    T* const piece = reinterpret_cast<T*>(next);
    next += count * int64_t(sizeof(double));
    return piece;
  }
};

template <class C>
RT_INLINE C divisor(const PoolArgs& a, int64_t oh, int64_t ow) {
  if (a.divisor) return C(a.divisor);
  return C(a.height.count(oh, a.count_include_pad) * a.width.count(ow, a.count_include_pad));
}

// One channel: neighbours of the output side by side.
template <class T>
struct ForwardPlanes {
  using C = Compute<T>;
  using V = Vector<C>;
  using Word = word_t<V>;

  ForwardPlanes(const PoolArgs& args, C padding) : a(args), fill(padding) {
    ring = scratch.take<C>(sizes.rows * sizes.lines * sizes.pitch);
    elements = scratch.take<int64_t>(a.width.kernel);
    std::fill_n(ring, sizes.rows * sizes.lines * sizes.pitch, fill);
    const PoolDim& w = a.width;
    for (int64_t k = 0; k < w.kernel; ++k) {
      const int64_t p = k * w.dilation;
      elements[k] = w.irregular ? k * sizes.pitch : p % w.stride * sizes.pitch + p / w.stride;
    }
  }

  C* row(int64_t r) const { return ring + r % sizes.rows * sizes.lines * sizes.pitch; }

  template <class From>
  void pack(const From* x, C* to) const {
    const PoolDim& w = a.width;
    if (!w.irregular) return Lines<C>{to, sizes.pitch, w}.split(x, fill);
    for (int64_t o = 0; o < w.out; ++o) {
      const int64_t begin = w.begin(o), count = w.end(o) - begin;
      for (int64_t k = 0; k < count; ++k) to[k * sizes.pitch + o] = widen(x[begin + k]);
    }
  }

  const PoolArgs& a;
  const C fill;
  const PoolForwardRows sizes{a, a.index != nullptr};
  Scratch scratch{static_cast<char*>(a.scratch)};
  C* ring;
  int64_t* elements;  // where the k-th elements of all windows are, in a row
};

template <class T>
struct LargestOfPlanes : ForwardPlanes<T> {
  using Base = ForwardPlanes<T>;
  using typename Base::C, typename Base::V, typename Base::Word;
  using U = bits_t<V>;
  using Base::a, Base::elements, Base::row, Base::scratch;

  explicit LargestOfPlanes(const PoolArgs& args) : Base(args, lowest<C>) {
    first = scratch.template take<Word>(a.width.out + pool_slack);
    base = scratch.template take<Word>(a.width.out + pool_slack);
    rows = scratch.template take<C*>(a.height.kernel);
    for (int64_t o = 0; o < a.width.out; ++o) {
      first[o] = Word(a.width.first(o));
      base[o] = Word(a.width.begin(o));
    }
  }

  void plane(const T* x, T* y, int64_t* index) const {
    int64_t next = 0;
    for (int64_t o = 0; o < a.height.out; ++o, y += a.width.out, index += a.width.out) {
      // One window ahead: what has just been written is slow to read at other places.
      const int64_t end_of_next = a.height.end(std::min(o + 1, a.height.out - 1));
      for (next = std::max(next, a.height.begin(o)); next < end_of_next; ++next)
        Base::pack(x + next * a.width.in, row(next));
      const int64_t begin = a.height.first(o), end = a.height.end(o);
      for (int64_t r = begin, k = 0; r < end; r += a.height.dilation) rows[k++] = row(r);
      int64_t c = 0;
      for (; c + lanes<V> <= a.width.out; c += lanes<V>) {
        const auto [best, at] = largest(begin, end, c);
        store(y + c, best);
        store_index<V>(index + c, at);
      }
      if (const int64_t rest = a.width.out - c) {
        const auto [best, at] = largest(begin, end, c);
        store_part(y + c, best, rest);
        store_index_part<V>(index + c, at, rest);
      }
    }
  }

 private:
  RT_INLINE std::pair<V, U> largest(int64_t begin, int64_t end, int64_t c) const {
    const U from = load<U>(base + c);
    V best = splat<V>(lowest<C>);
    U at = load<U>(first + c) + Word(begin * a.width.in);
    C* const* numbers = rows;
    for (int64_t r = begin; r < end; r += a.height.dilation, ++numbers) {
      for (int64_t k = 0; k < a.width.kernel; ++k) {
        const V v = load<V>(*numbers + c + elements[k]);
        const auto take = takes_over(v, best);
        best = select(take, v, best);
        at = select(take, from + Word(r * a.width.in + k * a.width.dilation), at);
      }
    }
    return {best, at};
  }

  Word *first, *base;
  C** rows;  // of a window
};

// First each column of a row of windows is summed up, then these sums.
template <class T>
struct MeansOfPlanes : ForwardPlanes<T> {
  using Base = ForwardPlanes<T>;
  using Base::a, Base::elements, Base::row, Base::scratch;
  using typename Base::C, typename Base::V;

  explicit MeansOfPlanes(const PoolArgs& args) : Base(args, 0) {
    columns = scratch.template take<C>(a.width.out + pool_slack);
    sums = scratch.template take<C>(a.width.in + pool_slack);
    for (int64_t o = 0; o < a.width.out; ++o) columns[o] = C(a.width.count(o, a.count_include_pad));
  }

  void plane(const T* x, T* y) const {
    int64_t next = 0;
    for (int64_t o = 0; o < a.height.out; ++o, y += a.width.out) {
      for (; next <= std::min(o + 1, a.height.out - 1); ++next) {  // one ahead, as above
        sum_columns(x, a.height.first(next), a.height.end(next));
        Base::pack(sums, row(next));
      }
      const C rows = C(a.height.count(o, a.count_include_pad));
      const C* const from = row(o);
      const auto mean = [&](int64_t c) {
        V sum = {};
        for (int64_t k = 0; k < a.width.kernel; ++k) sum += load<V>(from + c + elements[k]);
        // 0 is added as in stock: a divisor below 0 makes no -0.
        return V{} + sum / (a.divisor ? V{} + C(a.divisor) : load<V>(columns + c) * rows);
      };
      int64_t c = 0;
      for (; c + lanes<V> <= a.width.out; c += lanes<V>) store(y + c, mean(c));
      if (c < a.width.out) store_part(y + c, mean(c), a.width.out - c);
    }
  }

 private:
  // A few rows at a time: more of them are no stream that a CPU would see.
  void sum_columns(const T* x, int64_t begin, int64_t end) const {
    constexpr int64_t at_once = 4;
    const int64_t n = a.width.in;
    for (int64_t r = begin; r < end; r += at_once) {
      const int64_t last = std::min(r + at_once, end);
      const auto add = [&](int64_t i, auto get) {
        V sum = r > begin ? load<V>(sums + i) : V{};
        for (int64_t k = r; k < last; ++k) sum += get(x + k * n + i);
        store(sums + i, sum);
      };
      int64_t i = 0;
      for (; i + lanes<V> <= n; i += lanes<V>) {
        add(i, [](const T* p) {
          __builtin_prefetch(p + ahead<T>);
          return load<V>(p);
        });
      }
      if (i < n) add(i, [&](const T* p) { return load_part<V>(p, n - i, 0); });
    }
  }

  C *columns, *sums;
};

// The numbers at so many places, one in each lane. (AVX-512's own gather took 1.5 times as long on a Zen 4.)
template <class V, class T>
RT_INLINE V gather(const T* x, const int32_t* at) {
  V v;
  for (int64_t l = 0; l < lanes<V>; ++l) v[l] = widen(x[at[l]]);
  return v;
}

// One channel, whose planes have few columns: a vector's lanes are the outputs that come next, in whichever rows and
// planes. Of windows that all are inside.
template <class T, bool largest>
void narrow_planes(const PoolArgs& a) {
  using C = Compute<T>;
  using V = Vector<C>;
  constexpr int64_t L = lanes<V>;
  const PoolDim &h = a.height, &w = a.width;
  const int64_t in = h.in * w.in, all = (a.end - a.begin) * h.out * w.out;
  const int32_t next_row = int32_t(h.stride * w.in), row_end = int32_t(w.out * w.stride);
  const T* x = static_cast<const T*>(a.in) + a.begin * in;
  T* y = static_cast<T*>(a.out) + a.begin * h.out * w.out;
  int64_t* index = a.index + a.begin * h.out * w.out;
  int32_t column = 0, row = 0;  // where the next window begins in its row, and its row in the plane
  for (int64_t o = 0; o < all; o += L) {
    const int64_t count = std::min(L, all - o);
    const T* const plane = x;
    int32_t at[L], here[L];  // where the windows begin, from the first one's plane on and in their own
    for (int64_t l = 0; l < L; ++l) {
      here[l] = row + column;
      at[l] = l < count ? int32_t(x - plane) + here[l] : at[0];
      column += int32_t(w.stride);
      if (column == row_end) {
        column = 0;
        row += next_row;
        if (row == int32_t(h.out) * next_row) {
          row = 0;
          x += in;
        }
      }
    }
    V best = largest ? splat<V>(lowest<C>) : V{};
    bits_t<V> where{}, first;
    for (int64_t l = 0; l < L; ++l) first[l] = word_t<V>(here[l]);
    if constexpr (largest) where = first;
    for (int64_t r = 0; r < h.kernel; ++r) {
      for (int64_t c = 0; c < w.kernel; ++c) {
        const int64_t step = r * h.dilation * w.in + c * w.dilation;
        const V v = gather<V>(plane + step, at);
        if constexpr (largest) {
          const auto take = takes_over(v, best);
          best = select(take, v, best);
          where = select(take, bits_t<V>(first + word_t<V>(step)), where);
        } else {
          best += v;
        }
      }
    }
    // (Of a sum of zeros over a divisor below zero stock makes 0, not -0.)
    if constexpr (!largest) best = best / C(a.divisor ? a.divisor : h.kernel * w.kernel) + V{};
    if (count == L) {
      store(y + o, best);
      if constexpr (largest) store_index<V>(index + o, where);
    } else {
      store_part(y + o, best, count);
      if constexpr (largest) store_index_part<V>(index + o, where, count);
    }
  }
}

// With which indices are written too.
template <class V>
struct WholeWithIndex : Whole<V> {
  RT_INLINE void put_index(int64_t* p, const bits_t<V>& index) const { store_index<V>(p, index); }
};
template <class V>
struct PartWithIndex : Part<V> {
  RT_INLINE void put_index(int64_t* p, const bits_t<V>& index) const { store_index_part<V>(p, index, this->count); }
};

// f for the channels of a pixel, a few vectors side by side and the last part of one: f(their count, the first channel,
// how a vector is read and written).
template <class V, class F>
RT_INLINE void each_channels(int64_t n, F f) {
  int64_t c = 0;
  const auto groups_of = [&]<int64_t count>(std::integral_constant<int64_t, count> group) {
    for (; c + count * lanes<V> <= n; c += count * lanes<V>) f(group, c, WholeWithIndex<V>());
  };
  groups_of(std::integral_constant<int64_t, 4>());
  groups_of(std::integral_constant<int64_t, 1>());
  if (c < n) f(std::integral_constant<int64_t, 1>(), c, PartWithIndex<V>{{n - c}});
}

// Several channels, side by side: a row of the output.
template <class T>
void largest_of_channels(const PoolArgs& a, int64_t row) {
  using V = Vector<Compute<T>>;
  using U = bits_t<V>;
  using Word = word_t<V>;
  const PoolDim &h = a.height, &w = a.width;
  const int64_t oh = row % h.out, pixel = a.channels, top = h.first(oh), bottom = h.end(oh);
  const T* x = static_cast<const T*>(a.in) + row / h.out * h.in * w.in * pixel;
  for (int64_t ow = 0; ow < w.out; ++ow) {
    const int64_t to = (row * w.out + ow) * pixel, left = w.first(ow), right = w.end(ow);
    each_channels<V>(pixel, [&]<int64_t count>(std::integral_constant<int64_t, count>, int64_t c, auto at) {
      V best[count];
      U where[count];
      for (int64_t k = 0; k < count; ++k) {
        best[k] = splat<V>(lowest<Compute<T>>);
        where[k] = U{} + Word(top * w.in + left);
      }
      for (int64_t r = top; r < bottom; r += h.dilation) {
        for (int64_t i = left; i < right; i += w.dilation) {
          const T* const from = x + (r * w.in + i) * pixel + c;
          const U here = U{} + Word(r * w.in + i);
          for (int64_t k = 0; k < count; ++k) {
            const V v = at.get(from + k * lanes<V>);
            const auto take = takes_over(v, best[k]);
            best[k] = select(take, v, best[k]);
            where[k] = select(take, here, where[k]);
          }
        }
      }
      for (int64_t k = 0; k < count; ++k) {
        at.put(static_cast<T*>(a.out) + to + c + k * lanes<V>, best[k]);
        at.put_index(a.index + to + c + k * lanes<V>, where[k]);
      }
    });
  }
}
template <class T>
void means_of_channels(const PoolArgs& a, int64_t row) {
  using V = Vector<Compute<T>>;
  const PoolDim &h = a.height, &w = a.width;
  const int64_t oh = row % h.out, pixel = a.channels, top = h.first(oh), bottom = h.end(oh);
  const T* x = static_cast<const T*>(a.in) + row / h.out * h.in * w.in * pixel;
  for (int64_t ow = 0; ow < w.out; ++ow) {
    T* const y = static_cast<T*>(a.out) + (row * w.out + ow) * pixel;
    const int64_t left = w.first(ow), right = w.end(ow);
    const auto by = divisor<Compute<T>>(a, oh, ow);
    each_channels<V>(pixel, [&]<int64_t count>(std::integral_constant<int64_t, count>, int64_t c, auto at) {
      V sum[count] = {};
      for (int64_t r = top; r < bottom; ++r) {
        for (int64_t i = left; i < right; ++i) {
          const T* const from = x + (r * w.in + i) * pixel + c;
          for (int64_t k = 0; k < count; ++k) sum[k] += at.get(from + k * lanes<V>);
        }
      }
      for (int64_t k = 0; k < count; ++k) at.put(y + c + k * lanes<V>, V(sum[k] / by));
    });
  }
}

// Of the largest: to where the indices say, in their order, as in stock. What is no place in the plane is left out.
template <class T>
void scatter(const PoolArgs& a, const T* grad, const int64_t* index, T* y) {
  const uint64_t in = uint64_t(a.height.in * a.width.in);
  const int64_t out = a.height.out * a.width.out, pixel = a.channels;
  std::memset(static_cast<void*>(y), 0, size_t(in * pixel) * sizeof(T));
  const auto add = [&](int64_t o, int64_t c) {
    const uint64_t at = uint64_t(index[o + c]);
    if (at >= in) return;
    T& to = y[int64_t(at) * pixel + c];
    store_one(&to, widen(to) + widen(grad[o + c]));
  };
  if (pixel == 1) {
    for (int64_t o = 0; o < out; ++o) add(o, 0);
    return;
  }
  for (int64_t o = 0; o < out * pixel; o += pixel) {
    for (int64_t c = 0; c < pixel; ++c) add(o, c);
  }
}

// Of a mean each element's gradient is summed over the windows that it is in, in their order.
template <class T>
struct MeansOfPlanesBackward {
  using C = Compute<T>;
  using V = Vector<C>;

  explicit MeansOfPlanesBackward(const PoolArgs& args) : a(args) {
    Scratch scratch{static_cast<char*>(a.scratch)};
    const PoolDim& w = a.width;
    grads = scratch.take<C>(sizes.rows * sizes.pitch);
    columns = scratch.take<C>(w.out + pool_slack);
    shifts = scratch.take<int64_t>(w.kernel);
    ends = scratch.take<int64_t>(w.stride + 1);
    std::fill_n(grads, sizes.rows * sizes.pitch, 0);
    for (int64_t o = 0; o < w.out; ++o) columns[o] = C(w.count(o, a.count_include_pad));
    int64_t count = 0;
    for (int64_t first = 0; first < w.stride; ++first) {
      ends[first] = count;
      for (int64_t k = w.kernel - 1; k >= 0; --k) {
        const int64_t p = first + w.padding - k;
        if (p % w.stride == 0) shifts[count++] = w.overlap() + p / w.stride;
      }
    }
    ends[w.stride] = count;
  }

  void plane(const T* grad, T* y) const {
    const PoolDim &h = a.height, &w = a.width;
    int64_t next = 0;
    PoolDim::Windows before{-1, -1};
    for (int64_t r = 0; r < h.in; ++r, y += w.in) {
      const auto windows = h.windows_with(r);
      if (windows == before) {
        std::copy_n(y - w.in, w.in, y);
        continue;
      }
      before = windows;
      for (; next <= std::min(windows.last + 1, h.out - 1); ++next) pack(grad, next);  // one ahead, as above
      make_row<V>(y, w.in, w.stride, [&](int64_t first, int64_t j) {
        V sum = {};
        for (int64_t o = windows.first; o <= windows.last; ++o) {
          const C* const from = row(o) + j;
          for (int64_t n = ends[first]; n < ends[first + 1]; ++n) sum += load<V>(from + shifts[n]);
        }
        return sum;
      });
    }
  }

 private:
  C* row(int64_t o) const { return grads + o % sizes.rows * sizes.pitch; }

  // A row of the output's gradient over the divisors, behind room for the windows that would be before the first.
  void pack(const T* grad, int64_t o) const {
    const int64_t n = a.width.out;
    C* const to = row(o) + a.width.overlap();
    const C rows = C(a.height.count(o, a.count_include_pad));
    const auto part = [&](V g, int64_t c) { return a.divisor ? g / C(a.divisor) : g / (load<V>(columns + c) * rows); };
    int64_t c = 0;
    for (; c + lanes<V> <= n; c += lanes<V>) store(to + c, part(load<V>(grad + o * n + c), c));
    if (c < n) store_part(to + c, part(load_part<V>(grad + o * n + c, n - c, 0), c), n - c);
  }

  const PoolArgs& a;
  const PoolBackwardRows sizes{a};
  C *grads, *columns;
  int64_t *shifts, *ends;
};

template <class T>
void means_of_channels_backward(const PoolArgs& a, const Compute<T>* parts, const T* grad, T* y) {
  using V = Vector<Compute<T>>;
  const PoolDim &h = a.height, &w = a.width;
  const int64_t pixel = a.channels;
  for (int64_t r = 0; r < h.in; ++r) {
    const auto rows = h.windows_with(r);
    for (int64_t i = 0; i < w.in; ++i, y += pixel) {
      const auto columns = w.windows_with(i);
      each_channels<V>(pixel, [&]<int64_t count>(std::integral_constant<int64_t, count>, int64_t c, auto at) {
        V sum[count] = {};
        for (int64_t oh = rows.first; oh <= rows.last; ++oh) {
          for (int64_t ow = columns.first; ow <= columns.last; ++ow) {
            const T* const from = grad + (oh * w.out + ow) * pixel + c;
            const auto part = parts[oh * w.out + ow];
// Unrolled, so that the sums stay in registers.
#pragma GCC unroll 4
            for (int64_t k = 0; k < count; ++k) sum[k] += at.get(from + k * lanes<V>) * part;
          }
        }
#pragma GCC unroll 4
        for (int64_t k = 0; k < count; ++k) at.put(y + c + k * lanes<V>, sum[k]);
      });
    }
  }
}

template <class F>
void each_image(const PoolArgs& a, F f) {
  const int64_t in = a.height.in * a.width.in * a.channels, out = a.height.out * a.width.out * a.channels;
  for (int64_t i = a.begin; i < a.end; ++i) f(i * in, i * out);
}

template <class T>
struct MaxPool {
  static void run(const PoolArgs& a) {
    if (a.channels > 1) {
      for (int64_t row = a.begin; row < a.end; ++row) largest_of_channels<T>(a, row);
      return;
    }
    if (a.has_narrow_planes()) return narrow_planes<T, true>(a);
    const LargestOfPlanes<T> planes(a);
    each_image(a, [&](int64_t in, int64_t out) {
      planes.plane(static_cast<const T*>(a.in) + in, static_cast<T*>(a.out) + out, a.index + out);
    });
  }
};
template <class T>
struct MaxPoolBackward {
  static void run(const PoolArgs& a) {
    each_image(a, [&](int64_t in, int64_t out) {
      scatter(a, static_cast<const T*>(a.in) + out, a.index + out, static_cast<T*>(a.out) + in);
    });
  }
};
template <class T>
struct AvgPool {
  static void run(const PoolArgs& a) {
    if (a.channels > 1) {
      for (int64_t row = a.begin; row < a.end; ++row) means_of_channels<T>(a, row);
      return;
    }
    if (a.has_narrow_planes()) return narrow_planes<T, false>(a);
    const MeansOfPlanes<T> planes(a);
    each_image(a, [&](int64_t in, int64_t out) {
      planes.plane(static_cast<const T*>(a.in) + in, static_cast<T*>(a.out) + out);
    });
  }
};
template <class T>
struct AvgPoolBackward {
  static void run(const PoolArgs& a) {
    if (a.channels > 1) {
      using C = Compute<T>;
      C* const parts = static_cast<C*>(a.scratch);
      for (int64_t o = 0; o < a.height.out * a.width.out; ++o) {
        parts[o] = 1 / divisor<C>(a, o / a.width.out, o % a.width.out);
      }
      return each_image(a, [&](int64_t in, int64_t out) {
        means_of_channels_backward(a, parts, static_cast<const T*>(a.in) + out, static_cast<T*>(a.out) + in);
      });
    }
    const MeansOfPlanesBackward<T> planes(a);
    each_image(a, [&](int64_t in, int64_t out) {
      planes.plane(static_cast<const T*>(a.in) + out, static_cast<T*>(a.out) + in);
    });
  }
};

template <template <class> class Pool>
void run(const PoolArgs& a) {
  with_type<floats>(a.dtype, [&](auto t) { Pool<decltype(t)>::run(a); });
}

}  // namespace
}  // namespace rusttorch

RUSTTORCH_DEFINE_TABLE(pool, PoolArgs, {&run<MaxPool>, floats}, {&run<MaxPoolBackward>, floats},
                       {&run<AvgPool>, floats}, {&run<AvgPoolBackward>, floats})
