"""Mixers for model tests: cheap ones that still mix, and a record of how they were built."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Smear(nn.Module):
    """Mix every cell with the mean of all; any rank."""

    def __init__(self, d_model: int, layer_idx: int | None = None) -> None:
        super().__init__()
        self.d_model, self.layer_idx = d_model, layer_idx
        self.proj = nn.Linear(d_model, d_model)
        self.decay = nn.Parameter(torch.zeros(d_model, d_model))
        self.decay._no_weight_decay = True

    def forward(self, x: Tensor) -> Tensor:
        spatial = tuple(range(1, x.dim() - 1))
        return self.proj(x + x.mean(spatial, keepdim=True)) + x @ self.decay


class Through(nn.Module):
    """A mixer around a built module."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)
