#pragma once

// Channels with statistics of their own: what batch norm and group norm share.

#include "../kernels/batch_norm.h"

#include <limits>
#include <vector>

#include "op.h"
#include "run.h"

namespace rusttorch {

inline const Kernel<BatchNormArgs>& cpu_kernel(batch_norm which) { return kernel(which).on(Device::cpu); }

// The channels of x as they lie in memory, and in which format that is; or why no kernel takes them.
Handed lay_out(const Tensor& x, at::MemoryFormat& format, BatchNormArgs& a);

// Whether grad is one of x's shape that a kernel takes, made contiguous.
inline bool is_gradient_of(const Tensor& x, const Tensor& grad) {
  return grad.sizes().equals(x.sizes()) && grad.scalar_type() == x.scalar_type() && grad.device() == x.device() &&
         grad.layout() == at::kStrided && is_plain(grad);
}
// Whether stock takes parameters of this dtype beside x: its own, or float beside 16 bits.
inline bool takes_parameters(const Tensor& x, at::ScalarType dtype) {
  return dtype == x.scalar_type() || (dtype == at::kFloat && x.element_size() == 2);
}

// Whether the output goes around the cache, of a call that moves so many tensors, which has what is read in it then:
// faster by measurement from some MB on, in runs of some vectors (of rows, whole ones).
bool streams(const BatchNormArgs& a, int64_t tensors);

// What there is one of for each channel.
using Numbers = std::vector<double>;

// Of a tensor [channels] of any floating-point dtype, or a number for all.
Numbers read_numbers(const Tensor& t);
inline Numbers read_numbers(MaybeTensor t, int64_t channels, double otherwise) {
  return given(t) ? read_numbers(*t) : Numbers(channels, otherwise);
}
void write_numbers(const Tensor& t, const Numbers& numbers);

// Of products, as join_moments (kernels/batch_norm.h) of moments.
inline void join_sums(double& sum, double& product, double other_sum, double other_product, int64_t, int64_t) {
  sum += other_sum;
  product += other_product;
}

// On a device (batch_norm_device.cpp), where `a.of` says what the numbers are made of: y, after the moments of each
// group in training; and the gradient of x, if a.y is given, after the products, if wanted, with those of the
// parameters. A thread counts its positions by 32 bits.
constexpr int64_t max_count_on_device = std::numeric_limits<int32_t>::max();
void normalize_on_device(const Tensor& x, BatchNormArgs a);
void differentiate_on_device(const Tensor& x, BatchNormArgs a, bool want_sums);
// Of the dtypes that parameters may have, what is computed in.
inline bool is_wide(at::ScalarType type) { return type == at::kFloat || type == at::kDouble; }
inline const void* data_of(MaybeTensor t) { return given(t) ? t->const_data_ptr() : nullptr; }
inline void* mutable_data_of(MaybeTensor t) { return given(t) ? t->mutable_data_ptr() : nullptr; }

// f(part, begin, end) for parts of the channels, which threads share. Where it looks at the elements twice, the second
// look finds them in the cache.
template <class F>
void each_channels(const BatchNormArgs& a, bool twice, F f) {
  constexpr int64_t cached = 1 << 16;  // elements
  const int64_t size = a.outer * a.inner, at_once = twice ? std::max<int64_t>(1, cached / size) : a.channels;
  parallel(a.channels, size, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; c += at_once) {
      BatchNormArgs part = a.channels_part(c, std::min(end, c + at_once));
      part.ahead = c + at_once < end ? at_once * a.inner : 0;
      f(part, c, c + part.channels);
    }
  });
}

// The sums that K makes of each channel, of parts of the rows, which are then joined: join_moments or
// join_sums.
template <class Join>
void sums_of_rows(const Kernel<BatchNormArgs>& kernel, const BatchNormArgs& a, Join join) {
  constexpr int64_t elements = 1 << 16;  // of a part
  const int64_t each = std::max<int64_t>(32, elements / a.channels), parts = divide_up(a.outer, each);
  Numbers first(parts * a.channels), second(parts * a.channels);
  parallel_parts(a.outer, each, a.channels, [&](int64_t k, int64_t begin, int64_t end) {
    BatchNormArgs part = a.outer_part(begin, end);
    part.sums[0] = &first[k * a.channels];
    part.sums[1] = &second[k * a.channels];
    kernel.run(part);
  });
  for (int64_t k = 0; k < parts; ++k) {
    const int64_t before = k * each, rows = std::min(each, a.outer - before);
    for (int64_t c = 0; c < a.channels; ++c) {
      join(a.sums[0][c], a.sums[1][c], first[k * a.channels + c], second[k * a.channels + c], before, rows);
    }
  }
}

}  // namespace rusttorch
