#include "arena.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <new>

namespace rusttorch {
namespace {

constexpr size_t round_up(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

}  // namespace

// What stands before every block's memory.
struct alignas(Arena::alignment) Arena::Block {
  size_t size;             // with this header, a multiple of the alignment
  size_t asked;            // 0: it is free
  size_t dropped;          // bytes of a free block that the kernel has back
  Block* before;           // its neighbour
  Block *previous, *next;  // in its list of free blocks
};

Arena::Arena(size_t reserved) : reserved_(reserved) {
  void* p = mmap(nullptr, reserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) throw std::bad_alloc();
  base_ = static_cast<char*>(p);
}

Arena::~Arena() { munmap(base_, reserved_); }

void* Arena::allocate(size_t n) {
  if (n > reserved_) return nullptr;
  const size_t size = round_up(n, alignment) + sizeof(Block);
  const std::lock_guard<std::mutex> guard(mutex_);
  Block* block = find(size);
  if (!block && grow(size)) block = find(size);
  if (!block || (block->dropped && !may_take(size))) return nullptr;
  const bool was_dropped = block->dropped;
  remove(block);
  split(block, size, was_dropped);
  block->asked = n;
  allocated_ += n;
  peak_ = std::max(peak_, allocated_);
  ++allocations_;
  return block + 1;
}

void Arena::free(void* p) {
  const std::lock_guard<std::mutex> guard(mutex_);
  Block* block = static_cast<Block*>(p) - 1;
  allocated_ -= block->asked;
  block->asked = block->dropped = 0;
  if (Block* next = after(block); next && !next->asked) {
    remove(next);
    merge(block, next);
  }
  if (Block* before = block->before; before && !before->asked) {
    remove(before);
    merge(before, block);
    block = before;
  }
  insert(block);
}

void Arena::empty_cache() {
  const std::lock_guard<std::mutex> guard(mutex_);
  drop_free_pages();
}

void Arena::set_limit(size_t bytes) {
  const std::lock_guard<std::mutex> guard(mutex_);
  limit_ = bytes;
  if (held_ > limit_) drop_free_pages();
}

Arena::Stats Arena::stats() {
  const std::lock_guard<std::mutex> guard(mutex_);
  return {allocated_, peak_, held_, allocations_};
}

Arena::Class Arena::class_of(size_t size) {
  const int power = std::bit_width(size) - 1;
  return {power - 6, int(size >> (power - 4)) & (steps - 1)};
}

// A free block of at least this size, if there is one: the best of its own class (of the first few there), else one of
// the next class that has any, else what is found behind those few.
Arena::Block* Arena::find(size_t size) {
  const auto [power, step] = class_of(size);
  Block* best = nullptr;
  Block* block = free_[power][step];
  for (int looked_at = 0; block && looked_at < 64; block = block->next, ++looked_at) {
    if (block->size == size) return block;
    if (block->size > size && (!best || block->size < best->size)) best = block;
  }
  if (best) return best;
  if (const uint32_t larger = steps_with_free_[power] >> step >> 1) {
    return free_[power][step + 1 + std::countr_zero(larger)];
  }
  if (const uint64_t larger = powers_with_free_ >> power >> 1) {
    const int next = power + 1 + std::countr_zero(larger);
    return free_[next][std::countr_zero(steps_with_free_[next])];
  }
  while (block && block->size < size) block = block->next;
  return block;
}

// Whether so many bytes that the kernel has may be taken again.
bool Arena::may_take(size_t bytes) {
  if (held_ + bytes > limit_) drop_free_pages();
  return held_ + bytes <= limit_;
}

// Takes more of the address space, for a block of this size at its end.
bool Arena::grow(size_t size) {
  constexpr size_t least = size_t(1) << 18;
  size_t more = size - (last_ && !last_->asked ? last_->size : 0);  // which is too small, or it would have been found
  more = round_up(std::max({more, held_ / 16, least}), size_t(getpagesize()));
  const size_t peak = std::max(peak_, allocated_ + size);
  if (held_ + more > std::max(peak + peak / 4, least)) drop_free_pages();
  if (!may_take(more) || used_ + more > reserved_) return false;
  if (mprotect(base_ + used_, more, PROT_READ | PROT_WRITE) != 0) return false;
  Block* block = reinterpret_cast<Block*>(base_ + used_);
  *block = {more, 0, 0, last_, nullptr, nullptr};
  used_ += more;
  held_ += more;
  if (last_ && !last_->asked) {
    Block* before = last_;
    remove(before);
    merge(before, block);
    block = before;
  }
  last_ = block;
  insert(block);
  return true;
}

Arena::Block* Arena::after(Block* block) const {
  char* end = reinterpret_cast<char*>(block) + block->size;
  return end < base_ + used_ ? reinterpret_cast<Block*>(end) : nullptr;
}

void Arena::insert(Block* block) {
  const auto [power, step] = class_of(block->size);
  Block*& list = free_[power][step];
  block->previous = nullptr;
  block->next = list;
  if (list) list->previous = block;
  list = block;
  steps_with_free_[power] |= uint32_t(1) << step;
  powers_with_free_ |= uint64_t(1) << power;
}

void Arena::remove(Block* block) {
  const auto [power, step] = class_of(block->size);
  (block->previous ? block->previous->next : free_[power][step]) = block->next;
  if (block->next) block->next->previous = block->previous;
  if (!free_[power][step]) {
    steps_with_free_[power] &= ~(uint32_t(1) << step);
    if (!steps_with_free_[power]) powers_with_free_ &= ~(uint64_t(1) << power);
  }
  held_ += block->dropped;
  block->dropped = 0;
}

// Makes a block (in no list) as large as this, and a free one of the rest, whose pages the kernel may have.
void Arena::split(Block* block, size_t size, bool dropped) {
  const size_t rest = block->size - size;
  if (rest < 2 * sizeof(Block)) return;
  block->size = size;
  Block* next = after(block);
  *next = {rest, 0, 0, block, nullptr, nullptr};
  if (Block* far = after(next)) far->before = next;
  if (last_ == block) last_ = next;
  if (dropped) {
    next->dropped = whole_pages(next).size;
    held_ -= next->dropped;
  }
  insert(next);
}

// Two neighbours, both in no list.
void Arena::merge(Block* block, Block* next) {
  block->size += next->size;
  if (Block* far = after(block)) far->before = block;
  if (last_ == next) last_ = block;
}

// Those between a free block's header and its end.
Arena::Pages Arena::whole_pages(Block* block) {
  const size_t page = size_t(getpagesize());
  const size_t begin = round_up(reinterpret_cast<size_t>(block + 1), page);
  const size_t end = (reinterpret_cast<size_t>(block) + block->size) / page * page;
  return {reinterpret_cast<void*>(begin), end > begin ? end - begin : 0};
}

void Arena::drop_free_pages() {
  for (auto& lists : free_) {
    for (Block* list : lists) {
      for (Block* block = list; block; block = block->next) {
        const Pages pages = whole_pages(block);
        if (block->dropped || !pages.size) continue;
        madvise(pages.begin, pages.size, MADV_DONTNEED);
        block->dropped = pages.size;
        held_ -= pages.size;
      }
    }
  }
}

}  // namespace rusttorch
