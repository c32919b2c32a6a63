"""Checks on ranks and sizes that every model shares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "check_choice",
    "check_field",
    "check_positive",
    "check_rate",
    "check_spatial_dims",
    "per_axis",
    "plain_tensor",
]


def check_spatial_dims(spatial_dims: Any, most: int = 3) -> int:
    """Return `spatial_dims` if it is 1, 2 or 3, or whatever up to `most`."""
    if isinstance(spatial_dims, bool) or spatial_dims not in range(1, most + 1):
        names = ", ".join(map(str, range(1, most)))
        raise ValueError(f"`spatial_dims` (={spatial_dims!r}) must be {names} or {most}.")
    return int(spatial_dims)


def check_positive(name: str, value: Any, minimum: int = 1) -> int:
    """Return `value` if it is an int of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ValueError(f"`{name}` (={value!r}) must be an integer of at least {minimum}.")
    return value


def check_rate(name: str, value: Any) -> float:
    """Return `value` if it is a probability below 1."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise ValueError(f"`{name}` (={value!r}) must be a number from 0 up to, but not including, 1.")
    return float(value)


def check_choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """Return `value` if it is one of `choices`."""
    if value not in choices:
        raise ValueError(f"`{name}` (={value!r}) must be one of {', '.join(map(repr, choices))}.")
    return value


def per_axis(name: str, value: Any, spatial_dims: int) -> tuple[int, ...]:
    """Spread one size over the axes, or check a size for each axis.

    Example:
        >>> per_axis("patch_size", 4, 2), per_axis("patch_size", [1, 4], 2)
        ((4, 4), (1, 4))
    """
    if isinstance(value, int):
        return (check_positive(name, value),) * spatial_dims
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != spatial_dims:
        raise ValueError(
            f"`{name}` (={value!r}) must be one integer, or {spatial_dims}: one for each spatial axis."
        )
    return tuple(check_positive(name, size) for size in value)


def check_field(x: Tensor, spatial_dims: int, channels: int, smallest: Sequence[int]) -> None:
    """Refuse an input that is not `[B, channels, *spatial]`, or smaller along an axis than a patch.

    Raises:
        ValueError: the rank, the channels or a size does not fit; the message has the shape.
    """
    shape = tuple(x.shape)
    if x.dim() != spatial_dims + 2:
        axes = ", ".join(f"S{i + 1}" for i in range(spatial_dims))
        raise ValueError(
            f"`x` has shape {shape}, of rank {x.dim()}; "
            f"`spatial_dims` (={spatial_dims}) needs [B, C, {axes}]."
        )
    if shape[1] != channels:
        raise ValueError(f"`x` has shape {shape}, so {shape[1]} channels; `in_channels` is {channels}.")
    if any(size < least for size, least in zip(shape[2:], smallest, strict=True)):
        raise ValueError(
            f"`x` has the spatial size {shape[2:]}, which is smaller than the patch; "
            f"`patch_size` (={tuple(smallest)}) must fit in at least once along every axis."
        )


def plain_tensor(x: Tensor) -> Tensor:
    """A tensor of another package's class (MONAI's MetaTensor) as torch's own; others as they are.

    Such a class sees every operation, changes the signatures of some, and slows all of them down.
    """
    if type(x) is Tensor or torch.compiler.is_compiling():
        return x
    acts = type(x).__torch_function__ is not torch._C._disabled_torch_function_impl
    return x.as_subclass(Tensor) if acts else x
