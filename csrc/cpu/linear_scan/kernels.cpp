#include "backward.h"
#include "forward.h"

namespace {

enum class Pass { workspace, forward, backward };

template <class T, bool CX, Mode MODE>
int64_t run(const Linear& a, Pass pass) {
  LinearForward<T, CX, MODE> forward(a);
  LinearBackward<T, CX, MODE> backward(a);
  if (pass == Pass::forward) forward.run();
  if (pass == Pass::backward) backward.run();
  return forward.bytes() > backward.bytes() ? forward.bytes() : backward.bytes();
}

template <class T, bool CX>
int64_t run(const Linear& a, Pass pass) {
  switch (mode_of(a)) {
    case kFixed: return run<T, CX, kFixed>(a, pass);
    case kVarying: return run<T, CX, kVarying>(a, pass);
    default: return run<T, CX, kTimed>(a, pass);
  }
}

int64_t run(const Linear& a, Pass pass) {
  if (a.flags & NVSUBQ_DOUBLE) return is_complex(a) ? run<double, true>(a, pass) : run<double, false>(a, pass);
  return is_complex(a) ? run<float, true>(a, pass) : run<float, false>(a, pass);
}

int64_t workspace(const Linear& a) { return run(a, Pass::workspace); }
void forward(const Linear& a) { run(a, Pass::forward); }
void backward(const Linear& a) { run(a, Pass::backward); }

int64_t saved(const Linear& a) {
  return a.batch * borders(a.length) * a.width * (is_complex(a) ? 2 : 1) * (a.flags & NVSUBQ_DOUBLE ? 8 : 4);
}

}  // namespace

NVSUBQ_DECLARE(linear_scan, Linear)
const nvsubq::Op<Linear> nvsubq::NVSUBQ_KERNELS(linear_scan) = {workspace, saved, forward, backward};
