#include "../kernels/copy.h"

#include <ATen/CompositeExplicitAutogradFunctions.h>

#include "op.h"
#include "run.h"

namespace rusttorch {
namespace {

class TransposePlan;

// clone(memory_format=torch.contiguous_format), which is what contiguous() calls: of a batch of transposed matrices.
struct CloneRequest {
  using Plan = TransposePlan;
  const Tensor* self;
  std::optional<at::MemoryFormat> format;

  Device device() const { return device_type(*self); }
  static CloneRequest request(const Tensor& self, std::optional<at::MemoryFormat> format) { return {&self, format}; }
};

class TransposePlan {
 public:
  explicit TransposePlan(const CloneRequest& request) : self_(*request.self), reason_(fit(request)) {}

  Handed reason() const { return reason_; }

  template <class R>
  R compute() {
    Tensor out = empty_beside(self_, self_.sizes(), self_.scalar_type());
    const TransposeArgs a{self_.numel() / (self_.size(-1) * self_.size(-2)),
                          self_.size(-1),
                          self_.size(-2),
                          int64_t(self_.element_size()),
                          self_.const_data_ptr(),
                          out.mutable_data_ptr()};
    run_items(self_, kernel(copy::transpose).on(device_type(self_)), a, a.batch, a.rows * a.columns);
    return out;
  }

 private:
  static Handed fit(const CloneRequest& request) {
    const Tensor& x = *request.self;
    if (request.format != at::MemoryFormat::Contiguous || !is_plain(x)) return Handed::option;
    if (!dtype_of(x) || x.element_size() == 1) return Handed::dtype;
    if (x.dim() < 2 || x.numel() == 0 || x.size(-1) < 8 || x.size(-2) < 8) return Handed::size;
    if (x.stride(-2) != 1 || x.stride(-1) != x.size(-2)) return Handed::layout;
    int64_t dense = x.size(-1) * x.size(-2);
    for (int64_t d = x.dim() - 3; d >= 0; --d) {
      if (x.size(d) != 1 && x.stride(d) != dense) return Handed::layout;
      dense *= x.size(d);
    }
    return Handed::no;
  }

  const Tensor& self_;
  Handed reason_;
};

}  // namespace

const Rows& copy_rows() {
  static const Rows rows = {
      RUSTTORCH_ROW("clone", CloneRequest, AnyDevice<&at::compositeexplicitautograd::clone>),
  };
  return rows;
}

}  // namespace rusttorch
