#include <ATen/Parallel.h>
#include <ATen/TensorIterator.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/_foreach_mul.h>
#include <ATen/ops/_foreach_norm.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/stack.h>

#include <cmath>

#include "../kernels/pointwise.h"
#include "../kernels/reduction.h"
#include "elementwise.h"
#include "families.h"
#include "lists.h"
#include "stock.h"

namespace rusttorch {
namespace {

using at::TensorList;

// Tells autograd that the tensors change, as stock's loop over ops on one tensor does; raises where they must not.
void bump_versions(TensorList tensors) {
  for (const Tensor& t : tensors) t.unsafeGetTensorImpl()->bump_version();
}

// An elementwise op on every tensor of a list, in place: kernels take all of them, or stock does. read: what the i-th
// reads beside itself.
class Each {
 public:
  template <class MakeRequest>
  Each(TensorList self, MakeRequest request, TensorList read = {}) : self_(self) {
    requests_.reserve(self.size());
    plans_.reserve(self.size());
    for (size_t i = 0; i < self.size() && reason_ == Handed::no; ++i) {
      requests_.push_back(request(i));
      plans_.emplace_back(requests_.back());
      if (plans_.back().reason() == Handed::no) plans_.back().accepts(self[i]);
      reason_ = self[i].is_cpu() ? plans_.back().reason() : Handed::option;  // a GPU's are one launch for all
    }
    if (reason_ == Handed::no && order_matters({self, read})) reason_ = Handed::layout;
  }

  Handed reason() const { return reason_; }

  // Small tensors share a parallel region; a large one has its own.
  void run() {
    bump_versions(self_);
    std::vector<size_t> small;
    int64_t total = 0;
    for (size_t i = 0; i < self_.size(); ++i) {
      if (self_[i].numel() >= at::internal::GRAIN_SIZE || !on_cpu(self_[i])) {
        plans_[i].run(self_[i]);
      } else {
        small.push_back(i);
        total += self_[i].numel();
      }
    }
    const int64_t count = int64_t(small.size());
    at::parallel_for(0, count, items_for_a_thread(count, total), [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k) plans_[small[k]].run(self_[small[k]]);
    });
  }

