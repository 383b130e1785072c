#include "python.h"

#include <ATen/core/Tensor.h>
#include <sys/mman.h>

#include <algorithm>

#include "../memory.h"
#include "../parallel.h"
#include "csv.h"

namespace rusttorch {

namespace py = pybind11;

namespace {

void in_parallel(int64_t n, const std::function<void(int64_t)>& f) { parallel_tasks(n, f); }

// The bytes of a buffer from begin on, for as long as this is.
struct Text {
  Text(const py::buffer& buffer, size_t begin) : info(buffer.request()), begin(begin) {}
  operator std::string_view() const {
    return std::string_view(static_cast<const char*>(info.ptr), size_t(info.size)).substr(begin);
  }
  py::buffer_info info;
  size_t begin;
};

// A tensor of one dim, and the vocabulary where it is of codes.
csv::Column column(int64_t field, const at::Tensor& tensor, csv::Vocabulary* vocabulary, bool may_grow) {
  const auto type = [&] {
    if (vocabulary) return csv::Type::category;
    switch (tensor.scalar_type()) {
      case at::kFloat: return csv::Type::float32;
      case at::kDouble: return csv::Type::float64;
      case at::kLong: return csv::Type::int64;
      default: return csv::Type::boolean;
    }
  };
  constexpr c10::DispatchKeySet wrapping({c10::DispatchKey::Python, c10::DispatchKey::Functionalize});
  TORCH_CHECK_TYPE(!tensor.key_set().has_any(wrapping), "read_csv: tensors have no memory in this mode (",
                   tensor.toString(), ")");
  return {field, type(), tensor.data_ptr(), tensor.stride(0), vocabulary, may_grow};
}

py::object malformed_error;

// A position within the buffer, the number of the field or -1, and what is wrong.
[[noreturn]] void raise(const csv::Malformed& malformed, size_t begin) {
  PyErr_SetObject(malformed_error.ptr(),
                  py::make_tuple(begin + malformed.position, malformed.field, py::bytes(malformed.what)).ptr());
  throw py::error_already_set();
}

size_t parse_csv(const py::buffer& buffer, size_t begin, const csv::Dialect& dialect, const csv::Index& index,
                 int64_t first, int64_t last, const csv::Table& table) {
  const Text text(buffer, begin);
  try {
    const py::gil_scoped_release no_gil;
    return begin + csv::parse(text, dialect, index, first, last, table, in_parallel);
  } catch (const csv::Malformed& malformed) {
    raise(malformed, begin);
  }
}

}  // namespace

void add_data(py::module_& m) {
  auto data = m.def_submodule("data");
  malformed_error =
      py::reinterpret_steal<py::object>(PyErr_NewException("rusttorch._C.data.Malformed", PyExc_ValueError, nullptr));
  data.attr("Malformed") = malformed_error;

  py::class_<csv::Dialect>(data, "Dialect").def(py::init([](char delimiter, char quote, char comment) {
    return csv::Dialect{delimiter, quote, comment};
  }));
  py::class_<csv::Vocabulary>(data, "Vocabulary")
      .def(py::init<>())
      .def("add", [](csv::Vocabulary& v, const std::string& word) { v.add(word); })
      .def("words_from", [](const csv::Vocabulary& v, int64_t first) {
        std::vector<std::string> words;
        for (int64_t k = first; k < v.size(); ++k) words.push_back(v[k]);
        return words;
      });
  py::class_<csv::Index>(data, "Index")
      .def_readonly("rows", &csv::Index::rows)
      .def_property_readonly("size", [](const csv::Index& i) { return i.parts.empty() ? 0 : i.parts.back().end; });
  py::class_<csv::Table>(data, "Table")
      .def(py::init([](int64_t fields, const std::vector<std::string>& missing) {
        return csv::Table{fields, {}, {missing.begin(), missing.end()}};
      }))
      .def("add", [](csv::Table& t, int64_t field, const at::Tensor& tensor, csv::Vocabulary* vocabulary,
                     bool may_grow) { t.columns.push_back(column(field, tensor, vocabulary, may_grow)); });

  data.def("csv_record", [](const py::buffer& buffer, size_t begin, const csv::Dialect& dialect) {
    size_t end = 0;
    py::list fields;
    try {
      for (const auto& field : csv::read_record(Text(buffer, begin), dialect, end)) fields.append(py::bytes(field));
    } catch (const csv::Malformed& malformed) {
      raise(malformed, begin);
    }
    return py::make_tuple(fields, begin + end);
  });
  data.def("csv_index", [](const py::buffer& buffer, size_t begin, const csv::Dialect& dialect, bool final,
                           int64_t enough, size_t part_size) {
    const Text text(buffer, begin);
    const py::gil_scoped_release no_gil;
    return csv::index(text, dialect, final, enough, part_size, in_parallel);
  });
  data.def("csv_parse", &parse_csv);
  // What is about to be written whole: clearing it in pages of 4 KiB would take a tenth of the time.
  data.def("in_huge_pages", [](const at::Tensor& t) {
    constexpr uintptr_t page = 2 << 20;
    const auto begin = reinterpret_cast<uintptr_t>(t.data_ptr()), end = begin + t.nbytes();
    const uintptr_t first = (begin + page - 1) / page * page;
    if (first < end) madvise(reinterpret_cast<void*>(first), (end - first) / page * page, MADV_HUGEPAGE);
    return t;
  });
  data.def("begin_worker", [] {
    use_one_thread();
    use_pool_in_this_thread();
  });
  data.def("count_lines", [](const py::buffer& buffer, size_t end) {
    const auto text = std::string_view(Text(buffer, 0)).substr(0, end);
    return std::count(text.begin(), text.end(), '\n');
  });
}

}  // namespace rusttorch
