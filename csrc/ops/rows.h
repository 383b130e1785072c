#pragma once

// Rows and elements that are found by an index: embedding, embedding_bag and scatter.

#include <atomic>
#include <limits>
#include <vector>

#include "../kernels/embedding.h"
#include "../kernels/scatter.h"
#include "../memory.h"
#include "op.h"
#include "run.h"

namespace rusttorch {

constexpr int64_t most_rows = std::numeric_limits<int32_t>::max();

inline bool is_index(const Tensor& t) { return t.scalar_type() == at::kLong || t.scalar_type() == at::kInt; }

// A tensor that a kernel of the CPU may be given: its memory is what it says.
inline bool is_strided_on_cpu(const Tensor& t) { return t.layout() == at::kStrided && on_cpu(t) && is_plain(t); }

// f with a pointer to the elements of an index, which is contiguous.
template <class F>
auto with_index(const Tensor& index, F f) {
  return index.scalar_type() == at::kInt ? f(index.const_data_ptr<int32_t>()) : f(index.const_data_ptr<int64_t>());
}

// Whether all are from 0 to below `rows`.
inline bool is_in_range(const Tensor& index, int64_t rows) {
  return with_index(index, [&]<class Index>(const Index* p) {
    using Word = std::make_unsigned_t<Index>;
    const Word last = Word(std::min<int64_t>(rows, std::numeric_limits<Index>::max())) - 1;
    std::atomic<bool> is_in = rows > 0 || index.numel() == 0;
    parallel(index.numel(), 1, [&](int64_t begin, int64_t end) {
      Word signs = 0;  // of each that is negative, or more than the last
      for (int64_t k = begin; k < end; ++k) signs |= Word(p[k]) | (last - Word(p[k]));
      if (Index(signs) < 0) is_in = false;
    });
    return is_in.load();
  });
}

// By `to`, those of one in the order that they are in: by 8 bits of it after the others.
inline void sort_pairs(std::vector<RowPair>& pairs, int64_t rows) {
  std::vector<RowPair> sorted(pairs.size());
  for (int shift = 0; (rows - 1) >> shift > 0; shift += 8) {
    const auto digit = [&](const RowPair& pair) { return size_t(pair.to >> shift & 255); };
    std::array<size_t, 257> begin{};
    for (const RowPair& pair : pairs) ++begin[digit(pair) + 1];
    for (size_t d = 0; d < 256; ++d) begin[d + 1] += begin[d];
    for (const RowPair& pair : pairs) sorted[begin[digit(pair)]++] = pair;
    pairs.swap(sorted);
  }
}

// The rows of out from those of `in` that the pairs name, by a kernel that goes over the rows of out.
inline void run_rows(embedding which, RowsArgs args, const Tensor& out, int64_t rows, const Tensor& in,
                     const std::vector<RowPair>& pairs) {
  if (out.numel() == 0) return;
  args.dtype = *dtype_of(out);
  args.width = out.numel() / rows;
  args.pairs = pairs.data();
  args.n = int64_t(pairs.size());
  args.rows = in.numel() / args.width;
  args.in = in.const_data_ptr();
  args.out = out.mutable_data_ptr();
  // Pages that are new from the kernel are in the cache: those of the pool are not.
  args.stream = !args.adds && out.nbytes() >= size_t(16) << 20 && pool_is_enabled();
  const int64_t elements = args.n * args.width + (args.adds ? 0 : out.numel());
  const Kernel<RowsArgs>& rows_kernel = kernel(which).on(Device::cpu);
  parallel(rows, divide_up(elements, rows),
           [&](int64_t begin, int64_t end) { rows_kernel.run(args.part(begin, end)); });
}

// The outer ones are shared by threads; where there is one, the inner ones.
inline void run_scatter(scatter which, ScatterArgs args) {
  const Kernel<ScatterArgs>& add = kernel(which).on(Device::cpu);
  args.last = args.inner;
  const auto by = [&](int64_t ScatterArgs::* begin, int64_t ScatterArgs::* end, int64_t size) {
    parallel(args.*end, size, [&](int64_t from, int64_t to) {
      ScatterArgs part = args;
      part.*begin = from;
      part.*end = to;
      add.run(part);
    });
  };
  args.end > 1 ? by(&ScatterArgs::begin, &ScatterArgs::end, args.n * args.inner)
               : by(&ScatterArgs::first, &ScatterArgs::last, args.n);
}

}  // namespace rusttorch
