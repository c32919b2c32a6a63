"""The pre-norm residual block, and what it is made of."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvsubq.models.edges import convolve
from nvsubq.models.patch import CONVOLUTIONS
from nvsubq.ops.slabs import Slabs

__all__ = ["MLP", "NORMS", "Block", "DropPath", "LocalConv", "make_norm"]

NORMS = ("layernorm", "rmsnorm")


def make_norm(norm: str, dim: int) -> nn.Module:
    """A normalisation of the last axis: one fused pass over memory either way."""
    if norm not in NORMS:
        raise ValueError(f"`norm` (={norm!r}) must be one of {', '.join(map(repr, NORMS))}.")
    return nn.LayerNorm(dim) if norm == "layernorm" else nn.RMSNorm(dim, eps=1e-6)


class MLP(nn.Module):
    """Linear, GELU, linear on the last axis.

    Args:
        dim: width at both ends.
        hidden: width between.
        drop_rate: dropout after each linear map.
    """

    def __init__(self, dim: int, hidden: int, drop_rate: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.drop_rate = drop_rate

    def forward(self, x: Tensor) -> Tensor:
        """Map `[..., dim]` to `[..., dim]`."""
        x = F.dropout(F.gelu(self.fc1(x)), self.drop_rate, self.training)
        return F.dropout(self.fc2(x), self.drop_rate, self.training)


class DropPath(nn.Module):
    """Stochastic depth: in training, drop a residual branch for a whole sample (arXiv:1603.09382).

    Args:
        rate: probability that a sample's branch is dropped; the others are scaled by 1 / (1 - rate).
    """

    slabs: Slabs | None = None

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, ...]` to the same shape."""
        if not self.training or self.rate == 0:
            return x
        keep = x.new_empty(x.shape[0], *[1] * (x.dim() - 1)).bernoulli_(1 - self.rate)
        if self.slabs is not None:  # a sample lies in all slabs
            keep = self.slabs.same(keep)
        return x * keep.div_(1 - self.rate)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3g}"


class LocalConv(nn.Module):
    """A depthwise convolution over the cells of a channels-last field.

    Args:
        spatial_dims: rank of the field.
        dim: channels `C`.
        kernel_size: an odd number of cells along each axis.

    Example:
        >>> LocalConv(2, 8, 3)(torch.randn(2, 5, 7, 8)).shape
        torch.Size([2, 5, 7, 8])
    """

    slabs: Slabs | None = None

    def __init__(self, spatial_dims: int, dim: int, kernel_size: int) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"`local_conv` (={kernel_size}) must be odd: a cell lies in its middle.")
        self.conv = CONVOLUTIONS[spatial_dims](dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, *grid, C]` to the same shape."""
        return convolve(self.conv, x.movedim(-1, 1), self.slabs).movedim(1, -1)


class Block(nn.Module):
    """``x + mixer(norm(x))``, then ``x + mlp(norm(x))``, on channels-last fields `[B, *grid, C]`.

    With `local_conv` before both ``x + conv(x)``: what is near along an axis may be far along the walk.

    Args:
        dim: width `C`.
        mixer: a module that maps `[B, *grid, C]` to the same shape.
        mlp_ratio: hidden width of the MLP over `C`; 0 leaves the MLP out.
        norm: "layernorm" or "rmsnorm".
        drop_rate: dropout in the MLP.
        drop_path_rate: stochastic depth of both branches.
        local_conv: a `LocalConv`, or None.

    Example:
        >>> import torch
        >>> Block(8, nn.Identity())(torch.randn(2, 3, 5, 8)).shape
        torch.Size([2, 3, 5, 8])
    """

    def __init__(
        self,
        dim: int,
        mixer: nn.Module,
        *,
        mlp_ratio: float = 2.0,
        norm: str = "layernorm",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        local_conv: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.local_conv = local_conv
        self.norm1 = make_norm(norm, dim)
        self.mixer = mixer
        hidden = round(dim * mlp_ratio)
        self.norm2 = make_norm(norm, dim) if hidden else None
        self.mlp = MLP(dim, hidden, drop_rate) if hidden else None
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor, spatial: torch.Size | None = None) -> Tensor:
        """Map `[B, *grid, C]` to the same shape; given `spatial`, cells and a token, `[B, L + 1, C]`."""
        if self.local_conv is not None:
            x = x + self._near(x, spatial)
        mixed = self.mixer(self.norm1(x)) if spatial is None else self.mixer(self.norm1(x), spatial)
        x = x + self.drop_path(mixed)
        if self.mlp is not None and self.norm2 is not None:
            x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x

    def _near(self, x: Tensor, spatial: torch.Size | None) -> Tensor:
        assert self.local_conv is not None
        if spatial is None:
            return self.local_conv(x)
        cells = self.local_conv(x[:, :-1].unflatten(1, spatial)).flatten(1, -2)
        return torch.cat([cells, torch.zeros_like(x[:, -1:])], 1)  # a token has no neighbours


def drop_path_rates(depth: int, rate: float) -> list[float]:
    """Rates that rise linearly from 0 at the first block to `rate` at the last.

    Example:
        >>> drop_path_rates(3, 0.5)
        [0.0, 0.25, 0.5]
    """
    return torch.linspace(0, rate, depth).tolist() if depth > 1 else [rate] * depth
