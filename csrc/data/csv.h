#pragma once

// Comma-separated text to columns of numbers, by several threads. Knows no tensors, no files and no Python.
//
// The grammar is that of Python's csv module with strict=True: a field that begins with a quote ends with one, a
// doubled quote within stands for one, and quotes elsewhere are characters like others. Lines end with LF or CRLF.
// Empty lines, and lines that begin with a comment's character, are no records.

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

namespace rusttorch::csv {

// 0: there is none.
struct Dialect {
  char delimiter = ',', quote = '"', comment = 0;
};

// Runs a function for each of 0 to n - 1, in any order, by as many threads as there are.
using ForEach = std::function<void(int64_t n, const std::function<void(int64_t)>&)>;

// Thrown where text is not what was said of it.
struct Malformed {
  size_t position;  // in the text: what is there, or begins there
  int64_t field;    // of the record, or -1: it is about the record
  std::string what;
};

// Records that follow each other: the text [begin, end).
struct Part {
  size_t begin, end;
  int64_t row, rows;  // the number of the first, and how many
};
struct Index {
  std::vector<Part> parts;
  int64_t rows = 0;
};

// Where records begin, so that threads can begin there: text is cut after some line end each part_size bytes, which may
// be within quotes. So each part is scanned twice, as if it began without and within quotes, and then it is known from
// the first part on which of the two was the case. (Without quotes in it, that is one loop that counts line ends; with
// some, the scan that is in the wrong soon finds text after a closing quote, and ends.)
//
// It ends after the part in which there are `enough` rows, and looks at few more: at twice as many at a time. Where
// text is not final, more of it is to come: a record that may not be complete is not part of it.
Index index(std::string_view text, const Dialect& dialect, bool final, int64_t enough, size_t part_size,
            const ForEach& for_each);

// The fields of the record at begin, which is moved past it; none where there is none.
std::vector<std::string> read_record(std::string_view text, const Dialect& dialect, size_t& begin);

// Strings to numbers, in the order in which they were first seen.
class Vocabulary {
 public:
  int64_t find(std::string_view word) const;  // -1: it is not there
  int64_t add(std::string_view word);
  int64_t size() const { return int64_t(words_.size()); }
  const std::string& operator[](int64_t code) const { return *words_[size_t(code)]; }

 private:
  struct Hash : std::hash<std::string_view> {
    using is_transparent = void;
  };
  std::unordered_map<std::string, int64_t, Hash, std::equal_to<>> codes_;
  std::vector<const std::string*> words_;
};

enum class Type { float32, float64, int64, boolean, category };

struct Column {
  int64_t field;  // its number in the record
  Type type;
  void* data;      // of the first row
  int64_t stride;  // in elements, from row to row
  Vocabulary* vocabulary = nullptr;
  bool may_grow = true;
};

struct Table {
  int64_t fields;  // of each record
  std::vector<Column> columns;
  std::unordered_set<std::string> missing;  // besides the empty field
};

// Rows [first, last) of the index, into the columns. Returns where the next record begins. Throws Malformed.
size_t parse(std::string_view text, const Dialect& dialect, const Index& index, int64_t first, int64_t last,
             const Table& table, const ForEach& for_each);

}  // namespace rusttorch::csv
