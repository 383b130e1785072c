#include <ATen/ExpandUtils.h>
#include <ATen/core/List.h>

#include "rows.h"
#include "stock.h"

namespace rusttorch {
namespace {

class ScatterPlan;

constexpr int64_t least_put = 128;  // elements

// What an index out of range is, in stock.
enum class Outside : uint8_t {
  named,     // an error that names it
  index,     // an IndexError
  from_end,  // below 0 it is counted from the end; else an IndexError that names it
};

// Elements of `source` are added to those of self that an index along dim names.
struct ScatterRequest {
  using Plan = ScatterPlan;
  const Tensor& self;
  const Tensor& source;
  int64_t dim = 0;
  std::vector<Tensor> indices = {};  // of source's sizes; or of slices: one, or one each for so many dims from dim on
  bool slices = true;
  Outside outside = Outside::named;
  Handed refused = Handed::no;  // why no kernel is to look at the rest, which may then be anything

  Device device() const { return device_type(self); }
};

class ScatterPlan {
 public:
  explicit ScatterPlan(const ScatterRequest& request) : request_(request), reason_(fit()) {}

  Handed reason() const { return reason_; }

  template <class R>
  R compute() {
    const Tensor out = empty_beside(self_, self_.sizes(), self_.scalar_type());
    run(out);
    return out;
  }

  bool accepts(const Tensor& out) {
    const bool fits =
        !is_read(out) && (out.is_same(self_) || is_contiguous_output(out, self_.scalar_type(), self_.sizes(), self_));
    if (!fits) reason_ = Handed::layout;
    return fits;
  }

  void run(const Tensor& out) {
    const Tensor places = request_.slices ? places_of_slices() : places_of_elements();
    const Tensor from = source_.contiguous();
    if (!out.is_same(self_)) out.copy_(self_);
    is_to_be_sorted_ ? add_sorted(out, from, places) : add(out, from, places);
  }

 private:
  const ScatterRequest& request_;
  const Tensor &self_ = request_.self, &source_ = request_.source;
  at::DimVector shape_;           // of the index
  int64_t outer_, rows_, inner_;  // of self around the dims that are indexed
  int64_t n_;                     // of what is added to those, for each of the outer ones
  bool is_to_be_sorted_ = false;
  Handed reason_;

  Handed fit() {
    if (request_.refused != Handed::no) return request_.refused;
    if (!is_strided_on_cpu(self_) || !is_strided_on_cpu(source_)) return Handed::option;
    for (const Tensor& index : request_.indices) {
      if (!is_strided_on_cpu(index)) return Handed::option;
      if (!is_index(index)) return Handed::dtype;
    }
    const std::optional<Dtype> dtype = dtype_of(self_);
    if (!dtype || !(numbers >> int(*dtype) & 1) || source_.scalar_type() != self_.scalar_type()) return Handed::dtype;
    if (!self_.is_contiguous()) return Handed::layout;
    if (!fits_shapes()) return Handed::option;
    if (source_.numel() == 0 || rows_ == 0 || rows_ > most_rows || n_ > most_rows) return Handed::size;
    if (stock_is_faster()) return Handed::size;
    is_to_be_sorted_ = outer_ == 1 && inner_ >= 16 && request_.slices && at::isReducedFloatingType(self_.scalar_type());
    return Handed::no;
  }

  // By measurement: its loops over numbers that lie along dim, of an index for each, and of 16 bits of one for all;
  // over float16's numbers, one by one; over rows of whole pages, which meet in the cache; and index_put of little,
  // with several indices. Of few columns of 16 bits, added to rows, it has sums in float32.
  bool stock_is_faster() const {
    const at::ScalarType dtype = self_.scalar_type();
    const bool is_put = request_.outside == Outside::from_end, is_one_by_one = !request_.slices || inner_ < 16;
    if (dtype == at::kHalf && is_one_by_one) return true;
    if (is_put) return request_.indices.size() > 1 && source_.numel() < least_put;
    if (!request_.slices) return inner_ == 1 || (self_.element_size() < 8 && inner_ * self_.element_size() % 4096 == 0);
    return at::isReducedFloatingType(dtype) && is_one_by_one && request_.outside == Outside::named;
  }

