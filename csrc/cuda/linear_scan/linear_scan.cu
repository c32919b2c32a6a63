// `linear_scan` on CUDA: its table.
#include "decay.cuh"

namespace nvsubq {
namespace {

int64_t linear_saved(const Linear& a) {
  return for_linear(a, [&](auto kind) -> int64_t {
    using N = Number<typename decltype(kind)::Real, kind.complex>;
    using Sizes = LinearSizes<typename decltype(kind)::Real, kind.complex>;
    return a.batch * borders(a.length, Sizes::tile_back) * a.width * int64_t(sizeof(N));
  });
}

}  // namespace

}  // namespace nvsubq

NVSUBQ_DECLARE(linear_scan, nvsubq::Linear)
const nvsubq::Op<nvsubq::Linear> nvsubq::cuda_linear_scan = {
    nvsubq::linear_workspace, nvsubq::linear_saved, nvsubq::linear_forward, nvsubq::linear_backward};
