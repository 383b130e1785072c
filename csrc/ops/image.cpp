#include <ATen/EmptyTensor.h>
#include <ATen/MemoryOverlap.h>
#include <c10/core/DefaultDtype.h>

#include "../kernels/image_taps.h"
#include "op.h"
#include "run.h"

namespace rusttorch {
namespace {

using at::TensorList;
using Numbers = std::optional<at::ArrayRef<double>>;

constexpr int64_t longest = int64_t(1) << 24;  // side of an image

Interpolation interpolation_of(std::string_view name, bool antialias) {
  if (name == "nearest") return Interpolation::nearest;
  if (name == "bilinear") return antialias ? Interpolation::linear_aa : Interpolation::linear;
  TORCH_CHECK_VALUE(name == "bicubic", "images_to_batch: interpolation must be nearest, bilinear or bicubic, got ",
                    name);
  return antialias ? Interpolation::cubic_aa : Interpolation::cubic;
}

bool is_batch_dtype(at::ScalarType t) {
  return t == at::kByte || t == at::kFloat || t == at::kDouble || t == at::kBFloat16 || t == at::kHalf;
}

bool has_rows_of_pixels(const Tensor& image) {
  const int64_t channels = image.size(2);
  return (channels == 1 || image.stride(2) == 1) && (image.size(1) == 1 || image.stride(1) == channels);
}

// A call, all of which is looked at before anything is written.
class Batch {
 public:
  Batch(TensorList images, c10::SymIntArrayRef size, MaybeTensor boxes, MaybeTensor flips,
        std::string_view interpolation, bool antialias, Numbers mean, Numbers std, at::ScalarType dtype)
      : how_(interpolation_of(interpolation, antialias)), dtype_(dtype), size_(C10_AS_INTARRAYREF_SLOW(size)) {
    TORCH_CHECK_VALUE(!images.empty(), "images_to_batch: expected at least one image");
    TORCH_CHECK_VALUE(size_.size() == 2, "images_to_batch: size must be (height, width), got ", size_);
    check_side(size_[0], "size");
    check_side(size_[1], "size");
    TORCH_CHECK_VALUE(is_batch_dtype(dtype), "images_to_batch: dtype must be uint8 or one of ",
                      "float32, float64, bfloat16 and float16, got ", dtype);
    for (const Tensor& image : images) add(image);
    if (given(boxes)) take_boxes(*boxes);
    if (given(flips)) take_flips(*flips);
    take_levels(mean, std);
  }

  at::DimVector sizes() const { return {count(), channels_, size_[0], size_[1]}; }
  const Tensor& like() const { return images_[0]; }

  void run(const Tensor& out) const {
    auto* const data = static_cast<char*>(out.mutable_data_ptr());  // a lazy clone is copied now, not in a task
    // Images are shared by threads; each is cut where there are fewer.
    const int64_t parts = std::min(divide_up(threads(), count()), size_[0]);
    const auto run_part = [&](int64_t k) {
      dtype_ == at::kByte ? this->run_part<int32_t>(out, data, k / parts, k % parts, parts)
                          : this->run_part<float>(out, data, k / parts, k % parts, parts);
    };
    if (pixels() * channels_ < grain) {
      for (int64_t k = 0; k < count() * parts; ++k) run_part(k);
    } else {
      parallel_tasks(count() * parts, run_part);
    }
  }

 private:
  struct Box {
    int64_t top, left, height, width;
  };

  int64_t count() const { return int64_t(images_.size()); }

  static void check_side(int64_t size, const char* what) {
    TORCH_CHECK_VALUE(size > 0 && size <= longest, "images_to_batch: ", what, " must be from 1 to ", longest, ", got ",
                      size);
  }

  void add(const Tensor& image) {
    const size_t k = images_.size();
    TORCH_CHECK(on_cpu(image) && image.layout() == at::kStrided, "images_to_batch: images must be on the CPU, got ",
                image.device(), " for image ", k);
    TORCH_CHECK(image.scalar_type() == at::kByte && image.dim() == 3,
                "images_to_batch: images must be uint8 [height, width, channels], got ", image.scalar_type(), " ",
                image.sizes(), " for image ", k);
    if (k == 0) channels_ = image.size(2);
    TORCH_CHECK(channels_ == 1 || channels_ == 3 || channels_ == 4, "images_to_batch: images must have 1, 3 or 4 ",
                "channels, got ", image.sizes());
    TORCH_CHECK(image.size(2) == channels_, "images_to_batch: images must have as many channels each, got ", channels_,
                " and ", image.size(2), " for image ", k);
    check_side(image.size(0), "an image's height");
    check_side(image.size(1), "an image's width");
    images_.push_back(has_rows_of_pixels(image) ? image : image.contiguous());
    boxes_.push_back({0, 0, image.size(0), image.size(1)});
  }

