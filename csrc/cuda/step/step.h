// The projections of a step, whose kernels all cores share. Vectors between kernels lie in the workspace, in the
// compute dtype T; projections and activations have the dtype S. Every function queues one kernel and gives a status.
#ifndef NVSUBQ_CUDA_STEP_STEP_H
#define NVSUBQ_CUDA_STEP_STEP_H

#include "../launch.h"

namespace nvsubq {

// The convolution of the step, of `width` rows of a projection in from `from` on: state [B, D, K], dense, is moved on
// by the row, rounded as it is stored, and u [B][D] in the workspace is the output.
template <class T>
struct ConvStep {
  nvsubq_tensor state, weight, bias;
  int64_t from, width, taps;
  bool silu;
  T* u;
};

// The projection in of x [B, M] by `rows` rows of `weight`, then `more` rows of `weight_more`; to [B][rows + more], in
// the workspace, gets what the convolution does not. Without a weight x [B, rows] and x_more [B, more] are these rows.
template <class T>
struct ProjectIn {
  nvsubq_tensor x, x_more, weight, bias, weight_more, bias_more;
  int64_t batch, columns, rows, more;
  T* to;
};

// weight [rows, columns] times `from` [B][columns], in the workspace, plus bias: to [B][rows] there, or y [B, rows].
// Without a weight y [B, columns] is `from`.
template <class T>
struct Project {
  const T* from;
  nvsubq_tensor weight, bias;
  int64_t batch, columns, rows;
  T* to;
  nvsubq_tensor y;
  nvsubq_tensor skip = {}, x = {};  // where they are there, skip [rows] times x [B, rows] is added
  const T* squares = nullptr;       // [B][parts]: the product is divided by the root of their mean over the columns
  int64_t parts = 0;
  T norm_eps = T(0);
};

// T float or double, S the dtype of x or of the weight. The first kernel of a step, and later ones.
template <class T, class S>
int project_in(const ProjectIn<T>& args, const ConvStep<T>& conv, cudaStream_t stream);
template <class T, class S>
int project(const Project<T>& args, cudaStream_t stream);

}  // namespace nvsubq

#endif
