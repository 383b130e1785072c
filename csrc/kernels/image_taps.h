#pragma once

// Which lines of an image each line of a result is made of, and by which weights.

#include <algorithm>
#include <cmath>
#include <vector>

#include "image.h"
#include "resize_rule.h"

namespace rusttorch {

// `size` of the lines of a dim, from begin on, of which a result's `out` are made.
struct ImageSpan {
  int64_t in, begin, size, out;
};

// Filters (linear_aa, cubic_aa) reach beyond the span where there are lines, as Pillow's do; the others (linear,
// cubic), which are aten's, do not. The nearest is Pillow's.
//
// Weights are floats, or integers with image_weight_bits behind the point, as Pillow's.
template <class Weight>
class ImageTaps {
 public:
  // is_reversed: the result's last line comes first.
  ImageTaps(Interpolation how, const ImageSpan& span, bool is_reversed) {
    first_.reserve(size_t(span.out));
    begin_.reserve(size_t(span.out) + 1);
    const double step = double(span.size) / double(span.out);
    const bool filters = has_filter(how);
    const ResizeRule<double> rule{how,      false, filters ? span.in : span.size,
                                  span.out, step,  filters ? double(span.begin) : 0};
    double center = double(span.begin) + step / 2;  // summed up as Pillow does, with its roundings
    for (int64_t o = 0; o < span.out; ++o, center += step) {
      begin_.push_back(weights_.size());
      if (span.size == span.out) {
        add(span.begin + o, 1);
      } else if (how == Interpolation::nearest) {
        add(std::min(int64_t(center), span.in - 1), 1);
      } else {
        const int64_t before = filters ? 0 : span.begin;
        rule.each_tap(o, [&](int64_t i, double weight) { add(before + i, weight); });
      }
    }
    begin_.push_back(weights_.size());
    fill(span.in, is_reversed);
  }

  // Counts only the lines that are needed, and returns them.
  std::vector<int32_t> count_needed() {
    std::vector<int32_t> lines;
    for (int32_t& first : first_) {
      const int32_t end = first + int32_t(taps_);
      for (int32_t i = lines.empty() ? first : std::max(first, lines.back() + 1); i < end; ++i) lines.push_back(i);
      first = int32_t(std::lower_bound(lines.begin(), lines.end(), first) - lines.begin());
    }
    return lines;
  }

  ImageDim dim() const { return {int64_t(first_.size()), taps_, first_.data(), weights_.data()}; }

 private:
  // To the line that was begun last. At a border a tap may come twice.
  void add(int64_t i, double exact) {
    const auto one = double(1 << image_weight_bits);
    const Weight weight = std::is_integral_v<Weight> ? Weight(std::round(exact * one)) : Weight(exact);
    if (first_.size() < begin_.size()) {
      first_.push_back(int32_t(i));
    } else if (int64_t(first_.back()) + int64_t(weights_.size() - begin_.back()) > i) {
      weights_.back() += weight;
      return;
    }
    weights_.push_back(weight);
  }

  // As many taps for each line, by weights of 0 where it has fewer.
  void fill(int64_t in, bool is_reversed) {
    const size_t out = first_.size();
    for (size_t o = 0; o < out; ++o) taps_ = std::max(taps_, int64_t(begin_[o + 1] - begin_[o]));
    std::vector<Weight> filled(out * size_t(taps_));
    for (size_t o = 0; o < out; ++o) {
      const int64_t before = std::max<int64_t>(0, first_[o] + taps_ - in);
      first_[o] -= int32_t(before);
      const size_t to = (is_reversed ? out - 1 - o : o) * size_t(taps_) + size_t(before);
      std::copy(&weights_[begin_[o]], &weights_[begin_[o + 1] - 1] + 1, &filled[to]);
    }
    weights_ = std::move(filled);
    if (is_reversed) std::reverse(first_.begin(), first_.end());
  }

  int64_t taps_ = 1;
  std::vector<int32_t> first_;
  std::vector<size_t> begin_;
  std::vector<Weight> weights_;
};

}  // namespace rusttorch
