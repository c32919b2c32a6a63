"""A user's file as a model expects it, and the way back to the file's grid."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

SUFFIXES = (".nii.gz", ".nii")


@dataclass
class Sample:
    """One file of a user's, as a model of this data set expects it.

    `image` is `[C, *spatial]`, normalised. `original_shape` is the file's own (height, width for images; the
    grid of a volume). `affine` is the file's own 4x4 matrix (volumes). `restore` and `save` bring predicted
    labels back onto the file's grid.
    """

    image: Tensor
    path: Path
    original_shape: tuple[int, ...]
    affine: np.ndarray | None = None
    orientation: np.ndarray | None = None

    def restore(self, labels: Tensor | np.ndarray) -> np.ndarray:
        """Labels `[*spatial]` of `image` on the grid of the file, axes in their own order and direction."""
        array = np.asarray(labels)
        if self.affine is None or self.orientation is None:
            raise ValueError(f"{self.path} is not a volume: labels cannot be put back on its grid.")
        if array.shape != tuple(self.image.shape[1:]):
            raise ValueError(f"`labels` (shape {array.shape}) must have shape {tuple(self.image.shape[1:])}.")
        return undo_orientation(array, self.orientation)

    def save(self, labels: Tensor | np.ndarray, path: str | Path) -> Path:
        """Writes labels as a NIfTI with the grid and affine of the file."""
        array = self.restore(labels)
        assert self.affine is not None
        return save_labels(array, self.affine, path)


def undo_orientation(array: np.ndarray, orientation: np.ndarray) -> np.ndarray:
    """An array `[X, Y, Z]` turned by `load_nifti`, back in the order and direction of the file's axes.

    Example:
        >>> undo_orientation(np.arange(4).reshape(1, 1, 4), np.array([[0, -1], [2, 1], [1, 1]])).shape
        (1, 4, 1)
    """
    from nibabel.orientations import apply_orientation, axcodes2ornt, ornt_transform

    back = ornt_transform(axcodes2ornt("RAS"), orientation)
    return np.ascontiguousarray(apply_orientation(array, back))


def save_labels(labels: np.ndarray, affine: np.ndarray, path: str | Path) -> Path:
    """Writes labels `[X, Y, Z]` as NIfTI, whole or not at all.

    Raises:
        ValueError: `path` ends with neither `.nii` nor `.nii.gz`.
    """
    import nibabel

    path = Path(path)
    suffix = next((s for s in SUFFIXES if path.name.endswith(s)), None)
    if suffix is None:
        raise ValueError(f"`path` (={path}) must end with {' or '.join(SUFFIXES)}.")
    dtype = np.uint8 if labels.max(initial=0) < 256 else np.int16
    image = nibabel.Nifti1Image(np.asarray(labels).astype(dtype), affine)
    partial = path.with_name(f".{path.name.removesuffix(suffix)}.partial{suffix}")
    try:
        nibabel.save(image, partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path
