#include "../kernels/reduction.h"

#include <ATen/CompositeExplicitAutogradNonFunctionalFunctions.h>

#include <bitset>

#include "run.h"
#include "stock.h"

namespace rusttorch {
namespace {

class ReductionPlan;

// The dtypes of the outputs: the input's (integers summed: int64), int64, bool.
enum class Result { same, sum, index, values_and_index, pair, boolean };

constexpr int64_t max_dims = 16;

// One call: which kernel, over which dims.
struct ReductionRequest {
  using Plan = ReductionPlan;

  ByDevice<ReductionArgs> kernel;  // none: an option that no kernel has
  Result result;
  const Tensor* self = nullptr;
  std::bitset<max_dims> dims;  // none: all
  bool keepdim = false;
  bool wants_dtype = false;  // another than the reduction's own
  int64_t shortest_row = 0;  // shorter ones, of floats, stock reduces faster on a CPU, by measurement
  double scalar = 0;

  Device device() const { return device_type(*self); }

  void add(const Tensor& t) {
    self = &t;
    if (t.dim() == 0 || t.dim() > max_dims) kernel = nullptr;
  }
  void add(int64_t dim) { add(at::IntArrayRef(dim)); }
  void add(std::optional<int64_t> dim) {
    if (dim) add(*dim);
  }
  void add(at::OptionalIntArrayRef list) {
    if (list) add(*list);
  }
  // A dim out of range, or one twice, is stock's to refuse.
  void add(at::IntArrayRef list) {
    for (int64_t dim : list) {
      if (dim < 0) dim += self->dim();
      if (dim < 0 || dim >= std::min(self->dim(), max_dims) || dims[dim]) {
        kernel = nullptr;
        return;
      }
      dims.set(dim);
    }
  }
  void add(bool keep) { keepdim = keep; }
  void add(std::optional<at::ScalarType> dtype) { wants_dtype = dtype && *dtype != sum_dtype(*self); }
  void add(const std::optional<Scalar>& correction) { scalar = correction ? correction->toDouble() : 1; }
};

template <reduction K, Result result = Result::same, int64_t shortest_row = 0>
struct Reduce {
  template <class... A>
  static ReductionRequest request(const A&... args) {
    ReductionRequest r;
    r.kernel = kernel(K);
    r.result = result;
    r.scalar = 1;
    r.shortest_row = shortest_row;
    (r.add(args), ...);
    return r;
  }
};

class ReductionPlan {
 public:
  explicit ReductionPlan(const ReductionRequest& request) : request_(request), reason_(fit()) {}

  Handed reason() const { return reason_; }

  template <class R>
  R compute() {
    if constexpr (std::is_same_v<R, Tensor>) {
      Tensor out = allocate(0);
      run(out);
      return out;
    } else {
      R both{allocate(0), allocate(1)};
      run(std::get<0>(both), std::get<1>(both));
      return both;
    }
  }

  template <class... T>
  bool accepts(const T&... out) {
    int k = 0;
    if (!(is_output(k++, out) && ...)) reason_ = Handed::layout;
    return reason_ == Handed::no;
  }

  template <class... T>
  void run(const T&... out) {
    args_.in = request_.self->const_data_ptr();
    int k = 0;
    ((args_.out_size[k] = out.element_size(), args_.out[k++] = out.mutable_data_ptr()), ...);
    if (on_cpu(*request_.self)) return run_parallel();
    const int64_t states = DeviceReduction(args_).states();
    const Tensor room = empty_beside(*request_.self, {states * int64_t(sizeof(ReductionState))}, at::kByte);
    args_.workspace = room.mutable_data_ptr();
    run_on_device(*request_.self, kernel_, args_);
  }

 private:
  Handed fit();
  bool collapse();
  at::ScalarType dtype(int k) const;
  at::DimVector sizes() const;
  Tensor allocate(int k) const;
  bool is_output(int k, const Tensor& out) const;
  void run_parallel() const;
  void run_in_parts() const;

