#include "rows.h"
#include "stock.h"

namespace rusttorch {
namespace {

enum Mode : int64_t { sum, mean, max };

// Weights of the indices, given or not: one for each.
bool fits_weights(MaybeTensor weights, const Tensor& like, int64_t n, int64_t mode) {
  return !given(weights) || (mode == sum && weights->dim() == 1 && weights->numel() == n &&
                             is_strided_on_cpu(*weights) && weights->scalar_type() == like.scalar_type());
}

// In what a kernel computes in.
at::ScalarType compute_type(const Tensor& t) { return t.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }

// f with a number of a kernel's type.
template <class F>
void with_compute_type(const Tensor& t, F f) {
  t.scalar_type() == at::kDouble ? f(double()) : f(float());
}

bool are_indices(std::initializer_list<const Tensor*> tensors) {
  const Tensor& first = **tensors.begin();
  return std::all_of(tensors.begin(), tensors.end(), [&](const Tensor* t) {
    return t->dim() == 1 && is_strided_on_cpu(*t) && t->is_contiguous() && is_index(*t) &&
           t->scalar_type() == first.scalar_type() && t->numel() <= most_rows;
  });
}
bool is_matrix(const Tensor& t) {
  return t.dim() == 2 && is_strided_on_cpu(t) && at::isFloatingType(t.scalar_type()) && dtype_of(t) &&
         t.size(0) <= most_rows;
}

// Where the bags begin, which may be followed by where the last one ends.
struct Bags {
  const Tensor& offsets;
  int64_t n;  // of the indices
  bool include_last_offset = false;

  int64_t size() const { return offsets.numel() - include_last_offset; }

  // Whether every index is in one bag.
  bool hold_all() const {
    return with_index(offsets, [&](const auto* p) {
      return size() > 0 && p[0] == 0 && std::is_sorted(p, p + offsets.numel()) &&
             (include_last_offset ? p[size()] == n : p[size() - 1] <= n);
    });
  }

  // And in one of the first so many.
  bool hold_all_before(int64_t count) const {
    return size() <= count || with_index(offsets, [&](const auto* p) { return p[count] == n; });
  }

  // f(bag, begin, end)
  template <class F>
  void each(F f) const {
    with_index(offsets, [&](const auto* p) {
      for (int64_t b = 0; b < size(); ++b) f(b, int64_t(p[b]), b + 1 < size() ? int64_t(p[b + 1]) : n);
    });
  }

  Tensor offset2bag() const {
    const Tensor bags = empty_beside(offsets, {n}, offsets.scalar_type());
    with_index(bags, [&]<class Index>(const Index*) {
      Index* const to = bags.mutable_data_ptr<Index>();
      each([&](int64_t b, int64_t begin, int64_t end) { std::fill(to + begin, to + end, Index(b)); });
    });
    return bags;
  }
};

class BagPlan;

struct BagRequest {
  using Plan = BagPlan;
  const Tensor &weight, &indices, &offsets;
  int64_t mode;
  MaybeTensor per_sample_weights;
  bool include_last_offset;
  int64_t padding_idx;
  bool forward_only;

  Device device() const { return device_type(weight); }
};

class BagPlan {
 public:
  explicit BagPlan(const BagRequest& request) : request_(request), reason_(fit()) {}

  Handed reason() const { return reason_; }

  // What is wrong with the values is stock's to say.
  void look() {
    if (reason_ == Handed::no && !(bags_.hold_all() && is_in_range(request_.indices, request_.weight.size(0)))) {
      reason_ = Handed::option;
    }
  }

  template <class R>
  R compute() const {
    return with_index(request_.indices, [&](const auto* p) { return compute_of(p); });
  }

 private:
  const BagRequest& request_;
  Bags bags_{request_.offsets, request_.indices.numel(), request_.include_last_offset};
  Handed reason_;

  Handed fit() const {
    const auto& [weight, indices, offsets, mode, per_sample_weights, include_last_offset, padding_idx, _] = request_;
    if (!are_indices({&indices, &offsets}) || !is_matrix(weight)) return Handed::option;
    if (!weight.is_contiguous()) return Handed::layout;
    if (mode < sum || mode > max || !fits_weights(per_sample_weights, weight, indices.numel(), mode)) {
      return Handed::option;
    }
    return bags_.size() < 1 || weight.size(1) == 0 || stock_is_faster() ? Handed::size : Handed::no;
  }

