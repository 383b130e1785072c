#pragma once

// The sum of a formula over all elements, times scale, and nothing of the input's size written. Each block leaves its
// part, in the order of which a second launch adds them: the same call gives the same bits.

#include "loop.cuh"

namespace rusttorch {

// A few floats are added before they go to a double.
template <class Op, class T, int count, size_t... I, size_t... S>
__device__ __forceinline__ double sum_pack(const Pointers<T>& p, const Scalars<Compute<T>>& scalars, int64_t k,
                                           std::index_sequence<I...>, std::index_sequence<S...>) {
  const Pack<T, count> in[] = {load_or_fill<T, count>(p.in[I], p.broadcast >> I & 1, k)...};
  Compute<T> sum = 0;
#pragma unroll
  for (int j = 0; j < count; ++j) sum += Op::apply(widen<T>(in[I].value[j])..., scalars.value[S]...);
  return double(sum);
}

template <class Op, class T, int count>
__global__ void __launch_bounds__(block_threads)
    sum_formula(int64_t n, Pointers<T> p, Scalars<Compute<T>> scalars, double* parts) {
  constexpr auto tensors = std::make_index_sequence<Op::tensors>();
  constexpr auto constants = std::make_index_sequence<Op::scalars>();
  double sum = 0;
  each_of_grid<count>(n,
                      [&](int64_t i, auto size) { sum += sum_pack<Op, T, size>(p, scalars, i, tensors, constants); });
  sum = sum_threads(sum, 1, block_threads);
  if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

template <class T>
__global__ void __launch_bounds__(block_threads) sum_parts(const double* parts, int count, double scale, T* out) {
  double sum = 0;
  for (int k = int(threadIdx.x); k < count; k += block_threads) sum += parts[k];
  sum = sum_threads(sum, 1, block_threads);
  if (threadIdx.x == 0) *out = narrow<T>(sum * scale);
}

template <class Op>
void launch_total(const ElementwiseArgs& a, cudaStream_t stream) {
  with_type<Op::types>(a.dtype, [&](auto t) {
    using T = decltype(t);
    ElementwiseArgs inputs = a;
    inputs.out[0] = inputs.out[1] = nullptr;
    const Operands<Op, T> operands(inputs);
    double* const parts = static_cast<double*>(a.out[1]);
    const int64_t blocks = total_parts(a.n);
    start(operands.aligned ? &sum_formula<Op, T, pack<T>> : &sum_formula<Op, T, 1>, dim3(unsigned(blocks)),
          block_threads, stream, a.n, operands.pointers, operands.scalars, parts);
    start(&sum_parts<T>, dim3(1), block_threads, stream, parts, int(blocks), a.scale, static_cast<T*>(a.out[0]));
  });
}

}  // namespace rusttorch
