#include "rglru_step.h"

namespace {

int64_t workspace(const RGLRUArgs& a) {
  return a.flags & NVSUBQ_DOUBLE ? RGLRUStep<double>(a).bytes() : RGLRUStep<float>(a).bytes();
}
void run(const RGLRUArgs& a) { a.flags & NVSUBQ_DOUBLE ? RGLRUStep<double>(a).run() : RGLRUStep<float>(a).run(); }

}  // namespace

NVSUBQ_DECLARE_STEP(rglru_step, RGLRUArgs)
const nvsubq::Step<RGLRUArgs> nvsubq::NVSUBQ_KERNELS(rglru_step) = {workspace, run};
