/* The C interface of nvsubq's native libraries: no torch, no Python, no allocation, no exception across it.
 *
 * Every function takes one pointer to a struct that begins with its own size and the version of this
 * interface. New fields are added at the end only, and zero means absent. Sizes and strides are int64, strides
 * count elements, and the last axis of every tensor is contiguous. The caller owns all memory.
 *
 * Two libraries have these functions. In that for CPUs, `threads` and `level` say how a call runs. In that for CUDA
 * all memory is that of the device numbered `device`, and a call only queues its work on `stream`, a cudaStream_t of
 * that device: it does not wait, and may be captured in a graph. It may have functions of some ops only.
 */
#ifndef NVSUBQ_H
#define NVSUBQ_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define NVSUBQ_API __attribute__((visibility("default")))
#else
#define NVSUBQ_API
#endif

#define NVSUBQ_ABI 1u

/* FAILED: the device reports an error. */
enum nvsubq_status { NVSUBQ_OK = 0, NVSUBQ_INVALID = 1, NVSUBQ_UNSUPPORTED = 2, NVSUBQ_FAILED = 3 };
enum nvsubq_dtype { NVSUBQ_F32 = 0, NVSUBQ_F64 = 1, NVSUBQ_F16 = 2, NVSUBQ_BF16 = 3, NVSUBQ_I32 = 4, NVSUBQ_I64 = 5 };
/* COMPLEX: pairs of real and imaginary parts of the dtype; strides count pairs. */
enum nvsubq_tensor_flag { NVSUBQ_PRESENT = 1, NVSUBQ_COMPLEX = 2 };
enum nvsubq_flag {
  NVSUBQ_DOUBLE = 1,
  NVSUBQ_SOFTPLUS = 2,
  NVSUBQ_SILU = 4,
  NVSUBQ_GELU_TANH = 8, /* of rglru_scan */
  NVSUBQ_UNSCALED_FIRST = 16,
  NVSUBQ_FIXED_A = 32,  /* of linear_scan: a is [D] */
  NVSUBQ_SHARED_DT = 64, /* dt is [B, L] */
  NVSUBQ_FIXED_B = 256, /* of selective_scan: B, C, decay_gate are [D, N] for every row and cell */
  NVSUBQ_FIXED_C = 512,
  NVSUBQ_FIXED_GATE = 1024
};
enum nvsubq_discretization {
  NVSUBQ_MAMBA = 0,
  NVSUBQ_ZOH = 1,
  NVSUBQ_BILINEAR = 2,
  NVSUBQ_DIRAC = 3,
  NVSUBQ_NO_DISCRETIZATION = 4
};
/* The factor of linear_scan's input. */
enum nvsubq_input_scale { NVSUBQ_SCALE_NONE = 0, NVSUBQ_SCALE_ZOH = 1, NVSUBQ_SCALE_BILINEAR = 2, NVSUBQ_SCALE_SQRT = 3 };
/* Instruction sets of the CPU library; 0 is the best that the machine has and NVSUBQ_CPU_ISA allows. */
enum nvsubq_level { NVSUBQ_LEVEL_BASELINE = 1, NVSUBQ_LEVEL_AVX2 = 2, NVSUBQ_LEVEL_AVX512 = 3 };

typedef struct nvsubq_tensor {
  void* data;
  int64_t stride[4];
  int32_t dtype;
  int32_t flags; /* NVSUBQ_PRESENT, also where there are no elements and `data` is null */
} nvsubq_tensor;

/* A walk, as every op takes it: `index` [B or 1, L, S] i64 is the cell visited at each step (absent: step k is
 * cell k), `segment` [B, L, S] i32 the number of a step's sequence, `count` [B] i64 how many steps of a row
 * visit a cell that is there (they come first). */

/* s_k = a_k g_k s_{k-1} + f_k B_k u_k, y_k = (C_k s_k + D u_k) SiLU(z_k), with 2 Re(C_k s_k) where A and so the states
 * are complex. Forward and backward take the same struct; a forward reads none of the d_ tensors, and fills `saved`
 * for a backward unless it is null. Gradients of complex tensors are dL/dRe + i dL/dIm. On CUDA d_delta may be delta:
 * the gradient then replaces it. */
