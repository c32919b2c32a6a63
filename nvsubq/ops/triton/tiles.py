"""What the kernels share: a tile of T steps of a walk, and the two scans along its first axis.

The first axis of a tile is time, so that Triton keeps it within a thread and a scan along it costs what a
loop would. A step that visits no cell has decay 1 and input 0; one that starts a sequence has decay 0.
"""

import triton
import triton.language as tl

# Sizes and strides, by which Triton would compile a kernel anew where one is 1 or a multiple of 16.
SIZES = [
    "length", "width", "states", "blocks", "parts", "per_part", "share", "chunks", "pieces", "flags",
    "index_row", "u_row", "u_cell", "delta_row", "delta_cell", "z_row", "z_cell", "delta_a_row",
    "delta_a_cell", "timesteps_row", "timesteps_cell", "B_row", "B_cell", "B_part", "C_row", "C_cell",
    "C_part", "gate_row", "gate_cell", "gate_part", "d_y_row", "d_y_cell", "a_row", "a_cell", "b_row",
    "b_cell",
]  # fmt: skip

# Bits of the kernels' `flags`: branches that cost nothing beside a tile's states are taken at run time.
INDEXED = tl.constexpr(1)  # `index` says which cell a step visits
SEGMENTED = tl.constexpr(2)  # `segment` says which sequence a step belongs to
COUNTED = tl.constexpr(4)  # `count` says how many cells of a row are there
FLIPPED = tl.constexpr(8)  # step k visits cell L - 1 - k
INITIAL = tl.constexpr(16)  # there is a state before the first step
KEEP = tl.constexpr(32)  # the forward keeps states for its backward


@triton.jit
def after(decay, state, next_decay, next_state):
    """Two runs of steps as one: state -> decay * state + this."""
    return decay * next_decay, next_decay * state + next_state


@triton.jit
def after_complex(a_re, a_im, s_re, s_im, b_re, b_im, t_re, t_im):
    """`after`, of real pairs."""
    return (
        a_re * b_re - a_im * b_im,
        a_re * b_im + a_im * b_re,
        b_re * s_re - b_im * s_im + t_re,
        b_re * s_im + b_im * s_re + t_im,
    )


@triton.jit
def before(decay, input, product, state, next_decay, next_input, next_product, next_state):
    """Two runs of steps as one that gives the state before its last step.

    A run is its last step's decay and input, and what takes the state before its first step to the one before
    its last: a single step has product 1 and state 0.
    """
    return (
        next_decay,
        next_input,
        next_product * decay * product,
        next_product * (decay * state + input) + next_state,
    )


@triton.jit
def adjoint(decay, product, grad, earlier_decay, earlier_product, earlier_grad):
    """Two runs of steps as one, the later first, that gives the gradient of the state after its first step.

    A run is its first step's decay, and what takes the gradient that enters from behind to that of the state
    after its first step: a single step has product 1 and the gradient that its own output gives.
    """
    return (
        earlier_decay,
        earlier_product * decay * product,
        earlier_grad + earlier_product * decay * grad,
    )


@triton.jit
def before_complex(
    a_re, a_im, x_re, x_im, p_re, p_im, s_re, s_im, b_re, b_im, y_re, y_im, q_re, q_im, t_re, t_im
):
    """`before`, of real pairs."""
    m_re, m_im = times_complex(a_re, a_im, p_re, p_im)
    m_re, m_im = times_complex(q_re, q_im, m_re, m_im)
    n_re, n_im = times_complex(a_re, a_im, s_re, s_im)
    n_re, n_im = times_complex(q_re, q_im, n_re + x_re, n_im + x_im)
    return b_re, b_im, y_re, y_im, m_re, m_im, n_re + t_re, n_im + t_im


@triton.jit
def adjoint_complex(a_re, a_im, p_re, p_im, g_re, g_im, b_re, b_im, q_re, q_im, h_re, h_im):
    """`adjoint`, of real pairs."""
    c_re, c_im = times_complex(q_re, q_im, a_re, a_im)
    m_re, m_im = times_complex(c_re, c_im, p_re, p_im)
    n_re, n_im = times_complex(c_re, c_im, g_re, g_im)
    return b_re, b_im, m_re, m_im, h_re + n_re, h_im + n_im


@triton.jit
def times(a, b):
    """Their product."""
    return a * b


@triton.jit
def times_complex(a_re, a_im, b_re, b_im):
    """Their product, of real pairs."""
    return a_re * b_re - a_im * b_im, a_re * b_im + a_im * b_re


@triton.jit
def bits(mask):
    """A mask as loads and stores take it: combined with a scalar the interpreter makes it integers."""
    return mask != 0


@triton.jit
def steps_of(
    k, stop, row, block, length, blocks, index, index_row, segment, count, flags, WALKS: tl.constexpr
):
    """The cells of steps k, whether each is inside and there, and whether the state is dropped before it."""
    inside = k < stop
    if WALKS:
        cell, there, starts = steps_by_tables(
            k, inside, row, block, length, blocks, index, index_row, segment, count, flags
        )
    else:
        cell = tl.where((flags & FLIPPED) != 0, length - 1 - k, k)
        there = inside
        starts = inside == 0
    return cell, inside, there, starts


@triton.jit
def steps_by_tables(k, inside, row, block, length, blocks, index, index_row, segment, count, flags):
    """`steps_of`, where a walk has tables."""
    limit = tl.load(count + row, mask=bits((flags & COUNTED) != 0), other=length)
    there = inside & (k < limit)
    indexed = (flags & INDEXED) != 0
    cell = tl.load(index + row * index_row + k * blocks + block, mask=bits(inside & indexed), other=0)
    cell = tl.where(indexed, cell, k)
    at = segment + (row * length + k) * blocks + block
    follows = there & (k > 0) & ((flags & SEGMENTED) != 0)
    starts = tl.load(at, mask=bits(follows), other=0) != tl.load(at - blocks, mask=bits(follows), other=0)
    return cell, there, starts


@triton.jit
def read(pointer, cell, stride, column, mask, ACC: tl.constexpr):
    """Rows of a tensor whose last axis is contiguous, `[T, columns]`."""
    return tl.load(pointer + cell[:, None] * stride + column[None, :], mask=bits(mask), other=0.0).to(ACC)


@triton.jit
def write(pointer, cell, stride, column, mask, value):
    """What `read` reads, in the tensor's dtype."""
    at = pointer + cell[:, None] * stride + column[None, :]
    tl.store(at, value.to(pointer.dtype.element_ty), mask=bits(mask))


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x))."""
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def softplus(x):
    """log(1 + exp(x)), to rounding where exp(x) is small, and linear above 20."""
    small = tl.exp(-tl.abs(x))
    more = 1.0 + small
    # log(more) / (more - 1) is right even where `more` was rounded
    log1p = tl.where(more == 1.0, small, tl.log(more) * (small / tl.where(more == 1.0, 1.0, more - 1.0)))
    return tl.where(x > 20.0, x, tl.maximum(x, 0.0) + log1p)
