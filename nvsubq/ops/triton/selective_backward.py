"""The backward kernel of `selective_scan`."""

import triton
import triton.language as tl

from nvsubq.ops.triton.discretizations import AS_THEY_ARE, derivatives
from nvsubq.ops.triton.selective_tile import (
    BIASED,
    DECAY_GATED,
    FIXED_B,
    FIXED_C,
    FIXED_GATE,
    GATED,
    OWN_STEPS,
    SKIPPED,
    SOFTPLUS,
    TIMED,
    fixed_over_time,
    over_states,
    per_channel,
    per_state,
    place,
    walk_tile,
)
from nvsubq.ops.triton.tiles import SIZES, adjoint, after, before, bits, read, sigmoid, times, write


@triton.jit(do_not_specialize=SIZES)
def selective_backward(
    u, delta, A, B, C, D, z, bias, delta_a, timesteps, gate, index, segment, count, d_y, d_final, begins,
    saved, scratch, end_decays, end_grads,
    d_u, d_delta, d_z, d_delta_a, d_B, d_C, d_gate, d_timesteps, d_A, d_D, d_bias, d_rate,
    d_fixed_B, d_fixed_C, d_fixed_gate, d_initial,
    u_row, u_cell, delta_row, delta_cell, z_row, z_cell, delta_a_row, delta_a_cell, timesteps_row,
    timesteps_cell, B_row, B_cell, B_part, C_row, C_cell, C_part, gate_row, gate_cell, gate_part, index_row,
    d_y_row, d_y_cell, length, width, states, blocks, parts, per_part, share, chunks, pieces, flags,
    KIND: tl.constexpr, GENERAL: tl.constexpr, WALKS: tl.constexpr, ENDS: tl.constexpr, ACC: tl.constexpr,
    T: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, CHUNK: tl.constexpr, PIECE: tl.constexpr,
):  # fmt: skip
    """Walk a chunk of steps backwards with BD channels of a row.

    With `ENDS` the gradient that enters from behind is 0, and what leaves the chunk and the product of its
    decays is given. Without, each piece is walked forward from the state that was kept, to find the states
    before its tiles, then backward, tile by tile. Sums over channels (`d_B`, ...) `[B, L, blocks, N]` and
    over time (`d_A`, ...) `[B, chunks, ...]` are left in parts, which are added in a fixed order later.
    """
    chunk, row, block, part, walk, d, in_d = place(blocks, parts, per_part, share, chunks, BD)
    n = tl.arange(0, BN)
    in_n = n < states
    in_states = in_n[:, None] & in_d[None, :]
    nd = n[:, None] * width + d[None, :]
    rates = per_state(A, width, n, d, in_states, 0.0, ACC)
    skip = per_channel(D, d, in_d, (flags & SKIPPED) != 0, ACC)
    offset = per_channel(bias, d, in_d, (flags & BIASED) != 0, ACC)
    rate = per_channel(delta_a, d, in_d, (flags & TIMED) != 0, ACC)
    no_gate = tl.where((flags & DECAY_GATED) != 0, 0.0, 1.0)
    fixed_B = fixed_over_time(B, width, n, d, in_states, (flags & FIXED_B) != 0, 0.0, GENERAL, ACC)
    fixed_C = fixed_over_time(C, width, n, d, in_states, (flags & FIXED_C) != 0, 0.0, GENERAL, ACC)
    fixed_gate = fixed_over_time(
        gate, width, n, d, in_states, (flags & FIXED_GATE) != 0, no_gate, GENERAL, ACC
    )
    reads = (
        u + row * u_row, delta + row * delta_row, delta_a + row * delta_a_row,
        timesteps + row * timesteps_row, B + row * B_row + part * B_part,
        gate + row * gate_row + part * gate_part,
    )  # fmt: skip
    cells = (u_cell, delta_cell, delta_a_cell, timesteps_cell, B_cell, gate_cell)
    tables = (index, segment, count)
    z += row * z_row
    C += row * C_row + part * C_part
    d_y += row * d_y_row
    own_row = row * length * width
    per_cell = parts * per_part * states  # numbers of a cell, in sums over channels
    sums = row * length * per_cell + block * states
    scratch += tl.program_id(0).to(tl.int64) * (PIECE // T) * BN * BD
    slot = n[:, None] * BD + tl.arange(0, BD)[None, :]

    gated = (flags & GATED) != 0
    apart = (flags & (OWN_STEPS | TIMED)) != 0  # the step in the decay is not the one in the factor
    first = tl.arange(0, T)[:, None, None] == 0
    last = tl.arange(0, T)[:, None, None] == T - 1
    ones = tl.full([T, BN, BD], 1.0, ACC)
    grad = tl.zeros([BN, BD], ACC)
    decays = grad + 1.0
    if not ENDS:
        behind = chunk < chunks - 1
        entry = begins + (row * chunks + tl.minimum(chunk + 1, chunks - 1)) * states * width + nd
        grad = tl.load(entry, mask=bits(in_states & behind), other=0.0)
        entry = d_final + row * states * width + nd
        grad += tl.load(entry, mask=bits(in_states & (behind == 0)), other=0.0)
    sum_A = tl.zeros([BN, BD], ACC)
    sum_B = tl.zeros([BN, BD], ACC)
    sum_C = tl.zeros([BN, BD], ACC)
    sum_gate = tl.zeros([BN, BD], ACC)
    sum_D = tl.zeros([BD], ACC)
    sum_bias = tl.zeros([BD], ACC)
    sum_rate = tl.zeros([BD], ACC)
    start = chunk * CHUNK
    stop = tl.minimum(start + CHUNK, length)
    count_of_pieces = tl.cdiv(stop - start, PIECE)
    for piece in range(count_of_pieces):
        begin = start + (count_of_pieces - 1 - piece) * PIECE
        tiles = tl.cdiv(tl.minimum(PIECE, stop - begin), T)
        if not ENDS:
            kept = saved + (row * pieces + begin // PIECE) * states * width + nd
            state = tl.load(kept, mask=bits(in_states), other=0.0)
            for i in range(tiles):
                tl.store(scratch + i * BN * BD + slot, state)
                _, _, _, _, _, _, _, u_k, B_k, _, _, factor, decay, _ = walk_tile(
                    begin + i * T, stop, length, row, walk, blocks, tables, index_row, reads, cells, d, in_d,
                    n, in_n, rates, offset, rate, fixed_B, fixed_gate, flags, KIND, GENERAL, WALKS, ACC, T,
                )  # fmt: skip
                entering = factor * u_k[:, None, :] * B_k
                entering += tl.where(first, decay * state[None, :, :], 0.0)
                _, after_k = tl.associative_scan((decay, entering), 0, after)
                state = tl.sum(tl.where(last, after_k, 0.0), 0)
            tl.debug_barrier()
        for i in range(tiles):
            tile = tiles - 1 - i
            (
                cell, inside, there, time, raw, dt, dt_a, u_k, B_k, gate_k, plain, factor, decay, follows,
            ) = walk_tile(
                begin + tile * T, stop, length, row, walk, blocks, tables, index_row, reads, cells, d, in_d,
                n, in_n, rates, offset, rate, fixed_B, fixed_gate, flags, KIND, GENERAL, WALKS, ACC, T,
            )  # fmt: skip
            mask = there[:, None] & in_d[None, :]
            mask_n = there[:, None] & in_n[None, :] & ((flags & FIXED_C) == 0)
            C_k = over_states(C, C_cell, fixed_C, cell, n, mask_n, GENERAL, ACC)
            d_y_k = read(d_y, cell, d_y_cell, d, mask, ACC)
            z_k = read(z, cell, z_cell, d, mask & gated, ACC)
            open_k = sigmoid(z_k)
            d_out = tl.where(gated, d_y_k * z_k * open_k, d_y_k)
            own = C_k * d_out[:, None, :] + tl.where(last, grad[None, :, :], 0.0)
            _, _, d_state = tl.associative_scan((decay, ones, own), 0, adjoint, reverse=True)
            grad = tl.sum(tl.where(first, decay * d_state, 0.0), 0)
            if ENDS:
                decays *= tl.reduce(decay, 0, times)
            else:
                state = tl.load(scratch + tile * BN * BD + slot)
                entering = factor * u_k[:, None, :] * B_k
                shown = tl.where(first, state[None, :, :], 0.0)
                _, _, _, state_k = tl.associative_scan((decay, entering, ones, shown), 0, before)
                after_k = decay * state_k + entering
                inside_d = inside[:, None] & in_d[None, :]
                inside_n = inside[:, None] & in_n[None, :]

                d_C_k = d_out[:, None, :] * after_k
                ungated = tl.sum(C_k * after_k, 1) + skip[None, :] * u_k
                d_z_k = d_y_k * ungated * open_k * (1.0 + z_k * (1.0 - open_k))
                write(d_z + own_row, cell, width, d, inside_d & gated, d_z_k)
                d_B_k = d_state * factor * u_k[:, None, :]
                d_factor = d_state * B_k * u_k[:, None, :]
                d_u_k = tl.sum(d_state * factor * B_k, 1) + skip[None, :] * d_out
                write(d_u + own_row, cell, width, d, inside_d, d_u_k)
                d_decay = d_state * state_k
                if WALKS or GENERAL or KIND == AS_THEY_ARE:
                    d_decay = tl.where(follows[:, None, None], d_decay, 0.0)
                d_plain = d_decay
                if GENERAL:
                    d_plain = d_decay * gate_k
                    d_gate_k = d_decay * plain
                by_dt_a, decay_by_A, by_dt, factor_by_A = derivatives(
                    dt_a[:, None, :], dt[:, None, :], rates[None, :, :], plain, KIND
                )
                sum_A += tl.sum(d_plain * decay_by_A + d_factor * factor_by_A, 0)
                d_dt_a = tl.where(mask, tl.sum(d_plain * by_dt_a, 1), 0.0)
                d_dt = tl.sum(d_factor * by_dt, 1) + tl.where(apart, 0.0, d_dt_a)
                d_raw = tl.where(
                    (flags & SOFTPLUS) != 0, d_dt * tl.where(raw > 20.0, 1.0, sigmoid(raw)), d_dt
                )
                write(d_delta + own_row, cell, width, d, inside_d, d_raw)
                write(d_delta_a + own_row, cell, width, d, inside_d & ((flags & OWN_STEPS) != 0), d_dt_a)
                sum_bias += tl.sum(tl.where(mask, d_raw, 0.0), 0)
                sum_D += tl.sum(d_out * u_k, 0)
                write(d_B + sums, cell, per_cell, n, inside_n & ((flags & FIXED_B) == 0), tl.sum(d_B_k, 2))
                write(d_C + sums, cell, per_cell, n, inside_n & ((flags & FIXED_C) == 0), tl.sum(d_C_k, 2))
                if GENERAL:
                    sum_rate += tl.sum(d_dt_a * time[:, None], 0)
                    timed_at = d_timesteps + (row * length + cell) * parts * per_part + block
                    timed = inside & ((flags & TIMED) != 0)
                    tl.store(timed_at, tl.sum(d_dt_a * rate[None, :], 1), mask=bits(timed))
                    varies = (flags & (FIXED_GATE | DECAY_GATED)) == DECAY_GATED
                    write(d_gate + sums, cell, per_cell, n, inside_n & varies, tl.sum(d_gate_k, 2))
                    sum_B += tl.sum(d_B_k, 0)
                    sum_C += tl.sum(d_C_k, 0)
                    sum_gate += tl.sum(d_gate_k, 0)
        tl.debug_barrier()
    at = (row * chunks + chunk) * states * width + nd
    if ENDS:
        tl.store(end_decays + at, decays, mask=bits(in_states))
        tl.store(end_grads + at, grad, mask=bits(in_states))
    else:
        tl.store(d_A + at, sum_A, mask=bits(in_states))
        if GENERAL:
            tl.store(d_fixed_B + at, sum_B, mask=bits(in_states & ((flags & FIXED_B) != 0)))
            tl.store(d_fixed_C + at, sum_C, mask=bits(in_states & ((flags & FIXED_C) != 0)))
            tl.store(d_fixed_gate + at, sum_gate, mask=bits(in_states & ((flags & FIXED_GATE) != 0)))
        at_d = (row * chunks + chunk) * width + d
        tl.store(d_D + at_d, sum_D, mask=bits(in_d & ((flags & SKIPPED) != 0)))
        tl.store(d_bias + at_d, sum_bias, mask=bits(in_d & ((flags & BIASED) != 0)))
        tl.store(d_rate + at_d, sum_rate, mask=bits(in_d & ((flags & TIMED) != 0)))
        tl.store(d_initial + row * states * width + nd, grad, mask=bits(in_states & (chunk == 0)))
