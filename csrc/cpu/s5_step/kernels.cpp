#include "s5_step.h"

namespace {

int64_t workspace(const S5Args& a) {
  return a.flags & NVSUBQ_DOUBLE ? S5Step<double>(a).bytes() : S5Step<float>(a).bytes();
}
void run(const S5Args& a) { a.flags & NVSUBQ_DOUBLE ? S5Step<double>(a).run() : S5Step<float>(a).run(); }

}  // namespace

NVSUBQ_DECLARE_STEP(s5_step, S5Args)
const nvsubq::Step<S5Args> nvsubq::NVSUBQ_KERNELS(s5_step) = {workspace, run};
