"""Formulas where plain arithmetic would lose digits or gradients, and the dtype that recurrences run in."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

# Below this |z| the power series of expm1(z)/z is used: its derivative would cancel to eps/|z| otherwise.
_SERIES_RADIUS = 0.3
_SERIES = tuple(1.0 / math.factorial(n + 1) for n in range(13))

# Largest derivative of the square root in `sqrt(1 - a^2)`; it is infinite where the decay is 1.
SQRT_MAX_DERIVATIVE = 1000.0

_DOUBLE = (torch.float64, torch.complex128)


def accumulation_dtype(*tensors: Tensor | None) -> torch.dtype:
    """Give the real dtype that a recurrence over these runs in: fp64 if any of them is, fp32 otherwise."""
    return torch.float64 if any(t is not None and t.dtype in _DOUBLE for t in tensors) else torch.float32


def complex_of(dtype: torch.dtype) -> torch.dtype:
    """Give the complex dtype with parts of this real dtype (fp32 or fp64)."""
    return torch.complex128 if dtype == torch.float64 else torch.complex64


def to_accumulate(tensor: Tensor | None, dtype: torch.dtype) -> Any:
    """Cast to the real `dtype`, or to its complex partner where the tensor is complex; None stays None."""
    if tensor is None:
        return None
    return tensor.to(complex_of(dtype) if tensor.is_complex() else dtype)


def cast(dtype: torch.dtype, *tensors: Tensor | None) -> tuple[Any, ...]:
    """Cast several tensors as `to_accumulate` does."""
    return tuple(to_accumulate(tensor, dtype) for tensor in tensors)


def expm1_over(z: Tensor) -> Tensor:
    """Compute (exp(z) - 1)/z, real or complex, with value 1 and derivative 1/2 at z = 0."""
    small = z.abs() < _SERIES_RADIUS
    near = torch.where(small, z, 0)
    series = torch.full_like(near, _SERIES[-1])
    for coefficient in reversed(_SERIES[:-1]):
        series = series * near + coefficient
    far = torch.where(small, 1, z)
    return torch.where(small, series, torch.expm1(far) / far)


class _BoundedSqrt(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:  # type: ignore[override]
        root = x.sqrt()
        ctx.save_for_backward(root)
        return root

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:  # type: ignore[override]
        (root,) = ctx.saved_tensors
        return grad / (2 * root).clamp(min=1 / SQRT_MAX_DERIVATIVE)


def bounded_sqrt(x: Tensor) -> Tensor:
    """Compute sqrt(max(x, 0)) with a derivative of at most 1000, so that a decay of exactly 1 trains."""
    return _BoundedSqrt.apply(x.clamp(min=0))


def one_minus_square(log_a: Tensor) -> Tensor:
    """Compute 1 - a^2 from log a, exactly to rounding where a is close to 1."""
    return -torch.expm1(2 * log_a)


def inverse_softplus(y: Tensor) -> Tensor:
    """What softplus maps to `y` > 0.

    Example:
        >>> inverse_softplus(torch.nn.functional.softplus(torch.tensor(-3.0, dtype=torch.float64))).item()
        -3.0
    """
    return y + torch.log(-torch.expm1(-y))
