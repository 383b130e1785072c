#include "kernels/scan.cuh"
#include "launchers.h"

RUSTTORCH_LAUNCHERS(scan, ScanArgs, {&launch_scan<CumSum>}, {&launch_scan<CumMax>}, {&launch_scan<CumMin>})
