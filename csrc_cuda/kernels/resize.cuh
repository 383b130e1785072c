#pragma once

#include "../../csrc/kernels/resize.h"
#include "device.cuh"
#include "divide.cuh"

namespace rusttorch {

// How a block's threads stand in front of a tile of the result: [rows][columns][lanes], of which the lanes are packs of
// channels that come last. Each makes its place in one layer after the other: in all planes, or in all images and as
// many packs of channels as there are lanes.
struct ResizeTiles {
  static constexpr int most = 16;  // rows, columns

  int rows, columns, lanes, packs, layers;
  int64_t count;           // of tiles
  Divisor across, groups;  // tiles in a row of them, and layers of an image

  // Of packs of `size` channels.
  static ResizeTiles of(const ResizeArgs& a, int64_t size) {
    const int64_t packs = a.channels / size;
    int rows = within(a.height.out, most), columns = within(a.width.out, most);
    const int lanes = within(packs, warp_threads);
    while (rows * columns * lanes > block_threads) (rows > 1 ? rows : columns) /= 2;
    const int64_t down = divide_up(a.height.out, rows), across = divide_up(a.width.out, columns);
    const int64_t groups = divide_up(packs, lanes);
    return {rows, columns, lanes, int(packs), int(a.planes * groups), down * across, Divisor(across), Divisor(groups)};
  }
  int threads() const { return rows * columns * lanes; }
  // Enough blocks for a large device: each makes its tile's table again.
  dim3 blocks() const {
    constexpr int64_t enough = 2048, most_of_grid = 65535;
    const int64_t some = std::clamp<int64_t>(divide_up(enough, count), 1, std::min<int64_t>(layers, most_of_grid));
    return dim3(unsigned(count), unsigned(some));
  }

 private:
  // The smallest power of two that has n, or the most.
  static int within(int64_t n, int most) {
    int some = 1;
    while (some < n && some < most) some *= 2;
    return some;
  }
  static int64_t divide_up(int64_t n, int64_t by) { return (n + by - 1) / by; }
};

// Where an element is from, and by which weight.
template <class C>
struct ResizeTap {
  C weight;
  int from;
};

// A tile's taps of one dim: [tap][element].
template <class C, int taps>
struct ResizeTable {
  ResizeTap<C> tap[taps][ResizeTiles::most];
  int counts[ResizeTiles::most];

  template <class R>
  __device__ void put(int at, int& count, int64_t from, R weight) {
    const bool has_room = count < taps;  // the plan has seen to it
    RUSTTORCH_ASSERT(has_room);
    if (has_room) tap[count++][at] = {C(weight), int(from)};
  }
  template <class R>
  __device__ void make_forward(const ResizeRule<R>& rule, int at, int64_t o) {
    int count = 0;
    rule.each_tap(o, [&](int64_t from, R weight) { put(at, count, from, weight); });
    counts[at] = count;
  }
  // Of a gradient: the outputs that the element i is a tap of, which are neighbours. A tap that is twice at a border
  // has both weights.
  template <class R>
  __device__ void make_gradient(const ResizeRule<R>& rule, int at, int64_t i) {
    int64_t before = 0, end = rule.out;  // the first whose last tap is i or beyond
    while (before < end) {
      const int64_t middle = (before + end) / 2;
      int64_t last = 0;
      rule.each_tap(middle, [&](int64_t from, R) { last = from; });
      if (last < i) {
        before = middle + 1;
      } else {
        end = middle;
      }
    }
    int count = 0;
    bool has_more = true;
    for (int64_t o = before; o < rule.out && has_more; ++o) {
      R weight = 0;
      bool has_tap = false;
      has_more = false;
      rule.each_tap(o, [&](int64_t from, R w) {
        has_more |= from <= i;
        if (from == i) weight += w, has_tap = true;
      });
      if (has_tap) put(at, count, o, weight);
    }
    counts[at] = count;
  }

  // Of the element o of the result.
  template <class R>
  __device__ void make(const ResizeDim& dim, bool is_gradient, int at, int64_t o) {
    const auto rule = dim.rule.template as<R>();
    is_gradient ? make_gradient(rule, at, o) : make_forward(rule, at, o);
  }
};

// An element's taps, moved apart by `step`: in registers, or where there may be any number of them in the table.
template <class C, int taps>
struct ResizeTaps {
  static constexpr int count = taps;
  ResizeTap<C> tap[taps];

  __device__ ResizeTaps(const ResizeTable<C, taps>& table, int at, int step) {
#pragma unroll
    for (int k = 0; k < taps; ++k) tap[k] = {table.tap[k][at].weight, table.tap[k][at].from * step};
  }
  __device__ ResizeTap<C> operator[](int k) const { return tap[k]; }
};
template <class C>
struct ResizeTaps<C, resize_device_taps> {
  const ResizeTable<C, resize_device_taps>& table;
  int at, step, count;

