#pragma once

// Work over lists of tensors: many small ones share one parallel region, a large one is shared by the threads.

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../parallel.h"

namespace rusttorch {

// f(begin, end) for all of so many items, which have so many elements together.
template <class F>
void parallel_list(int64_t count, int64_t elements, F f) {
  parallel(count, elements / std::max<int64_t>(1, count), f);
}

// Whether the order in which the items of some lists are worked on can be seen: the i-th tensors of all lists are one
// item, and memory is shared by two items, or by two tensors of one that do not begin and end at the same place.
inline bool order_matters(const std::vector<at::TensorList>& lists) {
  struct Memory {
    const char *begin, *end;
    size_t item;
  };
  std::vector<Memory> all;
  for (const auto& list : lists) {
    for (size_t i = 0; i < list.size(); ++i) {
      const auto* begin = static_cast<const char*>(list[i].const_data_ptr());
      if (list[i].nbytes() > 0) all.push_back({begin, begin + list[i].nbytes(), i});
    }
  }
  // By where they begin: of two that share memory, the first one shares some with its neighbour.
  std::sort(all.begin(), all.end(), [](const Memory& a, const Memory& b) { return a.begin < b.begin; });
  for (size_t k = 1; k < all.size(); ++k) {
    const Memory &a = all[k - 1], &b = all[k];
    const bool the_same = a.item == b.item && a.begin == b.begin && a.end == b.end;
    if (b.begin < a.end && !the_same) return true;
  }
  return false;
}

class Parts {
 public:
  // Another tensor, of n elements.
  void add(int64_t n) {
    total_ += n;
    lengths_.push_back(n);
    before_.push_back(before_.back() + divide_up(n, grain));
  }
  int64_t count() const { return before_.back(); }
  // Where the i-th tensor's parts begin, among all.
  int64_t begin(size_t i) const { return before_[i]; }

  // run(k, i, first, n) for the k-th part: n elements of the i-th tensor, from its first on.
  template <class Run>
  void run(Run run) const {
    parallel_list(count(), total_, [&](int64_t begin, int64_t end) {
      size_t i = std::upper_bound(before_.begin(), before_.end(), begin) - before_.begin() - 1;
      for (int64_t k = begin; k < end; ++k) {
        while (k >= before_[i + 1]) ++i;
        const int64_t first = (k - before_[i]) * grain;
        run(k, i, first, std::min(grain, lengths_[i] - first));
      }
    });
  }

 private:
  std::vector<int64_t> lengths_, before_{0};  // before_: parts of the tensors before
  int64_t total_ = 0;
};

}  // namespace rusttorch
