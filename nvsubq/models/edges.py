"""Convolutions and patches of a field in slabs: what reaches over an edge comes from the slab beyond it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvsubq.ops.slabs import Slabs

__all__ = ["check_cut", "convolve"]

_FUNCTIONS: dict[type[nn.Module], Any] = {nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d, nn.Conv3d: F.conv3d}


def convolve(conv: nn.Module, x: Tensor, slabs: Slabs | None) -> Tensor:
    """Run `conv`, of an odd kernel and the padding that goes with it, on `x` `[B, C, *spatial]`.

    In slabs the edges are repaired: planes of the neighbours add what they give to the outputs next to them,
    and no copy of the whole slab is made.

    Raises:
        ValueError: in every process, where slabs are thinner than the padding, or cut a step of the stride.
    """
    y: Tensor = conv(x)
    if slabs is None or slabs.count == 1:
        return y
    size: Any = conv.kernel_size
    steps: Any = conv.stride
    padding: Any = conv.padding
    kernel, stride, pad = size[0], steps[0], padding[0]
    check_cut(slabs, x, axis=2, multiple=stride, least=pad)
    if pad == 0:
        return y
    before, after = slabs.neighbours(x[:, :, :pad], x[:, :, -pad:])

    def part(planes: list[Tensor]) -> Tensor:
        function = _FUNCTIONS[type(conv)]
        beside = (0, *padding[1:])
        return function(torch.cat(planes, 2), conv.weight, None, steps, beside, 1, conv.groups)  # type: ignore[arg-type]

    def zeros(planes: int) -> Tensor:
        return x.new_zeros(*x.shape[:2], planes, *x.shape[3:])

    cells, outputs = x.shape[2], y.shape[2]
    first = -(-pad // stride)  # outputs whose windows begin before the slab
    y[:, :, :first] += part([before, zeros((first - 1) * stride + kernel - pad)])
    from_here = -(-(cells - pad) // stride)  # the first output whose window ends behind the slab
    if from_here < outputs:
        inside = cells - (from_here * stride - pad)
        beyond = (outputs - 1) * stride + pad + 1 - cells
        y[:, :, from_here:] += part([zeros(inside), after[:, :, :beyond]])
    return y


def check_cut(slabs: Slabs, x: Tensor, *, axis: int, multiple: int, least: int = 1) -> list[int]:
    """The sizes of all slabs, if they can be cut into steps of `multiple` without one that lies in two.

    Raises:
        ValueError: in every process.
    """
    sizes = slabs.layout(x.shape, axis)
    if any(size % multiple for size in sizes[:-1]) or min(sizes) < least:
        raise ValueError(
            f"slabs of {sizes} planes along the first spatial axis must be multiples of {multiple} (but for "
            f"the last one) and have at least {least}."
        )
    return sizes
