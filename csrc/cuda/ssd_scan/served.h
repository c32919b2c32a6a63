// `ssd_scan`: the kinds of arithmetic that serve its calls.
#ifndef NVSUBQ_CUDA_SSD_SCAN_SERVED_H
#define NVSUBQ_CUDA_SSD_SCAN_SERVED_H

#include "../launch.h"

namespace nvsubq::ssd {

struct Passes {
  int64_t (*workspace)(const nvsubq_ssd_scan_args&, bool backward);
  int (*forward)(const nvsubq_ssd_scan_args&, cudaStream_t);
  int (*backward)(const nvsubq_ssd_scan_args&, cudaStream_t);
};

// On tensor cores, with inputs of one bf16 or of two; on ordinary units in fp32 and in fp64.
extern const Passes one_term, two_terms, single, wide;

}  // namespace nvsubq::ssd

#endif
