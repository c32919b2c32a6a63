"""From a channels-first field to channels-last tokens, and back to full resolution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvsubq.models.edges import check_cut, convolve
from nvsubq.ops.slabs import Slabs

__all__ = ["ConvNd", "ConvStem", "PatchEmbed", "PatchExpand", "PatchMerge"]

CONVOLUTIONS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class ConvNd(nn.Module):
    """A convolution of a channels-last field, with an odd kernel: n cells become ceil(n / stride).

    The channels-first view that it hands to the convolution is what torch calls channels_last memory; 3-D
    convolutions of a few channels run two to three times faster in it on a CPU.

    Args:
        spatial_dims: rank of the field.
        in_channels, out_channels: widths.
        kernel_size, stride: one for each axis.
    """

    slabs: Slabs | None = None

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: Sequence[int],
        stride: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        padding = tuple(size // 2 for size in kernel_size)
        stride = tuple(stride or (1,) * spatial_dims)
        self.conv = CONVOLUTIONS[spatial_dims](
            in_channels, out_channels, tuple(kernel_size), stride=stride, padding=padding
        )
        # torch's default shrinks the signal sixfold with each ReLU; no norm follows that would scale it back.
        nn.init.kaiming_normal_(self.conv.weight, nonlinearity="relu")
        nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, *spatial, in_channels]` to `[B, *spatial / stride, out_channels]`."""
        return convolve(self.conv, x.movedim(-1, 1), self.slabs).movedim(1, -1)


class PatchWeights(nn.Module):
    """Weight and bias of a convolution of a rank for which torch has none, drawn as those of its own.

    Args:
        in_channels, out_channels: widths.
        kernel_size: one for each axis.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: Sequence[int]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, *kernel_size))
        self.bias = nn.Parameter(torch.empty(out_channels))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        bound = (in_channels * math.prod(kernel_size)) ** -0.5
        nn.init.uniform_(self.bias, -bound, bound)


class PatchEmbed(nn.Module):
    """A strided convolution whose kernel is its stride, written as one matrix product over patches.

    Sizes that the patch does not divide are filled with zeros at the far end, so that every token has a real
    cell. `weight` is that of the convolution, `[dim, in_channels, *patch]`.

    Args:
        in_channels: channels of the field.
        dim: channels of a token.
        patch_size: cells of a patch along each axis.

    Example:
        >>> import torch
        >>> PatchEmbed(1, 16, patch_size=(4, 4))(torch.randn(2, 1, 28, 30)).shape
        torch.Size([2, 7, 8, 16])
    """

    slabs: Slabs | None = None

    def __init__(self, in_channels: int, dim: int, *, patch_size: Sequence[int]) -> None:
        super().__init__()
        self.patch_size = tuple(patch_size)
        conv = CONVOLUTIONS.get(len(self.patch_size))
        if conv is None:
            self.proj = PatchWeights(in_channels, dim, self.patch_size)
        else:
            self.proj = conv(in_channels, dim, self.patch_size, stride=self.patch_size)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, in_channels, *spatial]` to `[B, *grid, dim]`."""
        if self.slabs is not None:
            check_cut(self.slabs, x, axis=2, multiple=self.patch_size[0])
        missing = [-size % patch for size, patch in zip(x.shape[2:], self.patch_size, strict=True)]
        if any(missing):
            x = F.pad(x, [amount for size in reversed(missing) for amount in (0, size)])
        batch, channels, *spatial = x.shape
        rank = len(spatial)
        grid = [size // patch for size, patch in zip(spatial, self.patch_size, strict=True)]
        pairs = [n for pair in zip(grid, self.patch_size, strict=True) for n in pair]
        cells = x.reshape(batch, channels, *pairs)  # (B, C_in, g1, p1, g2, p2, ...)
        cells = cells.permute(0, *range(2, 2 + 2 * rank, 2), 1, *range(3, 3 + 2 * rank, 2))
        patches = cells.reshape(batch, *grid, channels * math.prod(self.patch_size))
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)

    def extra_repr(self) -> str:
        return f"patch_size={self.patch_size}"


