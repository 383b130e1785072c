#include "kernels/scan.cuh"
#include "launchers.h"

namespace rusttorch {
const Launcher<ScanArgs>* scan_launchers() {
  static constexpr Launcher<ScanArgs> all[] = {{&launch_scan<CumSum>}, {&launch_scan<CumMax>}, {&launch_scan<CumMin>}};
  return all;
}
}  // namespace rusttorch
