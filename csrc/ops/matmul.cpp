#include "../kernels/matmul.h"

#include <cfloat>
#include <cmath>

#include "../instruction_set.h"
#include "run.h"
#include "stock.h"

namespace rusttorch {
namespace {

class MatmulPlan;

// alpha * a @ b + beta * added, of matrices, of batches of them (3 dims), or of a matrix and a column (1 dim).
struct MatmulRequest {
  using Plan = MatmulPlan;
  const Tensor &a, &b;
  int64_t a_dim, b_dim;  // how many dims they must have
  const Tensor* added = nullptr;
  Scalar beta = 1, alpha = 1;

  Device device() const { return device_type(a); }
};

// One of the operands: the strides of a batch of matrices.
struct Matrices {
  int64_t batch = 1, rows = 1, columns = 1;
  int64_t next = 0, row = 0, column = 0;

  Matrices() = default;
  explicit Matrices(const Tensor& t) {
    const int64_t dim = t.dim();
    if (dim == 3) batch = t.size(0), next = t.stride(0);
    rows = t.size(dim == 1 ? 0 : -2), row = t.stride(dim == 1 ? 0 : -2);
    if (dim > 1) columns = t.size(-1), column = t.stride(-1);
  }
};

// The result in blocks, of which each is made by one thread. What is summed, and in which order, does not depend on
// them.
class Blocks {
 public:
  // What a block has, or multiples: eight tiles of 6 rows, and whole tiles of columns for every instruction set.
  static constexpr int64_t rows = 48, columns = 64;

  // (Sixteen multiply-adds take about as long as an element of the ops that `grain` is for.)
  Blocks(int64_t batch, const MatmulArgs& a) : batch_(batch), m_(a.m), n_(a.n), work_(a.m * a.n * a.k / 16) {
    const int64_t wanted = std::min(divide_up(threads(), batch), divide_up(batch * work_, grain));
    // b is packed by each thread that reads it, so its columns are shared first.
    across_ = std::clamp<int64_t>(wanted, 1, divide_up(n_, columns));
    down_ = std::clamp<int64_t>(divide_up(wanted, across_), 1, divide_up(m_, rows));
  }

  int64_t count() const { return batch_ * down_ * across_; }
  int64_t work() const { return std::max<int64_t>(1, work_ / (down_ * across_)); }  // of one, in elements

  struct Block {
    int64_t batch, row, last_row, column, last_column;
  };
  Block operator[](int64_t k) const {
    const auto [row, last_row] = part(m_, rows, down_, k / across_ % down_);
    const auto [column, last_column] = part(n_, columns, across_, k % across_);
    return {k / across_ / down_, row, last_row, column, last_column};
  }

 private:
  // The k-th of so many parts of n, in whole units.
  static std::pair<int64_t, int64_t> part(int64_t n, int64_t unit, int64_t parts, int64_t k) {
    const int64_t units = divide_up(n, unit);
    return {std::min(n, units * k / parts * unit), std::min(n, units * (k + 1) / parts * unit)};
  }

  int64_t batch_, m_, n_, work_, across_, down_;
};

class MatmulPlan {
 public:
  explicit MatmulPlan(const MatmulRequest& request) : request_(request), reason_(fit()) {}

  Handed reason() const { return reason_; }

  template <class R>
  R compute() {
    const Tensor out = empty_beside(request_.a, sizes_, request_.a.scalar_type());
    run(out);
    return out;
  }

  bool accepts(const Tensor& out) {
    const Tensor &a = request_.a, &b = request_.b;
    const bool is_added = request_.added && out.is_same(*request_.added);
    const bool fits = is_contiguous_output(out, a.scalar_type(), sizes_, a) && !out.is_alias_of(a) &&
                      !out.is_alias_of(b) && (is_added || !added_ || !out.is_alias_of(*request_.added));
    if (!fits) reason_ = Handed::layout;
    return fits;
  }

  void run(const Tensor& out);

 private:
  Handed fit();
  matmul which() const;
  bool set_added();
  void turn();
  bool stock_is_faster() const;

