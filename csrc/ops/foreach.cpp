#include <ATen/TensorOperators.h>
#include <ATen/ops/_foreach_mul.h>
#include <ATen/ops/_foreach_norm.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/stack.h>

#include <cmath>

#include "../kernels/pointwise.h"
#include "../kernels/reduction.h"
#include "elementwise.h"
#include "lists.h"
#include "stock.h"

namespace rusttorch {
namespace {

using at::TensorList;

// Tells autograd that the tensors change, as stock's loop over ops on one tensor does; raises where they must not.
void bump_versions(TensorList tensors) {
  for (const Tensor& t : tensors) t.unsafeGetTensorImpl()->bump_version();
}

bool is_dense(const Tensor& t) {
  return t.layout() == at::kStrided && on_cpu(t) && t.is_non_overlapping_and_dense() && is_plain(t);
}

class EachPlan;

// An elementwise op on every tensor of a list, in place: kernels take all of them, or stock does.
struct EachRequest {
  using Plan = EachPlan;

  // make(i): the request of the i-th. read: what that reads beside itself.
  template <class Make>
  EachRequest(TensorList self, Make make, TensorList read = {}) : self(self), read(read) {
    each.reserve(self.size());
    for (size_t i = 0; i < self.size(); ++i) each.push_back(make(i));
  }
  // A product by one, which changes nothing.
  explicit EachRequest(TensorList self) : self(self), by_one(true) {}

  Device device() const { return self.empty() ? Device::cpu : device_type(self[0]); }

  TensorList self, read;
  std::vector<ElementwiseRequest> each;
  bool by_one = false;
};

class EachPlan {
 public:
  explicit EachPlan(const EachRequest& request) : self_(request.self), by_one_(request.by_one) {
    if (self_.empty()) reason_ = Handed::size;  // stock raises
    if (by_one_) return;
    plans_.reserve(self_.size());
    for (size_t i = 0; i < self_.size() && reason_ == Handed::no; ++i) {
      plans_.emplace_back(request.each[i]);
      if (plans_.back().reason() == Handed::no) plans_.back().accepts(self_[i]);
      reason_ = self_[i].is_cpu() ? plans_.back().reason() : Handed::option;  // a GPU's are one launch for all
    }
    if (reason_ == Handed::no && order_matters({self_, request.read})) reason_ = Handed::layout;
  }

  Handed reason() const { return reason_; }

  // Small tensors share a parallel region; a large one has its own.
  void run() {
    bump_versions(self_);
    if (by_one_) return;
    std::vector<size_t> small;
    int64_t total = 0;
    for (size_t i = 0; i < self_.size(); ++i) {
      if (self_[i].numel() >= grain || !on_cpu(self_[i])) {
        plans_[i].run(self_[i]);
      } else {
        small.push_back(i);
        total += self_[i].numel();
      }
    }
    parallel_list(int64_t(small.size()), total, [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k) plans_[small[k]].run(self_[small[k]]);
    });
  }

 private:
  TensorList self_;
  bool by_one_;
  std::vector<ElementwisePlan> plans_;
  Handed reason_ = Handed::no;
};

template <bool is_min>
struct Clamp {
  static EachRequest request(TensorList self, const Scalar& bound) {
    const double inf = std::numeric_limits<double>::infinity();
    return {self, [&](size_t i) {
              ElementwiseRequest r = Elementwise<pointwise::clamp>::request(self[i], is_min ? bound : Scalar(-inf),
                                                                            is_min ? Scalar(inf) : bound);
              const bool is_nan = bound.isFloatingPoint() && std::isnan(bound.toDouble());
              if (!at::isFloatingType(self[i].scalar_type()) || is_nan) r.kernel = nullptr;
              return r;
            }};
  }
};

template <pointwise K>
struct ByScalar {
  static EachRequest request(TensorList self, const Scalar& scalar) {
    // 1 is add's alpha. (mul takes one scalar, and looks at no other.)
    return {self, [&](size_t i) { return Elementwise<K>::request(self[i], scalar, Scalar(1)); }};
  }
};

struct MulTensor {
  static EachRequest request(TensorList self, const Tensor& other) {
    const auto by_other = [&](size_t i) {
      ElementwiseRequest r = Elementwise<pointwise::mul>::request(self[i], other);
      // Stock takes numbers only; an alias changes for those behind it.
      if (other.dim() != 0 || self[i].is_alias_of(other)) r.kernel = nullptr;
      return r;
    };
    // By which gradients are multiplied that need no clipping.
    const auto stays = [&](const Tensor& t) {
      return is_dense(t) && dtype_of(t) && at::isFloatingType(t.scalar_type()) && !t.is_alias_of(other);
    };
    const bool is_number = other.dim() == 0 && other.is_cpu() && at::isFloatingType(other.scalar_type());
    const bool by_one = is_number && std::all_of(self.begin(), self.end(), stays) && other.item<double>() == 1;
    return by_one ? EachRequest(self) : EachRequest(self, by_other);
  }
};

struct Lerp {
  static EachRequest request(TensorList self, TensorList end, const Scalar& weight) {
    TORCH_CHECK(self.size() == end.size(), "Tensor lists must have the same number of tensors, got ", self.size(),
                " and ", end.size());
    return {self, [&](size_t i) { return Elementwise<pointwise::lerp_scalar>::request(self[i], end[i], weight); }, end};
  }
};

struct ClipGradValue {
  static EachRequest request(TensorList grads, double clip_value) {
    return {grads, [&](size_t i) {
              ElementwiseRequest r =
                  Elementwise<pointwise::clamp>::request(grads[i], Scalar(-clip_value), Scalar(clip_value));
              if (std::isnan(clip_value)) r.kernel = nullptr;
              return r;
            }};
  }
};
void clip_grad_value_stock(TensorList grads, double clip_value) {
  for (const Tensor& g : grads) g.clamp_(-clip_value, clip_value);
}

#ifdef RUSTTORCH_CUDA
#define STOCK_EACH(type, fn) \
  Stock<static_cast<type*>(&at::compositeexplicitautograd::fn), static_cast<type*>(&at::cuda::fn)>
#else
#define STOCK_EACH(type, fn) Stock<static_cast<type*>(&at::compositeexplicitautograd::fn)>
#endif

class ZeroPlan;

struct Zero {
  using Plan = ZeroPlan;
  TensorList self;