  // Whether out shares memory with what is added to it, or an index.
  bool is_read(const Tensor& out) const {
    const auto shares = [&](const Tensor& t) { return out.is_alias_of(t) || overlap(out, t); };
    return shares(source_) || std::any_of(request_.indices.begin(), request_.indices.end(), shares);
  }

  bool fits_shapes() {
    const at::IntArrayRef sizes = self_.sizes();
    const auto dim = size_t(request_.dim), count = request_.indices.size();
    if (dim + count > sizes.size()) return false;
    outer_ = c10::multiply_integers(sizes.slice(0, dim));
    rows_ = c10::multiply_integers(sizes.slice(dim, count));
    inner_ = c10::multiply_integers(sizes.slice(dim + count));
    at::DimVector fitting(sizes.begin(), sizes.end());
    if (request_.slices) {
      for (const Tensor& index : request_.indices) {
        if (!at::are_expandable(shape_, index.sizes())) return false;
        shape_ = at::infer_size_dimvector(shape_, index.sizes());
      }
      n_ = c10::multiply_integers(shape_);
      fitting.erase(fitting.begin() + dim, fitting.begin() + dim + count);
      fitting.insert(fitting.begin() + dim, shape_.begin(), shape_.end());
    } else {
      const Tensor& index = request_.indices[0];
      if (index.dim() != self_.dim() || !index.sizes().equals(source_.sizes())) return false;
      n_ = fitting[dim] = index.size(request_.dim);
    }
    return source_.sizes().equals(fitting);
  }

  Tensor places_of_slices() const {
    const Tensor& only = request_.indices[0];
    if (request_.indices.size() == 1 && only.scalar_type() == at::kLong) {
      const Tensor index = only.contiguous();
      if (is_in_range(index, rows_)) return index;
    }
    const Tensor places = empty_beside(self_, {n_}, at::kLong);
    int64_t* const place = places.mutable_data_ptr<int64_t>();
    std::fill_n(place, n_, 0);
    int64_t dim = request_.dim;
    for (const Tensor& index : request_.indices) {
      const int64_t size = self_.size(dim);
      with_index(index.expand(shape_).contiguous(), [&](const auto* p) {
        for (int64_t k = 0; k < n_; ++k) {
          int64_t row = p[k];
          if (row < 0 && request_.outside == Outside::from_end) row += size;
          if (row < 0 || row >= size) refuse(p[k], dim);
          place[k] = place[k] * size + row;
        }
      });
      ++dim;
    }
    return places;
  }

  Tensor places_of_elements() const {
    const Tensor index = request_.indices[0].contiguous();
    if (!is_in_range(index, rows_)) {
      const auto* p = index.const_data_ptr<int64_t>();
      refuse(*std::find_if(p, p + index.numel(), [&](int64_t row) { return row < 0 || row >= rows_; }), request_.dim);
    }
    return index;
  }

  [[noreturn]] void refuse(int64_t row, int64_t dim) const {
    TORCH_CHECK_INDEX(request_.outside != Outside::index, "index out of range in self");
    const bool is_put = request_.outside == Outside::from_end;  // which counts the dims that are indexed
    const std::string text = c10::str("index ", row, " is out of bounds for dimension ",
                                      is_put ? dim - request_.dim : dim, " with size ", self_.size(dim));
    TORCH_CHECK_INDEX(!is_put, text);
    TORCH_CHECK(false, text);
  }

  // Each row's sum is rounded once.
  void add_sorted(const Tensor& out, const Tensor& from, const Tensor& places) const {
    const auto* place = places.const_data_ptr<int64_t>();
    std::vector<RowPair> pairs;
    pairs.reserve(size_t(n_));
    for (int64_t k = 0; k < n_; ++k) pairs.push_back({int32_t(place[k]), int32_t(k)});
    sort_pairs(pairs, rows_);
    run_rows(embedding::add_rows, {.adds = true}, out, rows_, from, pairs);
  }

