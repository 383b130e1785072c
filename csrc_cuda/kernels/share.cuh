#pragma once

// A thread's share of a run that is walked twice: read once and kept in registers where the run is short enough for
// that, else read again.

#include "device.cuh"

namespace rusttorch {

// How many packs a thread keeps, of all inputs: 32 numbers, of 4 bytes when they are computed with.
template <class T>
constexpr int packs_kept = sizeof(T) == 2 ? 4 : 8;
// And how many elements of each.
template <class T, int inputs>
constexpr int most_kept = packs_kept<T> / inputs * pack<T>;

// Whether the block's threads can keep these runs of n: contiguous, and all of them alike where packs begin.
template <class T>
bool can_keep(const DeviceTiles& tiles, int64_t n, int64_t inner, std::initializer_list<const void*> inputs) {
  const bool alike = std::all_of(inputs.begin(), inputs.end(),
                                 [&](auto* x) { return uintptr_t(x) % 16 == uintptr_t(*inputs.begin()) % 16; });
  return alike && inner == 1 && n / pack<T> <= tiles.height * (packs_kept<T> / int(inputs.size()));
}
// Whether they are of nothing but packs, too.
template <class T>
bool are_packs(int64_t n, std::initializer_list<const void*> inputs) {
  return n % pack<T> == 0 && std::all_of(inputs.begin(), inputs.end(), [](auto* x) { return uintptr_t(x) % 16 == 0; });
}

// only_packs: the runs that are kept are of nothing but packs.
template <bool kept, class T, int inputs, bool only_packs = false>
class Share {
 public:
  static constexpr int most = packs_kept<T> / inputs;

  // Of the runs of n elements, `row` apart, that begin at x[k]: me.step is the thread's place among `threads`.
  __device__ Share(const T* const (&x)[inputs], int64_t n, int64_t row, const Place& me, int threads)
      : row_(row), step_(me.step), threads_(threads), packs_(x[0], me.inside ? n : 0) {
    for (int k = 0; k < inputs; ++k) x_[k] = x[k];
  }

  // What is kept is all on its way before any of it is used.
  __device__ __forceinline__ void load() {
    if constexpr (kept) {
      each_kept([&](int j, int64_t i) {
#pragma unroll
        for (int k = 0; k < inputs; ++k) held_[k][j] = load_pack<pack<T>>(x_[k] + i);
      });
      if (has_single()) {
#pragma unroll
        for (int k = 0; k < inputs; ++k) single_[k].value[0] = x_[k][single()];
      }
    }
  }
  // f(i, v, j) for `count` neighbours from i on: v[k] are those of input k, an array of count. Of what is kept, and
  // loaded, they are the thread's j-th pack.
  template <class F>
  __device__ __forceinline__ void walk(F f) {
    if constexpr (kept) {
      each_kept([&](int j, int64_t i) {
        P now[inputs];
#pragma unroll
        for (int k = 0; k < inputs; ++k) now[k] = held_[k][j];
        give(now, i, j, f);
      });
      if (has_single()) give(single_, single(), 0, f);
    } else {
      each_pack(x_, packs_.n, row_, step_, threads_, [&](int64_t i, auto& v) { f(i, v, 0); });
    }
  }

 private:
  using P = Pack<T, pack<T>>;

  template <class F>
  __device__ __forceinline__ void each_kept(F f) const {
#pragma unroll
    for (int j = 0; j < most; ++j) {
      const int k = j * threads_ + step_;
      if (k < int(packs_.count)) f(j, packs_.at(k));
    }
  }
  // What is before the first pack and after the last is fewer than there are threads: one each.
  __device__ bool has_single() const { return !only_packs && step_ < packs_.n - packs_.count * pack<T>; }
  __device__ int64_t single() const { return step_ < packs_.head ? step_ : step_ + packs_.count * pack<T>; }

  template <int count, class F>
  __device__ __forceinline__ void give(const Pack<T, count> (&of)[inputs], int64_t i, int j, F& f) const {
    Compute<T> v[inputs][count];
#pragma unroll
    for (int k = 0; k < inputs; ++k) {
#pragma unroll
      for (int l = 0; l < count; ++l) v[k][l] = widen<T>(of[k].value[l]);
    }
    f(i, v, j);
  }

  const T* x_[inputs];
  P held_[kept ? inputs : 1][kept ? most : 1];
  Pack<T, 1> single_[inputs];
  int64_t row_;
  int step_, threads_;
  Packs<T> packs_;
};

// The count, of what walk() gives.
template <class V>
constexpr int count_of = int(std::extent_v<std::remove_reference_t<V>, 1>);

}  // namespace rusttorch
