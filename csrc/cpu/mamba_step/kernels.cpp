#include "mamba_step.h"

namespace {

int64_t workspace(const MambaArgs& a) {
  return a.flags & NVSUBQ_DOUBLE ? MambaStep<double>(a).bytes() : MambaStep<float>(a).bytes();
}
void run(const MambaArgs& a) { a.flags & NVSUBQ_DOUBLE ? MambaStep<double>(a).run() : MambaStep<float>(a).run(); }

}  // namespace

NVSUBQ_DECLARE_STEP(mamba_step, MambaArgs)
const nvsubq::Step<MambaArgs> nvsubq::NVSUBQ_KERNELS(mamba_step) = {workspace, run};
