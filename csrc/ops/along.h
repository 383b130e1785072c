#pragma once

// A contiguous tensor around one of its dims: [outer][n][inner].

#include <ATen/Parallel.h>
#include <ATen/TensorIterator.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <optional>

namespace rusttorch {

struct Along {
  int64_t outer = 1, n = 1, inner = 1;
};

// None where the dim is out of range, which is stock's to refuse.
inline std::optional<Along> along(const at::Tensor& x, int64_t dim) {
  if (dim < 0) dim += x.dim();
  if (dim < 0 || dim >= x.dim()) return std::nullopt;
  Along a;
  for (int64_t d = 0; d < dim; ++d) a.outer *= x.size(d);
  a.n = x.size(dim);
  for (int64_t d = dim + 1; d < x.dim(); ++d) a.inner *= x.size(d);
  return a;
}

// f(at, outer, inner) for parts of it, by several threads where it is large: outer runs from the element `at` on, each
// of `inner` columns.
template <class F>
void parallel_along(const Along& a, F f) {
  const int64_t size = a.n * a.inner;
  if (a.outer > 1 || a.inner == 1) {
    return at::parallel_for(0, a.outer, at::divup(at::internal::GRAIN_SIZE, size),
                            [&](int64_t begin, int64_t end) { f(begin * size, end - begin, a.inner); });
  }
  constexpr int64_t columns = 64;  // at least, for a thread
  const int64_t grain = at::divup(at::internal::GRAIN_SIZE, columns * a.n);
  at::parallel_for(0, at::divup(a.inner, columns), grain, [&](int64_t begin, int64_t end) {
    f(begin * columns, 1, std::min(end * columns, a.inner) - begin * columns);
  });
}

}  // namespace rusttorch
