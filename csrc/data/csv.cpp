#include "csv.h"

#include <atomic>
#include <optional>

#include "number.h"

namespace rusttorch::csv {

namespace {

constexpr size_t nowhere = std::string_view::npos;

// Where text is, and the steps that scanning and parsing share. p never goes beyond end.
struct Cursor {
  const char *p, *end;
  Dialect dialect;

  bool at(char c) const { return p < end && *p == c; }
  bool at_quote() const { return dialect.quote && at(dialect.quote); }
  bool at_comment() const { return dialect.comment && at(dialect.comment); }
  // A carriage return is one at a line's end only. The last line may lack its line feed.
  bool at_return() const { return at('\r') && (p + 1 == end || p[1] == '\n'); }
  bool at_line_end() const { return p == end || *p == '\n' || at_return(); }
  bool at_field_end() const { return at_line_end() || *p == dialect.delimiter || at_comment(); }

  void to(char c) {
    const void* found = p < end ? std::memchr(p, c, size_t(end - p)) : nullptr;
    p = found ? static_cast<const char*>(found) : end;
  }
  void past_line() {
    to('\n');
    p += p < end;
  }
  // To the next record, or the end.
  void past_no_records() {
    while (p < end && (at_line_end() || at_comment())) past_line();
  }
  // From within quotes to after the closing one. False if there is none.
  bool past_quotes() {
    for (;; p += 2) {
      to(dialect.quote);
      if (p == end) return false;
      if (end - p < 2 || p[1] != dialect.quote) return ++p, true;
    }
  }
  // From a field's end to the next one's begin; or past the line, and then it is false.
  bool to_next_field() {
    if (at(dialect.delimiter)) return ++p, true;
    past_line();
    return false;
  }
};

// What a part of the text is, as it was begun.
struct Scan {
  int64_t rows = 0;                        // that begin in it
  size_t first = nowhere, last = nowhere;  // where these do
  bool inside = false;                     // quotes, at its end
  bool malformed = false;                  // that is as far as it went
};

class Scanner : Cursor {
 public:
  Scanner(std::string_view text, size_t begin, size_t end, const Dialect& dialect)
      : Cursor{text.data() + begin, text.data() + end, dialect}, text_(text.data()) {}

  Scan scan(bool inside) {
    if (inside) end_record(true);
    while (!scan_.inside && !scan_.malformed) {
      past_no_records();
      if (p == end) break;
      scan_.last = size_t(p - text_);
      if (++scan_.rows == 1) scan_.first = scan_.last;
      end_record(false);
    }
    return scan_;
  }

 private:
  // From within a record to after it.
  void end_record(bool inside) {
    do {
      if (!inside && at_quote()) ++p, inside = true;
      if (!inside) {
        while (p < end && *p != '\n' && *p != dialect.delimiter && !at_comment()) ++p;
      } else if (!past_quotes()) {
        scan_.inside = true;
        return;
      } else if (!at_field_end()) {
        scan_.malformed = true;
        return;
      }
      inside = false;
    } while (to_next_field());
  }

