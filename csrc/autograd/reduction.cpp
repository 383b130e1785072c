#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
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
  const int64_t rank = c.dim(0);
  std::vector<int64_t> dims;
  if (position < c.size() && c.given(position)) {
    const auto& given = c.argument(position);
    dims = given.isInt() ? std::vector<int64_t>{given.toInt()} : given.toIntVector();
  }
  for (auto& dim : dims) dim = c10::maybe_wrap_dim(dim, rank);  // of a number both 0 and -1 are its only dim
  if (dims.empty()) {
    for (const int64_t d : c10::irange(rank)) dims.push_back(d);
  }
  std::sort(dims.begin(), dims.end());
  return dims;
}

// What a reduction gave (or the gradient of that), with the reduced dims put back as ones.
Tensor restore(Tensor y, const Call& c, const std::vector<int64_t>& dims) {
  if (y.dim() == c.dim(0)) return y;
  for (const int64_t dim : dims) y = y.unsqueeze(dim);
  return y;
}
c10::SymInt count(const Call& c, const std::vector<int64_t>& dims) {
  c10::SymInt n = 1;
  for (const int64_t dim : dims) n *= c.dim(0) == 0 ? 1 : c.sizes(0)[dim];
  return n;
}

constexpr size_t no_dims = 99;  // position of the dims of an op that has none

// The gradient g goes to each element, of a mean in equal parts.
Formula spread(const char* op, size_t position, bool is_mean) {
  return {op, {}, [=](const Call& c, const Tensor& g) -> Grads {
            const auto dims = dims_of(c, position);
            const Tensor each = is_mean ? g / Scalar(count(c, dims)) : g;
            return {restore(each, c, dims).expand_symint(c.sizes(0))};
          }};
}

// The gradient goes to all that are the largest (or smallest), in equal parts.
Tensor evenly(const Tensor& x, const Tensor& y, const Tensor& g, at::IntArrayRef dims) {
  const Tensor where = (x == y).logical_or(x.isnan().logical_and(y.isnan())).to(x.scalar_type());
  return where * (g / where.sum(dims, true));
}
Formula extreme(const char* op, size_t position) {
  return {op, {argument(0), result()}, [=](const Call& c, const Tensor& g) -> Grads {
            const auto dims = dims_of(c, position);
            return {evenly(c.tensor(0), restore(c.result(), c, dims), restore(g, c, dims), dims)};
          }};
}
// The gradient goes to the one that was chosen.
Formula chosen(const char* op) {
  return {op, {result(1)}, [](const Call& c, const Tensor& g) -> Grads {
            const auto dims = dims_of(c, 1);
            const Tensor zeros = at::zeros_symint(c.sizes(0), g.options());
            return {zeros.scatter(dims[0], restore(c.result(1), c, dims), restore(g, c, dims))};
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
  const auto wide = x.options().dtype(at::kDouble);  // a half may not hold the count
  return (x - x.mean(dims, true)) * (2 / (at::scalar_tensor(Scalar(count(c, dims)), wide) - correction));
}

Formula norm(const char* op, size_t position) {
  return {op, {argument(0), result()}, [=](const Call& c, const Tensor& g) -> Grads {
            const auto dims = dims_of(c, position);
            const double p = c.given(1) ? c.scalar(1).toDouble() : 2;
            return {vector_norm_grad(c.tensor(0), restore(c.result(), c, dims), restore(g, c, dims), p, dims)};
          }};
}

}  // namespace

Tensor vector_norm_grad(const Tensor& x, const Tensor& y, const Tensor& g, double p, at::IntArrayRef dims) {
  if (p == 0) return at::zeros_like(x);
  if (p == 1) return g * x.sgn();
  if (std::isinf(p)) return x.sgn() * evenly(x.abs(), y, g, dims);
  // A norm of 0 has no slope, and one of less than 1 an infinite one where x is 0; as in stock, they are taken for 0.
  // (What stands in their place is there for the second derivative, in which 0 times an infinite slope would be NaN.)
  const Tensor some = y.masked_fill(y == 0, 1);
  if (p == 2) return at::where(y == 0, at::zeros_like(x), g * x / some);
  const Tensor size = p < 2 ? x.abs().masked_fill(x == 0, 1) : x.abs();
  return at::where(y == 0, at::zeros_like(x), g * x.sgn() * (size / some).pow(p - 1));
}

const std::vector<Formula>& reduction_formulas() {
  static const std::vector<Formula> formulas = {
      spread("sum", no_dims, false),
      spread("sum.dim_IntList", 1, false),
      spread("mean", no_dims, true),
      spread("mean.dim", 1, true),
      {"prod",
       {argument(0)},
       [](const Call& c, const Tensor& g) -> Grads {
         const Tensor& x = c.tensor(0);
         return {g * prod_slope(x.reshape(-1), 0).reshape_symint(x.sym_sizes())};
       }},
      {"prod.dim_int",
       {argument(0)},
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
      {"var.correction",
       {argument(0)},
       [](const Call& c, const Tensor& g) -> Grads {
         const auto dims = dims_of(c, 1);
         return {restore(g, c, dims) * var_slope(c, c.tensor(0), dims)};
       }},
      {"std.correction",
       {argument(0), result()},
       [](const Call& c, const Tensor& g) -> Grads {
         const auto dims = dims_of(c, 1);
         const Tensor y = restore(c.result(), c, dims);
         const Tensor by_var = at::where(y == 0, at::zeros_like(y), restore(g, c, dims) / (2 * y));
         return {by_var * var_slope(c, c.tensor(0), dims)};
       }},
      {"var_mean.correction",
       {argument(0)},
       [](const Call& c, const Tensor& g) -> Grads {
         const auto dims = dims_of(c, 1);
         const Tensor& x = c.tensor(0);
         Tensor total = at::zeros_like(x);
         if (g.defined()) total = total + restore(g, c, dims) * var_slope(c, x, dims);
         if (c.grad(1).defined()) total = total + restore(c.grad(1), c, dims) / Scalar(count(c, dims));
         return {total};
       },
       2},
      norm("linalg_vector_norm", 2),
      norm("norm.Scalar", no_dims),
      norm("norm.ScalarOpt_dim", 2),
      {"logsumexp",
       {argument(0), result()},
       [](const Call& c, const Tensor& g) -> Grads {
         const auto dims = dims_of(c, 1);
         return {restore(g, c, dims) * (c.tensor(0) - restore(c.result(), c, dims)).exp()};
       }},
  };
  return formulas;
}

}  // namespace rusttorch::autograd
