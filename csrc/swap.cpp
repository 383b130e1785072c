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
    if (row.composite == composite) row.impl(m, row.name);
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

std::vector<std::unique_ptr<torch::Library>> install(const Row& row) {
  Silence silence;
  const c10::WarningUtils::WarningHandlerGuard handler(&silence);
  const c10::WarningUtils::WarnAlways always;
  std::vector<std::unique_ptr<torch::Library>> libraries;
  for (const auto key : backends()) {
    libraries.push_back(std::make_unique<torch::Library>(torch::Library::IMPL, "aten", key, __FILE__, __LINE__));
    row.impl(*libraries.back(), row.name);
    if (!row.autograd) continue;
    const auto autograd = c10::getAutogradKeyFromBackend(c10::toBackendComponent(key));
    libraries.push_back(std::make_unique<torch::Library>(torch::Library::IMPL, "aten", autograd, __FILE__, __LINE__));
    row.autograd(*libraries.back(), row.name);
  }
  return libraries;
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
  // Destroying a Library restores what its registrations replaced.
  static std::map<std::string, std::vector<std::unique_ptr<torch::Library>>> swapped;
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
