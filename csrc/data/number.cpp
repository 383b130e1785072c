#include "number.h"

namespace rusttorch::csv {

const char* read_number(const char* p, const char* end, double& result) {
  const bool negative = p < end && *p == '-';
  if (p < end && (*p == '-' || *p == '+')) ++p;
  const char* const begin = p;
  uint64_t w = 0;
  p = digits(p, end, w);
  int64_t n = p - begin, q = 0;
  if (p < end && *p == '.') {
    const char* const point = ++p;
    p = digits(p, end, w);
    q = point - p;
    n -= q;
  }
  if (n == 0) return nullptr;
  if (p < end && (*p | 0x20) == 'e') {
    const char* e = p + 1;
    const bool down = e < end && *e == '-';
    if (e < end && (*e == '-' || *e == '+')) ++e;
    const char* const first = e;
    int64_t by = 0;
    for (; e < end && is_digit(*e); ++e) by = std::min<int64_t>(by * 10 + (*e - '0'), 1'000'000'000'000'000);
    if (e == first) return nullptr;
    q += down ? -by : by;
    p = e;
  }
  if (n > 19) {  // more than w holds, but for zeros before them
    for (const char* zero = begin; zero < p && (*zero == '0' || *zero == '.'); ++zero) n -= *zero == '0';
  }
  const bool usual = n <= 19 && w != 0 && std::abs(q) <= most_fives;
  if (!usual || !nearest(w, q, result)) result = exactly(begin, p);
  if (negative) result = -result;
  return p;
}

const char* read_number(const char* p, const char* end, int64_t& result) {
  const bool sign = p < end && (*p == '-' || *p == '+');
  const char* const begin = p + sign;
  uint64_t w = 0;
  const char* const last = digits(begin, end, w);
  if (last == begin) return nullptr;
  if (last - begin <= 18) return result = sign && *p == '-' ? -int64_t(w) : int64_t(w), last;
  return std::from_chars(sign && *p == '+' ? begin : p, last, result).ec == std::errc() ? last : nullptr;
}

double named(std::string_view text) {
  const auto is = [&](std::string_view name) {
    return std::equal(text.begin(), text.end(), name.begin(), name.end(),
                      [](char a, char b) { return (a | 0x20) == b; });
  };
  if (is("nan")) return std::numeric_limits<double>::quiet_NaN();
  return is("inf") || is("infinity") ? std::numeric_limits<double>::infinity() : 0;
}

double exactly(const char* begin, const char* end) {
  double result = 0;
  if (std::from_chars(begin, end, result).ec != std::errc::result_out_of_range) return result;
  // Too large, or too small: what its first digit is worth says which.
  const char *p = begin, *e = begin;
  while (e < end && (*e | 0x20) != 'e') ++e;
  int64_t worth = 0;
  while (p < e && *p == '0') ++p;
  while (p < e && is_digit(*p)) ++p, ++worth;
  if (worth == 0 && p < e) {
    for (++p; p < e && *p == '0'; ++p) --worth;
  }
  int64_t exponent = 0;
  for (const char* digit = e; digit < end; ++digit) {
    if (is_digit(*digit)) exponent = std::min<int64_t>(exponent * 10 + (*digit - '0'), 1'000'000'000'000'000);
  }
  const bool down = end - e > 1 && e[1] == '-';
  return (down ? -exponent : exponent) + worth > 0 ? std::numeric_limits<double>::infinity() : 0;
}

}  // namespace rusttorch::csv
