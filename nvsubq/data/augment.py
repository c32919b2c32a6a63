"""Random geometry of images and volumes; every draw is a pure function of (seed, epoch, index)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nvsubq.data.sampling import Key, generator


@dataclass(frozen=True)
class RandomAffine:
    """Ranges of a random affine map of 2-D images; every draw is uniform within its range.

    Args:
        shift: largest shift along each axis, in pixels.
        rotation: largest rotation to either side, in degrees.
        scale: largest change of size; 0.1 draws a factor from 0.9 to 1.1.
        flip: mirror left and right with probability 1/2.

    Raises:
        ValueError: a range is negative, or `scale` is not below 1.

    Example:
        >>> affine = RandomAffine(shift=2, rotation=12, scale=0.1)
        >>> affine(torch.zeros(2, 1, 28, 28), seed=0, keys=[(0, 5), (0, 9)]).shape
        torch.Size([2, 1, 28, 28])
    """

    shift: float = 0.0
    rotation: float = 0.0
    scale: float = 0.0
    flip: bool = False

    def __post_init__(self) -> None:
        for name in ("shift", "rotation", "scale"):
            value = getattr(self, name)
            if not value >= 0 or math.isinf(value):
                raise ValueError(f"`{name}` (={value}) must be finite and not negative.")
        if self.scale >= 1:
            raise ValueError(f"`scale` (={self.scale}) must be below 1: an image cannot shrink to nothing.")

    def draw(self, seed: int, key: Key) -> tuple[float, float, float, float, float, float]:
        """`a, b, c, d, e, f` of one item: output pixel (x, y) shows input (ax + by + c, dx + ey + f)."""
        angle, size, dx, dy, mirror = generator(seed, "affine", *key).uniform(-1, 1, 5)
        zoom = 1 / (1 + self.scale * size)
        cos, sin = (zoom * f(math.radians(self.rotation * angle)) for f in (math.cos, math.sin))
        sign = -1.0 if self.flip and mirror > 0 else 1.0
        return sign * cos, -sign * sin, self.shift * dx, sin, cos, self.shift * dy

    def __call__(self, images: Tensor, *, seed: int, keys: Sequence[Key]) -> Tensor:
        """Maps `[B, C, H, W]` images, item `b` by the draw of `keys[b]`; outside the image lies 0.

        All operations run elementwise over the batch (no matrix product, whose rounding depends on the number
        of rows), so that an item gets the same bits whatever else is in its batch.
        """
        height, width = images.shape[-2:]
        maps = torch.tensor([self.draw(seed, key) for key in keys], dtype=torch.float32)
        a, b, c, d, e, f = (column[:, None, None] for column in maps.unbind(1))
        y = (torch.arange(height, dtype=torch.float32) - (height - 1) / 2)[:, None]
        x = torch.arange(width, dtype=torch.float32) - (width - 1) / 2
        grid = torch.stack(((a * x + b * y + c) * (2 / width), (d * x + e * y + f) * (2 / height)), dim=-1)
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def random_corner(shape: Sequence[int], size: Sequence[int], *, seed: int, key: Key) -> tuple[slice, ...]:
    """Where the crop of one item lies: uniform over all places of a `size` window inside `shape`.

    Raises:
        ValueError: the window is larger than the volume along some axis.

    Example:
        >>> random_corner((10, 4), (3, 4), seed=0, key=(0, 0))[1]
        slice(0, 4, None)
    """
    if any(s > n for s, n in zip(size, shape, strict=True)):
        raise ValueError(f"A crop of {tuple(size)} does not fit into a volume of {tuple(shape)}.")
    rng = generator(seed, "crop", *key)
    starts = [int(rng.integers(n - s + 1)) for s, n in zip(size, shape, strict=True)]
    return tuple(slice(start, start + s) for start, s in zip(starts, size, strict=True))


def random_flips(axes: Sequence[int], *, seed: int, key: Key) -> list[int]:
    """Those of `axes` along which one item is mirrored, each with probability 1/2.

    Example:
        >>> set(random_flips([0, 2], seed=0, key=(0, 0))) <= {0, 2}
        True
    """
    coins = generator(seed, "flip", *key).uniform(size=len(axes))
    return [axis for axis, coin in zip(axes, np.atleast_1d(coins), strict=True) if coin < 0.5]
