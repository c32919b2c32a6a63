"""NiftiFolder: a user's folder of labelled volumes."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from nvsubq.data.base import DataModule
from nvsubq.data.baselines import histogram_baselines
from nvsubq.data.errors import DataError
from nvsubq.data.folders import checked_root, entries, listed, split_groups
from nvsubq.data.nifti import load_nifti, turned_voxel_sizes
from nvsubq.data.nifti_pairs import NiftiPairs, Pair, check_pair, load_labels, normalise
from nvsubq.data.sample import SUFFIXES, Sample
from nvsubq.data.volumes import RandomCrops, WholeVolumes, crop_shape

logger = logging.getLogger(__name__)

MAX_LABEL = 255


class NiftiFolder(DataModule):
    """Volumes `root/images/*.nii.gz` with labels `root/labels/` of the same names, split 70/15/15 by subject.

    Volumes are turned to one orientation (right, anterior, superior) and not resampled. An image may be 4-D
    with its channels last. Training takes random crops; validation and test take whole volumes, one by one.

    Args:
        root: the folder.
        num_classes: labels lie in [0, num_classes); None takes the largest label plus one.
        class_names: one for each class; None numbers them.
        crop_size: of training crops, one number or one for each axis; at most the smallest volume's.
        crops_per_epoch: training crops, taken from the training volumes in turn.
        flip_axes: axes (0 left-right, 1 front-back, 2 up-down) along which crops are mirrored at random.
        intensity_range: (low, high), clipped and mapped onto [-1, 1] (computed tomography); None normalises
            each volume by its own mean and deviation, between its 0.5 % and 99.5 % percentiles.
        subject: regular expression that finds the subject in a file name; files of one subject stay in one
            split. A file in which it finds nothing is a subject of its own.
        cache: keep all volumes in memory; without it they are read each time they are needed.
        batch_size, num_workers, seed, split_seed: as `DataModule`.

    Raises:
        DataError: a folder is missing or empty, a file has no partner, is damaged or has another grid than
            its partner, a label is no class, there is one class only, or there are fewer than 3 subjects.
    """

    name = "NIfTI folder"
    task = "segmentation"
    spatial_dims = 3

    def __init__(
        self,
        root: str | Path,
        *,
        num_classes: int | None = None,
        class_names: Sequence[str] | None = None,
        crop_size: int | Sequence[int] = 32,
        crops_per_epoch: int = 64,
        flip_axes: Sequence[int] = (),
        intensity_range: Sequence[float] | None = None,
        subject: str = "^sub-[a-zA-Z0-9]+",
        cache: bool = True,
        batch_size: int = 4,
        num_workers: int = 0,
        seed: int = 0,
        split_seed: int = 0,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            eval_batch_size=1,
            num_workers=num_workers,
            seed=seed,
            split_seed=split_seed,
        )
        if crops_per_epoch < 1:
            raise ValueError(f"`crops_per_epoch` (={crops_per_epoch}) must be at least 1.")
        if num_classes is not None and not 2 <= num_classes <= MAX_LABEL + 1:
            raise ValueError(f"`num_classes` (={num_classes}) must be from 2 to {MAX_LABEL + 1}.")
        if any(axis not in (0, 1, 2) for axis in flip_axes) or len(set(flip_axes)) != len(flip_axes):
            raise ValueError(f"`flip_axes` (={list(flip_axes)}) must be different numbers of 0, 1 and 2.")
        if intensity_range is not None and not (
            len(intensity_range) == 2 and intensity_range[0] < intensity_range[1]
        ):
            raise ValueError(
                f"`intensity_range` (={list(intensity_range)}) must be two numbers, the lower one first."
            )
        try:
            pattern = re.compile(subject)
        except re.error as error:
            raise ValueError(f"`subject` (={subject!r}) is not a regular expression: {error}.") from error
        self.crops_per_epoch, self.flip_axes, self.cache = crops_per_epoch, tuple(flip_axes), cache
        self.intensity_range = None if intensity_range is None else (intensity_range[0], intensity_range[1])
        self.root = checked_root(root)
        self.provenance = f"Volumes of {self.root.name}."
        self._num_classes, self._class_names = num_classes, class_names
        pairs = self._scan()
        self.files = self._split(pairs, pattern)
        self.in_channels, grids = self._check_headers(pairs)
        self.grids = [grids[image] for image, _ in self.files["train"]]
        wanted = crop_shape(crop_size)
        self.crop_size = self.spatial_size = tuple(map(min, wanted, *self.grids))
        if self.spatial_size != wanted:
            logger.warning("%s: crops are %s, not %s: a volume is smaller.", root, self.spatial_size, wanted)

    def _scan(self) -> list[Pair]:
        def is_volume(path: Path) -> bool:
            return path.is_file() and path.name.endswith(SUFFIXES)

        what = f"{' and '.join(SUFFIXES)} files"
        images = {p.name: p for p in entries(self.root / "images", is_volume, what)}
        labels = {p.name: p for p in entries(self.root / "labels", is_volume, what)}
        lonely = sorted(images.keys() ^ labels.keys())
        if lonely:
            folders = (self.root / "images", self.root / "labels")
            raise DataError(
                f"{folders[0]} and {folders[1]} must hold the same names; {listed(lonely)} have no partner."
            )
        return [(images[name], labels[name]) for name in sorted(images)]

    def _split(self, pairs: list[Pair], pattern: re.Pattern[str]) -> dict[str, list[Pair]]:
        found = [(pattern.search(image.name), image.name) for image, _ in pairs]
        groups = [match.group() if match else name for match, name in found]
        if len(set(groups)) < 3:
            raise DataError(
                f"{self.root / 'images'} holds {len(set(groups))} subjects; at least 3 are needed to split."
            )
        split = split_groups(groups, self.split_seed, val=0.15, test=0.15)
        return {name: [pairs[i] for i in part] for name, part in split.items()}

    def _check_headers(self, pairs: list[Pair]) -> tuple[int, dict[Path, tuple[int, ...]]]:
        """Channels of all images, and the grid of each."""
        channels: dict[int, Path] = {}
        grids = {}
        for image, labels in pairs:
            count, grids[image] = check_pair(image, labels)
            channels.setdefault(count, image)
        if len(channels) > 1:
            told = ", ".join(f"{path.name} has {count}" for count, path in channels.items())
            raise DataError(f"All images of {self.root / 'images'} must have equally many channels; {told}.")
        return next(iter(channels)), grids

    @cached_property
    def _label_count(self) -> int:
        """Classes, from the option or from all labels, each of which is read once and checked."""
        limit = self._num_classes or MAX_LABEL + 1
        present: set[int] = set()
        for _, path in (pair for part in self.files.values() for pair in part):
            present.update(np.unique(load_labels(path, limit)).tolist())
        if len(present) < 2:
            raise DataError(
                f"{self.root / 'labels'} holds one class only ({present.pop()}); at least 2 are needed."
            )
        return self._num_classes or max(present) + 1

    @property
    def num_classes(self) -> int:  # type: ignore[override]
        """Number of classes; reads the labels when first asked for."""
        return self._label_count

    @property
    def class_names(self) -> list[str]:  # type: ignore[override]
        """The names given, or "background", "label 1", ..."""
        if self._class_names is None:
            return ["background", *(f"label {i}" for i in range(1, self.num_classes))]
        names = [str(name) for name in self._class_names]
        if len(names) != self.num_classes:
            raise DataError(f"`class_names` (={names}) must be {self.num_classes} names, one for each class.")
        return names

    def build(self) -> dict[str, Dataset]:
        self.pairs = {
            split: NiftiPairs(files, self.intensity_range, self.num_classes)
            for split, files in self.files.items()
        }
        if self.cache:
            self.pairs = {split: pairs.hold() for split, pairs in self.pairs.items()}
        train = RandomCrops(
            self.grids,
            self.pairs["train"].crop,
            size=self.crop_size,
            count=self.crops_per_epoch,
            seed=self.seed,
            flip_axes=self.flip_axes,
        )
        return {"train": train} | {
            split: WholeVolumes(len(self.files[split]), self.pairs[split].whole) for split in ("val", "test")
        }

    def describe(self) -> dict[str, Any]:
        """As for every data set, and `files`, volumes of each split (a size counts crops in training), and
        `voxel_size`: that of each test volume, in mm along its turned axes.
        """
        sizes = [turned_voxel_sizes(image) for image, _ in self.files["test"]]
        files = {split: len(pairs) for split, pairs in self.files.items()}
        return super().describe() | {"files": files, "voxel_size": sizes}

    def read_input(self, path: str | Path) -> Sample:
        """A volume of any orientation and grid, normalised as in training (not resampled)."""
        file = load_nifti(Path(path))
        image = normalise(file.data, self.intensity_range)
        if len(image) != self.in_channels:
            raise DataError(f"{path} has {len(image)} channels; the data set has {self.in_channels}.")
        return file.sample(torch.from_numpy(image))

    def baselines(self) -> dict[str, dict[str, float]]:
        """Test Dice of a histogram of intensities; none for several channels, or without `cache`."""
        if self.in_channels > 1 or not self.cache:
            return {}
        self.setup()
        volumes = {
            split: [(image[0], labels) for image, labels in pairs.held] for split, pairs in self.pairs.items()
        }
        scored = {self.class_names[label]: label for label in self.scored_classes}
        return histogram_baselines(**volumes, num_classes=self.num_classes, scored=scored, sigmas=())
