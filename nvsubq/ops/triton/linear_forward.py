"""The forward kernel of the first-order recurrence h = a h + b, real or complex."""

import triton
import triton.language as tl

from nvsubq.ops.triton.linear_tile import (
    COMPLEX_A,
    COMPLEX_B,
    at_end,
    decays_and_inputs,
    place,
    read_pair,
    write_pair,
)
from nvsubq.ops.triton.tiles import INITIAL, KEEP, SIZES, after, after_complex, steps_of, times_complex


@triton.jit(do_not_specialize=SIZES)
def linear_forward(
    a, b, initial, index, segment, count, begins, y, final, saved, end_decays, end_states,
    a_row, a_cell, b_row, b_cell, index_row, length, width, blocks, per_part, share, chunks, pieces, flags,
    ENDS: tl.constexpr, WALKS: tl.constexpr, ACC: tl.constexpr, COMPLEX: tl.constexpr, T: tl.constexpr,
    BD: tl.constexpr, CHUNK: tl.constexpr, PIECE: tl.constexpr,
):  # fmt: skip
    """Walk a chunk of steps with BD channels of a row; strides count numbers, not parts of them.

    With `ENDS` it starts from nothing, and gives the state after the chunk and the product of its decays, by
    which the states between the chunks are found; without, it gives h, the final state and what is kept.
    """
    chunk, row, walk, d, in_d = place(blocks, share, per_part, chunks, BD)
    a_at = row * a_row
    b_at = row * b_row
    s_re = tl.zeros([BD], ACC)
    s_im = s_re
    p_re = s_re + 1.0
    p_im = s_re
    if not ENDS:
        entry = (row * chunks + tl.maximum(chunk - 1, 0)) * width + d
        s_re, s_im = read_pair(begins, entry, in_d & (chunk > 0), True, ACC, COMPLEX)
        given = in_d & (chunk == 0) & ((flags & INITIAL) != 0)
        g_re, g_im = read_pair(initial, row * width + d, given, True, ACC, COMPLEX)
        s_re += g_re
        s_im += g_im
    first = tl.arange(0, T)[:, None] == 0
    last = tl.arange(0, T)[:, None] == T - 1
    stop = tl.minimum((chunk + 1) * CHUNK, length)
    for begin in range(chunk * CHUNK, stop, T):
        if not ENDS:
            keeps = in_d & ((flags & KEEP) != 0) & (begin % PIECE == 0)
            write_pair(saved, (row * pieces + begin // PIECE) * width + d, keeps, s_re, s_im, True, COMPLEX)
        cell, inside, there, starts = steps_of(
            begin + tl.arange(0, T),
            stop,
            row,
            walk,
            length,
            blocks,
            index,
            index_row,
            segment,
            count,
            flags,
            WALKS,
        )
        a_re, a_im, b_re, b_im = decays_and_inputs(
            a + a_at * tl.where((flags & COMPLEX_A) != 0, 2, 1),
            b + b_at * tl.where((flags & COMPLEX_B) != 0, 2, 1),
            a_cell, b_cell, cell, there, starts, d, in_d, flags, ACC, COMPLEX,
        )  # fmt: skip
        if COMPLEX:
            b_re += tl.where(first, a_re * s_re[None, :] - a_im * s_im[None, :], 0.0)
            b_im += tl.where(first, a_re * s_im[None, :] + a_im * s_re[None, :], 0.0)
            q_re, q_im, h_re, h_im = tl.associative_scan((a_re, a_im, b_re, b_im), 0, after_complex)
            s_re = at_end(h_re, last)
            s_im = at_end(h_im, last)
            if ENDS:
                q_re = at_end(q_re, last)
                q_im = at_end(q_im, last)
                p_re, p_im = times_complex(p_re, p_im, q_re, q_im)
        else:
            b_re += tl.where(first, a_re * s_re[None, :], 0.0)
            q_re, h_re = tl.associative_scan((a_re, b_re), 0, after)
            h_im = h_re
            s_re = at_end(h_re, last)
            if ENDS:
                p_re *= at_end(q_re, last)
        if not ENDS:
            at = (row * length + cell[:, None]) * width + d[None, :]
            h_re = tl.where(there[:, None], h_re, 0.0)
            h_im = tl.where(there[:, None], h_im, 0.0)
            write_pair(y, at, inside[:, None] & in_d[None, :], h_re, h_im, True, COMPLEX)
    if ENDS:
        end = (row * chunks + chunk) * width + d
        write_pair(end_decays, end, in_d, p_re, p_im, True, COMPLEX)
        write_pair(end_states, end, in_d, s_re, s_im, True, COMPLEX)
    else:
        write_pair(final, row * width + d, in_d & (chunk == chunks - 1), s_re, s_im, True, COMPLEX)
