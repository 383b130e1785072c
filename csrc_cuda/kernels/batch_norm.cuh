#pragma once

#include "../../csrc/kernels/batch_norm.h"
#include "device.cuh"

namespace rusttorch {

__device__ __forceinline__ void add_sums(ChannelSums& a, const ChannelSums& b) {
  a.first += b.first;
  a.second += b.second;
}

// A number of a tensor that is in what is computed in, or else in T.
template <class T>
__device__ __forceinline__ double number(const void* p, bool wide, int64_t i) {
  return double(wide ? static_cast<const Compute<T>*>(p)[i] : widen<T>(static_cast<const T*>(p)[i]));
}
template <class T>
__device__ __forceinline__ void set_number(void* p, bool wide, int64_t i, double value) {
  if (wide) {
    static_cast<Compute<T>*>(p)[i] = Compute<T>(value);
  } else {
    static_cast<T*>(p)[i] = narrow<T>(value);
  }
}

// A channel, as the threads know it that work on it: `group` is whose mean and deviation it has, and `parameter` whose
// weight and bias.
template <class T, bool planes>
struct Channel {
  int64_t group, parameter;
  double mean, square = 0, invstd, weight, bias;

  __device__ Channel(const BatchNormArgs& a, int64_t k)
      : group(planes ? k / a.of.of_group : k), parameter(planes ? k % a.of.parameters : k) {
    const BatchNormChannels& of = a.of;
    if (a.grad && of.training) {
      mean = number<T>(of.mean, of.wide_statistics, group);
      invstd = number<T>(of.invstd, of.wide_statistics, group);
    } else {
      double variance;
      if (of.training) {
        mean = of.workspace[group].first;
        square = of.workspace[group].second;
        variance = square * of.per_element;
      } else {
        mean = number<T>(of.running_mean, of.wide_parameters, k);
        variance = number<T>(of.running_var, of.wide_parameters, k);
      }
      invstd = double(1 / ::sqrt(Compute<T>(variance + of.eps)));
    }
    weight = of.weight ? number<T>(of.weight, of.wide_parameters, parameter) : 1;
    bias = of.bias ? number<T>(of.bias, of.wide_parameters, parameter) : 0;
  }

  // What a forward leaves of it, beside y.
  __device__ void keep(const BatchNormArgs& a, int64_t k) const {
    const BatchNormChannels& of = a.of;
    const double unbiased = square / (double(a.outer) * double(a.inner) - 1);
    if (group * of.of_group == k) {
      if (of.mean) set_number<T>(of.mean, of.wide_statistics, group, mean);
      if (of.invstd) set_number<T>(of.invstd, of.wide_statistics, group, invstd);
      if (of.var) set_number<T>(of.var, of.wide_statistics, group, unbiased);
    }
    if (!of.training || !of.running_mean) return;
    const auto move = [&](void* running, double to) {
      const double now = number<T>(running, of.wide_parameters, k);
      set_number<T>(running, of.wide_parameters, k, now + of.momentum * (to - now));
    };
    move(of.running_mean, mean);
    move(of.running_var, unbiased);
  }
};

// What is computed with, of each of a thread's channels: y = (x - mean) scale + shift.
template <class C>
struct Coefficients {
  C mean, scale, shift, slope, offset;

  __device__ __forceinline__ C normalized(C x) const { return (x - mean) * scale + shift; }
  // The gradient of what relu was taken of. (At NaN it stays, but behind two bounds on a CPU.)
  __device__ __forceinline__ C behind_relu(const BatchNormArgs& a, C grad, C x) const {
    if (!a.relu) return grad;
    const C y = normalized(x), most = C(a.most);
    const bool is_nan = !on_device && most == most && y != y;
    return y <= 0 || y >= most || is_nan ? C(0) : grad;
  }
};

template <class T, bool planes>
__device__ __forceinline__ Coefficients<Compute<T>> coefficients_of(const Channel<T, planes>& k) {
  using C = Compute<T>;
  return {C(k.mean), C(k.invstd * k.weight), C(k.bias), 0, 0};
}

// A thread, and its walk through the positions of its channels: those of a part, or of several planes, in turn.
template <class T, int size, bool planes>
struct Walk {
  static constexpr int columns = planes ? 1 : size;  // channels
  Place me;
  int64_t channel;  // the first
  int64_t at, step, turn;
  int count, in_plane, step_in_plane, plane;