  void add(const Tensor& out, const Tensor& from, const Tensor& places) const {
    run_scatter(request_.slices ? scatter::index_add : scatter::scatter_add, {.dtype = *dtype_of(self_),
                                                                              .n = n_,
                                                                              .inner = inner_,
                                                                              .rows = rows_,
                                                                              .end = outer_,
                                                                              .index = places.const_data_ptr<int64_t>(),
                                                                              .in = from.const_data_ptr(),
                                                                              .out = out.mutable_data_ptr()});
  }
};

struct IndexAdd {
  static ScatterRequest request(const Tensor& self, int64_t dim, const Tensor& index, const Tensor& source,
                                const Scalar& alpha) {
    const int64_t at = dim < 0 ? dim + self.dim() : dim;
    const bool fits = at >= 0 && at < self.dim() && index.dim() == 1 && source.dim() == self.dim() && alpha.equal(1);
    const bool as_scatter = self.dim() > 1 && (at == 0 || at == self.dim() - 1) && index.scalar_type() == at::kLong;
    return {.self = self,
            .source = source,
            .dim = at,
            .indices = {index},
            .outside = as_scatter ? Outside::named : Outside::index,
            .refused = fits ? Handed::no : Handed::option};
  }
};

struct ScatterAdd {
  static ScatterRequest request(const Tensor& self, int64_t dim, const Tensor& index, const Tensor& src) {
    const int64_t at = dim < 0 ? dim + self.dim() : dim;
    const bool fits = at >= 0 && at < self.dim() && index.dim() == self.dim() && src.dim() == self.dim() &&
                      index.layout() == at::kStrided && index.scalar_type() == at::kLong;
    if (!fits) return {.self = self, .source = src, .refused = Handed::option};
    // Of an index that is expanded from one for each slice.
    bool slices = self.dim() > 1 && index.sizes().equals(src.sizes()) && index.numel() > 0;
    for (int64_t d = 0; slices && d < index.dim(); ++d) slices = d == at || index.stride(d) == 0;
    Tensor one = index;
    for (int64_t d = index.dim() - 1; slices && d >= 0; --d) one = d == at ? one : one.select(d, 0);
    return {.self = self, .source = src, .dim = at, .indices = {one}, .slices = slices};
  }
};

// self[..., indices, ...] += values, of neighbouring dims.
struct IndexPut {
  static ScatterRequest request(const Tensor& self, const c10::List<std::optional<Tensor>>& indices,
                                const Tensor& values, bool accumulate, bool unsafe) {
    ScatterRequest request{.self = self, .source = values, .outside = Outside::from_end};
    bool fits = accumulate, has_ended = false;
    for (const std::optional<Tensor>& index : indices) {
      if (!given(index)) {
        request.indices.empty() ? void(++request.dim) : void(has_ended = true);
      } else {
        fits = fits && !has_ended;
        request.indices.push_back(*index);
      }
    }
    if (!fits || request.indices.empty()) request.refused = Handed::option;
    return request;
  }
};

}  // namespace

const Rows& scatter_rows() {
  static const Rows rows = {
      ROW("index_add", IndexAdd, STOCK(index_add)),
      ROW("index_add_", IndexAdd, STOCK(index_add_)),
      ROW("index_add.out", IndexAdd, STOCK(index_add_outf)),
      ROW("scatter_add", ScatterAdd, STOCK(scatter_add)),
      ROW("scatter_add_", ScatterAdd, STOCK(scatter_add_)),
      ROW("scatter_add.out", ScatterAdd, STOCK(scatter_add_outf)),
      ROW("_index_put_impl", IndexPut, COMPOSITE_EXPLICIT(_index_put_impl)),
      ROW("_index_put_impl_", IndexPut, STOCK(_index_put_impl_)),
  };
  return rows;
}

}  // namespace rusttorch