  void take_boxes(const Tensor& boxes) {
    TORCH_CHECK(boxes.is_cpu() && at::isIntegralType(boxes.scalar_type(), /*includeBool=*/false) && boxes.dim() == 2 &&
                    boxes.size(0) == count() && boxes.size(1) == 4,
                "images_to_batch: boxes must be integers [", count(), ", 4] on the CPU, got ", boxes.scalar_type(), " ",
                boxes.sizes(), " on ", boxes.device());
    const Tensor numbers = boxes.to(at::kLong).contiguous();
    const auto* box = numbers.const_data_ptr<int64_t>();
    for (size_t k = 0; k < boxes_.size(); ++k, box += 4) {
      const Box all = boxes_[k], part{box[0], box[1], box[2], box[3]};
      const auto lies_in = [](int64_t begin, int64_t size, int64_t whole) {
        return begin >= 0 && size > 0 && size <= whole && begin <= whole - size;
      };
      TORCH_CHECK_VALUE(lies_in(part.top, part.height, all.height) && lies_in(part.left, part.width, all.width),
                        "images_to_batch: a box (top, left, height, width) must lie in its image, got (", part.top,
                        ", ", part.left, ", ", part.height, ", ", part.width, ") for image ", k, " of height ",
                        all.height, " and width ", all.width);
      boxes_[k] = part;
    }
  }

  void take_flips(const Tensor& flips) {
    TORCH_CHECK(flips.is_cpu() && flips.scalar_type() == at::kBool && flips.dim() == 1 && flips.size(0) == count(),
                "images_to_batch: flips must be bools [", count(), "] on the CPU, got ", flips.scalar_type(), " ",
                flips.sizes(), " on ", flips.device());
    const Tensor bools = flips.contiguous();
    flips_.assign(bools.const_data_ptr<bool>(), bools.const_data_ptr<bool>() + count());
  }

  // What becomes of levels that are made floats.
  void take_levels(Numbers mean, Numbers std) {
    TORCH_CHECK_VALUE(dtype_ != at::kByte || (!mean && !std),
                      "images_to_batch: mean and std are for floating dtypes, not for uint8");
    const auto number = [&](const Numbers& numbers, int64_t c, double otherwise) {
      return !numbers ? otherwise : numbers->size() == 1 ? (*numbers)[0] : (*numbers)[size_t(c)];
    };
    for (const auto& [name, numbers] : {std::pair("mean", mean), std::pair("std", std)}) {
      TORCH_CHECK_VALUE(!numbers || numbers->size() == 1 || int64_t(numbers->size()) == channels_,
                        "images_to_batch: ", name, " must have a number for each of ", channels_,
                        " channels, or one, got ", numbers->size());
    }
    for (int64_t c = 0; c < channels_; ++c) {
      const double deviation = number(std, c, 1);
      TORCH_CHECK_VALUE(deviation != 0, "images_to_batch: std must not be 0");
      scale_[c] = float(1 / (255 * deviation));
      bias_[c] = float(-number(mean, c, 0) / deviation);
    }
  }

  int64_t pixels() const {
    int64_t all = count() * size_[0] * size_[1];
    for (const Box& box : boxes_) all += box.height * box.width;
    return all;
  }