  const ReductionRequest& request_;
  Kernel<ReductionArgs> kernel_{};
  ReductionArgs args_{};
  Handed reason_;
};

Handed ReductionPlan::fit() {
  const ReductionRequest& r = request_;
  if (!r.kernel || r.wants_dtype || !is_plain(*r.self)) return Handed::option;
  if (r.self->numel() == 0) return Handed::size;
  const auto dtype = dtype_of(*r.self);
  if (!dtype) return Handed::dtype;
  kernel_ = r.kernel.on(r.device());
  if (!kernel_.takes(*dtype)) return Handed::dtype;
  args_.dtype = *dtype;
  args_.scalar = r.scalar;
  if (!collapse()) return Handed::layout;
  const bool is_short = on_cpu(*r.self) && args_.inner == 1 && args_.outer > 1 && args_.n < r.shortest_row;
  return is_short ? Handed::size : Handed::no;
}

// The dims in the order of memory, which must be dense: kept ones, then all that are reduced, then kept ones, and the
// kept ones in the order of the output's.
bool ReductionPlan::collapse() {
  const Tensor& t = *request_.self;
  const auto dims = request_.dims.none() ? ~std::bitset<max_dims>() : request_.dims;
  int order[max_dims], count = 0;
  for (int d = 0; d < t.dim(); ++d) {
    if (t.size(d) == 1) continue;
    int k = count++;
    for (; k > 0 && t.stride(order[k - 1]) < t.stride(d); --k) order[k] = order[k - 1];
    order[k] = d;
  }
  int64_t dense = 1;
  for (int k = count - 1; k >= 0; --k) {
    if (t.stride(order[k]) != dense) return false;
    dense *= t.size(order[k]);
  }
  args_.outer = args_.n = args_.inner = 1;
  int last_kept = -1;
  for (int k = 0; k < count; ++k) {
    const int64_t size = t.size(order[k]);
    if (dims[order[k]]) {
      if (args_.inner > 1) return false;
      args_.n *= size;
    } else {
      if (order[k] < last_kept) return false;
      last_kept = order[k];
      (args_.n > 1 ? args_.inner : args_.outer) *= size;
    }
  }
  if (args_.n == 1) std::swap(args_.outer, args_.inner);  // nothing to reduce: many columns of one
  args_.row = args_.inner;
  const bool counts = request_.result == Result::index && args_.outer == 1 && args_.inner == 1;
  return !counts || t.is_contiguous();
}

at::ScalarType ReductionPlan::dtype(int k) const {
  const at::ScalarType own = request_.self->scalar_type();
  switch (request_.result) {
    case Result::sum: return sum_dtype(*request_.self);
    case Result::index: return at::kLong;
    case Result::values_and_index: return k == 1 ? at::kLong : own;
    case Result::boolean: return at::kBool;
    default: return own;
  }
}

at::DimVector ReductionPlan::sizes() const {
  const Tensor& t = *request_.self;
  at::DimVector sizes;
  for (int64_t d = 0; d < t.dim(); ++d) {
    const bool reduced = request_.dims.none() || request_.dims[d];
    if (!reduced || request_.keepdim) sizes.push_back(reduced ? 1 : t.size(d));
  }
  return sizes;
}

Tensor ReductionPlan::allocate(int k) const { return empty_beside(*request_.self, sizes(), dtype(k)); }

bool ReductionPlan::is_output(int k, const Tensor& out) const {
  return is_contiguous_output(out, dtype(k), sizes(), *request_.self);
}

// Whoever reduces a run or a column, its elements are met in the same order: the same bits for any number of threads.
void ReductionPlan::run_parallel() const {
  const int64_t run = args_.n * args_.inner;
  if (args_.outer * run < grain) return kernel_.run(args_);
  if (args_.inner == 1 && args_.n > grain) return run_in_parts();
  if (args_.inner == 1 || args_.outer >= threads()) {
    return parallel(args_.outer, run,
                    [&](int64_t begin, int64_t end) { kernel_.run(args_.part(begin, end, 0, args_.inner)); });
  }
  constexpr int64_t columns = 64;  // at least, for a thread
  parallel(divide_up(args_.inner, columns), grain, [&](int64_t begin, int64_t end) {
    kernel_.run(args_.part(0, args_.outer, begin * columns, std::min(end * columns, args_.inner)));
  });
}

// Long runs, each in parts, which are joined in their order.
void ReductionPlan::run_in_parts() const {
  const int64_t parts = divide_up(args_.n, grain);
  std::vector<ReductionState> states(args_.outer * parts);
  parallel(args_.outer * parts, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      ReductionArgs a = args_.part(i / parts, i / parts + 1, 0, 1);
      a.first = i % parts * grain;
      a.n = std::min(grain, args_.n - a.first);
      advance(a.in, a.first * element_size(a.dtype));
      kernel_.part(a, &states[i]);
    }
  });
  for (int64_t o = 0; o < args_.outer; ++o) kernel_.join(args_.part(o, o + 1, 0, 1), &states[o * parts], parts);
}