  // By measurement: its kernel for sums without padding is at the limit, and means are little more than those where
  // there are many indices (of which ours makes pairs), and in 16 bits of all but narrow rows of small bags.
  bool stock_is_faster() const {
    const Tensor& weight = request_.weight;
    MaybeTensor weights = request_.per_sample_weights;
    if (weight.scalar_type() == at::kDouble || request_.padding_idx >= 0) return false;
    if (request_.mode == sum) return !given(weights) || weights->stride(0) == 1;
    if (request_.mode == max) return false;
    const int64_t columns = weight.size(1);
    if (bags_.n >= 20'000 && columns < 256) return true;
    return weight.scalar_type() != at::kFloat && (columns < 4 || columns >= 32 || bags_.n >= 32 * bags_.size());
  }

  template <class Index>
  std::tuple<Tensor, Tensor, Tensor, Tensor> compute_of(const Index* indices) const {
    const Tensor &weight = request_.weight, &offsets = request_.offsets;
    const auto integers = [&](at::IntArrayRef sizes) { return empty_beside(offsets, sizes, offsets.scalar_type()); };
    const int64_t mode = request_.mode, bags = bags_.size(), columns = weight.size(1);
    const Tensor out = empty_beside(weight, {bags, columns}, weight.scalar_type());
    const Tensor offset2bag = bags_.offset2bag();
    const Tensor bag_size = integers({request_.forward_only && mode == sum ? offsets.numel() : bags});
    const Tensor max_indices = mode == max ? integers({bags, columns}) : integers(bag_size.sizes());

    std::vector<RowPair> pairs;
    pairs.reserve(size_t(bags_.n));
    Index* const count = bag_size.mutable_data_ptr<Index>();
    bags_.each([&](int64_t b, int64_t begin, int64_t end) {
      const size_t before = pairs.size();
      for (int64_t k = begin; k < end; ++k) {
        if (indices[k] != Index(request_.padding_idx)) pairs.push_back({int32_t(b), int32_t(indices[k])});
      }
      count[b] = Index(pairs.size() - before);
    });
    const Tensor scales = scales_of(indices);
    RowsArgs args{.scales = scales.defined() ? scales.const_data_ptr() : nullptr, .averages = mode == mean};
    if (mode == max) {
      args.which = max_indices.mutable_data_ptr();
      args.integer = *dtype_of(max_indices);
    }
    run_rows(mode == max ? embedding::largest_rows : embedding::add_rows, args, out, bags, weight, pairs);
    if (mode == sum) std::fill_n(count, bag_size.numel(), Index());
    if (mode != max) std::copy_n(count, bag_size.numel(), max_indices.mutable_data_ptr<Index>());
    return {out, offset2bag, bag_size, max_indices};
  }

  // The weights of those that are not padding.
  template <class Index>
  Tensor scales_of(const Index* indices) const {
    if (!given(request_.per_sample_weights)) return {};
    const Tensor weights = request_.per_sample_weights->to(compute_type(request_.weight)).contiguous();
    const Tensor scales = empty_beside(weights, weights.sizes(), weights.scalar_type());
    with_compute_type(weights, [&]<class C>(C) {
      const C* const weight = weights.const_data_ptr<C>();
      C* scale = scales.mutable_data_ptr<C>();
      for (int64_t k = 0; k < bags_.n; ++k) {
        if (indices[k] != Index(request_.padding_idx)) *scale++ = weight[k];
      }
    });
    return scales;
  }
};

template <bool forward_only>
struct Bag {
  static BagRequest request(const Tensor& weight, const Tensor& indices, const Tensor& offsets, bool, int64_t mode,
                            bool, MaybeTensor per_sample_weights, bool include_last_offset, int64_t padding_idx) {
    return {weight, indices, offsets, mode, per_sample_weights, include_last_offset, padding_idx, forward_only};
  }
};

[[noreturn]] void refuse() {
  TORCH_CHECK(false, "embedding_bag: Expected idx >= 0 && idx < num_embeddings, and bags of the gradient's, ",
              "but found another in indices or offset2bag (do the offsets end before the indices?)");
}

class BagBackwardPlan;

struct BagBackwardRequest {
  using Plan = BagBackwardPlan;
  const Tensor &grad, &indices, &offset2bag, &bag_size, &maximum_indices;
  int64_t rows;
  bool scale_grad_by_freq;
  int64_t mode;
  MaybeTensor per_sample_weights;
  int64_t padding_idx;

  Device device() const { return device_type(grad); }
};

class BagBackwardPlan {
 public:
  explicit BagBackwardPlan(const BagBackwardRequest& request) : request_(request), reason_(fit()) {}

  Handed reason() const { return reason_; }

  // Stock does not look at the indices, but writes where they say; of the largest it does.
  void look() {
    if (reason_ != Handed::no) return;
    if (request_.mode == max) {
      if (!is_in_range(request_.maximum_indices, request_.rows)) reason_ = Handed::option;
    } else if (!is_in_range(request_.indices, request_.rows) ||
               !is_in_range(request_.offset2bag, request_.grad.size(0))) {
      refuse();
    }
  }

