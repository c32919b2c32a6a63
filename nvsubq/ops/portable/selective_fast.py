"""`selective_scan` with a real A, an exponential decay and B, C per cell: written out by hand, forward and backward.

States are laid out `[rows, cells, G, N, D/G]`: channels last, so that every broadcast runs over contiguous channels, and
the sums over N or D are batched matrix products. One workspace serves all blocks of a call.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from nvsubq.ops.portable.recurrence import Bound, Tiling, Tree, adjoint_, first_cell, scan_

# exp2 is several times faster than exp on a CPU, where the latter goes through a library call.
_LOG2_E = math.log2(math.e)


@dataclass(frozen=True)
class Options:
    """What is not a tensor: softplus on delta, whether delta scales the input, the direction, the cut."""

    softplus: bool
    scaled_input: bool
    reverse: bool
    tiling: Tiling


class _Workspace:
    """Buffers of one call and, per shape of a tile, the views of them that the scans use."""

    def __init__(self, like: Tensor, inner: tuple[int, ...], options: Options, backward: bool) -> None:
        tile = options.tiling.rows * options.tiling.cells * math.prod(inner)
        self._buffers = [like.new_empty(tile) for _ in range(3 if backward else 2)]
        self._inner, self._reverse = inner, options.reverse
        self._shapes: dict[tuple[int, int], tuple] = {}

    def tile(self, rows: int, cells: int) -> tuple[Tensor, Tree, list[Tensor], list[Bound]]:
        """Give decays, their tree, and the buffers with their scans: states, and in the backward gradients."""
        if (rows, cells) not in self._shapes:
            shape = (rows, cells, *self._inner)
            decay, *states = (buffer[: math.prod(shape)].view(shape) for buffer in self._buffers)
            tree = Tree(decay, self._reverse)
            self._shapes[rows, cells] = decay, tree, states, [tree.bind(s) for s in states]
        return self._shapes[rows, cells]


class _Inputs:
    """The tensors of a call, and how a tile of them becomes decays and inputs of the recurrence."""

    def __init__(self, options: Options, tensors: tuple[Tensor | None, ...]) -> None:
        (self.u, self.delta, self.A, self.B, self.C, self.D, self.z, self.delta_bias, self.delta_a, self.timesteps,
         self.state, self.keep, self.present) = tensors  # fmt: skip
        self.options = options
        self.groups, self.d_state = self.B.shape[2:]
        self.inner = (self.groups, self.d_state, self.u.shape[2] // self.groups)
        self.rates = self.A.unflatten(0, (self.groups, -1)).transpose(1, 2).contiguous()  # (G, N, D/G)
        self.rates2 = self.rates * _LOG2_E

    def cut(self, tensor: Tensor | None, rows: slice, cells: slice) -> Tensor | None:
        """One tile of a tensor over cells, in the dtype of the recurrence."""
        return None if tensor is None else tensor[rows, cells].to(self.A.dtype)

    def grouped(self, tensor: Tensor) -> Tensor:
        """`[R, T, D]` as `[R, T, G, 1, D/G]`."""
        return tensor.unflatten(2, (self.groups, 1, -1))


class _Tile:
    """The small tensors `[R, T, D]` of one tile."""

    def __init__(self, inputs: _Inputs, rows: slice, cells: slice) -> None:
        cut = inputs.cut
        self.u = cut(inputs.u, rows, cells)
        raw = cut(inputs.delta, rows, cells)
        self.raw = raw if inputs.delta_bias is None else raw + inputs.delta_bias
        delta = F.softplus(self.raw) if inputs.options.softplus else self.raw
        self.present = None if inputs.present is None else inputs.present[rows, cells, None]
        self.delta = delta if self.present is None else delta * self.present
        self.keep = None if inputs.keep is None else inputs.keep[rows, cells, :, None, None]
        self.times = cut(inputs.timesteps, rows, cells)
        self.delta_a = self._decay_step(inputs, rows, cells)
        self.b = cut(inputs.B, rows, cells)  # (R, T, G, N)
        self.c = cut(inputs.C, rows, cells)
        self.w = self.delta * self.u if inputs.options.scaled_input else self.u
        self.z = cut(inputs.z, rows, cells)

    def _decay_step(self, inputs: _Inputs, rows: slice, cells: slice) -> Tensor:
        if inputs.delta_a is None:
            return self.delta
        if self.times is not None:
            step = self.times.unsqueeze(-1) * inputs.delta_a
        else:
            step = inputs.cut(inputs.delta_a, rows, cells)
        return step if self.present is None else step * self.present


def _states(inputs: _Inputs, tile: _Tile, work: tuple, carry: Tensor | None) -> None:
    """Fill a tile of the workspace with decays and states."""
    decay, tree, (states, *_), (scan, *_) = work
    torch.mul(inputs.grouped(tile.delta_a), inputs.rates2, out=decay)
    decay.exp2_()
    if tile.keep is not None:
        decay.mul_(tile.keep)
    torch.mul(tile.b.unsqueeze(-1), inputs.grouped(tile.w), out=states)
    first = first_cell(inputs.options.reverse)
    if carry is not None:
        states[:, first].addcmul_(decay[:, first], carry)
    tree.multiply()
    scan_(scan)


def _over_states(weights: Tensor, states: Tensor) -> Tensor:
    """Sum over N: `[R, T, G, N]` and `[R, T, G, N, D/G]` give `[R, T, D]`."""
    rows, cells, groups, n, width = states.shape
    summed = torch.bmm(weights.reshape(-1, 1, n), states.view(-1, n, width))
    return summed.view(rows, cells, groups * width)


def _over_channels(values: Tensor, states: Tensor) -> Tensor:
    """Sum over channels: `[R, T, D]` and `[R, T, G, N, D/G]` give `[R, T, G, N]`."""
    rows, cells, groups, n, width = states.shape
    summed = torch.bmm(values.reshape(-1, 1, width), states.view(-1, n, width).transpose(1, 2))
    return summed.view(rows, cells, groups, n)


class FastScan(torch.autograd.Function):
    """y and the final state `[B, G, N, D/G]`; arguments as in `_Inputs`, after the options."""

    @staticmethod
    def forward(ctx, options: Options, *tensors: Tensor | None):  # type: ignore[override]
        inputs = _Inputs(options, tensors)
        u, tiling = inputs.u, options.tiling
        y = torch.empty(u.shape, dtype=u.dtype, device=u.device)
        final = inputs.A.new_empty(u.shape[0], *inputs.inner)
        borders = final.new_empty(tiling.blocks - 1, *final.shape)
        last = first_cell(not options.reverse)
        work = _Workspace(final, inputs.inner, options, backward=False)
        for rows in tiling.row_tiles():
            carry = None if inputs.state is None else inputs.state[rows]
            for k, cells in enumerate(tiling.cell_blocks(options.reverse)):
                tile = _Tile(inputs, rows, cells)
                buffers = work.tile(*tile.u.shape[:2])
                if k:
                    carry = borders[k - 1, rows]
                    carry.copy_(leaving)  # noqa: F821 (set by the block before)
                _states(inputs, tile, buffers, carry)
                states = buffers[2][0]
                out = _over_states(tile.c, states)
                if inputs.D is not None:
                    out.addcmul_(inputs.D, tile.u)
                y[rows, cells] = out if tile.z is None else out * F.silu(tile.z)
                leaving = states[:, last]
            final[rows] = leaving
        ctx.save_for_backward(borders, *tensors)
        ctx.options = options
        return y, final

    @staticmethod
    @once_differentiable
    def backward(ctx, d_y: Tensor, d_final: Tensor):  # type: ignore[override]
        borders, *tensors = ctx.saved_tensors
        inputs = _Inputs(ctx.options, tuple(tensors))
        grads = _Gradients(inputs)
        tiling, reverse = ctx.options.tiling, ctx.options.reverse
        first, last = first_cell(reverse), first_cell(not reverse)
        work = _Workspace(d_final, inputs.inner, ctx.options, backward=True)
        blocks = list(enumerate(tiling.cell_blocks(reverse)))
        for rows in tiling.row_tiles():
            arriving = d_final[rows]
            for k, cells in reversed(blocks):
                tile = _Tile(inputs, rows, cells)
                buffers = work.tile(*tile.u.shape[:2])
                entering = borders[k - 1, rows] if k else None if inputs.state is None else inputs.state[rows]
                _states(inputs, tile, buffers, entering)
                decay, _, (states, g), (_, adjoint) = buffers
                d_out = grads.gate(tile, rows, cells, d_y, states)
                torch.mul(tile.c.unsqueeze(-1), inputs.grouped(d_out), out=g)
                g[:, last].add_(arriving)
                adjoint_(adjoint)
                grads.inputs(tile, rows, cells, d_out, g)
                decay.mul_(g)
                arriving = decay[:, first].clone()
                _times_states_before(decay, states, entering, reverse)
                grads.decays(tile, rows, cells, decay, states)
                grads.finish(tile, rows, cells)
            grads.state(rows, arriving)
        return None, *grads.collect()


def _times_states_before(x: Tensor, states: Tensor, entering: Tensor | None, reverse: bool) -> None:
    """Multiply each cell of `x`, in place, by the state that entered it."""
    first = first_cell(reverse)
    if reverse:
        x[:, :-1].mul_(states[:, 1:])
    else:
        x[:, 1:].mul_(states[:, :-1])
    if entering is None:
        x[:, first].zero_()
    else:
        x[:, first].mul_(entering)


class _Gradients:
    """Gradients of a call, filled tile by tile; sums over tiles run in a fixed order."""

    def __init__(self, inputs: _Inputs) -> None:
        self.of = inputs
        i = inputs
        self.u, self.delta, self.B, self.C, self.z = (
            None if t is None else torch.empty(t.shape, dtype=t.dtype, device=t.device)
            for t in (i.u, i.delta, i.B, i.C, i.z)
        )
        self.rates = torch.zeros_like(i.rates)
        self.D, self.delta_bias = (None if t is None else torch.zeros_like(t) for t in (i.D, i.delta_bias))
        # delta_a [D] is a sum over cells, [B, L, D] is not
        self.delta_a = None if i.delta_a is None else torch.zeros_like(i.delta_a)
        self.timesteps = None if i.timesteps is None else torch.empty_like(i.timesteps)
        self.d_state = None if i.state is None else torch.empty_like(i.state)

    def gate(self, tile: _Tile, rows: slice, cells: slice, d_y: Tensor, states: Tensor) -> Tensor:
        """Gradients of z, D and C; gives that of the output before the gate."""
        d_out = d_y[rows, cells].to(states.dtype)
        if tile.z is not None:
            out = _over_states(tile.c, states)
            if self.of.D is not None:
                out.addcmul_(self.of.D, tile.u)
            self.z[rows, cells] = torch.ops.aten.silu_backward(out.mul_(d_out), tile.z)
            d_out = d_out * F.silu(tile.z)
        if self.D is not None:
            self.D += (d_out * tile.u).sum((0, 1))
        self.C[rows, cells] = _over_channels(d_out, states)
        return d_out

    def inputs(self, tile: _Tile, rows: slice, cells: slice, d_out: Tensor, g: Tensor) -> None:
        """Gradients of B and u, and the part of delta's that comes through the input."""
        self.B[rows, cells] = _over_channels(tile.w, g)
        d_w = _over_states(tile.b, g)
        d_u = d_w * tile.delta if self.of.options.scaled_input else d_w
        if self.of.D is not None:
            d_u = torch.addcmul(d_u, d_out, self.of.D)
        self.u[rows, cells] = d_u
        self._d_delta = d_w.mul_(tile.u) if self.of.options.scaled_input else None

    def decays(self, tile: _Tile, rows: slice, cells: slice, d_log: Tensor, scratch: Tensor) -> None:
        """Gradients of A and of the decay's step, from those of the decay's logarithm, which are overwritten."""
        step = torch.mul(d_log, self.of.rates, out=scratch).sum(3).flatten(2)
        d_log.mul_(self.of.grouped(tile.delta_a))
        flat = d_log.view(-1, math.prod(self.of.inner))
        self.rates += torch.mm(flat.new_ones(1, flat.shape[0]), flat).view_as(self.rates)
        if self.of.delta_a is None:
            self._d_delta = step if self._d_delta is None else self._d_delta.add_(step)
            return
        if tile.present is not None:
            step = step * tile.present
        if tile.times is None:
            self.delta_a[rows, cells] = step
        else:
            self.delta_a += (step * tile.times.unsqueeze(-1)).sum((0, 1))
            self.timesteps[rows, cells] = step @ self.of.delta_a

    def finish(self, tile: _Tile, rows: slice, cells: slice) -> None:
        """Gradients of delta and its bias."""
        d_delta = torch.zeros_like(tile.u) if self._d_delta is None else self._d_delta
        if tile.present is not None:
            d_delta = d_delta * tile.present
        if self.of.options.softplus:
            d_delta = torch.ops.aten.softplus_backward(d_delta, tile.raw, 1, 20)
        self.delta[rows, cells] = d_delta
        if self.delta_bias is not None:
            self.delta_bias += d_delta.sum((0, 1))

    def state(self, rows: slice, arriving: Tensor) -> None:
        """Gradient of the initial state."""
        if self.d_state is not None:
            self.d_state[rows] = arriving

    def collect(self) -> tuple[Tensor | None, ...]:
        """All of them in the order of the arguments."""
        d_a = self.rates.transpose(1, 2).reshape_as(self.of.A)
        return (self.u, self.delta, d_a, self.B, self.C, self.D, self.z, self.delta_bias, self.delta_a, self.timesteps,
                self.d_state, None, None)  # fmt: skip
