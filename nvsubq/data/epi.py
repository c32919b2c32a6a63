"""A 4-D smoke test on (x, y, z, t): is this part of an echo-planar scan back to front?"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from nvsubq.data.augment import random_corner
from nvsubq.data.base import DataModule
from nvsubq.data.errors import DataError
from nvsubq.data.nifti import open_nifti
from nvsubq.data.sample import Sample
from nvsubq.data.sampling import Key, generator, split_key
from nvsubq.data.volumes import crop_shape

SHAPE = (128, 96, 24, 2)
FILE = Path("tests") / "data" / "example4d.nii.gz"
PARTS = {"train": (0, 14), "val": (14, 18), "test": (18, 24)}  # slices, along z


class EPI(DataModule):
    """Random parts of the 128 x 96 x 24 x 2 scan that nibabel's tests come with, as they are or
    mirrored along y.

    One scan, split along z: a smoke test of four axes, no measure of anything.

    Args:
        batch_size, eval_batch_size, num_workers, seed, split_seed: as `DataModule`.
        crop_size: of a part, one number for each of x, y, z, t.
        crops_per_epoch: training parts; validation and test have a quarter of them, fixed by `split_seed`.

    Example:
        >>> data = EPI(batch_size=2, crop_size=[16, 96, 4, 2])
        >>> fields, labels = next(iter(data.train_dataloader()))
        >>> fields.shape, labels.shape
        (torch.Size([2, 1, 16, 96, 4, 2]), torch.Size([2]))
    """

    name = "EPI"
    provenance = "The echo-planar scan of nibabel's own tests, split along z. A smoke test of four axes."
    spatial_dims, in_channels, num_classes = 4, 1, 2
    mean, std = 173.0, 217.0

    def __init__(
        self,
        *,
        batch_size: int = 8,
        eval_batch_size: int = 8,
        num_workers: int = 0,
        seed: int = 0,
        split_seed: int = 0,
        crop_size: Sequence[int] = (64, 96, 4, 2),
        crops_per_epoch: int = 64,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            seed=seed,
            split_seed=split_seed,
        )
        size = crop_shape(crop_size, 4)
        most = (*SHAPE[:2], min(end - begin for begin, end in PARTS.values()), SHAPE[3])
        if any(one > limit for one, limit in zip(size, most, strict=True)):
            raise ValueError(f"`crop_size` (={list(size)}) must be at most {list(most)}.")
        if isinstance(crops_per_epoch, bool) or not isinstance(crops_per_epoch, int) or crops_per_epoch < 4:
            raise ValueError(f"`crops_per_epoch` (={crops_per_epoch!r}) must be an integer of at least 4.")
        self.crop_size = self.spatial_size = size
        self.crops_per_epoch = crops_per_epoch
        self.class_names = ["as it is", "back to front"]

    def build(self) -> dict[str, Dataset]:
        few = self.crops_per_epoch // 4
        return {
            "train": Parts(self, "train", self.crops_per_epoch, self.seed),
            "val": Parts(self, "val", few, self.split_seed),
            "test": Parts(self, "test", few, self.split_seed),
        }

    def read_input(self, path: str | Path) -> Sample:
        """There is no format for a user's scan.

        Raises:
            DataError: always.
        """
        raise DataError(f"{path}: EPI is a smoke test and reads no files.")


class Parts(Dataset):
    """Parts of one split; part `(epoch, index)` is a function of `(seed, split, epoch, index)` alone.

    Args:
        data: knows the size of a part and how to normalise it.
        split: "train", "val" or "test".
        count: parts in an epoch.
        seed: of places and of what is mirrored.
    """

    def __init__(self, data: EPI, split: str, count: int, seed: int) -> None:
        self.size, self.mean, self.std = data.crop_size, data.mean, data.std
        self.split, self.count, self.seed = split, count, seed
        load_scan()  # what is missing shows now

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, key: int | Key) -> tuple[Tensor, Tensor]:
        pair = split_key(key)
        begin, end = PARTS[self.split]
        scan = load_scan()[:, :, begin:end]
        field = scan[random_corner(scan.shape, self.size, seed=self.seed, key=pair)]
        label = int(generator(self.seed, "mirrored", self.split, *pair).integers(2))
        field = (np.flip(field, 1) if label else field).astype(np.float32)
        field = (field[None] - np.float32(self.mean)) / np.float32(self.std)
        return torch.from_numpy(field), torch.tensor(label)


@lru_cache(maxsize=1)
def load_scan() -> np.ndarray:
    """The scan `[128, 96, 24, 2]`, shared read-only.

    Raises:
        DataError: nibabel is not installed, or came without the data of its tests.
    """
    found = importlib.util.find_spec("nibabel")
    if found is None or found.origin is None:
        raise DataError("EPI comes with nibabel, which is not installed: pip install 'nvsubq[train]'.")
    scan = np.asarray(open_nifti(Path(found.origin).parent / FILE).dataobj)
    if scan.shape != SHAPE:
        raise DataError(f"{FILE.name} of nibabel has shape {scan.shape}, not {SHAPE}.")
    scan.setflags(write=False)
    return scan
