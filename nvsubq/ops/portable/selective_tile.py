"""A tile of the fast `selective_scan`: its small tensors, its buffers, its decays and states.

States are laid out `[rows, cells, G, N, D/G]`: channels last, so that every broadcast runs over contiguous
channels, and the sums over N or D are batched matrix products. One workspace serves all tiles of a call.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nvsubq.ops.portable.recurrence import Bound, Tiling, Tree, first_cell, scan_
from nvsubq.ops.portable.selective_tensors import Tensors

# exp2 is several times faster than exp on a CPU, where the latter goes through a library call.
_LOG2_E = math.log2(math.e)


@dataclass(frozen=True)
class Options:
    """What is not a tensor: softplus on delta, whether delta scales the input, the direction, the cut."""

    softplus: bool
    scaled_input: bool
    reverse: bool
    tiling: Tiling


class Workspace:
    """Buffers of one call and, per shape of a tile, the views of them that the scans use."""

    def __init__(self, like: Tensor, inner: tuple[int, ...], options: Options, backward: bool) -> None:
        tile = options.tiling.rows * options.tiling.cells * math.prod(inner)
        self._buffers = [like.new_empty(tile) for _ in range(3 if backward else 2)]
        self._inner, self._reverse = inner, options.reverse
        self._shapes: dict[tuple[int, int], tuple] = {}

    def tile(self, rows: int, cells: int) -> tuple[Tensor, Tree, list[Tensor], list[Bound]]:
        """Give decays, their tree, the other buffers and their scans: states, then (backward) gradients."""
        if (rows, cells) not in self._shapes:
            shape = (rows, cells, *self._inner)
            decay, *states = (buffer[: math.prod(shape)].view(shape) for buffer in self._buffers)
            tree = Tree(decay, self._reverse)
            self._shapes[rows, cells] = decay, tree, states, [tree.bind(s) for s in states]
        return self._shapes[rows, cells]


class Inputs:
    """The tensors of a call, and how a tile of them becomes decays and inputs of the recurrence."""

    def __init__(self, options: Options, tensors: Tensors) -> None:
        self.given = tensors
        self.options = options
        self.groups, d_state = tensors.B.shape[2:]
        self.inner = (self.groups, d_state, tensors.u.shape[2] // self.groups)
        self.rates = tensors.A.unflatten(0, (self.groups, -1)).transpose(1, 2).contiguous()  # (G, N, D/G)
        self.rates2 = self.rates * _LOG2_E

    def cut(self, tensor: Any, rows: slice, cells: slice) -> Any:
        """One tile of a tensor over cells, in the dtype of the recurrence."""
        return None if tensor is None else tensor[rows, cells].to(self.rates.dtype)

    def grouped(self, tensor: Tensor) -> Tensor:
        """`[R, T, D]` as `[R, T, G, 1, D/G]`."""
        return tensor.unflatten(2, (self.groups, 1, -1))


class Tile:
    """The small tensors `[R, T, D]` of one tile."""

    def __init__(self, inputs: Inputs, rows: slice, cells: slice) -> None:
        given, cut = inputs.given, inputs.cut
        self.u = cut(given.u, rows, cells)
        raw = cut(given.delta, rows, cells)
        self.raw = raw if given.delta_bias is None else raw + given.delta_bias
        delta = F.softplus(self.raw) if inputs.options.softplus else self.raw
        self.present = None if given.present is None else given.present[rows, cells, None]
        self.delta = delta if self.present is None else delta * self.present
        self.keep = None if given.keep is None else given.keep[rows, cells, :, None, None]
        self.times = cut(given.timesteps, rows, cells)
        self.delta_a = self._decay_step(inputs, rows, cells)
        self.b = cut(given.B, rows, cells)  # (R, T, G, N)
        self.c = cut(given.C, rows, cells)
        self.w = self.delta * self.u if inputs.options.scaled_input else self.u
        self.z = cut(given.z, rows, cells)

    def _decay_step(self, inputs: Inputs, rows: slice, cells: slice) -> Tensor:
        if inputs.given.delta_a is None:
            return self.delta
        if self.times is not None:
            step = self.times.unsqueeze(-1) * inputs.given.delta_a
        else:
            step = inputs.cut(inputs.given.delta_a, rows, cells)
        return step if self.present is None else step * self.present


def fill_states(inputs: Inputs, tile: Tile, work: tuple, carry: Tensor | None) -> None:
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


def over_states(weights: Tensor, states: Tensor) -> Tensor:
    """Sum over N: `[R, T, G, N]` and `[R, T, G, N, D/G]` give `[R, T, D]`."""
    rows, cells, groups, n, width = states.shape
    summed = torch.bmm(weights.reshape(-1, 1, n), states.view(-1, n, width))
    return summed.view(rows, cells, groups * width)


def over_channels(values: Tensor, states: Tensor) -> Tensor:
    """Sum over channels: `[R, T, D]` and `[R, T, G, N, D/G]` give `[R, T, G, N]`."""
    rows, cells, groups, n, width = states.shape
    summed = torch.bmm(values.reshape(-1, 1, width), states.view(-1, n, width).transpose(1, 2))
    return summed.view(rows, cells, groups, n)
