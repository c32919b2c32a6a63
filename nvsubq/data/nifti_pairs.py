"""Pairs of an image and a label volume: checks, normalisation and access."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nvsubq.data.errors import DataError
from nvsubq.data.nifti import load_nifti, open_nifti, orientation_of, turned_shape
from nvsubq.data.sampling import Key
from nvsubq.data.volumes import Volume

Pair = tuple[Path, Path]
Range = tuple[float, float]


def normalise(data: np.ndarray, intensity_range: Range | None) -> np.ndarray:
    """Intensities `[X, Y, Z]` or `[X, Y, Z, C]` as a model sees them, `[C, X, Y, Z]` float32.

    Args:
        data: float32.
        intensity_range: (low, high), clipped and mapped onto [-1, 1] (computed tomography); None clips each
            channel of a volume to its 0.5 % and 99.5 % percentiles and takes its mean to 0, its deviation
            to 1.

    Example:
        >>> normalise(np.arange(8, dtype=np.float32).reshape(2, 2, 2), (0, 7)).shape
        (1, 2, 2, 2)
    """
    channels = np.moveaxis(data, -1, 0) if data.ndim == 4 else data[None]
    if intensity_range is not None:
        low, high = intensity_range
        return (np.clip((channels - low) / (high - low), 0, 1) * 2 - 1).astype(np.float32)
    out = np.empty(channels.shape, dtype=np.float32)
    for channel, result in zip(channels, out, strict=True):
        clipped = np.clip(channel, *np.percentile(channel, (0.5, 99.5)))
        deviation = clipped.std(dtype=np.float64)
        result[...] = (clipped - clipped.mean(dtype=np.float64)) / (deviation or 1.0)
    return out


def load_labels(path: Path, limit: int) -> np.ndarray:
    """Labels `[X, Y, Z]` uint8 of a file.

    Raises:
        DataError: a value is no integer in [0, limit).
    """
    data = load_nifti(path).data
    wrong = data[(data < 0) | (data >= limit) | (data != np.floor(data))]
    if wrong.size:
        raise DataError(
            f"{path} has the label {wrong[0]:g} ({wrong.size} voxels are out of range); "
            f"labels must be integers from 0 to {limit - 1}."
        )
    return data.astype(np.uint8)


def check_pair(image: Path, labels: Path) -> tuple[int, tuple[int, ...]]:
    """Channels of an image, and its grid as `load_nifti` turns it, from the headers of both files.

    Raises:
        DataError: the grids or the directions of their axes differ.
    """
    files = [open_nifti(path) for path in (image, labels)]
    grid, other = ((*file.shape[:3],) if file.shape[3:] in ((), (1,)) else file.shape for file in files)
    if other != grid[:3]:
        raise DataError(f"{labels} has shape {other} and its image {grid}; the grids must be equal.")
    if (orientation_of(files[0], image) != orientation_of(files[1], labels)).any():
        raise DataError(
            f"{labels} and its image have axes in different directions; their affines must agree."
        )
    return (grid[3] if len(grid) == 4 else 1), turned_shape(files[0], image)


@dataclass(frozen=True)
class NiftiPairs:
    """Normalised volumes and their labels, from memory where they are held, else from disk.

    Args:
        pairs: image file and label file of each volume.
        intensity_range: as `normalise`.
        limit: labels lie in [0, limit).
        held: the volumes in memory, in the order of `pairs`, or empty.
    """

    pairs: Sequence[Pair]
    intensity_range: Range | None
    limit: int
    held: Sequence[Volume] = ()

    def hold(self) -> NiftiPairs:
        """The same with all volumes in memory."""
        held = [self.load(index) for index in range(len(self.pairs))]
        return NiftiPairs(self.pairs, self.intensity_range, self.limit, held)

    def load(self, index: int) -> Volume:
        """Volume `index`, `[C, X, Y, Z]`, and its labels, `[X, Y, Z]` uint8."""
        if self.held:
            return self.held[index]
        image, labels = self.pairs[index]
        return normalise(load_nifti(image).data, self.intensity_range), load_labels(labels, self.limit)

    def whole(self, index: int) -> Volume:
        """`load` with int64 labels."""
        image, labels = self.load(index)
        return image, labels.astype(np.int64)

    def crop(self, which: int, place: tuple[slice, ...], key: Key) -> Volume:
        """The part `place` of volume `which`; the same for every key."""
        image, labels = self.load(which)
        return image[(slice(None), *place)], labels[place].astype(np.int64)
