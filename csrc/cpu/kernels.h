// What a compiled instruction set offers; the kernels' source is the same for all.
#ifndef NVSUBQ_CPU_KERNELS_H
#define NVSUBQ_CPU_KERNELS_H

#include "../include/nvsubq.h"

namespace nvsubq {

struct Kernels {
  int64_t (*selective_workspace)(const nvsubq_selective_scan_args&);
  void (*selective_forward)(const nvsubq_selective_scan_args&);
  void (*selective_backward)(const nvsubq_selective_scan_args&);
  int64_t (*conv_workspace)(const nvsubq_conv1d_args&);
  void (*conv_forward)(const nvsubq_conv1d_args&);
  void (*conv_backward)(const nvsubq_conv1d_args&);
};

extern const Kernels baseline_kernels;
#if defined(NVSUBQ_X86)
extern const Kernels avx2_kernels;
extern const Kernels avx512_kernels;
#endif

// Cells of a segment: states are kept at the borders of segments, and a backward makes the others again.
inline int64_t segment_cells(int64_t states) { return states <= 16 ? 32 : 64; }

inline int64_t segments(int64_t length, int64_t states) {
  const int64_t cells = segment_cells(states);
  return (length + cells - 1) / cells;
}

}  // namespace nvsubq
#endif
