"""ImageFolder: a user's folder of images, one subfolder a class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from nvsubq.data.augment import RandomAffine
from nvsubq.data.base import DataModule
from nvsubq.data.errors import DataError
from nvsubq.data.folders import checked_root, entries, listed
from nvsubq.data.images import Images, decode_image, image_shape
from nvsubq.data.sample import Sample
from nvsubq.data.splits import SPLITS, stratified_split


class ImageFolder(DataModule):
    """Images in `root/{train,val,test}/CLASS/*`, or in `root/CLASS/*`, each class then split 70/15/15.

    Every file must be an image that Pillow reads, of any size and mode (see `decode_image`); it gets `size`.
    Names that begin with a dot do not count; anything else that does not belong is an error.

    Args:
        root: the folder.
        size: of images, one number or (height, width).
        channels: 1 (grey) or 3 (RGB).
        cache: decode all files once, before training, and keep them in memory as bytes: a broken file is
            found at once. Without it (sets larger than memory) files are decoded when they are needed, and
            only their headers are checked before training.
        mean, std: of pixels in [0, 1], one number or one for each channel.
        augment: map training images by a random affine map.
        shift: largest shift, in pixels.
        rotation: largest rotation, in degrees.
        scale: largest change of size, as a share.
        flip: mirror left and right at random.
        batch_size, eval_batch_size, num_workers, seed, split_seed: as `DataModule`.

    Raises:
        DataError: a folder is missing or empty, a file is no image, there is one class only, the splits have
            different classes, or a class has fewer than 3 files to split.
    """

    name = "image folder"
    task = "classification"
    spatial_dims = 2

    def __init__(
        self,
        root: str | Path,
        *,
        size: int | Sequence[int] = 64,
        channels: int = 3,
        cache: bool = True,
        mean: float | Sequence[float] = 0.5,
        std: float | Sequence[float] = 0.25,
        augment: bool = True,
        shift: float = 4.0,
        rotation: float = 10.0,
        scale: float = 0.1,
        flip: bool = False,
        batch_size: int = 64,
        eval_batch_size: int = 256,
        num_workers: int = 0,
        seed: int = 0,
        split_seed: int = 0,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            seed=seed,
            split_seed=split_seed,
        )
        height_width = [size, size] if isinstance(size, int) else list(size)
        if len(height_width) != 2 or any(not isinstance(s, int) or s < 1 for s in height_width):
            raise ValueError(f"`size` (={size}) must be a positive integer, or two of them (height, width).")
        if channels not in (1, 3):
            raise ValueError(f"`channels` (={channels}) must be 1 (grey) or 3 (RGB).")
        self.image_size = (height_width[0], height_width[1])
        self.spatial_size, self.in_channels, self.cache = self.image_size, channels, cache
        self.mean, self.std = _by_channel("mean", mean, channels), _by_channel("std", std, channels)
        if min(self.std) <= 0:
            raise ValueError(f"`std` (={std}) must be positive.")
        affine = RandomAffine(shift=shift, rotation=rotation, scale=scale, flip=flip)
        self.affine = affine if augment else None
        self.root = checked_root(root)
        self.provenance = f"Images of {self.root.name}."
        self.class_names, self.files = self._scan()
        self.num_classes = len(self.class_names)

    def _scan(self) -> tuple[list[str], dict[str, list[tuple[Path, int]]]]:
        """Class names, and for each split its files with their classes."""
        folders = entries(self.root, Path.is_dir, "folders")
        present = [folder.name for folder in folders if folder.name in SPLITS]
        if not present:
            names = [folder.name for folder in folders]
            return self._checked(names, self.root), self._split(_files(self.root, names))
        if len(folders) != len(SPLITS) or len(present) != len(SPLITS):
            raise DataError(
                f"{self.root} holds {listed(folder.name for folder in folders)}; it must hold the folders "
                f"{', '.join(SPLITS)}, or one folder for each class and none of these."
            )
        classes = {
            split: [f.name for f in entries(self.root / split, Path.is_dir, "folders")] for split in SPLITS
        }
        names = self._checked(classes["train"], self.root / "train")
        for split in ("val", "test"):
            different = sorted(set(classes[split]) ^ set(names))
            if different:
                raise DataError(
                    f"{self.root / split} must have the classes of train; {listed(different)} differ."
                )
        return names, {split: _files(self.root / split, names) for split in SPLITS}

    def _checked(self, names: list[str], folder: Path) -> list[str]:
        if len(names) < 2:
            raise DataError(f"{folder} has one class only ({names[0]}); at least 2 are needed.")
        return names

    def _split(self, files: list[tuple[Path, int]]) -> dict[str, list[tuple[Path, int]]]:
        labels = np.array([label for _, label in files])
        for label, count in enumerate(np.bincount(labels)):
            if count < 3:
                folder = next(path.parent for path, own in files if own == label)
                raise DataError(f"{folder} holds {count} images; at least 3 are needed to split a class.")
        split = stratified_split(labels, self.split_seed, val=0.15, test=0.15)
        return {name: [files[i] for i in part] for name, part in split.items()}

    def build(self) -> dict[str, Dataset]:
        return {split: self._images(files, split == "train") for split, files in self.files.items()}

    def _images(self, files: list[tuple[Path, int]], training: bool) -> Images:
        paths = [path for path, _ in files]
        pixels: Tensor | list[Path] = paths
        if self.cache:
            pixels = torch.stack([self._decode(path) for path in paths])
        else:
            for path in paths:
                image_shape(path)
        return Images(
            pixels,
            torch.tensor([label for _, label in files]),
            size=self.image_size,
            channels=self.in_channels,
            mean=self.mean,
            std=self.std,
            affine=self.affine if training else None,
            seed=self.seed,
        )

    def _decode(self, path: Path) -> Tensor:
        return decode_image(path, self.image_size, self.in_channels)

    def read_input(self, path: str | Path) -> Sample:
        """Any image file, brought to the size, channels and normalisation of the set."""
        path = Path(path)
        mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (self.mean, self.std))
        return Sample((self._decode(path).float() / 255 - mean) / std, path, image_shape(path))

    def display(self, image: Tensor) -> Tensor:
        """Pixels in [0, 1]."""
        mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (self.mean, self.std))
        return (image * std + mean).clamp(0, 1)

    def baselines(self) -> dict[str, dict[str, float]]:
        """Test accuracy of always saying the most frequent class of the training split."""
        train, test = ([label for _, label in self.files[split]] for split in ("train", "test"))
        common = np.bincount(train).argmax()
        return {"most frequent class": {"accuracy": float(np.mean(np.array(test) == common))}}


def _files(folder: Path, names: list[str]) -> list[tuple[Path, int]]:
    return [
        (path, label)
        for label, name in enumerate(names)
        for path in entries(folder / name, Path.is_file, "image files")
    ]


def _by_channel(key: str, value: float | Sequence[float], channels: int) -> list[float]:
    values = [float(value)] * channels if isinstance(value, (int, float)) else [float(v) for v in value]
    if len(values) != channels:
        raise ValueError(f"`{key}` (={value}) must be one number, or {channels} (one for each channel).")
    return values
