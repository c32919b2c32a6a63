"""The forward kernel of `selective_scan`."""

import triton
import triton.language as tl

from nvsubq.ops.triton.selective_tile import (
    BIASED,
    DECAY_GATED,
    FIXED_B,
    FIXED_C,
    FIXED_GATE,
    GATED,
    SKIPPED,
    TIMED,
    fixed_over_time,
    over_states,
    per_channel,
    per_state,
    place,
    walk_tile,
)
from nvsubq.ops.triton.tiles import INITIAL, KEEP, SIZES, after, bits, read, sigmoid, write


@triton.jit(do_not_specialize=SIZES)
def selective_forward(
    u, delta, A, B, C, D, z, bias, delta_a, timesteps, gate, initial, index, segment, count, begins,
    y, final, saved, end_decays, end_states,
    u_row, u_cell, delta_row, delta_cell, z_row, z_cell, delta_a_row, delta_a_cell, timesteps_row,
    timesteps_cell, B_row, B_cell, B_part, C_row, C_cell, C_part, gate_row, gate_cell, gate_part, index_row,
    length, width, states, blocks, parts, per_part, share, chunks, pieces, flags,
    KIND: tl.constexpr, GENERAL: tl.constexpr, WALKS: tl.constexpr, ENDS: tl.constexpr, ACC: tl.constexpr,
    T: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, CHUNK: tl.constexpr, PIECE: tl.constexpr,
):  # fmt: skip
    """Walk a chunk of steps with BD channels of a row.

    With `ENDS` it starts from nothing, and gives the state after the chunk and the product of its decays, by
    which the states between the chunks are found; without, it gives y, the final state and what is kept.
    Parameters and states come as `[N, D]`, and the states after the chunks, `begins`, as `[B, chunks, N, D]`.
    """
    chunk, row, _block, part, walk, d, in_d = place(blocks, parts, per_part, share, chunks, BD)
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
    y += row * length * width

    state = tl.zeros([BN, BD], ACC)
    decays = state + 1.0
    if not ENDS:
        begun = chunk > 0
        entry = begins + (row * chunks + tl.maximum(chunk - 1, 0)) * states * width + nd
        given = initial + row * states * width + nd
        state = tl.load(entry, mask=bits(in_states & begun), other=0.0)
        begins_given = ((flags & INITIAL) != 0) & (begun == 0)
        state += tl.load(given, mask=bits(in_states & begins_given), other=0.0)
    first = tl.arange(0, T)[:, None, None] == 0
    last = tl.arange(0, T)[:, None, None] == T - 1
    stop = tl.minimum((chunk + 1) * CHUNK, length)
    for begin in range(chunk * CHUNK, stop, T):
        if not ENDS:
            keeps = ((flags & KEEP) != 0) & (begin % PIECE == 0)
            kept = saved + (row * pieces + begin // PIECE) * states * width + nd
            tl.store(kept, state, mask=bits(in_states & keeps))
        cell, inside, there, _, _, _, _, u_k, B_k, _, _, factor, decay, _ = walk_tile(
            begin, stop, length, row, walk, blocks, tables, index_row, reads, cells, d, in_d, n, in_n,
            rates, offset, rate, fixed_B, fixed_gate, flags, KIND, GENERAL, WALKS, ACC, T,
        )  # fmt: skip
        entering = factor * u_k[:, None, :] * B_k
        entering += tl.where(first, decay * state[None, :, :], 0.0)
        product, after_k = tl.associative_scan((decay, entering), 0, after)
        state = tl.sum(tl.where(last, after_k, 0.0), 0)
        if ENDS:
            decays *= tl.sum(tl.where(last, product, 0.0), 0)
        else:
            mask = there[:, None] & in_d[None, :]
            mask_n = there[:, None] & in_n[None, :] & ((flags & FIXED_C) == 0)
            C_k = over_states(C, C_cell, fixed_C, cell, n, mask_n, GENERAL, ACC)
            y_k = tl.sum(C_k * after_k, 1) + skip[None, :] * u_k
            z_k = read(z, cell, z_cell, d, mask & ((flags & GATED) != 0), ACC)
            y_k = tl.where((flags & GATED) != 0, y_k * z_k * sigmoid(z_k), y_k)
            y_k = tl.where(there[:, None], y_k, 0.0)
            write(y, cell, width, d, inside[:, None] & in_d[None, :], y_k)
    if ENDS:
        at = (row * chunks + chunk) * states * width + nd
        tl.store(end_decays + at, decays, mask=bits(in_states))
        tl.store(end_states + at, state, mask=bits(in_states))
    else:
        tl.store(final + row * states * width + nd, state, mask=bits(in_states & (chunk == chunks - 1)))
