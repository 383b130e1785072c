#include "../kernels/copy.h"

#include <ATen/CompositeExplicitAutogradFunctions.h>
#include <ATen/Parallel.h>
#include <ATen/TensorIterator.h>

#include "families.h"

namespace rusttorch {
RUSTTORCH_DEFINE_FAMILY(copy)

namespace {

class TransposePlan;

// clone(memory_format=torch.contiguous_format), which is what contiguous() calls: of a batch of transposed matrices.
struct CloneRequest {
  using Plan = TransposePlan;
  const Tensor* self;
  std::optional<at::MemoryFormat> format;

  c10::DeviceType device() const { return device_type(*self); }
  static CloneRequest request(const Tensor& self, std::optional<at::MemoryFormat> format) { return {&self, format}; }
};

class TransposePlan {
 public:
  explicit TransposePlan(const CloneRequest& request) : self_(*request.self), reason_(fit(request)) {}

  Handed reason() const { return reason_; }

  template <class R>
  R compute() {
    Tensor out = empty_beside(self_, self_.sizes(), self_.scalar_type());
    TransposeArgs a{self_.numel() / (self_.size(-1) * self_.size(-2)),
                    self_.size(-1),
                    self_.size(-2),
                    int64_t(self_.element_size()),
                    self_.const_data_ptr(),
                    out.mutable_data_ptr()};
    const int64_t matrix = a.rows * a.columns;
    const auto run = kernel(copy::transpose, self_.device().type()).run;
    if (!on_cpu(self_)) {
      run_on_device(self_, run, a);
      return out;
    }
    at::parallel_for(0, a.batch, at::divup(at::internal::GRAIN_SIZE, matrix), [&](int64_t begin, int64_t end) {
      TransposeArgs part = a;
      part.batch = end - begin;
      advance(part.in, begin * matrix * a.element_size);
      advance(part.out, begin * matrix * a.element_size);
      run(part);
    });
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
