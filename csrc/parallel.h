#pragma once

// Threads: the only file that knows where they come from.

#include <ATen/Parallel.h>
#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace rusttorch {

constexpr int64_t grain = 32768;  // elements that are worth a thread, as in stock

inline int64_t threads() { return at::get_num_threads(); }

// What the calling thread runs in parallel runs in itself alone from now on. at::set_num_threads(1) would say it for
// all threads to come.
inline void use_one_thread() {
  at::get_num_threads();  // else its first call would undo it
  omp_set_num_threads(1);
}

constexpr int64_t divide_up(int64_t n, int64_t by) { return (n + by - 1) / by; }

// f(begin, end) for all of n items of `size` elements each, by several threads where there is enough for them.
template <class F>
void parallel(int64_t n, int64_t size, F f) {
  const int64_t each = divide_up(grain, std::max<int64_t>(1, size));
  if (n <= each) return n > 0 ? f(int64_t(0), n) : void();
  at::parallel_for(0, n, each, f);
}

// f(k, begin, end) for the k-th part of n items of `size` elements, with `each` items in a part: the same parts for any
// number of threads, so that what is joined in their order is the same to the bit.
template <class F>
void parallel_parts(int64_t n, int64_t each, int64_t size, F f) {
  parallel(divide_up(n, each), each * size, [&](int64_t first, int64_t last) {
    for (int64_t k = first; k < last; ++k) f(k, k * each, std::min((k + 1) * each, n));
  });
}

// f(k) for k from 0 to n - 1, each long and none like another: whichever thread is free takes the next.
template <class F>
void parallel_tasks(int64_t n, F f) {
  std::atomic<int64_t> next = 0;
  at::parallel_for(0, std::min(n, threads()), 1, [&](int64_t, int64_t) {
    for (int64_t k; (k = next++) < n;) f(k);
  });
}

}  // namespace rusttorch
