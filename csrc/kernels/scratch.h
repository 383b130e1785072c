#pragma once

// Memory for what a kernel copies, and the sizes of such parts.

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace rusttorch {
namespace {

constexpr int64_t cache_line = 64;

constexpr int64_t divide_up(int64_t n, int64_t by) { return (n + by - 1) / by; }
constexpr int64_t round_up(int64_t n, int64_t to) { return divide_up(n, to) * to; }

// n in parts of at most `most` that are nearly equal: how many one has.
constexpr int64_t even_part(int64_t n, int64_t most) { return n > 0 ? divide_up(n, divide_up(n, most)) : most; }

// A thread's own memory for each of its uses, which grows to what was ever needed.
template <class T, auto use>
T* scratch(int64_t count) {
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  thread_local std::unique_ptr<void, Free> memory;
  thread_local int64_t held = 0;
  const int64_t bytes = round_up(count * int64_t(sizeof(T)), cache_line);
  if (bytes > held) {
    memory.reset();
    held = 0;
    memory.reset(std::aligned_alloc(cache_line, size_t(bytes)));
    if (!memory) throw std::bad_alloc();
    held = bytes;
  }
  return static_cast<T*>(memory.get());
}

// The same for what grows with a call's sizes, but what is large is given back.
template <class T, auto use>
class Workspace {
 public:
  explicit Workspace(int64_t count) {
    constexpr int64_t most_held = int64_t(16) << 20;
    const int64_t bytes = round_up(count * int64_t(sizeof(T)), cache_line);
    if (bytes > most_held) {
      own_.reset(static_cast<T*>(std::aligned_alloc(cache_line, size_t(bytes))));
      if (!own_) throw std::bad_alloc();
    }
    data_ = own_ ? own_.get() : scratch<T, use>(count);
  }
  T* data() const { return data_; }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  std::unique_ptr<T, Free> own_;
  T* data_;
};

}  // namespace
}  // namespace rusttorch
