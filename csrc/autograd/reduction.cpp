#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/WrapDimMinimal.h>
#include <c10/util/irange.h>

#include <algorithm>
#include <cmath>

#include "derivative.h"

namespace rusttorch::autograd {
namespace {

// The dims of a call, from where they are in its arguments: none, or an empty list, means all.
std::vector<int64_t> dims_of(const Call& c, size_t position) {
  const Tensor& x = c.tensor(0);
  std::vector<int64_t> dims;
  if (position < c.size() && c.given(position)) {
    const auto& given = c.argument(position);
    dims = given.isInt() ? std::vector<int64_t>{given.toInt()} : given.toIntVector();
  }
  for (auto& dim : dims) dim = c10::maybe_wrap_dim(dim, x.dim());  // of a number both 0 and -1 are its only dim
  if (dims.empty()) {
    for (const int64_t d : c10::irange(x.dim())) dims.push_back(d);
  }
  std::sort(dims.begin(), dims.end());
  return dims;
}

// What a reduction gave (or the gradient of that), with the reduced dims put back as ones.
Tensor restore(Tensor y, const Call& c, const std::vector<int64_t>& dims) {
  const Tensor& x = c.tensor(0);
  if (y.dim() == x.dim()) return y;
  for (const int64_t dim : dims) y = y.unsqueeze(dim);
  return y;
}
c10::SymInt count(const Tensor& x, const std::vector<int64_t>& dims) {
  c10::SymInt n = 1;
  for (const int64_t dim : dims) n *= x.dim() == 0 ? 1 : x.sym_size(dim);
  return n;
}

// A reduction with its dims at `position` (behind the last argument: it has none), in terms of x, its result y and the
// gradient g, both with the dims that were reduced.
using Slope = std::function<Tensor(const Call& c, const Tensor& x, const Tensor& y, const Tensor& g, c10::SymInt n)>;
constexpr size_t no_dims = 99;
Formula reduced(const char* op, size_t position, const Slope& slope, Save save = Save::both) {
  return {op, save, [=](const Call& c, const Tensor& g) -> Grads {
            const auto dims = dims_of(c, position);
            const Tensor& x = c.tensor(0);
            const Tensor y = save == Save::both ? restore(c.result(), c, dims) : Tensor();
            return {slope(c, x, y, restore(g, c, dims), count(x, dims)).expand_symint(x.sym_sizes())};
          }};
}

// The gradient goes to all that are the largest (or smallest), in equal parts.
Tensor evenly(const Tensor& x, const Tensor& y, const Tensor& g, const std::vector<int64_t>& dims) {
  const Tensor where = (x == y).logical_or(x.isnan().logical_and(y.isnan())).to(x.scalar_type());
  return where * (g / where.sum(dims, true));
}
Formula extreme(const char* op, size_t position) {
  return {op, Save::both, [=](const Call& c, const Tensor& g) -> Grads {
            const auto dims = dims_of(c, position);
            return {evenly(c.tensor(0), restore(c.result(), c, dims), restore(g, c, dims), dims)};
          }};
}
// The gradient goes to the one that was chosen.
Formula chosen(const char* op) {
  return {op, Save::both, [](const Call& c, const Tensor& g) -> Grads {
            const auto dims = dims_of(c, 1);
            const Tensor& x = c.tensor(0);
            return {at::zeros_like(x).scatter(dims[0], restore(c.result(1), c, dims), restore(g, c, dims))};
          }};
}

// The product of the others. Where there is a zero that is not y / x, so it is the product of those before and those
// behind.
Tensor prod_slope(const Tensor& x, int64_t dim) {
  const int64_t n = x.size(dim);
  if (n == 0) return x;
  const Tensor ones = at::ones_like(x.narrow(dim, 0, 1));
  const Tensor before = at::cat({ones, x.narrow(dim, 0, n - 1)}, dim).cumprod(dim);
  const Tensor behind = at::cat({ones, x.flip(dim).narrow(dim, 0, n - 1)}, dim).cumprod(dim).flip(dim);
  return before * behind;
}

Tensor var_slope(const Call& c, const Tensor& x, const std::vector<int64_t>& dims) {
  const double correction = c.given(2) ? c.scalar(2).toDouble() : 1;
  const Scalar n(count(x, dims));
  return (x - x.mean(dims, true)) * (2 / (at::scalar_tensor(n, x.options()) - correction));
}

Formula norm(const char* op, size_t position) {
  return {op, Save::both, [=](const Call& c, const Tensor& given) -> Grads {
            const auto dims = dims_of(c, position);
            const Tensor &x = c.tensor(0), y = restore(c.result(), c, dims), g = restore(given, c, dims);
            const double p = c.given(1) ? c.scalar(1).toDouble() : 2;
            if (p == 0) return {at::zeros_like(x)};
            if (p == 1) return {g * x.sgn()};
            if (p == 2) return {at::where(y == 0, at::zeros_like(x), g * x / y)};
            if (std::isinf(p)) return {x.sgn() * evenly(x.abs(), y, g, dims)};
            return {at::where(y == 0, at::zeros_like(x), g * x.sgn() * (x.abs() / y).pow(p - 1))};
          }};
}

}  // namespace

const std::vector<Formula>& reduction_formulas() {
  const Slope sum = [](auto&, auto&, auto&, const Tensor& g, auto) { return g; };
  const Slope mean = [](auto&, auto&, auto&, const Tensor& g, const c10::SymInt& n) { return g / Scalar(n); };
  const Slope logsumexp = [](auto&, const Tensor& x, const Tensor& y, const Tensor& g, auto) {
    return g * (x - y).exp();
  };
  static const std::vector<Formula> formulas = {
      reduced("sum", no_dims, sum, Save::inputs),
      reduced("sum.dim_IntList", 1, sum, Save::inputs),
      reduced("mean", no_dims, mean, Save::inputs),
      reduced("mean.dim", 1, mean, Save::inputs),
      {"prod", Save::inputs,
       [](const Call& c, const Tensor& g) -> Grads {
         const Tensor& x = c.tensor(0);
         return {g * prod_slope(x.reshape(-1), 0).reshape_symint(x.sym_sizes())};
       }},
      {"prod.dim_int", Save::inputs,
       [](const Call& c, const Tensor& g) -> Grads {
         const auto dims = dims_of(c, 1);
         const Tensor& x = c.tensor(0);
         if (x.dim() == 0) return {g};
         return {restore(g, c, dims) * prod_slope(x, dims[0])};
       }},
      extreme("max", no_dims),
      extreme("min", no_dims),
      extreme("amax", 1),
      extreme("amin", 1),
      chosen("max.dim"),
      chosen("min.dim"),
      {"var.correction", Save::inputs,
       [](const Call& c, const Tensor& g) -> Grads {
         const auto dims = dims_of(c, 1);
         return {restore(g, c, dims) * var_slope(c, c.tensor(0), dims)};
       }},
      {"std.correction", Save::both,
       [](const Call& c, const Tensor& g) -> Grads {
         const auto dims = dims_of(c, 1);
         const Tensor y = restore(c.result(), c, dims);
         const Tensor by_var = at::where(y == 0, at::zeros_like(y), restore(g, c, dims) / (2 * y));
         return {by_var * var_slope(c, c.tensor(0), dims)};
       }},
      {"var_mean.correction", Save::inputs,
       [](const Call& c, const Tensor& g) -> Grads {
         const auto dims = dims_of(c, 1);
         const Tensor& x = c.tensor(0);
         Tensor total = at::zeros_like(x);
         if (g.defined()) total = total + restore(g, c, dims) * var_slope(c, x, dims);
         if (c.grad(1).defined()) total = total + restore(c.grad(1), c, dims) / Scalar(count(x, dims));
         return {total};
       },
       2},
      norm("linalg_vector_norm", 2),
      norm("norm.Scalar", no_dims),
      norm("norm.ScalarOpt_dim", 2),
      reduced("logsumexp", 1, logsumexp),
  };
  return formulas;
}

}  // namespace rusttorch::autograd
