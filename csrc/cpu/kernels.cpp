// The kernels of one instruction set: compiled once for each, with NVSUBQ_TABLE naming the table.
#include "kernels.h"

#include "conv.h"
#include "selective_backward.h"
#include "selective_forward.h"

namespace {

enum class Pass { workspace, forward, backward };

template <class T, int KIND>
int64_t selective(const Selective& a, Pass pass) {
  if (pass == Pass::forward) Forward<T, KIND>(a).run();
  if (pass == Pass::backward) Backward<T, KIND>(a).run();
  if (pass != Pass::workspace) return 0;
  const int64_t forward = Forward<T, KIND>(a).bytes(), backward = Backward<T, KIND>(a).bytes();
  return forward > backward ? forward : backward;
}

template <class T>
int64_t selective(const Selective& a, Pass pass) {
  switch (a.discretization) {
    case NVSUBQ_MAMBA: return selective<T, NVSUBQ_MAMBA>(a, pass);
    case NVSUBQ_ZOH: return selective<T, NVSUBQ_ZOH>(a, pass);
    case NVSUBQ_BILINEAR: return selective<T, NVSUBQ_BILINEAR>(a, pass);
    case NVSUBQ_DIRAC: return selective<T, NVSUBQ_DIRAC>(a, pass);
    default: return selective<T, NVSUBQ_NO_DISCRETIZATION>(a, pass);
  }
}

int64_t selective(const Selective& a, Pass pass) {
  return a.flags & NVSUBQ_DOUBLE ? selective<double>(a, pass) : selective<float>(a, pass);
}

int64_t selective_workspace(const Selective& a) { return selective(a, Pass::workspace); }
void selective_forward(const Selective& a) { selective(a, Pass::forward); }
void selective_backward(const Selective& a) { selective(a, Pass::backward); }

int64_t workspace_of_conv(const Conv& a) {
  return a.flags & NVSUBQ_DOUBLE ? ConvPlan<double>(a).bytes() : ConvPlan<float>(a).bytes();
}
void forward_of_conv(const Conv& a) { a.flags & NVSUBQ_DOUBLE ? conv_forward<double>(a) : conv_forward<float>(a); }
void backward_of_conv(const Conv& a) { a.flags & NVSUBQ_DOUBLE ? conv_backward<double>(a) : conv_backward<float>(a); }

}  // namespace

const nvsubq::Kernels nvsubq::NVSUBQ_TABLE = {
    selective_workspace, selective_forward, selective_backward, workspace_of_conv, forward_of_conv, backward_of_conv,
};
