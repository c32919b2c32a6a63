#include "mamba2_step.h"

namespace {

int64_t workspace(const Mamba2Args& a) {
  return a.flags & NVSUBQ_DOUBLE ? Mamba2Step<double>(a).bytes() : Mamba2Step<float>(a).bytes();
}
void run(const Mamba2Args& a) { a.flags & NVSUBQ_DOUBLE ? Mamba2Step<double>(a).run() : Mamba2Step<float>(a).run(); }

}  // namespace

NVSUBQ_DECLARE_STEP(mamba2_step, Mamba2Args)
const nvsubq::Step<Mamba2Args> nvsubq::NVSUBQ_KERNELS(mamba2_step) = {workspace, run};