class ConvStem(nn.Module):
    """Small strided convolutions in place of one large one (Xiao et al., arXiv:2106.14881).

    One convolution for each prime factor of the patch, each with an odd kernel of at least 3 and GELU between
    them; its grid is that of `PatchEmbed`. The width doubles at each step and ends at `dim`.

    Args:
        in_channels: channels of the field.
        dim: channels of a token.
        patch_size: cells of a patch along each axis: the product of the strides.

    Example:
        >>> import torch
        >>> ConvStem(1, 16, patch_size=(4, 4))(torch.randn(2, 1, 28, 30)).shape
        torch.Size([2, 7, 8, 16])
    """

    def __init__(self, in_channels: int, dim: int, *, patch_size: Sequence[int]) -> None:
        super().__init__()
        rank = len(patch_size)
        factors = [_prime_factors(size) for size in patch_size]
        steps = max(1, *map(len, factors))
        # Axes with fewer factors keep their size in the first steps.
        strides = list(zip(*([1] * (steps - len(f)) + f for f in factors), strict=True))
        widths = [in_channels, *(max(8, dim >> (steps - 1 - i)) for i in range(steps - 1)), dim]
        self.convs = nn.ModuleList(
            ConvNd(rank, widths[i], widths[i + 1], kernel_size=[max(3, s | 1) for s in stride], stride=stride)
            for i, stride in enumerate(strides)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, in_channels, *spatial]` to `[B, *grid, dim]`."""
        x = x.movedim(1, -1)
        for i, conv in enumerate(self.convs):
            x = conv(F.gelu(x) if i else x)
        return x


class PatchMerge(nn.Module):
    """Half the grid along every axis: a linear map of the 2^rank tokens that become one.

    Odd sizes are filled with zeros at the far end, so that every token has a real one below it.

    Args:
        spatial_dims: rank of the grid.
        dim: channels of a token.
        out_dim: channels of a merged one.

    Example:
        >>> import torch
        >>> PatchMerge(2, 8, 16)(torch.randn(2, 7, 8, 8)).shape
        torch.Size([2, 4, 4, 16])
    """

    slabs: Slabs | None = None

    def __init__(self, spatial_dims: int, dim: int, out_dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim * 2**spatial_dims, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, *grid, dim]` to `[B, *ceil(grid / 2), out_dim]`."""
        if self.slabs is not None:
            check_cut(self.slabs, x, axis=1, multiple=2)
        batch, *grid, dim = x.shape
        if any(size % 2 for size in grid):
            x = F.pad(x, [0, 0, *(amount for size in reversed(grid) for amount in (0, size % 2))])
        half = [-(-size // 2) for size in grid]
        rank = len(grid)
        x = x.reshape(batch, *(n for size in half for n in (size, 2)), dim)  # (B, g1, 2, g2, 2, ..., C)
        x = x.permute(0, *range(1, 1 + 2 * rank, 2), *range(2, 2 + 2 * rank, 2), 1 + 2 * rank)
        return self.proj(x.reshape(batch, *half, dim * 2**rank))


class PatchExpand(nn.Module):
    """The way back: a linear map from each token to the cells of its patch (the transpose of `PatchEmbed`).

    Args:
        dim: channels of a token.
        out_channels: channels of a cell.
        patch_size: cells of a patch along each axis.

    Example:
        >>> import torch
        >>> PatchExpand(16, 3, patch_size=(4, 4))(torch.randn(2, 7, 8, 16), (28, 30)).shape
        torch.Size([2, 28, 30, 3])
    """

    def __init__(self, dim: int, out_channels: int, *, patch_size: Sequence[int]) -> None:
        super().__init__()
        self.patch_size = tuple(patch_size)
        self.out_channels = out_channels
        self.proj = nn.Linear(dim, out_channels * math.prod(self.patch_size))

    def forward(self, tokens: Tensor, spatial: Sequence[int]) -> Tensor:
        """Map `[B, *grid, dim]` to `[B, *spatial, out_channels]`, cutting off what lies beyond `spatial`."""
        batch, *grid, _ = tokens.shape
        rank = len(grid)
        cells = self.proj(tokens).reshape(batch, *grid, *self.patch_size, self.out_channels)
        order = [axis for i in range(rank) for axis in (1 + i, 1 + rank + i)]  # g1, p1, g2, p2, ...
        full = [size * patch for size, patch in zip(grid, self.patch_size, strict=True)]
        cells = cells.permute(0, *order, 1 + 2 * rank).reshape(batch, *full, self.out_channels)
        return cells[(slice(None), *(slice(0, size) for size in spatial))]


def _prime_factors(n: int) -> list[int]:
    factors, divisor = [], 2
    while n > 1:
        while n % divisor == 0:
            factors.append(divisor)
            n //= divisor
        divisor += 1
    return factors[::-1]
