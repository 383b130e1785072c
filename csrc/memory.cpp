#include "memory.h"

#include <c10/core/CPUAllocator.h>
#include <pthread.h>
#include <unistd.h>

#include <atomic>

namespace rusttorch {
namespace {

thread_local bool enabled_in_this_thread = false;

class Pool final : public c10::Allocator {
 public:
  Pool() : arena(size_t(sysconf(_SC_PHYS_PAGES)) * size_t(sysconf(_SC_PAGESIZE))), stock_(c10::GetCPUAllocator()) {}

  c10::DataPtr allocate(size_t n) override {
    void* p = nullptr;
    if ((enabled || enabled_in_this_thread) && n > 0) p = arena.allocate(n);
    if (p) {
      c10::profiledCPUMemoryReporter().New(p, n);
    } else {
      p = stock_->raw_allocate(n);  // which also raises the error where there is not enough
    }
    return {p, p, &release, at::Device(at::kCPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t n) const override { default_copy_data(to, from, n); }

  std::atomic<bool> enabled = false;
  Arena arena;

 private:
  static void release(void* p);
  c10::Allocator* stock_;
};

// Lives as long as the process: tensors may outlive any destructor.
Pool& the_pool() {
  static Pool& pool = *new Pool();
  return pool;
}

void Pool::release(void* p) {
  if (!p) return;
  Pool& pool = the_pool();
  if (!pool.arena.contains(p)) return pool.stock_->raw_deallocate(p);
  c10::profiledCPUMemoryReporter().Delete(p);
  pool.arena.free(p);
}

}  // namespace

bool pool_is_available() {
  static const bool once = [] {
    c10::SetCPUAllocator(&the_pool());
    pthread_atfork([] { pool().lock(); }, [] { pool().unlock(); }, [] { pool().unlock(); });
    return true;
  }();
  static_cast<void>(once);
  return c10::GetCPUAllocator() == &the_pool();
}

void enable_pool(bool on) {
  TORCH_CHECK(!on || pool_is_available(), "another CPU allocator is in force, which rusttorch.memory would replace");
  the_pool().enabled = on;
}
bool pool_is_enabled() { return the_pool().enabled; }
void use_pool_in_this_thread() { enabled_in_this_thread = pool_is_available(); }
Arena& pool() { return the_pool().arena; }

}  // namespace rusttorch
