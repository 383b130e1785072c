#include "../kernels/warp.h"

#include "images.h"

namespace rusttorch {
namespace {

Tensor warp_images(const Tensor& images, const Tensor& matrix, at::IntArrayRef output_size, bool bilinear,
                   MaybeTensor box, MaybeTensor fill) {
  const Images batch("warp_images", images);
  batch.check_size(output_size);
  const int64_t n = batch.count(), height = output_size[0], width = output_size[1];
  TORCH_CHECK(height > 0 && width > 0, "warp_images: expected a positive output_size, but got ", output_size);
  TORCH_CHECK(batch.channels() > 0 && batch.pixels() > 0, "warp_images: expected images that are not empty, but got ",
              images.sizes());
  constexpr int64_t most = std::numeric_limits<int32_t>::max() / warp_channels;
  TORCH_CHECK((batch.height() + 2 * warp_border) * (batch.width() + 2 * warp_border) <= most, "warp_images: images of ",
              batch.height(), " x ", batch.width(), " are too large");
  const Tensor maps = batch.parameter("matrix", matrix, {n, 3, 3}, at::kDouble);
  const Tensor filled = batch.fill(fill, at::kFloat);
  const Tensor boxes = given(box) ? batch.parameter("box", *box, {n, 4}, at::kFloat) : Tensor();
  const Tensor out = batch.result(height, width);
  WarpArgs a{};
  a.bytes = batch.bytes();
  a.interleaved = batch.interleaved();
  a.images = n;
  a.channels = batch.channels();
  a.in_height = batch.height();
  a.in_width = batch.width();
  a.out_height = a.end = height;
  a.out_width = width;
  a.in = batch.tensor().const_data_ptr();
  a.out = out.mutable_data_ptr();
  a.matrix = maps.const_data_ptr<double>();
  if (given(box)) a.box = boxes.const_data_ptr<float>();
  a.fill = filled.const_data_ptr<float>();
  stats<"warp_images">.count(Handed::no);
  const auto& kernel = rusttorch::kernel(bilinear ? warp::bilinear : warp::nearest).on(Device::cpu);
  run_images(batch, kernel, a, a.channels * (batch.pixels() + height * width), height, warp_scratch(a));
  return out;
}

}  // namespace

const Rows& warp_rows() {
  static const Rows rows = {{"warp_images", impl<&warp_images>(), &stats<"warp_images">}};
  return rows;
}

}  // namespace rusttorch
