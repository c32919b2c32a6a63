// `selective_scan`: which kernels serve a call.
#include "../entry.h"
#include "fast.cuh"

namespace nvsubq::selective {
namespace {

template <class T>
int64_t general_bytes(const Selective& a) {
  Arena arena(nullptr);
  const Partials<T> partials(arena, a, Chunks(a).count, a.batch);
  return arena.bytes();
}

// A struct without the cotangents of a backward is that of a forward, which needs little.
int64_t workspace(const Selective& a) {
  if (!present(a.d_y)) return is_fast(a) ? fast_forward_bytes(a) : 0;
  if (is_fast_backward(a)) return fast_backward_bytes(a);
  return in_double(a) ? general_bytes<double>(a) : general_bytes<float>(a);
}

int64_t saved(const Selective& a) {
  return a.batch * borders(a.length) * a.states * a.width * (in_double(a) ? 8 : 4) * parts_of(a.A);
}

int served(const Selective& a) {
  if (a.states <= kMostStates) return NVSUBQ_OK;
  return fail(NVSUBQ_UNSUPPORTED, "states (=%lld) must be at most %lld on CUDA", (long long)a.states,
              (long long)kMostStates);
}

int forward(const Selective& a, cudaStream_t stream) {
  if (const int status = served(a)) return status;
  return is_fast(a) ? fast_forward(a, stream) : general_forward(a, stream);
}

int backward(const Selective& a, cudaStream_t stream) {
  if (const int status = served(a)) return status;
  return is_fast_backward(a) ? fast_backward(a, a.workspace, stream) : general_backward(a, a.workspace, stream);
}

}  // namespace

}  // namespace nvsubq::selective

NVSUBQ_DECLARE(selective_scan, nvsubq_selective_scan_args)
const nvsubq::Op<nvsubq_selective_scan_args> nvsubq::cuda_selective_scan = {
    nvsubq::selective::workspace, nvsubq::selective::saved, nvsubq::selective::forward, nvsubq::selective::backward};