  template <class R>
  R compute() const {
    const Tensor grad = request_.grad.contiguous();
    const Tensor out = empty_beside(grad, {request_.rows, grad.size(1)}, grad.scalar_type());
    if (request_.mode == max) {
      run_rows(embedding::add_rows, {}, out, request_.rows, grad, {});  // zeros
      with_index(request_.bag_size, [&](const auto* sizes) { add_largest(out, grad, sizes); });
    } else {
      with_index(request_.indices, [&](const auto* indices) { add_all(out, grad, indices); });
    }
    return out;
  }

 private:
  const BagBackwardRequest& request_;
  Handed reason_;

  Handed fit() const {
    const auto& [grad, indices, offset2bag, bag_size, maximum_indices, rows, scale_grad_by_freq, mode, weights,
                 padding_idx] = request_;
    if (!is_matrix(grad)) return Handed::option;
    if (rows < 0 || rows > most_rows) return Handed::size;
    if (scale_grad_by_freq && mode != max) return Handed::option;  // stock divides by how often another row is named
    if (mode == max) {
      return are_indices({&bag_size}) && bag_size.numel() == grad.size(0) && is_strided_on_cpu(maximum_indices) &&
                     maximum_indices.is_contiguous() && is_index(maximum_indices) &&
                     maximum_indices.sizes().equals(grad.sizes())
                 ? Handed::no
                 : Handed::option;
    }
    const bool fits = (mode == sum || mode == mean) && are_indices({&indices, &offset2bag}) &&
                      indices.numel() == offset2bag.numel() && fits_weights(weights, grad, indices.numel(), mode) &&
                      (mode == sum || (are_indices({&indices, &bag_size}) && bag_size.numel() == grad.size(0)));
    return fits ? Handed::no : Handed::option;
  }

  template <class Index>
  void add_all(const Tensor& out, const Tensor& grad, const Index* indices) const {
    std::vector<RowPair> pairs;
    pairs.reserve(size_t(request_.indices.numel()));
    for (int64_t k = 0; k < request_.indices.numel(); ++k) {
      if (indices[k] != Index(request_.padding_idx)) pairs.push_back({int32_t(indices[k]), int32_t(k)});
    }
    sort_pairs(pairs, request_.rows);
    const Tensor scales = scales_of(pairs);
    const Index* const bag = request_.offset2bag.const_data_ptr<Index>();
    for (RowPair& pair : pairs) pair.from = int32_t(bag[pair.from]);
    const RowsArgs args{.scales = scales.defined() ? scales.const_data_ptr() : nullptr};
    run_rows(embedding::add_rows, args, out, request_.rows, grad, pairs);
  }

  // Of each pair of a row and an index: the index's weight, or one over the size of its bag.
  Tensor scales_of(const std::vector<RowPair>& pairs) const {
    const bool weighted = given(request_.per_sample_weights);
    if (request_.mode == sum && !weighted) return {};
    const at::ScalarType dtype = compute_type(request_.grad);
    Tensor all;
    if (weighted) {
      all = request_.per_sample_weights->to(dtype).contiguous();
    } else {
      all = request_.bag_size.to(dtype).reciprocal_().index_select(0, request_.offset2bag);
    }
    const Tensor scales = empty_beside(all, {int64_t(pairs.size())}, dtype);
    with_compute_type(all, [&]<class C>(C) {
      const C* const from = all.const_data_ptr<C>();
      std::transform(pairs.begin(), pairs.end(), scales.mutable_data_ptr<C>(), [&](RowPair p) { return from[p.from]; });
    });
    return scales;
  }

  // Bags that are not empty, as many at once as there are side by side.
  template <class Index>
  void add_largest(const Tensor& out, const Tensor& grad, const Index* sizes) const {
    const Tensor index = request_.maximum_indices.to(at::kLong);
    const int64_t bags = grad.size(0), columns = grad.size(1);
    for (int64_t begin = 0, end; begin < bags; begin = end + 1) {
      for (end = begin; end < bags && sizes[end] != 0;) ++end;
      ScatterArgs args{.dtype = *dtype_of(grad),
                       .n = end - begin,
                       .inner = columns,
                       .rows = request_.rows,
                       .index = index.const_data_ptr<int64_t>() + begin * columns,
                       .in = grad.const_data_ptr(),
                       .out = out.mutable_data_ptr()};
      advance(args.in, begin * columns * grad.element_size());
      run_scatter(scatter::scatter_add, args);
    }
  }
};

struct BagDenseBackward {
  static BagBackwardRequest request(const Tensor& grad, const Tensor& indices, const Tensor& offset2bag,
                                    const Tensor& bag_size, const Tensor& maximum_indices,
                                    const c10::SymInt& num_weights, bool scale_grad_by_freq, int64_t mode,
                                    MaybeTensor per_sample_weights, int64_t padding_idx) {
    return {grad,
            indices,
            offset2bag,
            bag_size,
            maximum_indices,
            num_weights.guard_int(__FILE__, __LINE__),
            scale_grad_by_freq,
            mode,
            per_sample_weights,
            padding_idx};
  }
};

class BagWeightsBackwardPlan;

struct BagWeightsBackwardRequest {
  using Plan = BagWeightsBackwardPlan;
  const Tensor &grad, &weight, &indices, &offsets, &offset2bag;
  int64_t mode, padding_idx;

