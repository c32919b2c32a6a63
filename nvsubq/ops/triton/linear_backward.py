"""The backward kernel of the first-order recurrence h = a h + b, real or complex."""

import triton
import triton.language as tl

from nvsubq.ops.triton.linear_tile import (
    COMPLEX_A,
    COMPLEX_B,
    FIXED_A,
    at_end,
    decays_and_inputs,
    place,
    read_pair,
    write_pair,
)
from nvsubq.ops.triton.tiles import (
    SIZES,
    adjoint,
    adjoint_complex,
    after,
    after_complex,
    before,
    before_complex,
    steps_of,
    times,
    times_complex,
)


@triton.jit(do_not_specialize=SIZES)
def linear_backward(
    a, b, index, segment, count, d_y, d_final, begins, saved, scratch, end_decays, end_grads,
    d_a, d_b, d_fixed_a, d_initial,
    a_row, a_cell, b_row, b_cell, d_y_row, d_y_cell, index_row, length, width, blocks, per_part, share,
    chunks, pieces, flags,
    ENDS: tl.constexpr, WALKS: tl.constexpr, ACC: tl.constexpr, COMPLEX: tl.constexpr, T: tl.constexpr,
    BD: tl.constexpr, CHUNK: tl.constexpr, PIECE: tl.constexpr,
):  # fmt: skip
    """Walk a chunk of steps backwards with BD channels of a row.

    Gradients of complex numbers are torch's: the conjugate of the decay takes them back. With `ENDS` the
    gradient that enters from behind is 0, and what leaves the chunk and the product of its conjugate decays
    is given. Without, each piece is walked forward from the state that was kept, then backward, tile by tile.
    """
    chunk, row, walk, d, in_d = place(blocks, share, per_part, chunks, BD)
    a += row * a_row * tl.where((flags & COMPLEX_A) != 0, 2, 1)
    b += row * b_row * tl.where((flags & COMPLEX_B) != 0, 2, 1)
    slot = tl.program_id(0).to(tl.int64) * (PIECE // T) * BD + tl.arange(0, BD)
    g_re = tl.zeros([BD], ACC)
    g_im = g_re
    p_re = g_re + 1.0
    p_im = g_re
    sum_re = g_re
    sum_im = g_re
    s_re = g_re
    s_im = g_re
    if not ENDS:
        entry = (row * chunks + tl.minimum(chunk + 1, chunks - 1)) * width + d
        g_re, g_im = read_pair(begins, entry, in_d & (chunk < chunks - 1), True, ACC, COMPLEX)
        given = in_d & (chunk == chunks - 1)
        f_re, f_im = read_pair(d_final, row * width + d, given, True, ACC, COMPLEX)
        g_re += f_re
        g_im += f_im
    first = tl.arange(0, T)[:, None] == 0
    last = tl.arange(0, T)[:, None] == T - 1
    ones = tl.full([T, BD], 1.0, ACC)
    zeros = tl.zeros([T, BD], ACC)
    start = chunk * CHUNK
    stop = tl.minimum(start + CHUNK, length)
    count_of_pieces = tl.cdiv(stop - start, PIECE)
    for piece in range(count_of_pieces):
        begin = start + (count_of_pieces - 1 - piece) * PIECE
        tiles = tl.cdiv(tl.minimum(PIECE, stop - begin), T)
        if not ENDS:
            kept = (row * pieces + begin // PIECE) * width + d
            s_re, s_im = read_pair(saved, kept, in_d, True, ACC, COMPLEX)
            for i in range(tiles):
                write_pair(scratch, slot + i * BD, True, s_re, s_im, True, COMPLEX)
                cell, inside, there, starts = steps_of(
                    begin + i * T + tl.arange(0, T), stop, row, walk, length, blocks, index, index_row,
                    segment, count, flags, WALKS,
                )  # fmt: skip
                a_re, a_im, b_re, b_im = decays_and_inputs(
                    a, b, a_cell, b_cell, cell, there, starts, d, in_d, flags, ACC, COMPLEX
                )
                if COMPLEX:
                    b_re += tl.where(first, a_re * s_re[None, :] - a_im * s_im[None, :], 0.0)
                    b_im += tl.where(first, a_re * s_im[None, :] + a_im * s_re[None, :], 0.0)
                    _, _, h_re, h_im = tl.associative_scan((a_re, a_im, b_re, b_im), 0, after_complex)
                    s_re = at_end(h_re, last)
                    s_im = at_end(h_im, last)
                else:
                    b_re += tl.where(first, a_re * s_re[None, :], 0.0)
                    _, h_re = tl.associative_scan((a_re, b_re), 0, after)
                    s_re = at_end(h_re, last)
            tl.debug_barrier()
        for i in range(tiles):
            tile = tiles - 1 - i
            cell, inside, there, starts = steps_of(
                begin + tile * T + tl.arange(0, T), stop, row, walk, length, blocks, index, index_row,
                segment, count, flags, WALKS,
            )  # fmt: skip
            a_re, a_im, b_re, b_im = decays_and_inputs(
                a, b, a_cell, b_cell, cell, there, starts, d, in_d, flags, ACC, COMPLEX
            )
            mask = there[:, None] & in_d[None, :]
            seen = row * d_y_row + cell[:, None] * d_y_cell + d[None, :]
            own_re, own_im = read_pair(d_y, seen, mask, True, ACC, COMPLEX)
            own_re += tl.where(last, g_re[None, :], 0.0)
            own_im += tl.where(last, g_im[None, :], 0.0)
            if COMPLEX:
                _, _, _, _, h_re, h_im = tl.associative_scan(
                    (a_re, -a_im, ones, zeros, own_re, own_im), 0, adjoint_complex, reverse=True
                )
                g_re = at_end(a_re * h_re + a_im * h_im, first)
                g_im = at_end(a_re * h_im - a_im * h_re, first)
                if ENDS:
                    q_re, q_im = tl.reduce((a_re, -a_im), 0, times_complex)
                    p_re, p_im = times_complex(p_re, p_im, q_re, q_im)
            else:
                _, _, h_re = tl.associative_scan((a_re, ones, own_re), 0, adjoint, reverse=True)
                h_im = h_re
                g_re = at_end(a_re * h_re, first)
                if ENDS:
                    p_re *= tl.reduce(a_re, 0, times)
            if not ENDS:
                s_re, s_im = read_pair(scratch, slot + tile * BD, True, True, ACC, COMPLEX)
                at_re = tl.where(first, s_re[None, :], 0.0)
                if COMPLEX:
                    at_im = tl.where(first, s_im[None, :], 0.0)
                    _, _, _, _, _, _, t_re, t_im = tl.associative_scan(
                        (a_re, a_im, b_re, b_im, ones, zeros, at_re, at_im), 0, before_complex
                    )
                    d_re = h_re * t_re + h_im * t_im
                    d_im = h_im * t_re - h_re * t_im
                else:
                    _, _, _, t_re = tl.associative_scan((a_re, b_re, ones, at_re), 0, before)
                    d_re = h_re * t_re
                    d_im = d_re
                follows = mask & (starts == 0)[:, None]
                d_re = tl.where(follows, d_re, 0.0)
                d_im = tl.where(follows, d_im, 0.0)
                sum_re += tl.sum(d_re, 0)
                sum_im += tl.sum(d_im, 0)
                out = inside[:, None] & in_d[None, :]
                at = (row * length + cell[:, None]) * width + d[None, :]
                varies = out & ((flags & FIXED_A) == 0)
                write_pair(d_a, at, varies, d_re, d_im, (flags & COMPLEX_A) != 0, COMPLEX)
                h_re = tl.where(mask, h_re, 0.0)
                h_im = tl.where(mask, h_im, 0.0)
                write_pair(d_b, at, out, h_re, h_im, (flags & COMPLEX_B) != 0, COMPLEX)
        tl.debug_barrier()
    end = (row * chunks + chunk) * width + d
    if ENDS:
        write_pair(end_decays, end, in_d, p_re, p_im, True, COMPLEX)
        write_pair(end_grads, end, in_d, g_re, g_im, True, COMPLEX)
    else:
        fixed = in_d & ((flags & FIXED_A) != 0)
        write_pair(d_fixed_a, end, fixed, sum_re, sum_im, (flags & COMPLEX_A) != 0, COMPLEX)
        write_pair(d_initial, row * width + d, in_d & (chunk == 0), g_re, g_im, True, COMPLEX)
