#pragma once

// A thread's share of a run that is walked twice: read once and kept in registers where the run is short enough for
// that, else read again.

#include "device.cuh"

namespace rusttorch {

// How many a thread keeps, of all inputs: 32 numbers, of 4 bytes when they are computed with.
template <class T>
constexpr int packs_kept = sizeof(T) == 2 ? 4 : 8;

// Whether the block's threads can keep these runs of n: contiguous, and of whole packs.
template <class T>
bool can_keep(const DeviceTiles& tiles, int64_t n, int64_t inner, std::initializer_list<const void*> inputs) {
  const bool aligned = std::all_of(inputs.begin(), inputs.end(), [](auto* x) { return uintptr_t(x) % 16 == 0; });
  return aligned && inner == 1 && n % pack<T> == 0 &&
         n / pack<T> <= tiles.height * (packs_kept<T> / int(inputs.size()));
}

template <bool kept, class T, int inputs>
class Share {
 public:
  static constexpr int most = packs_kept<T> / inputs;

  // Of the runs of n elements, `row` apart, that begin at x[k]: me.step is the thread's place among `threads`.
  __device__ Share(const T* const (&x)[inputs], int64_t n, int64_t row, const Place& me, int threads)
      : n_(me.inside ? n : 0), row_(row), step_(me.step), threads_(threads) {
    for (int k = 0; k < inputs; ++k) x_[k] = x[k];
  }

  // f(i, v, j) for `count` neighbours from i on: v[k] are those of input k, an array of count. Of what is kept, they
  // are the thread's j-th pack.
  template <class F>
  __device__ __forceinline__ void walk(F f) {
    if constexpr (kept) {
      each_kept([&](int j, int64_t i) {
#pragma unroll
        for (int k = 0; k < inputs; ++k) held_[k][j] = *reinterpret_cast<const P*>(x_[k] + i);
        give(j, i, f);
      });
    } else {
      read(f);
    }
  }
  // The same, after walk().
  template <class F>
  __device__ __forceinline__ void walk_again(F f) {
    if constexpr (kept) {
      each_kept([&](int j, int64_t i) { give(j, i, f); });
    } else {
      read(f);
    }
  }

 private:
  using P = Pack<T, pack<T>>;

  template <class F>
  __device__ __forceinline__ void each_kept(F f) {
#pragma unroll
    for (int j = 0; j < most; ++j) {
      const int64_t i = (int64_t(j) * threads_ + step_) * pack<T>;
      if (i < n_) f(j, i);
    }
  }
  template <class F>
  __device__ __forceinline__ void give(int j, int64_t i, F& f) const {
    Compute<T> v[inputs][pack<T>];
#pragma unroll
    for (int k = 0; k < inputs; ++k) {
#pragma unroll
      for (int l = 0; l < pack<T>; ++l) v[k][l] = widen<T>(held_[k][j].value[l]);
    }
    f(i, v, j);
  }
  template <class F>
  __device__ __forceinline__ void read(F& f) const {
    each_pack(x_[0], n_, row_, step_, threads_, [&](int64_t i, auto count) {
      Compute<T> v[inputs][count];
#pragma unroll
      for (int k = 0; k < inputs; ++k) load_values<count>(x_[k] + i * row_, v[k]);
      f(i, v, 0);
    });
  }

  const T* x_[inputs];
  P held_[kept ? inputs : 1][kept ? most : 1];
  int64_t n_, row_;
  int step_, threads_;
};

// The count, of what walk() gives.
template <class V>
constexpr int count_of = int(std::extent_v<std::remove_reference_t<V>, 1>);

}  // namespace rusttorch
