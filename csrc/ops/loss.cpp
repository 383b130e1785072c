#include "../kernels/loss.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/Reduction.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/binary_cross_entropy.h>
#include <ATen/ops/binary_cross_entropy_backward.h>
#include <ATen/ops/clamp.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/sigmoid.h>

#include "decomposed.h"
#include "elementwise.h"
#include "stock.h"

namespace rusttorch {
namespace {

using Kernels = ByDevice<ElementwiseArgs>;

// A loss: its kernel, and the kernel that sums it.
struct Both {
  Kernels each, total;
};
#define BOTH(name) \
  Both { rusttorch::kernel(loss::name), rusttorch::kernel(loss_total::name) }

template <class... T>
ElementwiseRequest forward(Both kernels, int64_t reduction, const T&... args) {
  ElementwiseRequest r;
  (r.add(args), ...);
  if (reduction == at::Reduction::None) {
    r.kernel = kernels.each;
  } else if (reduction == at::Reduction::Mean || reduction == at::Reduction::Sum) {
    r.kernel = kernels.total;
    r.total = true;
    r.mean = reduction == at::Reduction::Mean;
  }
  return r;
}

// args: the gradient, the input, the target, and what else the kernel takes; the scalars behind the scale.
template <class... T>
ElementwiseRequest backward(Kernels kernel, int64_t reduction, const Tensor& grad, const Tensor& self,
                            const T&... args) {
  ElementwiseRequest r;
  r.add(grad);
  r.add(self);
  r.add(Scalar(reduction == at::Reduction::Mean ? 1 / double(self.numel()) : 1.0));
  (r.add(args), ...);
  r.kernel = reduction >= at::Reduction::None && reduction < at::Reduction::END ? kernel : nullptr;
  r.grad_is_single = true;
  return r;
}

// Stock's gradients of mse, smooth_l1 and huber are contiguous whatever the input is.
template <class... T>
ElementwiseRequest contiguous_backward(const T&... args) {
  ElementwiseRequest r = backward(args...);
  r.contiguous = true;
  return r;
}
struct Mse {
  static ElementwiseRequest request(const Tensor& self, const Tensor& target, int64_t reduction) {
    return forward(BOTH(mse), reduction, self, target);
  }
};
struct MseBackward {
  static ElementwiseRequest request(const Tensor& grad, const Tensor& self, const Tensor& target, int64_t reduction) {
    return contiguous_backward(kernel(loss::mse_backward), reduction, grad, self, target);
  }
};
struct L1 {
  static ElementwiseRequest request(const Tensor& self, const Tensor& target, int64_t reduction) {
    return forward(BOTH(l1), reduction, self, target);
  }
};
struct L1Backward {
  static ElementwiseRequest request(const Tensor& grad, const Tensor& self, const Tensor& target, int64_t reduction) {
    return backward(kernel(loss::l1_backward), reduction, grad, self, target);
  }
};

// smooth_l1(beta >= 0) and huber(delta > 0); stock raises for others.
struct SmoothL1 {
  static ElementwiseRequest request(const Tensor& self, const Tensor& target, int64_t reduction, double beta) {
    ElementwiseRequest r = forward(BOTH(smooth_l1), reduction, self, target, Scalar(beta));
    if (!(beta >= 0)) r.kernel = nullptr;
    return r;
  }
};
struct SmoothL1Backward {
  static ElementwiseRequest request(const Tensor& grad, const Tensor& self, const Tensor& target, int64_t reduction,
                                    double beta) {
    return contiguous_backward(kernel(loss::smooth_l1_backward), reduction, grad, self, target, Scalar(beta));
  }
};
struct Huber {
  static ElementwiseRequest request(const Tensor& self, const Tensor& target, int64_t reduction, double delta) {
    ElementwiseRequest r = forward(BOTH(huber), reduction, self, target, Scalar(delta));
    if (!(delta > 0)) r.kernel = nullptr;
    return r;
  }
};
struct HuberBackward {
  static ElementwiseRequest request(const Tensor& grad, const Tensor& self, const Tensor& target, int64_t reduction,
                                    double delta) {
    return contiguous_backward(kernel(loss::huber_backward), reduction, grad, self, target, Scalar(delta));
  }
};

// Stock raises where an input (and, from torch 2.13 on, a target) is no probability, and so it shall. A total tells by
// being NaN, which it also is of a -0: all of those are stock's. Losses that are not summed are looked at before. (On a
// device the kernel asserts, as stock's does.)
struct ProbabilityRequest : ElementwiseRequest {
  class Plan : public ElementwisePlan {
   public:
    explicit Plan(const ProbabilityRequest& request) : ElementwisePlan(request), request_(request) {}