  static Zero request(TensorList self) { return {self}; }
  Device device() const { return self.empty() ? Device::cpu : device_type(self[0]); }
};

class ZeroPlan {
 public:
  explicit ZeroPlan(const Zero& request) : self_(request.self) {}

  Handed reason() const { return std::all_of(self_.begin(), self_.end(), is_dense) ? Handed::no : Handed::layout; }

  void run() const {
    bump_versions(self_);
    Parts parts;
    for (const Tensor& t : self_) parts.add(int64_t(t.nbytes()));
    parts.run([&](int64_t, size_t i, int64_t first, int64_t bytes) {
      std::memset(static_cast<char*>(self_[i].mutable_data_ptr()) + first, 0, bytes);
    });
  }

 private:
  TensorList self_;
};

// Of its kernels on a device, stock's for zeros is the one that does not tell autograd.
void foreach_zero_stock(TensorList self) {
  const Device device = Zero::request(self).device();
  if (device == Device::cuda) bump_versions(self);
  using Plain = void(TensorList);
  STOCK_EACH(Plain, _foreach_zero_)::call(device, self);
}

class NormsPlan;

// The norm of each of some tensors, or of all together.
struct NormsRequest {
  using Plan = NormsPlan;
  TensorList tensors;
  double order;  // 0: one that no kernel has
  // Where they are clipped by it:
  double max_norm = 0;
  bool error_if_nonfinite = false;

  Device device() const { return tensors.empty() ? Device::cpu : device_type(tensors[0]); }
};

void check_finite(double norm, double norm_type) {
  TORCH_CHECK(std::isfinite(norm), "clip_grad_norm_: the total norm of order ", norm_type, " is ", norm,
              ", so the gradients cannot be clipped by it; error_if_nonfinite=False scales them nevertheless");
}

// Of dense CPU tensors of one dtype, in one pass over all of them.
class NormsPlan {
 public:
  explicit NormsPlan(const NormsRequest& request) : request_(request), tensors_(request.tensors), reason_(fit()) {}

  Handed reason() const { return reason_; }

  template <class R>
  R compute() {
    measure();
    if constexpr (std::is_same_v<R, Tensor>) {
      return clip();
    } else {
      R all;
      for (size_t i = 0; i < tensors_.size(); ++i) all.push_back(join(parts_.begin(i), parts_.begin(i + 1)));
      return all;
    }
  }

 private:
  Handed fit() const {
    const bool inf = std::isinf(request_.order);
    if (request_.order != 1 && request_.order != 2 && !(inf && request_.order > 0)) return Handed::option;
    if (tensors_.empty()) return Handed::size;  // stock raises
    const auto type = tensors_[0].scalar_type();
    for (const Tensor& t : tensors_) {
      if (!is_dense(t)) return Handed::layout;
      if (t.scalar_type() != type || !dtype_of(t) || !at::isFloatingType(type)) return Handed::dtype;
      if (inf && t.numel() == 0) return Handed::size;  // stock refuses
    }
    return Handed::no;
  }

