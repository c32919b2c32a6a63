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


def random_map(rotation: float, scale: float, *, seed: int, key: Key) -> np.ndarray:
    """A random linear map of 3-D space for one item, `[3, 3]`: cell `x` of the result shows cell `map @ x`.

    Args:
        rotation: largest rotation, in degrees, about an axis of any direction.
        scale: largest change of size, for each axis by itself; 0.1 draws a factor from 1 / 1.1 to 1.1.

    Example:
        >>> bool(np.allclose(random_map(0, 0, seed=0, key=(0, 0)), np.eye(3)))
        True
    """
    rng = generator(seed, "map", *key)
    axis, angle = rng.standard_normal(3), math.radians(rotation) * rng.uniform(-1, 1)
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    turn = np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross  # Rodrigues
    return turn * (1 + scale) ** -rng.uniform(-1, 1, 3)


def resampled(image: np.ndarray, labels: np.ndarray, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A labelled volume seen at `cells`, mirrored at its edges: intensities linearly, labels by the nearest.

    Args:
        image, labels: `[X, Y, Z]` float32 and integer.
        cells: `[3, *shape]` where to look, in cells and fractions of them.

    Returns:
        Image and labels `[*shape]`, of the types given.

    Example:
        >>> line, cells = np.arange(4, dtype=np.float32).reshape(4, 1, 1), np.zeros((3, 3, 1, 1))
        >>> cells[0] = np.reshape([0, 1.25, 3.25], (3, 1, 1))
        >>> image, labels = resampled(line, line.astype(np.uint8), cells)
        >>> image.ravel().round(3).tolist(), labels.ravel().tolist()
        ([0.0, 1.25, 2.75], [0, 1, 3])
    """
    # torch counts axes from the last, and from -1 to 1 between the outer cells' centres.
    ends = np.maximum(np.array(image.shape) - 1, 1).reshape(3, *(1,) * (cells.ndim - 1))
    grid = torch.from_numpy((2 * cells / ends - 1).astype(np.float32)[::-1].copy()).movedim(0, -1)[None]

    def look(volume: np.ndarray, mode: str) -> np.ndarray:
        values = torch.from_numpy(volume.astype(np.float32))[None, None]
        found = F.grid_sample(values, grid, mode=mode, padding_mode="reflection", align_corners=True)
        return found[0, 0].numpy().astype(volume.dtype)

    return look(image, "bilinear"), look(labels, "nearest")
