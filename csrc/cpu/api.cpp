// What the library is, and the choice of the instruction set.
#include <stdlib.h>
#include <string.h>

#include "entry.h"

namespace nvsubq {
namespace {

const char* const names[] = {"", "baseline", "avx2", "avx512"};

// Whether this library was built with a level, and this machine can run it.
bool available(int level) {
  switch (level) {
    case NVSUBQ_LEVEL_BASELINE: return true;
#if defined(NVSUBQ_AVX2)
    case NVSUBQ_LEVEL_AVX2: return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
#if defined(NVSUBQ_AVX512)
    case NVSUBQ_LEVEL_AVX512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
#endif
    default: return false;
  }
}

int allowed_level() {
  const char* asked = getenv("NVSUBQ_CPU_ISA");
  if (asked)
    for (int level = NVSUBQ_LEVEL_BASELINE; level <= NVSUBQ_LEVEL_AVX512; ++level)
      if (!strcmp(asked, names[level]) && available(level)) return level;
  int best = NVSUBQ_LEVEL_AVX512;
  while (!available(best)) --best;
  return best;
}

}  // namespace

int level_of(int64_t asked) {
  static const int allowed = allowed_level();
  if (asked == 0) return allowed;
  return asked >= NVSUBQ_LEVEL_BASELINE && asked <= NVSUBQ_LEVEL_AVX512 && available(int(asked)) ? int(asked) : 0;
}

int check_machine(int64_t threads, int64_t level, int64_t) {
  if (threads < 1 || threads > 4096) return fail(NVSUBQ_INVALID, "threads (=%lld)", (long long)threads);
  if (!level_of(level)) return fail(NVSUBQ_UNSUPPORTED, "this machine lacks level %lld", (long long)level);
  return NVSUBQ_OK;
}

}  // namespace nvsubq

using namespace nvsubq;

extern "C" {

const char* nvsubq_build_info(void) { return "nvsubq_cpu, " NVSUBQ_COMPILER; }

const char* nvsubq_level_name(int64_t level) {
  const int found = level_of(level);
  return found ? names[found] : nullptr;
}

}  // extern "C"
