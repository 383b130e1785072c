#pragma once

// Products of matrices: what is taken, and how it is shared by threads.

#include "../kernels/matmul.h"

#include "run.h"
#include "stock.h"

namespace rusttorch {

// Whether the CPU is Intel's, where MKL's products and random numbers are made for it.
bool is_intel();
// Whether our kernels take pairs of such numbers (AVX512-BF16; Intel's CPUs are no faster with it than widened), or
// squares of them (AMX).
bool has_pairs(Dtype dtype);
bool has_squares(Dtype dtype);

class MatmulPlan;

// alpha * a @ b + beta * added, of matrices, of batches of them (3 dims), of a matrix and a column, or of a row and a
// column (1 dim).
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
  Matrices(const Tensor& t, bool is_left) {
    const int64_t dim = t.dim();
    if (dim == 3) batch = t.size(0), next = t.stride(0);
    if (dim > 1) rows = t.size(-2), row = t.stride(-2);
    if (dim > 1 || is_left) columns = t.size(-1), column = t.stride(-1);
    if (dim == 1 && !is_left) rows = t.size(0), row = t.stride(0);
  }
};

// The result in blocks, of which each is made by one thread. What is summed, and in which order, does not depend on
// them.
class Blocks {
 public:
  // What a block has, or multiples: eight tiles of 6 rows (of 14 nearly equal ones), and whole tiles of columns for
  // every instruction set.
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

// What becomes of a product's sums before they are stored (MatmulArgs): gate and sums are of the result's shape,
// contiguous; or there is none.
struct Epilogue {
  MatmulActivation activation = MatmulActivation::none;
  const Tensor *gate = nullptr, *sums = nullptr;
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

  void run(const Tensor& out, const Epilogue& epilogue = {}) {
    prepare(out, epilogue);
    const Blocks blocks = this->blocks();
    parallel(blocks.count(), blocks.work(), [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k) run_block(blocks[k]);
    });
  }

  // The same in steps, for who computes several products block by block.
  void prepare(const Tensor& out, const Epilogue& epilogue);
  Blocks blocks() const { return Blocks(a_.batch, args_); }
  void run_block(const Blocks::Block& block) const;

 private:
  Handed fit();
  int64_t most_dots() const;
  matmul which() const;
  bool set_added();
  void turn();
  bool stock_is_faster() const;

  const MatmulRequest& request_;
  at::DimVector sizes_;  // of the result
  Matrices a_, b_;
  MatmulArgs args_{};
  const Kernel<MatmulArgs>* kernel_ = nullptr;
  bool added_ = false, turned_ = false;
  int64_t added_next_ = 0;
  Handed reason_;
};

// A right factor b [k, n] that is packed once, for products with several others.
class PackedMatrix {
 public:
  // Whether our products are not slower than stock's.
  static bool is_taken(Dtype dtype);

  explicit PackedMatrix(const Tensor& b);

  // out = a @ b, plus what is added: both are contiguous and may be the same. a's rows are runs.
  void multiply(const Tensor& out, const Tensor& a, const Tensor* added) const;

 private:
  Tensor packed_;
  MatmulArgs args_{};  // of a product, but for a, out and what is added
  const Kernel<MatmulArgs>* kernel_;
};

}  // namespace rusttorch
