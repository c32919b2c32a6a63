"""Random crops of labelled volumes, and whole volumes for evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from nvsubq.data.augment import random_corner, random_flips
from nvsubq.data.sampling import Key, split_key

Volume = tuple[np.ndarray, np.ndarray]


class RandomCrops(Dataset):
    """Random crops; crop `(epoch, index)` is a function of `(seed, epoch, index)` alone.

    Args:
        shapes: spatial shape of each volume; crop `index` comes from volume `index % len(shapes)`.
        cut: `(volume, place, key) -> (image [C, *crop] float32, labels [*crop] int64)`.
        size: of a crop; an axis on which some volume is smaller takes the smallest volume's size, so that all
            crops have one shape.
        count: crops in an epoch.
        seed: of places and flips.
        flip_axes: spatial axes along which crops are mirrored at random.
    """

    def __init__(
        self,
        shapes: Sequence[tuple[int, ...]],
        cut: Callable[[int, tuple[slice, ...], Key], Volume],
        *,
        size: tuple[int, ...],
        count: int,
        seed: int,
        flip_axes: Sequence[int] = (),
    ) -> None:
        self.shapes, self.cut, self.count = list(shapes), cut, count
        self.size = tuple(map(min, size, *self.shapes))
        self.seed, self.flip_axes = seed, tuple(flip_axes)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, key: int | Key) -> tuple[Tensor, Tensor]:
        pair = split_key(key)
        which = pair[1] % len(self.shapes)
        place = random_corner(self.shapes[which], self.size, seed=self.seed, key=pair)
        image, labels = self.cut(which, place, pair)
        axes = tuple(random_flips(self.flip_axes, seed=self.seed, key=pair))
        image, labels = np.flip(image, tuple(axis + 1 for axis in axes)), np.flip(labels, axes)
        return torch.from_numpy(np.ascontiguousarray(image)), torch.from_numpy(np.ascontiguousarray(labels))


class WholeVolumes(Dataset):
    """Whole volumes, one an item: the shapes may differ, so a batch holds one.

    Args:
        count: number of volumes.
        get: `index -> (image [C, *spatial] float32, labels [*spatial] int64)`.
    """

    def __init__(self, count: int, get: Callable[[int], Volume]) -> None:
        self.count, self.get = count, get

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, key: int | Key) -> tuple[Tensor, Tensor]:
        index = split_key(key)[1]
        if not 0 <= index < self.count:
            raise IndexError(f"There are {self.count} volumes, not a number {index}.")
        image, labels = self.get(index)
        return torch.from_numpy(image.copy()), torch.from_numpy(labels.copy())


def crop_shape(crop_size: int | Sequence[int], spatial_dims: int = 3) -> tuple[int, ...]:
    """The crop along every axis, from one number or one for each axis.

    Raises:
        ValueError: not positive integers, or not one for each axis.

    Example:
        >>> crop_shape(32), crop_shape([8, 16, 32])
        ((32, 32, 32), (8, 16, 32))
    """
    size = [crop_size] * spatial_dims if isinstance(crop_size, int) else list(crop_size)
    if len(size) != spatial_dims or any(isinstance(s, bool) or not isinstance(s, int) or s < 1 for s in size):
        raise ValueError(f"`crop_size` (={crop_size}) must be a positive integer, or {spatial_dims} of them.")
    return tuple(size)
