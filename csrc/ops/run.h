#pragma once

// How a kernel runs: on a device all of a call at once, on the CPU in parts that threads share.

#include <c10/core/DeviceGuard.h>

#include "../kernels/along.h"
#include "../parallel.h"
#include "tensor.h"

namespace rusttorch {

template <class A>
void run_on_device(const Tensor& on, const Kernel<A>& kernel, const A& args) {
  const c10::DeviceGuard guard(on.device());
  kernel.run(args);
}

// n items of `size` elements, which do not depend on each other.
template <class A>
void run_items(const Tensor& on, const Kernel<A>& kernel, const A& args, int64_t n, int64_t size) {
  if (!on_cpu(on)) return run_on_device(on, kernel, args);
  if (n * size < grain) return kernel.run(args);
  parallel(n, size, [&](int64_t begin, int64_t end) { kernel.run(args.part(begin, end)); });
}

// A contiguous tensor around one of its dims. Not where the dim is out of range, which is stock's to refuse.
inline bool around(const Tensor& x, int64_t dim, Along& a) {
  if (dim < 0) dim += x.dim();
  if (dim < 0 || dim >= x.dim()) return false;
  a.outer = a.inner = 1;
  for (int64_t d = 0; d < dim; ++d) a.outer *= x.size(d);
  a.n = x.size(dim);
  for (int64_t d = dim + 1; d < x.dim(); ++d) a.inner *= x.size(d);
  a.row = a.inner;
  return true;
}

// Along a dim: the outer ones are shared; where there is one, its columns.
template <class A>
void run_along(const Tensor& on, const Kernel<A>& kernel, const A& args) {
  if (!on_cpu(on)) return run_on_device(on, kernel, args);
  const int64_t size = args.n * args.inner;
  if (args.outer * size < grain) return kernel.run(args);
  if (args.outer > 1 || args.inner == 1) {
    return parallel(args.outer, size,
                    [&](int64_t begin, int64_t end) { kernel.run(args.part(begin * size, end - begin, args.inner)); });
  }
  constexpr int64_t columns = 64;  // at least, for a thread
  parallel(divide_up(args.inner, columns), columns * args.n, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * columns;
    kernel.run(args.part(first, 1, std::min(end * columns, args.inner) - first));
  });
}

}  // namespace rusttorch