    void look() {
      const Tensor& self = *request_.in[0];
      if (reason() != Handed::no || !on_cpu(self)) return;
      const bool refused =
          request_.ElementwiseRequest::total
              ? std::isnan(total())
              : ElementwisePlan(forward(BOTH(outside_unit), at::Reduction::Sum, self, *request_.in[1])).total() > 0;
      if (refused) refuse(Handed::option);
    }

   private:
    const ProbabilityRequest& request_;
  };
};

struct Bce {
  static ProbabilityRequest request(const Tensor& self, const Tensor& target, MaybeTensor weight, int64_t reduction) {
    if (given(weight)) return {of_one_dtype(forward(BOTH(bce_weight), reduction, self, target, *weight))};
    return {of_one_dtype(forward(BOTH(bce), reduction, self, target))};
  }
};
struct BceBackward {
  static ElementwiseRequest request(const Tensor& grad, const Tensor& self, const Tensor& target, MaybeTensor weight,
                                    int64_t reduction) {
    if (given(weight)) return backward(kernel(loss::bce_weight_backward), reduction, grad, self, target, *weight);
    return backward(kernel(loss::bce_backward), reduction, grad, self, target);
  }
};

// RustTorch's: the input held in [epsilon, 1 - epsilon].
struct BceEpsilon {
  static ElementwiseRequest request(const Tensor& self, const Tensor& target, double epsilon, int64_t reduction) {
    return forward(BOTH(bce_epsilon), reduction, self, target, Scalar(epsilon), Scalar(1 - epsilon));
  }
};
struct BceEpsilonBackward {
  static ElementwiseRequest request(const Tensor& grad, const Tensor& self, const Tensor& target, double epsilon,
                                    int64_t reduction) {
    return backward(kernel(loss::bce_epsilon_backward), reduction, grad, self, target, Scalar(epsilon),
                    Scalar(1 - epsilon));
  }
};

// With a weight or a pos_weight; stock takes both.
struct BceWithLogits {
  static ElementwiseRequest request(const Tensor& self, const Tensor& target, MaybeTensor weight,
                                    MaybeTensor pos_weight, int64_t reduction) {
    ElementwiseRequest r;
    if (given(weight)) {
      r = forward(BOTH(bce_with_logits_weight), reduction, self, target, *weight);
    } else if (given(pos_weight)) {
      r = forward(BOTH(bce_with_logits_pos_weight), reduction, self, target, *pos_weight);
    } else {
      r = forward(BOTH(bce_with_logits), reduction, self, target);
    }
    if (given(weight) && given(pos_weight)) r.kernel = nullptr;
    return r;
  }
};
struct BceWithLogitsBackward {
  static ElementwiseRequest request(const Tensor& grad, const Tensor& self, const Tensor& target, MaybeTensor weight,
                                    MaybeTensor pos_weight, int64_t reduction) {
    const auto with = [&](Kernels kernel, const auto&... more) {
      return backward(kernel, reduction, grad, self, target, more...);
    };
    if (given(weight) && given(pos_weight)) return with(nullptr);
    if (given(weight)) return with(kernel(loss::bce_with_logits_weight_backward), *weight);
    if (given(pos_weight)) return with(kernel(loss::bce_with_logits_pos_weight_backward), *pos_weight);
    return with(kernel(loss::bce_with_logits_backward));
  }
};

struct KlDiv {
  static ElementwiseRequest request(const Tensor& self, const Tensor& target, int64_t reduction, bool log_target) {
    ElementwiseRequest r = forward(log_target ? BOTH(kl_div_log_target) : BOTH(kl_div), reduction, self, target);
    if (!at::isFloatingType(target.scalar_type())) r.kernel = nullptr;  // stock raises
    return r;
  }
};
struct KlDivBackward {
  static ElementwiseRequest request(const Tensor& grad, const Tensor& self, const Tensor& target, int64_t reduction,
                                    bool log_target) {
    return backward(log_target ? kernel(loss::kl_div_log_target_backward) : kernel(loss::kl_div_backward), reduction,
                    grad, self, target);
  }
};

// Stock's out= of a summed loss gives the sum of what it has put over the one element of out (torch 2.13).
Tensor& binary_cross_entropy_out_stock(const Tensor& self, const Tensor& target, MaybeTensor weight, int64_t reduction,
                                       Tensor& out) {
  const Tensor result = STOCK(binary_cross_entropy)::call(device_type(self), self, target, weight, reduction);
  at::native::resize_output(out, result.sizes());
  return out.copy_(result);
}

// Stock's node is made of a dozen ops, so that is swapped too.
constexpr Name bce_with_logits("binary_cross_entropy_with_logits");
using StockBceWithLogits = COMPOSITE_EXPLICIT(binary_cross_entropy_with_logits);

// The gradients that aten has no op for, in its terms.
Tensor scaled(const Tensor& grad, const Tensor& self, int64_t reduction) {
  return reduction == at::Reduction::Mean ? grad / self.numel() : grad;
}
Tensor l1_loss_backward_stock(const Tensor& grad, const Tensor& self, const Tensor& target, int64_t reduction) {
  return scaled(grad, self, reduction) * (self - target).sign();
}
Tensor bce_with_logits_backward_stock(const Tensor& grad, const Tensor& self, const Tensor& target, MaybeTensor weight,
                                      MaybeTensor pos_weight, int64_t reduction) {
  Tensor slope = at::sigmoid(self) - target;
  if (given(pos_weight)) slope = (1 - target) * at::sigmoid(self) - *pos_weight * target * at::sigmoid(-self);
  if (given(weight)) slope = slope * *weight;
  return scaled(grad, slope, reduction) * slope;
}
Tensor kl_div_backward_stock(const Tensor& grad, const Tensor& self, const Tensor& target, int64_t reduction,
                             bool log_target) {
  return scaled(grad, self, reduction) * -(log_target ? target.exp() : target) * at::ones_like(self);
}
Tensor bce_loss_stock(const Tensor& self, const Tensor& target, double epsilon, int64_t reduction) {
  return at::binary_cross_entropy(self.clamp(epsilon, 1 - epsilon), target, std::nullopt, reduction);
}
Tensor bce_loss_backward_stock(const Tensor& grad, const Tensor& self, const Tensor& target, double epsilon,
                               int64_t reduction) {
  const Tensor held = self.clamp(epsilon, 1 - epsilon);
  return at::binary_cross_entropy_backward(grad, held, target, std::nullopt, reduction) * (held == self);
}

}  // namespace

#define LOSS(name, pick) ROW(#name, pick, STOCK(name)), ROW(#name ".out", pick, STOCK(name##_outf))

const Rows& loss_rows() {
  static const Rows rows = {
      LOSS(mse_loss, Mse),
      ROW("mse_loss_backward", MseBackward, STOCK(mse_loss_backward)),
      ROW("mse_loss_backward.grad_input", MseBackward, STOCK(mse_loss_backward_outf)),
      RUSTTORCH_DECOMPOSED_ROW("l1_loss", L1, COMPOSITE_IMPLICIT(l1_loss)),
      ROW("l1_loss_backward", L1Backward, AnyDevice<&l1_loss_backward_stock>),
      LOSS(smooth_l1_loss, SmoothL1),
      ROW("smooth_l1_loss_backward", SmoothL1Backward, COMPOSITE_EXPLICIT(smooth_l1_loss_backward)),
      ROW("smooth_l1_loss_backward.grad_input", SmoothL1Backward, STOCK(smooth_l1_loss_backward_outf)),
      LOSS(huber_loss, Huber),
      ROW("huber_loss_backward", HuberBackward, COMPOSITE_EXPLICIT(huber_loss_backward)),
      ROW("huber_loss_backward.out", HuberBackward, STOCK(huber_loss_backward_outf)),
      ROW("binary_cross_entropy", Bce, STOCK(binary_cross_entropy)),
      ROW("binary_cross_entropy.out", Bce, AnyDevice<&binary_cross_entropy_out_stock>),
      ROW("binary_cross_entropy_backward", BceBackward, STOCK(binary_cross_entropy_backward)),
      ROW("binary_cross_entropy_backward.grad_input", BceBackward, STOCK(binary_cross_entropy_backward_outf)),
      ROW("bce_loss", BceEpsilon, AnyDevice<&bce_loss_stock>),
      ROW("bce_loss_backward", BceEpsilonBackward, AnyDevice<&bce_loss_backward_stock>),
      {bce_with_logits.text, impl<&Op<bce_with_logits, BceWithLogits, StockBceWithLogits>::call>(),
       &stats<bce_with_logits>,
       impl<&Differentiated<bce_with_logits, BceWithLogits, StockBceWithLogits::Signature>::call>()},
      ROW("binary_cross_entropy_with_logits_backward", BceWithLogitsBackward,
          AnyDevice<&bce_with_logits_backward_stock>),
      RUSTTORCH_DECOMPOSED_ROW("kl_div", KlDiv, COMPOSITE_IMPLICIT(kl_div)),
      ROW("kl_div_backward", KlDivBackward, AnyDevice<&kl_div_backward_stock>),
  };
  return rows;
}

}  // namespace rusttorch