 private:
  TensorList self_;
  std::vector<Request> requests_;
  std::vector<Plan> plans_;
  Handed reason_ = Handed::no;
};

template <Name name, class Stock, class MakeRequest, class... A>
void run_each(TensorList self, TensorList read, MakeRequest request, A&&... args) {
  Each each(self, request, read);
  stats<name>.count(each.reason());
  if (each.reason() == Handed::no) return each.run();
  Stock::call(device_type(self[0]), self, args...);
}

template <Name name, bool is_min, class Stock>
struct Clamp {
  static void call(TensorList self, const Scalar& bound) {
    const double inf = std::numeric_limits<double>::infinity();
    const auto request = [&](size_t i) {
      Request r =
          Always<pointwise::clamp>::request(self[i], is_min ? bound : Scalar(-inf), is_min ? Scalar(inf) : bound);
      if (!at::isFloatingType(self[i].scalar_type()) || bound.equal(NAN)) r.kernel = nullptr;
      return r;
    };
    run_each<name, Stock>(self, {}, request, bound);
  }
};

template <Name name, pointwise K, class Stock>
struct ByScalar {
  static void call(TensorList self, const Scalar& scalar) {
    const auto request = [&](size_t i) {
      // add's alpha. (mul takes one scalar, and looks at no other.)
      return Always<K>::request(self[i], scalar, Scalar(1));
    };
    run_each<name, Stock>(self, {}, request, scalar);
  }
};

template <Name name, class Stock>
struct MulTensor {
  static void call(TensorList self, const Tensor& other) {
    // Gradients that need no clipping are multiplied by one.
    const auto is_float = [](const Tensor& t) { return at::isFloatingType(t.scalar_type()); };
    const bool is_number = other.dim() == 0 && other.is_cpu() && is_float(other);
    if (is_number && std::all_of(self.begin(), self.end(), is_float) && other.item<double>() == 1) {
      bump_versions(self);
      return stats<name>.count(Handed::no);
    }
    const auto request = [&](size_t i) {
      Request r = Always<pointwise::mul>::request(self[i], other);
      if (self[i].is_alias_of(other)) r.kernel = nullptr;  // which changes for those behind it
      return r;
    };
    run_each<name, Stock>(self, {}, request, other);
  }
};

template <Name name, class Stock>
struct Lerp {
  static void call(TensorList self, TensorList end, const Scalar& weight) {
    TORCH_CHECK(self.size() == end.size(), "Tensor lists must have the same number of tensors, got ", self.size(),
                " and ", end.size());
    run_each<name, Stock>(
        self, end, [&](size_t i) { return Always<pointwise::lerp_scalar>::request(self[i], end[i], weight); }, end,
        weight);
  }
};

template <Name name, class Stock>
struct Zero {
  static void call(TensorList self) {
    const auto is_dense = [](const Tensor& t) {
      return t.layout() == at::kStrided && t.is_cpu() && t.is_non_overlapping_and_dense() && is_plain(t);
    };
    const bool ours = std::all_of(self.begin(), self.end(), is_dense);
    stats<name>.count(ours ? Handed::no : Handed::layout);
    if (!ours) return Stock::call(device_type(self[0]), self);
    bump_versions(self);
    Parts parts;
    for (const Tensor& t : self) parts.add(int64_t(t.nbytes()));
    parts.run([&](int64_t, size_t i, int64_t first, int64_t bytes) {
      std::memset(static_cast<char*>(self[i].mutable_data_ptr()) + first, 0, bytes);
    });
  }
};

// Norms of dense CPU tensors of one dtype, from one pass over all of them.
class Norms {
 public:
  Norms(TensorList tensors, double order) : tensors_(tensors) {
    const bool inf = order == std::numeric_limits<double>::infinity();
    if (order != 1 && order != 2 && !inf) return;
    const auto which = inf ? reduction::norm_inf : order == 1 ? reduction::norm1 : reduction::norm2;
    const auto type = tensors[0].scalar_type();
    for (const Tensor& t : tensors) {
      const bool dense = t.layout() == at::kStrided && t.is_non_overlapping_and_dense() && is_plain(t);
      if (!dense || !on_cpu(t) || t.scalar_type() != type || !dtype_of(t) || !at::isFloatingType(type)) return;
      if (inf && t.numel() == 0) return;  // stock refuses
      parts_.add(t.numel());
    }
    whole_.dtype = *dtype_of(tensors[0]);
    whole_.outer = whole_.inner = whole_.row = 1;
    kernel_ = kernel(which, c10::DeviceType::CPU);
    states_.resize(parts_.count());
    parts_.run([&](int64_t k, size_t i, int64_t first, int64_t n) {
      ReductionArgs part = whole_;
      part.n = n;
      part.in = tensors_[i].const_data_ptr();
      advance(part.in, first * element_size(part.dtype));
      kernel_.part(part, &states_[k]);
    });
    taken_ = true;
  }

  bool taken() const { return taken_; }
  Tensor total() { return join(0, parts_.count()); }
  std::vector<Tensor> each() {
    std::vector<Tensor> all;
    for (size_t i = 0; i < tensors_.size(); ++i) all.push_back(join(parts_.begin(i), parts_.begin(i + 1)));
    return all;
  }

 private:
  Tensor join(int64_t begin, int64_t end) {
    Tensor norm = empty_beside(tensors_[0], {}, tensors_[0].scalar_type());
    if (begin == end) return norm.zero_();
    whole_.out[0] = norm.mutable_data_ptr();
    kernel_.join(whole_, states_.data() + begin, end - begin);
    return norm;
  }

