"""Convolutions and patches of a field in slabs: what reaches over an edge comes from the slab beyond it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nvsubq.ops.once import once_differentiable
from nvsubq.ops.slabs import Slabs

__all__ = ["check_cut", "convolve"]

_convolution: Any = torch.ops.aten.convolution.default
_convolution_backward: Any = torch.ops.aten.convolution_backward.default


def convolve(conv: Any, x: Tensor, slabs: Slabs | None) -> Tensor:
    """Run `conv`, of an odd kernel and the padding that goes with it, on `x` `[B, C, *spatial]`.

    In slabs the edges are repaired: planes of the neighbours add what they give to the outputs next to them,
    and no copy of the whole slab is made, nor of its gradient.

    Raises:
        ValueError: in every process, where slabs are thinner than the padding, or cut a step of the stride.
    """
    if slabs is None or slabs.count == 1:
        return conv(x)  # type: ignore[no-any-return]
    stride, pad = conv.stride[0], conv.padding[0]
    check_cut(slabs, x, axis=2, multiple=stride, least=pad)
    if pad == 0:
        return conv(x)  # type: ignore[no-any-return]
    weight, bias = conv.weight, conv.bias
    device = x.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    with torch.autocast(device, enabled=False):
        how = _How(slabs, conv.stride, conv.padding, conv.groups)
        return _Convolved.apply(how, x, weight, bias)  # type: ignore[no-any-return]


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


class _How(NamedTuple):
    """A convolution of a slab."""

    slabs: Slabs
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    groups: int

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, ...]) -> Tensor:
        ones, none = [1] * len(padding), [0] * len(padding)
        return _convolution(x, weight, bias, self.stride, padding, ones, False, none, self.groups)  # type: ignore[no-any-return]

    def backward(
        self, d_y: Tensor, x: Tensor, weight: Tensor, padding: tuple[int, ...], wanted: tuple[bool, ...]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        ones, none = [1] * len(padding), [0] * len(padding)
        sizes, how = [len(weight)], (self.stride, padding, ones, False, none, self.groups, wanted)
        return _convolution_backward(d_y, x, weight, sizes, *how)  # type: ignore[no-any-return]

    @property
    def beside(self) -> tuple[int, ...]:
        """The padding of a strip at an edge, whose planes are all there."""
        return (0, *self.padding[1:])

    def strips(
        self, x: Tensor, outputs: int, before: Tensor, after: Tensor
    ) -> list[tuple[slice, Tensor, slice]]:
        """Of both edges: the outputs that see over it, what they see (inside zeros), and where it is."""
        pad, stride, cells = self.padding[0], self.stride[0], x.shape[2]

        def zeros(planes: int) -> Tensor:
            return before.new_zeros(*before.shape[:2], planes, *before.shape[3:])

        count = -(-pad // stride)  # of the outputs whose windows begin before the slab
        strip = torch.cat([before, zeros((count - 1) * stride + pad + 1)], 2)
        found = [(slice(0, count), strip, slice(0, pad))]
        first = -(-(cells - pad) // stride)  # the first output whose window ends behind the slab
        if first < outputs:
            inside = cells - (first * stride - pad)
            beyond = (outputs - 1) * stride + pad + 1 - cells
            strip = torch.cat([zeros(inside), after[:, :, :beyond]], 2)
            found.append((slice(first, outputs), strip, slice(inside, inside + beyond)))
        return found


class _Convolved(torch.autograd.Function):
    """A convolution whose edges are repaired in place, and whose gradients are, too."""

    @staticmethod
    def forward(ctx, how: _How, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # type: ignore[override]
        pad = how.padding[0]
        before, after = how.slabs.swap(x[:, :, :pad], x[:, :, -pad:])
        y = how.forward(x, weight, bias, how.padding)
        for outputs, strip, _ in how.strips(x, y.shape[2], before, after):
            y[:, :, outputs] += how.forward(strip, weight, None, how.beside)
        ctx.save_for_backward(x, weight, before, after)
        ctx.how, ctx.biased = how, bias is not None
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, d_y: Tensor):  # type: ignore[override]
        x, weight, before, after = ctx.saved_tensors
        how, pad = ctx.how, ctx.how.padding[0]
        wanted = ctx.needs_input_grad[1], ctx.needs_input_grad[2], ctx.biased and ctx.needs_input_grad[3]
        d_x, d_weight, d_bias = how.backward(d_y, x, weight, how.padding, wanted)
        d_beyond = [torch.zeros_like(before), torch.zeros_like(after)]
        for side, (outputs, strip, there) in enumerate(how.strips(x, d_y.shape[2], before, after)):
            d_strip, d_more, _ = how.backward(
                d_y[:, :, outputs], strip, weight, how.beside, (True, wanted[1], False)
            )
            d_beyond[side][:, :, : there.stop - there.start] = d_strip[:, :, there]
            if d_weight is not None:
                d_weight += d_more
        d_first, d_last = how.slabs.swap(*d_beyond)
        if d_x is not None:
            d_x[:, :, :pad] += d_first
            d_x[:, :, -pad:] += d_last
        return None, d_x, d_weight, d_bias


def is_convolution(module: nn.Module) -> bool:
    """Whether `convolve` can run a module."""
    return type(module) in (nn.Conv1d, nn.Conv2d, nn.Conv3d)
