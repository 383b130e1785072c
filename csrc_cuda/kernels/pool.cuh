#pragma once

#include <limits>

#include "../../csrc/kernels/pool.h"
#include "device.cuh"
#include "divide.cuh"

namespace rusttorch {

// A call in 32 bits, which the plan has seen to be enough.
template <class T>
struct DevicePool {
  using C = Compute<T>;

  PoolDimOf<int> height, width;
  int channels;
  bool count_include_pad;
  C given_divisor, inverse;  // 1 / the divisor, if all windows have the same
  const T* in;
  T* out;
  int64_t* index;

  explicit DevicePool(const PoolArgs& a)
      : height(a.height),
        width(a.width),
        channels(int(a.channels)),
        count_include_pad(a.count_include_pad),
        given_divisor(C(a.divisor)),
        inverse(0),
        in(static_cast<const T*>(a.in)),
        out(static_cast<T*>(a.out)),
        index(a.index) {
    const auto alike = [&](const PoolDim& dim) { return dim.has_equal_counts(a.count_include_pad); };
    if (a.divisor) {
      inverse = 1 / given_divisor;
    } else if (alike(a.height) && alike(a.width)) {
      inverse = 1 / (C(a.height.kernel) * C(a.width.kernel));
    }
  }

  __device__ C divisor(int oh, int ow) const {
    if (given_divisor != 0) return given_divisor;
    return C(height.count(oh, count_include_pad)) * C(width.count(ow, count_include_pad));
  }
  // What a window's element gets of its gradient.
  __device__ C share(int oh, int ow) const { return inverse != 0 ? inverse : 1 / divisor(oh, ow); }
};

// How threads stand in front of what is made, which is [images][rows][columns][packs]. Where channels come first an
// image is a plane with one pack, and a column is all that a thread makes side by side.
class PoolGrid {
 public:
  struct Place {
    int image, row, column, pack;
  };

  PoolGrid(int64_t images, int64_t rows, int64_t columns, int64_t packs)
      : threads_(unsigned(images * rows * columns * packs)), rows_(rows), columns_(columns), packs_(packs) {}
  dim3 blocks() const { return dim3((threads_ + block_threads - 1) / block_threads); }

  __device__ unsigned thread() const { return blockIdx.x * block_threads + threadIdx.x; }
  __device__ bool has_thread() const { return thread() < threads_; }
  __device__ Place place() const {
    int pack = int(thread());
    const int pixel = packs_.split(pack);
    return place(pixel, pack);
  }
  __device__ Place place(int pixel, int pack) const {
    Place p{0, columns_.split(pixel), pixel, pack};
    p.image = rows_.split(p.row);
    return p;
  }

 private:
  unsigned threads_;
  Divisor rows_, columns_, packs_;
};

// What is made of a window, for `count` neighbours each: the largest and where it is in its plane, of which the last
// NaN is taken, else the first of equals, as in stock; or the mean.
template <class T, int count>
struct Largest {
  using C = Compute<T>;
  static constexpr C padding = -std::numeric_limits<C>::infinity();

  C value[count];
  int where[count];

  __device__ void begin(int j, int first) {
    value[j] = padding;
    where[j] = first;
  }
  __device__ void take(int j, C v, int at) {
    if (!(v > value[j]) && v == v) return;
    value[j] = v;
    where[j] = at;
  }
  // Of parts of a window.
  static __device__ void add(Largest& a, const Largest& b) {
#pragma unroll
    for (int j = 0; j < count; ++j) {
      const bool is_nan = a.value[j] != a.value[j], other_is = b.value[j] != b.value[j];
      const bool comes_later = b.where[j] > a.where[j];
      const bool is_more = b.value[j] > a.value[j] || (b.value[j] == a.value[j] && !comes_later);
      if (other_is ? !is_nan || comes_later : !is_nan && is_more) {
        a.value[j] = b.value[j];
        a.where[j] = b.where[j];
      }
    }
  }
  __device__ void finish(int, const DevicePool<T>&, int, int) {}
  __device__ void put(const DevicePool<T>& a, int64_t to) const {
    store_values(a.out + to, value);
    int64_t index[count];
#pragma unroll
    for (int j = 0; j < count; ++j) index[j] = where[j];
    store_values(a.index + to, index);
  }
  __device__ void put_one(const DevicePool<T>& a, int64_t to, int j) const {
    a.out[to + j] = narrow<T>(value[j]);
    a.index[to + j] = where[j];
  }
};
template <class T, int count>
struct Mean {
  using C = Compute<T>;
  static constexpr C padding = 0;

