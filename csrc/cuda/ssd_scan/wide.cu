// `ssd_scan` in fp64.
#include "passes.cuh"
#include "simt.cuh"

namespace nvsubq::ssd {
const Passes wide = passes_of<Simt<double>>();
}
