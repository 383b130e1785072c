#pragma once

#include "../../csrc/kernels/cross_entropy.h"
#include "exp_sum.cuh"

namespace rusttorch {

// Whether q is more than the target class's own part.
__host__ __device__ inline bool is_spread(const CrossEntropyArgs& a) { return !a.target || a.smoothing != 0; }

// One row, as its threads see it (the formulas are in csrc/kernels/cross_entropy.h).
template <class T>
struct CrossEntropyRow {
  using C = Compute<T>;

  const CrossEntropyArgs& a;
  const DeviceTiles& tiles;
  const Place me{tiles, a.rows, 1};
  const T* const x = static_cast<const T*>(a.x) + me.run * a.classes;
  const T* const probabilities = static_cast<const T*>(a.probabilities) + (a.probabilities ? me.run * a.classes : 0);
  const T* const weight = static_cast<const T*>(a.weight);
  const int64_t target = a.target && me.inside ? a.target[me.run] : -1;
  const bool ignored = a.target && target == a.ignore_index;
  const C even = C(a.smoothing / double(a.classes)), kept = C(1 - a.smoothing);

  // A target outside the classes is never read with.
  __device__ void check_target() const {
    RUSTTORCH_ASSERT(!a.target || !me.inside || ignored || (target >= 0 && target < a.classes));
  }
  __device__ C weight_of(int64_t c) const { return weight ? widen<T>(weight[c]) : C(1); }
  __device__ double target_weight() const { return !a.target ? 1 : ignored ? 0 : double(weight_of(target)); }
  // q[c], without the target class's own part.
  __device__ C q(int64_t c) const {
    return (a.target ? even : widen<T>(probabilities[c]) * kept + even) * weight_of(c);
  }

