#include "swap.h"

#include <ATen/core/dispatch/Dispatcher.h>

#include <mutex>
#include <set>

#include "form.h"
#include "schemas.h"

namespace rusttorch {
namespace {

const std::map<std::string, Row>& rows() {
  static const auto all = [] {
    std::map<std::string, Row> map;
#define RUSTTORCH_ADD_ROWS(family) \
  for (const Row& row : family##_rows()) map.emplace(row.name, row);
    RUSTTORCH_FAMILIES(RUSTTORCH_ADD_ROWS)
    return map;
  }();
  return all;
}

void impl_rows(torch::Library& m, bool composite) {
  for (const auto& [name, row] : rows()) {
    if (row.composite == composite) row.impl.add(m, row.name);
  }
}

// An op that aten decomposes above the backend keys would lose its derivative to a kernel there.
bool has_backend_kernel(const std::string& name) {
  const auto op = find_op("aten", name);
  return op && (op->hasKernelForDispatchKey(c10::DispatchKey::CPU) ||
                op->hasKernelForDispatchKey(c10::DispatchKey::CompositeExplicitAutograd));
}

// Overriding a kernel warns, once per process and about the first one only: neither shown nor used up here.
class Silence final : public c10::WarningHandler {
  void process(const c10::Warning&) override {}
};

std::vector<c10::DispatchKey> backends() {
#ifdef RUSTTORCH_CUDA
  return {c10::DispatchKey::CPU, c10::DispatchKey::CUDA};
#else
  return {c10::DispatchKey::CPU};
#endif
}

// What restores, when it goes, what a registration replaced.
using Replaced = std::vector<c10::RegistrationHandleRAII>;

// With the dispatcher directly: torch::Library would write and parse a schema for each, which takes four times as long.
// Aten's schemas are ours (tests/test_swap.py), which the kernels were compared with when they were registered under
// our own names.
Replaced install(const Row& row) {
  Silence silence;
  const c10::WarningUtils::WarningHandlerGuard handler(&silence);
  const c10::WarningUtils::WarnAlways always;
  const auto name = find_op("aten", row.name)->operator_name();
  Replaced replaced;
  const auto put = [&](c10::DispatchKey key, const Impl& impl) {
    // What torch._C._dispatch_dump shows: of which kind it is, for tests/test_swap.py.
    const char* where =
        impl.function.isValidSymUnboxed() ? "registered at swap.cpp, with SymInts" : "registered at swap.cpp";
    replaced.push_back(
        c10::Dispatcher::singleton().registerImpl(name, key, impl.function, impl.signature, nullptr, where));
  };
  for (const auto key : backends()) {
    put(key, row.impl);
    if (row.autograd) put(c10::getAutogradKeyFromBackend(c10::toBackendComponent(key)), *row.autograd);
  }
  return replaced;
}

}  // namespace

std::vector<Entry> entries() {
  std::vector<Entry> all;
  for_each_schema([&](const c10::FunctionSchema&, const std::string& family, const std::string& name) {
    const auto row = rows().find(name);
    const bool ours = row != rows().end();
    const bool swappable = ours && (has_backend_kernel(name) || row->second.autograd);
    all.push_back({family, name, swappable, ours ? row->second.stats : nullptr});
  });
  return all;
}

void set_swapped(const std::vector<std::string>& names) {
  static std::map<std::string, Replaced> swapped;
  static std::mutex mutex;
  const std::lock_guard<std::mutex> lock(mutex);
  const std::set<std::string> wanted(names.begin(), names.end());
  std::erase_if(swapped, [&](const auto& item) { return !wanted.contains(item.first); });
  for (const auto& name : wanted) {
    if (!swapped.contains(name)) swapped.emplace(name, install(rows().at(name)));
  }
}

void reset_stats() {
  for (const auto& [name, row] : rows()) {
    if (!row.stats) continue;
    for (auto& calls : row.stats->calls) calls = 0;
  }
}

}  // namespace rusttorch

TORCH_LIBRARY_IMPL(rusttorch, CPU, m) { rusttorch::impl_rows(m, false); }
#ifdef RUSTTORCH_CUDA
TORCH_LIBRARY_IMPL(rusttorch, CUDA, m) { rusttorch::impl_rows(m, false); }
#endif
TORCH_LIBRARY_IMPL(rusttorch, CompositeImplicitAutograd, m) { rusttorch::impl_rows(m, true); }
