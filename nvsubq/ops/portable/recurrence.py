"""The engine of the scans: h_t = a_t h_{t-1} + b_t over a block of cells, without a loop over them.

A binary tree: runs of 2, 4, 8, ... cells are merged (the state at the end of a run from those at the ends of
its halves), then the cells in between are filled in from the largest run down. That is one pass over the
decays and two over the states in a logarithmic number of operations; it needs no padding and never divides by
a decay. Its adjoint walks the same tree backwards with the same products.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from nvsubq.ops.once import once_differentiable

# Elements of one temporary: a few megabytes, so that the handful in use stay in a CPU's caches. Other devices
# need more work per launch and have more memory.
_CPU_TILE = 1 << 20
_DEVICE_TILE = 1 << 24

Bound = list[tuple[Tensor, Tensor, Tensor]]


def tile_elements(device: torch.device) -> int:
    """Give the number of elements that one temporary of a blocked op should have."""
    return _CPU_TILE if device.type == "cpu" else _DEVICE_TILE


@dataclass(frozen=True)
class Tiling:
    """How an op over B rows of L cells is cut: `rows` rows by `cells` cells at a time, each at most.

    `cells` does not depend on B, so neither does the arithmetic of a row.
    """

    batch: int
    length: int
    rows: int
    cells: int

    @classmethod
    def plan(cls, batch: int, length: int, width: int, elements: int, least: int = 16) -> Tiling:
        """Cut so that rows x cells x width is about `elements`, with at least `least` cells in a block."""
        blocks = max(1, min(-(-length * width // elements), length // least))
        cells = max(1, -(-length // blocks))
        return cls(batch, length, even_part(batch, elements // (cells * width)), cells)

    @property
    def blocks(self) -> int:
        """How many blocks of cells a row has."""
        return -(-self.length // self.cells)

    def row_tiles(self) -> Iterator[slice]:
        """Slices of the rows."""
        return (slice(b, min(b + self.rows, self.batch)) for b in range(0, self.batch, self.rows))

    def cell_blocks(self, reverse: bool = False) -> list[slice]:
        """Slices of the cells, in the order in which the walk meets them."""
        cuts = [slice(t, min(t + self.cells, self.length)) for t in range(0, self.length, self.cells)]
        return cuts[::-1] if reverse else cuts


def even_part(whole: int, most: int) -> int:
    """Give a size of at most `most` that cuts `whole` into few, preferably equal, parts."""
    most = max(1, min(whole, most))
    even = next(size for size in range(most, 0, -1) if size == 1 or whole % size == 0)
    return even if 3 * even >= 2 * most else most


def _walked(x: Tensor, start: int, step: int, count: int, reverse: bool) -> Tensor:
    """View `count` cells of axis 1: `start`, `start + step`, ... counted along the walk (in memory order)."""
    if reverse:
        start = x.shape[1] - 1 - start - step * (count - 1)
    return x[:, start : start + step * (count - 1) + 1 : step]


class Tree:
    """Decays of the runs of 1, 2, 4, ... cells of a block, and the scans that they drive.

    Args:
        decay: `[R, T, ...]`, kept as it is; call `multiply` whenever its values have changed.
        reverse: the walk goes from cell T-1 to cell 0.
    """

    def __init__(self, decay: Tensor, reverse: bool = False) -> None:
        self.reverse = reverse
        self._levels = [decay]
        self._products: list[tuple[Tensor, Tensor, Tensor]] = []
        while (half := self._levels[-1].shape[1] // 2) >= 2:
            runs = self._levels[-1]
            longer = runs.new_empty(runs.shape[0], half, *runs.shape[2:])
            left, right = (_walked(runs, start, 2, half, reverse) for start in (0, 1))
            self._products.append((longer, left, right))
            self._levels.append(longer)

    def multiply(self) -> Tree:
        """Fill the decays of the longer runs from those of the cells."""
        for longer, left, right in self._products:
            torch.mul(left, right, out=longer)
        return self

    def bind(self, states: Tensor) -> Bound:
        """Prepare the scans of `states` `[R, T, ...]`: the views that each operation reads and writes."""
        return _bind(
            states,
            lambda level, start, n: _walked(self._levels[level], start, 2, n, self.reverse),
            self.reverse,
        )


def bind_constant(decay: Tensor, states: Tensor, reverse: bool = False) -> Bound:
    """Prepare the scans of `states` `[R, T, ...]` with one decay `[...]` for all cells.

    The decays of longer runs are powers of it, taken in double precision and rounded once.
    """
    double = torch.complex128 if decay.is_complex() else torch.float64
    exact = decay.to(double) if decay.device.type != "mps" else decay
    powers = [decay]
    while states.shape[1] >> len(powers) >= 2:
        exact = exact * exact
        powers.append(exact.to(decay.dtype))
    return _bind(states, lambda level, start, n: powers[level], reverse)


def _bind(states: Tensor, decays, reverse: bool) -> Bound:
    length = states.shape[1]
    up, down = [], []
    level, run = 0, 1
    while length // run >= 2:
        step = 2 * run
        n, m = length // step, (length - run) // step
        ends = _walked(states, step - 1, step, n, reverse)
        up.append((ends, decays(level, 1, n), _walked(states, run - 1, step, n, reverse)))
        if m:
            between = _walked(states, step + run - 1, step, m, reverse)
            down.append((between, decays(level, 2, m), _walked(states, step - 1, step, m, reverse)))
        level, run = level + 1, step
    return up + down[::-1]


def scan_(bound: Bound) -> None:
    """Turn the inputs b that `bound` views into the states h, in place."""
    for cell, decay, before in bound:
        cell.addcmul_(decay, before)


def adjoint_(bound: Bound) -> None:
    """Turn gradients of the states into gradients of the inputs, in place (complex: of their conjugates)."""
    for cell, decay, before in reversed(bound):
        before.addcmul_(decay, cell)


def first_cell(reverse: bool) -> int:
    """Index of the cell of a block that the walk meets first."""
    return -1 if reverse else 0


class _Recurrence(torch.autograd.Function):
    """All states of h_t = a_t h_{t-1} + b_t; the backward keeps only a, h and the entering state."""

    @staticmethod
    def forward(ctx, a: Tensor, b: Tensor, state: Tensor | None, reverse: bool) -> Tensor:  # type: ignore[override]
        constant = a.dim() == b.dim() - 2
        h = b.clone(memory_format=torch.contiguous_format)
        tiling = Tiling.plan(b.shape[0], b.shape[1], max(1, b[0, 0].numel()), tile_elements(b.device))
        first, last = first_cell(reverse), first_cell(not reverse)
        for rows in tiling.row_tiles():
            carry = None if state is None else state[rows]
            for cells in tiling.cell_blocks(reverse):
                block = h[rows, cells]
                decay = a if constant else a[rows, cells]
                if carry is not None:
                    block[:, first].addcmul_(decay if constant else decay[:, first], carry)
                scan_(
                    bind_constant(a, block, reverse)
                    if constant
                    else Tree(decay, reverse).multiply().bind(block)
                )
                carry = block[:, last]
        ctx.save_for_backward(a, h, state)
        ctx.reverse, ctx.tiling = reverse, tiling
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        a, h, state = ctx.saved_tensors
        reverse, tiling = ctx.reverse, ctx.tiling
        constant = a.dim() == h.dim() - 2
        first, last = first_cell(reverse), first_cell(not reverse)
        # The adjoint runs on conjugates, so that it can use the decays as they are.
        g = grad.conj().resolve_conj() if grad.is_complex() else grad
        g = (
            g.clone(memory_format=torch.contiguous_format)
            if g is grad or g.data_ptr() == grad.data_ptr()
            else g
        )
        d_a = torch.zeros_like(a) if constant else torch.empty_like(a, memory_format=torch.contiguous_format)
        d_state = None if state is None else torch.empty_like(state, memory_format=torch.contiguous_format)
        for rows in tiling.row_tiles():
            carry = None
            for cells in tiling.cell_blocks(not reverse):
                block = g[rows, cells]
                decay = a if constant else a[rows, cells]
                if carry is not None:
                    block[:, last].add_(carry)
                adjoint_(
                    bind_constant(a, block, reverse)
                    if constant
                    else Tree(decay, reverse).multiply().bind(block)
                )
                carry = block[:, first] * (decay if constant else decay[:, first])
                before = _states_before(h, state, rows, cells, reverse)
                if constant:
                    d_a += (block * before).sum((0, 1))
                else:
                    torch.mul(block, before, out=d_a[rows, cells])
            if d_state is not None:
                d_state[rows] = cast(Tensor, carry)
        if grad.is_complex():
            g, d_a = g.conj().resolve_conj(), d_a.conj().resolve_conj()
            d_state = None if d_state is None else d_state.conj().resolve_conj()
        return d_a, g, d_state, None


def _states_before(h: Tensor, state: Tensor | None, rows: slice, cells: slice, reverse: bool) -> Tensor:
    """States that enter the cells of a block: those of the cells walked before."""
    t0, t1 = cells.start, cells.stop
    outside = t1 == h.shape[1] if reverse else t0 == 0
    if not outside:
        return h[rows, t0 + 1 : t1 + 1] if reverse else h[rows, t0 - 1 : t1 - 1]
    entering = torch.zeros_like(h[rows, 0]) if state is None else state[rows]
    inner = h[rows, t0 + 1 : t1] if reverse else h[rows, t0 : t1 - 1]
    parts = [inner, entering[:, None]] if reverse else [entering[:, None], inner]
    return torch.cat(parts, 1)


def diagonal_recurrence(
    a: Tensor, b: Tensor, state: Tensor | None = None, *, reverse: bool = False
) -> Tensor:
    """Give all states of h_t = a_t h_{t-1} + b_t along axis 1, differentiable once.

    Args:
        a: decays `[B, L, ...]`, or one for all cells `[...]`; real or complex, of the dtype of `b`.
        b: inputs `[B, L, ...]`.
        state: the state `[B, ...]` before the first visited cell; None is zero.
        reverse: walk from the last cell to the first.

    Example:
        >>> diagonal_recurrence(torch.tensor([0.5]), torch.ones(1, 3, 1)).flatten().tolist()
        [1.0, 1.5, 1.75]
    """
    if b.numel() == 0:
        return b + 0 * (a.sum() if a.numel() else 0)
    return _Recurrence.apply(a, b, state, reverse)
