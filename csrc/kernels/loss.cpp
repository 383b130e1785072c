#include "loss.h"

#include "loop.h"
#include "total.h"

RUSTTORCH_KERNELS(loss, RUSTTORCH_LOSS)

#define RUSTTORCH_TOTAL(NAME, ...) {&run_total<NAME##_formula>, NAME##_formula::types},
namespace rusttorch {
namespace {
constexpr Kernel loss_total_kernels[] = {RUSTTORCH_LOSS_FORWARD(RUSTTORCH_TOTAL)};
const Kernel* loss_total_table() { return loss_total_kernels; }
}  // namespace
}  // namespace rusttorch
namespace at::native {
ALSO_REGISTER_AVX512_DISPATCH(rusttorch_loss_total_stub, &rusttorch::loss_total_table)
}
