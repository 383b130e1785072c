// csv.cpp and number.cpp on mutated text, for libFuzzer and sanitizers (tests/test_csv.py has the commands): whatever
// the text is, nothing beyond it is touched, and where it is cut for threads does not change what is read.

#include <cstdio>
#include <cstdlib>
#include <optional>

#include "../csrc/data/csv.h"

using namespace rusttorch::csv;

namespace {

void in_turn(int64_t n, const std::function<void(int64_t)>& f) {
  for (int64_t k = 0; k < n; ++k) f(k);
}

struct Result {
  int64_t rows = 0;
  std::vector<uint64_t> bits;
  std::vector<std::string> words;
  std::optional<Malformed> error;
};

Result read(std::string_view text, const Dialect& dialect, const std::vector<Type>& types, bool final, size_t part) {
  Result result;
  const Index found = index(text, dialect, final, int64_t(1) << 62, part, in_turn);
  result.rows = found.rows;
  const size_t fields = types.size(), rows = size_t(found.rows);
  std::vector<std::vector<uint64_t>> data(fields, std::vector<uint64_t>(rows));
  Vocabulary vocabulary;
  Table table{int64_t(fields), {}, {"NA"}};
  for (size_t k = 0; k < fields; ++k) {
    const int64_t stride = types[k] == Type::float32 ? 2 : types[k] == Type::boolean ? 8 : 1;
    table.columns.push_back({int64_t(k), types[k], data[k].data(), stride, &vocabulary, true});
  }
  try {
    parse(text, dialect, found, 0, found.rows, table, in_turn);
  } catch (const Malformed& malformed) {
    result.error = malformed;
    if (malformed.position > text.size()) std::abort();
    return result;
  }
  for (const auto& column : data) result.bits.insert(result.bits.end(), column.begin(), column.end());
  for (int64_t k = 0; k < vocabulary.size(); ++k) result.words.push_back(vocabulary[k]);
  return result;
}

void check(bool holds) {
  if (!holds) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  if (size < 2) return 0;
  const Dialect dialect{bytes[0] & 1 ? ';' : ',', bytes[0] & 2 ? '"' : '\0', bytes[0] & 4 ? '#' : '\0'};
  const bool final = !(bytes[0] & 8);
  std::vector<Type> types;
  for (int k = 0; k <= bytes[1] % 4; ++k) types.push_back(Type((bytes[1] >> (2 + k)) % 5));
  const std::string copy(reinterpret_cast<const char*>(bytes) + 2, size - 2);  // its end is guarded
  size_t begin = 0;
  try {
    read_record(copy, dialect, begin);
  } catch (const Malformed&) {
  }
  const Result whole = read(copy, dialect, types, final, copy.size() + 1);
  for (const size_t part : {1, 3, 16}) {
    const Result cut = read(copy, dialect, types, final, part);
    check(cut.error.has_value() == whole.error.has_value());
    if (whole.error) {
      check(cut.error->position == whole.error->position && cut.error->what == whole.error->what);
    } else {
      check(cut.rows == whole.rows && cut.bits == whole.bits && cut.words == whole.words);
    }
  }
  return 0;
}
