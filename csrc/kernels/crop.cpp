#include "crop.h"

#include "pixels.h"
#include "scratch.h"

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

// What is written one after the other: where it belongs, or, if it is too large for the cache, into a buffer, of which
// whole lines of the cache go around it. (A row that begins or ends within a line would wait for the rest of it.)
class Writer {
 public:
  Writer(void* to, bool around, int64_t most)
      : to_(static_cast<char*>(to)), around_(around), buffer_(around ? at_once + most + line : 0) {
    if (!around) return;
    filled_ = skipped_ = int64_t(reinterpret_cast<uintptr_t>(to) % line);
    to_ -= skipped_;
  }

  static constexpr int64_t at_once = 2048;

  // Where the next n bytes are put, before next() is called again: at most as many as were said.
  RT_INLINE char* next(int64_t n) {
    if (!around_) {
      to_ += n;
      return to_ - n;
    }
    if (filled_ >= at_once) flush();
    filled_ += n;
    return buffer_.data() + filled_ - n;
  }
  void finish() {
    if (!around_) return;
    flush();
    std::memcpy(to_ + skipped_, buffer_.data() + skipped_, size_t(filled_ - skipped_));
    _mm_sfence();
  }

 private:
  static constexpr int64_t line = 64;
  enum class Use { buffer };

  void flush() {
    char* const from = buffer_.data();
    const int64_t whole = filled_ / line * line;
    int64_t i = 0;
    if (skipped_ > 0 && whole > 0) {  // the first, which is not all ours
      std::memcpy(to_ + skipped_, from + skipped_, size_t(line - skipped_));
      skipped_ = 0;
      i = line;
    }
    for (; i < whole; i += vector_bytes) stream_out(to_ + i, load<Vector<uint8_t>>(from + i));
    std::memcpy(from, from + whole, line);
    to_ += whole;
    filled_ -= whole;
  }

  char* to_;
  const bool around_;
  const Workspace<char, Use::buffer> buffer_;
  int64_t filled_ = 0, skipped_ = 0;
};

// The last vector may have what the one before it has.
RT_INLINE void copy_row(char* to, const char* from, int64_t bytes) {
  using V = Vector<uint8_t>;
  if (bytes < vector_bytes) return void(std::memcpy(to, from, size_t(bytes)));
  for (int64_t i = 0; i < bytes - vector_bytes; i += vector_bytes) store(to + i, load<V>(from + i));
  store(to + bytes - vector_bytes, load<V>(from + bytes - vector_bytes));
}

// n pixels of one number, or red, green and blue, the last of which is just before `end`, in the other order.
template <class T>
RT_INLINE void reverse_row(T* to, const T* end, int64_t n) {
  constexpr int64_t at_once = narrow_bytes / int64_t(sizeof(T));
  if (n < at_once) {
    for (int64_t i = 0; i < n; ++i) to[i] = end[-1 - i];
    return;
  }
  const auto put = [&](int64_t i) { store(to + i, reversed<T>(load<Block<T>>(end - i - at_once))); };
  for (int64_t i = 0; i < n - at_once; i += at_once) put(i);
  put(n - at_once);
}
template <class T>
RT_INLINE void reverse_colors(T* to, const T* end, int64_t n) {
  const View<const T, 3, true> in{end - 3 * n, 0};
  const View<T, 3, true> out{to, 0};
  int64_t i = 0;
  for (; i + lanes<Pixels> <= n; i += lanes<Pixels>) {
    Colors x = in.get(n - i - lanes<Pixels>, lanes<Pixels>, std::true_type());
    for (Pixels& v : x.channel) v = lanes_of(v, v, [](int64_t k) { return lanes<Pixels> - 1 - k; });
    out.put(i, lanes<Pixels>, x, std::true_type());
  }
  for (; i < n; ++i) std::memcpy(to + 3 * i, end - 3 * (i + 1), 3 * sizeof(T));
}
RT_INLINE void reverse_row(char* to, const char* end, int64_t n, int64_t size) {
  const auto as = [&]<class T>(T, auto reverse) { reverse(reinterpret_cast<T*>(to), reinterpret_cast<const T*>(end)); };
  const auto numbers = [&](auto* y, const auto* x) { reverse_row(y, x, n); };
  const auto colors = [&](auto* y, const auto* x) { reverse_colors(y, x, n); };
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
  const char *in, *fill;
  int64_t size;
};