  const MatmulRequest& request_;
  at::DimVector sizes_;  // of the result
  Matrices a_, b_;
  MatmulArgs args_{};
  bool added_ = false, turned_ = false;
  int64_t added_next_ = 0;
  Handed reason_;
};

// Whether a number is one in what is summed in; stock refuses one that is not.
bool fits_sums(const Scalar& s, Dtype dtype) {
  if (s.isComplex()) return false;
  return dtype == Dtype::f64 || !(std::abs(s.toDouble()) > FLT_MAX) || std::isinf(s.toDouble());
}

Handed MatmulPlan::fit() {
  const Tensor &a = request_.a, &b = request_.b;
  if (a.dim() != request_.a_dim || b.dim() != request_.b_dim) return Handed::option;  // stock raises
  if (!on_cpu(a) || a.device() != b.device()) return Handed::option;
  for (const Tensor* t : {&a, &b}) {
    if (t->layout() != at::kStrided || !is_plain(*t)) return Handed::option;
  }
  const auto dtype = dtype_of(a);
  if (!dtype || !at::isFloatingType(a.scalar_type()) || b.scalar_type() != a.scalar_type()) return Handed::dtype;
  if (!fits_sums(request_.alpha, *dtype) || !fits_sums(request_.beta, *dtype)) return Handed::dtype;
  a_ = Matrices(a);
  b_ = Matrices(b);
  if (a_.columns != b_.rows || a_.batch != b_.batch) return Handed::option;  // stock raises
  if (a.dim() == 3) sizes_.push_back(a_.batch);
  sizes_.push_back(a_.rows);
  if (b.dim() > 1) sizes_.push_back(b_.columns);
  if (a.numel() == 0 || b.numel() == 0) return Handed::size;
  args_.dtype = *dtype;
  args_.m = a_.rows, args_.k = a_.columns, args_.n = b_.columns;
  args_.a_row = a_.row, args_.a_column = a_.column;
  args_.b_row = b_.row, args_.b_column = b_.column;
  const bool is_f64 = *dtype == Dtype::f64;  // else the sums, and so the numbers, are float
  args_.alpha = is_f64 ? request_.alpha.toDouble() : double(request_.alpha.toFloat());
  args_.beta = is_f64 ? request_.beta.toDouble() : double(request_.beta.toFloat());
  if (args_.alpha == 0) return Handed::option;  // nothing is multiplied, not even NaN
  if (request_.added && !set_added()) return Handed::layout;
  if (args_.n == 1 && args_.m > 1) turn();
  if (args_.added_column > 1) return Handed::layout;
  return stock_is_faster() ? Handed::size : Handed::no;
}

// What is added broadcasts to the result.
bool MatmulPlan::set_added() {
  const Tensor& t = *request_.added;
  if (t.layout() != at::kStrided || !is_plain(t) || t.device() != request_.a.device()) return false;
  if (t.scalar_type() != request_.a.scalar_type() || t.dim() > int64_t(sizes_.size())) return false;
  at::DimVector strides(sizes_.size(), 0);
  for (int64_t d = 1; d <= t.dim(); ++d) {
    if (t.size(-d) != sizes_[sizes_.size() - d] && t.size(-d) != 1) return false;
    strides[sizes_.size() - d] = t.size(-d) == 1 ? 0 : t.stride(-d);
  }
  if (request_.b.dim() == 1) strides.push_back(0);  // the one column
  args_.added_column = strides.back();
  args_.added_row = strides.end()[-2];
  added_next_ = strides.size() == 3 ? strides[0] : 0;
  added_ = args_.beta != 0;  // else it is not read, and may be NaN
  return true;
}

// The product of the transposed, whose result of one row lies as that of one column does.
void MatmulPlan::turn() {
  std::swap(args_.m, args_.n);
  std::swap(args_.a_row, args_.b_column);
  std::swap(args_.a_column, args_.b_row);
  std::swap(args_.added_row, args_.added_column);
  std::swap(a_.next, b_.next);
  turned_ = true;
}

// Few rows are multiplied by what lies in memory as it is: packing it is not repaid.
matmul MatmulPlan::which() const {
  const bool is_bf16 = args_.dtype == Dtype::bf16;  // whose widening costs most
  const int64_t few = args_.k < 256 ? 4 : is_bf16 ? 8 : args_.k < 512 ? 16 : 32;
  if (args_.m * args_.k > 1 << 20) return matmul::blocks;  // the others may copy a
  if (args_.b_row == 1 && args_.m <= few) return matmul::dots;
  if (args_.b_column == 1 && args_.m <= 4) return matmul::combinations;
  return matmul::blocks;
}

// Whether the CPU has products of such numbers of 16 bits, which oneDNN takes. (Asked of the CPU, not of what
// ATEN_CPU_CAPABILITY says: oneDNN does not look at that.)
bool has_products_of(Dtype dtype) {
  static const bool bf16 = __builtin_cpu_supports("avx512bf16"), f16 = __builtin_cpu_supports("avx512fp16");
  return dtype == Dtype::bf16 ? bf16 : f16;
}

// By measurement (bench/matmul.py) on AMD's CPUs with AVX2, one core: where MKL is at its limit, and where little is
// multiplied. On Intel's, MKL is at its limit; where CPUs multiply 16 bits themselves, oneDNN is.
bool MatmulPlan::stock_is_faster() const {
  const auto [m, n, k] = std::tuple(args_.m, args_.n, args_.k);
  if (element_size(args_.dtype) == 2) {
    const bool sums_rows = m <= 4 && args_.a_row == 1 && args_.b_column == 1;  // stock's one fast way in bf16
    return has_products_of(args_.dtype) || (args_.dtype == Dtype::bf16 && sums_rows);
  }
  static const bool intel = __builtin_cpu_is("intel");
  if (intel || instruction_set() == InstructionSet::base) return true;
  const bool b_is_turned = args_.b_row == 1, a_is_turned = args_.a_row == 1 && args_.a_column != 1;
  if (m >= 8 && m <= 64 && k * n <= 256 * 256) return true;
  if (n > 1 && n < 8 && m > 4) return true;
  if (a_is_turned && ((k <= 128 && m <= 256) || (m >= 8 && m <= 64 && n < 3072))) return true;
  if (args_.dtype == Dtype::f64) return m >= 128;
  return m >= 128 && k >= 1024 && !b_is_turned;
}

void MatmulPlan::run(const Tensor& out) {
  const Kernel<MatmulArgs>& kernel = rusttorch::kernel(which()).on(Device::cpu);
  const int64_t size = out.element_size();
  args_.a = (turned_ ? request_.b : request_.a).const_data_ptr();
  args_.b = (turned_ ? request_.a : request_.b).const_data_ptr();
  args_.added = added_ ? request_.added->const_data_ptr() : nullptr;
  args_.out = out.mutable_data_ptr();
  args_.out_row = args_.n;
  // Blocks of the result, of which each is made by one thread, whatever their number.
  const Blocks blocks(a_.batch, args_);
  parallel(blocks.count(), blocks.work(), [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      const auto [batch, row, last_row, column, last_column] = blocks[k];
      MatmulArgs args = args_;
      advance(args.a, batch * a_.next * size);
      advance(args.b, batch * b_.next * size);
      advance(args.added, batch * added_next_ * size);
      advance(args.out, batch * args_.m * args_.n * size);
      kernel.run(args.part(row, last_row, column, last_column));
    }
  });
}

// Of factors of so many dims; by itself, or added to something.
template <int64_t a_dim, int64_t b_dim>
struct Product {
  static MatmulRequest request(const Tensor& a, const Tensor& b) { return {a, b, a_dim, b_dim}; }
  static MatmulRequest request(const Tensor& added, const Tensor& a, const Tensor& b, const Scalar& beta,
                               const Scalar& alpha) {
    return {a, b, a_dim, b_dim, &added, beta, alpha};
  }
};
using OfMatrices = Product<2, 2>;
using OfBatches = Product<3, 3>;
using OfVector = Product<2, 1>;

// Stock's, which on CUDA have overloads with an out_dtype.
using Multiply = Tensor(const Tensor&, const Tensor&);
using MultiplyOut = Tensor&(const Tensor&, const Tensor&, Tensor&);
using AddProduct = Tensor(const Tensor&, const Tensor&, const Tensor&, const Scalar&, const Scalar&);
using AddProductOut = Tensor&(const Tensor&, const Tensor&, const Tensor&, const Scalar&, const Scalar&, Tensor&);

}  // namespace

