#pragma once

// Random numbers of a Mersenne Twister, by vectors.

#include <algorithm>

#include "load_store.h"
#include "random.h"

namespace rusttorch {
namespace {

using W = Vector<uint32_t, vector_bytes>;
constexpr int words_at_once = vector_bytes / 4;

template <class V>
RT_INLINE V twisted(V low, V high, V other) {
  const V mixed = (low & 0x80000000u) | (high & 0x7fffffffu);
  return other ^ (mixed >> 1) ^ (-(high & 1u) & 0x9908b0dfu);
}

// state[j] of the next 624 words, from state[j], state[j + 1] and state[j + 397], for the j in [begin, end). What lies
// before j is of the next words already, so j + 397 wraps around.
void twist(uint32_t* state, int begin, int end, int far) {
  int j = begin;
  for (; j + words_at_once <= end; j += words_at_once) {
    store(state + j, twisted(load<W>(state + j), load<W>(state + j + 1), load<W>(state + j + far)));
  }
  for (; j < end; ++j) state[j] = twisted(state[j], state[j + 1], state[j + far]);
}

void next_state(uint32_t* state) {
  constexpr int n = Twister::size, m = 397;
  twist(state, 0, n - m, m);
  twist(state, n - m, n - 1, m - n);
  state[n - 1] = twisted(state[n - 1], state[0], state[m - 1]);
}

template <class V>
RT_INLINE V temper(V y) {
  y ^= y >> 11;
  y ^= (y << 7) & 0x9d2c5680u;
  y ^= (y << 15) & 0xefc60000u;
  return y ^ (y >> 18);
}

void draw_words(Twister& random, uint32_t* words, int64_t count) {
  while (count > 0) {
    if (random.next == Twister::size) {
      next_state(random.state);
      random.next = 0;
    }
    const int64_t n = std::min<int64_t>(count, Twister::size - random.next);
    const uint32_t* state = random.state + random.next;
    int64_t i = 0;
    for (; i + words_at_once <= n; i += words_at_once) store(words + i, temper(load<W>(state + i)));
    for (; i < n; ++i) words[i] = temper(state[i]);
    random.next += int(n);
    words += n;
    count -= n;
  }
}

// As if so many words had been drawn.
[[maybe_unused]] void skip_words(Twister& random, int64_t count) {
  for (; count > Twister::size - random.next; random.next = 0) {
    count -= Twister::size - random.next;
    next_state(random.state);
  }
  random.next += int(count);
}

// Two words are a number of 53 bits; the first has the high ones.
void fill_mask(const uint32_t* words, uint8_t* mask, int64_t n, uint64_t kept) {
  constexpr int64_t at_once = vector_bytes / 8;
  using D = Vector<uint64_t, vector_bytes>;
  using Mask = Vector<uint8_t, at_once>;
  const auto below = [kept](auto pair) { return (((pair >> 32) | (pair << 32)) & ((uint64_t(1) << 53) - 1)) < kept; };
  int64_t i = 0;
  for (; i + at_once <= n; i += at_once) {
    store(mask + i, Mask(__builtin_convertvector(below(load<D>(words + 2 * i)), Mask) & 1));
  }
  for (; i < n; ++i) mask[i] = below(uint64_t(words[2 * i]) | uint64_t(words[2 * i + 1]) << 32);
}

// mask[i] = whether the next number is below kept.
[[maybe_unused]] void draw_mask(Twister& random, uint8_t* mask, int64_t n, uint64_t kept) {
  constexpr int64_t at_once = 1024;
  uint32_t words[2 * at_once];
  for (int64_t i = 0; i < n; i += at_once) {
    const int64_t count = std::min(at_once, n - i);
    draw_words(random, words, 2 * count);
    fill_mask(words, mask + i, count, kept);
  }
}

}  // namespace
}  // namespace rusttorch
