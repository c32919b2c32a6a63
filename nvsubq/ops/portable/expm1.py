"""(exp(z) - 1)/z with a backward written out by hand: the input coefficient of a zero-order hold."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nvsubq.ops import numerics
from nvsubq.ops.once import once_differentiable

# Inside this radius the derivative is a power series: its closed form would cancel to eps/|z|.
_RADIUS = 0.5
_TERMS = {torch.float32: 9, torch.float64: 16}
_TINY = 1e-30  # stands for 0, where expm1(z)/z would be 0/0


class _Expm1Over(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z: Tensor) -> Tensor:  # type: ignore[override]
        if z.is_complex():
            value = numerics.expm1_over(z)
        else:
            z = z.masked_fill(z == 0, _TINY)
            value = torch.expm1(z).div_(z)
        ctx.save_for_backward(z, value)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> Tensor:  # type: ignore[override]
        z, value = ctx.saved_tensors
        # value' = (exp(z) - value)/z, with exp(z) = 1 + z value
        far = torch.addcmul(1 - value, z, value).div_(z)
        small = z.abs() < _RADIUS
        near = z.masked_fill(~small, 0)
        terms = _TERMS[z.real.dtype if z.is_complex() else z.dtype]
        series = torch.full_like(near, terms / math.factorial(terms + 1))
        for k in range(terms - 1, 0, -1):
            series.mul_(near).add_(k / math.factorial(k + 1))
        return grad * torch.where(small, series, far).conj()


def expm1_over(z: Tensor) -> Tensor:
    """Compute (exp(z) - 1)/z, real or complex, 1 with derivative 1/2 at z = 0; differentiable once."""
    return _Expm1Over.apply(z)
