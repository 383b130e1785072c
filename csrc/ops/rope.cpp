#include "../kernels/rope.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/stack.h>

#include <numeric>

#include "op.h"
#include "run.h"

namespace rusttorch {
namespace {

using Two = std::tuple<Tensor, Tensor>;

class RopePlan;

// q and k [B, heads, T, D] (or without B), each with as many heads as it has; cos and sin [B or 1, T, R] or [T, R].
struct RopeRequest {
  using Plan = RopePlan;
  const Tensor &q, &k, &cos, &sin;
  bool interleaved, inverse = false, in_place = false;

  Device device() const { return device_type(q); }
};

class RopePlan {
 public:
  explicit RopePlan(const RopeRequest& request) : request_(request), reason_(fit()) {}

  Handed reason() const { return reason_; }

  template <class R>
  R compute() const {
    return {turned(request_.q), turned(request_.k)};
  }
  void run() const {
    turn(request_.q, request_.q);
    turn(request_.k, request_.k);
  }

 private:
  Handed fit() const;
  bool has_rows(const Tensor& x) const;
  Tensor turned(const Tensor& x) const;
  void turn(const Tensor& x, const Tensor& y) const;

  const RopeRequest& request_;
  Handed reason_;
};

// How far apart the rows of x [B, heads, T, ...] or [heads, T, ...] are.
std::array<int64_t, 3> steps(const Tensor& x) { return {x.dim() == 4 ? x.stride(0) : 0, x.stride(-3), x.stride(-2)}; }

// Whether a kernel takes it: rows that are contiguous, of q and k, of the cosines and the sines.
Handed RopePlan::fit() const {
  const auto& [q, k, cos, sin, interleaved, inverse, in_place] = request_;
  for (const Tensor* t : {&q, &k, &cos, &sin}) {
    if (t->layout() != at::kStrided || !is_plain(*t)) return Handed::option;
  }
  if (!dtype_of(q) || !at::isFloatingType(q.scalar_type()) || k.scalar_type() != q.scalar_type()) return Handed::dtype;
  const bool floats = cos.scalar_type() == at::kFloat && q.element_size() == 2;
  if (cos.scalar_type() != sin.scalar_type() || (cos.scalar_type() != q.scalar_type() && !floats)) return Handed::dtype;
  if (cos.dim() < 2 || cos.dim() > 3 || !cos.sizes().equals(sin.sizes())) return Handed::layout;
  if (!cos.strides().equals(sin.strides()) || cos.stride(-1) != 1) return Handed::layout;
  if (cos.size(-1) % 2 != 0 || cos.size(-1) == 0) return Handed::size;
  return has_rows(q) && has_rows(k) ? Handed::no : Handed::layout;
}

bool RopePlan::has_rows(const Tensor& x) const {
  const Tensor& cos = request_.cos;
  if (x.dim() <= cos.dim() || x.dim() < 3 || x.dim() > 4 || x.numel() == 0 || x.stride(-1) != 1) return false;
  if (!on_cpu(x) && x.numel() >= int64_t(1) << 31) return false;
  if (x.size(-1) < cos.size(-1) || x.size(-2) != cos.size(-2) || !like_has_rows(x)) return false;
  if (cos.dim() == 3 && cos.size(0) != 1 && x.size(0) != cos.size(0)) return false;
  const auto is_repeated = [&](int64_t d) { return x.size(d) > 1 && x.stride(d) == 0; };
  return !request_.in_place || !(is_repeated(-3) || is_repeated(-2) || (x.dim() == 4 && is_repeated(0)));
}

Tensor RopePlan::turned(const Tensor& x) const {
  const Tensor y = at::empty_like(x);
  turn(x, y);
  return y;
}

// Rows in the order of x's memory.
void RopePlan::turn(const Tensor& x, const Tensor& y) const {
  const Tensor &cos = request_.cos, &sin = request_.sin;
  const auto x_steps = steps(x), y_steps = steps(y);
  const bool angles_of_batch = cos.dim() == 3 && cos.size(0) != 1;
  const std::array<int64_t, 3> sizes{x.dim() == 4 ? x.size(0) : 1, x.size(-3), x.size(-2)},
      angle_steps{angles_of_batch ? cos.stride(0) : 0, 0, cos.stride(-2)};
  std::array<size_t, 3> order{0, 1, 2};
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return x_steps[a] > x_steps[b]; });
  RopeArgs a{};
  for (size_t d = 0; d < order.size(); ++d) {
    a.sizes[d] = sizes[order[d]];
    a.x_steps[d] = x_steps[order[d]];
    a.y_steps[d] = y_steps[order[d]];
    a.angle_steps[d] = angle_steps[order[d]];
  }
  a.dtype = *dtype_of(x);
  a.float_angles = cos.scalar_type() == at::kFloat;
  a.interleaved = request_.interleaved;
  a.inverse = request_.inverse;
  a.dim = x.size(-1);
  a.rotated = cos.size(-1);
  a.end = sizes[0] * sizes[1] * sizes[2];
  a.x = x.const_data_ptr();
  a.cos = cos.const_data_ptr();
  a.sin = sin.const_data_ptr();
  a.y = y.mutable_data_ptr();
  run_items(x, kernel(rope::turn).on(device_type(x)), a, a.end, a.dim);
}