  // The part-th of so many of an image.
  template <class Weight>
  void run_part(const Tensor& out, char* data, int64_t k, int64_t part, int64_t parts) const {
    const Tensor& image = images_[size_t(k)];
    const Box& box = boxes_[size_t(k)];
    const bool flips = !flips_.empty() && flips_[size_t(k)];
    ImageTaps<Weight> rows(how_, {image.size(0), box.top, box.height, size_[0]}, false);
    const ImageTaps<Weight> columns(how_, {image.size(1), box.left, box.width, size_[1]}, flips);
    const std::vector<int32_t> lines = rows.count_needed();
    ImageArgs a{};
    a.in = image.const_data_ptr<uint8_t>();
    a.width = image.size(1);
    a.channels = channels_;
    a.line = image.stride(0);
    a.lines = lines.data();
    a.line_count = int64_t(lines.size());
    a.rows = rows.dim();
    a.columns = columns.dim();
    a.begin = size_[0] * part / parts;
    a.end = size_[0] * (part + 1) / parts;
    a.clips = how_ == Interpolation::cubic || how_ == Interpolation::cubic_aa;
    a.clips_between = how_ == Interpolation::cubic_aa;  // as Pillow, which has bytes there
    std::copy_n(scale_, 4, a.scale);
    std::copy_n(bias_, 4, a.bias);
    a.dtype = dtype_ == at::kByte ? Dtype::b8 : *dtype_of(out);
    a.out = data + k * out.stride(0) * out.element_size();
    a.channel_stride = out.stride(1);
    a.row_stride = out.stride(2);
    a.column_stride = out.stride(3);
    kernel(image::resample).on(Device::cpu).run(a);
  }

  Interpolation how_;
  at::ScalarType dtype_;
  at::IntArrayRef size_;
  int64_t channels_ = 0;
  std::vector<Tensor> images_;
  std::vector<Box> boxes_;
  std::vector<bool> flips_;
  float scale_[4] = {}, bias_[4] = {};
};

// The memory from a tensor's first element to its last, whether or not it has all of it.
struct Extent {
  explicit Extent(const Tensor& t)
      : begin(static_cast<const char*>(t.const_data_ptr())),
        end(begin + at::detail::computeStorageNbytes(t.sizes(), t.strides(), size_t(t.element_size()))) {}
  bool meets(const Extent& other) const { return begin < other.end && other.begin < end; }

  const char *begin, *end;
};

at::ScalarType or_default(std::optional<at::ScalarType> dtype) {
  return dtype.value_or(c10::get_default_dtype_as_scalartype());
}

Tensor images_to_batch(TensorList images, c10::SymIntArrayRef size, MaybeTensor boxes, MaybeTensor flips,
                       std::string_view interpolation, bool antialias, Numbers mean, Numbers std,
                       std::optional<at::ScalarType> dtype, std::optional<at::MemoryFormat> memory_format) {
  const auto format = memory_format.value_or(at::MemoryFormat::Contiguous);
  TORCH_CHECK_VALUE(format == at::MemoryFormat::Contiguous || format == at::MemoryFormat::ChannelsLast,
                    "images_to_batch: memory_format must be contiguous_format or channels_last, got ", format);
  const Batch batch(images, size, boxes, flips, interpolation, antialias, mean, std, or_default(dtype));
  const Tensor out = empty_beside(batch.like(), batch.sizes(), or_default(dtype), format);
  batch.run(out);
  stats<"images_to_batch">.count(Handed::no);
  return out;
}

Tensor& images_to_batch_out(TensorList images, c10::SymIntArrayRef size, MaybeTensor boxes, MaybeTensor flips,
                            std::string_view interpolation, bool antialias, Numbers mean, Numbers std,
                            std::optional<at::ScalarType> dtype, std::optional<at::MemoryFormat> memory_format,
                            Tensor& out) {
  const Batch batch(images, size, boxes, flips, interpolation, antialias, mean, std, or_default(dtype));
  TORCH_CHECK_VALUE(!memory_format, "images_to_batch: memory_format is of a new batch, not of out");
  TORCH_CHECK(out.is_cpu() && out.layout() == at::kStrided && out.sizes().equals(batch.sizes()) &&
                  out.scalar_type() == or_default(dtype),
              "images_to_batch: expected out to be ", or_default(dtype), " ", batch.sizes(), " on the CPU, got ",
              out.scalar_type(), " ", out.sizes(), " on ", out.device());
  at::assert_no_internal_overlap(out);
  out.mutable_data_ptr();  // a lazy clone has memory of its own then
  for (const Tensor& image : images) {
    TORCH_CHECK(!Extent(out).meets(Extent(image)), "images_to_batch: out must share no memory with an image");
  }
  batch.run(out);
  stats<"images_to_batch.out">.count(Handed::no);
  return out;
}

}  // namespace

const Rows& image_rows() {
  static const Rows rows = {
      {"images_to_batch", impl<&images_to_batch>(), &stats<"images_to_batch">},
      {"images_to_batch.out", impl<&images_to_batch_out>(), &stats<"images_to_batch.out">},
  };
  return rows;
}

}  // namespace rusttorch