typedef struct nvsubq_selective_scan_args {
  uint32_t size, abi;
  int64_t batch, length, width, states, groups, blocks;
  int64_t flags, discretization, device, threads, level;
  void* workspace;
  int64_t workspace_bytes;
  void* stream;
  void* saved;
  int64_t saved_bytes;
  nvsubq_tensor u, delta;                 /* [B, L, D] */
  nvsubq_tensor A;                        /* [D, N], real or complex */
  nvsubq_tensor B, C;                     /* [B, L, G, N]; stride 0 over G: one group; complex only with A */
  nvsubq_tensor D;                        /* [D] */
  nvsubq_tensor z;                        /* [B, L, D] */
  nvsubq_tensor delta_bias;               /* [D] */
  nvsubq_tensor delta_a;                  /* [B, L, D], or [D] with timesteps */
  nvsubq_tensor timesteps;                /* [B, L] */
  nvsubq_tensor initial_state;            /* [B, D, N] */
  nvsubq_tensor index, segment, count;
  nvsubq_tensor y, final_state;
  nvsubq_tensor d_y, d_final_state;       /* cotangents; d_final_state may be absent */
  nvsubq_tensor d_u, d_delta, d_A, d_B, d_C, d_D, d_z, d_delta_bias, d_delta_a, d_timesteps, d_initial_state;
  nvsubq_tensor decay_gate, d_decay_gate; /* g, real, shaped like B */
} nvsubq_selective_scan_args;

/* y_k = act(bias + sum_j weight_j x_{k - (K-1-j) dilation}), depthwise. */
typedef struct nvsubq_conv1d_args {
  uint32_t size, abi;
  int64_t batch, length, width, taps, dilation, state_width, blocks;
  int64_t flags, device, threads, level;
  void* workspace;
  int64_t workspace_bytes;
  void* stream;
  void* saved;
  int64_t saved_bytes;
  nvsubq_tensor x;                        /* [B, L, D] */
  nvsubq_tensor weight;                   /* [D, K], newest last */
  nvsubq_tensor bias;                     /* [D] */
  nvsubq_tensor initial_state;            /* [B, D, W], newest last */
  nvsubq_tensor index, segment, count;
  nvsubq_tensor y, final_state;
  nvsubq_tensor d_y, d_final_state;
  nvsubq_tensor d_x, d_weight, d_bias, d_initial_state;
} nvsubq_conv1d_args;

/* s_k = exp(d_k A) s_{k-1} + d_k x_k B_k, y_k = (C_k s_k + D x_k) SiLU(z_k), per head; d = dt + dt_bias, through
 * softplus if asked, then kept between `lowest` and `highest`. */
typedef struct nvsubq_ssd_scan_args {
  uint32_t size, abi;
  int64_t batch, length, width, heads, head_width, states, groups, blocks; /* width: H P */
  int64_t flags;
  int64_t lowest, highest;                /* the bits of two doubles */
  int64_t device, threads, level;
  void* workspace;
  int64_t workspace_bytes;
  void* stream;
  void* saved;
  int64_t saved_bytes;
  nvsubq_tensor x;                        /* [B, L, H, P] */
  nvsubq_tensor dt;                       /* [B, L, H] */
  nvsubq_tensor A;                        /* [H] */
  nvsubq_tensor B, C;                     /* [B, L, G, N] */
  nvsubq_tensor D;                        /* [H, P]; stride 0 over P: [H] */
  nvsubq_tensor z;                        /* [B, L, H, P] */
  nvsubq_tensor dt_bias;                  /* [H] */
  nvsubq_tensor initial_state;            /* [B, H, P, N] */
  nvsubq_tensor index, segment, count;
  nvsubq_tensor y, final_state;           /* final_state may be absent */
  nvsubq_tensor d_y, d_final_state;
  nvsubq_tensor d_x, d_dt, d_A, d_B, d_C, d_D, d_z, d_dt_bias, d_initial_state;
} nvsubq_ssd_scan_args;

/* h_k = a_k h_{k-1} + g_k b_k, complex where a or b is; with dt, a_k and g_k are made from a rate a and dt_k. */
typedef struct nvsubq_linear_scan_args {
  uint32_t size, abi;
  int64_t batch, length, width, blocks;
  int64_t discretization;                 /* ZOH or BILINEAR, with dt */
  int64_t input_scale;
  int64_t flags, device, threads, level;
  void* workspace;
  int64_t workspace_bytes;
  void* stream;
  void* saved;
  int64_t saved_bytes;
  nvsubq_tensor a;                        /* [B, L, D], or [D] */
  nvsubq_tensor b;                        /* [B, L, D] */
  nvsubq_tensor dt;                       /* [B, L, D], or [B, L]; real */
  nvsubq_tensor initial_state;            /* [B, D], of any stride */
  nvsubq_tensor index, segment, count;
  nvsubq_tensor y, final_state;           /* complex where a or b is */
  nvsubq_tensor d_y, d_final_state;       /* either may be absent, and so may each gradient */
  nvsubq_tensor d_a, d_b, d_dt, d_initial_state;
} nvsubq_linear_scan_args;

/* s_k = a_k s_{k-1} + (1 - a_k^2)^(1/2) sigmoid(i_k + i_bias) x_k, log a_k = c sigmoid(r_k + r_bias) log sigmoid(a_log);
 * y_k = s_k, or GELU(gate_k) s_k. With NVSUBQ_UNSCALED_FIRST an input before which nothing came is not scaled. */
