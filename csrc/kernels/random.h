#pragma once

#include <algorithm>
#include <cstdint>

namespace rusttorch {

// The state of a Mersenne Twister of 32-bit words (M. Matsumoto and T. Nishimura, 1998), as at::mt19937 has it.
struct Twister {
  static constexpr int size = 624;
  uint32_t* state;
  int next;  // the words before it were given out
};

// A state that is saved: its words, and next.
constexpr int64_t saved_words = Twister::size + 1;

// -> behind it.
inline uint32_t* save(const Twister& random, uint32_t* to) {
  to = std::copy_n(random.state, Twister::size, to);
  *to++ = uint32_t(random.next);
  return to;
}
// Goes on from there, with words of its own. (What is saved is a tensor, which may be anybody's.)
inline Twister restore(const uint32_t* saved, uint32_t* words) {
  std::copy_n(saved, Twister::size, words);
  return {words, int(std::min<uint32_t>(saved[Twister::size], Twister::size))};
}

}  // namespace rusttorch
