#include "../kernels/scan.h"

#include "run.h"
#include "stock.h"

namespace rusttorch {
namespace {

class ScanPlan;

struct ScanRequest {
  using Plan = ScanPlan;
  scan kernel;
  const Tensor* self;
  int64_t dim;
  bool other_dtype = false;

  Device device() const { return device_type(*self); }
};

class ScanPlan {
 public:
  explicit ScanPlan(const ScanRequest& request) : request_(request), reason_(fit()) {}

  Handed reason() const { return reason_; }

  template <class R>
  R compute() {
    const auto sizes = request_.self->sizes();
    Tensor out = empty_beside(*request_.self, sizes, dtype());
    if constexpr (std::is_same_v<R, Tensor>) {
      run(out);
      return out;
    } else {
      Tensor index = empty_beside(*request_.self, sizes, at::kLong);
      run(out, index);
      return {out, index};
    }
  }

  bool accepts(const Tensor& out) { return is_output(out, dtype()) || refuse(); }
  bool accepts(const Tensor& out, const Tensor& index) {
    return (is_output(out, dtype()) && is_output(index, at::kLong) && !overlap(out, index)) || refuse();
  }

  void run(const Tensor& out) { run_all(out.mutable_data_ptr(), nullptr); }
  void run(const Tensor& out, const Tensor& index) {
    run_all(out.mutable_data_ptr(), index.mutable_data_ptr<int64_t>());
  }

 private:
  Handed fit() {
    const Tensor& x = *request_.self;
    if (request_.other_dtype || !is_plain(x)) return Handed::option;
    const auto dtype = dtype_of(x);
    if (!dtype || *dtype == Dtype::b8) return Handed::dtype;
    if (x.dim() == 0 || x.numel() == 0) return Handed::size;
    if (!around(x, request_.dim, args_)) return Handed::option;  // stock raises
    if (!x.is_contiguous()) return Handed::layout;
    args_.dtype = *dtype;
    // Along a row, a largest so far is a chain of comparisons: stock's was measured to be faster. So are columns of
    // half floats, and few long rows on a device, each of which one block of threads would walk.
    if (args_.inner == 1 && request_.kernel != scan::cumsum) return Handed::size;
    if (on_cpu(x) && args_.inner > 1 && *dtype == Dtype::f16) return Handed::size;
    return !on_cpu(x) && args_.n > (1 << 14) && args_.outer * args_.inner < 256 ? Handed::size : Handed::no;
  }

  at::ScalarType dtype() const {
    const Tensor& self = *request_.self;
    return request_.kernel == scan::cumsum ? sum_dtype(self) : self.scalar_type();
  }
  bool is_output(const Tensor& out, at::ScalarType dtype) const {
    return is_contiguous_output(out, dtype, request_.self->sizes(), *request_.self);
  }
  bool refuse() {
    reason_ = Handed::layout;
    return false;
  }

  void run_all(void* out, int64_t* index) {
    args_.in = request_.self->const_data_ptr();
    args_.out = out;
    args_.index = index;
    args_.out_size = int64_t(c10::elementSize(dtype()));
    run_along(*request_.self, kernel(request_.kernel).on(request_.device()), args_);
  }

  const ScanRequest& request_;
  ScanArgs args_{};
  Handed reason_;
};

struct CumSum {
  static ScanRequest request(const Tensor& self, int64_t dim, std::optional<at::ScalarType> dtype) {
    return {scan::cumsum, &self, dim, dtype && *dtype != sum_dtype(self)};
  }
};
template <scan K>
struct CumExtreme {
  static ScanRequest request(const Tensor& self, int64_t dim) { return {K, &self, dim}; }
};

}  // namespace

const Rows& scan_rows() {
  static const Rows rows = {
      ROW("cumsum", CumSum, STOCK(cumsum)),
      ROW("cumsum.out", CumSum, STOCK(cumsum_outf)),
      ROW("cummax", CumExtreme<scan::cummax>, COMPOSITE_EXPLICIT(cummax)),
      ROW("cummax.out", CumExtreme<scan::cummax>, COMPOSITE_EXPLICIT(cummax_outf)),
      ROW("cummin", CumExtreme<scan::cummin>, COMPOSITE_EXPLICIT(cummin)),
      ROW("cummin.out", CumExtreme<scan::cummin>, COMPOSITE_EXPLICIT(cummin_outf)),
  };
  return rows;
}

}  // namespace rusttorch
