"""Weights of Mamba cores that run together, as products and ops take them, and their gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from nvsubq.ops.numerics import accumulation_dtype

_ALIGNED = 8  # columns of a product that tensor cores take at full speed in half precision


class MambaWeights(NamedTuple):
    """Those of one core, in the shapes that its layers have them."""

    in_proj: Tensor  # [2D, C]: x, z
    conv_weight: Tensor  # [D, 1, K]
    conv_bias: Tensor | None  # [D]
    x_proj: Tensor  # [R + 2N, D]: d, B, C
    dt_proj: Tensor  # [D, R]
    dt_bias: Tensor  # [D]
    A_log: Tensor  # [D, N]
    D: Tensor  # [D]
    out_proj: Tensor  # [C, D]

    def products(self) -> tuple[Tensor, ...]:
        """The weights of matrix products, which autocast casts."""
        return self.in_proj, self.x_proj, self.dt_proj, self.out_proj


class Joined:
    """The weights of S cores, each kind side by side and cast once for forward and backward.

    Args:
        cores: their weights.
        dtype: of the products.
    """

    def __init__(self, cores: Sequence[MambaWeights], dtype: torch.dtype) -> None:
        first = cores[0]
        self.width, self.rank = first.dt_proj.shape
        self.states = first.A_log.shape[1]
        self.padding = -self.rank % _ALIGNED  # columns of zeros after those of d
        S, D, R, dense = len(cores), self.width, self.rank, self.rank + self.padding
        self.in_proj = _cast([core.in_proj for core in cores], dtype)  # [S 2D, C]
        x_proj, dt_proj = [core.x_proj for core in cores], [core.dt_proj for core in cores]
        if self.padding:
            x_zeros, dt_zeros = (
                first.x_proj.new_zeros(self.padding, D),
                first.dt_proj.new_zeros(D, self.padding),
            )
            x_proj = [part for weight in x_proj for part in (weight[:R], x_zeros, weight[R:])]
            dt_proj = [torch.cat([weight, dt_zeros], dim=1) for weight in dt_proj]
        self.x_proj = _cast(x_proj, dtype).view(S, -1, D).unbind()  # [R + padding + 2N, D] each
        self.dt_proj = _cast(dt_proj, dtype).view(S, D, dense).unbind()
        exact = accumulation_dtype(first.A_log)
        self.conv = [(core.conv_weight.squeeze(1), core.conv_bias) for core in cores]
        self.A = [_exactly(core.A_log, exact).exp().neg_() for core in cores]
        self.D = [_exactly(core.D, exact) for core in cores]
        self.dt_bias = [_exactly(core.dt_bias, exact) for core in cores]

    @property
    def splits(self) -> tuple[int, int, int]:
        """Columns of x_dbl: d and zeros, B, C."""
        return self.rank + self.padding, self.states, self.states

    def without_padding(self, d_x_proj: Tensor, d_dt_proj: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients `[S, R + padding + 2N, D]` and `[S, D, R + padding]` in the shapes of the layers."""
        if not self.padding:
            return d_x_proj, d_dt_proj
        R = self.rank
        rows = torch.cat([d_x_proj[:, :R], d_x_proj[:, R + self.padding :]], dim=1)
        return rows, d_dt_proj[..., :R].contiguous()


def _cast(tensors: list[Tensor], dtype: torch.dtype, dim: int = 0) -> Tensor:
    """They beside each other in `dtype`."""
    shape = list(tensors[0].shape)
    shape[dim] = sum([tensor.shape[dim] for tensor in tensors])
    return torch.cat(tensors, dim=dim, out=tensors[0].new_empty(shape, dtype=dtype))


def join_last(weights: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """`out_proj` of all cores, `[C, S D]`."""
    return _cast(list(weights), dtype, dim=1)


def _exactly(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor if tensor.dtype == dtype else tensor.to(dtype)
