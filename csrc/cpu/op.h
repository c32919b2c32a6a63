// What every op is made of: kernels compiled once for each instruction set, behind one table.
//
// A folder per op: `kernels.cpp` defines NVSUBQ_KERNELS(op) and is compiled for each level, `entry.cpp` holds the C
// functions, which check the struct and pick the table of a level.
#ifndef NVSUBQ_CPU_OP_H
#define NVSUBQ_CPU_OP_H

#include "../include/nvsubq.h"

namespace nvsubq {

// Bytes of workspace that serve both passes, bytes that a forward leaves for its backward, and the passes.
template <class Args>
struct Op {
  int64_t (*workspace)(const Args&);
  int64_t (*saved)(const Args&);
  void (*forward)(const Args&);
  void (*backward)(const Args&);
};

// A function without a backward: the step of a whole core.
template <class Args>
struct Step {
  int64_t (*workspace)(const Args&);
  void (*run)(const Args&);
};

template <class Args>
inline int64_t nothing_saved(const Args&) {
  return 0;
}

}  // namespace nvsubq

#define NVSUBQ_JOIN_(a, b) a##_##b
#define NVSUBQ_JOIN(a, b) NVSUBQ_JOIN_(a, b)
// The name of an op's table at the level that is being compiled: `avx2_conv1d`.
#define NVSUBQ_KERNELS(op) NVSUBQ_JOIN(NVSUBQ_LEVEL, op)

#define NVSUBQ_DECLARE_TABLES(op, Table) \
  namespace nvsubq {                     \
  extern const Table baseline_##op;      \
  extern const Table avx2_##op;          \
  extern const Table avx512_##op;        \
  }
#define NVSUBQ_DECLARE(op, Args) NVSUBQ_DECLARE_TABLES(op, Op<Args>)
#define NVSUBQ_DECLARE_STEP(step, Args) NVSUBQ_DECLARE_TABLES(step, Step<Args>)

// The tables of the levels that this library was built with.
#if defined(NVSUBQ_AVX2)
#define NVSUBQ_AVX2_KERNELS(op) nvsubq::avx2_##op
#else
#define NVSUBQ_AVX2_KERNELS(op) nvsubq::baseline_##op
#endif
#if defined(NVSUBQ_AVX512)
#define NVSUBQ_AVX512_KERNELS(op) nvsubq::avx512_##op
#else
#define NVSUBQ_AVX512_KERNELS(op) nvsubq::baseline_##op
#endif
#define NVSUBQ_PICK(op, level)                                      \
  ((level) == NVSUBQ_LEVEL_AVX512 ? NVSUBQ_AVX512_KERNELS(op)       \
   : (level) == NVSUBQ_LEVEL_AVX2 ? NVSUBQ_AVX2_KERNELS(op)         \
                                  : nvsubq::baseline_##op)

#endif