  __device__ Walk(const BatchNormArgs& a, const DeviceBatchNorm& d)
      : me(d, planes ? a.channels : 1, planes ? 1 : a.channels / size),
        channel(planes ? me.run : me.column * size),
        plane(planes ? int(a.inner / size) : 1) {
    const int64_t first = int64_t(blockIdx.y) * d.per_part, left = d.positions - first;
    const int here = int(left < d.per_part ? left : d.per_part);
    count = me.inside && me.step < here ? (here - me.step - 1) / d.height + 1 : 0;
    const int64_t from = first + me.step;
    if constexpr (planes) {
      in_plane = int(from % plane);
      step_in_plane = d.height % plane;
      at = from / plane * a.stride + channel * a.inner + in_plane * size;
      step = d.height / plane * a.stride + step_in_plane * size;
      turn = a.stride - a.inner;
    } else {
      at = from * a.stride + channel;
      step = d.height * a.stride;
    }
  }

  // take(at, v) at each position, v[l] being the neighbours there of input l; after some, whose numbers were all on
  // their way before the first is used, pause().
  template <int inputs, class F, class G>
  __device__ __forceinline__ void each(const T* const (&x)[inputs], F take, G pause) {
    constexpr int batch = (size == 1 ? 8 : 4) / inputs;
    for (int k = 0; k < count; k += batch) {
      Pack<T, size> held[batch][inputs];
      int64_t place[batch];
#pragma unroll
      for (int b = 0; b < batch; ++b) {
        place[b] = at;
        if (k + b < count) {
#pragma unroll
          for (int l = 0; l < inputs; ++l) held[b][l] = load_pack<size>(x[l] + at);
        }
        at += step;
        if constexpr (planes) {
          in_plane += step_in_plane;
          if (in_plane >= plane) {
            in_plane -= plane;
            at += turn;
          }
        }
      }
#pragma unroll
      for (int b = 0; b < batch; ++b) {
        if (k + b >= count) continue;
        Compute<T> v[inputs][size];
#pragma unroll
        for (int l = 0; l < inputs; ++l) {
#pragma unroll
          for (int j = 0; j < size; ++j) v[l][j] = widen<T>(held[b][l].value[j]);
        }
        take(place[b], v);
      }
      pause();
    }
  }

  // What is computed with: f(k) of each channel k that a thread works on; where several threads work on it, one finds
  // it.
  template <class F>
  __device__ __forceinline__ void find(const BatchNormArgs& a, const DeviceBatchNorm& d,
                                       Coefficients<Compute<T>> (&of)[columns], F f) const {
    if constexpr (planes) {
      of[0] = f(me.inside ? channel : 0);
    } else {
      RUSTTORCH_SHARED(Coefficients<Compute<T>>, room, [block_threads]);
      const int of_block = d.width * size, mine = int(threadIdx.x) % d.width * size, one = int(threadIdx.x);
      const int64_t k = channel - mine + one;
      if (one < of_block && k < a.channels) room[one] = f(k);
      __syncthreads();
#pragma unroll
      for (int c = 0; c < columns; ++c) of[c] = room[mine + c];
    }
  }
};

// The sums of a thread's channels: some numbers are added before they go to a double.
template <class C, int columns>
struct RunningSums {
  ChannelSums all[columns] = {};
  C first[columns] = {}, second[columns] = {};

