#pragma once

#include "../../csrc/kernels/norm.h"
#include "share.cuh"

namespace rusttorch {

template <class C>
struct NormSums {
  C first, second;

  static __device__ void add(NormSums& a, const NormSums& b) {
    a.first += b.first;
    a.second += b.second;
  }
};

// A row's sums are of x less its first element, so that little is lost where the mean is far from 0.
template <int threads, bool centered, class T>
__global__ void __launch_bounds__(threads) norm_forward(NormArgs a, DeviceTiles tiles, double per_element) {
  constexpr bool kept = threads == block_threads;  // and not a long row's
  using C = Compute<T>;
  using Sums = NormSums<double>;
  const Place me(tiles, a.rows, 1);
  const T* const x = static_cast<const T*>(a.x) + me.run * a.n;
  const C origin = centered && me.inside ? widen<T>(x[0]) : C(0);
  Share<kept, T, 1> share({x}, a.n, 1, me, tiles.height);
  Sums mine{};
  share.load();
  share.walk([&](int64_t, const auto& v, int) {
    C sum = 0, square = 0;
#pragma unroll
    for (const C& value : v[0]) {
      const C d = value - origin;
      sum += d;
      square += d * d;
    }
    mine.first += double(sum);
    mine.second += double(square);
  });
  const Sums all = join_threads(mine, 1, tiles.height, Sums::add);
  const double from_origin = centered ? all.first * per_element : 0;
  const double variance = all.second * per_element - from_origin * from_origin;
  const double exact = double(origin) + from_origin;
  const C mean = C(exact), rest = C(exact - double(mean));  // what mean's rounding drops, where T has digits for it
  const C rstd = 1 / ::sqrt(C((variance < 0 ? 0 : variance) + a.eps));
  if (me.inside && me.step == 0) {
    if (centered) static_cast<C*>(a.mean)[me.run] = mean;
    static_cast<C*>(a.rstd)[me.run] = rstd;
  }
  const T *const weight = static_cast<const T*>(a.weight), *const bias = static_cast<const T*>(a.bias);
  T* const y = static_cast<T*>(a.y) + me.run * a.n;
  share.walk([&](int64_t i, auto& v, int) {
    constexpr int count = count_of<decltype(v)>;
    C w[count];
#pragma unroll
    for (C& d : v[0]) d = (is_narrow<T> ? d - mean : (d - mean) - rest) * rstd;
    if (weight) {
      load_values<count>(weight + i, w);
#pragma unroll
      for (int j = 0; j < count; ++j) v[0][j] *= w[j];
    }
    if (bias) {
      load_values<count>(bias + i, w);
#pragma unroll
      for (int j = 0; j < count; ++j) v[0][j] += w[j];
    }
    store_values(y + i, v[0]);
  });
}

// The gradient of x (the formula is in csrc/kernels/norm.cpp), of rows_of_block rows. Where the rows are kept, each
// thread has the same columns of all of them, and adds up its part of the gradients of weight and bias too; the next
// rows are on their way while these are computed with, which takes so many registers.
template <bool kept, bool centered, class T>
__global__ void __launch_bounds__(block_threads, kept && sizeof(T) > 2 ? 1 : 2)
    norm_backward(NormArgs a, DeviceNorm d, int64_t rows_of_block) {
  using C = Compute<T>;
  using Sums = NormSums<double>;
  using Parts = NormSums<C>;
  using Rows = Share<kept, T, 2, true>;
  constexpr int packs = kept ? Rows::most : 1;
  const double per_element = 1 / double(a.n);
  const T* const weight = static_cast<const T*>(a.weight);
  Parts columns[packs][pack<T>] = {};
  const Place place(d, a.rows, 1);
  const int64_t begin = int64_t(blockIdx.x) * rows_of_block, end = std::min(a.rows, begin + rows_of_block);
  const int mine_of_block = int(threadIdx.x) / d.height;
  const auto mine_from = [&](int64_t row) {
    Place me = place;
    me.run = row + mine_of_block;
    me.inside = me.run < end;
    const int64_t at = me.run * a.n;
    Rows rows({static_cast<const T*>(a.grad) + at, static_cast<const T*>(a.x) + at}, a.n, 1, me, d.height);
    rows.load();
    return rows;
  };
  Rows next = mine_from(begin);
  for (int64_t row = begin; row < end; row += d.runs) {
    Rows rows = next;
    next = mine_from(row + d.runs);
    const int64_t run = row + mine_of_block, at = run * a.n;
    const C mean = centered && run < end ? static_cast<const C*>(a.mean)[run] : C(0);
    const C rstd = run < end ? static_cast<const C*>(a.rstd)[run] : C(0);
    // v becomes the gradient of the normalized x, and that x.
    const auto prepare = [&](int64_t i, auto& v) {
      constexpr int count = count_of<decltype(v)>;
      C w[count];
      if (weight) load_values<count>(weight + i, w);
#pragma unroll
      for (int j = 0; j < count; ++j) {
        if (weight) v[0][j] *= w[j];
        v[1][j] = (v[1][j] - mean) * rstd;
      }
    };
    Sums mine{};
    rows.walk([&](int64_t i, auto& v, int) {
      prepare(i, v);
      C sum = 0, product = 0;
#pragma unroll
      for (int j = 0; j < count_of<decltype(v)>; ++j) {
        sum += v[0][j];
        product += v[0][j] * v[1][j];
      }
      mine.first += double(sum);
      mine.second += double(product);
    });
    const Sums all = join_threads(mine, 1, d.height, Sums::add);
    const C mean_d = centered ? C(all.first * per_element) : C(0), mean_dh = C(all.second * per_element);
    T* const grad_x = static_cast<T*>(a.y) + at;
    rows.walk([&](int64_t i, auto& v, int k) {
      constexpr int count = count_of<decltype(v)>;
      C g[count];
#pragma unroll
      for (int j = 0; j < count; ++j) g[j] = v[0][j];
      prepare(i, v);
#pragma unroll
      for (int j = 0; j < count; ++j) {
        if constexpr (kept) Parts::add(columns[k][j], {g[j] * v[1][j], g[j]});
        v[0][j] = rstd * (v[0][j] - mean_d - v[1][j] * mean_dh);
      }
      store_values(grad_x + i, v[0]);
    });
  }
  if constexpr (kept) {
    if (!a.grad_weight && !a.grad_bias) return;
    Parts* const out = static_cast<Parts*>(a.workspace) + int64_t(blockIdx.x) * a.n;
#pragma unroll
    for (int k = 0; k < packs; ++k) {
      const int64_t i = (int64_t(k) * d.height + place.step) * pack<T>;
#pragma unroll
      for (int j = 0; j < pack<T>; ++j) {
        const Parts all = join_threads(columns[k][j], d.height, d.runs, Parts::add);
        if (mine_of_block == 0 && i < a.n) out[i + j] = all;
      }
    }
  }
}

// The gradients of weight and bias, of rows that are not kept: each block sums some rows of some columns.
template <bool centered, class T>
__global__ void __launch_bounds__(block_threads) norm_parameters(NormArgs a, DeviceNorm d) {
  using C = Compute<T>;
  using Sums = NormSums<double>;
  constexpr int width = DeviceNorm::columns, height = block_threads / width;
  const int64_t part = blockIdx.x / d.blocks_of_columns;
  const int64_t column = blockIdx.x % d.blocks_of_columns * width + threadIdx.x % width;
  const int64_t begin = part * d.rows_of_part, end = std::min(a.rows, begin + d.rows_of_part);
  Sums mine{};
  if (column < a.n) {
    for (int64_t r = begin + threadIdx.x / width; r < end; r += height) {
      const C g = widen<T>(static_cast<const T*>(a.grad)[r * a.n + column]);
      const C mean = centered ? static_cast<const C*>(a.mean)[r] : C(0), rstd = static_cast<const C*>(a.rstd)[r];
      const C x = widen<T>(static_cast<const T*>(a.x)[r * a.n + column]);
      Sums::add(mine, {double(g * ((x - mean) * rstd)), double(g)});
    }
  }
  const Sums all = join_threads(mine, width, height, Sums::add);
  if (column < a.n && int(threadIdx.x) < width) {
    static_cast<NormSums<C>*>(a.workspace)[part * a.n + column] = {C(all.first), C(all.second)};
  }
}

// Adds what the blocks left, in order.
template <class T>
__global__ void __launch_bounds__(block_threads) norm_add_parts(NormArgs a, DeviceNorm d) {
  using Sums = NormSums<double>;
  constexpr int width = DeviceNorm::columns, height = block_threads / width;
  const int64_t column = int64_t(blockIdx.x) * width + threadIdx.x % width;
  Sums mine{};
  if (column < a.n) {
    for (int64_t k = threadIdx.x / width; k < d.parts; k += height) {
      const auto part = static_cast<const NormSums<Compute<T>>*>(a.workspace)[k * a.n + column];
      Sums::add(mine, {double(part.first), double(part.second)});
    }
  }
  const Sums all = join_threads(mine, width, height, Sums::add);
  if (column >= a.n || int(threadIdx.x) >= width) return;
  if (a.grad_weight) static_cast<T*>(a.grad_weight)[column] = narrow<T>(all.first);
  if (a.grad_bias) static_cast<T*>(a.grad_bias)[column] = narrow<T>(all.second);
}

template <bool centered>
void launch_norm(const NormArgs& a, cudaStream_t stream) {
  with_type<floats>(a.dtype, [&](auto t) {
    using T = decltype(t);
    const auto launch = [&]<int threads>(const DeviceTiles& tiles) {
      start(&norm_forward<threads, centered, T>, dim3(unsigned(tiles.blocks)), threads, stream, a, tiles,
            1 / double(a.n));
    };
    constexpr int most = most_kept<T, 1>;
    LongRows::are(a.n, 1, most) ? launch.template operator()<LongRows::threads>(LongRows(a.rows, a.n))
                                : launch.template operator()<block_threads>(DeviceTiles(a.rows, a.n, 1, most));
  });
}

template <bool centered>
void launch_norm_backward(const NormArgs& a, cudaStream_t stream) {
  with_type<floats>(a.dtype, [&](auto t) {
    using T = decltype(t);
    const DeviceNorm d(a.rows, a.n, a.dtype);
    const bool parameters = a.grad_weight || a.grad_bias;
    if (can_keep<T>(d, a.n, 1, {a.grad, a.x}) && are_packs<T>(a.n, {a.grad, a.x})) {
      start(&norm_backward<true, centered, T>, dim3(unsigned(d.parts)), block_threads, stream, a, d, d.rows_of_part);
    } else {
      start(&norm_backward<false, centered, T>, dim3(unsigned(d.blocks)), block_threads, stream, a, d, int64_t(d.runs));
      const dim3 blocks(unsigned(d.blocks_of_columns * d.parts));
      if (parameters) start(&norm_parameters<centered, T>, blocks, block_threads, stream, a, d);
    }
    if (parameters) {
      start(&norm_add_parts<T>, dim3(unsigned(d.blocks_of_columns)), block_threads, stream, a, d);
    }
  });
}

}  // namespace rusttorch
