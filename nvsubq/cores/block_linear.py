"""A linear layer whose matrix is block-diagonal."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


class BlockLinear(nn.Module):
    """`y_b = W_b x_b + bias_b` for each of n equal blocks of channels; starts as n `nn.Linear` would.

    Args:
        width: of input and output, `D`.
        blocks: n; it divides `width`.
        device, dtype: of the parameters.

    Raises:
        ValueError: `blocks` that do not divide `width`.

    Example:
        >>> layer = BlockLinear(6, 3)
        >>> layer.weight.shape, layer(torch.ones(2, 6)).shape
        (torch.Size([3, 2, 2]), torch.Size([2, 6]))
    """

    def __init__(
        self,
        width: int,
        blocks: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if blocks < 1 or width % blocks:
            raise ValueError(f"`blocks` (={blocks}) must divide `width` (={width}).")
        each = width // blocks
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty(blocks, each, each, **made))  # block, output, input
        self.bias = nn.Parameter(torch.empty(width, **made))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw both anew from torch's generator, uniform within 1/sqrt of a block's width."""
        bound = 1 / math.sqrt(self.weight.shape[-1])
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def logits(self, x: Tensor) -> Tensor:
        """The blocks' products `[..., D]`, without the bias."""
        blocks, each, _ = self.weight.shape
        rows = x.unflatten(-1, (blocks, each)).unsqueeze(-2)  # (..., n, 1, D/n)
        return torch.matmul(rows, self.weight.transpose(1, 2)).flatten(-3)

    def forward(self, x: Tensor) -> Tensor:
        """Map `x` `[..., D]` to `[..., D]`."""
        return self.logits(x) + self.bias

    def extra_repr(self) -> str:
        return f"width={len(self.bias)}, blocks={len(self.weight)}"
