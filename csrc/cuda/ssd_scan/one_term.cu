// `ssd_scan` on tensor cores: x, B and C are bf16.
#include "mma.cuh"
#include "passes.cuh"

namespace nvsubq::ssd {
const Passes one_term = passes_of<Mma<1>>();
}
