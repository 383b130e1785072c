#include "device.h"

#include <dlfcn.h>
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "launched.h"

namespace emulation {

Index thread, block;
dim3 grid, threads;

namespace {

constexpr size_t stack_bytes = 128 << 10;
constexpr int warp = 32, of_warp = -1;  // where a fiber waits for its warp

// Starts on a stack of its own; from then on a jump is enough, which unlike swapcontext asks nothing of the system.
struct Fiber {
  ucontext_t start;
  jmp_buf left;  // where it waits
  std::unique_ptr<char[]> stack{new char[stack_bytes]};
  bool started = false;
  int waits_at = 0;  // which barrier: its line, or of_warp
  bool may_run = true;
  bool done = false;
  std::array<char, 64> given[2];  // to the warp, at this exchange and at the last one
  int exchanges = 0;
};

std::mutex one_launch_at_a_time;
std::deque<Fiber> fibers;  // which stay where they are
Fiber* current;
jmp_buf scheduler;
const std::function<void()>* body_of_launch;
std::string failure;
std::mt19937 random_numbers;

std::map<const void*, std::vector<char>> shared_memory;

void leave() {
  if (_setjmp(current->left) == 0) _longjmp(scheduler, 1);
}

void enter() {
  (*body_of_launch)();
  current->done = true;
  leave();
}

void resume(Fiber& f) {
  current = &f;
  if (_setjmp(scheduler) != 0) return;
  if (f.started) _longjmp(f.left, 1);
  f.started = true;
  setcontext(&f.start);
}

// Lets the fibers [begin, end) go on, if all of them wait at this barrier.
bool release(int begin, int end, int barrier) {
  const auto first = fibers.begin() + begin, last = fibers.begin() + end;
  if (!std::all_of(first, last, [&](const Fiber& f) { return !f.done && f.waits_at == barrier; })) return false;
  std::for_each(first, last, [](Fiber& f) { f.may_run = true; });
  return true;
}

void run_block(int count) {
  for (auto& [key, room] : shared_memory) std::fill(room.begin(), room.end(), char(0xCB));
  for (int k = 0; k < count; ++k) {
    Fiber& f = fibers[k];
    f.done = f.started = false;
    f.exchanges = 0;
    f.may_run = true;
    makecontext(&f.start, &enter, 0);
  }
  std::vector<int> order(count);
  std::iota(order.begin(), order.end(), 0);
  while (failure.empty()) {
    // Every fiber until its next barrier, or its end.
    std::shuffle(order.begin(), order.end(), random_numbers);
    for (const int k : order) {
      if (!fibers[k].may_run || fibers[k].done) continue;
      fibers[k].may_run = false;
      thread.x = unsigned(k);
      resume(fibers[k]);
    }
    if (!failure.empty() || std::all_of(order.begin(), order.end(), [](int k) { return fibers[k].done; })) return;
    bool released = fibers[0].waits_at != of_warp && release(0, count, fibers[0].waits_at);
    for (int k = 0; k < count; k += warp) released |= release(k, std::min(k + warp, count), of_warp);
    if (!released) failure = "a barrier that only some threads of a block reach";
  }
}

// The kernels and launchers that exist and those that ran; written at the end, where the test asks for it.
struct Report {
  std::set<std::string> known, ran;
  std::set<const void*> kernels;

  ~Report() {
    const char* path = std::getenv("RUSTTORCH_EMULATION_REPORT");
    std::FILE* file = path ? std::fopen(path, "w") : nullptr;
    if (!file) return;
    std::fprintf(file, "%zu launchers ran\n", ran.size());
    for (const auto& name : known) {
      if (!ran.count(name)) std::fprintf(file, "did not run: %s\n", name.c_str());
    }
    for (const void* kernel : kernels) {
      Dl_info library{};
      dladdr(kernel, &library);
      std::fprintf(file, "kernel at %tx\n", static_cast<const char*>(kernel) - static_cast<char*>(library.dli_fbase));
    }
    std::fclose(file);
  }
};
Report& report() {
  static Report report;
  return report;
}

}  // namespace

void exists(const char* launcher) { report().known.insert(launcher); }
void launched(const char* launcher) { report().ran.insert(launcher); }

void barrier(int line) {
  current->waits_at = line;
  leave();
}

// Each exchange has the place that the last one had not: a fiber that has gone on may give again, before others took.
const void* exchange(const void* given, size_t bytes, int lane) {
  const int place = ++current->exchanges % 2, first = int(thread.x) / warp * warp;
  std::memcpy(current->given[place].data(), given, bytes);
  barrier(of_warp);
  return fibers[first + lane % warp].given[place].data();
}

void failed(const char* assertion, const char* file, int line) {
  failure = std::string(file) + ":" + std::to_string(line) + ": Assertion `" + assertion + "` failed.";
  current->done = true;
  leave();
}

void* shared(const void* key, size_t bytes) {
  auto& room = shared_memory[key];
  if (room.size() < bytes) room.assign(bytes, char(0xCB));
  return room.data();
}

void run(dim3 blocks, int threads_of_block, const void* kernel, const std::function<void()>& body) {
  const std::lock_guard<std::mutex> guard(one_launch_at_a_time);
  if (blocks.x == 0 || blocks.y == 0 || blocks.y > 65535 || threads_of_block > 1024) {
    throw std::runtime_error("CUDA error: invalid configuration argument");
  }
  report().kernels.insert(kernel);
  while (int(fibers.size()) < threads_of_block) {
    Fiber& f = fibers.emplace_back();
    getcontext(&f.start);
    f.start.uc_stack.ss_sp = f.stack.get();
    f.start.uc_stack.ss_size = stack_bytes;
    f.start.uc_link = nullptr;
  }
  grid = blocks;
  threads = dim3(unsigned(threads_of_block));
  body_of_launch = &body;
  shared_memory.clear();
  failure.clear();
  for (block.y = 0; block.y < blocks.y; ++block.y) {
    for (block.x = 0; block.x < blocks.x && failure.empty(); ++block.x) run_block(threads_of_block);
  }
  if (!failure.empty()) throw std::runtime_error("CUDA error: device-side assert triggered: " + failure);
}

}  // namespace emulation
