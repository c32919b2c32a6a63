"""By how much a whole walk multiplies the state that it began with, from the arguments of its scan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["total_decay"]

_ELEMENTS = 1 << 24  # of a temporary


def total_decay(name: str, given: Mapping[str, Any]) -> Tensor | None:
    """The product of a walk's decays, in fp64, broadcastable to the state; None where no short formula is.

    Args:
        name: of the op.
        given: its arguments by name.

    Example:
        >>> import torch
        >>> given = {"a": torch.tensor([0.5]), "b": torch.zeros(1, 3, 1), "dt": None}
        >>> total_decay("linear_scan", given).item()
        0.125
    """
    return _TOTALS[name](given)


def _selective(given: Mapping[str, Any]) -> Tensor | None:
    if given["discretization"] in ("bilinear", "no_discretization") or given["decay_gate"] is not None:
        return None
    if given["delta_a"] is None:
        steps = _steps(given["delta"], given["delta_bias"], given["delta_softplus"])
    elif given["timesteps"] is None:
        steps = given["delta_a"].sum(1, dtype=torch.float64)
    else:
        steps = given["timesteps"].sum(1, dtype=torch.float64)[:, None] * given["delta_a"].double()
    return torch.exp(_double(given["A"]) * steps[..., None])  # (B, D, N)


def _linear(given: Mapping[str, Any]) -> Tensor | None:
    a, dt, length = given["a"], given["dt"], given["b"].shape[1]
    if dt is None:
        if a.dim() == 3:
            return _sum(a, lambda part: _double(part).prod(1), torch.mul)
        a = _double(a)
        return torch.where(a == 0, 0 * a, torch.pow(torch.where(a == 0, 1, a), length))[None]
    if given["discretization"] != "zoh":
        return None
    steps = dt.sum(1, dtype=torch.float64)
    return torch.exp(_double(a) * (steps[:, None] if dt.dim() == 2 else steps))


def _rglru(given: Mapping[str, Any]) -> Tensor:
    bias = 0.0 if given["r_bias"] is None else given["r_bias"].double()
    gates = _sum(given["r"], lambda part: torch.sigmoid(part + bias).sum(1, dtype=torch.float64), torch.add)
    return torch.exp(given["c"] * F.logsigmoid(given["a_log"].double()) * gates)  # (B, D)


def _ssd(given: Mapping[str, Any]) -> Tensor:
    low, high = given["dt_limit"]
    steps = _steps(given["dt"], given["dt_bias"], given["dt_softplus"], low, high)
    return torch.exp(given["A"].double() * steps)[..., None, None]  # (B, H, 1, 1)


_TOTALS: dict[str, Callable[[Mapping[str, Any]], Tensor | None]] = {
    "selective_scan": _selective,
    "linear_scan": _linear,
    "rglru_scan": _rglru,
    "ssd_scan": _ssd,
}


def _steps(
    delta: Tensor, bias: Tensor | None, softplus: bool, low: float | None = None, high: float | None = None
) -> Tensor:
    """The sum over the walk of Δ `[B, L, D]`."""

    def of(part: Tensor) -> Tensor:
        part = part.float() if part.dtype != torch.float64 else part
        part = part if bias is None else part + bias
        part = F.softplus(part) if softplus else part
        return (part if low is None else part.clamp(low, high)).sum(1, dtype=torch.float64)

    return _sum(delta, of, torch.add)


def _sum(x: Tensor, of: Callable[[Tensor], Tensor], join: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """`of` parts of the walk, one after another, joined: temporaries stay small."""
    cells = max(1, _ELEMENTS // max(1, x[:, :1].numel()))
    parts = x.split(cells, 1)
    total = of(parts[0])
    for part in parts[1:]:
        total = join(total, of(part))
    return total


def _double(x: Tensor) -> Tensor:
    return x.to(torch.complex128) if x.is_complex() else x.double()