  Device device() const { return device_type(grad); }
};

class BagWeightsBackwardPlan {
 public:
  explicit BagWeightsBackwardPlan(const BagWeightsBackwardRequest& request) : request_(request), reason_(fit()) {}

  Handed reason() const { return reason_; }

  void look() {
    if (reason_ != Handed::no) return;
    const Bags bags{request_.offsets, request_.indices.numel()};
    if (has_no_bags_ && !bags.hold_all()) {
      reason_ = Handed::option;
    } else if (!is_in_range(request_.indices, request_.weight.size(0)) ||
               (has_no_bags_ ? !bags.hold_all_before(request_.grad.size(0))
                             : !is_in_range(request_.offset2bag, request_.grad.size(0)))) {
      refuse();
    }
  }

  template <class R>
  R compute() const {
    return with_index(request_.indices, [&](const auto* indices) { return compute_of(indices); });
  }

 private:
  const BagWeightsBackwardRequest& request_;
  bool has_no_bags_ = request_.offset2bag.numel() == 0;
  Handed reason_;

  Handed fit() const {
    const auto& [grad, weight, indices, offsets, offset2bag, mode, padding_idx] = request_;
    const bool fits = mode == sum && is_matrix(grad) && is_matrix(weight) &&
                      are_indices({&indices, &offsets, &offset2bag}) && weight.scalar_type() == grad.scalar_type() &&
                      weight.size(1) == grad.size(1) && (has_no_bags_ || offset2bag.numel() == indices.numel());
    if (!fits) return Handed::option;
    return weight.is_contiguous() ? Handed::no : Handed::layout;
  }

  template <class Index>
  Tensor compute_of(const Index* indices) const {
    const Tensor grad = request_.grad.contiguous();
    const int64_t n = request_.indices.numel(), columns = grad.size(1);
    const Tensor bags = has_no_bags_ ? Bags{request_.offsets, n}.offset2bag() : request_.offset2bag;
    const Tensor out = empty_beside(grad, {n}, grad.scalar_type());
    const Index* const bag = bags.const_data_ptr<Index>();
    std::vector<RowPair> pairs;
    pairs.reserve(size_t(n));
    for (int64_t k = 0; k < n; ++k) pairs.push_back({int32_t(bag[k]), int32_t(indices[k])});
    const RowsArgs args{.dtype = *dtype_of(grad),
                        .width = columns,
                        .pairs = pairs.data(),
                        .n = n,
                        .in = request_.weight.const_data_ptr(),
                        .other = grad.const_data_ptr(),
                        .out = out.mutable_data_ptr()};
    const auto& kernel = rusttorch::kernel(embedding::dot_rows).on(Device::cpu);
    parallel(n, columns, [&](int64_t begin, int64_t end) { kernel.run(args.part(begin, end)); });
    if (request_.padding_idx >= 0) out.masked_fill_(request_.indices.eq(request_.padding_idx), 0);
    return out;
  }
};

struct BagWeightsBackward {
  static BagWeightsBackwardRequest request(const Tensor& grad, const Tensor& weight, const Tensor& indices,
                                           const Tensor& offsets, const Tensor& offset2bag, int64_t mode,
                                           int64_t padding_idx) {
    return {grad, weight, indices, offsets, offset2bag, mode, padding_idx};
  }
};

}  // namespace

const Rows& embedding_bag_rows() {
  static const Rows rows = {
      ROW("_embedding_bag", Bag<false>, STOCK(_embedding_bag)),
      ROW("_embedding_bag_forward_only", Bag<true>, STOCK(_embedding_bag_forward_only)),
      ROW("_embedding_bag_dense_backward", BagDenseBackward, STOCK(_embedding_bag_dense_backward_symint)),
      ROW("_embedding_bag_per_sample_weights_backward", BagWeightsBackward,
          STOCK(_embedding_bag_per_sample_weights_backward)),
  };
  return rows;
}

}  // namespace rusttorch
