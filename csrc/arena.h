#pragma once

// Memory that is kept: one stretch of address space, which grows as blocks are asked for and whose freed blocks are
// handed out again instead of being given back to the kernel, so that their pages are there already. Knows no torch.
//
// Free blocks are kept in lists by size, sixteen for each power of two, found through bitmaps (two-level segregated
// fit: M. Masmano et al., "TLSF: a new dynamic memory allocator for real-time systems", 2004); neighbours that are both
// free become one.

#include <array>
#include <cstddef>
#include <cstdint>
#include <mutex>

namespace rusttorch {

class Arena {
 public:
  struct Stats {
    size_t allocated, peak_allocated;  // bytes that were asked for and are not freed, and the most there were
    size_t held;                       // bytes that the arena has from the kernel
    size_t allocations;                // so far
  };

  static constexpr size_t alignment = 64;

  // Reserves address space (no memory). Throws std::bad_alloc where there is none.
  explicit Arena(size_t reserved);
  Arena(const Arena&) = delete;
  ~Arena();

  // n bytes, n > 0, or nullptr where that would be more than the limit or than there is.
  void* allocate(size_t n);
  void free(void* p);
  bool contains(const void* p) const { return p >= base_ && p < base_ + reserved_; }

  // Gives the pages of free blocks back to the kernel.
  void empty_cache();
  // The most that it holds. Before it grows beyond that, or beyond a quarter more than was ever allocated at a time, it
  // gives back what it can; and beyond the limit it does not go.
  void set_limit(size_t bytes);
  Stats stats();

  // Around fork(): the child's copy must not be locked by a thread that the child does not have.
  void lock() { mutex_.lock(); }
  void unlock() { mutex_.unlock(); }

 private:
  struct Block;
  struct Class {
    int first, second;
  };
  struct Pages {
    void* begin;
    size_t size;
  };
  static constexpr int steps = 16, powers = 42;  // from 64 bytes up

  static Class class_of(size_t size);
  Block* find(size_t size);
  bool may_take(size_t bytes);
  bool grow(size_t size);
  Block* after(Block* block) const;
  void insert(Block* block);
  void remove(Block* block);
  void split(Block* block, size_t size, bool dropped);
  void merge(Block* block, Block* next);
  static Pages whole_pages(Block* block);
  void drop_free_pages();

  std::mutex mutex_;
  char* base_;
  size_t reserved_, used_ = 0, held_ = 0, allocated_ = 0, peak_ = 0, allocations_ = 0, limit_ = SIZE_MAX;
  Block* last_ = nullptr;
  uint64_t powers_with_free_ = 0;
  std::array<uint32_t, powers> steps_with_free_{};
  std::array<std::array<Block*, steps>, powers> free_{};
};

}  // namespace rusttorch
