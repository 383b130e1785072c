#pragma once

// Numbers of decimal text: to the last bit what Python's float() and int() make of it.

#include <emmintrin.h>

#include <algorithm>
#include <array>
#include <bit>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string_view>

namespace rusttorch::csv {

inline bool is_digit(char c) { return uint8_t(c - '0') < 10; }

// Past the digits at p, which are appended to value, modulo 2^64.
inline const char* digits(const char* p, const char* end, uint64_t& value) {
  for (; p < end && is_digit(*p); ++p) value = value * 10 + uint64_t(*p - '0');
  return p;
}

// What the faster path has no answer to: [begin, end) is digits with a point and an exponent.
double exactly(const char* begin, const char* end);

// Past the number at p, or null where there is none. It ends where no more of it can follow: that the field ends there
// as well is for the caller to see.
const char* read_number(const char* p, const char* end, double& result);
const char* read_number(const char* p, const char* end, int64_t& result);

// nan, inf, infinity, in any case; 0 where it is none of them.
double named(std::string_view text);

// 5^q, cut to 64 bits: bits * 2^e <= 5^q < (bits + 1) * 2^e, and bits >= 2^63.
struct PowerOfFive {
  uint64_t bits;
  int64_t exponent;  // e + q, as in w 10^q = w 5^q 2^q
};
constexpr int most_fives = 27;  // the last whose power has 64 bits
constexpr auto powers_of_five = [] {
  std::array<PowerOfFive, 2 * most_fives + 1> all{};
  uint64_t power = 1;
  for (int q = 0; q <= most_fives; ++q, power *= 5) {
    const int zeros = std::countl_zero(power), width = 64 - zeros;
    all[most_fives + q] = {power << zeros, q - zeros};
    if (q == 0) continue;
    const auto one = static_cast<unsigned __int128>(1) << (63 + width);
    all[most_fives - q] = {uint64_t(one / power), -q - 63 - width};
  }
  return all;
}();

// The float64 nearest to w 10^q, where 64 bits of 5^q tell; they do but for about one number in 1,000. w is not 0, and
// q in [-27, 27].
//
// w 5^q lies in [product, product + 2^64), so its upper half is known but for 1. Its first 53 bits are kept, and only
// where the others are a half, or 1 less, could what is not known round it the other way.
inline bool nearest(uint64_t w, int64_t q, double& result) {
  const PowerOfFive power = powers_of_five[size_t(most_fives + q)];
  const int zeros = std::countl_zero(w);
  const uint64_t upper = uint64_t(static_cast<unsigned __int128>(w << zeros) * power.bits >> 64);
  const int dropped = 10 + int(upper >> 63);
  const uint64_t half = uint64_t(1) << (dropped - 1), rest = upper & (2 * half - 1);
  const uint64_t mantissa = ((upper >> (dropped - 1)) + 1) >> 1;
  const int64_t exponent = power.exponent - zeros + 64 + dropped;                // of mantissa's last bit
  result = std::bit_cast<double>((uint64_t(exponent + 1074) << 52) + mantissa);  // its first bit adds the 1075th
  return rest - half + 1 > 1;
}

constexpr auto powers_of_ten = [] {
  std::array<uint64_t, 9> all{1};
  for (size_t k = 1; k < all.size(); ++k) all[k] = 10 * all[k - 1];
  return all;
}();

inline uint64_t eight_bytes(const char* p) {
  static_assert(std::endian::native == std::endian::little, "the first byte is the lowest");
  uint64_t bytes;
  std::memcpy(&bytes, p, 8);
  return bytes;
}

// The number that the first n <= 8 bytes are, which are digits.
inline uint64_t up_to_eight_digits(uint64_t bytes, int n) {
  bytes ^= 0x3030303030303030;
  bytes = bytes << (32 - 4 * n) << (32 - 4 * n);  // as if zeros were before them, also where n is 0
  bytes = bytes * 10 + (bytes >> 8);              // pairs, in every second byte
  const uint64_t low = bytes & 0x000000ff000000ff, high = bytes >> 16 & 0x000000ff000000ff;
  return uint32_t((low * (100 + (uint64_t(1'000'000) << 32)) + high * (1 + (uint64_t(10'000) << 32))) >> 32);
}

// Which of the 32 bytes at p are no digits, the first in the lowest bit.
inline uint32_t no_digits(const char* p) {
  const auto are_digits = [](const char* at) {
    const __m128i value = _mm_sub_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)), _mm_set1_epi8('0'));
    return uint32_t(_mm_movemask_epi8(_mm_cmpeq_epi8(_mm_min_epu8(value, _mm_set1_epi8(9)), value)));
  };
  return ~(are_digits(p) | are_digits(p + 16) << 16);
}

// The number that the n <= 16 digits at p are with zeros for what is missing of 16. Where point is 1, one stands after
// so many of them.
inline uint64_t sixteen_digits(const char* p, int before, int n, int point) {
  static constexpr auto ones = [] {
    std::array<uint8_t, 64> all{};
    for (size_t k = 0; k < 32; ++k) all[k] = 0xff;
    return all;
  }();
  const auto load = [](const void* at) { return _mm_loadu_si128(static_cast<const __m128i*>(at)); };
  const auto first = [&](int so_many) { return load(&ones[size_t(32 - so_many)]); };  // a mask of them
  const __m128i here = load(p), further = load(p + point);
  const __m128i text = _mm_xor_si128(further, _mm_and_si128(_mm_xor_si128(here, further), first(before)));
  const __m128i digits = _mm_and_si128(_mm_sub_epi8(text, _mm_set1_epi8('0')), first(n));
  // Pairs, fours and eights, each with the first digits in its lower half.
  const __m128i tens = _mm_mullo_epi16(_mm_and_si128(digits, _mm_set1_epi16(0xff)), _mm_set1_epi16(10));
  const __m128i pairs = _mm_add_epi16(tens, _mm_srli_epi16(digits, 8));
  const __m128i fours = _mm_madd_epi16(pairs, _mm_set1_epi32(100 + (1 << 16)));
  const __m128i eights = _mm_madd_epi16(_mm_packs_epi32(fours, fours), _mm_set1_epi32(10000 + (1 << 16)));
  const uint64_t both = uint64_t(_mm_cvtsi128_si64(eights));
  return uint64_t(uint32_t(both)) * 100'000'000 + (both >> 32);
}

// read_number of [-]digits[.digits], as most are, without branches on the sign and the number of digits, which a CPU
// could not foresee. Null where it is another, or where fewer than 64 bytes can be read.
[[gnu::always_inline]] inline const char* read_usual_number(const char* p, const char* end, double& result) {
  if (end - p < 64) return nullptr;
  const int sign = *p == '-';
  uint32_t others = no_digits(p) & ~uint32_t(sign);
  if (others == 0) return nullptr;
  const int before = std::countr_zero(others) - sign;
  int n = before, after = 0, point = 0;
  const char* last = p + before + sign;
  const char* const first = p + sign;
  if (*last == '.') {
    others &= others - 1;
    if (others == 0 || before > 8) return nullptr;
    last = p + std::countr_zero(others);
    n = int(last - first) - 1;
    after = n - before;
    point = 1;
  }
  if (n < 1 || n > 20) return nullptr;
  // 8 digits with the point taken from among them: those before it, and from the byte after on, all after it.
  const int bits = 4 * std::min(before, 8);
  const uint64_t front = (uint64_t(1) << bits << bits) - 1;
  const uint64_t eight = (eight_bytes(first) & front) | (eight_bytes(first + point) & ~front);
  const uint64_t negative = uint64_t(sign) << 63;
  if (n <= 8) {  // both are exact, so their quotient is the nearest (W. Clinger, 1990)
    const double value = double(int64_t(up_to_eight_digits(eight, n))) / double(int64_t(powers_of_ten[size_t(after)]));
    result = std::bit_cast<double>(std::bit_cast<uint64_t>(value) | negative);
    return last;
  }
  if (n > 19 && *first != '0') return nullptr;  // more than 64 bits
  const int rest = std::max(n - 16, 0);
  uint64_t w = sixteen_digits(first, before, std::min(n, 16), point);
  w = w * powers_of_ten[size_t(rest)] + up_to_eight_digits(eight_bytes(first + point + 16), rest);
  if (w == 0 || !nearest(w, before - 16 - rest, result)) return nullptr;
  result = std::bit_cast<double>(std::bit_cast<uint64_t>(result) | negative);
  return last;
}

}  // namespace rusttorch::csv