  TensorList tensors_;
  Parts parts_;
  ReductionArgs whole_{};
  ReductionKernel kernel_{};
  std::vector<ReductionState> states_;
  bool taken_ = false;
};

template <Name name, class Stock>
struct Norm {
  static std::vector<Tensor> call(TensorList self, const Scalar& order, std::optional<at::ScalarType> dtype) {
    const bool plain = !dtype && !order.isComplex() && !order.isBoolean();
    Norms norms(self, plain ? order.toDouble() : 0);
    stats<name>.count(norms.taken() ? Handed::no : Handed::option);
    return norms.taken() ? norms.each() : Stock::call(device_type(self[0]), self, order, dtype);
  }
};

void check_finite(double norm, double norm_type) {
  TORCH_CHECK(std::isfinite(norm), "clip_grad_norm_: the total norm of order ", norm_type, " is ", norm,
              ", so the gradients cannot be clipped by it; error_if_nonfinite=False scales them nevertheless");
}

// What no kernel takes, in stock's ops: on a GPU, without waiting for it.
Tensor clip_by_stock(TensorList grads, double max_norm, double norm_type, bool error_if_nonfinite) {
  const Tensor norm = at::linalg_vector_norm(at::stack(at::_foreach_norm(grads, norm_type)), norm_type);
  if (error_if_nonfinite) check_finite(norm.item<double>(), norm_type);
  at::_foreach_mul_(grads, (max_norm / (norm + 1e-6)).clamp_max_(1));
  return norm;
}

// torch.nn.utils.clip_grad_norm_. One pass finds the norm; a second one scales, if there is something to scale.
struct ClipGradNorm {
  static Tensor call(TensorList grads, double max_norm, double norm_type, bool error_if_nonfinite) {
    Norms norms(grads, norm_type);
    stats<"clip_grad_norm_">.count(norms.taken() ? Handed::no : Handed::option);
    if (!norms.taken()) return clip_by_stock(grads, max_norm, norm_type, error_if_nonfinite);
    const Tensor norm = norms.total();
    const double total = norm.item<double>(), scale = max_norm / (total + 1e-6);
    if (error_if_nonfinite) check_finite(total, norm_type);
    if (scale >= 1) return norm;
    Each each(grads, [&](size_t i) { return Always<pointwise::mul_scalar>::request(grads[i], Scalar(scale)); });
    each.reason() == Handed::no ? each.run() : at::_foreach_mul_(grads, scale);
    return norm;
  }
};

struct ClipGradValue {
  static void call(TensorList grads, double clip_value) {
    Each each(grads, [&](size_t i) {
      Request r = Always<pointwise::clamp>::request(grads[i], Scalar(-clip_value), Scalar(clip_value));
      if (std::isnan(clip_value)) r.kernel = nullptr;
      return r;
    });
    stats<"clip_grad_value_">.count(each.reason());
    if (each.reason() == Handed::no) return each.run();
    for (const Tensor& g : grads) g.clamp_(-clip_value, clip_value);
  }
};

}  // namespace

#define EACH(name, Op, ...) \
  Row { name, &impl<Op<name, __VA_ARGS__>>, &stats<name> }
#ifdef RUSTTORCH_CUDA
#define STOCK_EACH(type, fn) \
  Stock<static_cast<type*>(&at::compositeexplicitautograd::fn), static_cast<type*>(&at::cuda::fn)>
#else
#define STOCK_EACH(type, fn) Stock<static_cast<type*>(&at::compositeexplicitautograd::fn)>
#endif

const Rows& foreach_rows() {
  using Scaled = void(TensorList, const Scalar&);
  using Plain = void(TensorList);
  using Scale = void(TensorList, const Tensor&);
  using Measure = std::vector<Tensor>(TensorList, const Scalar&, std::optional<at::ScalarType>);
  using Mixed = void(TensorList, TensorList, const Scalar&);
  static const Rows rows = {
      EACH("_foreach_add_.Scalar", ByScalar, pointwise::add_scalar, STOCK_EACH(Scaled, _foreach_add_)),
      EACH("_foreach_mul_.Scalar", ByScalar, pointwise::mul_scalar, STOCK_EACH(Scaled, _foreach_mul_)),
      EACH("_foreach_mul_.Tensor", MulTensor, STOCK_EACH(Scale, _foreach_mul_)),
      EACH("_foreach_clamp_min_.Scalar", Clamp, true, STOCK_EACH(Scaled, _foreach_clamp_min_)),
      EACH("_foreach_clamp_max_.Scalar", Clamp, false, STOCK_EACH(Scaled, _foreach_clamp_max_)),
      EACH("_foreach_norm.Scalar", Norm, STOCK_EACH(Measure, _foreach_norm)),
      EACH("_foreach_lerp_.Scalar", Lerp, STOCK_EACH(Mixed, _foreach_lerp_)),
      EACH("_foreach_zero_", Zero, STOCK_EACH(Plain, _foreach_zero_)),
      Row{"clip_grad_norm_", &impl<ClipGradNorm>, &stats<"clip_grad_norm_">},
      Row{"clip_grad_value_", &impl<ClipGradValue>, &stats<"clip_grad_value_">},
  };
  return rows;
}

}  // namespace rusttorch
