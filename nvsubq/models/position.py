"""Position embeddings for grids of any rank and, at run time, any size."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from nvsubq.ops.slabs import Slabs

__all__ = ["POSITIONS", "PositionEmbedding"]

POSITIONS = ("sincos", "axes", "learned", "none")
LONGEST = 100.0  # wavelengths of "sincos" run from 2 pi to 100 * 2 pi cells
INTERPOLATION = {1: "linear", 2: "bilinear", 3: "trilinear"}
CACHED_GRIDS = 8


class PositionEmbedding(nn.Module):
    """Add a code of its place to every cell of a channels-last grid.

    * "sincos": sines and cosines of each axis on a share of the channels, times a learned gain for each
      channel; needs no grid size and is the same function of the place on every grid.
    * "axes": one learned table for each axis, summed. * "learned": one learned vector for each cell.
      Both are resized by linear interpolation where the grid differs from the one they were made for.
    * "none": nothing.

    Args:
        kind: one of those.
        dim: channels `C`.
        grid: the grid that "axes" and "learned" are made for.

    Example:
        >>> import torch
        >>> PositionEmbedding("axes", 8, (7, 7))(torch.zeros(2, 5, 9, 8)).shape
        torch.Size([2, 5, 9, 8])
    """

    slabs: Slabs | None = None

    def __init__(self, kind: str, dim: int, grid: Sequence[int] | None = None) -> None:
        super().__init__()
        if kind not in POSITIONS:
            raise ValueError(f"`pos_embed` (={kind!r}) must be one of {', '.join(map(repr, POSITIONS))}.")
        if kind in ("axes", "learned") and grid is None:
            raise ValueError(f"`pos_embed` (={kind!r}) needs `img_size`; 'sincos' and 'none' do without.")
        self.kind = kind
        sizes = tuple(grid or ())
        if kind == "learned":
            self.table = nn.Parameter(nn.init.trunc_normal_(torch.empty(*sizes, dim), std=0.02))
        elif kind == "axes":
            self.tables = nn.ParameterList(
                nn.Parameter(nn.init.trunc_normal_(torch.empty(size, dim), std=0.02)) for size in sizes
            )
        elif kind == "sincos":
            self.gain = nn.Parameter(torch.full((dim,), 0.5))
        self._cache: dict[tuple, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Add the codes to `x` `[B, *grid, C]`."""
        grid, own = x.shape[1:-1], slice(None)
        if self.slabs is not None and self.kind != "none":  # the code of a place in the whole field
            sizes = self.slabs.layout(x.shape)
            first = sum(sizes[: self.slabs.rank])
            own = slice(first, first + grid[0])
            grid = torch.Size((sum(sizes), *grid[1:]))
        if self.kind == "sincos":
            return x + (self._sincos(grid, x.shape[-1], x.device, own) * self.gain).to(x.dtype)
        if self.kind == "learned":
            return x + _resized(self.table, grid)[own].to(x.dtype)
        if self.kind == "axes":
            for axis, table in enumerate(self.tables):
                shape = [1] * len(grid)
                shape[axis] = -1
                code = _resized(table, (grid[axis],))[own if axis == 0 else slice(None)]
                x = x + code.reshape(*shape, table.shape[-1]).to(x.dtype)
        return x

    @torch.no_grad()
    def resize(self, grid: Sequence[int] | None) -> None:
        """Interpolate learned tables to another grid, for good."""
        if grid is None or self.kind not in ("axes", "learned"):
            return
        if self.kind == "learned":
            self.table = nn.Parameter(_resized(self.table, grid).clone())
        else:
            pairs = zip(self.tables, grid, strict=True)
            self.tables = nn.ParameterList(nn.Parameter(_resized(t, (n,)).clone()) for t, n in pairs)

    def _sincos(self, grid: torch.Size, dim: int, device: torch.device, own: slice) -> Tensor:
        key = (tuple(grid), device, own.start, own.stop)
        if key not in self._cache:
            if len(self._cache) >= CACHED_GRIDS:
                self._cache.pop(next(iter(self._cache)))
            # A table made under inference_mode (validation runs first) could never be saved for backward, and
            # one made while a mode traces would be a fake tensor for good. Dynamo can't trace past modes and
            # caches no fake tensors itself.
            modeless = nullcontext if torch.compiler.is_dynamo_compiling() else _disable_current_modes
            with modeless(), torch.inference_mode(False), torch.no_grad():
                self._cache[key] = sincos_table(grid, dim, own).to(device)
        return self._cache[key]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_cache": {}}

    def extra_repr(self) -> str:
        return self.kind


def sincos_table(grid: Sequence[int], dim: int, planes: slice = slice(None)) -> Tensor:
    """Sines and cosines of the cell's index along each axis, `[*grid, dim]`; channels left over stay 0.

    With `planes` those of these cells of the first axis alone.
    """
    pairs = max(1, dim // (2 * len(grid)))
    rates = LONGEST ** -(torch.arange(pairs, dtype=torch.float64) / pairs)
    places = [torch.arange(size, dtype=torch.float64) for size in grid]
    places[0] = places[0][planes]
    table = torch.zeros(*map(len, places), dim)
    for axis, place in enumerate(places):
        size, angles = len(place), place[:, None] * rates
        codes = torch.cat([angles.sin(), angles.cos()], dim=1).float()  # (size, 2 pairs)
        first = 2 * pairs * axis
        room = max(
            0, min(2 * pairs, dim - first)
        )  # fewer channels than 2 an axis: the last axes get what is left
        shape = [1] * len(grid)
        shape[axis] = size
        table[..., first : first + room] = codes[:, :room].reshape(*shape, room)
    return table


def _resized(table: Tensor, grid: Sequence[int]) -> Tensor:
    """`table` `[*old, C]` interpolated linearly to `[*grid, C]`; itself where the grids agree."""
    if tuple(table.shape[:-1]) == tuple(grid):
        return table
    field = table.movedim(-1, 0)[None]
    mode = INTERPOLATION[len(grid)]
    return F.interpolate(field, size=tuple(grid), mode=mode, align_corners=False)[0].movedim(0, -1)