  __device__ __forceinline__ void add(int c, C a, C b) {
    first[c] += a;
    second[c] += b;
  }
  __device__ __forceinline__ void pause() {
#pragma unroll
    for (int c = 0; c < columns; ++c) {
      add_sums(all[c], {double(first[c]), double(second[c])});
      first[c] = second[c] = 0;
    }
  }
};

// Of moments: the mean and the sum of squares, of the sums of the distances from `origin`.
__device__ __forceinline__ ChannelSums moments_of(const ChannelSums& s, double origin, double n) {
  const double from_origin = s.first / n, square = s.second - s.first * from_origin;
  return {origin + from_origin, square < 0 ? 0 : square};
}
// What is subtracted from the numbers of each of some neighbouring channels, so that little is lost where their mean is
// far from 0: the mean of the first few, if it is finite.
template <class T, int columns>
__device__ __forceinline__ void find_origins(const BatchNormArgs& a, int64_t channel, Compute<T> (&origin)[columns]) {
  using C = Compute<T>;
  const int64_t step = a.has_planes() ? 1 : a.stride, all = a.has_planes() ? a.inner : a.outer;
  const int few = all < 4 ? int(all) : 4;
  const T* const x = static_cast<const T*>(a.x) + channel * a.inner;
#pragma unroll
  for (C& sum : origin) sum = 0;
#pragma unroll 1
  for (int k = 0; k < few; ++k) {
    const auto some = load_pack<columns>(x + k * step);
#pragma unroll
    for (int c = 0; c < columns; ++c) origin[c] += widen<T>(some.value[c]);
  }
#pragma unroll
  for (C& sum : origin) {
    const C mean = sum / C(few);
    sum = mean - mean == 0 ? mean : C(0);
  }
}

template <class T>
__device__ __forceinline__ double origin_of(const BatchNormArgs& a, int64_t channel) {
  Compute<T> origin[1];
  find_origins<T>(a, channel, origin);
  return double(origin[0]);
}

// Leaves the sums that a block has made: those of the channel, or of a part of it.
template <bool are_moments, class T, int size, bool planes, class C, int columns>
__device__ __forceinline__ void leave(const BatchNormArgs& a, const DeviceBatchNorm& d,
                                      const Walk<T, size, planes>& walk, const RunningSums<C, columns>& sums) {
#pragma unroll
  for (int c = 0; c < columns; ++c) {
    const ChannelSums whole = join_threads(sums.all[c], d.width, d.height, add_sums);
    if (!walk.me.inside || walk.me.step != 0) continue;
    const int64_t k = walk.channel + c;
    if (d.parts > 1) {
      a.of.workspace[(1 + int64_t(blockIdx.y)) * a.channels + k] = whole;
    } else {
      const double n = double(a.outer) * double(a.inner);
      a.of.workspace[k] = are_moments ? moments_of(whole, origin_of<T>(a, k), n) : whole;
    }
  }
}

constexpr int columns_of_join = 8;

// Adds the parts, in order.
template <bool are_moments, class T>
__global__ void __launch_bounds__(block_threads) channel_join(const BatchNormArgs a, int64_t parts) {
  constexpr int width = columns_of_join, height = block_threads / width;
  const int64_t k = int64_t(blockIdx.x) * width + threadIdx.x % width;
  ChannelSums mine{};
  if (k < a.channels) {
    for (int64_t p = threadIdx.x / width; p < parts; p += height) {
      add_sums(mine, a.of.workspace[(1 + p) * a.channels + k]);
    }
  }
  const ChannelSums whole = join_threads(mine, width, height, add_sums);
  if (k >= a.channels || int(threadIdx.x) >= width) return;
  const double n = double(a.outer) * double(a.inner);
  a.of.workspace[k] = are_moments ? moments_of(whole, origin_of<T>(a, k), n) : whole;
}

template <class T, int size, bool planes>
__global__ void __launch_bounds__(block_threads) channel_moments(const BatchNormArgs a, const DeviceBatchNorm d) {
  using W = Walk<T, size, planes>;
  using C = Compute<T>;
  W walk(a, d);
  C origin[W::columns];
  find_origins<T>(a, walk.me.inside ? walk.channel : 0, origin);
  RunningSums<C, W::columns> sums;
  walk.template each<1>(
      {static_cast<const T*>(a.x)},
      [&](int64_t, const auto& v) {
#pragma unroll
        for (int j = 0; j < size; ++j) {
          const int c = planes ? 0 : j;
          const C apart = v[0][j] - origin[c];
          sums.add(c, apart, apart * apart);
        }
      },
      [&] { sums.pause(); });
  leave<true>(a, d, walk, sums);
}

template <class T, int size, bool planes>
__global__ void __launch_bounds__(block_threads) channel_normalize(const BatchNormArgs a, const DeviceBatchNorm d) {
  using W = Walk<T, size, planes>;
  using C = Compute<T>;
  W walk(a, d);
  Coefficients<C> of[W::columns];
  walk.find(a, d, of, [&](int64_t k) {
    const Channel<T, planes> channel(a, k);
    // (Of planes several threads find the same; the first keeps it.)
    if (blockIdx.y == 0 && (planes ? walk.me.inside && walk.me.step == 0 : true)) channel.keep(a, k);
    return coefficients_of(channel);
  });
  T* const y = static_cast<T*>(a.y);
  walk.template each<1>(
      {static_cast<const T*>(a.x)},
      [&](int64_t at, const auto& v) {
        Pack<T, size> out;
#pragma unroll
        for (int j = 0; j < size; ++j) {
          const C normalized = of[planes ? 0 : j].normalized(v[0][j]);
          out.value[j] = narrow<T>(a.relu ? at_most(at_least(normalized, 0), C(a.most)) : normalized);
        }
        store_pack(y + at, out);
      },
      [] {});
}

template <class T, int size, bool planes>
__global__ void __launch_bounds__(block_threads) channel_products(const BatchNormArgs a, const DeviceBatchNorm d) {
  using W = Walk<T, size, planes>;
  using C = Compute<T>;
  W walk(a, d);
  Coefficients<C> of[W::columns];
  walk.find(a, d, of, [&](int64_t k) { return coefficients_of(Channel<T, planes>(a, k)); });
  RunningSums<C, W::columns> sums;
  walk.template each<2>(
      {static_cast<const T*>(a.grad), static_cast<const T*>(a.x)},
      [&](int64_t, const auto& v) {
#pragma unroll
        for (int j = 0; j < size; ++j) {
          const int c = planes ? 0 : j;
          const C g = of[c].behind_relu(a, v[0][j], v[1][j]);
          sums.add(c, g, g * (v[1][j] - of[c].mean));
        }
      },
      [&] { sums.pause(); });
  leave<false>(a, d, walk, sums);
}

// The sums of a group with several channels, weighted, which the threads of a channel add.
template <class T>
__device__ __forceinline__ ChannelSums sums_of_group(const BatchNormArgs& a, const DeviceBatchNorm& d,
                                                     const Place& me) {
  const BatchNormChannels& of = a.of;
  const int64_t first = me.run / of.of_group * of.of_group;
  ChannelSums mine{};
  for (int64_t j = me.step; me.inside && j < of.of_group; j += d.height) {
    const ChannelSums sums = of.workspace[first + j];
    const double weight = of.weight ? number<T>(of.weight, of.wide_parameters, (first + j) % of.parameters) : 1;
    add_sums(mine, {sums.first * weight, sums.second * weight});
  }
  return join_threads(mine, d.width, d.height, add_sums);
}

// The gradients of weight and bias: sums over the images, where each has its groups.
template <class T, int size, bool planes>
__device__ __forceinline__ void leave_parameters(const BatchNormArgs& a, const DeviceBatchNorm& d,
                                                 const Walk<T, size, planes>& walk) {
  const BatchNormChannels& of = a.of;
#pragma unroll 1
  for (int c = 0; c < walk.columns; ++c) {
    const int64_t k = walk.channel + c;
    const bool mine = walk.me.inside && k < of.parameters;
    ChannelSums all{};
    for (int64_t other = k + walk.me.step * of.parameters; mine && other < a.channels;
         other += d.height * of.parameters) {
      const ChannelSums sums = of.workspace[other];
      add_sums(all, {sums.first, sums.second * Channel<T, planes>(a, other).invstd});
    }
    if (of.parameters < a.channels) all = join_threads(all, d.width, d.height, add_sums);
    if (!mine || walk.me.step != 0) continue;
    if (of.grad_weight) set_number<T>(of.grad_weight, of.wide_parameters, k, all.second);
    if (of.grad_bias) set_number<T>(of.grad_bias, of.wide_parameters, k, all.first);
  }
}

// with_x: the gradient depends on x.
template <class T, int size, bool planes, bool with_x>
__global__ void __launch_bounds__(block_threads) channel_gradient(const BatchNormArgs a, const DeviceBatchNorm d) {
  using W = Walk<T, size, planes>;
  using C = Compute<T>;
  W walk(a, d);
  if (blockIdx.y == 0 && (a.of.grad_weight || a.of.grad_bias)) leave_parameters(a, d, walk);
  T* const y = static_cast<T*>(a.y);
  if (!y) return;
  // With h = (x - mean) invstd and d = grad weight: grad_x = invstd (d - mean(d) - h mean(d h)), means over a group.
  const bool has_groups = planes && a.of.of_group > 1;
  const ChannelSums of_group = has_groups ? sums_of_group<T>(a, d, walk.me) : ChannelSums{};
  Coefficients<C> of[W::columns];
  walk.find(a, d, of, [&](int64_t k) {
    const Channel<T, planes> channel(a, k);
    Coefficients<C> my = coefficients_of(channel);
    if (a.of.training) {
      const double each = -channel.invstd * a.of.per_element, own = has_groups ? 1 : channel.weight;
      const ChannelSums sums = has_groups ? of_group : a.of.workspace[k];
      my.slope = C(each * channel.invstd * channel.invstd * own * sums.second);
      my.offset = C(each * own * sums.first);
    }
    return my;
  });
  const auto take = [&](int64_t at, const auto& v) {
    Pack<T, size> out;
#pragma unroll
    for (int j = 0; j < size; ++j) {
      const Coefficients<C>& my = of[planes ? 0 : j];
      if constexpr (with_x) {
        const C x = v[1][j], g = my.behind_relu(a, v[0][j], x) * my.scale;
        out.value[j] = narrow<T>(a.of.training ? g + ((x - my.mean) * my.slope + my.offset) : g);
      } else {
        out.value[j] = narrow<T>(v[0][j] * my.scale);
      }
    }
    store_pack(y + at, out);
  };
  const T* const grad = static_cast<const T*>(a.grad);
  if constexpr (with_x) {
    walk.template each<2>({grad, static_cast<const T*>(a.x)}, take, [] {});
  } else {
    walk.template each<1>({grad}, take, [] {});
  }
}

// f.operator()<T, size, planes>(tiles), by dtype, address and layout.
template <class F>
void with_tiles(const BatchNormArgs& a, F f) {
  with_type<floats>(a.dtype, [&](auto t) {
    using T = decltype(t);
    const DeviceBatchNorm d(a);
    const auto by_layout = [&]<int size>() {
      a.has_planes() ? f.template operator()<T, size, true>(d) : f.template operator()<T, size, false>(d);
    };
    if (d.size == pack<T>) return by_layout.template operator()<pack<T>>();
    if constexpr (is_narrow<T>) {
      if (d.size == 4) return by_layout.template operator()<4>();
    }
    by_layout.template operator()<1>();
  });
}
inline dim3 grid_of(const DeviceBatchNorm& d) { return dim3(unsigned(d.blocks), unsigned(d.parts)); }

template <bool are_moments, class T>
void launch_join(const BatchNormArgs& a, const DeviceBatchNorm& d, cudaStream_t stream) {
  if (d.parts == 1) return;
  const int64_t blocks = (a.channels + columns_of_join - 1) / columns_of_join;
  start(&channel_join<are_moments, T>, dim3(unsigned(blocks)), block_threads, stream, a, d.parts);
}

inline void launch_moments(const BatchNormArgs& a, cudaStream_t stream) {
  with_tiles(a, [&]<class T, int size, bool planes>(const DeviceBatchNorm& d) {
    start(&channel_moments<T, size, planes>, grid_of(d), block_threads, stream, a, d);
    launch_join<true, T>(a, d, stream);
  });
}
inline void launch_normalize(const BatchNormArgs& a, cudaStream_t stream) {
  with_tiles(a, [&]<class T, int size, bool planes>(const DeviceBatchNorm& d) {
    start(&channel_normalize<T, size, planes>, grid_of(d), block_threads, stream, a, d);
  });
}
inline void launch_products(const BatchNormArgs& a, cudaStream_t stream) {
  with_tiles(a, [&]<class T, int size, bool planes>(const DeviceBatchNorm& d) {
    start(&channel_products<T, size, planes>, grid_of(d), block_threads, stream, a, d);
    launch_join<false, T>(a, d, stream);
  });
}
inline void launch_gradient(const BatchNormArgs& a, cudaStream_t stream) {
  with_tiles(a, [&]<class T, int size, bool planes>(const DeviceBatchNorm& d) {
    const auto kernel =
        a.of.training || a.relu ? &channel_gradient<T, size, planes, true> : &channel_gradient<T, size, planes, false>;
    start(kernel, a.y ? grid_of(d) : dim3(unsigned(d.blocks)), block_threads, stream, a, d);
  });
}

}  // namespace rusttorch
