#pragma once

#include <algorithm>

#include "family.h"
#include "tiles.h"

namespace rusttorch {

// On a device, of a channel or of a part of it; moments makes a mean and the sum of the squared distances of them.
struct ChannelSums {
  double first, second;
};

// What a device's kernels make the numbers of a channel of: each thread those of the channels that it works on.
struct BatchNormChannels {
  int64_t of_group = 1;    // channels that share a mean and a deviation: 1, or those of a group of an image
  int64_t parameters = 0;  // channels that have a weight and a bias each: all, or those of an image
  bool wide_parameters = false, wide_statistics = false;  // in what is computed in, or else in x's dtype
  bool training = false;                                  // mean and deviation are x's own, not the running ones
  double momentum = 0, eps = 0;
  double per_element = 0;  // 1 / the elements of a group
  const void *weight = nullptr, *bias = nullptr;
  void *running_mean = nullptr, *running_var = nullptr;
  void *mean = nullptr, *invstd = nullptr, *var = nullptr;  // of each group: written; for a gradient in training read
  void *grad_weight = nullptr, *grad_bias = nullptr;
  ChannelSums* workspace = nullptr;  // room for DeviceBatchNorm::sums()
};

// x[outer][channels][inner], of which each channel has statistics of its own: images by planes, [N][C][H W], or with
// the channels last, [N H W][C][1]. What there is one of for each channel is a double.
struct BatchNormArgs {
  Dtype dtype;
  int64_t outer, channels, inner;
  int64_t stride;  // elements from [o] to [o + 1]
  const void* x;
  const void* grad;
  void* y;  // or the gradient of x
  const double *mean, *scale, *shift;
  const double *slope, *offset;  // of a gradient; none where the statistics did not come from x
  double* sums[2];
  // Elements from one to that of the same place in the channels that are next, which are brought into the cache while
  // these are written; 0: none.
  int64_t ahead;
  bool stream;           // y is too large for the cache: write it around that
  bool relu;             // y is max(0, (x - mean) scale + shift), and
  double most;           // at most that; NaN: no such bound
  BatchNormChannels of;  // on a device, in place of the numbers of each channel

  // Else rows of channels.
  constexpr bool has_planes() const { return inner > 1; }

  BatchNormArgs channels_part(int64_t begin, int64_t end) const {
    BatchNormArgs part = moved(begin * inner).with_numbers_from(begin);
    part.channels = end - begin;
    return part;
  }
  BatchNormArgs outer_part(int64_t begin, int64_t end) const {
    BatchNormArgs part = moved(begin * stride);
    part.outer = end - begin;
    return part;
  }
  BatchNormArgs with_numbers_from(int64_t channel) const {
    BatchNormArgs part = *this;
    for (auto* p : {&part.mean, &part.scale, &part.shift, &part.slope, &part.offset}) advance(*p, channel * 8);
    for (auto& p : part.sums) advance(p, channel * 8);
    return part;
  }

 private:
  BatchNormArgs moved(int64_t elements) const {
    BatchNormArgs part = *this;
    advance(part.x, elements * element_size(dtype));
    advance(part.grad, elements * element_size(dtype));
    advance(part.y, elements * element_size(dtype));
    return part;
  }
};

// The sum of n numbers and of the squares of their distance from their mean, joined with those of `count` others (T.
// Chan, G. Golub and R. LeVeque, 1979). Always inlined: each instruction set has its own.
__attribute__((always_inline)) inline void join_moments(double& sum, double& square, double other_sum,
                                                        double other_square, int64_t n, int64_t count) {
  const double by_n = n ? 1 / double(n) : 0, apart = other_sum / double(count) - sum * by_n;
  square += other_square + apart * apart * (double(n) * double(count) / double(n + count));
  sum += other_sum;
}

// How a device's threads share the channels. A thread takes `size` neighbours at a time, of one channel where there are
// planes, else of as many channels; `positions` of them come one after the other, and are cut into parts where there
// are few channels. The sums of each channel are in front of those of the parts.
struct DeviceBatchNorm : DeviceTiles {
  explicit DeviceBatchNorm(const BatchNormArgs& a) : DeviceBatchNorm(a, size_of(a)) {}

  int64_t sums() const { return channels * (parts > 1 ? parts + 1 : 1); }

  int size;
  int64_t channels, positions, per_part, parts;

 private:
  DeviceBatchNorm(const BatchNormArgs& a, int size)
      : DeviceTiles(a.has_planes() ? a.channels : 1, a.outer * a.inner / (a.has_planes() ? size : 1),
                    a.has_planes() ? 1 : a.channels / size, 8),
        size(size),
        channels(a.channels),
        positions(a.outer * a.inner / (a.has_planes() ? size : 1)) {
    constexpr int64_t enough_blocks = 528, steps = 8;  // 4 for each multiprocessor; of a thread, worth a part
    const int64_t wanted = std::min(enough_blocks / blocks, positions / (height * steps));
    per_part = (positions + std::max<int64_t>(1, wanted) - 1) / std::max<int64_t>(1, wanted);
    parts = (positions + per_part - 1) / per_part;
  }
  // 16 bytes, where addresses and rows allow; of 2-byte elements 8 may be; or one element.
  static int size_of(const BatchNormArgs& a) {
    const int64_t bytes = element_size(a.dtype), run = a.has_planes() ? a.inner : a.channels;
    const uintptr_t addresses = uintptr_t(a.x) | uintptr_t(a.grad) | uintptr_t(a.y);
    int size = int(16 / bytes);
    while (size > 1 && (run % size != 0 || addresses % uintptr_t(size * bytes) != 0)) size = size > 4 ? 4 : 1;
    return size;
  }
};

// X(name), of each channel, d being x - mean:
//   moments    sums[0] = sum of x, sums[1] = sum of (x - its mean)^2
//   normalize  y = d scale + shift
//   products   sums[0] = sum of g, sums[1] = sum of g d, where g is the gradient, or 0 where relu was
//   gradient   y = g scale + d slope + offset
#define RUSTTORCH_BATCH_NORM(X) X(moments) X(normalize) X(products) X(gradient)

}  // namespace rusttorch

RUSTTORCH_DECLARE_FAMILY(batch_norm, BatchNormArgs, RUSTTORCH_BATCH_NORM)
