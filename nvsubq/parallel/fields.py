"""A field cut into slabs along its first spatial axis, and put together again."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from nvsubq.ops.slabs import Slabs

__all__ = ["join_slabs", "slab_of"]


def slab_sizes(planes: int, count: int, multiple: int = 1) -> list[int]:
    """Planes of each of `count` slabs, as equal as multiples of `multiple` are; the last has what is left.

    Raises:
        ValueError: there are fewer multiples than slabs.

    Example:
        >>> slab_sizes(30, 3, 4)
        [12, 12, 6]
    """
    steps = -(-planes // multiple)
    if steps < count:
        raise ValueError(
            f"a field of {planes} planes, in steps of `multiple` (={multiple}), must have one for each of "
            f"{count} slabs."
        )
    sizes = [multiple * (steps // count + (rank < steps % count)) for rank in range(count)]
    sizes[-1] -= steps * multiple - planes
    return sizes


def slab_of(field: Tensor, slabs: Slabs, *, axis: int = 2, multiple: int = 1) -> Tensor:
    """This process's slab of a field that every process has: a view.

    Args:
        field: `[B, C, *spatial]`, or any other layout with `axis`.
        slabs: from `sequence_parallel`.
        axis: the first spatial axis, the slowest of the walks.
        multiple: what slabs must be multiples of (but for the last): the model's patch along the axis, twice
            that for two stages, and so on.

    Raises:
        ValueError: the field has fewer steps of `multiple` than there are slabs.
    """
    sizes = slab_sizes(field.shape[axis], slabs.count, multiple)
    return field.narrow(axis, sum(sizes[: slabs.rank]), sizes[slabs.rank])


@torch.no_grad()
def join_slabs(slab: Tensor, slabs: Slabs, *, axis: int = 2) -> Tensor:
    """The whole field in every process, from its slabs; without gradients."""
    sizes = slabs.layout(slab.shape, axis)
    shapes = [(*slab.shape[:axis], size, *slab.shape[axis + 1 :]) for size in sizes]
    parts = [
        slab.contiguous() if rank == slabs.rank else slab.new_empty(shape)
        for rank, shape in enumerate(shapes)
    ]
    for rank, part in zip(slabs.ranks, parts, strict=True):  # sizes differ, which an all_gather does not take
        dist.broadcast(part, rank, group=slabs.group)
    return torch.cat(parts, axis)
