#include "backward.h"
#include "forward.h"

namespace {

int64_t workspace(const Conv& a) {
  return a.flags & NVSUBQ_DOUBLE ? ConvPlan<double>(a).bytes() : ConvPlan<float>(a).bytes();
}
void forward(const Conv& a) { a.flags & NVSUBQ_DOUBLE ? conv_forward<double>(a) : conv_forward<float>(a); }
void backward(const Conv& a) { a.flags & NVSUBQ_DOUBLE ? conv_backward<double>(a) : conv_backward<float>(a); }

}  // namespace

NVSUBQ_DECLARE(conv1d, Conv)
const nvsubq::Op<Conv> nvsubq::NVSUBQ_KERNELS(conv1d) = {workspace, nothing_saved, forward, backward};
