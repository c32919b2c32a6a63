#include "backward.h"
#include "forward.h"

namespace {

template <class T>
int64_t workspace_of(const Ssd& a) {
  const int64_t forward = Forward<T>(a).bytes(), backward = Backward<T>(a).bytes;
  return forward > backward ? forward : backward;
}

bool in_double(const Ssd& a) { return a.flags & NVSUBQ_DOUBLE; }

int64_t workspace(const Ssd& a) { return in_double(a) ? workspace_of<double>(a) : workspace_of<float>(a); }

void forward(const Ssd& a) {
  if (in_double(a))
    Forward<double>(a).run();
  else
    Forward<float>(a).run();
}

void backward(const Ssd& a) {
  if (in_double(a))
    Backward<double>(a, Arena(a.workspace)).run();
  else
    Backward<float>(a, Arena(a.workspace)).run();
}

// States at the borders between segments.
int64_t saved(const Ssd& a) {
  const int64_t borders = segments(a) - 1;
  return borders > 0 ? a.batch * borders * a.states * a.width * (in_double(a) ? 8 : 4) : 0;
}

}  // namespace

NVSUBQ_DECLARE(ssd_scan, Ssd)
const nvsubq::Op<Ssd> nvsubq::NVSUBQ_KERNELS(ssd_scan) = {workspace, saved, forward, backward};
