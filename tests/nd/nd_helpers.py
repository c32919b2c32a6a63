"""Small causal cores to wrap: one that knows the walk's keywords, one that does not, and a foreign one."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PlainCore(nn.Module):
    """A leaky sum over the sequence, then a linear map: causal, and different in its two directions."""

    def __init__(self, d_model: int, layer_idx: int | None = None, *, decay: float = 0.7) -> None:
        super().__init__()
        if d_model < 1:
            raise ValueError(f"`d_model` (={d_model}) must be positive.")
        self.d_model, self.layer_idx, self.decay = d_model, layer_idx, decay
        self.proj = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor) -> Tensor:
        out = [torch.zeros_like(x[:, 0])] if x.shape[1] else []
        for k in range(x.shape[1]):
            out.append(self.decay * out[-1] + x[:, k])
        return torch.tanh(self.proj(torch.stack(out[1:], 1))) if out else self.proj(x)


class WalkingCore(PlainCore):
    """The same core with `order` and `reverse`; counts how often it was given one, or asked to walk back."""

    walks_back = 0
    orders = 0

    def forward(self, x: Tensor, order: Tensor | None = None, reverse: bool = False) -> Tensor:
        self.walks_back += int(reverse)
        self.orders += int(order is not None)
        walk = torch.arange(x.shape[1]) if order is None else order
        walk = walk.flip(0) if reverse else walk
        return super().forward(x[:, walk])[:, walk.argsort()]


class ForeignGRU(nn.Module):
    """A module of another package: `[B, L, C]` to `[B, L, C]`, its width under another name."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gru = nn.GRU(width, width, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.gru(x)[0]


class SeesAll(nn.Module):
    """A core that is not causal, and says so."""

    causal = False

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.d_model = d_model
        self.proj = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x + x.mean(1, keepdim=True))
