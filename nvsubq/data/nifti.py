"""Reading NIfTI volumes, all turned to one orientation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from nvsubq.data.errors import DataError
from nvsubq.data.sample import SUFFIXES, Sample


@dataclass(frozen=True)
class NiftiVolume:
    """A volume whose axes were turned to point right, anterior, superior.

    `data` is `[X, Y, Z]` or `[X, Y, Z, channels]`, finite float32; `affine` and `shape` are the file's own.
    """

    path: Path
    data: np.ndarray
    affine: np.ndarray
    shape: tuple[int, int, int]
    orientation: np.ndarray

    @property
    def voxel_sizes(self) -> np.ndarray:
        """Size of a voxel along the turned axes, in mm."""
        return _voxel_sizes(self.affine, self.orientation)

    def sample(self, image: Tensor) -> Sample:
        """`image` `[C, X, Y, Z]`, made of `data`, with what brings an answer back to the file's grid."""
        return Sample(image, self.path, self.shape, self.affine, self.orientation)


def load_nifti(path: Path) -> NiftiVolume:
    """Reads a `.nii` or `.nii.gz` file.

    Raises:
        DataError: the file is missing, no NIfTI, damaged, empty, not 3-D or 4-D, or not finite everywhere.
    """
    from nibabel.orientations import apply_orientation

    file = open_nifti(path)
    try:
        data = np.asanyarray(file.dataobj).astype(np.float32)
    except Exception as error:  # gzip, zlib and OS errors share no base class
        raise DataError(f"{path} is damaged: {error}.") from error
    if data.ndim == 4 and data.shape[3] == 1:
        data = data[..., 0]
    if not np.isfinite(data).all():
        raise DataError(f"{path} holds {np.count_nonzero(~np.isfinite(data))} values that are not finite.")
    orientation = orientation_of(file, path)
    turned = np.ascontiguousarray(apply_orientation(data, orientation))
    return NiftiVolume(path, turned, file.affine, tuple(file.shape[:3]), orientation)


def open_nifti(path: Path) -> Any:
    """The file with its header read and checked; its voxels stay on disk.

    Raises:
        DataError: the file is missing, no NIfTI, empty, or not 3-D or 4-D.
    """
    import nibabel

    if not path.is_file():
        raise DataError(f"{path}: no such file.")
    try:
        file = nibabel.load(path)
    except Exception as error:  # gzip, zlib, numpy and nibabel errors share no base class
        raise DataError(f"{path} cannot be read as NIfTI: {error}") from error
    if not isinstance(file, nibabel.Nifti1Image):
        raise DataError(
            f"{path} is not NIfTI but {type(file).__name__}; {' and '.join(SUFFIXES)} are allowed."
        )
    if len(file.shape) not in (3, 4) or 0 in file.shape:
        raise DataError(
            f"{path} has shape {file.shape}; allowed are 3-D, and 4-D with channels last, not empty."
        )
    _check_bytes(file, path)
    return file


DENSEST = 1032
"""Bytes that one byte of gzip can stand for at most."""


def _check_bytes(file: Any, path: Path) -> None:
    """A header can claim more voxels than its file can hold: no memory is asked for them."""
    claimed = math.prod(file.shape) * file.get_data_dtype().itemsize
    held = path.stat().st_size * (DENSEST if path.name.endswith(".gz") else 1)
    if claimed > held:
        raise DataError(
            f"{path} claims {claimed} bytes of voxels (shape {file.shape}); it can hold {held} at most."
        )


def orientation_of(file: Any, path: Path) -> np.ndarray:
    """Which anatomical axis each axis of an open file runs along, and which way: `[3, 2]`.

    Raises:
        DataError: the affine maps an axis to nothing.
    """
    from nibabel.orientations import io_orientation

    if not np.isfinite(file.affine).all():
        raise DataError(f"{path} has an affine that is not finite: {file.affine.tolist()}.")
    orientation = io_orientation(file.affine)
    if np.isnan(orientation).any():
        raise DataError(f"{path} has an affine that maps an axis to nothing: {file.affine.tolist()}.")
    return orientation


def turned_shape(file: Any, path: Path) -> tuple[int, ...]:
    """The grid of an open file after `load_nifti` has turned it."""
    order = np.argsort(orientation_of(file, path)[:, 0])
    return tuple(int(file.shape[axis]) for axis in order)


def turned_voxel_sizes(path: Path) -> list[float]:
    """Size of a file's voxels after `load_nifti` has turned it, in mm; reads the header alone."""
    file = open_nifti(path)
    return [round(float(size), 4) for size in _voxel_sizes(file.affine, orientation_of(file, path))]


def _voxel_sizes(affine: np.ndarray, orientation: np.ndarray) -> np.ndarray:
    return np.sqrt((affine[:3, :3] ** 2).sum(0))[np.argsort(orientation[:, 0])]
