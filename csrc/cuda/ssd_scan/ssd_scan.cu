// `ssd_scan`: which arithmetic serves a call.
#include "../entry.h"
#include "common.cuh"
#include "served.h"

namespace nvsubq::ssd {
namespace {

bool all_of(const Ssd& a, int32_t first, int32_t second) {
  bool found = true;
  for (const nvsubq_tensor* t : {&a.x, &a.B, &a.C}) found = found && (t->dtype == first || t->dtype == second);
  return found;
}

const Passes& passes(const Ssd& a) {
  if (in_double(a)) return wide;
  if (all_of(a, NVSUBQ_BF16, NVSUBQ_BF16)) return one_term;
  return all_of(a, NVSUBQ_BF16, NVSUBQ_F16) ? two_terms : single;
}

// A struct without the cotangents of a backward is that of a forward, which needs less.
int64_t workspace(const Ssd& a) { return passes(a).workspace(a, present(a.d_y)); }

int64_t saved(const Ssd& a) { return border_elements(a) * (in_double(a) ? 8 : 4); }

int forward(const Ssd& a, cudaStream_t stream) { return passes(a).forward(a, stream); }
int backward(const Ssd& a, cudaStream_t stream) { return passes(a).backward(a, stream); }

}  // namespace
}  // namespace nvsubq::ssd

NVSUBQ_DECLARE(ssd_scan, nvsubq_ssd_scan_args)
const nvsubq::Op<nvsubq_ssd_scan_args> nvsubq::cuda_ssd_scan = {nvsubq::ssd::workspace, nvsubq::ssd::saved,
                                                                nvsubq::ssd::forward, nvsubq::ssd::backward};