  __device__ ResizeTaps(const ResizeTable<C, resize_device_taps>& table, int at, int step)
      : table(table), at(at), step(step), count(table.counts[at]) {}
  __device__ ResizeTap<C> operator[](int k) const { return {table.tap[k][at].weight, table.tap[k][at].from * step}; }
};

// A call in 32 bits, which the plan has seen to be enough.
template <class T>
struct DeviceResize {
  ResizeDim height, width;
  int channels;
  bool is_gradient, is_double;  // whether its rule is
  const T* in;
  T* out;

  explicit DeviceResize(const ResizeArgs& a)
      : height(a.height),
        width(a.width),
        channels(int(a.channels)),
        is_gradient(a.is_gradient),
        is_double(sizeof(T) == 8 && !is_nearest(a.height.rule.how)),
        in(static_cast<const T*>(a.in)),
        out(static_cast<T*>(a.out)) {}
};

// count: of the channels, that a thread makes. taps: the most of an element in each dim. Of a single one the element is
// what that is.
template <int taps, class T, int count>
__global__ void __launch_bounds__(block_threads) resize_tiles(DeviceResize<T> a, ResizeTiles tiles) {
  using C = Compute<T>;
  using Table = ResizeTable<C, taps>;
  RUSTTORCH_SHARED(Table, tables, [2]);
  int left = int(blockIdx.x);
  const int top = tiles.across.split(left) * tiles.rows;
  left *= tiles.columns;
  for (int t = int(threadIdx.x); t < tiles.rows + tiles.columns; t += int(blockDim.x)) {
    const bool is_row = t < tiles.rows;
    const ResizeDim& dim = is_row ? a.height : a.width;
    const int at = is_row ? t : t - tiles.rows, o = at + (is_row ? top : left);
    if (o >= dim.out) continue;
    if (sizeof(T) == 8 && a.is_double) {
      tables[!is_row].template make<double>(dim, a.is_gradient, at, o);
    } else {
      tables[!is_row].template make<float>(dim, a.is_gradient, at, o);
    }
  }
  __syncthreads();

  const int lane = int(threadIdx.x) % tiles.lanes, place = int(threadIdx.x) / tiles.lanes;
  const int row = place / tiles.columns, column = place % tiles.columns;
  if (top + row >= a.height.out || left + column >= a.width.out) return;
  const int in_wide = int(a.width.in) * a.channels, out_wide = int(a.width.out) * a.channels;
  const int in_size = int(a.height.in) * in_wide, out_size = int(a.height.out) * out_wide;
  const int to = (top + row) * out_wide + (left + column) * a.channels;
  const ResizeTaps<C, taps> down(tables[0], row, in_wide), across(tables[1], column, a.channels);
  for (int layer = int(blockIdx.y); layer < tiles.layers; layer += int(gridDim.y)) {
    int group = layer;
    const int image = tiles.groups.split(group), pack = group * tiles.lanes + lane;
    if (pack >= tiles.packs) continue;
    const T* const in = a.in + image * in_size + pack * count;
    T* const out = a.out + image * out_size + to + pack * count;
    if constexpr (taps == 1) {
      store_pack(out, load_pack<count>(in + down[0].from + across[0].from));
    } else {
      // A sum of nothing but -0 is -0, but a gradient is added to 0.
      C sum[count];
#pragma unroll
      for (int j = 0; j < count; ++j) sum[j] = a.is_gradient ? C(0) : C(-0.0);
#pragma unroll
      for (int r = 0; r < down.count; ++r) {
        C wide[count];
#pragma unroll
        for (int j = 0; j < count; ++j) wide[j] = C(-0.0);
#pragma unroll
        for (int c = 0; c < across.count; ++c) {
          const auto p = load_pack<count>(in + down[r].from + across[c].from);
#pragma unroll
          for (int j = 0; j < count; ++j) wide[j] += across[c].weight * widen<T>(p.value[j]);
        }
#pragma unroll
        for (int j = 0; j < count; ++j) sum[j] += down[r].weight * wide[j];
      }
      store_values(out, sum);
    }
  }
}

template <int taps>
void launch_resize(const ResizeArgs& args, cudaStream_t stream) {
  with_type<floats>(args.dtype, [&](auto t) {
    using T = decltype(t);
    const DeviceResize<T> a(args);
    const auto launch = [&]<int count>() {
      const auto tiles = ResizeTiles::of(args, count);
      start(&resize_tiles<taps, T, count>, tiles.blocks(), tiles.threads(), stream, a, tiles);
    };
    const bool aligned = (uintptr_t(args.in) | uintptr_t(args.out)) % 16 == 0;
    aligned&& args.channels % pack<T> == 0 ? launch.template operator()<pack<T>>() : launch.template operator()<1>();
  });
}

inline void launch_interpolate(const ResizeArgs& a, cudaStream_t stream) {
  const auto both = [&](Interpolation how) { return a.height.rule.how == how && a.width.rule.how == how; };
  if (!a.is_gradient && both(Interpolation::linear)) return launch_resize<2>(a, stream);
  if (!a.is_gradient && both(Interpolation::cubic)) return launch_resize<4>(a, stream);
  launch_resize<resize_device_taps>(a, stream);
}

}  // namespace rusttorch
