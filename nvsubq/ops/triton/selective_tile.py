"""What the forward and backward kernels of `selective_scan` read of a tile of steps."""

import triton
import triton.language as tl

from nvsubq.ops.triton.discretizations import AS_THEY_ARE, discretize
from nvsubq.ops.triton.tiles import bits, read, softplus, steps_of

# Bits of `flags`, beside those of `tiles`.
SOFTPLUS = tl.constexpr(1 << 8)
BIASED = tl.constexpr(1 << 9)
GATED = tl.constexpr(1 << 10)  # z
SKIPPED = tl.constexpr(1 << 11)  # D
OWN_STEPS = tl.constexpr(1 << 12)  # delta_a [B, L, D]
TIMED = tl.constexpr(1 << 13)  # delta_a [D] and timesteps
DECAY_GATED = tl.constexpr(1 << 14)
FIXED_B = tl.constexpr(1 << 15)  # [D, N], not over time
FIXED_C = tl.constexpr(1 << 16)
FIXED_GATE = tl.constexpr(1 << 17)


@triton.jit
def place(blocks, parts, per_part, share, chunks, BD: tl.constexpr):
    """What a program works on: chunk, row, the block of channels, its part, its walk, and its channels."""
    program = tl.program_id(0).to(tl.int64)
    chunk = program % chunks
    block = (program // chunks) % (parts * per_part)
    row = program // (chunks * parts * per_part)
    part = block // per_part
    d = part * share + (block % per_part) * BD + tl.arange(0, BD)
    return chunk, row, block, part, part // (parts // blocks), d, d < (part + 1) * share


@triton.jit
def per_channel(pointer, d, in_d, present, ACC: tl.constexpr):
    """A parameter `[D]`, 0 where it is absent."""
    return tl.load(pointer + d, mask=bits(in_d & present), other=0.0).to(ACC)


@triton.jit
def per_state(pointer, width, n, d, mask, absent, ACC: tl.constexpr):
    """A parameter or state `[N, D]`, as `[BN, BD]`."""
    return tl.load(pointer + n[:, None] * width + d[None, :], mask=bits(mask), other=absent).to(ACC)


@triton.jit
def over_states(pointer, stride, fixed, cell, n, mask, GENERAL: tl.constexpr, ACC: tl.constexpr):
    """B, C or the gate of each step, `[T, BN, 1]`, or `[T, BN, BD]` where it may be fixed over time."""
    value = read(pointer, cell, stride, n, mask, ACC)[:, :, None]
    if GENERAL:
        value = value + fixed[None, :, :]
    return value


@triton.jit
def fixed_over_time(pointer, width, n, d, in_states, fixed, absent, GENERAL: tl.constexpr, ACC: tl.constexpr):
    """B, C or the gate where it is `[N, D]`, else `absent`."""
    if GENERAL:
        value = per_state(pointer, width, n, d, in_states & fixed, absent, ACC)
    else:
        value = tl.full([1, 1], 0.0, ACC)
    return value


@triton.jit
def steps_taken(reads, cells, cell, there, d, mask, offset, rate, flags, ACC: tl.constexpr):
    """delta before softplus, the steps in the factor and the decay (0 for no cell), and the timesteps."""
    raw = read(reads[1], cell, cells[1], d, mask, ACC) + offset[None, :]
    dt = tl.where(mask, tl.where((flags & SOFTPLUS) != 0, softplus(raw), raw), 0.0)
    timed = (flags & TIMED) != 0
    own_steps = (flags & OWN_STEPS) != 0
    times = tl.load(reads[3] + cell * cells[3], mask=bits(there & timed), other=0.0).to(ACC)
    own = read(reads[2], cell, cells[2], d, mask & own_steps, ACC)
    dt_a = tl.where(own_steps, own, tl.where(timed, times[:, None] * rate[None, :], dt))
    return raw, dt, dt_a, times


@triton.jit
def walk_tile(
    begin, stop, length, row, walk, blocks, tables, index_row, reads, cells, d, in_d, n, in_n,
    rates, offset, rate, fixed_B, fixed_gate, flags,
    KIND: tl.constexpr, GENERAL: tl.constexpr, WALKS: tl.constexpr, ACC: tl.constexpr,
    T: tl.constexpr,
):  # fmt: skip
    """The steps begin ... begin + T - 1 of a chunk that ends at `stop`.

    Args:
        tables: pointers to `index`, `segment`, `count`.
        reads: pointers to the row's `u`, `delta`, `delta_a`, `timesteps`, `B`, `gate`.
        cells: their strides over cells.

    Returns:
        By step `[T]` its cell, whether it is inside and there, and its timestep; delta before softplus, both
        steps and u `[T, BD]`; B and the gate `[T, BN, 1 or BD]`; the decay without gate and the factor, then
        the decay that takes the state over (0 at a start, 1 where there is no cell) `[T, BN, BD]`, and
        whether it does.
    """
    k = begin + tl.arange(0, T)
    cell, inside, there, starts = steps_of(
        k, stop, row, walk, length, blocks, tables[0], index_row, tables[1], tables[2], flags, WALKS
    )
    mask = there[:, None] & in_d[None, :]
    mask_n = there[:, None] & in_n[None, :]
    raw, dt, dt_a, times = steps_taken(reads, cells, cell, there, d, mask, offset, rate, flags, ACC)
    u_k = read(reads[0], cell, cells[0], d, mask, ACC)
    B_k = over_states(reads[4], cells[4], fixed_B, cell, n, mask_n & ((flags & FIXED_B) == 0), GENERAL, ACC)
    plain, factor = discretize(dt_a[:, None, :], dt[:, None, :], rates[None, :, :], KIND)
    gate_k = B_k
    decay = plain
    if GENERAL:
        varies = (flags & (FIXED_GATE | DECAY_GATED)) == DECAY_GATED
        gate_k = over_states(reads[5], cells[5], fixed_gate, cell, n, mask_n & varies, GENERAL, ACC)
        decay = plain * gate_k
    if GENERAL or KIND == AS_THEY_ARE:  # else a step of 0 has made it 1
        decay = tl.where(there[:, None, None], decay, 1.0)
    follows = there
    if WALKS:
        follows = there & (starts == 0)
        decay = tl.where(starts[:, None, None], 0.0, decay)
    return cell, inside, there, times, raw, dt, dt_a, u_k, B_k, gate_k, plain, factor, decay, follows
