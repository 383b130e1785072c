#include "../kernels/crop.h"

#include "images.h"

namespace rusttorch {
namespace {

Tensor crop_images(const Tensor& images, const Tensor& corner, const Tensor& mirrored, at::IntArrayRef size,
                   MaybeTensor fill) {
  const Images batch("crop_images", images);
  const int64_t n = batch.count();
  batch.check_size(size);
  TORCH_CHECK(size[0] >= 0 && size[1] >= 0, "crop_images: expected a size, but got ", size);
  const Tensor corners = batch.parameter("corner", corner, {n, 2}, at::kLong);
  const Tensor mirror = batch.parameter("mirrored", mirrored, {n, 2}, at::kBool);
  const Tensor filled = batch.fill(fill, images.scalar_type());
  const Tensor out = batch.result(size[0], size[1]);
  stats<"crop_images">.count(Handed::no);
  if (out.numel() == 0) return out;
  CropArgs a{};
  a.element_size = int64_t(out.element_size());
  a.interleaved = batch.interleaved();
  a.images = n;
  a.end = size[0];
  a.channels = batch.channels();
  a.in_height = batch.height();
  a.in_width = batch.width();
  a.out_height = size[0];
  a.out_width = size[1];
  a.stream = is_large(out);
  a.in = batch.tensor().const_data_ptr();
  a.out = out.mutable_data_ptr();
  a.corner = corners.const_data_ptr<int64_t>();
  a.mirrored = mirror.const_data_ptr<bool>();
  a.fill = filled.const_data_ptr();
  constexpr int64_t most = std::numeric_limits<int32_t>::max();
  for (int64_t i = 0; i < 2 * n; ++i) {
    TORCH_CHECK(a.corner[i] >= -most && a.corner[i] <= most, "crop_images: a corner at ", a.corner[i]);
  }
  run_images(batch, kernel(crop::cut).on(Device::cpu), a, a.channels * size[0] * size[1], size[0]);
  return out;
}

}  // namespace

const Rows& crop_rows() {
  static const Rows rows = {{"crop_images", impl<&crop_images>(), &stats<"crop_images">}};
  return rows;
}

}  // namespace rusttorch