  C value[count];

  __device__ void begin(int j, int) { value[j] = 0; }
  __device__ void take(int j, C v, int) { value[j] += v; }
  static __device__ void add(Mean& a, const Mean& b) {
#pragma unroll
    for (int j = 0; j < count; ++j) a.value[j] += b.value[j];
  }
  __device__ void finish(int j, const DevicePool<T>& a, int oh, int ow) { value[j] /= a.divisor(oh, ow); }
  __device__ void put(const DevicePool<T>& a, int64_t to) const { store_values(a.out + to, value); }
  __device__ void put_one(const DevicePool<T>& a, int64_t to, int j) const { a.out[to + j] = narrow<T>(value[j]); }
};

// A window of `count` channels that come last, or of a plane.
template <template <class, int> class Pool, class T, int count>
struct Window {
  const DevicePool<T>& a;
  PoolGrid::Place me;
  int top, bottom, left, right;
  const T* in;

  __device__ Window(const DevicePool<T>& pool, const PoolGrid::Place& place)
      : a(pool),
        me(place),
        top(a.height.first(me.row)),
        bottom(a.height.end(me.row)),
        left(a.width.first(me.column)),
        right(a.width.end(me.column)),
        in(a.in + int64_t(me.image) * a.height.in * a.width.in * a.channels + me.pack * count) {}

