#pragma once

// A reducer R<T> is what a formula is for inputs of type T:
//   Local                what a thread keeps while it walks; take(local, v, i, count): v[0..count) come in, from index
//   i State, of(local)     what some of the elements come to, put together by add(a, b) write(args, state, k)     the
//   k-th result

#include "../../csrc/kernels/reduction.h"
#include "exp_sum.cuh"

namespace rusttorch {
namespace {

template <class F, class T>
struct Fold {
  using C = Compute<T>;
  // Sums and products of integers are int64, as in aten.
  static constexpr bool widens = !is_float_type<T> && !F::orders;
  using State = std::conditional_t<widens, int64_t, std::conditional_t<F::rounds, double, C>>;
  using Out = std::conditional_t<widens, int64_t, T>;
  struct Local {
    State total = F::template identity<State>;
  };

  template <int count>
  static __device__ __forceinline__ void take(Local& l, const C (&v)[count], int64_t) {
    if constexpr (widens) {
#pragma unroll
      for (int j = 0; j < count; ++j) l.total = F::join(l.total, F::term(State(v[j])));
    } else {
      C part = F::term(v[0]);
#pragma unroll
      for (int j = 1; j < count; ++j) part = F::join(part, F::term(v[j]));
      l.total = F::join(l.total, State(part));
    }
  }
  static __device__ State of(const Local& l) { return l.total; }
  static __device__ void add(State& a, const State& b) { a = F::join(a, b); }
  static __device__ void write(const ReductionArgs& a, State total, int64_t k) {
    static_cast<Out*>(a.out[0])[k] = narrow<Out>(F::finish(total, a.n));
  }
};

// The largest or smallest, and where it is first.
template <class Side, bool values, class T>
struct Extreme {
  using C = Compute<T>;
  struct State {
    C value;
    int64_t index;
  };
  struct Local {
    C value = Side::fold::template identity<C>;
    int64_t index = std::numeric_limits<int64_t>::max();  // of none
  };

  template <int count>
  static __device__ __forceinline__ void take(Local& l, const C (&v)[count], int64_t i) {
#pragma unroll
    for (int j = 0; j < count; ++j) {
      if (Side::better(v[j], l.value) || l.index == std::numeric_limits<int64_t>::max()) {
        l.value = v[j];
        l.index = i + j;
      }
    }
  }
  static __device__ State of(const Local& l) { return {l.value, l.index}; }
  static __device__ void add(State& a, const State& b) {
    if (Side::better(b.value, a.value) || (!Side::better(a.value, b.value) && b.index < a.index)) a = b;
  }
  static __device__ void write(const ReductionArgs& a, const State& s, int64_t k) {
    if constexpr (values) static_cast<T*>(a.out[0])[k] = narrow<T>(s.value);
    static_cast<int64_t*>(a.out[values])[k] = s.index;
  }
};

template <bool wanted, class T>
struct Truth {
  using State = bool;  // whether an element of the wanted truth was seen
  struct Local {
    bool seen = false;
  };

  template <int count>
  static __device__ __forceinline__ void take(Local& l, const Compute<T> (&v)[count], int64_t) {
#pragma unroll
    for (int j = 0; j < count; ++j) l.seen |= (v[j] != 0) == wanted;
  }
  static __device__ State of(const Local& l) { return l.seen; }
  static __device__ void add(State& a, State b) { a |= b; }
  static __device__ void write(const ReductionArgs& a, State seen, int64_t k) {
    static_cast<bool*>(a.out[0])[k] = seen == wanted;
  }
};

// The distances to the thread's first number, and their squares, as doubles: that number is one of those whose variance
// it is, so that little is lost when the mean is taken out.
template <Moment moment, class T>
struct Moments {
  using State = MomentsState;
  struct Local {
    double n = 0, first = 0, sum = 0, squares = 0;
  };

