"""MNI152: tissue segmentation of one averaged brain, degraded as scanners do. It comes inside nilearn."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from nvsubq.data.base import DataModule
from nvsubq.data.baselines import histogram_baselines
from nvsubq.data.errors import DataError
from nvsubq.data.nifti import load_nifti
from nvsubq.data.sample import Sample
from nvsubq.data.template import LABELS, DegradedTemplate, load_template
from nvsubq.data.volumes import RandomCrops, WholeVolumes, crop_shape

logger = logging.getLogger(__name__)

BASELINE_TRAIN_VOLUMES = 4
BASELINE_SIGMAS_MM = (1.2, 1.6, 2.0, 2.4, 2.8)


class MNI152(DataModule):
    """Background, other, grey and white matter of the MNI152 template.

    Train, val and test are slabs along y (posterior to anterior) with gaps of 8 mm: the template is exactly
    left-right symmetric, so a split along x would test on the training data. The clean task is trivial for
    a histogram of intensities, hence `bias` and `noise`: drawn anew for every training crop, fixed for every
    validation and test volume (by `split_seed`, split and index). It is one averaged brain: a score shows
    that a model learns, not that it generalises to people.

    Args:
        batch_size: crops in a training batch; validation and test volumes come one by one.
        num_workers, seed, split_seed: as `DataModule`.
        resolution: voxel size in mm, 2 or 4.
        crop_size: of training crops, one number or one for each axis; at most the slab's size is taken.
        crops_per_epoch: training crops.
        flip_axes: axes along which training crops are mirrored at random: of 0 (left-right, in which the
            template is symmetric), 1 (front-back), 2 (up-down).
        rotation: training crops are turned by up to so many degrees about an axis of any direction; 180 is
            any rotation.
        scale: training crops are stretched or shrunk along each axis by up to this share.
        val_volumes, test_volumes: differently degraded copies of the slab.
        bias: strength of the bias field, `exp(bias * f)` with `|f| <= 1`.
        noise: standard deviation of the noise, as a share of the maximum.

    Example:
        >>> data = MNI152(resolution=4, batch_size=1, crop_size=8)
        >>> image, labels = next(iter(data.train_dataloader()))
        >>> image.shape, labels.shape
        (torch.Size([1, 1, 8, 8, 8]), torch.Size([1, 8, 8, 8]))
    """

    name = "MNI152"
    task = "segmentation"
    spatial_dims, in_channels, num_classes = 3, 1, 4
    provenance = (
        "MNI152 template (nilearn): one averaged brain, degraded by a bias field and noise, split along y. "
        "A score shows that a model learns, not that it generalises to people."
    )
    # Of the degraded training slab. Constants, because the statistics of a patch would hide its absolute
    # intensity, which is most of what tells grey from white.
    mean, std = 0.19, 0.39

    def __init__(
        self,
        *,
        batch_size: int = 4,
        num_workers: int = 0,
        seed: int = 0,
        split_seed: int = 0,
        resolution: int = 2,
        crop_size: int | Sequence[int] = 32,
        crops_per_epoch: int = 64,
        flip_axes: Sequence[int] = (),
        rotation: float = 0.0,
        scale: float = 0.0,
        val_volumes: int = 2,
        test_volumes: int = 4,
        bias: float = 0.4,
        noise: float = 0.2,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            eval_batch_size=1,
            num_workers=num_workers,
            seed=seed,
            split_seed=split_seed,
        )
        if resolution not in (2, 4):
            raise ValueError(f"`resolution` (={resolution}) must be 2 or 4 (mm).")
        counts = {
            "crops_per_epoch": crops_per_epoch,
            "val_volumes": val_volumes,
            "test_volumes": test_volumes,
        }
        for key, count in counts.items():
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise ValueError(f"`{key}` (={count!r}) must be an integer of at least 1.")
        for key, value in (("bias", bias), ("noise", noise)):
            if not 0 <= value < math.inf:
                raise ValueError(f"`{key}` (={value}) must be finite and not negative.")
        if any(axis not in (0, 1, 2) or isinstance(axis, bool) for axis in flip_axes):
            raise ValueError(f"`flip_axes` (={list(flip_axes)}) must be axes from 0 to 2.")
        for key, value, most in (("rotation", rotation, 180), ("scale", scale, 1)):
            if not 0 <= value <= most:
                raise ValueError(f"`{key}` (={value}) must be in [0, {most}].")
        self.resolution, self.counts, self.flip_axes = resolution, counts, tuple(flip_axes)
        self.class_names = list(LABELS)
        self.crop_size = self.spatial_size = crop_shape(crop_size)
        self.volumes = DegradedTemplate(
            resolution,
            bias,
            noise,
            seed=seed,
            split_seed=split_seed,
            mean=self.mean,
            std=self.std,
            rotation=rotation,
            scale=scale,
        )

    @property
    def scored_classes(self) -> list[int]:
        """Grey and white matter."""
        return [LABELS.index("grey"), LABELS.index("white")]

    def build(self) -> dict[str, Dataset]:
        shape = tuple(part.stop for part in self.volumes.slab("train"))
        count = self.counts["crops_per_epoch"]
        return {
            "train": RandomCrops(
                [shape],
                self.volumes.crop,
                size=self.crop_size,
                count=count,
                seed=self.seed,
                flip_axes=self.flip_axes,
            ),
            "val": WholeVolumes(self.counts["val_volumes"], self.volumes.val),
            "test": WholeVolumes(self.counts["test_volumes"], self.volumes.test),
        }

    def read_input(self, path: str | Path) -> Sample:
        """A T1 volume of any intensity scale, its brain extracted as in the template.

        It is scaled so that its brightest tissue is as bright as the template's. Voxels are not resampled;
        another size than the template's is logged as a warning.
        """
        file = load_nifti(Path(path))
        if file.data.ndim != 3:
            raise DataError(
                f"{path} has {file.data.shape[3]} channels; a model of MNI152 takes one 3-D volume."
            )
        if not np.allclose(file.voxel_sizes, self.resolution, rtol=0.05):
            logger.warning(
                "%s has voxels of %s mm; the model was trained on voxels of %d mm and may do badly.",
                path,
                " x ".join(f"{size:g}" for size in file.voxel_sizes),
                self.resolution,
            )
        level = _bright_level(file.data)
        if not level > 0:
            raise DataError(
                f"{path} holds no bright voxels (values {file.data.min():g} to {file.data.max():g})."
            )
        image = file.data * np.float32(_bright_level(load_template(self.resolution)[0]) / level)
        return file.sample(torch.from_numpy(self.volumes.normalise(image)))

    def display(self, image: Tensor) -> Tensor:
        """Intensities of the template, clipped to [0, 1]."""
        return (image * self.std + self.mean).clamp(0, 1)

    def baselines(self) -> dict[str, dict[str, float]]:
        """Test Dice of a histogram of intensities, and of one after the Gaussian filter best on val."""
        counts = {
            "train": BASELINE_TRAIN_VOLUMES,
            "val": self.counts["val_volumes"],
            "test": self.counts["test_volumes"],
        }
        return histogram_baselines(
            **{split: [self.volumes.whole(split, i) for i in range(n)] for split, n in counts.items()},
            num_classes=self.num_classes,
            scored={self.class_names[label]: label for label in self.scored_classes},
            sigmas=[mm / self.resolution for mm in BASELINE_SIGMAS_MM],
        )


def _bright_level(image: np.ndarray) -> float:
    """The 99 % percentile of a volume smoothed by one voxel: noise does not pass for bright tissue."""
    from scipy.ndimage import gaussian_filter

    return float(np.percentile(gaussian_filter(image, 1.0), 99))
