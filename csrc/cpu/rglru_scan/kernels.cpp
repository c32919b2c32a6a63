#include <initializer_list>

#include "backward.h"
#include "forward.h"

namespace {

template <class T>
int64_t bytes(const Rglru& a) {
  const int64_t forward = RglruForward<T>(a).bytes(), backward = RglruBackward<T>(a).bytes();
  return forward > backward ? forward : backward;
}

int64_t workspace(const Rglru& a) { return a.flags & NVSUBQ_DOUBLE ? bytes<double>(a) : bytes<float>(a); }
int64_t saved(const Rglru& a) { return a.batch * borders(a.length) * a.width * (a.flags & NVSUBQ_DOUBLE ? 8 : 4); }
void forward(const Rglru& a) { a.flags & NVSUBQ_DOUBLE ? RglruForward<double>(a).run() : RglruForward<float>(a).run(); }
void backward(const Rglru& a) {
  a.flags & NVSUBQ_DOUBLE ? RglruBackward<double>(a).run() : RglruBackward<float>(a).run();
}

}  // namespace

NVSUBQ_DECLARE(rglru_scan, Rglru)
const nvsubq::Op<Rglru> nvsubq::NVSUBQ_KERNELS(rglru_scan) = {workspace, saved, forward, backward};
