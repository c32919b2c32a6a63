// `rglru_scan` on CUDA: its table.
#include "cell.cuh"

namespace nvsubq {
namespace {

int64_t rglru_saved(const Rglru& a) {
  const bool wide = a.flags & NVSUBQ_DOUBLE;
  const int tile = wide ? RglruSizes<double>::tile_back : RglruSizes<float>::tile_back;
  return a.batch * borders(a.length, tile) * a.width * (wide ? 8 : 4);
}

}  // namespace

}  // namespace nvsubq

NVSUBQ_DECLARE(rglru_scan, nvsubq::Rglru)
const nvsubq::Op<nvsubq::Rglru> nvsubq::cuda_rglru_scan = {
    nvsubq::rglru_workspace, nvsubq::rglru_saved, nvsubq::rglru_forward, nvsubq::rglru_backward};
