#include "../kernels/filter.h"

#include "images.h"

namespace rusttorch {
namespace {

FilterArgs arguments(const Images& images, const Tensor& out) {
  FilterArgs a{};
  a.bytes = images.bytes();
  a.images = images.count();
  a.planes = images.interleaved() ? 1 : images.channels();
  a.height = a.end = images.height();
  a.width = images.width();
  a.step = images.interleaved() ? images.channels() : 1;
  a.in = images.tensor().const_data_ptr();
  a.out = out.mutable_data_ptr();
  return a;
}

Tensor run(const Images& images, const Tensor& out, filter which, const FilterArgs& a) {
  if (out.numel() == 0) return out;
  const int64_t elements = images.channels() * images.pixels() * (1 + a.taps_across + a.taps_down);
  run_images(images, kernel(which).on(Device::cpu), a, elements, a.height, filter_scratch(a) * int64_t(sizeof(float)));
  return out;
}

int64_t taps(const Images& images, const char* name, const Tensor& weights, int64_t size) {
  const int64_t taps = weights.dim() == 2 ? weights.size(1) : 0;
  TORCH_CHECK(taps % 2 == 1 && taps <= filter_most_taps, "blur_images: expected ", name, " of [", images.count(),
              ", K] with an odd K up to ", filter_most_taps, ", but got ", weights.sizes());
  TORCH_CHECK(taps / 2 < size || images.tensor().numel() == 0, "blur_images: ", taps, " weights reach beyond the ",
              "mirrored image, whose size is ", size);
  return taps;
}

Tensor blur_images(const Tensor& images, const Tensor& across, const Tensor& down) {
  const Images batch("blur_images", images);
  const int64_t n = batch.count();
  const int64_t taps_across = taps(batch, "across", across, batch.width());
  const int64_t taps_down = taps(batch, "down", down, batch.height());
  const Tensor of_rows = batch.parameter("across", across, {n, taps_across}, at::kFloat);
  const Tensor of_columns = batch.parameter("down", down, {n, taps_down}, at::kFloat);
  const Tensor out = batch.result(batch.height(), batch.width());
  FilterArgs a = arguments(batch, out);
  a.across = of_rows.const_data_ptr<float>();
  a.down = of_columns.const_data_ptr<float>();
  a.taps_across = taps_across;
  a.taps_down = taps_down;
  stats<"blur_images">.count(Handed::no);
  return run(batch, out, filter::blur, a);
}

Tensor sharpen_images(const Tensor& images, const Tensor& factors) {
  const Images batch("sharpen_images", images);
  const Tensor by = batch.parameter("factors", factors, {batch.count()}, at::kFloat);
  const Tensor out = batch.result(batch.height(), batch.width());
  FilterArgs a = arguments(batch, out);
  a.across = by.const_data_ptr<float>();
  a.taps_across = 1;
  stats<"sharpen_images">.count(Handed::no);
  return run(batch, out, filter::sharpen, a);
}

}  // namespace

const Rows& filter_rows() {
  static const Rows rows = {
      {"blur_images", impl<&blur_images>(), &stats<"blur_images">},
      {"sharpen_images", impl<&sharpen_images>(), &stats<"sharpen_images">},
  };
  return rows;
}

}  // namespace rusttorch
