// `ssd_scan` in fp32.
#include "passes.cuh"
#include "simt.cuh"

namespace nvsubq::ssd {
const Passes single = passes_of<Simt<float>>();
}
