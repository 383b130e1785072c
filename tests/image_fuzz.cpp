// csrc/kernels/image.cpp on images, boxes and batches of any sizes, drawn from a seed, for sanitizers
// (tests/test_image.py has the commands): nothing beyond an image is read, nothing beyond a batch's part is written,
// and a result made in parts is the same. Sides are in memory of their own, whose ends are guarded.

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>

#include "../csrc/kernels/image_taps.h"

using namespace rusttorch;

namespace {

constexpr uint8_t untouched = 0xa5;

struct Draw {
  std::mt19937_64 random;

  int64_t from(int64_t least, int64_t most) { return least + int64_t(random() % uint64_t(most - least + 1)); }
  template <class T>
  T one_of(std::initializer_list<T> all) {
    return all.begin()[from(0, int64_t(all.size()) - 1)];
  }
  // Mostly short, now and then long.
  int64_t side() { return from(1, one_of({1, 2, 5, 17, 40, 40, 130, 700})); }
};

void check(bool holds) {
  if (!holds) std::abort();
}

struct Call {
  Interpolation how;
  Dtype dtype;
  int64_t channels, width, line, out_width;
  ImageSpan rows, columns;
  bool flips;
  std::vector<uint8_t> image;
  float scale[4], bias[4];
};

template <class Weight>
void run(const Call& c, ImageArgs& a, int64_t parts) {
  for (int64_t part = 0; part < parts; ++part) {
    ImageTaps<Weight> rows(c.how, c.rows, false);
    const ImageTaps<Weight> columns(c.how, c.columns, c.flips);
    const std::vector<int32_t> lines = rows.count_needed();
    a.lines = lines.data();
    a.line_count = int64_t(lines.size());
    a.rows = rows.dim();
    a.columns = columns.dim();
    a.begin = c.rows.out * part / parts;
    a.end = c.rows.out * (part + 1) / parts;
    if (a.begin < a.end) RUSTTORCH_INSTRUCTION_SET::image_kernels[int(image::resample)].run(a);
  }
}

std::vector<uint8_t> result(const Call& c, int layout, int64_t parts) {
  const int64_t height = c.rows.out, width = c.columns.out, n = c.channels;
  const int64_t size = element_size(c.dtype), gap = layout == 2 ? 3 : 0;
  ImageArgs a{};
  a.in = c.image.data();
  a.width = c.columns.in;
  a.channels = n;
  a.line = c.line;
  a.clips = c.how == Interpolation::cubic || c.how == Interpolation::cubic_aa;
  a.clips_between = c.how == Interpolation::cubic_aa;
  std::memcpy(a.scale, c.scale, sizeof a.scale);
  std::memcpy(a.bias, c.bias, sizeof a.bias);
  a.dtype = c.dtype;
  // Planes; pixels; columns that are further apart than rows.
  a.column_stride = layout == 0 ? 1 : layout == 1 ? n : height + gap;
  a.row_stride = layout == 0 ? width : layout == 1 ? width * n : 1;
  a.channel_stride = layout == 0 ? width * height : layout == 1 ? 1 : width * (height + gap);
  const int64_t last = (width - 1) * a.column_stride + (height - 1) * a.row_stride + (n - 1) * a.channel_stride;
  std::vector<uint8_t> out(size_t((last + 1) * size), untouched);
  a.out = out.data();
  c.dtype == Dtype::b8 ? run<int32_t>(c, a, parts) : run<float>(c, a, parts);
  // In the order of planes; between them nothing was written.
  std::vector<uint8_t> planes;
  for (int64_t k = 0; k < n; ++k) {
    for (int64_t y = 0; y < height; ++y) {
      for (int64_t x = 0; x < width; ++x) {
        uint8_t* const element = &out[size_t((k * a.channel_stride + y * a.row_stride + x * a.column_stride) * size)];
        planes.insert(planes.end(), element, element + size);
        std::memset(element, untouched, size_t(size));
      }
    }
  }
  for (const uint8_t byte : out) check(byte == untouched);
  return planes;
}

void call(Draw& draw) {
  Call c{};
  c.how = draw.one_of({Interpolation::nearest, Interpolation::linear, Interpolation::cubic, Interpolation::linear_aa,
                       Interpolation::cubic_aa});
  c.dtype = draw.one_of({Dtype::b8, Dtype::f32, Dtype::f64, Dtype::bf16, Dtype::f16});
  c.channels = draw.one_of<int64_t>({1, 3, 4});
  for (ImageSpan* span : {&c.rows, &c.columns}) {
    span->in = draw.side();
    span->begin = draw.from(0, span->in - 1);
    span->size = draw.from(1, span->in - span->begin);
    if (draw.from(0, 2) == 0) span->begin = 0, span->size = span->in;
    span->out = draw.from(0, 3) == 0 ? span->size : draw.side();
  }
  c.flips = draw.from(0, 1);
  const int64_t row = c.columns.in * c.channels;
  c.line = draw.one_of<int64_t>({row, row, row + 1, row + 64, 0});
  c.image.resize(size_t((c.rows.in - 1) * c.line + row));
  const bool extreme = draw.from(0, 1);
  for (uint8_t& level : c.image) {
    level = uint8_t(draw.random());
    if (extreme) level = level & 1 ? 255 : 0;
  }
  for (int k = 0; k < 4; ++k) c.scale[k] = float(draw.from(-3, 3)), c.bias[k] = float(draw.from(-3, 3));
  const std::vector<uint8_t> whole = result(c, 0, 1);
  check(result(c, int(draw.from(0, 2)), draw.from(1, 9)) == whole);
  if (c.how == Interpolation::nearest && c.dtype == Dtype::b8) {  // all of them are levels of the image
    for (const uint8_t level : whole) check(!extreme || level == 0 || level == 255);
  }
}

}  // namespace

int main(int, char** arguments) {
  using Clock = std::chrono::steady_clock;
  const auto end = Clock::now() + std::chrono::seconds(std::atoi(arguments[1]));
  Draw draw{std::mt19937_64(std::strtoull(arguments[2], nullptr, 10))};
  int64_t calls = 0;
  for (; Clock::now() < end; ++calls) call(draw);
  std::printf("%lld calls\n", static_cast<long long>(calls));
}