typedef struct nvsubq_rglru_scan_args {
  uint32_t size, abi;
  int64_t batch, length, width, blocks;
  int64_t c_bits;                         /* those of c, a double */
  int64_t flags, device, threads, level;
  void* workspace;
  int64_t workspace_bytes;
  void* stream;
  void* saved;
  int64_t saved_bytes;
  nvsubq_tensor x, r, i;                  /* [B, L, D] */
  nvsubq_tensor a_log;                    /* [D] */
  nvsubq_tensor gate;                     /* [B, L, D] */
  nvsubq_tensor r_bias, i_bias;           /* [D] */
  nvsubq_tensor initial_state;            /* [B, D], of any stride */
  nvsubq_tensor index, segment, count;
  nvsubq_tensor y, final_state;
  nvsubq_tensor d_y, d_final_state;       /* either may be absent, and so may each gradient */
  nvsubq_tensor d_x, d_r, d_i, d_a_log, d_gate, d_r_bias, d_i_bias, d_initial_state;
} nvsubq_rglru_scan_args;

/* Steps of whole cores: one token of B rows. Without in_weight, x is what the projection in gives; without
 * out_weight, y is what the projection out takes. States are changed in place; they and the weights are dense,
 * activations are strided by rows. Complex tensors are (re, im) pairs, flagged NVSUBQ_COMPLEX, and their strides
 * count pairs. `saved` is not used. */

/* (v, z) = in(x); u = SiLU(conv(v)); (d, B, C) = x_proj u; delta = softplus(dt_weight d + dt_bias); A = -exp(A_log);
 * s = a s + f B u, y = out((C s + D u) SiLU(z)). With timesteps the decay uses timestep softplus(dt_bias). */
typedef struct nvsubq_mamba_step_args {
  uint32_t size, abi;
  int64_t batch, model, width, states, rank, taps;
  int64_t flags, discretization, device, threads, level;
  void* workspace;
  int64_t workspace_bytes;
  void* stream;
  void* saved;
  int64_t saved_bytes;
  nvsubq_tensor x;                        /* [B, M], or [B, 2D] */
  nvsubq_tensor in_weight, in_bias;       /* [2D, M], [2D] */
  nvsubq_tensor conv_state;               /* [B, D, K], newest last */
  nvsubq_tensor conv_weight, conv_bias;   /* [D, K], [D] */
  nvsubq_tensor x_proj;                   /* [R + 2N, D] */
  nvsubq_tensor dt_weight, dt_bias;       /* [D, R], [D] */
  nvsubq_tensor A_log, D;                 /* [D, N], [D] */
  nvsubq_tensor timesteps;                /* [B] */
  nvsubq_tensor state;                    /* [B, D, N] */
  nvsubq_tensor out_weight, out_bias;     /* [M, D], [M] */
  nvsubq_tensor y;                        /* [B, M], or [B, D] */
} nvsubq_mamba_step_args;

/* (z0, x0, z, xBC, d) = in(x); (u, B, C) = SiLU(conv(xBC)); delta = clamp(softplus(d + dt_bias)); A = -exp(A_log);
 * s = exp(delta A) s + delta u B, v = C s + D u; y = out(SiLU(z0) x0, norm(v SiLU(z))). `width` is the recurrence's
 * D = H P, `mlp` the width of z0 and x0; without norm_weight there is no norm. */
typedef struct nvsubq_mamba2_step_args {
  uint32_t size, abi;
  int64_t batch, model, width, states, heads, groups, taps, mlp;
  int64_t flags, norm_before_gate, channel_skip;
  int64_t dt_low, dt_high, norm_eps;      /* the bits of doubles */
  int64_t device, threads, level;
  void* workspace;
  int64_t workspace_bytes;
  void* stream;
  void* saved;
  int64_t saved_bytes;
  nvsubq_tensor x;                        /* [B, M], or [B, 2 mlp + 2D + 2GN + H] */
  nvsubq_tensor in_weight, in_bias;       /* [2 mlp + 2D + 2GN + H, M], and its rows */
  nvsubq_tensor conv_state;               /* [B, D + 2GN, K], newest last */
  nvsubq_tensor conv_weight, conv_bias;   /* [D + 2GN, K], [D + 2GN] */
  nvsubq_tensor dt_bias, A_log;           /* [H] */
  nvsubq_tensor D;                        /* [H], or [D] with channel_skip */
  nvsubq_tensor norm_weight;              /* [D] */
  nvsubq_tensor state;                    /* [B, H, P, N] */
  nvsubq_tensor out_weight, out_bias;     /* [M, mlp + D], [M] */
  nvsubq_tensor y;                        /* [B, M], or [B, mlp + D] */
} nvsubq_mamba2_step_args;

