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
int64_t general_backward_bytes(const Selective& a) {
  return in_double(a) ? general_bytes<double>(a) : general_bytes<float>(a);
}

// Whether gradients of delta replace it. The fast backward reads each before it writes there; the other reads them again.
bool replaces_delta(const Selective& a) { return present(a.delta) && a.d_delta.data == a.delta.data; }
int64_t delta_bytes(const Selective& a) { return a.batch * a.length * a.width * item_bytes(a.delta); }

// The other backward, with a copy of delta behind what it needs itself.
int backward_of_copy(const Selective& a, int64_t needed, cudaStream_t stream) {
  Selective own = a;
  own.delta.data = static_cast<char*>(a.workspace) + needed;
  own.delta.stride[0] = a.length * a.width, own.delta.stride[1] = a.width;
  const int64_t item = item_bytes(a.delta), cell = a.width * item;
  for (int64_t row = 0; row < a.batch && a.length && a.width; ++row) {
    const void* const from = static_cast<const char*>(a.delta.data) + row * a.delta.stride[0] * item;
    void* const to = static_cast<char*>(own.delta.data) + row * a.length * cell;
    const auto error = cudaMemcpy2DAsync(to, size_t(cell), from, size_t(a.delta.stride[1] * item), size_t(cell),
                                         size_t(a.length), cudaMemcpyDeviceToDevice, stream);
    if (const int status = status_of(error, "selective_scan delta")) return status;
  }
  return general_backward(own, a.workspace, stream);
}

// A struct without the cotangents of a backward is that of a forward, which needs little.
int64_t workspace(const Selective& a) {
  if (!present(a.d_y)) return is_fast(a) ? fast_forward_bytes(a) : 0;
  if (is_fast_backward(a)) return fast_backward_bytes(a);
  return general_backward_bytes(a) + (replaces_delta(a) ? delta_bytes(a) : 0);
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
  if (is_fast_backward(a)) return fast_backward(a, a.workspace, stream);
  if (replaces_delta(a)) return backward_of_copy(a, general_backward_bytes(a), stream);
  return general_backward(a, a.workspace, stream);
}

}  // namespace

}  // namespace nvsubq::selective

NVSUBQ_DECLARE(selective_scan, nvsubq_selective_scan_args)
const nvsubq::Op<nvsubq_selective_scan_args> nvsubq::cuda_selective_scan = {
    nvsubq::selective::workspace, nvsubq::selective::saved, nvsubq::selective::forward, nvsubq::selective::backward};