  const char* text_;
  Scan scan_;
};

// All there is to know of text without quotes, empty lines and comments: how many lines there are.
struct Sight {
  int64_t lines = 0;
  bool quotes = false, others = false;
};
Sight look(std::string_view text, const Dialect& dialect) {
  constexpr size_t block = 128;  // its lines can be counted in a byte
  Sight all;
  size_t k = 0;
  const auto look_at = [&](size_t n) {
    uint8_t lines = 0, quotes = 0, others = 0;
    for (size_t i = k; i < k + n; ++i) {
      const uint8_t feed = text[i] == '\n';
      lines += feed;
      quotes |= text[i] == dialect.quote;
      others |= (feed & ((text[i + 1] == '\n') | (text[i + 1] == '\r'))) | (text[i] == dialect.comment);
    }
    all.lines += lines;
    all.quotes |= quotes;
    all.others |= others;
    k += n;
  };
  while (text.size() - k > block) look_at(block);
  look_at(text.size() - k - 1);
  const char first = text.front(), last = text.back();
  all.lines += 1;  // it ends with the text, if not with a line feed
  all.quotes |= last == dialect.quote;
  all.others |= first == '\n' || first == '\r' || last == dialect.comment;
  return all;
}

struct Scans {
  Scan outside, inside;
};
Scans scan(std::string_view text, size_t begin, size_t end, const Dialect& dialect) {
  const Sight sight = look(text.substr(begin, end - begin), dialect);
  Scans both;
  both.inside.inside = true;
  if (sight.quotes || sight.others) {
    both.outside = Scanner(text, begin, end, dialect).scan(false);
  } else {
    both.outside.rows = sight.lines;
    both.outside.first = begin;  // the last is asked for only where it ends within quotes
  }
  if (sight.quotes) both.inside = Scanner(text, begin, end, dialect).scan(true);
  return both;
}

bool is_utf8(std::string_view text) {
  for (size_t k = 0; k < text.size();) {
    const uint8_t lead = uint8_t(text[k++]);
    if (lead < 0x80) continue;
    const int more = lead >= 0xf0 ? 3 : lead >= 0xe0 ? 2 : 1;
    if (lead < 0xc2 || lead > 0xf4 || text.size() - k < size_t(more)) return false;
    uint32_t code = lead & (0x3f >> more);
    for (int i = 0; i < more; ++i) {
      if ((text[k] & 0xc0) != 0x80) return false;
      code = code << 6 | (uint8_t(text[k++]) & 0x3f);
    }
    constexpr uint32_t least[] = {0, 0x80, 0x800, 0x10000};
    if (code < least[more] || code > 0x10ffff || (code >= 0xd800 && code < 0xe000)) return false;
  }
  return true;
}

std::string_view without_blanks(std::string_view text) {
  const auto is_blank = [](char c) { return c == ' ' || c == '\t'; };
  while (!text.empty() && is_blank(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_blank(text.back())) text.remove_suffix(1);
  return text;
}

bool as_number(std::string_view text, double& result) {
  text = without_blanks(text);
  const char* const end = text.data() + text.size();
  if (const char* read = read_number(text.data(), end, result)) return read == end;
  const bool sign = !text.empty() && (text[0] == '-' || text[0] == '+');
  const double value = named(text.substr(sign));
  result = sign && text[0] == '-' ? -value : value;
  return value != 0;
}

bool as_number(std::string_view text, int64_t& result) {
  text = without_blanks(text);
  const char* const end = text.data() + text.size();
  return read_number(text.data(), end, result) == end && !text.empty();
}

bool as_number(std::string_view text, bool& result) {
  text = without_blanks(text);
  std::string lower(text);
  for (char& c : lower) c = c >= 'A' && c <= 'Z' ? char(c | 0x20) : c;
  result = lower == "true" || lower == "1";
  return result || lower == "false" || lower == "0";
}

std::string shown(std::string_view text) {
  constexpr size_t enough = 40;
  std::string quoted = "'";
  quoted += text.substr(0, enough);
  return quoted += text.size() > enough ? "...'" : "'";
}

constexpr const char* name_of(Type type) {
  constexpr const char* names[] = {"float32", "float64", "int64", "bool", "category"};
  return names[int(type)];
}

// A word that is in no vocabulary yet has a code of its part's own until all parts are there.
constexpr int64_t provisional(int64_t k) { return -2 - k; }

class Parser : Cursor {
 public:
  Parser(std::string_view text, size_t begin, size_t end, const Dialect& dialect, const Table* table = nullptr)
      : Cursor{text.data() + begin, text.data() + end, dialect}, text_(text.data()), table_(table) {
    for (const char c : {dialect.delimiter, '\n', '\r', dialect.comment}) stops_[uint8_t(c)] |= c != 0;
    if (!table) return;
    by_field_.assign(size_t(table->fields), nullptr);
    words_.resize(table->columns.size());
    for (const Column& column : table->columns) by_field_[size_t(column.field)] = &column;
    double number;
    for (const auto& word : table->missing) some_number_is_missing_ |= as_number(word, number);
  }

  size_t position() const { return size_t(p - text_); }
  std::vector<Vocabulary>& words() { return words_; }

  void skip_record() {
    past_no_records();
    do field();
    while (to_next_field());
  }

  std::vector<std::string> strings() {
    std::vector<std::string> all;
    past_no_records();
    if (p == end) return all;
    do all.emplace_back(field());
    while (to_next_field());
    return all;
  }

  void parse_record(int64_t row) {
    past_no_records();
    const char* const begin = p;
    const size_t fields = by_field_.size();
    for (size_t k = 0; k < fields; ++k) {
      const Column* const column = by_field_[k];
      if (column && parse_usual(*column, row, k + 1 < fields ? dialect.delimiter : '\n')) continue;
      field_ = int64_t(k);
      if (column) {
        parse_field(*column, row);
      } else {
        field();
      }
      const bool more = to_next_field();
      if (more == (k + 1 < fields)) continue;
      size_t found = k + 1;
      for (bool another = more; another; ++found, another = to_next_field()) field();
      throw Malformed{size_t(begin - text_), -1,
                      "expected " + std::to_string(fields) + " fields, got " + std::to_string(found)};
    }
  }

 private:
  // The field here; then p is at its end. It is valid until the next.
  std::string_view field() {
    const char* const begin = p;
    if (!at_quote()) {
      while (p < end && !stops_[uint8_t(*p)]) ++p;
      if (!at_field_end()) fail(p, "a carriage return without a line feed");
      return {begin, p};
    }
    ++p;
    if (!past_quotes()) fail(begin, "a quote that is not closed");
    if (!at_field_end()) fail(p, "text after a closing quote");
    const std::string_view inner(begin + 1, p - 1);
    if (inner.find(dialect.quote) == nowhere) return inner;
    unquoted_.clear();
    for (size_t k = 0; k < inner.size(); ++k) {
      unquoted_ += inner[k];
      k += inner[k] == dialect.quote;  // of two, the second is left out
    }
    return unquoted_;
  }

  // What most fields are: a float before the byte that should follow it. Else nothing is done, and it is false.
  [[gnu::always_inline]] bool parse_usual(const Column& column, int64_t row, char next) {
    if (column.type > Type::float64 || some_number_is_missing_) return false;
    double value;
    const char* const read = read_usual_number(p, end, value);
    if (!read || *read != next) return false;
    p = read + 1;
    if (column.type == Type::float32) {
      static_cast<float*>(column.data)[row * column.stride] = float(value);
    } else {
      static_cast<double*>(column.data)[row * column.stride] = value;
    }
    return true;
  }

  void parse_field(const Column& column, int64_t row) {
    const int64_t at = row * column.stride;
    switch (column.type) {
      case Type::float32: return void(static_cast<float*>(column.data)[at] = float(number<double>(column.type)));
      case Type::float64: return void(static_cast<double*>(column.data)[at] = number<double>(column.type));
      case Type::int64: return void(static_cast<int64_t*>(column.data)[at] = number<int64_t>(column.type));
      case Type::boolean: return void(static_cast<bool*>(column.data)[at] = number<bool>(column.type));
      case Type::category: return void(static_cast<int64_t*>(column.data)[at] = code(column));
    }
  }

  template <class T>
  T number(Type type) {
    T value;
    const char* const begin = p;
    if constexpr (std::is_same_v<T, int64_t>) {  // most are nothing but a number
      const char* const read = some_number_is_missing_ ? nullptr : read_number(p, end, value);
      if (read) {
        p = read;
        if (at_field_end()) return value;
        p = begin;
      }
    }
    const std::string_view text = field();
    if (text.empty() || is_missing(without_blanks(text))) {
      if constexpr (std::is_same_v<T, double>) return std::numeric_limits<double>::quiet_NaN();
      fail(begin, std::string("a missing value, for which ") + name_of(type) + " has no number");
    }
    if (!as_number(text, value))
      fail(begin, shown(text) + " is no " + name_of(type) + " (if it is missing: na_values)");
    return value;
  }

  int64_t code(const Column& column) {
    const char* const begin = p;
    const std::string_view text = field();
    if (text.empty() || is_missing(text)) return -1;
    if (const int64_t known = column.vocabulary->find(text); known >= 0) return known;
    if (!column.may_grow) fail(begin, shown(text) + " is not in the column's vocabulary");
    Vocabulary& words = words_[size_t(&column - table_->columns.data())];
    if (const int64_t known = words.find(text); known >= 0) return provisional(known);
    if (!is_utf8(text)) fail(begin, shown(text) + " is not UTF-8");
    return provisional(words.add(text));
  }

  bool is_missing(std::string_view text) const {
    return !table_->missing.empty() && table_->missing.contains(std::string(text));
  }

  [[noreturn]] void fail(const char* where, std::string what) const {
    throw Malformed{size_t(where - text_), field_, std::move(what)};
  }

  const char* text_;
  const Table* table_;
  std::vector<const Column*> by_field_;  // null: nobody asked for it
  std::vector<Vocabulary> words_;        // by column: those that are new
  std::array<bool, 256> stops_{};        // where a field without quotes may end
  bool some_number_is_missing_ = false;
  int64_t field_ = -1;  // for errors
  std::string unquoted_;
};

// Rows [first, last) of the table that are in a part.
struct Piece {
  Part part;
  std::vector<Vocabulary> words;
  size_t stopped = 0;
  std::optional<Malformed> error;

  void parse(std::string_view text, const Dialect& dialect, int64_t first, int64_t last, const Table& table) try {
    Parser parser(text, part.begin, part.end, dialect, &table);
    int64_t row = part.row;
    for (; row < first; ++row) parser.skip_record();
    for (; row < std::min(last, part.row + part.rows); ++row) parser.parse_record(row - first);
    stopped = parser.position();
    words = std::move(parser.words());
  } catch (Malformed& malformed) {
    error = std::move(malformed);
  }

  // Final codes in the place of provisional ones, where words is those of its column.
  void settle(const Column& column, const std::vector<int64_t>& codes, int64_t first, int64_t last) const {
    auto* const data = static_cast<int64_t*>(column.data);
    for (int64_t row = std::max(first, part.row); row < std::min(last, part.row + part.rows); ++row) {
      int64_t& code = data[(row - first) * column.stride];
      if (code <= provisional(0)) code = codes[size_t(provisional(0) - code)];
    }
  }
};

}  // namespace

int64_t Vocabulary::find(std::string_view word) const {
  const auto found = codes_.find(word);
  return found == codes_.end() ? -1 : found->second;
}

int64_t Vocabulary::add(std::string_view word) {
  const auto [found, is_new] = codes_.emplace(word, size());
  if (is_new) words_.push_back(&found->first);
  return found->second;
}

Index index(std::string_view text, const Dialect& dialect, bool final, int64_t enough, size_t part_size,
            const ForEach& for_each) {
  if (!final) text = text.substr(0, text.rfind('\n') + 1);
  Index found;
  size_t end = 0, last = 0;
  bool inside = false, malformed = false;
  const auto left = [&] { return end < text.size() && !malformed && found.rows - inside < enough; };
  for (int64_t n = 1; left(); n *= 2) {
    std::vector<size_t> cuts = {end};
    while (int64_t(cuts.size()) <= n && cuts.back() < text.size()) {
      const size_t feed = text.find('\n', std::min(text.size(), cuts.back() + part_size) - 1);
      cuts.push_back(feed == nowhere ? text.size() : feed + 1);
    }
    std::vector<Scans> scans(cuts.size() - 1);
    for_each(int64_t(scans.size()),
             [&](int64_t k) { scans[size_t(k)] = scan(text, cuts[size_t(k)], cuts[size_t(k) + 1], dialect); });
    for (size_t k = 0; k < scans.size() && left(); ++k) {
      const Scan& scan = inside ? scans[k].inside : scans[k].outside;
      end = cuts[k + 1];
      inside = scan.inside;
      malformed = scan.malformed;
      if (scan.rows == 0) continue;
      if (!found.parts.empty()) found.parts.back().end = scan.first;
      found.parts.push_back({scan.first, end, found.rows, scan.rows});
      found.rows += scan.rows;
      last = scan.last;
    }
  }
  if (found.parts.empty()) return found;
  Part& part = found.parts.back();
  part.end = malformed ? text.size() : end;
  if (inside && !(final && end == text.size())) {
    part.end = last;
    --part.rows;
    --found.rows;
  }
  return found;
}

std::vector<std::string> read_record(std::string_view text, const Dialect& dialect, size_t& begin) {
  Parser parser(text, begin, text.size(), dialect);
  auto strings = parser.strings();
  begin = parser.position();
  return strings;
}

size_t parse(std::string_view text, const Dialect& dialect, const Index& index, int64_t first, int64_t last,
             const Table& table, const ForEach& for_each) {
  std::vector<Piece> pieces;
  for (const Part& part : index.parts) {
    if (part.row < last && part.row + part.rows > first) pieces.push_back({part, {}, 0, {}});
  }
  if (pieces.empty()) return 0;
  std::atomic<size_t> failed = pieces.size();  // the first that did; what follows it is not needed
  for_each(int64_t(pieces.size()), [&](int64_t number) {
    const size_t k = size_t(number);
    if (k > failed) return;
    pieces[k].parse(text, dialect, first, last, table);
    if (!pieces[k].error) return;
    for (size_t before = failed; k < before && !failed.compare_exchange_weak(before, k);) {
    }
  });
  if (failed < pieces.size()) throw *pieces[failed].error;

  for (size_t c = 0; c < table.columns.size(); ++c) {
    const Column& column = table.columns[c];
    if (column.type != Type::category) continue;
    std::vector<std::vector<int64_t>> codes(pieces.size());
    bool any = false;
    for (size_t k = 0; k < pieces.size(); ++k) {
      const Vocabulary& words = pieces[k].words[c];
      for (int64_t word = 0; word < words.size(); ++word) codes[k].push_back(column.vocabulary->add(words[word]));
      any |= words.size() > 0;
    }
    if (!any) continue;
    for_each(int64_t(pieces.size()), [&](int64_t k) {
      if (!codes[size_t(k)].empty()) pieces[size_t(k)].settle(column, codes[size_t(k)], first, last);
    });
  }
  return pieces.back().stopped;
}

}  // namespace rusttorch::csv
