#include "backward.h"
#include "forward.h"
#include "fused.h"
#include "general.h"

namespace {

enum class Pass { workspace, forward, backward };

template <class Loops>
int64_t run(const Selective& a, Pass pass) {
  if (pass == Pass::forward) Forward<Loops>(a).run();
  if (pass == Pass::backward) Backward<Loops>(a).run();
  if (pass != Pass::workspace) return 0;
  const int64_t forward = Forward<Loops>(a).bytes(), backward = Backward<Loops>(a).bytes();
  return forward > backward ? forward : backward;
}

int64_t run(const Selective& a, Pass pass) {
  if (Fused::serves(a)) return run<Fused>(a, pass);
  if (a.flags & NVSUBQ_DOUBLE)
    return is_complex(a.A) ? run<General<double, true>>(a, pass) : run<General<double, false>>(a, pass);
  return is_complex(a.A) ? run<General<float, true>>(a, pass) : run<General<float, false>>(a, pass);
}

int64_t workspace(const Selective& a) { return run(a, Pass::workspace); }
void forward(const Selective& a) { run(a, Pass::forward); }
void backward(const Selective& a) { run(a, Pass::backward); }

// States at the borders between segments.
int64_t saved(const Selective& a) {
  const int64_t borders = segments(a.length, a.states) - 1;
  const int64_t each = (a.flags & NVSUBQ_DOUBLE ? 8 : 4) * parts_of(a.A);
  return borders > 0 ? a.batch * borders * a.states * a.width * each : 0;
}

}  // namespace

NVSUBQ_DECLARE(selective_scan, Selective)
const nvsubq::Op<Selective> nvsubq::NVSUBQ_KERNELS(selective_scan) = {workspace, saved, forward, backward};