  __device__ void begin(Pool<T, count>& made) const {
#pragma unroll
    for (int j = 0; j < count; ++j) made.begin(j, top * a.width.in + left);
  }
  __device__ Pack<T, count> load(int at) const { return load_pack<count>(in + int64_t(at) * a.channels); }
  static __device__ void take(Pool<T, count>& made, const Pack<T, count>& p, int at) {
#pragma unroll
    for (int j = 0; j < count; ++j) made.take(j, widen<T>(p.value[j]), at);
  }
  __device__ void put(Pool<T, count>& made) const {
#pragma unroll
    for (int j = 0; j < count; ++j) made.finish(j, a, me.row, me.column);
    const int pixel = (me.image * a.height.out + me.row) * a.width.out + me.column;
    made.put(a, int64_t(pixel) * a.channels + me.pack * count);
  }
};

// A thread makes one window.
template <template <class, int> class Pool, class T, int count>
__global__ void __launch_bounds__(block_threads) pool_windows(DevicePool<T> a, PoolGrid grid) {
  if (!grid.has_thread()) return;
  const Window<Pool, T, count> window(a, grid.place());
  Pool<T, count> made;
  window.begin(made);
  for (int r = window.top; r < window.bottom; r += a.height.dilation) {
    for (int c = window.left; c < window.right; c += a.width.dilation) {
      const int at = r * a.width.in + c;
      window.take(made, window.load(at), at);
    }
  }
  window.put(made);
}

// Several threads do, of a large one: a run of the tiles is a window, its columns are the packs of channels. Some
// elements are on their way at a time.
template <template <class, int> class Pool, class T, int count>
__global__ void __launch_bounds__(block_threads)
    pool_large_windows(DevicePool<T> a, PoolGrid grid, DeviceTiles tiles, int windows, int packs) {
  constexpr int batch = 4;
  const Place me(tiles, windows, packs);
  const Window<Pool, T, count> window(a, me.inside ? grid.place(int(me.run), int(me.column)) : PoolGrid::Place{});
  Pool<T, count> made;
  window.begin(made);
  const int step = a.width.dilation, wide = (window.right - window.left + step - 1) / step;
  const int rows = tiles.height / wide, columns = tiles.height % wide;  // to the thread's next element
  int row = window.top + me.step / wide * a.height.dilation, column = me.step % wide;
  while (me.inside && row < window.bottom) {
    Pack<T, count> held[batch];
    int at[batch];
#pragma unroll
    for (int b = 0; b < batch; ++b) {
      at[b] = row < window.bottom ? row * a.width.in + window.left + column * step : -1;
      if (at[b] >= 0) held[b] = window.load(at[b]);
      column += columns;
      row += (rows + (column >= wide)) * a.height.dilation;
      column -= column >= wide ? wide : 0;
    }
#pragma unroll
    for (int b = 0; b < batch; ++b) {
      if (at[b] >= 0) window.take(made, held[b], at[b]);
    }
  }
  made = join_threads(made, tiles.width, tiles.height, Pool<T, count>::add);
  if (me.inside && me.step == 0) window.put(made);
}

// Outputs that a thread makes side by side, of a plane.
template <class T>
constexpr int pool_columns_made = sizeof(T) == 8 ? 2 : 4;

// Of a plane's windows as CNNs have them: kernel x kernel, padded so that those of stride 1 keep the size. What their
// columns have in common is read once, by packs where rows are aligned.
template <template <class, int> class Pool, class T, int kernel, int stride>
__global__ void __launch_bounds__(block_threads) pool_columns(DevicePool<T> a, PoolGrid grid) {
  using C = Compute<T>;
  constexpr int count = pool_columns_made<T>, before = (kernel - 1) / 2, across = (count - 1) * stride + kernel;
  constexpr int packed = count * stride, size = packed < pack<T> ? packed : pack<T>;
  if (!grid.has_thread()) return;
  const auto me = grid.place();
  const int high = a.height.in, wide = a.width.in;
  const int oh = me.row, ow = me.column * count, top = oh * stride - before, left = ow * stride - before;
  const T* const in = a.in + int64_t(me.image) * high * wide;
  Pool<T, count> made;
#pragma unroll
  for (int j = 0; j < count; ++j) made.begin(j, std::max(top, 0) * wide + std::max(left + j * stride, 0));
#pragma unroll
  for (int k = 0; k < kernel; ++k) {
    const int r = top + k;
    if (r < 0 || r >= high) continue;
    const T* const row = in + r * wide + left;
    C v[across];
    const auto load_one = [&](int i) { v[i] = left + i >= 0 && left + i < wide ? widen<T>(row[i]) : made.padding; };
#pragma unroll
    for (int i = 0; i < before; ++i) load_one(i);
    if (left + before + packed <= wide && reinterpret_cast<uintptr_t>(row + before) % (size * sizeof(T)) == 0) {
#pragma unroll
      for (int i = before; i < before + packed; i += size) {
        const auto p = load_pack<size>(row + i);
#pragma unroll
        for (int j = 0; j < size; ++j) v[i + j] = widen<T>(p.value[j]);
      }
    } else {
#pragma unroll
      for (int i = before; i < before + packed; ++i) load_one(i);
    }
#pragma unroll
    for (int i = before + packed; i < across; ++i) load_one(i);
#pragma unroll
    for (int i = 0; i < kernel; ++i) {
#pragma unroll
      for (int j = 0; j < count; ++j) made.take(j, v[j * stride + i], r * wide + left + j * stride + i);
    }
  }
#pragma unroll
  for (int j = 0; j < count; ++j) made.finish(j, a, oh, ow + j);
  const int64_t to = int64_t(me.image * a.height.out + oh) * a.width.out + ow;
  if (ow + count <= a.width.out) return made.put(a, to);
#pragma unroll
  for (int j = 0; j < count; ++j) {
    if (ow + j < a.width.out) made.put_one(a, to, j);
  }
}

// Backward each element asks the windows that may have it, in their order: of the largest whether it was chosen.
// Neighbours in a row of a plane:
template <bool largest, class T>
__global__ void __launch_bounds__(block_threads) pool_planes_backward(DevicePool<T> a, PoolGrid grid) {
  constexpr int count = pack<T>;
  if (!grid.has_thread()) return;
  const auto me = grid.place();
  const int wide = a.width.in, first = me.column * count, some = std::min(count, wide - first),
            here = me.row * wide + first;
  const auto rows = a.height.windows_with(me.row);
  const int left = a.width.windows_with(first).first, right = a.width.windows_with(first + some - 1).last;
  Compute<T> sum[count] = {};
  for (int oh = rows.first; oh <= rows.last; ++oh) {
    for (int ow = left; ow <= right; ++ow) {
      const int64_t at = int64_t(me.image * a.height.out + oh) * a.width.out + ow;
      if constexpr (largest) {
        const int64_t chosen = a.index[at] - here;
        if (chosen < 0 || chosen >= count) continue;
        const auto g = widen<T>(a.in[at]);
#pragma unroll
        for (int j = 0; j < count; ++j) sum[j] += j == int(chosen) ? g : 0;
      } else {
        const auto g = widen<T>(a.in[at]) * a.share(oh, ow);
        const int begin = a.width.first(ow) - first, end = a.width.end(ow) - first;
#pragma unroll
        for (int j = 0; j < count; ++j) sum[j] += j >= begin && j < end ? g : 0;
      }
    }
  }
  T* const out = a.out + int64_t(me.image) * a.height.in * wide + here;
  if (some == count) return store_values(out, sum);
#pragma unroll
  for (int j = 0; j < count; ++j) {
    if (j < some) out[j] = narrow<T>(sum[j]);
  }
}
// Channels of a pixel:
template <bool largest, class T, int count>
__global__ void __launch_bounds__(block_threads) pool_channels_backward(DevicePool<T> a, PoolGrid grid) {
  if (!grid.has_thread()) return;
  const auto me = grid.place();
  const auto rows = a.height.windows_with(me.row), columns = a.width.windows_with(me.column);
  const int here = me.row * a.width.in + me.column;
  Compute<T> sum[count] = {};
  for (int oh = rows.first; oh <= rows.last; ++oh) {
    for (int ow = columns.first; ow <= columns.last; ++ow) {
      const int pixel = (me.image * a.height.out + oh) * a.width.out + ow;
      const int64_t at = int64_t(pixel) * a.channels + me.pack * count;
      const auto g = load_pack<count>(a.in + at);
      if constexpr (largest) {
        const auto chosen = load_pack<count>(a.index + at);
#pragma unroll
        for (int j = 0; j < count; ++j) sum[j] += chosen.value[j] == here ? widen<T>(g.value[j]) : 0;
      } else {
        const auto share = a.share(oh, ow);
#pragma unroll
        for (int j = 0; j < count; ++j) sum[j] += widen<T>(g.value[j]) * share;
      }
    }
  }
  const int pixel = me.image * a.height.in * a.width.in + here;
  store_values(a.out + int64_t(pixel) * a.channels + me.pack * count, sum);
}

// f(count): of how many channels a thread makes a pack.
template <class T, class F>
void with_pack(const PoolArgs& a, F f) {
  const bool aligned = uintptr_t(a.in) % 16 == 0 && uintptr_t(a.index) % 16 == 0;
  if (aligned && a.channels % pack<T> == 0) {
    f(std::integral_constant<int, pack<T>>());
  } else {
    f(std::integral_constant<int, 1>());
  }
}

template <template <class, int> class Pool>
void launch_pool(const PoolArgs& args, cudaStream_t stream) {
  with_type<floats>(args.dtype, [&](auto t) {
    using T = decltype(t);
    const DevicePool<T> a(args);
    const PoolDim &h = args.height, &w = args.width;
    const auto columns = [&]<int kernel, int stride>() {
      const auto fits = [](const PoolDim& d) {
        return !d.irregular && d.kernel == kernel && d.stride == stride && d.padding == (kernel - 1) / 2 &&
               d.dilation == 1;
      };
      if (args.channels > 1 || !fits(h) || !fits(w)) return false;
      constexpr int count = pool_columns_made<T>;
      const PoolGrid grid(args.end, h.out, (w.out + count - 1) / count, 1);
      start(&pool_columns<Pool, T, kernel, stride>, grid.blocks(), block_threads, stream, a, grid);
      return true;
    };
    if (columns.template operator()<2, 2>() || columns.template operator()<3, 2>() ||
        columns.template operator()<3, 1>()) {
      return;
    }
    with_pack<T>(args, [&](auto count) {
      const int64_t windows = args.end * h.out * w.out, packs = args.channels / count;
      const int64_t elements = std::min(h.kernel, h.in) * std::min(w.kernel, w.in);
      const PoolGrid grid(args.end, h.out, w.out, packs);
      if (elements < warp_threads) {
        return start(&pool_windows<Pool, T, count>, grid.blocks(), block_threads, stream, a, grid);
      }
      const DeviceTiles tiles(windows, elements, packs);
      start(&pool_large_windows<Pool, T, count>, dim3(unsigned(tiles.blocks)), block_threads, stream, a, grid, tiles,
            int(windows), int(packs));
    });
  });
}

template <bool largest>
void launch_pool_backward(const PoolArgs& args, cudaStream_t stream) {
  with_type<floats>(args.dtype, [&](auto t) {
    using T = decltype(t);
    const DevicePool<T> a(args);
    const PoolDim &h = args.height, &w = args.width;
    if (args.channels == 1) {
      const PoolGrid grid(args.end, h.in, (w.in + pack<T> - 1) / pack<T>, 1);
      return start(&pool_planes_backward<largest, T>, grid.blocks(), block_threads, stream, a, grid);
    }
    with_pack<T>(args, [&](auto count) {
      const PoolGrid grid(args.end, h.in, w.in, args.channels / count);
      start(&pool_channels_backward<largest, T, count>, grid.blocks(), block_threads, stream, a, grid);
    });
  });
}

}  // namespace rusttorch
