#include <ATen/TensorOperators.h>
#include <ATen/ops/_embedding_bag_sparse_backward.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/gather.h>
#include <ATen/ops/index_add.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/searchsorted.h>

#include "derivative.h"

namespace rusttorch::autograd {
namespace {

enum Mode : int64_t { sum_of_bag, mean_of_bag, max_of_bag };

// The bag of each index, which stock leaves out where it does without.
Tensor bags_of(const Tensor& indices, const Tensor& offsets, const Tensor& offset2bag) {
  if (offset2bag.sym_numel() != 0 || indices.sym_numel() == 0) return offset2bag;
  const Tensor all = at::arange(indices.sym_numel(), offsets.options());
  return (at::searchsorted(offsets, all, /*out_int32=*/false, /*right=*/true) - 1).to(offsets.scalar_type());
}

Formula bag(const char* op) {
  return {op,
          {argument(0).for_gradient_of(6), argument(1), argument(2), argument(6).for_gradient_of(0), result(1),
           result(2), result(3)},
          [](const Call& c, const Tensor& g) -> Grads {
            const Tensor &indices = c.tensor(1), &offsets = c.tensor(2), &sizes = c.result(2);
            const Tensor bags = bags_of(indices, offsets, c.result(1));
            const c10::SymInt rows = c.sizes(0)[0];
            const auto weight = [&]() -> Tensor {
              if (c.flag(5)) {
                return at::_embedding_bag_sparse_backward_symint(g, indices, offsets, bags, sizes, rows, c.flag(3),
                                                                 c.integer(4), c.maybe(6), c.integer(8));
              }
              return call("_embedding_bag_dense_backward", {g, indices, bags, sizes, c.result(3), rows, c.argument(3),
                                                            c.argument(4), c.maybe(6), c.argument(8)});
            };
            const auto weights = [&] {
              return call("_embedding_bag_per_sample_weights_backward",
                          {g, c.tensor(0), indices, offsets, bags, c.argument(4), c.argument(8)});
            };
            return {c.want(0, weight), Tensor(), Tensor(), c.want(6, weights)};
          }};
}

// What an index adds to the gradient of its row, as a part of its bag's: [n, 1].
Tensor shares(const Call& c) {
  const Tensor &indices = c.tensor(1), &bags = c.tensor(2), &sizes = c.tensor(3);
  TORCH_CHECK_NOT_IMPLEMENTED(!c.flag(6), "_embedding_bag_dense_backward has no derivative with scale_grad_by_freq");
  Tensor share = (indices != c.integer(9)).to(c.dtype(0));
  if (c.integer(7) == mean_of_bag) share = share / sizes.clamp_min(1).index_select(0, bags);
  return share.unsqueeze(1);
}

}  // namespace

const std::vector<Formula>& embedding_bag_formulas() {
  static const std::vector<Formula> formulas = {
      bag("_embedding_bag"),
      bag("_embedding_bag_forward_only"),
      {"_embedding_bag_dense_backward",
       {argument(0).for_gradient_of(8), argument(1), argument(2), argument(3), argument(4),
        argument(8).for_gradient_of(0)},
       [](const Call& c, const Tensor& g) -> Grads {
         if (c.integer(7) == max_of_bag) {
           const Tensor grad = g.gather(0, c.tensor(4).to(at::kLong));
           return {grad.masked_fill((c.tensor(3) == 0).unsqueeze(1), 0)};
         }
         const Tensor &bags = c.tensor(2), rows = g.index_select(0, c.tensor(1)) * shares(c);
         const auto grad = [&] {
           const Tensor of_bags = c.given(8) ? rows * c.tensor(8).unsqueeze(1) : rows;
           return at::index_add(g.new_zeros_symint(c.sizes(0)), 0, bags, of_bags);
         };
         const auto weights = [&] { return (c.tensor(0).index_select(0, bags) * rows).sum(1); };
         return {c.want(0, grad), Tensor(), Tensor(), Tensor(), Tensor(), c.want(8, weights)};
       }},
      {"_embedding_bag_per_sample_weights_backward",
       {argument(0).for_gradient_of(1), argument(1).for_gradient_of(0), argument(2), argument(3), argument(4)},
       [](const Call& c, const Tensor& g) -> Grads {
         const Tensor &indices = c.tensor(2), bags = bags_of(indices, c.tensor(3), c.tensor(4));
         const Tensor given = g.masked_fill(indices == c.integer(6), 0).unsqueeze(1);
         const auto add = [&](const Tensor& rows, const Tensor& from, size_t i, const Tensor& to) {
           return at::index_add(g.new_zeros_symint(c.sizes(i)), 0, to, rows.index_select(0, from) * given);
         };
         return {c.want(0, [&] { return add(c.tensor(1), indices, 0, bags); }),
                 c.want(1, [&] { return add(c.tensor(0), bags, 1, indices); })};
       }},
  };
  return formulas;
}

}  // namespace rusttorch::autograd