// any and all over an empty list of dims reduce nothing, where a sum reduces all.
template <reduction K>
struct Truth {
  static ReductionRequest request(const Tensor& self, at::OptionalIntArrayRef dims, bool keepdim) {
    ReductionRequest r = Reduce<K, Result::boolean>::request(self, dims, keepdim);
    if (dims && dims->empty()) r.kernel = nullptr;
    return r;
  }
};

// Stock warns where there are no more elements than the correction.
template <reduction K, Result result = Result::same>
struct Variance {
  static ReductionRequest request(const Tensor& self, at::OptionalIntArrayRef dims,
                                  const std::optional<Scalar>& correction, bool keepdim) {
    ReductionRequest r = Reduce<K, result>::request(self, dims, correction, keepdim);
    int64_t n = 1;
    for (int64_t d = 0; d < std::min(self.dim(), max_dims); ++d) n *= r.dims.none() || r.dims[d] ? self.size(d) : 1;
    if (double(n) <= r.scalar) r.kernel = nullptr;
    return r;
  }
};

// The 1, 2 and infinity norms.
struct VectorNorm {
  template <class... A>
  static ReductionRequest of(const Tensor& self, const std::optional<Scalar>& p, const A&... args) {
    ReductionRequest r = Reduce<reduction::norm2>::request(self, args...);
    if (!r.kernel || (p && p->isComplex())) {
      r.kernel = nullptr;
    } else if (p && p->toDouble() == 1) {
      r.kernel = kernel(reduction::norm1);
    } else if (p && p->toDouble() == std::numeric_limits<double>::infinity()) {
      r.kernel = kernel(reduction::norm_inf);
    } else if (p && p->toDouble() != 2) {
      r.kernel = nullptr;
    }
    return r;
  }
  static ReductionRequest request(const Tensor& self, const Scalar& p) { return of(self, p); }
  static ReductionRequest request(const Tensor& self, const std::optional<Scalar>& p, at::IntArrayRef dims,
                                  bool keepdim) {
    return of(self, p, dims, keepdim);
  }
  static ReductionRequest request(const Tensor& self, const Scalar& ord, at::OptionalIntArrayRef dims, bool keepdim,
                                  std::optional<at::ScalarType> dtype) {
    return of(self, ord, dims, keepdim, dtype);
  }
};

// aten's names stand for several functions each: the types tell which is meant.
using Dtype_ = std::optional<at::ScalarType>;
using MaybeScalar = std::optional<Scalar>;
using Dims = at::OptionalIntArrayRef;
using Two = std::tuple<Tensor, Tensor>;
using TwoRefs = std::tuple<Tensor&, Tensor&>;
constexpr auto norm_scalar =
    static_cast<Tensor (*)(const Tensor&, const Scalar&)>(&at::compositeexplicitautograd::norm);

// What stock has vectorised along a row; its rows need less setting up.
using Sum = Reduce<reduction::sum, Result::sum, 256>;
using Mean = Reduce<reduction::mean, Result::same, 128>;
using Prod = Reduce<reduction::prod, Result::sum, 256>;
template <reduction K>
using Amax = Reduce<K, Result::same, std::numeric_limits<int64_t>::max()>;
using VarMean = Variance<reduction::var_mean, Result::pair>;
template <reduction K>
using Index = Reduce<K, Result::values_and_index>;
template <reduction K>
using Arg = Reduce<K, Result::index>;
template <reduction K>
using Bool = Reduce<K, Result::boolean>;

}  // namespace