  template <int count>
  static __device__ __forceinline__ void take(Local& l, const Compute<T> (&v)[count], int64_t) {
    if (l.n == 0) l.first = double(v[0]);
    l.n += count;
#pragma unroll
    for (int j = 0; j < count; ++j) {
      const double d = double(v[j]) - l.first;
      l.sum += d;
      l.squares += d * d;
    }
  }
  static __device__ State of(const Local& l) {
    if (l.n == 0) return {};
    return {l.n, l.first + l.sum / l.n, l.squares - l.sum * (l.sum / l.n)};
  }
  static __device__ void add(State& a, const State& b) { a.add(b); }
  static __device__ void write(const ReductionArgs& a, const State& s, int64_t k) {
    static_cast<T*>(a.out[0])[k] = narrow<T>(s.result(moment, a.scalar));
    if constexpr (moment == Moment::var_mean) static_cast<T*>(a.out[1])[k] = narrow<T>(s.mean);
  }
};

// An infinite largest is itself the result.
template <class T>
struct logsumexp {
  using C = Compute<T>;
  using State = ExpSumState;
  struct Local {
    ExpSum<C> finite;
    bool infinite = false;
  };

  template <int count>
  static __device__ __forceinline__ void take(Local& l, const C (&v)[count], int64_t) {
    C kept[count];
#pragma unroll
    for (int j = 0; j < count; ++j) {
      const bool infinite = v[j] == std::numeric_limits<C>::infinity();
      l.infinite |= infinite;
      kept[j] = infinite ? -v[j] : v[j];
    }
    l.finite.take(kept);
  }
  static __device__ State of(const Local& l) {
    if (l.infinite && l.finite.sum == l.finite.sum) return {0, std::numeric_limits<double>::infinity()};
    return l.finite.state();
  }
  static __device__ void add(State& a, const State& b) { a.add(b); }
  static __device__ void write(const ReductionArgs& a, const State& s, int64_t k) {
    static_cast<T*>(a.out[0])[k] = narrow<T>(s.result());
  }
};

}  // namespace
}  // namespace rusttorch

#include "../../csrc/kernels/reducers.h"

namespace rusttorch {

// A part of each run: the result, or the state where there are several parts.
template <class R, class T>
__global__ void __launch_bounds__(block_threads) reduce(ReductionArgs a, DeviceReduction d) {
  const Place me(d, a.outer, a.inner);
  const int64_t begin = int64_t(blockIdx.y) * d.per_part, left = a.n - begin;
  typename R::Local local{};
  if (me.inside) {
    const T* const x = static_cast<const T*>(a.in) + (me.run * a.n + begin) * a.inner + me.column;
    each_pack(x, left < d.per_part ? left : d.per_part, a.inner, me.step, d.height, [&](int64_t i, auto count) {
      Compute<T> v[count];
      load_values<count>(x + i * a.inner, v);
      R::take(local, v, begin + i);
    });
  }
  const auto add = [](typename R::State& s, const typename R::State& t) { R::add(s, t); };
  const typename R::State whole = join_threads(R::of(local), d.width, d.height, add);
  if (!me.inside || me.step != 0) return;
  const int64_t k = me.run * a.inner + me.column;
  if (d.parts == 1) {
    R::write(a, whole, k);
  } else {
    static_cast<typename R::State*>(a.workspace)[blockIdx.y * d.outputs + k] = whole;
  }
}

// A block for each output.
template <class R>
__global__ void __launch_bounds__(block_threads) join_parts(ReductionArgs a, int64_t parts, int64_t outputs) {
  const auto* const states = static_cast<const typename R::State*>(a.workspace) + blockIdx.x;
  typename R::State mine = R::of(typename R::Local{});
  for (int64_t k = threadIdx.x; k < parts; k += block_threads) R::add(mine, states[k * outputs]);
  const auto add = [](typename R::State& s, const typename R::State& t) { R::add(s, t); };
  mine = join_threads(mine, 1, block_threads, add);
  if (threadIdx.x == 0) R::write(a, mine, blockIdx.x);
}

template <template <class> class R, Dtypes dtypes>
void launch_reduction(const ReductionArgs& a, cudaStream_t stream) {
  with_type<dtypes>(a.dtype, [&](auto t) {
    using T = decltype(t);
    static_assert(sizeof(typename R<T>::State) <= sizeof(ReductionState));
    const DeviceReduction d(a);
    start(&reduce<R<T>, T>, dim3(unsigned(d.blocks), unsigned(d.parts)), block_threads, stream, a, d);
    if (d.parts > 1) start(&join_parts<R<T>>, dim3(unsigned(d.outputs)), block_threads, stream, a, d.parts, d.outputs);
  });
}

}  // namespace rusttorch
