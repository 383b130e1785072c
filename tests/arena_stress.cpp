// Random allocations and frees of an Arena from several threads, under a sanitizer (tests/test_memory.py).

#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "../csrc/arena.h"

namespace {

constexpr int threads = 8, rounds = 10'000, slots = 4096;  // free lists of hundreds of blocks
constexpr size_t reserved = size_t(1) << 32;

// A block that any thread may free. Its first and last eight bytes say how large it is.
struct Slot {
  std::mutex mutex;
  char* p = nullptr;
  size_t size = 0;
};

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "%s\n", what);
  std::abort();
}

void fill(Slot& slot) {
  std::memset(slot.p, int(slot.size % 251), slot.size);
  std::memcpy(slot.p, &slot.size, sizeof slot.size);
  std::memcpy(slot.p + slot.size - sizeof slot.size, &slot.size, sizeof slot.size);
}
void check(const Slot& slot) {
  if (std::memcmp(slot.p, &slot.size, sizeof slot.size) != 0) fail("a block's beginning was overwritten");
  if (std::memcmp(slot.p + slot.size - sizeof slot.size, &slot.size, sizeof slot.size) != 0) {
    fail("a block's end was overwritten");
  }
}

void work(rusttorch::Arena& arena, std::vector<Slot>& shared, int seed) {
  std::mt19937 random(seed);
  for (int k = 0; k < rounds; ++k) {
    Slot& slot = shared[random() % shared.size()];
    const std::lock_guard<std::mutex> guard(slot.mutex);
    if (slot.p) {
      check(slot);
      arena.free(slot.p);
      slot.p = nullptr;
    } else {
      slot.size = 16 + random() % (size_t(1) << (4 + random() % 16));
      slot.p = static_cast<char*>(arena.allocate(slot.size));
      if (!slot.p) fail("no memory");
      if (reinterpret_cast<size_t>(slot.p) % rusttorch::Arena::alignment != 0) fail("a block is not aligned");
      fill(slot);
    }
    if (random() % 1000 == 0) arena.empty_cache();
  }
}

// The only free block that is large enough is the last one, behind more blocks of its class than are looked at for the
// best: it is found, and the arena does not grow.
void find_behind_many() {
  rusttorch::Arena arena(reserved);
  constexpr int count = 64;
  void *small[count], *between[count];
  for (int k = 0; k < count; ++k) {
    small[k] = arena.allocate(4032);
    between[k] = arena.allocate(1);
  }
  const size_t header = 64, used = count * (4032 + 64 + 2 * header), left = arena.stats().held - used - 2 * header;
  void* rest = arena.allocate(left - 4224);
  for (void* p : small) arena.free(p);
  const size_t held = arena.stats().held;
  void* p = arena.allocate(4160);
  if (!p || arena.stats().held != held) fail("a free block was not found");
  std::memset(p, 1, 4160);
  for (void* q : between) arena.free(q);
  arena.free(rest);
  arena.free(p);
  if (arena.stats().allocated != 0) fail("bytes are still allocated");
}

}  // namespace

int main() {
  find_behind_many();
  rusttorch::Arena arena(reserved);
  std::vector<Slot> shared(slots);
  std::vector<std::thread> all;
  for (int k = 0; k < threads; ++k) all.emplace_back([&, k] { work(arena, shared, k); });
  for (auto& thread : all) thread.join();
  for (Slot& slot : shared) {
    if (slot.p) check(slot), arena.free(slot.p);
  }
  const auto end = arena.stats();
  if (end.allocated != 0) fail("bytes are still allocated");
  // All neighbours were put together: what is held can be had in one piece, without growing.
  void* whole = arena.allocate(end.held / 2);
  if (!whole || arena.stats().held > 2 * end.held) fail("free blocks were not put together");
  arena.free(whole);
  if (arena.allocate(2 * reserved)) fail("more was given than there is");
  // What was given back is taken again up to the limit, and what is left of a block that was split is not.
  arena.empty_cache();
  const size_t little = arena.stats().held;
  arena.set_limit(little + 65536);
  void* small = arena.allocate(16384);
  if (!small || arena.stats().held > little + 65536) fail("pages that were given back were counted wrongly");
  if (arena.allocate(end.held / 2)) fail("pages that were given back were taken again beyond the limit");
  arena.free(small);
  arena.set_limit(0);
  if (arena.stats().held > 8192) fail("the limit was not kept");
  if (arena.allocate(size_t(1) << 30)) fail("the arena grew beyond its limit");
  std::puts("ok");
}