#define EXTREME(name, K, with_index)                                                                         \
  ROW(#name, Reduce<reduction::K>, STOCK_AS(Tensor(const Tensor&), name)),                                   \
      ROW(#name ".unary_out", Reduce<reduction::K>, STOCK_AS(Tensor&(const Tensor&, Tensor&), name##_outf)), \
      ROW(#name ".dim", Index<reduction::with_index>, STOCK_AS(Two(const Tensor&, int64_t, bool), name)),    \
      ROW(#name ".dim_" #name, Index<reduction::with_index>,                                                 \
          STOCK_AS(TwoRefs(const Tensor&, int64_t, bool, Tensor&, Tensor&), name##_outf)),                   \
      ROW("a" #name, Amax<reduction::K>, STOCK(a##name)),                                                    \
      ROW("a" #name ".out", Amax<reduction::K>, STOCK(a##name##_outf)),                                      \
      ROW("arg" #name, Arg<reduction::arg##name>, STOCK(arg##name)),                                         \
      ROW("arg" #name ".out", Arg<reduction::arg##name>, STOCK(arg##name##_outf))
#define TRUTH(name)                                                                                                    \
  ROW(#name, Bool<reduction::name>, STOCK_AS(Tensor(const Tensor&), name)),                                            \
      ROW(#name ".all_out", Bool<reduction::name>, STOCK_AS(Tensor&(const Tensor&, Tensor&), name##_outf)),            \
      ROW(#name ".dim", Bool<reduction::name>, STOCK_AS(Tensor(const Tensor&, int64_t, bool), name)),                  \
      ROW(#name ".out", Bool<reduction::name>, STOCK_AS(Tensor&(const Tensor&, int64_t, bool, Tensor&), name##_outf)), \
      ROW(#name ".dims", Truth<reduction::name>, STOCK_AS(Tensor(const Tensor&, Dims, bool), name)),                   \
      ROW(#name ".dims_out", Truth<reduction::name>,                                                                   \
          STOCK_AS(Tensor&(const Tensor&, Dims, bool, Tensor&), name##_outf))

const Rows& reduction_rows() {
  static const Rows rows = {
      ROW("sum", Sum, COMPOSITE_EXPLICIT(sum)),
      ROW("sum.out", Sum, COMPOSITE_EXPLICIT(sum_outf)),
      ROW("sum.dim_IntList", Sum, STOCK(sum)),
      ROW("sum.IntList_out", Sum, STOCK(sum_outf)),
      ROW("mean", Mean, COMPOSITE_EXPLICIT(mean)),
      ROW("mean.dtype_out", Mean, COMPOSITE_EXPLICIT(mean_outf)),
      ROW("mean.dim", Mean, STOCK(mean)),
      ROW("mean.out", Mean, STOCK(mean_outf)),
      ROW("prod", Prod, STOCK_AS(Tensor(const Tensor&, Dtype_), prod)),
      ROW("prod.out", Prod, COMPOSITE_EXPLICIT(prod_outf)),
      ROW("prod.dim_int", Prod, STOCK_AS(Tensor(const Tensor&, int64_t, bool, Dtype_), prod)),
      ROW("prod.int_out", Prod, STOCK(prod_outf)),
      EXTREME(max, amax, max_index),
      EXTREME(min, amin, min_index),
      TRUTH(any),
      TRUTH(all),
      ROW("var.correction", Variance<reduction::var>, STOCK(var)),
      ROW("var.correction_out", Variance<reduction::var>, STOCK(var_outf)),
      ROW("std.correction", Variance<reduction::std>, STOCK(std)),
      ROW("std.correction_out", Variance<reduction::std>, STOCK(std_outf)),
      ROW("var_mean.correction", VarMean, STOCK(var_mean)),
      ROW("var_mean.correction_out", VarMean, COMPOSITE_EXPLICIT(var_mean_outf)),
      ROW("linalg_vector_norm", VectorNorm, STOCK(linalg_vector_norm)),
      ROW("linalg_vector_norm.out", VectorNorm, STOCK(linalg_vector_norm_outf)),
      ROW("norm.Scalar", VectorNorm, AnyDevice<norm_scalar>),
      ROW("norm.ScalarOpt_dim", VectorNorm,
          STOCK_AS(Tensor(const Tensor&, const MaybeScalar&, at::IntArrayRef, bool), norm)),
      ROW("norm.out", VectorNorm,
          STOCK_AS(Tensor & (const Tensor&, const MaybeScalar&, at::IntArrayRef, bool, Tensor&), norm_outf)),
      ROW("logsumexp", Reduce<reduction::logsumexp>, COMPOSITE_EXPLICIT(logsumexp)),
      ROW("logsumexp.out", Reduce<reduction::logsumexp>,
          AnyDevice<&at::compositeexplicitautogradnonfunctional::logsumexp_outf>),
  };
  return rows;
}

}  // namespace rusttorch
