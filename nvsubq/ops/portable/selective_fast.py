"""`selective_scan` with a real A, an exponential decay and B, C per cell: both passes written by hand."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nvsubq.ops.autocast import backward_without_autocast
from nvsubq.ops.once import once_differentiable
from nvsubq.ops.portable.recurrence import adjoint_, first_cell
from nvsubq.ops.portable.selective_tensors import Tensors
from nvsubq.ops.portable.selective_tile import (
    Inputs,
    Options,
    Tile,
    Workspace,
    fill_states,
    over_channels,
    over_states,
)


class FastScan(torch.autograd.Function):
    """y and the final state `[B, G, N, D/G]` from the options and `Tensors`."""

    @staticmethod
    def forward(ctx, options: Options, *tensors: Tensor | None):  # type: ignore[override]
        given = Tensors(*tensors)
        inputs = Inputs(options, given)
        tiling = options.tiling
        y = torch.empty(given.u.shape, dtype=given.u.dtype, device=given.u.device)
        final = given.A.new_empty(tiling.batch, *inputs.inner)
        borders = final.new_empty(tiling.blocks - 1, *final.shape)
        last = first_cell(not options.reverse)
        work = Workspace(final, inputs.inner, options, backward=False)
        for rows in tiling.row_tiles():
            carry = _rows(given.state, rows)
            for k, cells in enumerate(tiling.cell_blocks(options.reverse)):
                if k:
                    borders[k - 1, rows] = carry
                tile = Tile(inputs, rows, cells)
                buffers = work.tile(*tile.u.shape[:2])
                fill_states(inputs, tile, buffers, carry)
                states = buffers[2][0]
                out = over_states(tile.c, states)
                if given.D is not None:
                    out.addcmul_(given.D, tile.u)
                y[rows, cells] = out if tile.z is None else out * F.silu(tile.z)
                carry = states[:, last].clone()
            final[rows] = carry
        ctx.save_for_backward(borders, *tensors)
        ctx.options = options
        return y, final

    @staticmethod
    @once_differentiable
    @backward_without_autocast
    def backward(ctx, d_y: Tensor, d_final: Tensor):  # type: ignore[override]
        borders, *tensors = ctx.saved_tensors
        inputs = Inputs(ctx.options, Tensors(*tensors))
        grads = _Gradients(inputs)
        tiling, reverse = ctx.options.tiling, ctx.options.reverse
        first, last = first_cell(reverse), first_cell(not reverse)
        work = Workspace(d_final, inputs.inner, ctx.options, backward=True)
        blocks = list(enumerate(tiling.cell_blocks(reverse)))
        for rows in tiling.row_tiles():
            arriving = d_final[rows]
            for k, cells in reversed(blocks):
                tile = Tile(inputs, rows, cells)
                buffers = work.tile(*tile.u.shape[:2])
                entering = borders[k - 1, rows] if k else _rows(inputs.given.state, rows)
                fill_states(inputs, tile, buffers, entering)
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
            if grads.state is not None:
                grads.state[rows] = arriving
        return None, *grads.collect()


def _rows(tensor: Tensor | None, rows: slice) -> Tensor | None:
    return None if tensor is None else tensor[rows]


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

    def __init__(self, inputs: Inputs) -> None:
        self.of, self.given = inputs, inputs.given
        given = inputs.given
        over_cells = (given.u, given.delta, given.B, given.C, given.z, given.timesteps, given.state)
        self.u, self.delta, self.B, self.C, self.z, self.timesteps, self.state = map(_like, over_cells)
        self.rates = torch.zeros_like(inputs.rates)
        self.D, self.delta_bias, self.delta_a = map(_zeros, (given.D, given.delta_bias, given.delta_a))
        self._d_delta: Any = None

    def gate(self, tile: Tile, rows: slice, cells: slice, d_y: Tensor, states: Tensor) -> Tensor:
        """Gradients of z, D and C; gives that of the output before the gate."""
        d_out = d_y[rows, cells].to(states.dtype)
        if tile.z is not None:
            out = over_states(tile.c, states)
            if self.given.D is not None:
                out.addcmul_(self.given.D, tile.u)
            self.z[rows, cells] = torch.ops.aten.silu_backward(out.mul_(d_out), tile.z)
            d_out = d_out * F.silu(tile.z)
        if self.D is not None:
            self.D += (d_out * tile.u).sum((0, 1))
        self.C[rows, cells] = over_channels(d_out, states)
        return d_out

    def inputs(self, tile: Tile, rows: slice, cells: slice, d_out: Tensor, g: Tensor) -> None:
        """Gradients of B and u, and the part of delta's that comes through the input."""
        self.B[rows, cells] = over_channels(tile.w, g)
        d_w = over_states(tile.b, g)
        d_u = d_w * tile.delta if self.of.options.scaled_input else d_w
        if self.given.D is not None:
            d_u = torch.addcmul(d_u, d_out, self.given.D)
        self.u[rows, cells] = d_u
        self._d_delta = d_w.mul_(tile.u) if self.of.options.scaled_input else None

    def decays(self, tile: Tile, rows: slice, cells: slice, d_log: Tensor, scratch: Tensor) -> None:
        """Gradients of A and of the decay's step, from those of its logarithm, which are overwritten."""
        step = torch.mul(d_log, self.of.rates, out=scratch).sum(3).flatten(2)
        d_log.mul_(self.of.grouped(tile.delta_a))
        flat = d_log.view(-1, math.prod(self.of.inner))
        self.rates += torch.mm(flat.new_ones(1, flat.shape[0]), flat).view_as(self.rates)
        if self.given.delta_a is None:
            self._d_delta = step if self._d_delta is None else self._d_delta.add_(step)
            return
        if tile.present is not None:
            step = step * tile.present
        if tile.times is None:
            self.delta_a[rows, cells] = step
        else:
            self.delta_a += (step * tile.times.unsqueeze(-1)).sum((0, 1))
            self.timesteps[rows, cells] = step @ self.given.delta_a

    def finish(self, tile: Tile, rows: slice, cells: slice) -> None:
        """Gradients of delta and its bias."""
        d_delta = torch.zeros_like(tile.u) if self._d_delta is None else self._d_delta
        if tile.present is not None:
            d_delta = d_delta * tile.present
        if self.of.options.softplus:
            d_delta = torch.ops.aten.softplus_backward(d_delta, tile.raw, 1, 20)
        self.delta[rows, cells] = d_delta
        if self.delta_bias is not None:
            self.delta_bias += d_delta.sum((0, 1))

    def collect(self) -> Tensors:
        """All of them, in the order of the arguments."""
        d_a = self.rates.transpose(1, 2).reshape_as(self.given.A)
        through = (self.delta_bias, self.delta_a, self.timesteps, None, self.state, None, None)
        return Tensors(self.u, self.delta, d_a, self.B, self.C, self.D, self.z, *through)


def _zeros(tensor: Tensor | None) -> Any:
    return None if tensor is None else torch.zeros_like(tensor)


def _like(tensor: Tensor | None) -> Any:
    return None if tensor is None else torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