void put_fill(char* to, const Plane& plane, int64_t n) {
  if (n == 0) return;
  if (plane.size == 1) return void(std::memset(to, *plane.fill, size_t(n)));
  if (plane.size == 4) return void(std::fill_n(reinterpret_cast<uint32_t*>(to), n, load<uint32_t>(plane.fill)));
  for (int64_t i = 0; i < n; ++i) std::memcpy(to + i * plane.size, plane.fill, size_t(plane.size));
}

void cut(const CropArgs& a, const Plane& plane, const int64_t* corner, const bool* mirrored, Writer& out) {
  const int64_t height = a.out_height, width = a.out_width, size = plane.size;
  // Of the columns cut out, those that there are.
  const int64_t first = std::clamp<int64_t>(-corner[1], 0, width);
  const int64_t count = std::max<int64_t>(0, std::min(width, a.in_width - corner[1]) - first);
  const int64_t before = count == 0 ? width : mirrored[1] ? width - first - count : first;
  // Rows that are side by side in the image are as one.
  const bool joined = count == width && width == a.in_width && !mirrored[0] && !mirrored[1];
  const int64_t most = joined ? std::max<int64_t>(1, Writer::at_once / (width * size)) : 1;
  // What comes 2048 bytes later is fetched: the CPU's own guess ends with each page, and is not made backwards.
  const int64_t row_bytes = std::max<int64_t>(1, a.in_width * size);
  const int64_t ahead = divide_up(4096, row_bytes) * (mirrored[0] ? -row_bytes : row_bytes);
  for (int64_t y = a.begin, rows = 1; y < a.end; y += rows) {
    const int64_t row = corner[0] + (mirrored[0] ? height - 1 - y : y);
    rows = 1;
    if (row < 0 || row >= a.in_height || count == 0) {
      put_fill(out.next(width * size), plane, width);
      continue;
    }
    rows = std::min({most, a.end - y, a.in_height - row});
    char* const to = out.next(rows * width * size);
    const char* const from = plane.in + (row * a.in_width + corner[1] + first) * size;
    for (int64_t i = 0; i < rows * count * size; i += cache_line) _mm_prefetch(from + ahead + i, _MM_HINT_T0);
    put_fill(to, plane, before);
    if (mirrored[1]) {
      reverse_row(to + before * size, from + count * size, count, size);
    } else {
      copy_row(to + before * size, from, rows * count * size);
    }
    put_fill(to + (before + count) * size, plane, width - before - count);
  }
}

void cut(const CropArgs& a) {
  const int64_t planes = a.interleaved ? 1 : a.channels;
  const int64_t size = a.element_size * (a.interleaved ? a.channels : 1);
  const int64_t out_row = a.out_width * size;
  for (int64_t n = 0; n < a.images; ++n) {
    for (int64_t c = 0; c < planes; ++c) {
      const int64_t first_row = (n * planes + c) * a.out_height + a.begin;
      Writer out(static_cast<char*>(a.out) + first_row * out_row, a.stream, std::max(Writer::at_once, out_row));
      cut(a,
          {static_cast<const char*>(a.in) + (n * planes + c) * a.in_height * a.in_width * size,
           static_cast<const char*>(a.fill) + c * size, size},
          a.corner + 2 * n, a.mirrored + 2 * n, out);
      out.finish();
    }
  }
}

}  // namespace
}  // namespace rusttorch

RUSTTORCH_DEFINE_TABLE(crop, CropArgs, {&cut})