const Rows& matmul_rows() {
  static const Rows rows = {
      ROW("mm", OfMatrices, STOCK_AS(Multiply, mm)),
      ROW("mm.out", OfMatrices, STOCK_AS(MultiplyOut, mm_outf)),
      ROW("addmm", OfMatrices, STOCK_AS(AddProduct, addmm)),
      ROW("addmm_", OfMatrices, STOCK(addmm_)),
      ROW("addmm.out", OfMatrices, STOCK_AS(AddProductOut, addmm_outf)),
      ROW("bmm", OfBatches, STOCK_AS(Multiply, bmm)),
      ROW("bmm.out", OfBatches, STOCK_AS(MultiplyOut, bmm_outf)),
      ROW("baddbmm", OfBatches, STOCK_AS(AddProduct, baddbmm)),
      ROW("baddbmm_", OfBatches, STOCK(baddbmm_)),
      ROW("baddbmm.out", OfBatches, STOCK_AS(AddProductOut, baddbmm_outf)),
      ROW("mv", OfVector, COMPOSITE_EXPLICIT(mv)),
      ROW("mv.out", OfVector, COMPOSITE_EXPLICIT(mv_outf)),
      ROW("addmv", OfVector, STOCK(addmv)),
      ROW("addmv_", OfVector, STOCK(addmv_)),
      ROW("addmv.out", OfVector, STOCK(addmv_outf)),
  };
  return rows;
}

}  // namespace rusttorch
