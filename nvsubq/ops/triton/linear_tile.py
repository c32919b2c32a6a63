"""What the forward and backward kernels of the first-order recurrence read and write."""

import triton
import triton.language as tl

from nvsubq.ops.triton.tiles import bits

# Bits of `flags`, beside those of `tiles`.
FIXED_A = tl.constexpr(1 << 8)  # a [D]
COMPLEX_A = tl.constexpr(1 << 9)  # of a complex recurrence, whose other tensor may be real
COMPLEX_B = tl.constexpr(1 << 10)


@triton.jit
def place(blocks, share, per_part, chunks, BD: tl.constexpr):
    """What a program works on: chunk, row, walk, and its channels."""
    program = tl.program_id(0).to(tl.int64)
    chunk = program % chunks
    block = (program // chunks) % (blocks * per_part)
    row = program // (chunks * blocks * per_part)
    walk = block // per_part
    d = walk * share + (block % per_part) * BD + tl.arange(0, BD)
    return chunk, row, walk, d, d < (walk + 1) * share


@triton.jit
def read_pair(pointer, at, mask, is_complex, ACC: tl.constexpr, COMPLEX: tl.constexpr):
    """Numbers at offsets in numbers, as real and imaginary part; of a real recurrence twice the real part."""
    if COMPLEX:
        at = at * tl.where(is_complex, 2, 1)
        re = tl.load(pointer + at, mask=bits(mask), other=0.0).to(ACC)
        im = tl.load(pointer + at + 1, mask=bits(mask & is_complex), other=0.0).to(ACC)
    else:
        re = tl.load(pointer + at, mask=bits(mask), other=0.0).to(ACC)
        im = re
    return re, im


@triton.jit
def write_pair(pointer, at, mask, re, im, is_complex, COMPLEX: tl.constexpr):
    """What `read_pair` reads."""
    kind = pointer.dtype.element_ty
    if COMPLEX:
        at = at * tl.where(is_complex, 2, 1)
        tl.store(pointer + at, re.to(kind), mask=bits(mask))
        tl.store(pointer + at + 1, im.to(kind), mask=bits(mask & is_complex))
    else:
        tl.store(pointer + at, re.to(kind), mask=bits(mask))


@triton.jit
def at_end(value, is_end):
    """The row of a tile at the end that is marked."""
    return tl.sum(tl.where(is_end, value, 0.0), 0)


@triton.jit
def decays_and_inputs(
    a, b, a_cell, b_cell, cell, there, starts, d, in_d, flags, ACC: tl.constexpr, COMPLEX: tl.constexpr
):
    """a, 0 at a start and 1 where there is no cell, and b, as pairs `[T, BD]`."""
    mask = there[:, None] & in_d[None, :]
    a_re, a_im = read_pair(
        a, cell[:, None] * a_cell + d[None, :], mask, (flags & COMPLEX_A) != 0, ACC, COMPLEX
    )
    b_re, b_im = read_pair(
        b, cell[:, None] * b_cell + d[None, :], mask, (flags & COMPLEX_B) != 0, ACC, COMPLEX
    )
    drops = starts[:, None] != 0
    a_re = tl.where(mask, tl.where(drops, 0.0, a_re), 1.0)
    a_im = tl.where(drops, 0.0, a_im)
    return a_re, a_im, b_re, b_im
