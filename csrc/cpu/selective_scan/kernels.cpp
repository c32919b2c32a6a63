#include "backward.h"
#include "forward.h"

namespace {

enum class Pass { workspace, forward, backward };

template <class T, int KIND>
int64_t run(const Selective& a, Pass pass) {
  if (pass == Pass::forward) Forward<T, KIND>(a).run();
  if (pass == Pass::backward) Backward<T, KIND>(a).run();
  if (pass != Pass::workspace) return 0;
  const int64_t forward = Forward<T, KIND>(a).bytes(), backward = Backward<T, KIND>(a).bytes();
  return forward > backward ? forward : backward;
}

template <class T>
int64_t run(const Selective& a, Pass pass) {
  switch (a.discretization) {
    case NVSUBQ_MAMBA: return run<T, NVSUBQ_MAMBA>(a, pass);
    case NVSUBQ_ZOH: return run<T, NVSUBQ_ZOH>(a, pass);
    case NVSUBQ_BILINEAR: return run<T, NVSUBQ_BILINEAR>(a, pass);
    case NVSUBQ_DIRAC: return run<T, NVSUBQ_DIRAC>(a, pass);
    default: return run<T, NVSUBQ_NO_DISCRETIZATION>(a, pass);
  }
}

int64_t run(const Selective& a, Pass pass) {
  return a.flags & NVSUBQ_DOUBLE ? run<double>(a, pass) : run<float>(a, pass);
}

int64_t workspace(const Selective& a) { return run(a, Pass::workspace); }
void forward(const Selective& a) { run(a, Pass::forward); }
void backward(const Selective& a) { run(a, Pass::backward); }

// States at the borders between segments.
int64_t saved(const Selective& a) {
  const int64_t borders = segments(a.length, a.states) - 1;
  const int64_t each = a.flags & NVSUBQ_DOUBLE ? 8 : 4;
  return borders > 0 ? a.batch * borders * a.states * a.width * each : 0;
}

}  // namespace

NVSUBQ_DECLARE(selective_scan, Selective)
const nvsubq::Op<Selective> nvsubq::NVSUBQ_KERNELS(selective_scan) = {workspace, saved, forward, backward};