  const Kernel<ReductionArgs>& kernel() const {
    const auto which = std::isinf(request_.order) ? reduction::norm_inf
                       : request_.order == 1      ? reduction::norm1
                                                  : reduction::norm2;
    return rusttorch::kernel(which).on(Device::cpu);
  }

  void measure() {
    for (const Tensor& t : tensors_) parts_.add(t.numel());
    whole_.dtype = *dtype_of(tensors_[0]);
    whole_.outer = whole_.inner = whole_.row = 1;
    states_.resize(parts_.count());
    parts_.run([&](int64_t k, size_t i, int64_t first, int64_t n) {
      ReductionArgs part = whole_;
      part.n = n;
      part.in = tensors_[i].const_data_ptr();
      advance(part.in, first * element_size(part.dtype));
      kernel().part(part, &states_[k]);
    });
  }

  Tensor join(int64_t begin, int64_t end) {
    Tensor norm = empty_beside(tensors_[0], {}, tensors_[0].scalar_type());
    if (begin == end) return norm.zero_();
    whole_.out[0] = norm.mutable_data_ptr();
    kernel().join(whole_, states_.data() + begin, end - begin);
    return norm;
  }

  // torch.nn.utils.clip_grad_norm_: a second pass scales, if there is something to scale.
  Tensor clip() {
    const Tensor norm = join(0, parts_.count());
    const double total = norm.item<double>(), scale = request_.max_norm / (total + 1e-6);
    if (request_.error_if_nonfinite) check_finite(total, request_.order);
    if (scale >= 1) return norm;
    const EachRequest by_scale(
        tensors_, [&](size_t i) { return Elementwise<pointwise::mul_scalar>::request(tensors_[i], Scalar(scale)); });
    EachPlan plan(by_scale);
    plan.reason() == Handed::no ? plan.run() : at::_foreach_mul_(tensors_, scale);
    return norm;
  }

  const NormsRequest& request_;
  TensorList tensors_;
  Handed reason_;
  Parts parts_;
  ReductionArgs whole_{};
  std::vector<ReductionState> states_;
};

struct ForeachNorm {
  static NormsRequest request(TensorList self, const Scalar& order, std::optional<at::ScalarType> dtype) {
    return {self, !dtype && !order.isComplex() && !order.isBoolean() ? order.toDouble() : 0};
  }
};
struct ClipGradNorm {
  static NormsRequest request(TensorList grads, double max_norm, double norm_type, bool error_if_nonfinite) {
    return {grads, norm_type, max_norm, error_if_nonfinite};
  }
};
// What no kernel takes, in stock's ops: on a GPU, without waiting for it.
Tensor clip_grad_norm_stock(TensorList grads, double max_norm, double norm_type, bool error_if_nonfinite) {
  const Tensor norm = at::linalg_vector_norm(at::stack(at::_foreach_norm(grads, norm_type)), norm_type);
  if (error_if_nonfinite) check_finite(norm.item<double>(), norm_type);
  at::_foreach_mul_(grads, (max_norm / (norm + 1e-6)).clamp_max_(1));
  return norm;
}

}  // namespace

const Rows& foreach_rows() {
  using Scaled = void(TensorList, const Scalar&);
  using Scale = void(TensorList, const Tensor&);
  using Measure = std::vector<Tensor>(TensorList, const Scalar&, std::optional<at::ScalarType>);
  using Mixed = void(TensorList, TensorList, const Scalar&);
  static const Rows rows = {
      ROW("_foreach_add_.Scalar", ByScalar<pointwise::add_scalar>, STOCK_EACH(Scaled, _foreach_add_)),
      ROW("_foreach_mul_.Scalar", ByScalar<pointwise::mul_scalar>, STOCK_EACH(Scaled, _foreach_mul_)),
      ROW("_foreach_mul_.Tensor", MulTensor, STOCK_EACH(Scale, _foreach_mul_)),
      ROW("_foreach_clamp_min_.Scalar", Clamp<true>, STOCK_EACH(Scaled, _foreach_clamp_min_)),
      ROW("_foreach_clamp_max_.Scalar", Clamp<false>, STOCK_EACH(Scaled, _foreach_clamp_max_)),
      ROW("_foreach_norm.Scalar", ForeachNorm, STOCK_EACH(Measure, _foreach_norm)),
      ROW("_foreach_lerp_.Scalar", Lerp, STOCK_EACH(Mixed, _foreach_lerp_)),
      ROW("_foreach_zero_", Zero, AnyDevice<&foreach_zero_stock>),
      ROW("clip_grad_norm_", ClipGradNorm, AnyDevice<&clip_grad_norm_stock>),
      ROW("clip_grad_value_", ClipGradValue, AnyDevice<&clip_grad_value_stock>),
  };
  return rows;
}

}  // namespace rusttorch
