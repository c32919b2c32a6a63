"""Weights of Mamba cores that run together, as products and ops take them, and their gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

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
    """The weights of S cores, cast once for forward and backward.

    Args:
        cores: their weights.
        dtype: of the products.
    """

    def __init__(self, cores: Sequence[MambaWeights], dtype: torch.dtype) -> None:
        first = cores[0]
        self.width, self.rank = D, R = tuple(first.dt_proj.shape)
        N = self.states = first.A_log.shape[1]
        self.padding = -R % _ALIGNED  # columns of zeros after those of d
        dense, C = R + self.padding, first.in_proj.shape[1]
        self.columns = dense + 2 * N  # of x_dbl: d and zeros, B, C
        count, sizes = len(cores), (2 * D * C, self.columns * D, D * dense)
        make = first.in_proj.new_zeros if self.padding else first.in_proj.new_empty
        every, low, dt = make(count * sum(sizes), dtype=dtype).split([count * size for size in sizes])
        self.in_proj = every.view(-1, C)  # [S 2D, C], of every core x and z
        self.own_in_proj = self.in_proj.view(count, 2 * D, C).unbind()
        self.x_proj = low.view(count, self.columns, D).unbind()
        self.dt_proj = dt.view(count, D, dense).unbind()
        to, given = [*self.own_in_proj], [core.in_proj for core in cores]
        for core, x_proj, dt_proj in zip(cores, self.x_proj, self.dt_proj, strict=True):
            if self.padding:
                to += [x_proj[:R], x_proj[dense:]]
                given += [core.x_proj[:R], core.x_proj[R:]]
                dt_proj[:, :R].copy_(core.dt_proj)
            else:
                to += [x_proj, dt_proj]
                given += [core.x_proj, core.dt_proj]
        torch._foreach_copy_(to, given)
        exact = accumulation_dtype(first.A_log)
        self.conv = [(core.conv_weight.squeeze(1), core.conv_bias) for core in cores]
        self.A: Any = torch._foreach_exp([_exactly(core.A_log, exact) for core in cores])
        torch._foreach_neg_(self.A)
        self.D = [_exactly(core.D, exact) for core in cores]
        self.dt_bias = [_exactly(core.dt_bias, exact) for core in cores]

    def without_padding(self, d_x_proj: Tensor, d_dt_proj: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients `[R + padding + 2N, D]` and `[D, R + padding]` in the shapes of the layers."""
        if not self.padding:
            return d_x_proj, d_dt_proj
        R = self.rank
        return torch.cat([d_x_proj[:R], d_x_proj[R + self.padding :]]), d_dt_proj[:, :R].contiguous()


def join_last(weights: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """`out_proj` of all cores, `[C, S D]`."""
    C, D = weights[0].shape
    return torch.cat(list(weights), dim=1, out=weights[0].new_empty(C, len(weights) * D, dtype=dtype))  # type: ignore[no-any-return]


_CASTS = "dtype" in torch.ops.aten.mm.overloads()  # torch >= 2.8


def product(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """Their product as the gradient of a weight of this dtype: not rounded on the way where torch can."""
    if left.dtype == dtype:
        return torch.mm(left, right)
    if _CASTS and dtype == torch.float32 and left.is_cuda and left.dtype in (torch.bfloat16, torch.float16):
        return torch.mm(left, right, out_dtype=dtype)  # type: ignore[no-any-return]
    return torch.mm(left, right).to(dtype)


def _exactly(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor if tensor.dtype == dtype else tensor.to(dtype)
