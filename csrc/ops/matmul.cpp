#include "matmul.h"

#include <cfloat>
#include <cmath>

#include "../instruction_set.h"

namespace rusttorch {
namespace {

// Whether a number is one in what is summed in; stock refuses one that is not.
bool fits_sums(const Scalar& s, Dtype dtype) {
  if (s.isComplex()) return false;
  return dtype == Dtype::f64 || !(std::abs(s.toDouble()) > FLT_MAX) || std::isinf(s.toDouble());
}

}  // namespace

Handed MatmulPlan::fit() {
  const Tensor &a = request_.a, &b = request_.b;
  if (a.dim() != request_.a_dim || b.dim() != request_.b_dim) return Handed::option;  // stock raises
  if (!on_cpu(a) || a.device() != b.device()) return Handed::option;
  for (const Tensor* t : {&a, &b}) {
    if (t->layout() != at::kStrided || !is_plain(*t)) return Handed::option;
  }
  const auto dtype = dtype_of(a);
  if (!dtype || !at::isFloatingType(a.scalar_type()) || b.scalar_type() != a.scalar_type()) return Handed::dtype;
  if (request_.added && !(fits_sums(request_.alpha, *dtype) && fits_sums(request_.beta, *dtype))) return Handed::dtype;
  a_ = Matrices(a, true);
  b_ = Matrices(b, false);
  if (a_.columns != b_.rows || a_.batch != b_.batch) return Handed::option;  // stock raises
  if (a.dim() == 3) sizes_.push_back(a_.batch);
  if (a.dim() > 1) sizes_.push_back(a_.rows);
  if (b.dim() > 1) sizes_.push_back(b_.columns);
  if (a.numel() == 0 || b.numel() == 0) return Handed::size;
  args_.dtype = *dtype;
  args_.m = a_.rows, args_.k = a_.columns, args_.n = b_.columns;
  args_.a_row = a_.row, args_.a_column = a_.column;
  args_.b_row = b_.row, args_.b_column = b_.column;
  args_.alpha = 1;
  if (request_.added) {
    const bool is_f64 = *dtype == Dtype::f64;  // else the sums, and so the numbers, are float
    args_.alpha = is_f64 ? request_.alpha.toDouble() : double(request_.alpha.toFloat());
    args_.beta = is_f64 ? request_.beta.toDouble() : double(request_.beta.toFloat());
    if (args_.alpha == 0) return Handed::option;  // nothing is multiplied, not even NaN
    if (!set_added()) return Handed::layout;
  }
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

namespace {

// Whether the CPU has products of such numbers of 16 bits, which oneDNN takes. (Asked of the CPU, not of what
// ATEN_CPU_CAPABILITY says: oneDNN does not look at that.)
bool has_products_of(Dtype dtype) {
  static const bool bf16 = __builtin_cpu_supports("avx512bf16"), f16 = __builtin_cpu_supports("avx512fp16");
  return dtype == Dtype::bf16 ? bf16 : f16;
}

}  // namespace

bool is_intel() {
  static const bool intel = __builtin_cpu_is("intel");
  return intel;
}

bool has_pairs(Dtype dtype) {
  return dtype == Dtype::bf16 && has_products_of(dtype) && !is_intel() && instruction_set() == InstructionSet::avx512;
}
bool has_squares(Dtype dtype) { return dtype == Dtype::bf16 && has_amx(); }

// Few rows are multiplied by what lies in memory as it is: packing it is not repaid. (By measurement of these kernels
// against each other, on one core of a Zen 3, and with AVX-512 of a Zen 4: where they change places, one is as fast as
// the other.)
int64_t MatmulPlan::most_dots() const {
  const auto [n, k] = std::pair(args_.n, args_.k);
  if (instruction_set() != InstructionSet::avx512) {
    return k < 128 ? 3 : k < 256 ? 4 : element_size(args_.dtype) == 2 ? 16 : 13;
  }
  // Of a tile's columns few would be there: more rows, as long as all of them stay in the second cache.
  if ((n < 16 && k >= 64) || (n <= 32 && k >= 128)) return std::max<int64_t>(16, few_numbers / k);
  return k >= 128  ? std::max<int64_t>(16, std::min<int64_t>(20, few_numbers / k))
         : k >= 64 ? (n <= 64 ? 12 : 5)
         : k >= 32 ? (n <= 32 ? 12 : 4)
                   : 3;
}

matmul MatmulPlan::which() const {
  const auto [m, n, k] = std::tuple(args_.m, args_.n, args_.k);
  if (has_squares(args_.dtype)) {
    if (args_.b_row == 1) return m < 4 ? matmul::dots : matmul::squares;
    return args_.b_column != 1 || m > 5 ? matmul::squares : m == 1 ? matmul::combinations : matmul::strips;
  }
  if (has_pairs(args_.dtype)) {
    const int64_t few =
        k < 64 ? 5 : std::max<int64_t>(16, n <= 32 ? few_numbers / 2 / k : std::min<int64_t>(24, 2 * few_numbers / k));
    if (args_.b_row == 1) return m <= few ? matmul::dots_of_pairs : matmul::pairs;
    if (m > 3) return matmul::pairs;
  }
  if (args_.b_row == 1 && m <= most_dots()) return matmul::dots;
  if (args_.b_column == 1) {
    const bool is_bf16 = args_.dtype == Dtype::bf16, is_large = k * n * element_size(args_.dtype) > 32 << 20;
    if (m < (is_bf16 || is_large ? 5 : 4)) return matmul::combinations;
    if (m <= (is_bf16 ? 6 : 12)) return matmul::strips;
  }
  return matmul::blocks;
}

namespace {

// How two factors lie: n as they are, t transposed.
enum class Lie : uint8_t { any, nn, nt, tn };

struct Between {
  int64_t least, most = INT64_MAX;

  bool has(int64_t x) const { return least <= x && x <= most; }
};

struct Shapes {
  Lie lie;
  Between m, n, k;
};
// Where stock's products take less time by measurement (bench/matmul.py --take-all and shapes drawn at random, on one
// core), with the ratio of stock's time to ours above it. Elsewhere ours is at 0.97 to 5 (few columns).
// Of float32 with AVX2 (Zen 3); float64 is at 0.97 to 2.8.
constexpr Shapes lost_avx2[] = {
    // MKL is at its limit, and ours keeps sums: 0.92 to 1.03
    {Lie::any, {129}, {32}, {1024}},
    {Lie::nn, {65}, {32}, {1024}},
    {Lie::tn, {65}, {32}, {1024}},
    // Of a tile's columns few are there: 0.64 to 0.80, 0.81 to 0.89, 0.74 to 0.84, 0.78 to 0.92
    {Lie::nt, {14}, {2, 4}, {512}},
    {Lie::nn, {5, 12}, {17, 63}, {256}},
    {Lie::tn, {5, 12}, {17, 63}, {256}},
    {Lie::tn, {5, 12}, {2, 5}, {512}},
    // One row, whose sums do not stay in the first cache: 0.87 to 0.98
    {Lie::nn, {1, 1}, {16384}, {256}},
    // A small product of two factors that are packed: 0.89 to 1.06
    {Lie::tn, {13, 64}, {16, 256}, {64}},
};
// Of float32 and float64 with AVX-512 (Zen 4).
constexpr Shapes lost_avx512[] = {
    // A row of less than a vector of a long k: 0.87 to 0.94
    {Lie::nn, {1, 1}, {2, 12}, {600}},
    {Lie::tn, {1, 1}, {2, 12}, {600}},
    // Rows that are packed for a few columns: 0.64 to 0.99
    {Lie::tn, {4, 12}, {2, 12}, {200}},
    // A short k, of which nothing is left to add up when both factors are packed: 0.6 to 0.9
    {Lie::nt, {4}, {100}, {1, 31}},
    {Lie::nt, {9, 20}, {33}, {32, 63}},
};
// Of bfloat16 with AVX512-BF16 (Zen 4), where stock's are oneDNN's.
constexpr Shapes lost_pairs[] = {
    // Many rows: 0.88 to 0.97
    {Lie::nt, {65}, {1000}, {100}},
    {Lie::nt, {65}, {300}, {2048}},
    {Lie::nt, {129}, {33}, {1024}},
    {Lie::nn, {129}, {300}, {2048}},
    // Columns of a tile and a half: 0.66 to 0.85
    {Lie::nt, {129}, {33, 48}, {256}},
    // Rows that do not stay in the second cache: 0.49 to 0.74
    {Lie::nt, {17, 24}, {2}, {5000}},
    // A short k: 0.5 to 0.9
    {Lie::any, {65}, {1000}, {1, 100}},
    {Lie::nt, {1, 1}, {49}, {1, 31}},
    // A few columns: 0.3 to 0.9
    {Lie::nt, {4, 5}, {2, 16}, {13, 100}},
    {Lie::nn, {1, 5}, {2, 8}, {2, 512}},
    {Lie::tn, {1, 5}, {2, 16}, {2, 200}},
    {Lie::nn, {4}, {2, 16}, {1024}},
    {Lie::tn, {4}, {2, 16}, {1024}},
};

// Of bfloat16 with AMX (Sapphire Rapids), where stock's are oneDNN's. Elsewhere ours is at 0.95 to 9. (Measured while
// nobody else used the unit, which two cores share: then both take twice as long, and the ratio is nearer to 1.)
constexpr Shapes lost_squares[] = {
    // Many rows: 0.58 to 1.1, 0.83 in the mean
    {Lie::nn, {400}, {250}, {250}},
    {Lie::nt, {400}, {250}, {250}},
    // Some rows of many columns: 0.81 to 1.05, 0.93 in the mean
    {Lie::nn, {200}, {700}, {250}},
    {Lie::nt, {200}, {700}, {250}},
    {Lie::nn, {100}, {700}, {1000}},
    {Lie::nt, {100}, {700}, {1000}},
    {Lie::nn, {32}, {2000}, {1000}},
    // The gradient of few outputs, or of few rows: 0.83 to 0.97, 0.83 to 1.06
    {Lie::tn, {16, 300}, {2000, 4096}, {700}},
    {Lie::tn, {200}, {700, 4096}, {1, 700}},
    // A short k, of which most of the time goes to storing the result: 0.61 to 0.95, 0.48 to 1.07, 0.6 to 0.91
    {Lie::nn, {300}, {500}, {1, 300}},
    {Lie::nt, {300}, {500}, {1, 64}},
    {Lie::nt, {32}, {2000}, {1, 64}},
    // One row of a short k: 0.68 to 0.74
    {Lie::nt, {1, 1}, {1000}, {1, 128}},
    // Many rows, each of which is read for few columns: 0.75 to 1.2
    {Lie::nn, {450}, {33, 249}, {250}},
    {Lie::nt, {450}, {33, 249}, {250}},
};

// And where MKL's on Intel's CPUs with AVX-512 take more; elsewhere they are at the limit. (A Xeon with AMX.)
constexpr Shapes won_of_mkl[] = {
    // Of either width: 1.04 to 2.3
    {Lie::nt, {4, 5}, {700}, {700}},
};
constexpr Shapes won_of_mkl_in_float[] = {
    // 1.2 to 2.9
    {Lie::nt, {7, 15}, {700}, {700}},
};

template <size_t lines>
bool has(const Shapes (&shapes)[lines], Lie lie, const MatmulArgs& a) {
  return std::any_of(std::begin(shapes), std::end(shapes), [&](const Shapes& s) {
    return (s.lie == Lie::any || s.lie == lie) && s.m.has(a.m) && s.n.has(a.n) && s.k.has(a.k);
  });
}

}  // namespace

bool MatmulPlan::stock_is_faster() const {
  if (take_all) return false;
  const bool a_is_turned = args_.a_row == 1 && args_.a_column != 1, b_is_turned = args_.b_row == 1;
  const Lie lie = a_is_turned ? Lie::tn : b_is_turned ? Lie::nt : Lie::nn;
  if (element_size(args_.dtype) == 2) {
    if (args_.m * args_.n == 1 && args_.k > 1 << 21) return true;  // 0.72 to 0.87 where both come from memory
    if (has_squares(args_.dtype)) return has(lost_squares, lie, args_);
    if (has_pairs(args_.dtype)) return has(lost_pairs, lie, args_);
    if (!has_products_of(args_.dtype)) return false;
    // Of float16 with AVX512-FP16 (Sapphire Rapids) ours, which are widened, are at 1 to 6 in few rows and in small
    // products (0.9 in 6 of 170), 2.4 in the mean; at 0.6 to 1.1 in others.
    const bool is_small = args_.m <= 10 || args_.m * args_.n * args_.k < int64_t(1) << 22;
    return args_.dtype != Dtype::f16 || !is_small || instruction_set() != InstructionSet::avx512;
  }
  const bool has_avx512 = instruction_set() == InstructionSet::avx512;
  if (instruction_set() == InstructionSet::base || (is_intel() && !has_avx512)) return true;
  if (is_intel()) {
    const bool is_float = args_.dtype == Dtype::f32;
    return !has(won_of_mkl, lie, args_) && !(is_float && has(won_of_mkl_in_float, lie, args_));
  }
  if (has_avx512) return has(lost_avx512, lie, args_);
  return args_.dtype == Dtype::f32 && has(lost_avx2, lie, args_);
}

void MatmulPlan::prepare(const Tensor& out, const Epilogue& epilogue) {
  kernel_ = &rusttorch::kernel(which()).on(Device::cpu);
  args_.a = (turned_ ? request_.b : request_.a).const_data_ptr();
  args_.b = (turned_ ? request_.a : request_.b).const_data_ptr();
  args_.added = added_ ? request_.added->const_data_ptr() : nullptr;
  args_.out = out.mutable_data_ptr();
  args_.out_row = args_.n;
  args_.activation = epilogue.activation;
  args_.gate = epilogue.gate ? epilogue.gate->const_data_ptr() : nullptr;
  args_.sums = epilogue.sums ? epilogue.sums->mutable_data_ptr() : nullptr;
}

void MatmulPlan::run_block(const Blocks::Block& block) const {
  const int64_t size = element_size(args_.dtype), result = block.batch * args_.m * args_.n * size;
  MatmulArgs args = args_;
  advance(args.a, block.batch * a_.next * size);
  advance(args.b, block.batch * b_.next * size);
  advance(args.added, block.batch * added_next_ * size);
  advance(args.out, result);
  advance(args.gate, result);
  advance(args.sums, result);
  kernel_->run(args.part(block.row, block.last_row, block.column, block.last_column));
}

bool PackedMatrix::is_taken(Dtype dtype) {
  if (take_all) return true;  // whoever packs asks only here
  if (element_size(dtype) == 2) return has_squares(dtype) || has_pairs(dtype) || !has_products_of(dtype);
  return !is_intel() && instruction_set() != InstructionSet::base;
}

PackedMatrix::PackedMatrix(const Tensor& b) {
  const bool squares = has_squares(*dtype_of(b)), pairs = has_pairs(*dtype_of(b));
  const int64_t size = b.element_size(), k = b.size(0), n = b.size(1);
  args_.dtype = *dtype_of(b);
  args_.k = k, args_.n = args_.out_row = n;
  args_.b_is_packed = true;
  // In squares a column has whole ones of 32 numbers, in pairs whole pairs; else numbers of 16 bits are widened.
  args_.b_column = squares ? divide_up(k, 32) * 32 : pairs ? k + k % 2 : k * std::max<int64_t>(1, 4 / size);
  args_.alpha = args_.beta = 1;
  packed_ = empty_beside(b, {divide_up(n, Blocks::columns) * Blocks::columns * args_.b_column}, b.scalar_type());
  args_.b = packed_.const_data_ptr();
  const auto [multiply, pack_as] = squares ? std::pair(matmul::squares, matmul::pack_squares)
                                   : pairs ? std::pair(matmul::pairs, matmul::pack_pairs)
                                           : std::pair(matmul::blocks, matmul::pack);
  kernel_ = &rusttorch::kernel(multiply).on(Device::cpu);

  const Kernel<MatmulArgs>& pack = rusttorch::kernel(pack_as).on(Device::cpu);
  parallel(divide_up(n, Blocks::columns), Blocks::columns * k, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * Blocks::columns;
    MatmulArgs args{};
    args.dtype = args_.dtype;
    args.k = k, args.n = std::min(end * Blocks::columns, n) - first;
    args.b = b.const_data_ptr(), args.b_row = b.stride(0), args.b_column = b.stride(1);
    args.out = packed_.mutable_data_ptr();
    advance(args.b, first * args.b_column * size);
    advance(args.out, first * args_.b_column * size);
    pack.run(args);
  });
}

void PackedMatrix::multiply(const Tensor& out, const Tensor& a, const Tensor* added) const {
  MatmulArgs all = args_;
  all.m = a.size(0);
  all.a = a.const_data_ptr(), all.a_row = a.stride(0), all.a_column = 1;
  all.out = out.mutable_data_ptr();
  if (added) all.added = added->const_data_ptr(), all.added_row = all.n, all.added_column = 1;
  const Blocks blocks(/*batch=*/1, all);
  parallel(blocks.count(), blocks.work(), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const auto [batch, row, last_row, column, last_column] = blocks[i];
      kernel_->run(all.part(row, last_row, column, last_column));
    }
  });
}

namespace {

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
using OfVectors = Product<1, 1>;

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
      ROW("dot", OfVectors, STOCK(dot)),
      ROW("dot.out", OfVectors, COMPOSITE_EXPLICIT(dot_outf)),
  };
  return rows;
}

}  // namespace rusttorch
