#include "../kernels/color.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/reciprocal.h>

#include "images.h"

namespace rusttorch {
namespace {

void change(const char* op, const Images& images, const Tensor& out, const Tensor& steps, const Tensor& factors) {
  const int64_t channels = images.channels(), count = steps.dim() == 2 ? steps.size(1) : 0;
  TORCH_CHECK(channels == 1 || channels == 3, op, ": expected images of 1 or 3 channels, but got ", channels);
  const Tensor which = images.parameter("steps", steps, {images.count(), count}, at::kLong);
  const Tensor by = images.parameter("factors", factors, {images.count(), count}, at::kFloat);
  TORCH_CHECK(count <= color_most_steps, op, ": expected at most ", color_most_steps, " steps, but got ", count);
  ColorArgs a{};
  a.bytes = images.bytes();
  a.interleaved = images.interleaved();
  a.stream = is_large(out);
  a.images = images.count();
  a.channels = channels;
  a.pixels = images.pixels();
  a.end = divide_up(a.pixels, color_unit);
  a.in = images.tensor().const_data_ptr();
  a.steps = count;
  a.which = which.const_data_ptr<int64_t>();
  a.factors = by.const_data_ptr<float>();
  for (int64_t i = 0; i < which.numel(); ++i) {
    TORCH_CHECK(a.which[i] >= 0 && a.which[i] < color_steps, op, ": there is no step ", a.which[i]);
  }
  a.out = out.mutable_data_ptr();
  if (out.numel() == 0) return;
  // (What a step asks of the whole image, each thread finds out; so it may not be changed meanwhile.)
  const int64_t units = a.out == a.in ? 1 : a.end;
  run_images(images, kernel(color::change).on(Device::cpu), a, channels * a.pixels, units);
}

Tensor color_images(const Tensor& images, const Tensor& steps, const Tensor& factors) {
  const Images batch("color_images", images);
  const Tensor out = batch.result(batch.height(), batch.width());
  change("color_images", batch, out, steps, factors);
  stats<"color_images">.count(Handed::no);
  return out;
}

Tensor& color_images_(Tensor& images, const Tensor& steps, const Tensor& factors) {
  const Images batch("color_images_", images);
  change("color_images_", batch, batch.tensor(), steps, factors);
  if (!batch.tensor().is_same(images)) images.copy_(batch.tensor());
  stats<"color_images_">.count(Handed::no);
  return images;
}

Tensor normalize_images(const Tensor& images, const Tensor& mean, const Tensor& std) {
  const Images batch("normalize_images", images);
  const int64_t channels = batch.channels();
  const Tensor scale = batch.parameter("std", std, {channels}, at::kDouble).reciprocal();
  const Tensor shift = -batch.parameter("mean", mean, {channels}, at::kDouble) * scale;
  const int64_t again = batch.interleaved() ? normalize_period : 1;
  const Tensor scales = (batch.bytes() ? scale / 255 : scale).to(at::kFloat).repeat({again});
  const Tensor shifts = shift.to(at::kFloat).repeat({again});
  const Tensor out = batch.result(batch.height(), batch.width(), at::kFloat);
  stats<"normalize_images">.count(Handed::no);
  if (out.numel() == 0) return out;
  NormalizeArgs a{};
  a.bytes = batch.bytes();
  a.interleaved = batch.interleaved();
  a.stream = is_large(out);
  a.n = batch.pixels() * (a.interleaved ? channels : 1);
  a.end = out.numel() / a.n;
  a.channels = channels;
  a.in = batch.tensor().const_data_ptr();
  a.out = out.mutable_data_ptr<float>();
  a.scale = scales.const_data_ptr<float>();
  a.shift = shifts.const_data_ptr<float>();
  run_items(out, kernel(normalize::scale_and_shift).on(Device::cpu), a, a.end, a.n);
  return out;
}

Tensor mix_images(const Tensor& images, const Tensor& kept) {
  TORCH_CHECK(images.scalar_type() == at::kFloat, "mix_images: expected images of float32, but got ",
              images.scalar_type());
  const Images batch("mix_images", images);
  const Tensor parts = batch.parameter("kept", kept, {batch.count()}, at::kFloat);
  const Tensor out = batch.result(batch.height(), batch.width());
  stats<"mix_images">.count(Handed::no);
  if (out.numel() == 0) return out;
  MixArgs a{};
  a.stream = is_large(out);
  a.n = batch.pixels();
  a.channels = batch.channels();
  a.images = batch.count();
  a.end = a.images * a.channels;
  a.in = batch.tensor().const_data_ptr<float>();
  a.out = out.mutable_data_ptr<float>();
  a.kept = parts.const_data_ptr<float>();
  run_items(out, kernel(mix::with_before).on(Device::cpu), a, a.end, a.n);
  return out;
}

}  // namespace

const Rows& color_rows() {
  static const Rows rows = {
      {"color_images", impl<&color_images>(), &stats<"color_images">},
      {"color_images_", impl<&color_images_>(), &stats<"color_images_">},
      {"normalize_images", impl<&normalize_images>(), &stats<"normalize_images">},
      {"mix_images", impl<&mix_images>(), &stats<"mix_images">},
  };
  return rows;
}

}  // namespace rusttorch
