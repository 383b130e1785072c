#pragma once

// A reducer R<T> is what a formula is for inputs of type T:
//   Local                      what a thread keeps while it walks
//   begin(x, i)                that of no elements yet of a run whose first is x, at index i
//   take(local, v, i)          v[0..count) come in, from index i on
//   State, join(local, w, h)   what some of the elements come to: those of the threads of a run, for each of them
//   none(), add(a, b)          that of no elements; puts two together
//   write(args, state, k)      the k-th result

#include "../../csrc/kernels/reduction.h"
#include "exp_sum.cuh"
#include "ticket.cuh"

namespace rusttorch {
namespace {

// What a thread keeps is a state.
template <class R, class State>
__device__ __forceinline__ State join_states(const State& mine, int width, int height) {
  return join_threads(mine, width, height, [](State& a, const State& b) { R::add(a, b); });
}

template <class F, class T>
struct Fold {
  using C = Compute<T>;
  // Sums and products of integers are int64, as in aten.
  static constexpr bool widens = !is_float_type<T> && !F::orders;
  using State = std::conditional_t<widens, int64_t, std::conditional_t<F::rounds, double, C>>;
  using Out = std::conditional_t<widens, int64_t, T>;
  struct Local {
    State total;
  };
  static __device__ Local begin(C, int64_t) { return {none()}; }

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
  static __device__ State join(const Local& l, int width, int height) {
    return join_states<Fold>(l.total, width, height);
  }
  static __device__ State none() { return F::template identity<State>; }
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
  // The neighbours among which the best is, from the index on: which of them it is is asked in the end.
  struct Local {
    C best, among[pack<T>];
    int64_t index;
  };
  static __device__ Local begin(C first, int64_t i) {
    Local l{first, {}, i};
    for (C& c : l.among) c = first;
    return l;
  }

  template <int count>
  static __device__ __forceinline__ void take(Local& l, const C (&v)[count], int64_t i) {
    C best = v[0];
#pragma unroll
    for (int j = 1; j < count; ++j) best = Side::fold::join(best, v[j]);
    const bool is_better = Side::better(best, l.best);
    l.best = is_better ? best : l.best;
    l.index = is_better ? i : l.index;
#pragma unroll
    for (int j = 0; j < pack<T>; ++j) l.among[j] = is_better ? v[j % count] : l.among[j];
  }
  static __device__ State join(const Local& l, int width, int height) {
    State mine{l.among[0], l.index};
#pragma unroll
    for (int j = pack<T> - 1; j >= 0; --j) {
      if (!Side::better(l.best, l.among[j])) mine = {l.among[j], l.index + j};
    }
    return join_states<Extreme>(mine, width, height);
  }
  static __device__ State none() { return {Side::fold::template identity<C>, std::numeric_limits<int64_t>::max()}; }
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
    bool seen;
  };
  static __device__ Local begin(Compute<T>, int64_t) { return {false}; }

  template <int count>
  static __device__ __forceinline__ void take(Local& l, const Compute<T> (&v)[count], int64_t) {
#pragma unroll
    for (int j = 0; j < count; ++j) l.seen |= (v[j] != 0) == wanted;
  }
  static __device__ State join(const Local& l, int width, int height) {
    return join_states<Truth>(l.seen, width, height);
  }
  static __device__ State none() { return false; }
  static __device__ void add(State& a, State b) { a |= b; }
  static __device__ void write(const ReductionArgs& a, State seen, int64_t k) {
    static_cast<bool*>(a.out[0])[k] = seen == wanted;
  }
};

// The distances to the run's first number, and their squares, as doubles: that number is one of those whose variance it
// is, so that little is lost when the mean is taken out.
template <Moment moment, class T>
struct Moments {
  using State = MomentsState;
  struct Local {
    double first, n, sum, squares;
  };
  static __device__ Local begin(Compute<T> x, int64_t) { return {double(x), 0, 0, 0}; }

  template <int count>
  static __device__ __forceinline__ void take(Local& l, const Compute<T> (&v)[count], int64_t) {
    l.n += count;
#pragma unroll
    for (int j = 0; j < count; ++j) {
      const double d = double(v[j]) - l.first;
      l.sum += d;
      l.squares += d * d;
    }
  }
  static __device__ State join(const Local& l, int width, int height) {
    const Local all = join_threads(l, width, height, [](Local& a, const Local& b) {
      a.n += b.n;
      a.sum += b.sum;
      a.squares += b.squares;
    });
    return {all.n, all.first + all.sum / all.n, all.squares - all.sum * (all.sum / all.n)};
  }
  static __device__ State none() { return {}; }
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
  static constexpr C infinity = std::numeric_limits<C>::infinity();
  struct Local {
    ExpSum<T> finite;
    bool infinite = false;
  };
  static __device__ Local begin(C, int64_t) { return {}; }

  template <int count>
  static __device__ __forceinline__ void take(Local& l, const C (&v)[count], int64_t) {
    C kept[count];
#pragma unroll
    for (int j = 0; j < count; ++j) {
      l.infinite |= v[j] == infinity;
      kept[j] = v[j] == infinity ? -infinity : v[j];
    }
    l.finite.take(kept);
  }
  static __device__ State join(const Local& l, int width, int height) {
    const bool infinite = join_threads(l.infinite, width, height, [](bool& a, bool b) { a |= b; });
    const ExpSumState finite = l.finite.join(width, height);
    if (infinite && finite.sum == finite.sum) return {0, double(infinity)};
    return finite;
  }
  static __device__ State none() { return {}; }
  static __device__ void add(State& a, const State& b) { a.add(b); }
  static __device__ void write(const ReductionArgs& a, const State& s, int64_t k) {
    static_cast<T*>(a.out[0])[k] = narrow<T>(s.result());
  }
};

}  // namespace
}  // namespace rusttorch

