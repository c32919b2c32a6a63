// `ssd_scan` on tensor cores: x, B and C are bf16 or fp16.
#include "mma.cuh"
#include "passes.cuh"

namespace nvsubq::ssd {
const Passes two_terms = passes_of<Mma<2>>();
}
