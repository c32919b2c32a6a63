/* Pins the sizes and offsets of the C interface: callers were built with them. A change that fails here needs a higher
 * NVSUBQ_ABI, or belongs to the end of its struct. Included by a C99 file and a C++ one, so both languages read the
 * header. */
#ifndef NVSUBQ_TEST_LAYOUT_H
#define NVSUBQ_TEST_LAYOUT_H

#include <stddef.h>

#include "nvsubq.h"

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
/* An array of -1 elements where the two differ; C99 has no static_assert. */
#define PIN(what, value) typedef char JOIN(pinned_, __COUNTER__)[(what) == (value) ? 1 : -1]
#define AT(field, value) PIN(offsetof(STRUCT, field), value)

/* Field i of those after size and abi; the memory fields, which begin at `from`; tensor i of those from `from` on. */
#define SCALAR(i, field) AT(field, 8 + 8 * (i))
#define MEMORY(from)                                                                                       \
  AT(size, 0); AT(abi, 4); AT(workspace, from); AT(workspace_bytes, (from) + 8); AT(stream, (from) + 16); \
  AT(saved, (from) + 24); AT(saved_bytes, (from) + 32)
#define TENSOR(from, i, field) AT(field, (from) + 48 * (i))

PIN(NVSUBQ_ABI, 1u);
PIN(sizeof(void*), 8);

#define STRUCT nvsubq_tensor
PIN(sizeof(nvsubq_tensor), 48);
AT(data, 0); AT(stride, 8); AT(dtype, 40); AT(flags, 44);
#undef STRUCT

#define STRUCT nvsubq_selective_scan_args
PIN(sizeof(STRUCT), 1624);
SCALAR(0, batch); SCALAR(1, length); SCALAR(2, width); SCALAR(3, states); SCALAR(4, groups); SCALAR(5, blocks);
SCALAR(6, flags); SCALAR(7, discretization); SCALAR(8, device); SCALAR(9, threads); SCALAR(10, level);
MEMORY(96);
#define T(i, field) TENSOR(136, i, field)
T(0, u); T(1, delta); T(2, A); T(3, B); T(4, C); T(5, D); T(6, z); T(7, delta_bias); T(8, delta_a); T(9, timesteps);
T(10, initial_state); T(11, index); T(12, segment); T(13, count); T(14, y); T(15, final_state); T(16, d_y);
T(17, d_final_state); T(18, d_u); T(19, d_delta); T(20, d_A); T(21, d_B); T(22, d_C); T(23, d_D); T(24, d_z);
T(25, d_delta_bias); T(26, d_delta_a); T(27, d_timesteps); T(28, d_initial_state); T(29, decay_gate);
T(30, d_decay_gate);
#undef T
#undef STRUCT

#define STRUCT nvsubq_conv1d_args
PIN(sizeof(STRUCT), 856);
SCALAR(0, batch); SCALAR(1, length); SCALAR(2, width); SCALAR(3, taps); SCALAR(4, dilation); SCALAR(5, state_width);
SCALAR(6, blocks); SCALAR(7, flags); SCALAR(8, device); SCALAR(9, threads); SCALAR(10, level);
MEMORY(96);
#define T(i, field) TENSOR(136, i, field)
T(0, x); T(1, weight); T(2, bias); T(3, initial_state); T(4, index); T(5, segment); T(6, count); T(7, y);
T(8, final_state); T(9, d_y); T(10, d_final_state); T(11, d_x); T(12, d_weight); T(13, d_bias); T(14, d_initial_state);
#undef T
#undef STRUCT

#define STRUCT nvsubq_ssd_scan_args
PIN(sizeof(STRUCT), 1360);
SCALAR(0, batch); SCALAR(1, length); SCALAR(2, width); SCALAR(3, heads); SCALAR(4, head_width); SCALAR(5, states);
SCALAR(6, groups); SCALAR(7, blocks); SCALAR(8, flags); SCALAR(9, lowest); SCALAR(10, highest); SCALAR(11, device);
SCALAR(12, threads); SCALAR(13, level);
MEMORY(120);
#define T(i, field) TENSOR(160, i, field)
T(0, x); T(1, dt); T(2, A); T(3, B); T(4, C); T(5, D); T(6, z); T(7, dt_bias); T(8, initial_state); T(9, index);
T(10, segment); T(11, count); T(12, y); T(13, final_state); T(14, d_y); T(15, d_final_state); T(16, d_x); T(17, d_dt);
T(18, d_A); T(19, d_B); T(20, d_C); T(21, d_D); T(22, d_z); T(23, d_dt_bias); T(24, d_initial_state);
#undef T
#undef STRUCT

