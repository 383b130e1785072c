#pragma once

// What ops on batches of images [N, C, H, W] share. They have no derivative, and no twin in aten that what a kernel
// does not take could be handed to: that is an error.

#include <ATen/ops/zeros.h>

#include <limits>

#include "op.h"
#include "run.h"

namespace rusttorch {

// A batch as the kernels read it: in planes, or with the channels of a pixel side by side (channels last).
class Images {
 public:
  Images(const char* op, const Tensor& images) : op_(op) {
    TORCH_CHECK(images.dim() == 4, op, ": expected images [N, C, H, W], but got ", images.sizes());
    const bool has_type = images.scalar_type() == at::kByte || images.scalar_type() == at::kFloat;
    TORCH_CHECK(has_type, op, ": expected images of uint8 or float32, but got ", images.scalar_type());
    TORCH_CHECK(on_cpu(images) && images.layout() == at::kStrided, op, ": expected dense images on the CPU, but got ",
                images.device(), " ", images.layout());
    if (images.size(1) > 1 && !images.is_contiguous() && images.is_contiguous(at::MemoryFormat::ChannelsLast)) {
      format_ = at::MemoryFormat::ChannelsLast;
    }
    images_ = images.contiguous(format_);
  }

  const Tensor& tensor() const { return images_; }
  int64_t count() const { return images_.size(0); }
  int64_t channels() const { return images_.size(1); }
  int64_t height() const { return images_.size(2); }
  int64_t width() const { return images_.size(3); }
  int64_t pixels() const { return height() * width(); }
  bool bytes() const { return images_.scalar_type() == at::kByte; }
  bool interleaved() const { return format_ == at::MemoryFormat::ChannelsLast; }

  Tensor result(int64_t height, int64_t width) const { return result(height, width, images_.scalar_type()); }
  Tensor result(int64_t height, int64_t width, at::ScalarType dtype) const {
    return empty_beside(images_, {count(), channels(), height, width}, dtype, format_);
  }

  // int[2] in a schema takes lists of any length.
  void check_size(at::IntArrayRef size) const {
    TORCH_CHECK(size.size() == 2, op_, ": expected a size [height, width], but got ", size);
  }
  // A tensor of these sizes as a kernel reads it.
  Tensor parameter(const char* name, const Tensor& t, at::IntArrayRef sizes, at::ScalarType dtype) const {
    TORCH_CHECK(t.sizes().equals(sizes), op_, ": expected ", name, " of ", sizes, ", but got ", t.sizes());
    TORCH_CHECK(t.is_cpu(), op_, ": expected ", name, " on the CPU, but got ", t.device());
    return t.to(dtype).contiguous();
  }
  // Of each channel, as float or the nearest byte: 0 where it is not given.
  Tensor fill(MaybeTensor fill, at::ScalarType dtype) const {
    if (!given(fill)) return at::zeros({channels()}, images_.options().dtype(dtype));
    const Tensor filled = parameter("fill", *fill, {channels()}, at::kFloat);
    return dtype == at::kByte ? filled.round().clamp(0, 255).to(dtype) : filled;
  }

 private:
  const char* op_;
  at::MemoryFormat format_ = at::MemoryFormat::Contiguous;
  Tensor images_;
};

// Too large for the cache, by measurement.
inline bool is_large(const Tensor& out) { return out.nbytes() >= size_t(16) << 20; }

// Images are shared by threads; where there are fewer, so are their rows, from begin to end, which number `rows`. Each
// thread has scratch of its own, of so many bytes.
template <class A>
void run_images(const Images& images, const Kernel<A>& kernel, const A& args, int64_t elements, int64_t rows,
                int64_t scratch = 0) {
  const int64_t wanted = std::min(threads() / std::max<int64_t>(1, images.count()), elements / grain);
  const int64_t parts = std::clamp<int64_t>(wanted, 1, std::max<int64_t>(1, rows));
  parallel(images.count() * parts, elements / parts, [&](int64_t begin, int64_t end) {
    Tensor own;
    if constexpr (requires { args.scratch; }) own = empty_beside(images.tensor(), {scratch}, at::kByte);
    const auto run = [&](A part) {
      if constexpr (requires { part.scratch; }) part.scratch = own.mutable_data_ptr();
      kernel.run(part);
    };
    if (parts == 1) return run(args.part(begin, end));
    for (int64_t k = begin; k < end; ++k) {
      A part = args.part(k / parts, k / parts + 1);
      part.begin = rows * (k % parts) / parts;
      part.end = rows * (k % parts + 1) / parts;
      run(part);
    }
  });
}

}  // namespace rusttorch