/* u = conv(in(x)), g = gate(x); r = sigmoid(r_weight u + r_bias); i = sigmoid(i_weight u + i_bias);
 * log a = c r log sigmoid(a_log); s = a s + sqrt(1 - a^2) i u, y = out(s GELU(g)). */
typedef struct nvsubq_rglru_step_args {
  uint32_t size, abi;
  int64_t batch, model, width, taps;
  int64_t flags;
  int64_t c;                              /* the bits of a double */
  int64_t device, threads, level;
  void* workspace;
  int64_t workspace_bytes;
  void* stream;
  void* saved;
  int64_t saved_bytes;
  nvsubq_tensor x, gate;                  /* [B, M] and absent, or [B, D] both */
  nvsubq_tensor in_weight, in_bias;       /* [D, M], [D] */
  nvsubq_tensor gate_weight, gate_bias;   /* the same */
  nvsubq_tensor conv_state;               /* [B, D, K], newest last */
  nvsubq_tensor conv_weight, conv_bias;   /* [D, K], [D] */
  nvsubq_tensor r_weight, r_bias;         /* [D, D], [D] */
  nvsubq_tensor i_weight, i_bias;         /* [D, D], [D] */
  nvsubq_tensor a_log;                    /* [D] */
  nvsubq_tensor state;                    /* [B, D] */
  nvsubq_tensor out_weight, out_bias;     /* [M, D], [M] */
  nvsubq_tensor y;                        /* [B, M], or [B, D] */
} nvsubq_rglru_step_args;

/* dt = exp(log_dt) step_rescale; s = a(dt A) s + f(dt, A) B u, y = kappa Re(C s) + D u. With timesteps the decay
 * is that of timestep dt. */
typedef struct nvsubq_s5_step_args {
  uint32_t size, abi;
  int64_t batch, width, states;
  int64_t flags, discretization;
  int64_t step_rescale, kappa;            /* the bits of doubles */
  int64_t device, threads, level;
  void* workspace;
  int64_t workspace_bytes;
  void* stream;
  void* saved;
  int64_t saved_bytes;
  nvsubq_tensor u;                        /* [B, C] */
  nvsubq_tensor A;                        /* [N, 2] */
  nvsubq_tensor B;                        /* [N, C, 2] */
  nvsubq_tensor C;                        /* [C, N, 2] */
  nvsubq_tensor D, log_dt;                /* [C], [N] */
  nvsubq_tensor timesteps;                /* [B] */
  nvsubq_tensor state;                    /* [B, N], complex */
  nvsubq_tensor y;                        /* [B, C] */
} nvsubq_s5_step_args;

NVSUBQ_API uint32_t nvsubq_abi(void);
NVSUBQ_API const char* nvsubq_build_info(void);
/* The message of the last status other than NVSUBQ_OK on this thread. */
NVSUBQ_API const char* nvsubq_last_error(void);
/* The name of an instruction set ("avx512", "avx2", "baseline"), or null where this machine lacks it; 0: in use.
 * The CUDA library has none but 0, "cuda". */
NVSUBQ_API const char* nvsubq_level_name(int64_t level);

/* Of each op: bytes of workspace that serve the forward and the backward of a call (-1: bad arguments), bytes that a
 * forward leaves in `saved` for its backward, and the two passes. A null `saved` makes a forward leave nothing. */
#define NVSUBQ_OP(op, Args)                                      \
  NVSUBQ_API int64_t nvsubq_##op##_workspace(const Args* args); \
  NVSUBQ_API int64_t nvsubq_##op##_saved(const Args* args);     \
  NVSUBQ_API int nvsubq_##op##_forward(const Args* args);       \
  NVSUBQ_API int nvsubq_##op##_backward(const Args* args);

NVSUBQ_OP(selective_scan, nvsubq_selective_scan_args)
NVSUBQ_OP(conv1d, nvsubq_conv1d_args)
NVSUBQ_OP(linear_scan, nvsubq_linear_scan_args)
NVSUBQ_OP(rglru_scan, nvsubq_rglru_scan_args)
NVSUBQ_OP(ssd_scan, nvsubq_ssd_scan_args)

/* Of each core's step: bytes of workspace (-1: bad arguments), and the step. */
#define NVSUBQ_STEP(step, Args)                                     \
  NVSUBQ_API int64_t nvsubq_##step##_workspace(const Args* args); \
  NVSUBQ_API int nvsubq_##step(const Args* args);

NVSUBQ_STEP(mamba_step, nvsubq_mamba_step_args)
NVSUBQ_STEP(mamba2_step, nvsubq_mamba2_step_args)
NVSUBQ_STEP(rglru_step, nvsubq_rglru_step_args)
NVSUBQ_STEP(s5_step, nvsubq_s5_step_args)

#ifdef __cplusplus
}
#endif
#endif
