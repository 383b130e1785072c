#include "batch_norm.h"

namespace rusttorch {
namespace {

void run(const Tensor& x, batch_norm which, const BatchNormArgs& a) {
  run_on_device(x, kernel(which).on(device_type(x)), a);
}

// Each group as one channel.
BatchNormArgs groups_of(const BatchNormArgs& a) {
  BatchNormArgs groups = a;
  groups.channels /= a.of.of_group;
  groups.inner *= a.of.of_group;
  return groups;
}

// Room for the sums of these launches, which are joined in it before the next.
Tensor workspace_for(const Tensor& x, BatchNormArgs& a, const BatchNormArgs& launched) {
  const Tensor workspace = empty_beside(x, {DeviceBatchNorm(launched).sums(), 2}, at::kDouble);
  a.of.workspace = static_cast<ChannelSums*>(workspace.mutable_data_ptr());
  return workspace;
}

}  // namespace

void normalize_on_device(const Tensor& x, BatchNormArgs a) {
  if (!a.of.training) return run(x, batch_norm::normalize, a);
  const Tensor workspace = workspace_for(x, a, groups_of(a));
  run(x, batch_norm::moments, groups_of(a));
  run(x, batch_norm::normalize, a);
}

void differentiate_on_device(const Tensor& x, BatchNormArgs a, bool want_sums) {
  const Tensor workspace = want_sums ? workspace_for(x, a, a) : Tensor();
  if (want_sums) run(x, batch_norm::products, a);
  if (a.y || a.of.grad_weight || a.of.grad_bias) run(x, batch_norm::gradient, a);
}

}  // namespace rusttorch
