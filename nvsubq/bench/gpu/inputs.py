"""Tensors of realistic values for each op, the same in every run."""

from __future__ import annotations

import torch
from torch import Tensor

from nvsubq.bench.gpu.cases import STATES, TAPS, Size

Tensors = dict[str, Tensor]


class Source:
    """Random tensors on a device.

    Args:
        device: where they are made.
        seed: of all that follow.
    """

    def __init__(self, device: torch.device, seed: int = 0) -> None:
        self.device = device
        self.generator = torch.Generator(device).manual_seed(seed)

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*shape, generator=self.generator, device=self.device, dtype=dtype)

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        return torch.empty(*shape, device=self.device).uniform_(low, high, generator=self.generator)


def of_scan(size: Size, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> Tensors:
    """Of `selective_scan`: delta is small after bias and softplus, A near -(1, ..., N) but free."""
    source = Source(device)
    _, _, width = size.shape
    rates = torch.arange(1.0, STATES + 1, device=device)
    return {
        "u": source.normal(*size.shape, dtype=dtype),
        "delta": source.normal(*size.shape, dtype=dtype) / 2,
        "A": -rates * source.uniform(0.9, 1.1, width, STATES),
        "B": source.normal(size.batch, size.length, STATES, dtype=dtype),
        "C": source.normal(size.batch, size.length, STATES, dtype=dtype),
        "D": source.normal(width),
        "z": source.normal(*size.shape, dtype=dtype),
        "delta_bias": source.uniform(-4, -1, width),
    }


def of_linear(size: Size, device: torch.device) -> Tensors:
    """Of `linear_scan`: decays as those of a trained gate."""
    source = Source(device)
    return {"a": source.uniform(0.9, 0.999, *size.shape), "b": source.normal(*size.shape)}


def of_rglru(size: Size, device: torch.device, dtype: torch.dtype) -> Tensors:
    """Of `rglru_scan`, without its gate."""
    source = Source(device)
    return {
        "x": source.normal(*size.shape, dtype=dtype),
        "r": source.normal(*size.shape, dtype=dtype),
        "i": source.normal(*size.shape, dtype=dtype),
        "a_log": source.uniform(2, 7, size.width),
        "r_bias": source.normal(size.width),
        "i_bias": source.normal(size.width),
    }


def of_conv(size: Size, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> Tensors:
    """Of `causal_conv1d`; weights are parameters, so fp32."""
    source = Source(device)
    return {
        "x": source.normal(*size.shape, dtype=dtype),
        "weight": source.normal(size.width, TAPS) / 2,
        "bias": source.normal(size.width),
    }
