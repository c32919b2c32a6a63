// The C interface: checks what could make a kernel leave its memory, then picks the instruction set.
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <initializer_list>

#include "kernels.h"

namespace nvsubq {
namespace {

thread_local char error_text[256] = "";

__attribute__((format(printf, 2, 3))) int fail(int status, const char* format, ...) {
  va_list values;
  va_start(values, format);
  vsnprintf(error_text, sizeof error_text, format, values);
  va_end(values);
  return status;
}

int best_level() {
#if defined(NVSUBQ_X86)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma"))
    return NVSUBQ_LEVEL_AVX512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return NVSUBQ_LEVEL_AVX2;
#endif
  return NVSUBQ_LEVEL_BASELINE;
}

const char* const names[] = {"", "baseline", "avx2", "avx512"};

int allowed_level() {
  const int best = best_level();
  const char* asked = getenv("NVSUBQ_CPU_ISA");
  if (asked)
    for (int i = 1; i < best; ++i)
      if (!strcmp(asked, names[i])) return i;
  return best;
}

int level_of(int64_t asked) {
  static const int allowed = allowed_level();
  if (asked == 0) return allowed;
  return asked >= 1 && asked <= best_level() ? int(asked) : 0;
}

const Kernels& kernels_of(int64_t asked) {
#if defined(NVSUBQ_X86)
  const int level = level_of(asked);
  if (level == NVSUBQ_LEVEL_AVX512) return avx512_kernels;
  if (level == NVSUBQ_LEVEL_AVX2) return avx2_kernels;
#else
  (void)asked;
#endif
  return baseline_kernels;
}

bool has(const nvsubq_tensor& t) { return t.flags & NVSUBQ_PRESENT; }

template <class Args>
int check_head(const Args* a) {
  if (!a) return fail(NVSUBQ_INVALID, "args is null");
  if (a->abi != NVSUBQ_ABI)
    return fail(NVSUBQ_UNSUPPORTED, "the caller speaks version %u of the interface, this library %u", a->abi, NVSUBQ_ABI);
  if (a->size != sizeof(Args))
    return fail(NVSUBQ_UNSUPPORTED, "the struct has %u bytes, this library knows %zu", a->size, sizeof(Args));
  if (a->threads < 1 || a->threads > 4096) return fail(NVSUBQ_INVALID, "threads (=%lld)", (long long)a->threads);
  if (!level_of(a->level)) return fail(NVSUBQ_UNSUPPORTED, "this machine lacks level %lld", (long long)a->level);
  if (a->batch < 0 || a->length < 0 || a->width < 0) return fail(NVSUBQ_INVALID, "a size is negative");
  if (a->blocks < 1 || a->width % a->blocks)
    return fail(NVSUBQ_INVALID, "blocks (=%lld) must divide width (=%lld)", (long long)a->blocks, (long long)a->width);
  return NVSUBQ_OK;
}

int check(const nvsubq_selective_scan_args* a) {
  if (const int status = check_head(a)) return status;
  if (a->states < 0) return fail(NVSUBQ_INVALID, "states (=%lld)", (long long)a->states);
  if (a->groups < 1 || a->width % a->groups || a->groups % a->blocks)
    return fail(NVSUBQ_INVALID, "groups (=%lld) must divide width (=%lld) and be a multiple of blocks (=%lld)",
                (long long)a->groups, (long long)a->width, (long long)a->blocks);
  if (a->discretization < NVSUBQ_MAMBA || a->discretization > NVSUBQ_NO_DISCRETIZATION)
    return fail(NVSUBQ_INVALID, "discretization (=%lld)", (long long)a->discretization);
  if (has(a->timesteps) && !has(a->delta_a)) return fail(NVSUBQ_INVALID, "timesteps need delta_a");
  for (const nvsubq_tensor* t : {&a->u, &a->delta, &a->A, &a->B, &a->C})
    if (!has(*t)) return fail(NVSUBQ_INVALID, "u, delta, A, B or C is absent");
  return NVSUBQ_OK;
}

int check(const nvsubq_conv1d_args* a) {
  if (const int status = check_head(a)) return status;
  if (a->taps < 1 || a->dilation < 1) return fail(NVSUBQ_INVALID, "taps or dilation is below 1");
  if (a->state_width < 0) return fail(NVSUBQ_INVALID, "state_width (=%lld)", (long long)a->state_width);
  if (!has(a->x) || !has(a->weight)) return fail(NVSUBQ_INVALID, "x or weight is absent");
  return NVSUBQ_OK;
}

// Tables are the caller's word; a wrong one must not make a kernel write elsewhere.
template <class Args>
int check_tables(const Args& a) {
  if (has(a.count))
    for (int64_t b = 0; b < a.batch; ++b) {
      const int64_t count = static_cast<const int64_t*>(a.count.data)[b * a.count.stride[0]];
      if (count < 0 || count > a.length)
        return fail(NVSUBQ_INVALID, "count (=%lld) must lie in 0 .. %lld", (long long)count, (long long)a.length);
    }
  if (!has(a.index)) return NVSUBQ_OK;
  const int64_t* index = static_cast<const int64_t*>(a.index.data);
  const int64_t rows = a.index.stride[0] ? a.batch : 1;
  for (int64_t b = 0; b < rows; ++b)
    for (int64_t k = 0; k < a.length; ++k)
      for (int64_t s = 0; s < a.blocks; ++s) {
        const int64_t cell = index[b * a.index.stride[0] + k * a.index.stride[1] + s * a.index.stride[2]];
        if (cell < 0 || cell >= a.length)
          return fail(NVSUBQ_INVALID, "index (=%lld) must lie in 0 .. %lld", (long long)cell, (long long)a.length - 1);
      }
  return NVSUBQ_OK;
}

template <class Args>
int check_call(const Args* a, int64_t (*workspace)(const Args&)) {
  if (const int status = check(a)) return status;
  const int64_t needed = workspace(*a);
  if (a->workspace_bytes < needed)
    return fail(NVSUBQ_INVALID, "workspace_bytes (=%lld) must be %lld", (long long)a->workspace_bytes, (long long)needed);
  return check_tables(*a);
}

int64_t saved_bytes(const nvsubq_selective_scan_args& a) {
  const int64_t borders = segments(a.length, a.states) - 1;
  const int64_t each = a.flags & NVSUBQ_DOUBLE ? 8 : 4;
  return borders > 0 ? a.batch * borders * a.states * a.width * each : 0;
}

int check_saved(const nvsubq_selective_scan_args& a) {
  if (a.saved_bytes < saved_bytes(a))
    return fail(NVSUBQ_INVALID, "saved_bytes (=%lld) must be %lld", (long long)a.saved_bytes, (long long)saved_bytes(a));
  return NVSUBQ_OK;
}

}  // namespace
}  // namespace nvsubq