// What has no kernel, in aten's ops.

// Each element's pair, negated in the first of both.
Tensor turned_pairs(const Tensor& x, bool interleaved) {
  const int64_t n = x.size(-1);
  if (!interleaved) return at::cat({-x.narrow(-1, n / 2, n / 2), x.narrow(-1, 0, n / 2)}, -1);
  const Tensor pairs = x.unflatten(-1, {n / 2, 2});
  return at::stack({-pairs.select(-1, 1), pairs.select(-1, 0)}, -1).flatten(-2);
}

void check(const Tensor& x, const Tensor& cos, const Tensor& sin) {
  const int64_t n = cos.size(-1);
  TORCH_CHECK(n % 2 == 0 && n <= x.size(-1),
              "rope: cos must have an even number of columns, at most those of q and k, ", "got ", cos.sizes(), " for ",
              x.sizes());
  TORCH_CHECK(sin.sizes().equals(cos.sizes()), "rope: cos and sin must be of one shape, got ", cos.sizes(), " and ",
              sin.sizes());
  TORCH_CHECK(at::isFloatingType(x.scalar_type()), "rope: expected floating point, got ", x.scalar_type());
}

void turn_by_aten(const Tensor& x, const Tensor& cos, const Tensor& sin, bool interleaved, bool inverse,
                  const Tensor& y) {
  const int64_t n = cos.size(-1);
  const Tensor head = x.narrow(-1, 0, n), c = cos.unsqueeze(-3), s = sin.unsqueeze(-3);
  const Tensor turned =
      inverse ? head * c - turned_pairs(head * s, interleaved) : head * c + turned_pairs(head, interleaved) * s;
  TORCH_CHECK(turned.sizes().equals(head.sizes()), "rope: cos and sin must broadcast to q and k without their heads, ",
              "got ", cos.sizes(), " for ", x.sizes());
  y.narrow(-1, 0, n).copy_(turned);
  if (!x.is_same(y)) y.narrow(-1, n, x.size(-1) - n).copy_(x.narrow(-1, n, x.size(-1) - n));
}

template <bool inverse>
Two rope_by_aten(const Tensor& q, const Tensor& k, const Tensor& cos, const Tensor& sin, bool interleaved) {
  const auto turned = [&](const Tensor& x) {
    check(x, cos, sin);
    Tensor y = at::empty_like(x);
    turn_by_aten(x, cos, sin, interleaved, inverse, y);
    return y;
  };
  return {turned(q), turned(k)};
}
void rope_inplace_by_aten(const Tensor& q, const Tensor& k, const Tensor& cos, const Tensor& sin, bool interleaved) {
  for (const Tensor* x : {&q, &k}) check(*x, cos, sin);
  for (const Tensor* x : {&q, &k}) turn_by_aten(*x, cos, sin, interleaved, false, *x);
}

template <bool inverse, bool in_place>
struct Rope {
  static RopeRequest request(const Tensor& q, const Tensor& k, const Tensor& cos, const Tensor& sin, bool interleaved) {
    check_one_device({&q, &k, &cos, &sin});
    return {q, k, cos, sin, interleaved, inverse, in_place};
  }
};

}  // namespace

const Rows& rope_rows() {
  static const Rows rows = {
      RUSTTORCH_ROW("rope", Rope<false, false>, AnyDevice<&rope_by_aten<false>>),
      RUSTTORCH_ROW("rope_backward", Rope<true, false>, AnyDevice<&rope_by_aten<true>>),
      RUSTTORCH_ROW("rope_", Rope<false, true>, AnyDevice<&rope_inplace_by_aten>),
  };
  return rows;
}

}  // namespace rusttorch