#define STRUCT nvsubq_linear_scan_args
PIN(sizeof(STRUCT), 848);
SCALAR(0, batch); SCALAR(1, length); SCALAR(2, width); SCALAR(3, blocks); SCALAR(4, discretization);
SCALAR(5, input_scale); SCALAR(6, flags); SCALAR(7, device); SCALAR(8, threads); SCALAR(9, level);
MEMORY(88);
#define T(i, field) TENSOR(128, i, field)
T(0, a); T(1, b); T(2, dt); T(3, initial_state); T(4, index); T(5, segment); T(6, count); T(7, y); T(8, final_state);
T(9, d_y); T(10, d_final_state); T(11, d_a); T(12, d_b); T(13, d_dt); T(14, d_initial_state);
#undef T
#undef STRUCT

#define STRUCT nvsubq_rglru_scan_args
PIN(sizeof(STRUCT), 1224);
SCALAR(0, batch); SCALAR(1, length); SCALAR(2, width); SCALAR(3, blocks); SCALAR(4, c_bits); SCALAR(5, flags);
SCALAR(6, device); SCALAR(7, threads); SCALAR(8, level);
MEMORY(80);
#define T(i, field) TENSOR(120, i, field)
T(0, x); T(1, r); T(2, i); T(3, a_log); T(4, gate); T(5, r_bias); T(6, i_bias); T(7, initial_state); T(8, index);
T(9, segment); T(10, count); T(11, y); T(12, final_state); T(13, d_y); T(14, d_final_state); T(15, d_x); T(16, d_r);
T(17, d_i); T(18, d_a_log); T(19, d_gate); T(20, d_r_bias); T(21, d_i_bias); T(22, d_initial_state);
#undef T
#undef STRUCT

#define STRUCT nvsubq_mamba_step_args
PIN(sizeof(STRUCT), 904);
SCALAR(0, batch); SCALAR(1, model); SCALAR(2, width); SCALAR(3, states); SCALAR(4, rank); SCALAR(5, taps);
SCALAR(6, flags); SCALAR(7, discretization); SCALAR(8, device); SCALAR(9, threads); SCALAR(10, level);
MEMORY(96);
#define T(i, field) TENSOR(136, i, field)
T(0, x); T(1, in_weight); T(2, in_bias); T(3, conv_state); T(4, conv_weight); T(5, conv_bias); T(6, x_proj);
T(7, dt_weight); T(8, dt_bias); T(9, A_log); T(10, D); T(11, timesteps); T(12, state); T(13, out_weight);
T(14, out_bias); T(15, y);
#undef T
#undef STRUCT

#define STRUCT nvsubq_mamba2_step_args
PIN(sizeof(STRUCT), 856);
SCALAR(0, batch); SCALAR(1, model); SCALAR(2, width); SCALAR(3, states); SCALAR(4, heads); SCALAR(5, groups);
SCALAR(6, taps); SCALAR(7, mlp); SCALAR(8, flags); SCALAR(9, norm_before_gate); SCALAR(10, channel_skip);
SCALAR(11, dt_low); SCALAR(12, dt_high); SCALAR(13, norm_eps); SCALAR(14, device); SCALAR(15, threads);
SCALAR(16, level);
MEMORY(144);
#define T(i, field) TENSOR(184, i, field)
T(0, x); T(1, in_weight); T(2, in_bias); T(3, conv_state); T(4, conv_weight); T(5, conv_bias); T(6, dt_bias);
T(7, A_log); T(8, D); T(9, norm_weight); T(10, state); T(11, out_weight); T(12, out_bias); T(13, y);
#undef T
#undef STRUCT

#define STRUCT nvsubq_rglru_step_args
PIN(sizeof(STRUCT), 984);
SCALAR(0, batch); SCALAR(1, model); SCALAR(2, width); SCALAR(3, taps); SCALAR(4, flags); SCALAR(5, c);
SCALAR(6, device); SCALAR(7, threads); SCALAR(8, level);
MEMORY(80);
#define T(i, field) TENSOR(120, i, field)
T(0, x); T(1, gate); T(2, in_weight); T(3, in_bias); T(4, gate_weight); T(5, gate_bias); T(6, conv_state);
T(7, conv_weight); T(8, conv_bias); T(9, r_weight); T(10, r_bias); T(11, i_weight); T(12, i_bias); T(13, a_log);
T(14, state); T(15, out_weight); T(16, out_bias); T(17, y);
#undef T
#undef STRUCT

#define STRUCT nvsubq_s5_step_args
PIN(sizeof(STRUCT), 560);
SCALAR(0, batch); SCALAR(1, width); SCALAR(2, states); SCALAR(3, flags); SCALAR(4, discretization);
SCALAR(5, step_rescale); SCALAR(6, kappa); SCALAR(7, device); SCALAR(8, threads); SCALAR(9, level);
MEMORY(88);
#define T(i, field) TENSOR(128, i, field)
T(0, u); T(1, A); T(2, B); T(3, C); T(4, D); T(5, log_dt); T(6, timesteps); T(7, state); T(8, y);
#undef T
#undef STRUCT

#endif