#include "../../csrc/kernels/reducers.h"

namespace rusttorch {

// The results of a block's outputs, of which each thread that stands before one has some of the parts. (Not inlined: it
// would take registers from the loop before it, and so blocks from a multiprocessor.)
template <class R, int columns>
__device__ __attribute__((noinline)) void join_parts(const ReductionArgs& a, const DeviceReduction& d) {
  const Place me(d, a.outer, a.inner / columns);
  constexpr int batch = sizeof(typename R::State) > 8 ? 2 : 4;  // loaded before the first is added
#pragma unroll
  for (int c = 0; c < columns; ++c) {
    const int64_t output = me.run * a.inner + me.column * columns + c;
    const auto* const states = static_cast<const typename R::State*>(a.workspace) + output;
    typename R::State mine = R::none();
    for (int64_t k = me.step; me.inside && k < d.parts; k += batch * d.height) {
      typename R::State some[batch];
#pragma unroll
      for (int b = 0; b < batch; ++b) {
        if (k + b * d.height < d.parts) some[b] = states[(k + b * d.height) * d.outputs];
      }
#pragma unroll
      for (int b = 0; b < batch; ++b) {
        if (k + b * d.height < d.parts) R::add(mine, some[b]);
      }
    }
    mine = join_states<R>(mine, d.width, d.height);
    if (me.inside && me.step == 0) R::write(a, mine, output);
  }
}

// A part of each run: the result, or the state where there are several parts, which the last of their blocks joins, if
// there are tickets. A thread takes so many columns.
template <class R, class T, int columns>
__global__ void __launch_bounds__(block_threads)
    reduce(const __grid_constant__ ReductionArgs a, const __grid_constant__ DeviceReduction d, int slot) {
  const Place me(d, a.outer, a.inner / columns);
  const int64_t begin = int64_t(blockIdx.y) * d.per_part, left = a.n - begin;
  const int64_t n = !me.inside ? 0 : left < d.per_part ? left : d.per_part;
  const T* const x = static_cast<const T*>(a.in) + (me.run * a.n + begin) * a.inner + me.column * columns;
  typename R::Local local[columns];
#pragma unroll
  for (int c = 0; c < columns; ++c) local[c] = R::begin(n > 0 ? widen<T>(x[c]) : Compute<T>(0), begin);
  auto* const states = static_cast<typename R::State*>(a.workspace);
  if constexpr (columns == 1) {
    // Of 2 bytes a warp's load is half as long as of 4: twice as many are on their way where there are registers for
    // it.
    constexpr int batch = is_narrow<T> && sizeof(typename R::Local) <= 8 ? 16 : 8;
    each_pack<batch>({x}, n, a.inner, me.step, d.height,
                     [&](int64_t i, auto& v) { R::take(local[0], v[0], begin + i); });
  } else {
    const auto take = [&](int64_t i, auto& v) {
#pragma unroll
      for (int c = 0; c < columns; ++c) R::take(local[c], {v[0][c]}, begin + i);
    };
    each_place<columns, 1, 8>({x}, a.inner, 0, n, me.step, d.height, take);
  }
#pragma unroll
  for (int c = 0; c < columns; ++c) {
    const typename R::State whole = R::join(local[c], d.width, d.height);
    if (!me.inside || me.step != 0) continue;
    const int64_t k = me.run * a.inner + me.column * columns + c;
    if (d.parts == 1) {
      R::write(a, whole, k);
    } else {
      states[blockIdx.y * d.outputs + k] = whole;
    }
  }
  if (d.parts > 1 && slot != no_slot && is_last_block(slot, blockIdx.x, gridDim.y)) join_parts<R, columns>(a, d);
}

// The second launch, where the first has no tickets.
template <class R, int columns>
__global__ void __launch_bounds__(block_threads)
    reduce_parts(const __grid_constant__ ReductionArgs a, const __grid_constant__ DeviceReduction d) {
  join_parts<R, columns>(a, d);
}

template <template <class> class R, Dtypes dtypes>
void launch_reduction(const ReductionArgs& a, cudaStream_t stream) {
  with_type<dtypes>(a.dtype, [&](auto t) {
    using T = decltype(t);
    static_assert(sizeof(typename R<T>::State) <= sizeof(ReductionState));
    const DeviceReduction d(a);
    const int slot = d.parts > 1 && d.blocks <= tickets_of_slot ? slot_of(stream) : no_slot;
    const auto launch = [&]<int columns>() {
      start(&reduce<R<T>, T, columns>, dim3(unsigned(d.blocks), unsigned(d.parts)), block_threads, stream, a, d, slot);
      if (d.parts > 1 && slot == no_slot) {
        start(&reduce_parts<R<T>, columns>, dim3(unsigned(d.blocks)), block_threads, stream, a, d);
      }
    };
    d.columns > 1 ? launch.template operator()<is_narrow<T> ? DeviceReduction::most_columns : 1>()
                  : launch.template operator()<1>();
  });
}

}  // namespace rusttorch
