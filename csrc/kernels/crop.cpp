#include "crop.h"

#include "pixels.h"

namespace rusttorch {
namespace {

template <class T>
using Block = Vector<T, narrow_bytes>;

template <class T>
RT_INLINE Block<T> reversed(Block<T> v) {
  constexpr int n = narrow_bytes / int(sizeof(T));
  Vector<std::conditional_t<sizeof(T) == 1, uint8_t, uint32_t>, narrow_bytes> places{};
  for (int i = 0; i < n; ++i) places[i] = n - 1 - i;
  return __builtin_shuffle(v, places);
}

void copy_row(char* to, const char* from, int64_t bytes, bool stream) {
  int64_t i = 0;
  for (; stream && i + narrow_bytes <= bytes; i += narrow_bytes) stream_out(to + i, load<Block<uint8_t>>(from + i));
  std::memcpy(to + i, from + i, size_t(bytes - i));
}

// n pixels of one number, or red, green and blue, the last of which is just before `end`, in the other order.
template <class T>
void reverse_row(T* to, const T* end, int64_t n, bool stream) {
  constexpr int64_t at_once = narrow_bytes / int64_t(sizeof(T));
  int64_t i = 0;
  for (; i + at_once <= n; i += at_once) {
    const Block<T> v = reversed<T>(load<Block<T>>(end - i - at_once));
    stream ? stream_out(to + i, v) : store(to + i, v);
  }
  for (; i < n; ++i) to[i] = end[-1 - i];
}
template <class T>
void reverse_colors(T* to, const T* end, int64_t n, bool stream) {
  const View<const T, 3, true> in{end - 3 * n, 0};
  const View<T, 3, true> out{to, 0, stream};
  int64_t i = 0;
  for (; i + lanes<Pixels> <= n; i += lanes<Pixels>) {
    Colors x = in.get(n - i - lanes<Pixels>, lanes<Pixels>, std::true_type());
    for (Pixels& v : x.channel) v = lanes_of(v, v, [](int64_t k) { return lanes<Pixels> - 1 - k; });
    out.put(i, lanes<Pixels>, x, std::true_type());
  }
  for (; i < n; ++i) std::memcpy(to + 3 * i, end - 3 * (i + 1), 3 * sizeof(T));
}
void reverse_row(char* to, const char* end, int64_t n, int64_t size, bool stream) {
  const auto as = [&]<class T>(T, auto reverse) { reverse(reinterpret_cast<T*>(to), reinterpret_cast<const T*>(end)); };
  const auto numbers = [&](auto* y, const auto* x) { reverse_row(y, x, n, stream); };
  const auto colors = [&](auto* y, const auto* x) { reverse_colors(y, x, n, stream); };
  switch (size) {
    case 1: return as(uint8_t(), numbers);
    case 3: return as(uint8_t(), colors);
    case 4: return as(uint32_t(), numbers);
    case 12: return as(float(), colors);
    default:
      for (int64_t i = 0; i < n; ++i) std::memcpy(to + i * size, end - (i + 1) * size, size_t(size));
  }
}

// Pixels of `size` bytes.
struct Plane {
  const char* in;
  char* out;
  const char* fill;
  int64_t size;
};

void put_fill(char* to, const Plane& plane, int64_t n) {
  if (plane.size == 1) return void(std::memset(to, *plane.fill, size_t(n)));
  if (plane.size == 4) return void(std::fill_n(reinterpret_cast<uint32_t*>(to), n, load<uint32_t>(plane.fill)));
  for (int64_t i = 0; i < n; ++i) std::memcpy(to + i * plane.size, plane.fill, size_t(plane.size));
}

void cut(const CropArgs& a, const Plane& plane, const int64_t* corner, const bool* mirrored) {
  const int64_t height = a.out_height, width = a.out_width, size = plane.size;
  // Of the columns cut out, those that there are.
  const int64_t first = std::clamp<int64_t>(-corner[1], 0, width);
  const int64_t count = std::max<int64_t>(0, std::min(width, a.in_width - corner[1]) - first);
  const int64_t before = count == 0 ? width : mirrored[1] ? width - first - count : first;
  for (int64_t y = 0; y < height; ++y) {
    char* to = plane.out + y * width * size;
    const int64_t row = corner[0] + (mirrored[0] ? height - 1 - y : y);
    if (row < 0 || row >= a.in_height || count == 0) {
      put_fill(to, plane, width);
      continue;
    }
    const char* from = plane.in + (row * a.in_width + corner[1] + first) * size;
    put_fill(to, plane, before);
    // (Lines of the cache that are written in part are better not written around it.)
    const bool stream = a.stream && count == width && reinterpret_cast<uintptr_t>(to) % 64 == 0;
    if (mirrored[1]) {
      reverse_row(to + before * size, from + count * size, count, size, stream);
    } else {
      copy_row(to + before * size, from, count * size, stream);
    }
    put_fill(to + (before + count) * size, plane, width - before - count);
  }
}

void cut(const CropArgs& a) {
  const int64_t planes = a.interleaved ? 1 : a.channels;
  const int64_t size = a.element_size * (a.interleaved ? a.channels : 1);
  for (int64_t n = 0; n < a.images; ++n) {
    for (int64_t c = 0; c < planes; ++c) {
      const int64_t plane = n * planes + c;
      cut(a,
          {static_cast<const char*>(a.in) + plane * a.in_height * a.in_width * size,
           static_cast<char*>(a.out) + plane * a.out_height * a.out_width * size,
           static_cast<const char*>(a.fill) + c * size, size},
          a.corner + 2 * n, a.mirrored + 2 * n);
    }
  }
  if (a.stream) _mm_sfence();
}

}  // namespace
}  // namespace rusttorch

RUSTTORCH_DEFINE_TABLE(crop, CropArgs, {&cut})