  // The sum of f(c) over the classes, for each of the row's threads.
  template <class F>
  __device__ double sum(F f) const {
    double mine = 0;
    if (me.inside) {
      for (int64_t c = me.step; c < a.classes; c += tiles.height) mine += double(f(c));
    }
    return sum_threads(mine, 1, tiles.height);
  }
};

template <class T>
__global__ void __launch_bounds__(block_threads) cross_entropy_forward(CrossEntropyArgs a, DeviceTiles tiles) {
  const CrossEntropyRow<T> row{a, tiles};
  row.check_target();
  Share<false, T, 1> share({row.x}, a.classes, 1, row.me, tiles.height);
  const ExpSumState all = exp_sum(share, tiles);
  const double log_sum = ::log(all.sum);
  const int64_t r = row.me.run;
  if (row.me.inside && row.me.step == 0) {
    a.largest[r] = all.largest;
    a.log_sum[r] = log_sum;
  }
  double loss = 0;
  if (is_spread(a)) {
    loss = row.sum([&](int64_t c) { return row.q(c) * ((all.largest - double(widen<T>(row.x[c]))) + log_sum); });
  }
  if (!row.me.inside || row.me.step != 0) return;
  if (a.target && !row.ignored) {
    const double minus_log = (all.largest - double(widen<T>(row.x[row.target]))) + log_sum;
    loss += (1 - a.smoothing) * row.target_weight() * minus_log;
  }
  if (a.z_loss != 0) loss += a.z_loss * (all.largest + log_sum) * (all.largest + log_sum);
  if (row.ignored) loss = 0;
  if (a.loss) static_cast<T*>(a.loss)[r] = narrow<T>(loss);
  a.row_losses[r] = loss;
  if (a.row_weights) a.row_weights[r] = row.target_weight();
}

constexpr int64_t rows_added = 4096;  // by a block

// Each block adds the losses and weights of some rows, `apart` from each other, and leaves the sums in the first one's
// place; the last launch has one block. The order is always the same.
template <class T>
__global__ void __launch_bounds__(block_threads) cross_entropy_total(CrossEntropyArgs a, int64_t apart) {
  const int64_t begin = int64_t(blockIdx.x) * rows_added * apart, end = std::min(a.rows, begin + rows_added * apart);
  double loss = 0, weight = 0;
  for (int64_t r = begin + int64_t(threadIdx.x) * apart; r < end; r += block_threads * apart) {
    loss += a.row_losses[r];
    weight += a.row_weights[r];
  }
  loss = sum_threads(loss, 1, block_threads);
  weight = sum_threads(weight, 1, block_threads);
  if (threadIdx.x != 0) return;
  if (gridDim.x > 1) {
    a.row_losses[begin] = loss;
    a.row_weights[begin] = weight;
    return;
  }
  *a.total_weight = weight;
  if (a.result) *static_cast<T*>(a.result) = narrow<T>(a.mean ? loss / weight : loss);
}

// The slope of softcap tanh, where that is x.
template <class C>
__device__ C uncapped(C x, C reciprocal) {
  const C t = x * reciprocal;
  return 1 - t * t;
}

// g (Q softmax(x) - q), where Q is the sum of q; with z_loss it is 2 z_loss lse more. grad_x may be x.
template <bool spread, class T>
__global__ void __launch_bounds__(block_threads) cross_entropy_slope(CrossEntropyArgs a, DeviceTiles tiles) {
  using C = Compute<T>;
  const CrossEntropyRow<T> row{a, tiles};
  row.check_target();
  const auto& me = row.me;
  const double own = a.target && me.inside ? (1 - a.smoothing) * row.target_weight() : 0;
  double Q = own;
  if (spread) Q += row.sum([&](int64_t c) { return row.q(c); });
  if (!me.inside) return;
  const double g = a.divisor ? 1 / *a.divisor : 1;
  const double largest = a.largest[me.run], log_sum = a.log_sum[me.run];
  // lse in two parts, so that its rounding is not felt in the exponential.
  const C lse = C(largest + log_sum), rest = C((largest - double(lse)) + log_sum);
  if (a.z_loss != 0) Q += 2 * a.z_loss * (largest + log_sum);
  const C up = C(g * Q), down = C(g), reciprocal = C(a.softcap != 0 ? 1 / a.softcap : 0);
  T* const out = static_cast<T*>(a.grad_x) + me.run * a.classes;
  const int64_t own_class = row.ignored ? -1 : row.target;
  bool has_own = false;
  C own_x = 0;
  each_pack({row.x}, a.classes, 1, me.step, tiles.height, [&](int64_t c, auto& v) {
    constexpr int count = count_of<decltype(v)>;
    if (own_class >= c && own_class < c + count) {
      has_own = true;
#pragma unroll
      for (int j = 0; j < count; ++j) own_x = c + j == own_class ? v[0][j] : own_x;
    }
#pragma unroll
    for (int j = 0; j < count; ++j) {
      const C x = v[0][j];
      v[0][j] = exp_for<T>((x - lse) - rest) * up;
      if (spread) v[0][j] -= down * row.q(c + j);
      if (reciprocal != 0) v[0][j] *= uncapped(x, reciprocal);
      if (row.ignored) v[0][j] = 0;
    }
    store_values(out + c, v[0]);
  });
  if (!has_own) return;  // who has written it, writes it again
  const double p = ::exp((double(own_x) - largest) - log_sum);
  const double evenly = spread ? double(row.even * row.weight_of(own_class)) : 0;
  const double of_cap = reciprocal != 0 ? uncapped(double(own_x), 1 / a.softcap) : 1;
  out[own_class] = narrow<T>(C(g * (Q * p - evenly - own) * of_cap));
}

// A slope, x, times a number.
template <class T>
__global__ void __launch_bounds__(block_threads) cross_entropy_backward(CrossEntropyArgs a, DeviceTiles tiles) {
  using C = Compute<T>;
  const CrossEntropyRow<T> row{a, tiles};
  const auto& me = row.me;
  if (!me.inside) return;
  const C g = widen<T>(static_cast<const T*>(a.grad)[a.grad_of_rows ? me.run : 0]);
  T* const out = static_cast<T*>(a.grad_x) + me.run * a.classes;
  each_pack({row.x}, a.classes, 1, me.step, tiles.height, [&](int64_t c, auto& v) {
#pragma unroll
    for (C& y : v[0]) y = row.ignored ? C(0) : y * g;
    store_values(out + c, v[0]);
  });
}

template <cross_entropy which>
void launch_cross_entropy(const CrossEntropyArgs& a, cudaStream_t stream) {
  with_type<floats>(a.dtype, [&](auto t) {
    using T = decltype(t);
    const DeviceTiles tiles(a.rows, a.classes, 1);
    const dim3 blocks(unsigned(tiles.blocks));
    if constexpr (which == cross_entropy::slope) {
      start(is_spread(a) ? &cross_entropy_slope<true, T> : &cross_entropy_slope<false, T>, blocks, block_threads,
            stream, a, tiles);
    } else if constexpr (which == cross_entropy::backward) {
      start(&cross_entropy_backward<T>, blocks, block_threads, stream, a, tiles);
    } else {
      start(&cross_entropy_forward<T>, blocks, block_threads, stream, a, tiles);
      if (!a.total_weight) return;
      for (int64_t apart = 1, left = 0; left != 1; apart *= rows_added) {
        left = (a.rows - 1) / (apart * rows_added) + 1;
        start(&cross_entropy_total<T>, dim3(unsigned(left)), block_threads, stream, a, apart);
      }
    }
  });
}

}  // namespace rusttorch