using namespace nvsubq;

extern "C" {

uint32_t nvsubq_abi(void) { return NVSUBQ_ABI; }

const char* nvsubq_last_error(void) { return error_text; }

const char* nvsubq_build_info(void) { return "nvsubq_cpu, " NVSUBQ_COMPILER; }

const char* nvsubq_level_name(int64_t level) {
  const int found = level_of(level);
  return found ? names[found] : nullptr;
}

int64_t nvsubq_selective_scan_workspace(const nvsubq_selective_scan_args* args) {
  return check(args) ? -1 : kernels_of(args->level).selective_workspace(*args);
}

int64_t nvsubq_selective_scan_saved(const nvsubq_selective_scan_args* args) {
  return check(args) ? -1 : saved_bytes(*args);
}

int nvsubq_selective_scan_forward(const nvsubq_selective_scan_args* args) {
  if (const int status = check(args)) return status;
  const Kernels& kernels = kernels_of(args->level);
  if (const int status = check_call(args, kernels.selective_workspace)) return status;
  if (args->saved)
    if (const int status = check_saved(*args)) return status;
  kernels.selective_forward(*args);
  return NVSUBQ_OK;
}

int nvsubq_selective_scan_backward(const nvsubq_selective_scan_args* args) {
  if (const int status = check(args)) return status;
  const Kernels& kernels = kernels_of(args->level);
  if (const int status = check_call(args, kernels.selective_workspace)) return status;
  if (const int status = check_saved(*args)) return status;
  kernels.selective_backward(*args);
  return NVSUBQ_OK;
}

int64_t nvsubq_conv1d_workspace(const nvsubq_conv1d_args* args) {
  return check(args) ? -1 : kernels_of(args->level).conv_workspace(*args);
}

int nvsubq_conv1d_forward(const nvsubq_conv1d_args* args) {
  if (const int status = check(args)) return status;
  const Kernels& kernels = kernels_of(args->level);
  if (const int status = check_call(args, kernels.conv_workspace)) return status;
  kernels.conv_forward(*args);
  return NVSUBQ_OK;
}

int nvsubq_conv1d_backward(const nvsubq_conv1d_args* args) {
  if (const int status = check(args)) return status;
  const Kernels& kernels = kernels_of(args->level);
  if (const int status = check_call(args, kernels.conv_workspace)) return status;
  kernels.conv_backward(*args);
  return NVSUBQ_OK;
}

}  // extern "C"
